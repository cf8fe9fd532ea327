#pragma once

// TestFunction: a small PCI function as a device process would emulate it: configuration space with
// power management, PCI Express, MSI-X and a serial number; a DMA engine; memory that can be
// mapped.
//
//   BAR0  4 KiB, 32 bits: registers (below)
//   BAR2  64 KiB, 64 bits, prefetchable: memory in a file; kAreas of it may be mapped
//   BAR4  8 KiB, 32 bits: MSI-X table at 0, pending bits at 0x1000
//
// It knows no socket: whoever serves it moves the bytes of a copy that was asked for and signals
// the interrupt. Threads: one.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "src/base/fd.h"
#include "src/base/mmap.h"
#include "vfio/host_device.h"

namespace postern::testing {

// The DMA engine's registers in BAR0; 4 bytes each unless said. Accesses of 1, 2, 4, 8 bytes.
constexpr std::uint64_t kEngineId = 0x00;           // read-only: kEngineIdValue
constexpr std::uint64_t kEngineStatus = 0x04;       // bit 0 done, bit 1 error; write 1 to clear
constexpr std::uint64_t kEngineSource = 0x08;       // 8 bytes
constexpr std::uint64_t kEngineDestination = 0x10;  // 8 bytes
constexpr std::uint64_t kEngineLength = 0x18;
constexpr std::uint64_t kEngineVector = 0x1c;    // signalled at the end
constexpr std::uint64_t kEngineDoorbell = 0x20;  // any write starts the copy
constexpr std::uint64_t kEngineCopies = 0x24;    // read-only: copies that ended well
constexpr std::uint64_t kEngineScratch = 0x28;   // 8 bytes
constexpr std::uint32_t kEngineIdValue = 0x52545350;
constexpr std::uint32_t kEngineDone = 1;
constexpr std::uint32_t kEngineError = 2;
constexpr std::uint32_t kEngineMaxLength = 4 << 20;

constexpr std::uint16_t kTestVendorId = 0x1209;
constexpr std::uint16_t kTestDeviceId = 0x0001;
constexpr std::uint64_t kTestMemorySize = 0x10000;
constexpr std::array<vfio::MapArea, 2> kTestAreas = {{{0x1000, 0x2000}, {0x8000, 0x8000}}};
constexpr std::uint64_t kTestPba = 0x1000;

class TestFunction {
 public:
  struct Options {
    unsigned vectors = 4;  // 1 to 256
    bool intx = false;     // an interrupt pin
  };
  struct Copy {
    std::uint64_t source = 0;
    std::uint64_t destination = 0;
    std::uint32_t length = 0;
    std::uint32_t vector = 0;
  };

  explicit TestFunction(const Options& options);

  [[nodiscard]] static std::uint64_t RegionSize(std::uint32_t region);
  // False: not in a region.
  [[nodiscard]] bool Read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> to);
  [[nodiscard]] bool Write(std::uint32_t region, std::uint64_t offset,
                           std::span<const std::byte> from);
  // What the doorbell asked for.
  [[nodiscard]] std::optional<Copy> TakeCopy();
  void Finish(bool ok);
  // The level of INTx: done or failed, not cleared yet, and not disabled in COMMAND.
  [[nodiscard]] bool interrupting() const;
  [[nodiscard]] int memory_fd() const { return memory_fd_.get(); }
  void Reset();

 private:
  void WriteConfig(std::uint64_t offset, std::span<const std::byte> from);
  void WriteRegisters(std::uint64_t offset, std::span<const std::byte> from);
  [[nodiscard]] std::span<std::byte> Bytes(std::uint32_t region);

  const Options options_;
  std::array<std::byte, 4096> config_{};
  std::array<std::byte, 4096> writable_{};  // bits of config_
  std::array<std::byte, 4096> registers_{};
  std::array<std::byte, 8192> table_{};
  Fd memory_fd_;
  Mmap memory_;
  bool rung_ = false;
};

}  // namespace postern::testing
