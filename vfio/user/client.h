#pragma once

// UserDevice: a device in another process, spoken to by vfio-user over a UNIX socket.
//
//   auto device = UserDevice::Connect("/run/nvme.sock", memory, loop);   // a failure names cause
//   TRY((*device)->address_space().Map(Iova(0), {...}, Access::kReadWrite));
//   TRY((*device)->SetVectors(kMsixIrq, 0, std::array{event.fd()}));
//
// What the server says of itself is checked once, in Connect; what breaks a rule there is a
// failure, and later makes the device vanish: every call answers ENODEV from then on, and whoever
// holds the request interrupt (kRequestIrq, which this device always has) is signalled; taking it
// afterwards works, and signals at once. A server that does not answer in time is treated alike; so
// no message waits longer than `timeout_ms`, and calls that wait for one that did fail with it.
//
// Mapped areas are the server's memory (a memfd, or a file of tmpfs or hugetlbfs; of another file
// nothing is mapped): Connect and MapRegion check that it is long enough. A server that cuts it off
// later makes the guest's access fail (KVM_RUN: EFAULT), never one of Postern,
// which does not touch it. Guest memory goes to the server as files, which it keeps while it
// lives: it is trusted with the guest's memory, and with nothing else.
//
// The signal of SetIntxUnmask is passed on by the loop as a message, as the protocol has no way to
// let the server wait for it (an eventfd for UNMASK means the opposite direction there).
//
// Ownership: borrows memory and loop, which outlive it. Threads: any; calls wait for each other.
// Connect and the destructor where the loop's thread may be waited for.

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/fd.h"
#include "src/memory/guest_memory.h"
#include "vfio/host_device.h"
#include "vfio/user/connection.h"
#include "vfio/user/dma_table.h"
#include "vfio/user/user_space.h"

namespace postern::vfio {

struct UserOptions {
  std::uint32_t connect_timeout_ms = 5000;  // all of Connect
  std::uint32_t timeout_ms = 5000;          // one call
  bool posted_writes = false;  // writes to BARs do not wait until the server has seen them
};

class UserDevice final : public HostDevice {
 public:
  [[nodiscard]] static Outcome<std::unique_ptr<UserDevice>> Connect(const std::string& socket,
                                                                    const memory::MemoryMap& memory,
                                                                    EventLoop& loop,
                                                                    const UserOptions& options);
  [[nodiscard]] static Outcome<std::unique_ptr<UserDevice>> Connect(const std::string& socket,
                                                                    const memory::MemoryMap& memory,
                                                                    EventLoop& loop) {
    return Connect(socket, memory, loop, UserOptions());
  }
  // The same over a connected, non-blocking socket.
  [[nodiscard]] static Outcome<std::unique_ptr<UserDevice>> Adopt(Fd socket, std::string name,
                                                                  const memory::MemoryMap& memory,
                                                                  EventLoop& loop,
                                                                  const UserOptions& options);

  [[nodiscard]] const DeviceInfo& info() const override { return info_; }
  [[nodiscard]] iommu::AddressSpace& address_space() override { return *space_; }
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override;
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override;
  [[nodiscard]] Result<std::unique_ptr<RegionMapping>> MapRegion(std::uint32_t region,
                                                                 const MapArea& area) override;
  [[nodiscard]] Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) override;
  [[nodiscard]] Result<void> DisableIrq(std::uint32_t irq) override;
  [[nodiscard]] Result<void> MaskIntx(bool masked) override;
  [[nodiscard]] Result<void> SetIntxUnmask(int unmask) override;
  [[nodiscard]] Result<void> Reset() override;

  [[nodiscard]] bool vanished() const { return connection_->vanished(); }
  [[nodiscard]] const UserCounters& counters() const { return counters_; }
  void ReportCounters(CounterSink& sink) const { counters_.Report(sink); }

 private:
  using Turn = UserConnection::Turn;
  struct Irq {
    bool enabled = false;
    std::vector<bool> assigned;  // vectors the server signals
  };

  UserDevice(std::string name, const memory::MemoryMap& memory, const UserOptions& options)
      : options_(options), dma_(memory) {
    info_.name = std::move(name);
  }
  // All of it before `deadline`.
  [[nodiscard]] Result<void> Handshake(const Turn& turn, std::uint64_t deadline);
  [[nodiscard]] Result<void> Negotiate(const Turn& turn, std::uint64_t deadline);
  [[nodiscard]] Result<void> QueryRegion(const Turn& turn, std::uint32_t index,
                                         std::uint64_t deadline);
  [[nodiscard]] Result<void> QueryIrq(const Turn& turn, std::uint32_t index,
                                      std::uint64_t deadline);
  // Of the areas, if there is one; a file too short for them is refused.
  [[nodiscard]] Result<void> TakeFile(std::uint32_t index, const UserRegionInfo& from,
                                      std::vector<Fd> fds);
  // kInvalidArgument where [offset, offset + length) is not in the region.
  [[nodiscard]] Result<void> CheckAccess(std::uint32_t region, std::uint64_t offset,
                                         std::uint64_t length, bool write) const;
  [[nodiscard]] Result<void> ReadPart(const Turn& turn, const UserRegionAccess& access,
                                      std::span<std::byte> to);
  [[nodiscard]] Result<void> WritePart(const Turn& turn, const UserRegionAccess& access);
  [[nodiscard]] Result<void> SetIrqs(const Turn& turn, const UserSetIrqs& set,
                                     std::span<const int> fds = {});
  [[nodiscard]] Result<void> SetRun(const Turn& turn, std::uint32_t irq, std::uint32_t start,
                                    std::span<const int> events);

  const UserOptions options_;
  UserCounters counters_;
  DmaTable dma_;
  std::unique_ptr<UserConnection> connection_;
  std::unique_ptr<UserAddressSpace> space_;
  // Unchanged after Connect.
  DeviceInfo info_;
  UserCapabilities server_;
  bool server_requests_ = false;  // the server has a request interrupt of its own
  struct File {
    Fd fd;
    std::uint64_t offset = 0;
  };
  std::array<File, kRegionCount> files_;
  // With the turn.
  std::array<Irq, kIrqCount> irqs_;
};

}  // namespace postern::vfio
