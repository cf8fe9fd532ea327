#pragma once

// The KVM structures that end in an array of unspecified length, as headers of ours, with the ioctl
// numbers that go with them. Internal to this package.
//
// In C++ the kernel's own declarations of some of them are larger than in C (the macro for such
// arrays declares an empty structure beside the array, which has size 1 in C++), and the size is
// part of an ioctl's number: the kernel then refuses the call as unknown. The layouts are those of
// <linux/kvm.h> as C sees it. Source: Linux include/uapi/linux/kvm.h, include/uapi/linux/stddef.h.

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace postern::kvm {

struct CpuidHeader {
  std::uint32_t nent = 0;
  std::uint32_t padding = 0;
};
struct MsrsHeader {
  std::uint32_t nmsrs = 0;
  std::uint32_t pad = 0;
};
struct RoutingHeader {
  std::uint32_t nr = 0;
  std::uint32_t flags = 0;
};
// Of one statistic; its name follows.
struct StatsDescriptor {
  std::uint32_t flags = 0;
  std::int16_t exponent = 0;
  std::uint16_t size = 0;
  std::uint32_t offset = 0;
  std::uint32_t bucket_size = 0;
};
static_assert(sizeof(CpuidHeader) == 8 && sizeof(MsrsHeader) == 8 && sizeof(RoutingHeader) == 8);
static_assert(sizeof(StatsDescriptor) == 16);
static_assert(sizeof(kvm_cpuid_entry2) == 40 && sizeof(kvm_msr_entry) == 16 &&
              sizeof(kvm_irq_routing_entry) == 48);

constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, CpuidHeader);
constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, CpuidHeader);
constexpr unsigned long kSetMsrs = _IOW(KVMIO, 0x89, MsrsHeader);
constexpr unsigned long kSetGsiRouting = _IOW(KVMIO, 0x6a, RoutingHeader);

// A header and its entries in one block, as the kernel wants them.
template <typename Header, typename Entry>
class FamBuffer {
 public:
  FamBuffer(const Header& header, std::span<const Entry> entries)
      : FamBuffer(header, entries.size()) {
    if (!entries.empty())
      std::memcpy(bytes() + sizeof(Header), entries.data(), entries.size_bytes());
  }
  // With room for `room` entries, all zero.
  FamBuffer(const Header& header, std::size_t room)
      : words_((sizeof(Header) + room * sizeof(Entry) + 7) / 8), room_(room) {
    std::memcpy(bytes(), &header, sizeof(Header));
  }

  [[nodiscard]] void* data() { return words_.data(); }
  [[nodiscard]] Header header() const {
    Header header;
    std::memcpy(static_cast<void*>(&header), words_.data(), sizeof(Header));
    return header;
  }
  // The first `count` entries, as many as there is room for at most: the count may be the kernel's
  // word.
  [[nodiscard]] std::vector<Entry> Entries(std::size_t count) const {
    std::vector<Entry> entries(count < room_ ? count : room_);
    if (!entries.empty()) {
      std::memcpy(entries.data(), std::as_bytes(std::span(words_)).data() + sizeof(Header),
                  entries.size() * sizeof(Entry));
    }
    return entries;
  }

 private:
  [[nodiscard]] std::byte* bytes() { return std::as_writable_bytes(std::span(words_)).data(); }
  std::vector<std::uint64_t> words_;
  std::size_t room_ = 0;
};

}  // namespace postern::kvm
