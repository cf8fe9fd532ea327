#pragma once

// DirtyBitmap: which 4 KiB pages of one memory region Postern's own devices wrote. KVM logs what
// vCPUs write; the two are merged by whoever migrates or snapshots. Threads: all calls from any
// thread; Take is atomic per 64-page word: a page marked during Take is in this answer or in the
// next.

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace postern::memory {

class DirtyBitmap {
 public:
  static constexpr std::uint64_t kPageSize = 4096;

  // `bytes`: size of the region. A last page that is not whole counts as a page.
  explicit DirtyBitmap(std::uint64_t bytes);

  // Marks every page touched by [offset, offset + length). Ranges beyond the region are cut off.
  void Mark(std::uint64_t offset, std::uint64_t length);
  [[nodiscard]] bool IsDirty(std::uint64_t offset) const;
  // Returns the bits (bit n of word w = page 64w + n) and clears them.
  [[nodiscard]] std::vector<std::uint64_t> Take();

 private:
  std::uint64_t pages_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> words_;
};

}  // namespace postern::memory
