#include "src/memory/dirty_bitmap.h"

#include <algorithm>

namespace postern::memory {
namespace {

constexpr std::uint64_t kPagesPerWord = 64;

std::uint64_t DivideUp(std::uint64_t n, std::uint64_t by) {
  return n / by + (n % by != 0 ? 1 : 0);
}

}  // namespace

DirtyBitmap::DirtyBitmap(std::uint64_t bytes)
    : pages_(DivideUp(bytes, kPageSize)),
      words_(std::make_unique<std::atomic<std::uint64_t>[]>(DivideUp(pages_, kPagesPerWord))) {}

void DirtyBitmap::Mark(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t first = offset / kPageSize;
  if (length == 0 || first >= pages_) return;
  std::uint64_t last_byte = 0;
  if (__builtin_add_overflow(offset, length - 1, &last_byte)) last_byte = ~std::uint64_t{0};
  const std::uint64_t last = std::min(last_byte / kPageSize, pages_ - 1);
  for (std::uint64_t word = first / kPagesPerWord; word <= last / kPagesPerWord; ++word) {
    std::uint64_t bits = ~std::uint64_t{0};
    if (word == first / kPagesPerWord) bits &= ~std::uint64_t{0} << (first % kPagesPerWord);
    if (word == last / kPagesPerWord) bits &= ~std::uint64_t{0} >> (63 - last % kPagesPerWord);
    // The plain load first: rings and buffers hit the same pages over and over, and a locked
    // operation costs as much as all the rest. Release pairs with the acquire in Take: whoever sees
    // the bit sees the bytes.
    if ((words_[word].load(std::memory_order_relaxed) & bits) != bits) {
      words_[word].fetch_or(bits, std::memory_order_release);
    }
  }
}

bool DirtyBitmap::IsDirty(std::uint64_t offset) const {
  const std::uint64_t page = offset / kPageSize;
  if (page >= pages_) return false;
  return (words_[page / kPagesPerWord].load(std::memory_order_acquire) >> (page % kPagesPerWord) &
          1) != 0;
}

std::vector<std::uint64_t> DirtyBitmap::Take() {
  std::vector<std::uint64_t> bits(DivideUp(pages_, kPagesPerWord));
  for (std::size_t word = 0; word < bits.size(); ++word) {
    bits[word] = words_[word].exchange(0, std::memory_order_acq_rel);
  }
  return bits;
}

}  // namespace postern::memory
