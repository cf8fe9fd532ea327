#include "devices/siov/core/interrupt_handles.h"

#include <atomic>
#include <thread>

#include <doctest/doctest.h>

namespace postern::siov {
namespace {

TEST_CASE("handles: one stands for its vector until it is closed") {
  InterruptHandles handles(4);
  CHECK(handles.capacity() == 8);
  CHECK(handles.Open(0, 0));
  CHECK(handles.Open(0xffffffff, 3));
  CHECK(handles.Open(8, 1));  // has the home of 0
  CHECK(handles.VectorOf(0) == 0);
  CHECK(handles.VectorOf(0xffffffff) == 3);
  CHECK(handles.VectorOf(8) == 1);
  CHECK(!handles.IsHandle(16));
  CHECK(!handles.IsHandle(1));
  CHECK(handles.List() == std::vector<std::uint32_t>{0, 8, 0xffffffff});
  // The one at its home goes; the other is still found.
  CHECK(handles.Close(0));
  CHECK(!handles.Close(0));
  CHECK(!handles.IsHandle(0));
  CHECK(handles.VectorOf(8) == 1);
  CHECK(handles.Open(8, 1).error().code == Errc::kOverlap);
  CHECK(handles.RevokeAll() == 2);
  CHECK(handles.RevokeAll() == 0);
  CHECK(!handles.IsHandle(8));
  CHECK(handles.List().empty());
}

TEST_CASE("handles: vectors that are none, and more than there is room for") {
  InterruptHandles handles(2);
  CHECK(handles.Open(1, 2).error().code == Errc::kInvalidArgument);
  CHECK(handles.Open(1, 0xffff).error().code == Errc::kInvalidArgument);
  for (std::uint32_t h = 0; h < 4; ++h) CHECK(handles.Open(4 * h, 1));  // all of one home
  CHECK(handles.Open(99, 1).error().code == Errc::kExhausted);
  CHECK(!handles.IsHandle(99));
  for (std::uint32_t h = 0; h < 4; ++h) CHECK(handles.VectorOf(4 * h) == 1);
}

TEST_CASE("handles: a reader sees each as it was opened, whatever else comes and goes") {
  InterruptHandles handles(8);
  REQUIRE(handles.Open(5, 5));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> looks{0};
  std::thread reader([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      if (handles.VectorOf(5) != 5) ++wrong;
      for (std::uint32_t h = 16; h < 24; ++h) {
        const auto vector = handles.VectorOf(h);
        if (vector && *vector != h - 16) ++wrong;
      }
      ++looks;
    }
  });
  for (std::uint32_t i = 0; i < 2000 || looks.load() < 10; ++i) {
    const std::uint32_t h = 16 + i % 8;
    if (!handles.Close(h)) CHECK(handles.Open(h, static_cast<std::uint16_t>(h - 16)));
  }
  stop = true;
  reader.join();
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace postern::siov
