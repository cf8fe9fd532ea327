#include "devices/siov/core/polled_page.h"

#include <cpuid.h>
#include <sched.h>
#include <time.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "bazel/testing/skip.h"
#include "devices/siov/core/fake_backend.h"

#include <doctest/doctest.h>

namespace postern::siov {
namespace {

bool HaveDirectStores() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c >> 28 & 1) != 0;
}

// MOVDIR64B: 64 bytes without tearing.
void StoreWhole(std::byte* at, const Descriptor& descriptor) {
  alignas(64) Descriptor from = descriptor;
  asm volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x02" : : "a"(at), "d"(from.data()) : "memory");
}

// Words, the first last.
void StoreWords(std::byte* at, const Descriptor& descriptor) {
  auto* to = static_cast<std::uint64_t*>(static_cast<void*>(at));
  for (std::size_t i = 8; i-- > 0;) {
    std::uint64_t word = 0;
    std::memcpy(&word, descriptor.data() + 8 * i, sizeof(word));
    __atomic_store_n(to + i, word, __ATOMIC_RELEASE);
  }
}

using Writer = void (*)(std::byte*, const Descriptor&);

std::byte* Slot(const PolledPage& page, std::uint32_t slot, std::uint32_t of = 0) {
  return page.host(of).address + std::size_t{slot} * kDescriptorSize;
}

bool Whole(const Descriptor& descriptor) {
  return std::memcmp(descriptor.data(), FakeDescriptor(TagOf(descriptor)).data(),
                     descriptor.size()) == 0;
}

struct Taken {
  std::vector<std::uint64_t> tags;
  void operator()(const Descriptor& d) {
    CHECK(Whole(d));
    tags.push_back(TagOf(d));
  }
};

std::uint64_t Now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec);
}

// A driver by the rule on its own thread; what is taken is complete at once.
void ProduceAndTake(std::uint64_t count, Writer store) {
  PolledPage page = PolledPage::Create(1).value();
  std::atomic<std::uint64_t> complete{0};
  std::thread driver([&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      while (i - complete.load(std::memory_order_acquire) >= 63) sched_yield();
      store(Slot(page, i % PolledPage::kSlots), FakeDescriptor(i));
    }
  });
  std::uint64_t next = 0;
  std::uint64_t wrong = 0;
  const auto take = [&](const Descriptor& d) {
    if (!Whole(d) || TagOf(d) != next) ++wrong;
    ++next;
    complete.store(next, std::memory_order_release);
  };
  while (next < count) {
    if (page.Poll(take) == 0) sched_yield();
  }
  driver.join();
  CHECK(wrong == 0);
  CHECK(page.Scan(take) == 0);
  CHECK(page.trusted());
  CHECK(page.broken_rules() == 0);
  CHECK(page.overwritten() == 0);
}

std::uint64_t Soak(std::uint64_t usual) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nothing sets the environment
  const char* asked = std::getenv("POSTERN_PORTAL_SOAK");
  return asked == nullptr ? usual : std::strtoull(asked, nullptr, 10);
}

// POSTERN_PORTAL_SOAK=10000000 for the long run.
TEST_CASE(
    "polled page: a million descriptors in words, none lost, by a driver that keeps the rule") {
  ProduceAndTake(Soak(1'000'000), StoreWords);
}

TEST_CASE("polled page: a million descriptors by MOVDIR64B, none lost") {
  if (!HaveDirectStores()) SKIP_TEST("the processor has no MOVDIR64B");
  ProduceAndTake(Soak(1'000'000), StoreWhole);
}

TEST_CASE("polled page: what it can be made of") {
  CHECK(PolledPage::Create(0).error().code == Errc::kInvalidArgument);
  CHECK(PolledPage::Create(65).error().code == Errc::kInvalidArgument);
  CHECK(PolledPage::Create(64).value().pages() == 64);
  const PolledPage page = PolledPage::Create(2).value();
  CHECK(page.host(0).length == 4096);
  CHECK(page.host(0).offset == 0);
  CHECK(page.host(1).offset == 4096);
  CHECK(page.host(1).address == page.host(0).address + 4096);
  CHECK(page.host(1).fd == page.host(0).fd);
  CHECK(page.host(0).fd >= 0);
}

TEST_CASE("polled page: slots are taken in order, around the end, one by one and by 63") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  std::uint64_t tag = 0;
  for (int i = 0; i < 200; ++i) {
    StoreWords(Slot(page, tag % 64), FakeDescriptor(tag));
    ++tag;
    CHECK(page.Poll(taken) == 1);
  }
  for (int i = 0; i < 5; ++i) {
    for (int k = 0; k < 63; ++k) {
      StoreWords(Slot(page, tag % 64), FakeDescriptor(tag));
      ++tag;
    }
    CHECK(page.Poll(taken) == 63);
  }
  REQUIRE(taken.tags.size() == tag);
  for (std::uint64_t i = 0; i < tag; ++i) {
    if (taken.tags[i] != i) FAIL("descriptor ", i, " is ", taken.tags[i]);
  }
  CHECK(page.trusted());
}

TEST_CASE("polled page: the first slot may be any, and the start of a run around the end") {
  for (const std::uint32_t first : {0U, 1U, 17U, 62U, 63U}) {
    CAPTURE(first);
    PolledPage page = PolledPage::Create(1).value();
    Taken taken;
    for (std::uint32_t i = 0; i < 5; ++i)
      StoreWords(Slot(page, (first + i) % 64), FakeDescriptor(i));
    CHECK(page.Scan(taken) == 5);
    CHECK(taken.tags == std::vector<std::uint64_t>{0, 1, 2, 3, 4});
    StoreWords(Slot(page, (first + 5) % 64), FakeDescriptor(5));
    CHECK(page.Poll(taken) == 1);
    CHECK(page.trusted());
  }
}

TEST_CASE("polled page: without Scan, a first slot other than 0 is seen within kScanEvery polls") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 9), FakeDescriptor(1));
  std::uint32_t polls = 1;
  while (page.Poll(taken) == 0 && polls < 2 * PolledPage::kScanEvery) ++polls;
  CHECK(polls <= PolledPage::kScanEvery);
  CHECK(taken.tags == std::vector<std::uint64_t>{1});
  CHECK(page.trusted());
}

TEST_CASE("polled page: a driver that always uses slot 0 is taken, seen and counted") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 0), FakeDescriptor(0));
  CHECK(page.Poll(taken) == 1);
  CHECK(page.trusted());
  StoreWords(Slot(page, 0), FakeDescriptor(1));
  std::uint32_t polls = 1;
  while (page.Poll(taken) == 0 && polls < 2 * PolledPage::kScanEvery) ++polls;
  CHECK(polls <= PolledPage::kScanEvery);
  CHECK_FALSE(page.trusted());
  CHECK(page.broken_rules() == 1);
  // From then on every poll looks everywhere.
  for (std::uint64_t i = 2; i < 10; ++i) {
    StoreWords(Slot(page, 0), FakeDescriptor(i));
    CHECK(page.Poll(taken) == 1);
    CHECK(page.broken_rules() == i);
  }
  CHECK(taken.tags == std::vector<std::uint64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("polled page: two CPUs that pick one slot: the one lost shows as a gap") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 0), FakeDescriptor(0));
  StoreWords(Slot(page, 1), FakeDescriptor(1));  // both CPUs read the place 1 ...
  StoreWords(Slot(page, 1), FakeDescriptor(2));
  StoreWords(Slot(page, 3), FakeDescriptor(3));  // ... and both went on from it
  CHECK(page.Scan(taken) == 3);
  CHECK(taken.tags == std::vector<std::uint64_t>{0, 2, 3});
  CHECK(page.broken_rules() == 1);
  CHECK_FALSE(page.trusted());
}

TEST_CASE("polled page: two CPUs in one slot, the second after the first was taken") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 0), FakeDescriptor(0));
  CHECK(page.Poll(taken) == 1);
  StoreWords(Slot(page, 0), FakeDescriptor(1));
  CHECK(page.Scan(taken) == 1);
  CHECK(page.broken_rules() == 1);
}

TEST_CASE("polled page: two threads that share a place without a lock are seen") {
  PolledPage page = PolledPage::Create(1).value();
  const Writer store = HaveDirectStores() ? StoreWhole : StoreWords;
  std::atomic<std::uint32_t> place{0};
  std::atomic<bool> stop{false};
  const auto drive = [&](std::uint64_t tag) {
    while (!stop.load(std::memory_order_relaxed)) {
      const std::uint32_t mine = place.load(std::memory_order_relaxed);
      store(Slot(page, mine % 64), FakeDescriptor(++tag));
      place.store(mine + 1, std::memory_order_relaxed);
      sched_yield();
    }
  };
  std::thread one(drive, 0);
  std::thread two(drive, std::uint64_t{1} << 32);
  std::uint64_t torn = 0;
  const std::uint64_t deadline = Now() + 120;
  while (page.trusted() && Now() < deadline) {
    page.Poll([&](const Descriptor& d) { torn += Whole(d) ? 0 : 1; });
    sched_yield();
  }
  stop = true;
  one.join();
  two.join();
  CHECK_FALSE(page.trusted());
  CHECK(page.broken_rules() + page.overwritten() > 0);
  if (store == StoreWhole) CHECK(torn == 0);
}

TEST_CASE("polled page: what is stored over while it is taken is never taken in pieces") {
  if (!HaveDirectStores()) SKIP_TEST("the processor has no MOVDIR64B");
  PolledPage page = PolledPage::Create(1).value();
  std::atomic<bool> stop{false};
  std::thread driver([&] {
    for (std::uint64_t tag = 0; !stop.load(std::memory_order_relaxed); ++tag) {
      // The first 16 bytes are those of the one before: they do not tell the two apart.
      Descriptor descriptor = FakeDescriptor(tag);
      const std::uint64_t same = 7;
      std::memcpy(descriptor.data() + 8, &same, sizeof(same));
      StoreWhole(Slot(page, 0), descriptor);
    }
  });
  std::uint64_t torn = 0;
  std::uint64_t taken = 0;
  const auto take = [&](const Descriptor& d) {
    ++taken;
    std::array<std::uint64_t, 8> words{};
    std::memcpy(words.data(), d.data(), d.size());
    for (std::size_t i = 3; i < 8; ++i) torn += words[i] == words[2] ? 0 : 1;
  };
  const std::uint64_t deadline = Now() + 20;
  while ((taken < 500 || page.overwritten() == 0) && Now() < deadline) page.Scan(take);
  stop = true;
  driver.join();
  CHECK(torn == 0);
  CHECK(taken > 0);
  CHECK(page.broken_rules() + page.overwritten() > 0);
  MESSAGE(taken, " taken, ", page.overwritten(), " stored over meanwhile");
}

TEST_CASE("polled page: a gap is taken within kScanEvery polls, and counted once") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 0), FakeDescriptor(0));
  StoreWords(Slot(page, 2), FakeDescriptor(2));
  StoreWords(Slot(page, 3), FakeDescriptor(3));
  CHECK(page.Poll(taken) == 1);
  std::uint32_t polls = 1;
  while (page.Poll(taken) == 0 && polls < 2 * PolledPage::kScanEvery) ++polls;
  CHECK(polls <= PolledPage::kScanEvery);
  CHECK(page.broken_rules() == 1);
  CHECK(taken.tags == std::vector<std::uint64_t>{0, 2, 3});
  // What comes late in the gap is out of order, too, and not lost.
  StoreWords(Slot(page, 1), FakeDescriptor(1));
  CHECK(page.Poll(taken) == 1);
  CHECK(page.broken_rules() == 2);
}

TEST_CASE("polled page: a no-op of zeros is no store, and the next one then looks like a gap") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 0), FakeDescriptor(1));
  CHECK(page.Poll(taken) == 1);
  StoreWords(Slot(page, 1), Descriptor{});
  CHECK(page.Scan(taken) == 0);
  CHECK(page.trusted());
  StoreWords(Slot(page, 2), FakeDescriptor(2));
  CHECK(page.Scan(taken) == 1);
  CHECK(page.broken_rules() == 1);
}

TEST_CASE("polled page: all 64 slots full are one too many, and none is lost") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  for (std::uint32_t i = 0; i < 64; ++i) StoreWords(Slot(page, i), FakeDescriptor(i));
  CHECK(page.Scan(taken) == 64);
  CHECK(taken.tags.front() == 0);
  CHECK(taken.tags.back() == 63);
}

TEST_CASE("polled page: each page has an order of its own") {
  PolledPage page = PolledPage::Create(2).value();
  Taken taken;
  StoreWords(Slot(page, 0, 1), FakeDescriptor(10));
  StoreWords(Slot(page, 0, 0), FakeDescriptor(0));
  StoreWords(Slot(page, 1, 1), FakeDescriptor(11));
  CHECK(page.Scan(taken) == 3);
  CHECK(taken.tags == std::vector<std::uint64_t>{0, 10, 11});
  StoreWords(Slot(page, 1, 0), FakeDescriptor(1));
  StoreWords(Slot(page, 2, 1), FakeDescriptor(12));
  CHECK(page.Poll(taken) == 2);
  CHECK(page.trusted());
}

TEST_CASE("polled page: Forget drops what is there and trusts anew") {
  PolledPage page = PolledPage::Create(1).value();
  Taken taken;
  StoreWords(Slot(page, 0), FakeDescriptor(0));
  CHECK(page.Poll(taken) == 1);
  StoreWords(Slot(page, 5), FakeDescriptor(5));
  CHECK(page.Scan(taken) == 1);
  CHECK_FALSE(page.trusted());
  StoreWords(Slot(page, 6), FakeDescriptor(6));
  page.Forget();
  CHECK(page.trusted());
  CHECK(page.broken_rules() == 1);  // counts since Create
  CHECK(page.Scan(taken) == 0);
  StoreWords(Slot(page, 40), FakeDescriptor(40));
  CHECK(page.Scan(taken) == 1);
  CHECK(page.trusted());
  CHECK(taken.tags == std::vector<std::uint64_t>{0, 5, 40});
}

TEST_CASE("polled page: it can be moved while a guest has it mapped") {
  PolledPage first = PolledPage::Create(1).value();
  std::byte* slot = Slot(first, 0);
  PolledPage page = std::move(first);
  StoreWords(slot, FakeDescriptor(3));
  Taken taken;
  CHECK(page.Scan(taken) == 1);
}

}  // namespace
}  // namespace postern::siov
