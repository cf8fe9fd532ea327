#pragma once

// UserServed: a device as a vfio-user server serves it: what UserServer asks of whoever emulates
// one. One object is one device for one client, from the moment it connects until it goes.
//
// Is not trusted with checking the client: region, offset and length lie inside what Region said,
// vectors inside what Irq said, a mapping does not wrap. Errors go to the client as the errno they
// stand for. Source: vfio-user specification, QEMU docs/interop/vfio-user.rst.
//
// Ownership: UserServer owns it. Threads: the server's loop alone; nothing here may block on the
// client.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/result.h"
#include "vfio/host_device.h"
#include "vfio/user/protocol.h"

namespace postern::vfio {

// A region, and where its areas are: at `offset` + area.offset of a file of memory that the client
// can neither shorten nor find other things in.
struct ServedRegion {
  RegionInfo info;  // size 0: the device does not have it
  int fd = -1;      // the device's; -1: info.areas is empty
  std::uint64_t offset = 0;
};

class UserServed {
 public:
  virtual ~UserServed() = default;

  // "at most 256 MiB in 2 mappings": what the client had mapped, for people.
  [[nodiscard]] virtual std::string Describe() const = 0;
  // `index` is below kRegionCount and kIrqCount.
  [[nodiscard]] virtual ServedRegion Region(std::uint32_t index) const = 0;
  [[nodiscard]] virtual IrqInfo Irq(std::uint32_t index) const = 0;

  [[nodiscard]] virtual Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                                std::span<std::byte> data) = 0;
  [[nodiscard]] virtual Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                                 std::span<const std::byte> data) = 0;

  // Vector start + i signals events[i], whatever the descriptor is: it is the client's word that it
  // is an eventfd. All or none of them.
  [[nodiscard]] virtual Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                                std::vector<Fd> events) = 0;
  // They signal nobody.
  virtual void ClearVectors(std::uint32_t irq, std::uint32_t start, std::uint32_t count) = 0;
  // As if the device had.
  virtual void TriggerVectors(std::uint32_t irq, std::uint32_t start, std::uint32_t count) = 0;

  // `file` is not valid where none came.
  [[nodiscard]] virtual Result<void> MapDma(const UserDmaMap& map, Fd file) = 0;
  // When it returns, nothing reaches what was mapped there.
  [[nodiscard]] virtual Result<void> UnmapDma(const UserDmaUnmap& unmap) = 0;

  virtual void Reset() = 0;

  virtual void ReportCounters(CounterSink& sink) const = 0;
};

}  // namespace postern::vfio
