// An Engine with the parts it ships with: executors on guest memory, and polled pages.

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/engine.h"
#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"
#include "src/memory/guest_memory.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using siov::SubmitResult;

constexpr std::uint64_t kRecords = 0x1000;
constexpr std::uint64_t kFrom = 0x40000;
constexpr std::uint64_t kTo = 0x80000;
constexpr std::uint64_t kSize = 0x1000;

siov::Descriptor Move(std::uint32_t place, std::uint64_t from) {
  WorkDescriptor words{};
  words.flags_and_opcode =
      le32(static_cast<std::uint32_t>(Opcode::kMove) << 24 | Flag::kRecordValid |
           Flag::kRequestRecord | Flag::kRequestInterrupt);
  words.record = le64(kRecords + place * kRecordSize);
  words.source = le64(from);
  words.destination = le64(kTo + place * kSize);
  words.size = le32(std::uint32_t{kSize});
  words.handle = le16(1);
  siov::Descriptor descriptor;
  std::memcpy(descriptor.data(), &words, sizeof(words));
  return descriptor;
}

TEST_CASE("engine: descriptors of both portals move guest memory, complete and interrupt") {
  memory::MemoryMap memory(testing::MakeMemory(0x100000));
  const memory::GuestMemoryPtr ram = memory.Snapshot();
  FakeBackendEvents events;
  auto engine = Engine::Create({.name = "test", .workers = 2, .operations = kAllOperations},
                               {.runner = ExecutorRunners(memory, {.operations = kAllOperations}),
                                .polled = PolledPages()})
                    .value();
  engine->Attach(events);
  REQUIRE(engine->Start({.groups = {{.queues = 0x3, .engines = 2}}}));
  PageDriver driver(engine->OpenPortal(1, 1, siov::PortalMode::kPolled).value());
  const siov::QueueConfig config{
      .size = 32, .priority = 1, .max_transfer = kSize, .operations = kAllOperations};
  REQUIRE(engine->Enable(0, config));
  REQUIRE(engine->Enable(1, config));
  const std::vector<std::byte> data = testing::Pattern(32 * kSize);
  testing::Store(ram, kFrom, data);
  for (std::uint32_t i = 0; i < 16; ++i) {
    CHECK(engine->Submit(0, Move(i, kFrom + i * kSize)) == SubmitResult::kAccepted);
    driver.Store(Move(16 + i, kFrom + (16 + i) * kSize));
  }
  const auto status = [&](std::uint32_t place) {
    return testing::Load(ram, kRecords + place * kRecordSize, 1)[0];
  };
  CHECK(WaitFor([&] { return events.signals.load() == 32; }));
  for (std::uint32_t i = 0; i < 32; ++i) CHECK(status(i) == std::byte{1});
  CHECK(testing::Load(ram, kTo, 32 * kSize) == data);
  CHECK(events.errors.load() == 0);

  // Outside RAM: the fault is in the record, and counted by its status.
  CHECK(engine->Submit(0, Move(0, 0x100000)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return events.signals.load() == 33; }));
  CHECK(status(0) == std::byte{3});
  CHECK(WaitFor([&] { return engine->Occupancy(0) == 0; }));
  const CounterMap counters(*engine);
  CHECK(counters["queue0_status_01"] == 16);
  CHECK(counters["queue0_status_03"] == 1);
  CHECK(counters["queue1_status_01"] == 16);
  CHECK(counters["queue1_bytes"] == 16 * kSize);
}

}  // namespace
}  // namespace postern::dsa
