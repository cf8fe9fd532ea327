#include "src/memory/guest_memory.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "src/base/thread.h"

namespace postern::memory {
namespace {

constexpr std::uint64_t kSmallPage = 4096;
// From <linux/mman.h>: the C library of the oldest host we build on does not have it.
constexpr int kMadvPopulateWrite = 23;
// A thread is worth starting for this much memory: touching it takes some ten milliseconds.
constexpr std::uint64_t kPrefaultPerThread = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxPrefaultThreads = 8;

bool IsHugePageSize(std::uint64_t size) {
  return size == (std::uint64_t{2} << 20) || size == (std::uint64_t{1} << 30);
}

Result<void> Validate(Gpa base, std::uint64_t size, const Backing& backing) {
  const bool huge = backing.kind == Backing::Kind::kHugetlb;
  if (huge && !IsHugePageSize(backing.page_size)) {
    return Err(Errc::kInvalidArgument, "huge page size (2 MiB or 1 GiB)");
  }
  if (size == 0 || size % (huge ? backing.page_size : kSmallPage) != 0) {
    return Err(Errc::kInvalidArgument, "memory size (a multiple of the page size)");
  }
  if (base.value % kSmallPage != 0 || !base.CheckedAdd(size - 1)) {
    return Err(Errc::kInvalidArgument, "memory address");
  }
  if (size > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return Err(Errc::kInvalidArgument, "memory size");
  }
  return {};
}

Result<Fd> CreateFile(std::uint64_t size, const Backing& backing) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (backing.kind == Backing::Kind::kHugetlb) {
    const auto shift = static_cast<unsigned>(__builtin_ctzll(backing.page_size));
    flags |= MFD_HUGETLB | shift << MFD_HUGE_SHIFT;
  }
  Fd fd(memfd_create("postern-guest-ram", flags));
  if (!fd.valid()) return SysError("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return SysError("ftruncate");
  // A peer the descriptor is shared with could otherwise shrink the file and make our next access a
  // SIGBUS.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SysError("fcntl(F_ADD_SEALS)");
  }
  return fd;
}

// That [offset, offset + size) is in a file of memory now.
Result<void> CheckForeign(int fd, std::uint64_t offset, std::uint64_t size) {
  // Fails for all but memory. Of another file system pages may never come: its server may be the
  // process that gave the file.
  if (fcntl(fd, F_GET_SEALS) < 0) return Err(Errc::kPeerProtocol, "file that is no memory");
  struct stat file {};
  if (fstat(fd, &file) != 0) return SysError("fstat");
  const auto length = static_cast<std::uint64_t>(std::max<off_t>(file.st_size, 0));
  if (offset > length || size > length - offset)
    return Err(Errc::kPeerProtocol, "memory beyond the end of its file");
  return {};
}

// Before its end is looked at: it stays where it is then.
bool SealEnd(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && ((seals & F_SEAL_SHRINK) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
}

int MapFlags(const Backing& backing) {
  switch (backing.kind) {
    case Backing::Kind::kAnonymous:
      return MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    case Backing::Kind::kMemfd:
      return (backing.shared ? MAP_SHARED : MAP_PRIVATE) | MAP_NORESERVE;
    case Backing::Kind::kHugetlb:
      // Reserved here and now: too few huge pages are an ENOMEM the user can act on, not a SIGBUS
      // under the running guest.
      return backing.shared ? MAP_SHARED : MAP_PRIVATE;
  }
  return MAP_PRIVATE;
}

Result<void> Advise(const Mmap& mapping, const Backing& backing) {
  if (!backing.dump && madvise(mapping.data(), mapping.size(), MADV_DONTDUMP) != 0) {
    return SysError("madvise(MADV_DONTDUMP)");
  }
  if (backing.transparent_hugepages &&
      madvise(mapping.data(), mapping.size(), MADV_HUGEPAGE) != 0) {
    return SysError("madvise(MADV_HUGEPAGE)");
  }
  if (backing.mergeable && madvise(mapping.data(), mapping.size(), MADV_MERGEABLE) != 0) {
    return SysError("madvise(MADV_MERGEABLE)");
  }
  return {};
}

// 0 or an errno.
int PrefaultRange(std::byte* base, std::uint64_t size, std::uint64_t page) {
  if (madvise(base, size, kMadvPopulateWrite) == 0) return 0;
  if (errno != EINVAL) return errno;
  // Before Linux 5.14: write to each page. The memory is new and nobody else's, so what is there is
  // zero.
  for (std::uint64_t offset = 0; offset < size; offset += page) {
    *static_cast<volatile std::byte*>(base + offset) = std::byte{0};
  }
  return 0;
}

Result<void> Prefault(const Mmap& mapping, std::uint64_t page) {
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const std::uint64_t wanted = std::min(kMaxPrefaultThreads, mapping.size() / kPrefaultPerThread);
  const std::uint64_t count =
      std::clamp<std::uint64_t>(wanted, 1, online > 0 ? static_cast<std::uint64_t>(online) : 1);
  const std::uint64_t pages = mapping.size() / page;
  std::vector<int> errors(count, 0);
  const auto run = [&](std::uint64_t part) {
    const std::uint64_t begin = pages * part / count * page;
    const std::uint64_t end = pages * (part + 1) / count * page;
    errors[part] = PrefaultRange(mapping.data() + begin, end - begin, page);
  };
  {
    std::vector<Thread> threads;
    for (std::uint64_t part = 1; part < count; ++part) {
      Result<Thread> thread = Thread::Start("prefault", [&run, part] { run(part); });
      if (thread) {
        threads.push_back(std::move(*thread));
      } else {
        run(part);
      }
    }
    run(0);
  }
  for (const int error : errors) {
    if (error != 0) return SysError("madvise(MADV_POPULATE_WRITE)", error);
  }
  return {};
}

}  // namespace

Result<RegionPtr> Region::Create(Gpa base, std::uint64_t size, const Backing& backing) {
  TRY(Validate(base, size, backing));
  const std::shared_ptr<Region> region(new Region());
  region->base_ = base;
  region->size_ = size;
  region->backing_ = backing;
  if (backing.kind == Backing::Kind::kAnonymous) {
    region->backing_.shared = false;
  } else {
    region->fd_ = TRY(CreateFile(size, backing));
  }
  if (backing.kind != Backing::Kind::kHugetlb) region->backing_.page_size = kSmallPage;
  region->mapping_ = TRY(
      Mmap::Create(size, PROT_READ | PROT_WRITE, MapFlags(region->backing_), region->fd_.get()));
  TRY(Advise(region->mapping_, region->backing_));
  if (backing.prefault) TRY(Prefault(region->mapping_, region->backing_.page_size));
  if (backing.track_dirty) region->dirty_ = std::make_unique<DirtyBitmap>(size);
  return RegionPtr(region);
}

Result<RegionPtr> Region::Adopt(Gpa base, std::uint64_t size, int fd, std::uint64_t offset) {
  TRY(Validate(base, size, {}));
  if (offset % kSmallPage != 0) return Err(Errc::kInvalidArgument, "offset of memory in its file");
  const bool sealed = SealEnd(fd);
  TRY(CheckForeign(fd, offset, size));
  const std::shared_ptr<Region> region(new Region());
  region->base_ = base;
  region->size_ = size;
  region->backing_ = {.kind = Backing::Kind::kMemfd, .shared = true};
  region->mapping_ = TRY(
      Mmap::CreateCongruent(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, offset));
  if (!sealed) region->guard_ = TRY(FileGuard::Create(region->mapping_.data(), size));
  TRY(Advise(region->mapping_, region->backing_));
  return RegionPtr(region);
}

std::uint64_t Region::host_address() const {
  return reinterpret_cast<std::uintptr_t>(mapping_.data());
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::Create(std::vector<RegionPtr> regions) {
  for (const RegionPtr& region : regions) {
    if (region == nullptr) return Err(Errc::kInvalidArgument, "guest memory region");
  }
  std::sort(regions.begin(), regions.end(),
            [](const RegionPtr& a, const RegionPtr& b) { return a->base() < b->base(); });
  for (std::size_t i = 1; i < regions.size(); ++i) {
    if (regions[i - 1]->Contains(regions[i]->base())) {
      return Err(Errc::kOverlap, "guest memory region");
    }
  }
  const std::shared_ptr<GuestMemory> memory(new GuestMemory());
  memory->regions_ = std::move(regions);
  for (const RegionPtr& region : memory->regions_) {
    memory->places_.push_back(
        {region->base().value, region->size(), region->mapping_.data(), region->dirty()});
  }
  return std::shared_ptr<const GuestMemory>(memory);
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::With(RegionPtr region) const {
  std::vector<RegionPtr> regions = regions_;
  regions.push_back(std::move(region));
  return Create(std::move(regions));
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::Without(Gpa base) const {
  std::vector<RegionPtr> regions = regions_;
  const auto it = std::find_if(regions.begin(), regions.end(),
                               [base](const RegionPtr& region) { return region->base() == base; });
  if (it == regions.end()) return Err(Errc::kNotFound, "guest memory region");
  regions.erase(it);
  return Create(std::move(regions));
}

std::uint64_t GuestMemory::total_size() const {
  std::uint64_t sum = 0;
  for (const RegionPtr& region : regions_) sum += region->size();
  return sum;
}

const Region* GuestMemory::Find(Gpa gpa) const {
  const auto after = std::upper_bound(
      regions_.begin(), regions_.end(), gpa,
      [](Gpa address, const RegionPtr& region) { return address < region->base(); });
  if (after == regions_.begin()) return nullptr;
  const Region* region = std::prev(after)->get();
  return region->Contains(gpa) ? region : nullptr;
}

// Not by way of ViewRun: this is on the path of every descriptor, and a Result of a view is not
// free to pass on.
Result<GuestView> GuestMemory::View(Gpa gpa, std::uint64_t length, Access /*access*/) const {
  const Region* region = Find(gpa);
  if (region == nullptr) return Err(Errc::kGuestRange, "guest address");
  const std::uint64_t offset = gpa.value - region->base().value;
  if (length > region->size() - offset) return Err(Errc::kGuestRange, "guest address range");
  return GuestView(gpa, region->mapping_.data() + offset, length, region->dirty(), offset);
}

Result<GuestView> GuestMemory::ViewRun(Gpa gpa, std::uint64_t length, Access /*access*/) const {
  const Region* region = Find(gpa);
  if (region == nullptr) return Err(Errc::kGuestRange, "guest address");
  const std::uint64_t offset = gpa.value - region->base().value;
  const std::uint64_t size = std::min(length, region->size() - offset);
  return GuestView(gpa, region->mapping_.data() + offset, size, region->dirty(), offset);
}

Result<GuestView> GuestMemory::ViewRunUpTo(Gpa last, std::uint64_t length,
                                           Access /*access*/) const {
  const Region* region = Find(last);
  if (region == nullptr) return Err(Errc::kGuestRange, "guest address");
  const std::uint64_t before = last.value - region->base().value;  // and `last` itself
  const std::uint64_t size = length <= before ? length : before + 1;
  const std::uint64_t offset = before + 1 - size;
  return GuestView(Gpa(region->base().value + offset), region->mapping_.data() + offset, size,
                   region->dirty(), offset);
}

bool GuestMemory::Covers(Gpa gpa, std::uint64_t length) const {
  while (length > 0) {
    const Region* region = Find(gpa);
    if (region == nullptr) return false;
    const std::uint64_t run = region->size() - (gpa.value - region->base().value);
    if (run >= length) return true;
    const std::optional<Gpa> next = gpa.CheckedAdd(run);
    if (!next) return false;
    gpa = *next;
    length -= run;
  }
  return true;
}

Result<void> GuestMemory::CopyIn(Gpa gpa, std::span<const std::byte> from) const {
  if (!Covers(gpa, from.size())) return Err(Errc::kGuestRange, "copy to guest memory");
  while (!from.empty()) {
    const GuestView run = TRY(ViewRun(gpa, from.size(), Access::kWrite));
    TRY(run.CopyIn(0, from.first(run.size())));
    from = from.subspan(run.size());
    gpa = Gpa(gpa.value + run.size());  // wraps to 0 only after the very last byte
  }
  return {};
}

Result<void> GuestMemory::CopyOut(Gpa gpa, std::span<std::byte> to) const {
  if (!Covers(gpa, to.size())) return Err(Errc::kGuestRange, "copy from guest memory");
  while (!to.empty()) {
    const GuestView run = TRY(ViewRun(gpa, to.size(), Access::kRead));
    TRY(run.CopyOut(0, to.first(run.size())));
    to = to.subspan(run.size());
    gpa = Gpa(gpa.value + run.size());
  }
  return {};
}

GuestMemoryPtr MemoryMap::Snapshot() const {
  const MutexLock lock(mutex_);
  return current_;
}

GuestMemoryPtr MemoryMap::Swap(GuestMemoryPtr next) {
  const MutexLock lock(mutex_);
  current_.swap(next);
  generation_.fetch_add(1, std::memory_order_release);
  return next;
}

Result<void> MemoryMap::Observe(MemoryObserver& observer) {
  const GuestMemoryPtr memory = Snapshot();
  const std::span<const RegionPtr> regions = memory->regions();
  for (std::size_t i = 0; i < regions.size(); ++i) {
    const Result<void> added = observer.Added(*regions[i]);
    if (!added) {
      while (i > 0) observer.Removing(*regions[--i]);
      return added;
    }
  }
  observers_.push_back(&observer);
  return {};
}

void MemoryMap::Unobserve(MemoryObserver& observer) {
  observers_.erase(std::remove(observers_.begin(), observers_.end(), &observer), observers_.end());
}

Result<void> MemoryMap::Add(const RegionPtr& region) {
  GuestMemoryPtr next = TRY(Snapshot()->With(region));
  for (std::size_t i = 0; i < observers_.size(); ++i) {
    const Result<void> added = observers_[i]->Added(*region);
    if (!added) {
      while (i > 0) observers_[--i]->Removing(*region);
      return added;
    }
  }
  const GuestMemoryPtr old = Swap(std::move(next));
  return {};
}

Result<void> MemoryMap::Remove(Gpa base) {
  const GuestMemoryPtr before = Snapshot();
  GuestMemoryPtr next = TRY(before->Without(base));
  const GuestMemoryPtr old = Swap(std::move(next));
  for (const RegionPtr& region : before->regions()) {
    if (region->base() != base) continue;
    for (auto it = observers_.rbegin(); it != observers_.rend(); ++it) (*it)->Removing(*region);
  }
  return {};
}

}  // namespace postern::memory
