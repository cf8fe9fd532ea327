#pragma once

// The memory layout of a split virtqueue (VIRTIO 1.2, 2.7.5 to 2.7.8), shared by the device side
// (queue.h) and the driver side of the tests. Layout, and the one comparison both sides make.

#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace postern::virtio {

// 2.7.5
struct Descriptor {
  le64 addr;
  le32 len;
  le16 flags;
  le16 next;
};
static_assert(sizeof(Descriptor) == 16);

constexpr std::uint16_t kDescNext = 1;
constexpr std::uint16_t kDescWrite = 2;
constexpr std::uint16_t kDescIndirect = 4;

// 2.7.6: flags, idx, ring[size], used_event
constexpr std::uint16_t kAvailNoInterrupt = 1;
constexpr std::uint16_t kUsedNoNotify = 1;
constexpr std::size_t kRingFlags = 0;
constexpr std::size_t kRingIdx = 2;
constexpr std::size_t kRingEntries = 4;

// 2.7.8: flags, idx, ring[size] of these, avail_event
struct UsedElem {
  le32 id;
  le32 len;
};
static_assert(sizeof(UsedElem) == 8);

constexpr std::uint16_t kMaxQueueSize = 32768;

// 2.7: sizes and alignments of the three parts. `event` counts the trailing event field, which only
// EVENT_IDX uses.
constexpr std::size_t DescTableBytes(std::uint16_t size) {
  return sizeof(Descriptor) * size;
}
constexpr std::size_t UsedEventOffset(std::uint16_t size) {
  return kRingEntries + sizeof(le16) * size;
}
constexpr std::size_t AvailRingBytes(std::uint16_t size, bool event) {
  return UsedEventOffset(size) + (event ? sizeof(le16) : 0);
}
constexpr std::size_t AvailEventOffset(std::uint16_t size) {
  return kRingEntries + sizeof(UsedElem) * size;
}
constexpr std::size_t UsedRingBytes(std::uint16_t size, bool event) {
  return AvailEventOffset(size) + (event ? sizeof(le16) : 0);
}
constexpr std::uint64_t kDescAlign = 16;
constexpr std::uint64_t kAvailAlign = 2;
constexpr std::uint64_t kUsedAlign = 4;

// 2.7.7.2 and 2.7.10.2: whether `event` is among the `count` indices that end before `now`; all
// modulo 2^16.
[[nodiscard]] constexpr bool EventPassed(std::uint16_t event, std::uint16_t now,
                                         std::uint32_t count) {
  return static_cast<std::uint16_t>(now - event - 1) < count;
}

}  // namespace postern::virtio
