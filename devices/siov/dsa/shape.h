#pragma once

// DsaOptions and DsaShape: what is asked of a virtual Intel DSA, and what it therefore is: the
// sizes and abilities all its registers follow from.
//
//   DsaShape shape = TRY(ShapeOf({.profile = DsaProfile::kConfigurable, .wqs = 4},
//   backend.caps()));
//
// Is not: registers; register_table.h makes those of a shape. Threads: values.

#include <array>
#include <cstdint>

#include "devices/siov/core/backend.h"
#include "src/base/result.h"

namespace postern::dsa {

enum class DsaProfile : std::uint8_t {
  kReadOnly,      // "dsa-ro": configured by us; what the specification asks of a composed device
  kConfigurable,  // "dsa-cfg": the guest configures groups and queues
};

// 0: the profile's default, or what the back end has if that is less.
struct DsaOptions {
  DsaProfile profile = DsaProfile::kReadOnly;
  std::uint32_t wqs = 0;  // 1 to 8; 1, or 8 when configurable
  // Entries of each queue; when configurable, the most the guest may give to one. A polled portal
  // needs at most 63 (polled_page.h), the default when configurable; otherwise 32.
  std::uint32_t wq_size = 0;
  // Entries of all queues together, when configurable: at most 128 by default.
  std::uint32_t entries = 0;
  std::uint32_t groups = 0;   // 1 to 8; 1, or 4 when configurable
  std::uint32_t engines = 0;  // 1 to 64; 1, or 4 when configurable
  // An event log that stays empty: Linux 6.12.117 crashes on disabling a device without one.
  bool event_log = true;
  // The guest must ask for interrupt handles. Always so where the back end says it must be.
  bool handles = false;
  // Operations can be taken from a queue (WQCFG of 64 bytes).
  bool operations_config = false;
  // Read-only: the guest may still choose a queue's mode, PASID and threshold.
  bool mode_support = true;
};

struct DsaShape {
  bool configurable = false;
  bool event_log = false;
  bool handles = false;
  bool operations_config = false;
  bool mode_support = false;
  std::uint32_t wqs = 0;
  std::uint32_t wq_size = 0;
  std::uint32_t entries = 0;
  std::uint32_t groups = 0;
  std::uint32_t engines = 0;
  std::uint32_t transfer_shift = 0;
  std::uint32_t batch_shift = 0;  // 0: no batches
  siov::OperationSet operations{};

  [[nodiscard]] std::uint16_t vectors() const { return static_cast<std::uint16_t>(wqs + 1); }
  [[nodiscard]] std::uint32_t wqcfg_bytes() const { return operations_config ? 64 : 32; }
};

// kInvalidArgument; the error's operation names the option and its range, or what the back end
// lacks.
[[nodiscard]] Result<DsaShape> ShapeOf(const DsaOptions& options, const siov::BackendCaps& caps);

}  // namespace postern::dsa
