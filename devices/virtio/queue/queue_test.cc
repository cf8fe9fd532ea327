#include "devices/virtio/queue/queue.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "devices/virtio/queue/split_ring.h"
#include "src/base/event_fd.h"
#include "tests/support/driver_queue.h"
#include "tests/support/hostile_driver.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DriverQueue;
using testing::HostileDriver;
using testing::IsDirty;
using testing::Load;
using testing::MakeMemory;
using testing::Pattern;

using Values = std::initializer_list<std::uint16_t>;

Queue MakeActive(const DriverQueue& driver, int* interrupts = nullptr, bool indirect = true) {
  return driver
      .MakeQueue(
          [interrupts] {
            if (interrupts != nullptr) ++*interrupts;
          },
          indirect)
      .value();
}

Chain PopOne(Queue& queue) {
  Result<std::optional<Chain>> next = queue.Pop();
  REQUIRE(next.has_value());
  REQUIRE(next->has_value());
  return std::move(**next);
}

Errc PopError(Queue& queue) {
  const Result<std::optional<Chain>> next = queue.Pop();
  REQUIRE_FALSE(next.has_value());
  return next.error().code;
}

// One request from ring to ring without an assertion per step, for the tests that do very many.
bool Turn(DriverQueue& driver, Queue& queue, std::uint16_t head, std::uint32_t written) {
  driver.PublishHead(head);
  Result<std::optional<Chain>> next = queue.Pop();
  if (!next || !*next) return false;
  (*next)->Complete(written);
  return true;
}

bool PopNone(Queue& queue) {
  const Result<std::optional<Chain>> next = queue.Pop();
  REQUIRE(next.has_value());
  return !next->has_value();
}

std::vector<std::byte> ReadAll(Reader reader) {
  std::vector<std::byte> bytes(reader.remaining());
  REQUIRE(reader.Copy(bytes).has_value());
  return bytes;
}

// --- configuration ---

TEST_CASE("virtq: the maximum size is a power of two in 1..32768") {
  for (const std::uint16_t size : Values{1, 2, 4, 256, 1024, 32768}) {
    CAPTURE(size);
    CHECK(Queue::Create(size).has_value());
  }
  for (const std::uint16_t size : Values{0, 3, 6, 100, 32767, 32769, 65535}) {
    CAPTURE(size);
    REQUIRE_FALSE(Queue::Create(size).has_value());
    CHECK(Queue::Create(size).error().code == Errc::kInvalidArgument);
  }
}

TEST_CASE("virtq: setters refuse bad values and keep the old ones") {
  Queue queue = Queue::Create(256).value();
  CHECK(queue.size() == 256);
  CHECK(queue.SetSize(16));
  // Size 0 divided by zero in another monitor once.
  for (const std::uint16_t size : Values{0, 3, 512, 65535}) {
    CAPTURE(size);
    CHECK_FALSE(queue.SetSize(size));
    CHECK(queue.size() == 16);
  }
  CHECK(queue.SetDescTable(0x1000));
  CHECK(queue.SetAvailRing(0x2002));
  CHECK(queue.SetUsedRing(0x3004));
  for (const std::uint64_t off : {1U, 2U, 4U, 8U, 15U})
    CHECK_FALSE(queue.SetDescTable(0x8000 + off));
  CHECK_FALSE(queue.SetAvailRing(0x8001));
  for (const std::uint64_t off : {1U, 2U, 3U}) CHECK_FALSE(queue.SetUsedRing(0x8000 + off));
  CHECK(queue.state().desc_table == 0x1000);
  CHECK(queue.state().avail_ring == 0x2002);
  CHECK(queue.state().used_ring == 0x3004);
}

TEST_CASE("virtq: configuration is frozen while active") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  CHECK_FALSE(queue.SetSize(8));
  CHECK_FALSE(queue.SetDescTable(0));
  CHECK_FALSE(queue.SetAvailRing(0));
  CHECK_FALSE(queue.SetUsedRing(0));
  queue.SetEventIdx(true);
  CHECK_FALSE(queue.state().event_idx_enabled);
}

TEST_CASE(
    "virtq: reset gives the state after creation, and popping then is an error, not a spin "
    "(regression)") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  driver.Build().Readable("x").Publish();
  PopOne(queue).Complete(0);
  queue.Reset();
  const QueueState& state = queue.state();
  CHECK(state.max_size == 16);
  CHECK(state.size == 16);
  CHECK(state.next_avail == 0);
  CHECK(state.next_used == 0);
  CHECK_FALSE(state.ready);
  CHECK_FALSE(state.event_idx_enabled);
  CHECK(state.desc_table == 0);
  CHECK(state.avail_ring == 0);
  CHECK(state.used_ring == 0);
  CHECK_FALSE(queue.active());
  CHECK(PopError(queue) == Errc::kBadState);
  CHECK_FALSE(queue.HasWork());
  CHECK_FALSE(queue.EnableKicks());
  queue.DisableKicks();
  queue.NotifyIfNeeded();
}

TEST_CASE("virtq: saved state restores exactly, and continues") {
  DriverQueue driver(MakeMemory(1 << 20), {.event_idx = true});
  Queue queue = MakeActive(driver);
  for (int i = 0; i < 5; ++i) {
    driver.Build().Readable("request").Publish();
    PopOne(queue).Complete(0);
  }
  const QueueState saved = queue.state();
  CHECK(saved.next_avail == 5);
  CHECK(saved.next_used == 5);

  Queue restored = Queue::FromState(saved).value();
  CHECK(restored.state().max_size == saved.max_size);
  CHECK(restored.state().next_avail == 5);
  CHECK(restored.state().next_used == 5);
  CHECK(restored.state().event_idx_enabled);
  CHECK(restored.state().ready);
  int interrupts = 0;
  REQUIRE(restored.Activate(driver.memory(), true, [&] { ++interrupts; }).has_value());
  CHECK(PopNone(restored));
  restored.NotifyAlways();
  CHECK(interrupts == 1);
  driver.Build().Readable("next").Publish();
  PopOne(restored).Complete(0);
  CHECK(driver.used_idx() == 6);
}

TEST_CASE("virtq: malformed saved state is refused") {
  const QueueState good{.max_size = 256,
                        .next_avail = 10,
                        .next_used = 8,
                        .size = 128,
                        .ready = true,
                        .desc_table = 0x1000,
                        .avail_ring = 0x2000,
                        .used_ring = 0x3000};
  REQUIRE(Queue::FromState(good).has_value());
  struct Row {
    const char* name;
    void (*spoil)(QueueState&);
  };
  const std::array<Row, 10> rows{{
      {"max_size 0", [](QueueState& s) { s.max_size = 0; }},
      {"max_size not a power of two", [](QueueState& s) { s.max_size = 255; }},
      {"max_size too large", [](QueueState& s) { s.max_size = 65535; }},
      {"size 0", [](QueueState& s) { s.size = 0; }},
      {"size above maximum", [](QueueState& s) { s.size = 512; }},
      {"size not a power of two", [](QueueState& s) { s.size = 100; }},
      {"descriptor table misaligned", [](QueueState& s) { s.desc_table += 8; }},
      {"available ring misaligned", [](QueueState& s) { s.avail_ring += 1; }},
      {"used ring misaligned", [](QueueState& s) { s.used_ring += 2; }},
      {"more in flight than the ring holds", [](QueueState& s) { s.next_used = 0xff89; }},
  }};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    QueueState bad = good;
    row.spoil(bad);
    const Result<Queue> queue = Queue::FromState(bad);
    REQUIRE_FALSE(queue.has_value());
    CHECK(queue.error().code == Errc::kBadFormat);
  }
}

TEST_CASE("virtq: rings must lie in RAM, whole, and apart from each other (regression)") {
  // RAM at 0..0x10000 and 0x20000..0x30000.
  const auto memory = MakeMemory({{0, 0x10000}, {0x20000, 0x10000}});
  struct Row {
    const char* name;
    std::uint64_t desc, avail, used;
    bool ok;
  };
  // Size 16 with EVENT_IDX: 256, 38 and 134 bytes.
  const std::array<Row, 13> rows{{
      {"apart", 0x1000, 0x2000, 0x3000, true},
      {"back to back", 0x1000, 0x1100, 0x1128, true},
      {"in different regions", 0x1000, 0x20000, 0x2ff00, true},
      {"descriptors end with RAM", 0xff00, 0x2000, 0x3000, true},
      {"used ring ends with RAM, to the byte", 0x1000, 0x2000, 0x30000 - 136, true},
      {"used ring 2 bytes beyond", 0x1000, 0x2000, 0x30000 - 132, false},
      {"descriptors straddle the end", 0xff10, 0x2000, 0x3000, false},
      {"available ring in the hole", 0x1000, 0x18000, 0x3000, false},
      {"used ring at the top of the address space", 0x1000, 0x2000, 0xfffffffffffffffc, false},
      {"descriptors at the top of the address space", 0xfffffffffffffff0, 0x2000, 0x3000, false},
      {"available ring in the descriptors", 0x1000, 0x1080, 0x3000, false},
      {"used ring over the last entry of the available ring", 0x1000, 0x2000, 0x2024, false},
      {"all the same", 0x1000, 0x1000, 0x1000, false},
  }};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    Queue queue = Queue::Create(16).value();
    REQUIRE(queue.SetDescTable(row.desc));
    REQUIRE(queue.SetAvailRing(row.avail));
    REQUIRE(queue.SetUsedRing(row.used));
    queue.SetEventIdx(true);
    queue.SetReady(true);
    CHECK(queue.Activate(memory, true, {}).has_value() == row.ok);
    CHECK(queue.active() == row.ok);
  }
}

TEST_CASE("virtq: a queue that was not made ready does not activate") {
  Queue queue = Queue::Create(16).value();
  const Result<void> activated = queue.Activate(MakeMemory(1 << 20), true, {});
  REQUIRE_FALSE(activated.has_value());
  CHECK(activated.error().code == Errc::kBadState);
}

// --- chains ---

TEST_CASE("virtq: nothing, a chain and an error are three answers") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  CHECK(PopNone(queue));
  CHECK_FALSE(queue.HasWork());
  driver.Build().Readable("a").Publish();
  CHECK(queue.HasWork());
  PopOne(queue).Complete(0);
  driver.PublishHead(16);
  CHECK(PopError(queue) == Errc::kGuestProtocol);
  CHECK(PopNone(queue));
}

TEST_CASE("virtq: a chain is read front to back and written front to back") {
  for (const bool indirect : {false, true}) {
    CAPTURE(indirect);
    DriverQueue driver(MakeMemory(1 << 20), {});
    Queue queue = MakeActive(driver);
    const auto first = Pattern(5, 1);
    const auto second = Pattern(300, 2);
    auto chain_builder = driver.Build();
    chain_builder.Readable(first).Readable(second).Writable(7).Writable(100);
    if (indirect) chain_builder.Indirect();
    const std::uint16_t head = chain_builder.Publish();
    Chain chain = PopOne(queue);
    CHECK(chain.head() == head);
    CHECK(chain.readable_size() == 305);
    CHECK(chain.writable_size() == 107);
    CHECK(queue.in_flight() == 1);

    auto all = first;
    all.insert(all.end(), second.begin(), second.end());
    CHECK(ReadAll(chain.reader()) == all);
    Reader reader = chain.reader();
    // Across the border of two descriptors.
    REQUIRE(reader.Skip(3).has_value());
    const auto word = reader.Read<le32>();
    REQUIRE(word.has_value());
    CHECK(word->get() ==
          (std::to_integer<std::uint32_t>(all[3]) | std::to_integer<std::uint32_t>(all[4]) << 8 |
           std::to_integer<std::uint32_t>(all[5]) << 16 |
           std::to_integer<std::uint32_t>(all[6]) << 24));
    CHECK(reader.remaining() == 298);

    const auto answer = Pattern(60, 3);
    Writer writer = chain.writer();
    REQUIRE(writer.Copy(answer).has_value());
    REQUIRE(writer.Fill(std::byte{0xee}, 4).has_value());
    REQUIRE(writer.Write(le16(0xbeef)).has_value());
    CHECK(writer.written() == 66);
    CHECK(writer.remaining() == 41);
    chain.Complete(66);
    CHECK(queue.in_flight() == 0);

    const auto used = driver.TakeUsed();
    REQUIRE(used.has_value());
    CHECK(used->head == head);
    CHECK(used->length == 66);
    const auto written = driver.Written(head);
    CHECK(std::equal(answer.begin(), answer.end(), written.begin()));
    CHECK(written[60] == std::byte{0xee});
    CHECK(written[63] == std::byte{0xee});
    CHECK(written[64] == std::byte{0xef});
    CHECK(written[65] == std::byte{0xbe});
    CHECK(written[66] == std::byte{0});
  }
}

TEST_CASE("virtq: cursors refuse what does not fit and stay where they are") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  driver.Build().Readable("abc").Writable(3).Publish();
  Chain chain = PopOne(queue);
  Reader reader = chain.reader();
  CHECK_FALSE(reader.Read<le32>().has_value());
  CHECK_FALSE(reader.Skip(4).has_value());
  std::array<iovec, 2> iovecs{};
  CHECK_FALSE(reader.Iovecs(4, iovecs).has_value());
  CHECK(reader.remaining() == 3);
  Writer writer = chain.writer();
  CHECK_FALSE(writer.Write(le32(1)).has_value());
  CHECK_FALSE(writer.Fill(std::byte{1}, 4).has_value());
  CHECK_FALSE(writer.SplitOffTail(4).has_value());
  CHECK(writer.remaining() == 3);
  CHECK(writer.written() == 0);
  CHECK(reader.Skip(3).has_value());
  CHECK_FALSE(reader.Skip(1).has_value());
  CHECK(reader.Skip(0).has_value());
  chain.Complete(0);
}

TEST_CASE("virtq: iovecs name the same bytes, and say when there are too many") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  driver.Build()
      .Readable("0123456789")
      .Readable("abcdef")
      .Readable("XYZ")
      .Writable(4)
      .Writable(4)
      .Publish();
  Chain chain = PopOne(queue);
  Reader reader = chain.reader();
  REQUIRE(reader.Skip(8).has_value());
  std::array<iovec, 3> iovecs{};
  Result<std::size_t> none = reader.Iovecs(11, std::span(iovecs).first(2));
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().code == Errc::kExhausted);
  CHECK(reader.remaining() == 11);
  const Result<std::size_t> count = reader.Iovecs(10, iovecs);
  REQUIRE(count.has_value());
  REQUIRE(*count == 3);
  CHECK(std::string_view(static_cast<const char*>(iovecs[0].iov_base), iovecs[0].iov_len) == "89");
  CHECK(std::string_view(static_cast<const char*>(iovecs[1].iov_base), iovecs[1].iov_len) ==
        "abcdef");
  CHECK(std::string_view(static_cast<const char*>(iovecs[2].iov_base), iovecs[2].iov_len) == "XY");
  CHECK(reader.remaining() == 1);

  Writer writer = chain.writer();
  Writer tail = writer.SplitOffTail(1).value();
  CHECK(writer.remaining() == 7);
  CHECK(tail.remaining() == 1);
  REQUIRE(tail.Write(std::uint8_t{0x5a}).has_value());
  CHECK(writer.Iovecs(7, iovecs).value() == 2);
  CHECK(iovecs[1].iov_len == 3);
  CHECK(writer.written() == 7);
  const std::uint16_t head = chain.head();
  chain.Complete(8);
  CHECK(driver.Written(head)[7] == std::byte{0x5a});
}

TEST_CASE("virtq: a buffer may span adjacent regions") {
  const auto memory = MakeMemory({{0, 0x10000}, {0x10000, 0x10000}});
  DriverQueue driver(memory, {.arena = 0x4000, .arena_size = 0x4000});
  Queue queue = MakeActive(driver);
  const auto bytes = Pattern(64);
  testing::Store(memory, 0x10000 - 20, bytes);
  driver.Build().ReadableAt(0x10000 - 20, 64).WritableAt(0x10000 - 4, 8).Publish();
  Chain chain = PopOne(queue);
  CHECK(ReadAll(chain.reader()) == bytes);
  std::array<iovec, 4> iovecs{};
  Reader reader = chain.reader();
  CHECK(reader.Iovecs(64, iovecs).value() == 2);
  CHECK(iovecs[0].iov_len == 20);
  Writer writer = chain.writer();
  CHECK(writer.Copy(Pattern(8, 9)).has_value());
  chain.Complete(8);
  CHECK(Load(memory, 0x10000 - 4, 8) == Pattern(8, 9));
}

TEST_CASE("virtq: zero-length descriptors carry nothing and count as steps") {
  DriverQueue driver(MakeMemory(1 << 20), {.size = 4});
  Queue queue = MakeActive(driver);
  // The address of nothing need not be anywhere.
  driver.Build()
      .Raw(~std::uint64_t{0}, 0, 0)
      .Readable("ab")
      .Raw(0x123456789abc, 0, kDescWrite)
      .Writable(2)
      .Publish();
  Chain chain = PopOne(queue);
  CHECK(chain.readable_size() == 2);
  CHECK(chain.writable_size() == 2);
  CHECK(ReadAll(chain.reader()).size() == 2);
  chain.Complete(0);
  driver.TakeUsed();

  driver.Build().Raw(0, 0, 0).Publish();
  Chain empty = PopOne(queue);
  CHECK(empty.readable_size() == 0);
  CHECK(empty.writable_size() == 0);
  CHECK(empty.reader().remaining() == 0);
  empty.Complete(100);
  CHECK(driver.TakeUsed()->length == 0);
  driver.Build().Raw(0, 0, 0).Loop().Publish();
  CHECK(PopError(queue) == Errc::kGuestProtocol);
}

TEST_CASE(
    "virtq: a chain as long as the queue is good, and one that loops is refused after that many "
    "steps") {
  DriverQueue driver(MakeMemory(1 << 20), {.size = 8});
  Queue queue = MakeActive(driver);
  auto longest = driver.Build();
  for (int i = 0; i < 8; ++i) longest.Writable(16);
  longest.Publish();
  Chain chain = PopOne(queue);
  CHECK(chain.writable_size() == 128);
  chain.Complete(128);
  driver.TakeUsed();

  driver.Build().Readable("a").Readable("b").Loop().Publish();
  CHECK(PopError(queue) == Errc::kGuestProtocol);
  driver.Build().Readable("a").Loop().Publish();  // points to itself
  CHECK(PopError(queue) == Errc::kGuestProtocol);
  CHECK(queue.in_flight() == 0);
}

TEST_CASE("virtq: VIRTIO 1.2 2.7.5.3: indirect tables") {
  DriverQueue driver(MakeMemory(1 << 20), {.size = 8});

  SUBCASE("as long as the queue is good, also in a queue of one") {
    Queue queue = MakeActive(driver);
    auto longest = driver.Build();
    for (int i = 0; i < 8; ++i) longest.Writable(16);
    longest.Indirect().Publish();
    Chain chain = PopOne(queue);
    CHECK(chain.writable_size() == 128);
    chain.Complete(0);

    DriverQueue one(driver.memory(), {.base = 0x80000, .size = 1});
    Queue small = MakeActive(one);
    one.Build().Readable("only").Indirect().Publish();
    Chain single = PopOne(small);
    CHECK(single.readable_size() == 4);
    single.Complete(0);
  }
  SUBCASE("longer than the queue is refused") {
    Queue queue = MakeActive(driver);
    auto longer = driver.Build();
    for (int i = 0; i < 9; ++i) longer.Writable(16);
    longer.Indirect().Publish();
    CHECK(PopError(queue) == Errc::kGuestProtocol);
  }
  SUBCASE("a table that is larger than what its chain uses is good") {
    Queue queue = MakeActive(driver);
    const std::uint64_t table = driver.Allocate(16 * 1000);
    REQUIRE(driver.memory()
                ->Write(memory::Gpa(table),
                        Descriptor{le64(0x2000), le32(5), le16(kDescNext), le16(999)})
                .has_value());
    REQUIRE(driver.memory()
                ->Write(memory::Gpa(table + 999 * sizeof(Descriptor)),
                        Descriptor{le64(0x3000), le32(6), le16(0), le16(0)})
                .has_value());
    driver.Build().Raw(table, 16000, kDescIndirect).Publish();
    Chain chain = PopOne(queue);
    CHECK(chain.readable_size() == 11);
    chain.Complete(0);
  }
  SUBCASE("the WRITE flag of the referring descriptor is ignored (2.7.5.3.2)") {
    Queue queue = MakeActive(driver);
    const std::uint64_t table = driver.Allocate(16);
    REQUIRE(driver.memory()
                ->Write(memory::Gpa(table), Descriptor{le64(0x2000), le32(5), le16(0), le16(0)})
                .has_value());
    driver.Build().Raw(table, 16, kDescIndirect | kDescWrite).Publish();
    Chain chain = PopOne(queue);
    CHECK(chain.readable_size() == 5);
    chain.Complete(0);
  }
  SUBCASE("one may follow direct descriptors") {
    Queue queue = MakeActive(driver);
    const std::uint64_t table = driver.Allocate(16);
    REQUIRE(driver.memory()
                ->Write(memory::Gpa(table),
                        Descriptor{le64(0x2000), le32(5), le16(kDescWrite), le16(0)})
                .has_value());
    driver.Build().Readable("direct").Raw(table, 16, kDescIndirect).Publish();
    Chain chain = PopOne(queue);
    CHECK(chain.readable_size() == 6);
    CHECK(chain.writable_size() == 5);
    chain.Complete(0);
  }
  SUBCASE("refused") {
    struct Row {
      const char* name;
      std::uint64_t table;
      std::uint32_t bytes;
      std::uint16_t flags;
      Descriptor entry;
      bool negotiated;
      Errc code;
    };
    const Descriptor fine{le64(0x2000), le32(5), le16(0), le16(0)};
    const std::array<Row, 11> rows{{
        {"not negotiated", 0x80000, 16, kDescIndirect, fine, false, Errc::kGuestProtocol},
        {"empty", 0x80000, 0, kDescIndirect, fine, true, Errc::kGuestProtocol},
        {"length 15", 0x80000, 15, kDescIndirect, fine, true, Errc::kGuestProtocol},
        {"length 17", 0x80000, 17, kDescIndirect, fine, true, Errc::kGuestProtocol},
        {"with NEXT", 0x80000, 16, kDescIndirect | kDescNext, fine, true, Errc::kGuestProtocol},
        {"outside RAM", 0x80000000, 16, kDescIndirect, fine, true, Errc::kGuestRange},
        {"longer than RAM", 0x80000, 0xfffffff0, kDescIndirect, fine, true, Errc::kGuestRange},
        {"at the top of the address space", 0xfffffffffffffff8, 16, kDescIndirect, fine, true,
         Errc::kGuestRange},
        {"nested",
         0x80000,
         16,
         kDescIndirect,
         {le64(0x80000), le32(16), le16(kDescIndirect), le16(0)},
         true,
         Errc::kGuestProtocol},
        {"next is out of the table",
         0x80000,
         16,
         kDescIndirect,
         {le64(0x2000), le32(5), le16(kDescNext), le16(1)},
         true,
         Errc::kGuestProtocol},
        {"loops",
         0x80000,
         16,
         kDescIndirect,
         {le64(0x2000), le32(5), le16(kDescNext), le16(0)},
         true,
         Errc::kGuestProtocol},
    }};
    for (const Row& row : rows) {
      CAPTURE(row.name);
      driver.Restart();
      Queue queue = MakeActive(driver, nullptr, row.negotiated);
      REQUIRE(driver.memory()->Write(memory::Gpa(0x80000), row.entry).has_value());
      driver.WriteDescriptor(3, {le64(row.table), le32(row.bytes), le16(row.flags), le16(4)});
      driver.PublishHead(3);
      CHECK(PopError(queue) == row.code);
      CHECK(PopNone(queue));
    }
  }
}

TEST_CASE("virtq: chains that break a rule are refused and consumed") {
  const auto memory = MakeMemory({{0, 0x100000}, {0x40000000, 0x100000}});
  DriverQueue driver(memory, {.size = 8});
  struct Row {
    const char* name;
    std::vector<Descriptor> table;
    Errc code;
  };
  const auto desc = [](std::uint64_t addr, std::uint32_t len, int flags, int next) {
    return Descriptor{le64(addr), le32(len), le16(static_cast<std::uint16_t>(flags)),
                      le16(static_cast<std::uint16_t>(next))};
  };
  const std::array<Row, 11> rows{{
      {"next beyond the table", {desc(0x2000, 4, kDescNext, 8)}, Errc::kGuestProtocol},
      {"next far beyond", {desc(0x2000, 4, kDescNext, 0xffff)}, Errc::kGuestProtocol},
      {"readable after writable (2.7.4.2)",
       {desc(0x2000, 4, kDescNext | kDescWrite, 1), desc(0x2000, 4, 0, 0)},
       Errc::kGuestProtocol},
      {"empty readable after writable",
       {desc(0x2000, 4, kDescNext | kDescWrite, 1), desc(0x2000, 0, 0, 0)},
       Errc::kGuestProtocol},
      {"unknown flag 8", {desc(0x2000, 4, 8, 0)}, Errc::kGuestProtocol},
      {"unknown flag 0x8000", {desc(0x2000, 4, 0x8000, 0)}, Errc::kGuestProtocol},
      {"buffer in no region", {desc(0x200000, 4, 0, 0)}, Errc::kGuestRange},
      {"buffer runs out of its region", {desc(0xffffe, 4, 0, 0)}, Errc::kGuestRange},
      {"buffer wraps the address space", {desc(~std::uint64_t{0} - 1, 4, 0, 0)}, Errc::kGuestRange},
      {"second buffer in no region",
       {desc(0x2000, 4, kDescNext, 1), desc(0x3f000000, 4, kDescWrite, 0)},
       Errc::kGuestRange},
      {"length 0xffffffff", {desc(0x2000, 0xffffffff, 0, 0)}, Errc::kGuestRange},
  }};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    driver.Restart();
    Queue queue = MakeActive(driver);
    for (std::size_t i = 0; i < row.table.size(); ++i) {
      driver.WriteDescriptor(static_cast<std::uint16_t>(i), row.table[i]);
    }
    driver.WriteDescriptor(7, desc(0x3000, 12, 0, 0));
    driver.StageHead(0);
    driver.StageHead(7);
    driver.PublishStaged();
    CHECK(PopError(queue) == row.code);
    // The bad one is gone; the good one behind it is next.
    Chain chain = PopOne(queue);
    CHECK(chain.head() == 7);
    CHECK(chain.readable_size() == 12);
    chain.Complete(0);
    CHECK(PopNone(queue));
  }
}

TEST_CASE("virtq: the lengths of a chain add up to less than 2^32 (regression)") {
  // A gigabyte nobody touches.
  const std::uint64_t gigabyte = std::uint64_t{1} << 30;
  const auto memory = MakeMemory(gigabyte);
  DriverQueue driver(memory, {.size = 8});
  Queue queue = MakeActive(driver);
  const auto quarter = static_cast<std::uint32_t>(gigabyte);
  driver.Build()
      .ReadableAt(0, quarter)
      .ReadableAt(0, quarter)
      .ReadableAt(0, quarter)
      .WritableAt(0, quarter - 1)
      .Publish();
  Chain chain = PopOne(queue);
  CHECK(chain.readable_size() + chain.writable_size() == 0xffffffff);
  chain.Complete(0);
  driver.TakeUsed();
  driver.Build()
      .ReadableAt(0, quarter)
      .ReadableAt(0, quarter)
      .ReadableAt(0, quarter)
      .WritableAt(0, quarter)
      .Publish();
  CHECK(PopError(queue) == Errc::kGuestProtocol);
}

TEST_CASE("virtq: heads out of range are refused") {
  for (const std::uint16_t head : Values{16, 17, 0x7fff, 0x8000, 0xffff}) {
    CAPTURE(head);
    DriverQueue driver(MakeMemory(1 << 20), {});
    Queue queue = MakeActive(driver);
    driver.PublishHead(head);
    CHECK(PopError(queue) == Errc::kGuestProtocol);
  }
}

TEST_CASE(
    "virtq: an available index that jumped is an error each time, never a spin (regression)") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  driver.SetAvailIdx(16);  // all of the ring: legal
  CHECK(queue.HasWork());
  PopOne(queue).Discard();
  for (const std::uint16_t index : Values{18, 100, 0x8000, 0xffff, 0}) {
    CAPTURE(index);
    DriverQueue other(driver.memory(), {.base = 0x80000});
    Queue victim = MakeActive(other);
    other.Build().Readable("x").Publish();
    PopOne(victim).Complete(0);
    other.SetAvailIdx(index);
    CHECK(PopError(victim) == Errc::kGuestProtocol);
    CHECK(PopError(victim) == Errc::kGuestProtocol);
    CHECK(victim.state().next_avail == 1);
  }
}

TEST_CASE("virtq: a head that is in flight is refused, and free again once completed") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  const std::uint16_t head = driver.Build().Readable("first").Publish();
  Chain chain = PopOne(queue);
  // Rewriting the descriptor under the chain changes nothing: it was copied.
  driver.WriteDescriptor(head,
                         {le64(~std::uint64_t{0}), le32(0xffffffff), le16(0xffff), le16(0xffff)});
  driver.PublishHead(head);
  CHECK(PopError(queue) == Errc::kGuestProtocol);
  CHECK(ReadAll(chain.reader()).size() == 5);
  chain.Complete(0);
  driver.WriteDescriptor(head, {le64(0x2000), le32(9), le16(0), le16(0)});
  driver.PublishHead(head);
  Chain again = PopOne(queue);
  CHECK(again.readable_size() == 9);
  again.Complete(0);
}

TEST_CASE("virtq: chains complete in any order") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  std::vector<Chain> chains;
  chains.reserve(4);
  for (std::uint32_t i = 0; i < 4; ++i) driver.Build().Writable(i + 1).Publish();
  for (int i = 0; i < 4; ++i) chains.push_back(PopOne(queue));
  CHECK(queue.in_flight() == 4);
  for (const std::size_t i : {2U, 0U, 3U, 1U}) {
    chains[i].Complete(static_cast<std::uint32_t>(i + 1));
    const auto used = driver.TakeUsed();
    REQUIRE(used.has_value());
    CHECK(used->head == chains[i].head());
    CHECK(used->length == i + 1);
  }
  CHECK(queue.in_flight() == 0);
}

TEST_CASE("virtq: completing twice is once, and a claim beyond the writable part is cut") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  driver.Build().Readable("r").Writable(10).Publish();
  Chain chain = PopOne(queue);
  chain.Complete(0xffffffff);
  chain.Complete(1);
  chain.PutBack();
  chain.Discard();
  CHECK(driver.used_idx() == 1);
  CHECK(driver.TakeUsed()->length == 10);
  CHECK(queue.in_flight() == 0);
}

TEST_CASE("virtq: the 16-bit indices wrap") {
  for (const std::uint16_t size : Values{1, 4}) {
    CAPTURE(size);
    DriverQueue driver(MakeMemory(1 << 20), {.size = size, .event_idx = true});
    int interrupts = 0;
    Queue queue = MakeActive(driver, &interrupts);
    const std::uint16_t head = driver.Build().Writable(8).Place();
    std::uint32_t wrong = 0;
    for (std::uint32_t i = 0; i < 70000; ++i) {
      driver.SetUsedEvent(static_cast<std::uint16_t>(i));
      if (!Turn(driver, queue, head, i % 8)) ++wrong;
      queue.NotifyIfNeeded();
      if (driver.used_idx() != static_cast<std::uint16_t>(i + 1)) ++wrong;
    }
    CHECK(wrong == 0);
    CHECK(interrupts == 70000);
    CHECK(PopNone(queue));
  }
}

TEST_CASE("virtq: a chain put back is popped again, last first") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  driver.Build().Readable("one").Publish();
  driver.Build().Readable("three").Publish();
  Chain first = PopOne(queue);
  Chain second = PopOne(queue);
  second.PutBack();
  first.PutBack();
  CHECK(queue.in_flight() == 0);
  CHECK(queue.state().next_avail == 0);
  CHECK(queue.HasWork());
  Chain again = PopOne(queue);
  CHECK(again.readable_size() == 3);
  again.Complete(0);
  Chain last = PopOne(queue);
  CHECK(last.readable_size() == 5);
  last.Complete(0);
}

TEST_CASE("virtq: chains that outlive their queue's reset or end do nothing (regression)") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  int interrupts = 0;
  SUBCASE("reset") {
    Queue queue = MakeActive(driver, &interrupts);
    driver.Build().Readable("data").Writable(4).Publish();
    Chain chain = PopOne(queue);
    queue.Reset();
    CHECK(queue.in_flight() == 0);
    CHECK(ReadAll(chain.reader()).size() == 4);  // still safe to look at
    chain.Complete(4);
    queue.NotifyIfNeeded();
    CHECK(driver.used_idx() == 0);
    CHECK(interrupts == 0);
    // The queue serves a new life meanwhile.
    driver.Restart();
    driver.Configure(queue);
    REQUIRE(queue.Activate(driver.memory(), true, {}).has_value());
    driver.Build().Readable("new").Publish();
    PopOne(queue).Complete(0);
    CHECK(driver.used_idx() == 1);
  }
  SUBCASE("destruction, and dropping then is no bug") {
    std::optional<Queue> queue(MakeActive(driver, &interrupts));
    driver.Build().Writable(4).Publish();
    {
      const Chain chain = PopOne(*queue);
      queue.reset();
    }
    CHECK(driver.used_idx() == 0);
  }
  SUBCASE("moving the queue changes nothing") {
    Queue queue = MakeActive(driver, &interrupts);
    driver.Build().Writable(4).Publish();
    Chain chain = PopOne(queue);
    Queue moved = std::move(queue);
    chain.Complete(4);
    moved.NotifyIfNeeded();
    CHECK(driver.used_idx() == 1);
    CHECK(interrupts == 1);
    CHECK(moved.state().next_used == 1);
  }
}

TEST_CASE("virtq: what the device wrote is dirty, and only that") {
  const auto memory = MakeMemory(1 << 20, true);
  DriverQueue driver(memory, {});
  Queue queue = MakeActive(driver);
  driver.Build()
      .ReadableAt(0x40000, 4096)
      .WritableAt(0x50000, 8192)
      .WritableAt(0x60000, 4096)
      .Publish();
  static_cast<void>(memory->regions()[0]->dirty()->Take());
  Chain chain = PopOne(queue);
  SUBCASE("a prefix by the kernel") {
    std::array<iovec, 4> iovecs{};
    Writer writer = chain.writer();
    REQUIRE(writer.Iovecs(4097, iovecs).has_value());
    CHECK_FALSE(IsDirty(memory, 0x50000));
    chain.Complete(4097);
    CHECK(IsDirty(memory, 0x50000));
    CHECK(IsDirty(memory, 0x51000));
    CHECK_FALSE(IsDirty(memory, 0x60000));
  }
  SUBCASE("a tail by hand") {
    Writer writer = chain.writer();
    Writer tail = writer.SplitOffTail(1).value();
    REQUIRE(tail.Write(std::uint8_t{1}).has_value());
    chain.Complete(0);
    CHECK(IsDirty(memory, 0x60fff));
    CHECK_FALSE(IsDirty(memory, 0x50000));
  }
  SUBCASE("everything, after a failure in the middle") {
    chain.MarkWritableDirty();
    chain.Complete(0);
    CHECK(IsDirty(memory, 0x50000));
    CHECK(IsDirty(memory, 0x51000));
    CHECK(IsDirty(memory, 0x60000));
  }
  CHECK(IsDirty(memory, driver.used_ring()));
  CHECK_FALSE(IsDirty(memory, 0x40000));
}

// --- notifications ---

TEST_CASE(
    "virtq: without EVENT_IDX a batch interrupts once unless the driver asked for none (2.7.7)") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  int interrupts = 0;
  Queue queue = MakeActive(driver, &interrupts);
  queue.NotifyIfNeeded();
  CHECK(interrupts == 0);
  for (int i = 0; i < 3; ++i) {
    driver.Build().Readable("x").Publish();
    PopOne(queue).Complete(0);
  }
  queue.NotifyIfNeeded();
  CHECK(interrupts == 1);
  queue.NotifyIfNeeded();
  CHECK(interrupts == 1);

  driver.SetNoInterrupt(true);
  driver.Build().Readable("x").Publish();
  PopOne(queue).Complete(0);
  queue.NotifyIfNeeded();
  CHECK(interrupts == 1);
  queue.NotifyAlways();
  CHECK(interrupts == 2);
  driver.SetNoInterrupt(false);
  driver.Build().Readable("x").Publish();
  PopOne(queue).Complete(0);
  queue.NotifyIfNeeded();
  CHECK(interrupts == 3);
}

TEST_CASE("virtq: with EVENT_IDX the flag is ignored and used_event decides (2.7.7.2)") {
  DriverQueue driver(MakeMemory(1 << 20), {.event_idx = true});
  int interrupts = 0;
  Queue queue = MakeActive(driver, &interrupts);
  driver.SetNoInterrupt(true);
  driver.SetUsedEvent(2);
  for (int i = 0; i < 6; ++i) {
    driver.Build().Readable("x").Publish();
    PopOne(queue).Complete(0);
    queue.NotifyIfNeeded();
    CAPTURE(i);
    CHECK(interrupts == (i < 2 ? 0 : 1));
  }
}

// What 2.7.7.2 says, step by step: did one of the `count` entries that end at `now` have the index
// the driver named?
bool PassedModel(std::uint16_t event, std::uint16_t now, std::uint32_t count) {
  for (std::uint32_t i = 1; i <= count; ++i) {
    if (static_cast<std::uint16_t>(now - i) == event) return true;
  }
  return false;
}

TEST_CASE(
    "virtq: the EVENT_IDX comparison agrees with the model for every index, also where they wrap") {
  std::uint32_t wrong = 0;
  for (const std::uint16_t now : Values{0, 1, 8, 0x7fff, 0x8000, 0xfffc, 0xffff}) {
    for (const std::uint32_t count : {1U, 2U, 8U, 100U}) {
      for (std::uint32_t event = 0; event < 0x10000; ++event) {
        const auto index = static_cast<std::uint16_t>(event);
        if (EventPassed(index, now, count) != PassedModel(index, now, count)) ++wrong;
      }
    }
  }
  CHECK(wrong == 0);
  CHECK_FALSE(EventPassed(0, 0, 0));
  CHECK(EventPassed(0, 0, 0x10000));
}

TEST_CASE("virtq: interrupts agree with the EVENT_IDX model, batch by batch") {
  DriverQueue driver(MakeMemory(1 << 20), {.size = 8, .event_idx = true});
  const std::uint16_t head = driver.Build().Writable(1).Place();
  std::uint32_t wrong = 0;
  for (const std::uint16_t start : Values{0, 0xfffc}) {
    int interrupts = 0;
    Queue queue = Queue::FromState({.max_size = 8,
                                    .next_avail = start,
                                    .next_used = start,
                                    .event_idx_enabled = true,
                                    .size = 8,
                                    .ready = true,
                                    .desc_table = driver.desc_table(),
                                    .avail_ring = driver.avail_ring(),
                                    .used_ring = driver.used_ring()})
                      .value();
    REQUIRE(queue.Activate(driver.memory(), true, [&] { ++interrupts; }).has_value());
    std::uint16_t now = start;
    for (std::uint32_t round = 0; round < 10000; ++round) {
      const std::uint32_t count = round % 9;
      // From behind the batch to beyond it.
      const auto event = static_cast<std::uint16_t>(now + round % 23 - 6);
      driver.SetAvailIdx(now);
      driver.SetUsedEvent(event);
      for (std::uint32_t i = 0; i < count; ++i) {
        if (!Turn(driver, queue, head, 1)) ++wrong;
      }
      now = static_cast<std::uint16_t>(now + count);
      const int before = interrupts;
      queue.NotifyIfNeeded();
      if ((interrupts > before) != PassedModel(event, now, count)) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("virtq: a batch longer than the index space always interrupts") {
  DriverQueue driver(MakeMemory(1 << 20), {.size = 8, .event_idx = true});
  int interrupts = 0;
  Queue queue = MakeActive(driver, &interrupts);
  const std::uint16_t head = driver.Build().Writable(1).Place();
  std::uint32_t wrong = 0;
  for (int i = 0; i < 65536; ++i) {
    if (!Turn(driver, queue, head, 0)) ++wrong;
  }
  CHECK(wrong == 0);
  driver.SetUsedEvent(5);
  queue.NotifyIfNeeded();
  CHECK(interrupts == 1);
}

TEST_CASE("virtq: buffers completed while held are shown together") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  int interrupts = 0;
  Queue queue = MakeActive(driver, &interrupts);
  for (int i = 0; i < 3; ++i) driver.Build().Writable(16).Publish();
  queue.HoldUsed();
  PopOne(queue).Complete(1);
  PopOne(queue).Complete(2);
  CHECK(driver.used_idx() == 0);
  CHECK_FALSE(driver.TakeUsed());
  queue.ShowUsed();
  CHECK(driver.used_idx() == 2);
  CHECK(driver.TakeUsed()->length == 1);
  CHECK(driver.TakeUsed()->length == 2);
  queue.NotifyIfNeeded();
  CHECK(interrupts == 1);
  PopOne(queue).Complete(3);
  CHECK(driver.used_idx() == 3);
}

TEST_CASE("virtq: kicks are suppressed by flag, and asked for again with a last look (2.7.10)") {
  DriverQueue driver(MakeMemory(1 << 20), {});
  Queue queue = MakeActive(driver);
  queue.DisableKicks();
  CHECK(driver.used_flags() == kUsedNoNotify);
  driver.Build().Readable("x").Publish();
  CHECK_FALSE(driver.NeedsKick());
  CHECK(queue.EnableKicks());
  CHECK(driver.used_flags() == 0);
  PopOne(queue).Complete(0);
  CHECK_FALSE(queue.EnableKicks());
  driver.Build().Readable("x").Publish();
  CHECK(driver.NeedsKick());
}

TEST_CASE("virtq: with EVENT_IDX kicks follow avail_event and the flag stays 0 (2.7.10)") {
  DriverQueue driver(MakeMemory(1 << 20), {.event_idx = true});
  Queue queue = MakeActive(driver);
  driver.Build().Readable("x").Publish();
  CHECK(driver.NeedsKick());
  queue.DisableKicks();
  CHECK(driver.used_flags() == 0);
  driver.Build().Readable("x").Publish();
  CHECK_FALSE(driver.NeedsKick());
  PopOne(queue).Complete(0);
  CHECK(queue.EnableKicks());  // one is left
  CHECK(driver.avail_event() == 1);
  PopOne(queue).Complete(0);
  CHECK_FALSE(queue.EnableKicks());
  CHECK(driver.avail_event() == 2);
  driver.Build().Readable("x").Publish();
  CHECK(driver.NeedsKick());
}

// --- both sides at once ---

TEST_CASE("virtq: driver and device on two threads lose neither requests nor wake-ups") {
  for (const bool event_idx : {false, true}) {
    CAPTURE(event_idx);
    constexpr std::uint32_t kRequests = 5000;
    DriverQueue driver(MakeMemory(1 << 20), {.size = 8, .event_idx = event_idx});
    const EventFd kick = EventFd::Create().value();
    const EventFd irq = EventFd::Create().value();
    Queue queue = driver.MakeQueue([&] { irq.Signal(); }).value();
    std::atomic<std::uint32_t> lost{0};
    const auto wait = [&](const EventFd& event) {
      pollfd ready{event.fd(), POLLIN, 0};
      // A wake-up that does not come is lost; going on all the same ends the test with a verdict.
      if (poll(&ready, 1, 10000) == 0) lost.fetch_add(1);
      event.Consume();
    };
    std::thread device([&] {
      std::uint32_t served = 0;
      while (served < kRequests && lost.load() == 0) {
        wait(kick);
        do {
          while (true) {
            Result<std::optional<Chain>> next = queue.Pop();
            if (!next || !*next) break;
            const std::uint32_t value = (*next)->reader().Read<le32>().value().get();
            Writer writer = (*next)->writer();
            static_cast<void>(writer.Write(le32(value + 1)));
            (*next)->Complete(4);
            ++served;
          }
          queue.NotifyIfNeeded();
        } while (queue.EnableKicks());
      }
    });
    std::uint32_t sent = 0;
    std::uint32_t received = 0;
    std::uint64_t wrong = 0;
    std::array<std::uint32_t, 8> value_of{};
    while (received < kRequests && lost.load() == 0) {
      while (sent < kRequests && sent - received < 4) {
        const std::uint16_t head =
            driver.Build().ReadableObject(le32(sent * 3)).Writable(4).Publish();
        value_of[head] = sent * 3;
        ++sent;
      }
      if (driver.NeedsKick()) kick.Signal();
      if (event_idx) driver.SetUsedEvent(static_cast<std::uint16_t>(received));
      bool any = false;
      while (const auto used = driver.TakeUsed()) {
        const auto bytes = driver.Written(used->head);
        std::uint32_t value = 0;
        std::memcpy(&value, bytes.data(), 4);
        if (value != value_of[used->head] + 1 || used->length != 4) ++wrong;
        ++received;
        any = true;
      }
      if (!any && received < kRequests) wait(irq);
    }
    device.join();
    CHECK(lost.load() == 0);
    CHECK(wrong == 0);
  }
}

TEST_CASE(
    "virtq: descriptors that change while they are read are checked and used as one copy "
    "(regression)") {
  DriverQueue driver(MakeMemory(1 << 20), {.size = 4});
  Queue queue = MakeActive(driver);
  std::atomic<bool> stop{false};
  // Flips a descriptor between a good range and one outside RAM, an index in and out of the table.
  std::thread flipper([&] {
    const Descriptor good{le64(0x2000), le32(64), le16(kDescNext), le16(1)};
    const Descriptor bad{le64(~std::uint64_t{0} - 4), le32(0xffffffff), le16(kDescNext),
                         le16(0xffff)};
    for (std::uint32_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      driver.WriteDescriptor(0, i % 2 == 0 ? good : bad);
      driver.WriteDescriptor(
          1, {le64(0x3000), le32(i % 3 == 0 ? 0x80000000 : 8), le16(kDescWrite), le16(0)});
    }
  });
  std::uint32_t wrong = 0;
  std::uint32_t good = 0;
  std::uint32_t refused = 0;
  driver.WriteDescriptor(
      0, {le64(0), le32(0), le16(kDescIndirect), le16(0)});  // until the flipper runs
  for (int i = 0; i < 300000 && (i < 5000 || good < 100 || refused < 100); ++i) {
    driver.PublishHead(0);
    Result<std::optional<Chain>> next = queue.Pop();
    if (!next) {
      ++refused;
      if (i % 100 == 0) std::this_thread::yield();
      continue;
    }
    if (!*next) {
      ++wrong;
      continue;
    }
    Chain chain = std::move(**next);
    // Any mixture of the two may have been read, but only what lay in RAM as a whole became a
    // chain, and it stays what it was.
    Reader reader = chain.reader();
    const std::uint64_t size = reader.remaining();
    std::vector<std::byte> bytes(std::min<std::uint64_t>(size, 1 << 20));
    if (size > 1 << 20 || !reader.Copy(bytes) || chain.writable_size() > 1 << 20) ++wrong;
    ++good;
    chain.Complete(0);
  }
  stop.store(true);
  flipper.join();
  CHECK(wrong == 0);
  CHECK(good > 0);
  CHECK(refused > 0);
}

TEST_CASE("virtq: a hostile driver gets errors, and nothing else happens") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    const auto memory = MakeMemory({{0, 0x80000}, {0x80000, 0x40000}, {0x100000, 0x40000}});
    DriverQueue driver(memory, {.size = 16, .event_idx = seed % 2 == 0, .arena_size = 0x40000});
    Queue queue = MakeActive(driver);
    HostileDriver hostile(driver, seed);
    std::vector<Chain> held;
    std::uint64_t errors = 0;
    std::uint64_t good = 0;
    for (int step = 0; step < 2000; ++step) {
      hostile.Step();
      for (int i = 0; i < 40; ++i) {
        Result<std::optional<Chain>> next = queue.Pop();
        if (!next) {
          ++errors;
          // An index that jumped stays: start over, as after a reset.
          driver.SetAvailIdx(queue.state().next_avail);
          break;
        }
        if (!*next) break;
        ++good;
        Chain chain = std::move(**next);
        REQUIRE(chain.head() < 16);
        REQUIRE(chain.readable_size() + chain.writable_size() <= 0xffffffff);
        Reader reader = chain.reader();
        std::vector<std::byte> some(std::min<std::uint64_t>(reader.remaining(), 4096));
        REQUIRE(reader.Copy(some).has_value());
        Writer writer = chain.writer();
        REQUIRE(writer.Fill(std::byte{0xa5}, std::min<std::uint64_t>(writer.remaining(), 256))
                    .has_value());
        if (hostile.Below(3) == 0 && held.size() < 16) {
          held.push_back(std::move(chain));
        } else {
          chain.Complete(static_cast<std::uint32_t>(hostile.Random()));
        }
      }
      REQUIRE(queue.in_flight() == held.size());
      if (hostile.Below(4) == 0) {
        for (Chain& chain : held) chain.Complete(1);
        held.clear();
      }
      queue.NotifyIfNeeded();
      static_cast<void>(queue.EnableKicks());
    }
    for (Chain& chain : held) chain.Discard();
    CHECK(errors > 0);
    CHECK(good > 0);
  }
}

}  // namespace
}  // namespace postern::virtio
