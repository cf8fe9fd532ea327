#include "iommu/prefault.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "src/base/thread.h"

namespace postern::iommu {
namespace {

// From <linux/mman.h>: the C library of the oldest host we build on does not have it.
constexpr int kMadvPopulateWrite = 23;
constexpr unsigned kMaxThreads = 64;

// 0 or an errno.
int Populate(std::byte* base, std::uint64_t size) {
  while (madvise(base, size, kMadvPopulateWrite) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

unsigned HostPrefaultThreads() {
  // More of them wait for memory, not for processors.
  constexpr long kMost = 16;
  return static_cast<unsigned>(std::clamp(sysconf(_SC_NPROCESSORS_ONLN), 1L, kMost));
}

unsigned UsefulPrefaultThreads(std::uint64_t size, const PrefaultOptions& options) {
  const std::uint64_t most = std::clamp(options.threads, 1U, kMaxThreads);
  const std::uint64_t worth = size / std::max<std::uint64_t>(options.per_thread, 1);
  return static_cast<unsigned>(std::clamp<std::uint64_t>(worth, 1, most));
}

Result<void> Prefault(std::byte* base, std::uint64_t size, const PrefaultOptions& options) {
  const std::uint64_t page = std::max<std::uint64_t>(options.page, 1);
  const std::uint64_t pages = size / page;
  const std::uint64_t count = UsefulPrefaultThreads(size, options);
  std::vector<int> errors(count, 0);
  const auto run = [&](std::uint64_t part) {
    const std::uint64_t begin = pages / count * part + std::min(part, pages % count);
    const std::uint64_t end = pages / count * (part + 1) + std::min(part + 1, pages % count);
    const std::uint64_t stop = part + 1 == count ? size : end * page;
    errors[part] = Populate(base + begin * page, stop - begin * page);
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
    if (error != 0 && error != EINVAL) return SysError("madvise(MADV_POPULATE_WRITE)", error);
  }
  return {};
}

}  // namespace postern::iommu
