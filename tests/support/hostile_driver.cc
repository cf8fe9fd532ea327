#include "tests/support/hostile_driver.h"

#include <algorithm>
#include <array>

#include "src/base/check.h"
#include "tests/support/memory.h"

namespace postern::testing {

using virtio::Descriptor;

HostileDriver::HostileDriver(DriverQueue& driver, std::span<const std::uint8_t> input)
    : driver_(driver), state_(0x9e3779b97f4a7c15), input_(input) {
  for (const std::uint8_t byte : input) state_ = (state_ ^ byte) * 0x100000001b3;
}

std::uint64_t HostileDriver::Random() {
  if (!input_.empty()) {
    std::uint64_t value = 0;
    for (int i = 0; i < 2 && !input_.empty(); ++i) {
      value = value << 8 | input_.front();
      input_ = input_.subspan(1);
    }
    // Low bits decide most choices; high ones make addresses.
    return value | value * 0x9e3779b97f4a7c15 << 16;
  }
  // splitmix64
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::uint64_t HostileDriver::SomeAddress() {
  const auto regions = driver_.memory()->regions();
  const auto& region = regions[Below(regions.size())];
  const std::uint64_t end = region->base().value + region->size();
  switch (Below(8)) {
    case 0:
      return Random();
    case 1:
      return end - Below(64);
    case 2:
      return end + Below(4096);
    case 3:
      return ~std::uint64_t{0} - Below(64);
    case 4:
      return driver_.desc_table() +
             Below(std::uint64_t{27} * driver_.size());  // the rings themselves
    default:
      return region->base().value + Below(region->size());
  }
}

std::uint32_t HostileDriver::SomeLength() {
  switch (Below(8)) {
    case 0:
      return 0;
    case 1:
      return static_cast<std::uint32_t>(Random());
    case 2:
      return ~std::uint32_t{0} - static_cast<std::uint32_t>(Below(4));
    case 3:
      return static_cast<std::uint32_t>(16 * Below(2U * driver_.size() + 1));
    default:
      return static_cast<std::uint32_t>(Below(2048));
  }
}

Descriptor HostileDriver::SomeDescriptor() {
  const std::uint64_t kind = Below(16);
  const auto flags =
      kind == 0 ? static_cast<std::uint16_t>(Random()) : static_cast<std::uint16_t>(kind & 7);
  const auto next = Below(8) == 0 ? static_cast<std::uint16_t>(Random())
                                  : static_cast<std::uint16_t>(Below(driver_.size() + 1U));
  return {le64(SomeAddress()), le32(SomeLength()), le16(flags), le16(next)};
}

void HostileDriver::PublishPlausible() {
  // Descriptors are written over whatever is there: this driver keeps no account of what is free.
  const auto base = static_cast<std::uint16_t>(Below(driver_.size()));
  const std::uint64_t count = 1 + Below(std::min<std::uint64_t>(4, driver_.size()));
  for (std::uint64_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    const auto length = static_cast<std::uint32_t>(i == 0 ? 16 + Below(64) : 1 + Below(4096));
    const std::uint64_t gpa = driver_.Allocate(length);
    if (!prefixes_.empty() && i == 0) {
      const auto& prefix = prefixes_[Below(prefixes_.size())];
      const std::size_t bytes = std::min<std::size_t>(prefix.size(), length);
      Store(driver_.memory(), gpa, std::span(prefix).first(bytes));
    }
    const bool writable = last || (i > 0 && Below(2) == 0);
    const auto index = static_cast<std::uint16_t>((base + i) % driver_.size());
    driver_.WriteDescriptor(index,
                            {le64(gpa), le32(length),
                             le16(static_cast<std::uint16_t>((last ? 0 : virtio::kDescNext) |
                                                             (writable ? virtio::kDescWrite : 0))),
                             le16(static_cast<std::uint16_t>((index + 1) % driver_.size()))});
  }
  driver_.PublishHead(base);
}

void HostileDriver::WriteSomewhere() {
  std::array<std::byte, 8> bytes{};
  const std::uint64_t value = Random();
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(value >> (8 * i));
  // Misses RAM at times, which a guest's store does too.
  [[maybe_unused]] const Result<void> stored =
      driver_.memory()->CopyIn(memory::Gpa(SomeAddress()), bytes);
}

void HostileDriver::Step() {
  const auto index = static_cast<std::uint16_t>(Below(driver_.size()));
  switch (Below(12)) {
    case 0:
      driver_.WriteDescriptor(index, SomeDescriptor());
      break;
    case 1:
      driver_.WriteDescriptor(index, SomeDescriptor());
      driver_.PublishHead(index);
      break;
    case 2:
      driver_.PublishHead(static_cast<std::uint16_t>(Random()));
      break;
    case 3:
      driver_.SetAvailIdx(
          static_cast<std::uint16_t>(driver_.avail_idx() + Below(driver_.size() + 2U)));
      break;
    case 4:
      if (Below(4) == 0) driver_.SetAvailIdx(static_cast<std::uint16_t>(Random()));
      break;
    case 5:
      WriteSomewhere();
      break;
    case 6:
      driver_.SetUsedEvent(static_cast<std::uint16_t>(Random()));
      break;
    case 7: {
      // An indirect table of anything.
      const std::uint64_t entries = 1 + Below(driver_.size() + 2U);
      const std::uint64_t table =
          driver_.Allocate(static_cast<std::uint32_t>(entries * sizeof(Descriptor)));
      for (std::uint64_t i = 0; i < entries; ++i) {
        CHECK(driver_.memory()
                  ->Write(memory::Gpa(table + i * sizeof(Descriptor)), SomeDescriptor())
                  .has_value());
      }
      driver_.WriteDescriptor(index, {le64(table), le32(static_cast<std::uint32_t>(entries * 16)),
                                      le16(virtio::kDescIndirect), le16(0)});
      driver_.PublishHead(index);
      break;
    }
    case 8:
      driver_.SetNoInterrupt(Below(2) == 0);
      break;
    default:
      PublishPlausible();
  }
}

}  // namespace postern::testing
