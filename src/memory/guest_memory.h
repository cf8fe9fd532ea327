#pragma once

// GuestMemory: the guest-physical RAM map: an immutable, sorted set of regions. Hot plug makes a
// new map and swaps it in whole (MemoryMap below); whoever holds the old snapshot keeps its regions
// mapped.
//
//   auto region = TRY(Region::Create(Gpa(0), 512 << 20, {.kind = Backing::Kind::kMemfd}));
//   auto memory = TRY(GuestMemory::Create({std::move(region)}));
//   GuestView header = TRY(memory->View(Gpa(0x1000), 16, Access::kRead));
//
// Is not: MMIO (src/bus), nor the KVM memslots (an observer makes those). A View never spans two
// regions; an access that may is split by the caller (Reader and Writer of a virtqueue do). Source
// of semantics: rust-vmm vm-memory GuestMemoryMmap / GuestMemoryAtomic.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "src/base/fd.h"
#include "src/base/mmap.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/memory/file_guard.h"
#include "src/memory/guest_view.h"

namespace postern::memory {

// What stands behind a region of guest RAM.
struct Backing {
  enum class Kind : std::uint8_t {
    kAnonymous,  // private anonymous memory: cheapest to create, cannot be shared with another
                 // process
    kMemfd,      // a memfd: can be handed to vhost-user and vfio-user peers
    kHugetlb,    // a memfd on hugetlbfs of `page_size`
  };
  Kind kind = Kind::kAnonymous;
  std::uint64_t page_size = 4096;      // kHugetlb: 2 MiB or 1 GiB
  bool shared = false;                 // MAP_SHARED; kAnonymous implies private
  bool prefault = false;               // touch every page before the guest starts
  bool transparent_hugepages = false;  // MADV_HUGEPAGE
  bool mergeable = false;              // MADV_MERGEABLE (KSM)
  bool dump = false;                   // keep in core dumps (default MADV_DONTDUMP)
  bool track_dirty = false;            // give the region a DirtyBitmap
};

class Region {
 public:
  // base: a multiple of 4096. size: a non-zero multiple of the backing's page size; base + size - 1
  // must not wrap, so a region may end at the last byte of the address space. kSystem keeps errno:
  // ENOMEM for kHugetlb says that too few huge pages are reserved.
  [[nodiscard]] static Result<std::shared_ptr<const Region>> Create(Gpa base, std::uint64_t size,
                                                                    const Backing& backing);

  [[nodiscard]] Gpa base() const { return base_; }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] const Backing& backing() const { return backing_; }
  // `size` bytes from `offset` (multiples of 4096) of a file another process gave, mapped shared to
  // be read and written; the descriptor is not kept. kPeerProtocol for a file that is no memory
  // (memfd, tmpfs, hugetlbfs), or that ends before; kSystem keeps errno. A file that can be sealed
  // is, so that it cannot be shortened under us; one that cannot has a FileGuard.
  [[nodiscard]] static Result<std::shared_ptr<const Region>> Adopt(Gpa base, std::uint64_t size,
                                                                   int fd, std::uint64_t offset);

  // -1 for anonymous and adopted memory. The region starts at offset 0 of the file.
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] DirtyBitmap* dirty() const { return dirty_.get(); }
  // An adopted file was shortened, and what is here is zeros of our own.
  [[nodiscard]] bool lost() const { return guard_ && guard_->lost(); }
  // For KVM memslots and IOMMU maps alone (they need the user address); never for reading or
  // writing guest memory.
  [[nodiscard]] std::uint64_t host_address() const;
  [[nodiscard]] bool Contains(Gpa gpa) const {
    return gpa >= base_ && gpa.value - base_.value < size_;
  }

 private:
  friend class GuestMemory;
  Region() = default;
  Gpa base_;
  std::uint64_t size_ = 0;
  Backing backing_;
  Fd fd_;
  Mmap mapping_;
  std::optional<FileGuard> guard_;  // goes before mapping_
  std::unique_ptr<DirtyBitmap> dirty_;
};

using RegionPtr = std::shared_ptr<const Region>;

class GuestMemory {
 public:
  // Refuses overlapping regions (kOverlap); sorts them. None at all is a map too: nothing is in it.
  [[nodiscard]] static Result<std::shared_ptr<const GuestMemory>> Create(
      std::vector<RegionPtr> regions);
  // A new map with one region more or less.
  [[nodiscard]] Result<std::shared_ptr<const GuestMemory>> With(RegionPtr region) const;
  [[nodiscard]] Result<std::shared_ptr<const GuestMemory>> Without(Gpa base) const;

  [[nodiscard]] std::span<const RegionPtr> regions() const { return regions_; }
  [[nodiscard]] std::uint64_t total_size() const;
  // kGuestRange if [gpa, gpa + length) is not inside one region. length 0 is allowed anywhere
  // inside a region.
  [[nodiscard]] Result<GuestView> View(Gpa gpa, std::uint64_t length, Access access) const;
  // `access`: what the caller is going to do; all RAM grants both today.
  // The longest run from gpa of at most `length` bytes that lies in one region; kGuestRange if gpa
  // is in none.
  [[nodiscard]] Result<GuestView> ViewRun(Gpa gpa, std::uint64_t length, Access access) const;

  // As ViewRun, for who comes here for every descriptor: where there is no memory the view has no
  // bytes. `length` is not 0.
  [[nodiscard]] GuestView Run(Gpa gpa, std::uint64_t length) const {
    for (const Place& place : places_) {
      const std::uint64_t offset = gpa.value - place.base;
      if (offset < place.size) {
        return GuestView(gpa, place.host + offset, std::min(length, place.size - offset),
                         place.dirty, offset);
      }
    }
    return {};
  }
  // The longest run of at most `length` bytes that ends with the byte at `last` and lies in one
  // region: for whoever walks downwards.
  [[nodiscard]] Result<GuestView> ViewRunUpTo(Gpa last, std::uint64_t length, Access access) const;

  // Copies that may span adjacent regions; nothing is copied unless all of it fits. No bytes always
  // fit.
  [[nodiscard]] Result<void> CopyIn(Gpa gpa, std::span<const std::byte> from) const;
  [[nodiscard]] Result<void> CopyOut(Gpa gpa, std::span<std::byte> to) const;
  template <GuestPod T>
  [[nodiscard]] Result<T> Read(Gpa gpa) const {
    return TRY(View(gpa, sizeof(T), Access::kRead)).template Read<T>(0);
  }
  template <GuestPod T>
  [[nodiscard]] Result<void> Write(Gpa gpa, const T& value) const {
    return TRY(View(gpa, sizeof(T), Access::kWrite)).template Write<T>(0, value);
  }

 private:
  GuestMemory() = default;
  [[nodiscard]] const Region* Find(Gpa gpa) const;
  [[nodiscard]] bool Covers(Gpa gpa, std::uint64_t length) const;

  // What Run needs of a region, in a row. There are few regions.
  struct Place {
    std::uint64_t base;
    std::uint64_t size;
    std::byte* host;
    DirtyBitmap* dirty;
  };

  std::vector<RegionPtr> regions_;
  std::vector<Place> places_;  // of regions_, in their order
};

using GuestMemoryPtr = std::shared_ptr<const GuestMemory>;

// Hears of every change of the map. `Added` runs before the new map is visible to devices;
// `Removing` after it no longer is and before the region can be unmapped.
class MemoryObserver {
 public:
  virtual ~MemoryObserver() = default;
  [[nodiscard]] virtual Result<void> Added(const Region& region) = 0;
  virtual void Removing(const Region& region) = 0;
};

// MemoryMap: the current GuestMemory and its observers. Observers are told of additions in the
// order they were registered and of removals in the reverse order, so that KVM (registered first)
// sees a region before any IOMMU and gives it up after all of them. Threads: Snapshot from any
// thread; Add, Remove and Observe from the control thread. Observers are called on the control
// thread.
class MemoryMap {
 public:
  explicit MemoryMap(GuestMemoryPtr initial) : current_(std::move(initial)) {}

  [[nodiscard]] GuestMemoryPtr Snapshot() const;
  // Another number after each change: who keeps a snapshot sees by it, without a lock, whether to
  // take a new one. Read it before the snapshot.
  [[nodiscard]] std::uint64_t generation() const {
    // Pairs with the release in Swap: whoever sees the number gets a map at least as new.
    return generation_.load(std::memory_order_acquire);
  }
  // Tells the observer of all present regions at once; on failure it is not registered and has been
  // told to remove what it took.
  [[nodiscard]] Result<void> Observe(MemoryObserver& observer);
  void Unobserve(MemoryObserver& observer);
  [[nodiscard]] Result<void> Add(const RegionPtr& region);
  [[nodiscard]] Result<void> Remove(Gpa base);

 private:
  // The old map, so that it is let go without the lock.
  GuestMemoryPtr Swap(GuestMemoryPtr next);

  mutable Mutex mutex_;
  std::atomic<std::uint64_t> generation_{0};
  GuestMemoryPtr current_ GUARDED_BY(mutex_);
  std::vector<MemoryObserver*> observers_;  // control thread only
};

}  // namespace postern::memory
