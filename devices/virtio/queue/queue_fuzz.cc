// Everything a driver can do to a split queue, against everything a device does with one: the input
// decides both.

#include "devices/virtio/queue/queue.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "src/base/check.h"
#include "tests/support/driver_queue.h"
#include "tests/support/hostile_driver.h"
#include "tests/support/memory.h"

namespace {

using postern::Result;
using postern::testing::DriverQueue;
using postern::testing::HostileDriver;
using postern::testing::MakeMemory;
using postern::virtio::Chain;
using postern::virtio::Queue;
using postern::virtio::Reader;
using postern::virtio::Writer;

void Serve(Queue& queue, HostileDriver& hostile, std::vector<Chain>& held) {
  for (int i = 0; i < 16; ++i) {
    Result<std::optional<Chain>> next = queue.Pop();
    if (!next || !*next) break;
    Chain chain = std::move(**next);
    CHECK(chain.head() < queue.size());
    CHECK(chain.readable_size() + chain.writable_size() <= 0xffffffff);
    std::array<std::byte, 512> buffer{};
    std::array<iovec, 64> iovecs{};
    Reader reader = chain.reader();
    const std::uint64_t readable = std::min<std::uint64_t>(reader.remaining(), buffer.size());
    CHECK(reader.Copy(std::span(buffer).first(readable)).has_value());
    Reader again = chain.reader();
    static_cast<void>(again.Iovecs(again.remaining(), iovecs));
    Writer writer = chain.writer();
    if (hostile.Below(2) == 0) static_cast<void>(writer.SplitOffTail(hostile.Below(8)));
    CHECK(writer.Copy(std::span(buffer).first(std::min<std::uint64_t>(writer.remaining(), 64)))
              .has_value());
    switch (hostile.Below(4)) {
      case 0:
        held.push_back(std::move(chain));
        break;
      case 1:
        chain.Discard();
        break;
      case 2:
        chain.PutBack();
        break;
      default:
        chain.Complete(static_cast<std::uint32_t>(hostile.Random()));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  static const postern::memory::GuestMemoryPtr memory =
      MakeMemory({{0, 0x20000}, {0x20000, 0x10000}, {0x40000, 0x10000}});
  const bool event_idx = (data[0] & 1) != 0;
  const bool indirect = (data[0] & 2) == 0;
  const auto queue_size = static_cast<std::uint16_t>(1U << (data[1] % 7));
  DriverQueue driver(memory, {.size = queue_size, .event_idx = event_idx, .arena_size = 0x10000});
  Queue queue = driver.MakeQueue([] {}, indirect).value();
  HostileDriver hostile(driver, std::span(data + 2, size - 2));
  std::vector<Chain> held;
  while (hostile.input_left()) {
    hostile.Step();
    Serve(queue, hostile, held);
    CHECK(queue.in_flight() == held.size());
    switch (hostile.Below(16)) {
      case 0:
        queue.DisableKicks();
        break;
      case 1: {
        // The device is reset while chains are out, and the driver starts over.
        queue.Reset();
        driver.Restart();
        driver.Configure(queue);
        CHECK(queue.Activate(memory, indirect, [] {}).has_value());
        [[fallthrough]];
      }
      case 2:
        for (Chain& chain : held) chain.Complete(1);
        held.clear();
        break;
      default:
        queue.NotifyIfNeeded();
        static_cast<void>(queue.EnableKicks());
    }
  }
  for (Chain& chain : held) chain.Discard();
  const Result<Queue> restored = Queue::FromState(queue.state());
  static_cast<void>(restored);
  return 0;
}
