#pragma once

// ClientRig: what a test of the vfio-user client has around it: guest memory, and a loop with a
// thread. Tests only.

#include <poll.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "src/base/check.h"
#include "src/base/event_fd.h"
#include "src/base/event_loop.h"
#include "src/base/thread.h"
#include "src/memory/guest_memory.h"
#include "tests/support/vfio_user_server.h"
#include "vfio/user/client.h"

namespace postern::vfio {

// 512 KiB at 0 and 15.5 MiB behind it: two regions that touch.
inline memory::GuestMemoryPtr RigMemory(bool by_file) {
  using memory::Backing;
  const Backing backing{.kind = by_file ? Backing::Kind::kMemfd : Backing::Kind::kAnonymous,
                        .shared = by_file};
  auto low = memory::Region::Create(memory::Gpa(0), 0x80000, backing);
  auto high = memory::Region::Create(memory::Gpa(0x80000), 0xf80000, backing);
  CHECK(low.has_value() && high.has_value());
  auto memory = memory::GuestMemory::Create({*low, *high});
  CHECK(memory.has_value());
  return *memory;
}

struct ClientRig {
  explicit ClientRig(bool by_file = false) : memory(RigMemory(by_file)) {
    auto made = EventLoop::Create();
    CHECK(made.has_value());
    loop = std::move(*made);
    auto started = Thread::Start("loop", [this] { loop->Run(); });
    CHECK(started.has_value());
    thread = std::move(*started);
  }
  ~ClientRig() {
    loop->Stop();
    thread.Join();
  }
  ClientRig(const ClientRig&) = delete;
  ClientRig& operator=(const ClientRig&) = delete;

  std::unique_ptr<UserDevice> Connect(const testing::VfioUserServer& server,
                                      const UserOptions& options = {}) {
    auto device = UserDevice::Connect(server.path(), memory, *loop, options);
    CHECK(device.has_value());
    return std::move(*device);
  }
  // All of memory, where the guest sees it.
  void MapAll(UserDevice& device) const {
    for (const memory::RegionPtr& region : memory.Snapshot()->regions()) {
      const iommu::HostRange range{.address = reinterpret_cast<std::byte*>(region->host_address()),
                                   .fd = region->fd(),
                                   .length = region->size()};
      CHECK(device.address_space()
                .Map(iommu::Iova(region->base().value), range, memory::Access::kReadWrite)
                .has_value());
    }
  }

  memory::MemoryMap memory;
  std::unique_ptr<EventLoop> loop;
  Thread thread;
};

inline std::uint32_t ReadWord(HostDevice& device, std::uint32_t region, std::uint64_t offset) {
  std::uint32_t word = 0;
  CHECK(device.ReadRegion(region, offset, std::as_writable_bytes(std::span(&word, 1))).has_value());
  return word;
}

inline void WriteWord(HostDevice& device, std::uint32_t region, std::uint64_t offset,
                      std::uint32_t word) {
  CHECK(device.WriteRegion(region, offset, std::as_bytes(std::span(&word, 1))).has_value());
}

// On the test function's engine.
inline void StartCopy(HostDevice& device, std::uint64_t source, std::uint64_t destination,
                      std::uint32_t length, std::uint32_t vector) {
  const std::array<std::uint64_t, 2> addresses{source, destination};
  CHECK(device.WriteRegion(0, testing::kEngineSource, std::as_bytes(std::span(addresses)))
            .has_value());
  WriteWord(device, 0, testing::kEngineLength, length);
  WriteWord(device, 0, testing::kEngineVector, vector);
  WriteWord(device, 0, testing::kEngineDoorbell, 1);
}

// Until it is signalled; false after 10 s. Does not consume.
inline bool WaitFor(const EventFd& event) {
  pollfd entry{event.fd(), POLLIN, 0};
  return poll(&entry, 1, 10'000) == 1;
}

inline std::ptrdiff_t OpenFds() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                       std::filesystem::directory_iterator());
}

inline std::ptrdiff_t OpenMaps() {
  std::ifstream maps("/proc/self/maps");
  std::ptrdiff_t lines = 0;
  for (std::string line; std::getline(maps, line);) ++lines;
  return lines;
}

}  // namespace postern::vfio
