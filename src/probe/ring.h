// The split virtqueue's layout and arithmetic (VIRTIO 1.2 section 2.7). Pure; tested on the host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace postern::probe {

struct Descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags;
  uint16_t next;
};
static_assert(sizeof(Descriptor) == 16);

inline constexpr uint16_t kDescriptorNext = 1;
inline constexpr uint16_t kDescriptorWrite = 2;
inline constexpr uint16_t kDescriptorIndirect = 4;

struct UsedElement {
  uint32_t id;
  uint32_t length;
};

inline constexpr uint16_t kAvailNoInterrupt = 1;
inline constexpr uint16_t kUsedNoNotify = 1;

// Byte offsets within the driver area ("avail") and the device area ("used") of a queue of `size`
// entries.
struct RingLayout {
  static constexpr size_t kFlags = 0;
  static constexpr size_t kIndex = 2;
  static constexpr size_t kEntries = 4;
  static constexpr size_t DescriptorBytes(size_t size) { return size * sizeof(Descriptor); }
  static constexpr size_t UsedEvent(size_t size) { return kEntries + 2 * size; }
  static constexpr size_t AvailBytes(size_t size) { return UsedEvent(size) + 2; }
  static constexpr size_t AvailEvent(size_t size) { return kEntries + sizeof(UsedElement) * size; }
  static constexpr size_t UsedBytes(size_t size) { return AvailEvent(size) + 2; }
};

// VIRTIO 1.2 2.7.10: the index moved from `before` to `after`; did it pass `event`? All modulo
// 2^16.
constexpr bool PassesEvent(uint16_t event, uint16_t after, uint16_t before) {
  return static_cast<uint16_t>(after - event - 1) < static_cast<uint16_t>(after - before);
}

// The largest power of two that is at most `wanted` and `maximum`; 0 if either is 0.
constexpr uint16_t QueueSize(uint32_t wanted, uint32_t maximum) {
  uint32_t limit = wanted < maximum ? wanted : maximum;
  if (limit > 32768) limit = 32768;
  uint32_t size = limit == 0 ? 0 : 1;
  while (size != 0 && size * 2 <= limit) size *= 2;
  return static_cast<uint16_t>(size);
}

}  // namespace postern::probe
