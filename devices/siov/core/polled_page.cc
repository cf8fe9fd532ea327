#include "devices/siov/core/polled_page.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <utility>

#include "src/base/check.h"

namespace postern::siov {
namespace {

constexpr std::uint32_t kWords = kDescriptorSize / sizeof(std::uint64_t);
constexpr std::uint32_t kMaxPages = 64;
// Stores of 64 bytes become visible in any order for a moment (they pass through a write-combining
// buffer): a gap counts once it was looked at this often. Some microseconds.
constexpr int kSettleLooks = 256;
// A guest that stores to one slot without end holds up its own queue for no longer than this.
constexpr int kTakeTries = 8;

using Words = std::array<std::uint64_t, kWords>;

// All but the first word. Acquire keeps the loads in this order for the compiler; the processor
// keeps it by itself.
void LoadRest(const std::uint64_t* slot, Words& words) {
  for (std::uint32_t i = 1; i < kWords; ++i) words[i] = __atomic_load_n(slot + i, __ATOMIC_ACQUIRE);
}

}  // namespace

Result<Fd> PolledPage::CreateFile(std::uint64_t bytes) {
  Fd file(memfd_create("postern-portal", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return SysError("memfd_create");
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return SysError("ftruncate");
  // Another process that is given the file (vfio-user) must not shorten it under us.
  if (fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return SysError("fcntl(F_ADD_SEALS)");
  return file;
}

Result<PolledPage> PolledPage::Create(std::uint32_t pages) {
  if (pages == 0 || pages > kMaxPages) return Err(Errc::kInvalidArgument, "polled portal pages");
  return CreateIn(TRY(CreateFile(std::uint64_t{pages} * kPageSize)), 0, pages);
}

Result<PolledPage> PolledPage::CreateIn(const Fd& file, std::uint64_t offset, std::uint32_t pages) {
  if (pages == 0 || pages > kMaxPages) return Err(Errc::kInvalidArgument, "polled portal pages");
  Fd own = TRY(file.Duplicate());
  Mmap memory = TRY(Mmap::Create(std::size_t{pages} * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED,
                                 own.get(), offset));
  return PolledPage(std::move(own), offset, std::move(memory), pages);
}

PolledPage::PolledPage(Fd file, std::uint64_t offset, Mmap memory, std::uint32_t pages)
    : file_(std::move(file)),
      offset_(offset),
      memory_(std::move(memory)),
      cursors_(pages),
      counters_(std::make_unique<Counters>()) {
  auto* words = static_cast<std::uint64_t*>(static_cast<void*>(memory_.data()));
  for (Cursor& cursor : cursors_) {
    cursor.words = words;
    words += std::size_t{kSlots} * kWords;
  }
}

bus::HostPages PolledPage::host(std::uint32_t page) const {
  CHECK(page < pages());
  const std::uint64_t offset = std::uint64_t{page} * kPageSize;
  return {.fd = file_.get(),
          .offset = offset_ + offset,
          .address = memory_.data() + offset,
          .length = kPageSize};
}

void PolledPage::Forget() {
  for (Cursor& cursor : cursors_) {
    for (std::uint32_t i = 0; i < kSlots * kWords; ++i)
      __atomic_store_n(cursor.words + i, 0, __ATOMIC_RELAXED);
    cursor = Cursor{.words = cursor.words};
  }
  trusted_ = true;
}

void PolledPage::Distrust(Counter& why) {
  why.Add();
  trusted_ = false;
}

bool PolledPage::TakeNext(Cursor& cursor, bool everywhere, Descriptor& descriptor) {
  if (!cursor.in_step || Word(cursor, cursor.next, 0) == 0) {
    if (cursor.in_step && !everywhere) return false;
    if (!Search(cursor)) return false;
  }
  if (!TakeSlot(cursor, cursor.next, descriptor)) return false;
  cursor.next = (cursor.next + 1) % kSlots;
  return true;
}

std::uint32_t PolledPage::Find(const Cursor& cursor) {
  bool any = false;
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    const std::uint32_t slot = (cursor.next + i) % kSlots;
    if (Word(cursor, slot, 0) == 0) continue;
    any = true;
    if (cursor.in_step || Word(cursor, (slot + kSlots - 1) % kSlots, 0) == 0) return slot;
  }
  // All full: no run has a start, and rule 3 is broken already.
  return any ? cursor.next : kSlots;
}

bool PolledPage::Search(Cursor& cursor) {
  if (Find(cursor) == kSlots) return false;
  for (int i = 0; i < kSettleLooks; ++i) {
    if (cursor.in_step && Word(cursor, cursor.next, 0) != 0) return true;
    __builtin_ia32_pause();
  }
  const std::uint32_t slot = Find(cursor);
  if (slot == kSlots) return false;
  if (cursor.in_step && slot != cursor.next) Distrust(counters_->broken_rules);
  cursor.next = slot;
  cursor.in_step = true;
  return true;
}

bool PolledPage::TakeSlot(Cursor& cursor, std::uint32_t slot, Descriptor& descriptor) {
  std::uint64_t* const at = cursor.words + std::size_t{slot} * kWords;
  for (int tries = 0; tries < kTakeTries; ++tries) {
    Words words;
    words[0] = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    if (words[0] == 0) return false;
    LoadRest(at, words);
    std::uint64_t expected = words[0];
    // The moment of taking. Every store that completes makes the first word non-zero again.
    if (__atomic_compare_exchange_n(at, &expected, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
      Words again = words;
      LoadRest(at, again);
      // The rest was the same before and after, and no store came after: it was so at that moment.
      if (again == words && __atomic_load_n(at, __ATOMIC_ACQUIRE) == 0) {
        std::memcpy(descriptor.data(), words.data(), sizeof(words));
        return true;
      }
    }
    Distrust(counters_->overwritten);
  }
  return false;
}

}  // namespace postern::siov
