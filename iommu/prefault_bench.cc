// A GiB of memory made present by 1 to 8 threads, and absent again: what attaching a device costs
// most. Of the process's own, and of a file in memory, as guest RAM is.

#include "iommu/prefault.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include <benchmark/benchmark.h>

#include "src/base/fd.h"
#include "src/base/mmap.h"

namespace postern::iommu {
namespace {

constexpr std::uint64_t kSize = std::uint64_t{1} << 30;

struct Memory {
  Fd file;  // none: anonymous
  Mmap pages;
};

Memory Anonymous() {
  Result<Mmap> pages =
      Mmap::Create(kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!pages) std::abort();
  return {Fd(), std::move(*pages)};
}

Memory InFile() {
  Fd file(memfd_create("prefault_bench", MFD_CLOEXEC));
  if (!file.valid() || ftruncate(file.get(), static_cast<off_t>(kSize)) != 0) std::abort();
  Result<Mmap> pages = Mmap::Create(kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.get());
  if (!pages) std::abort();
  return {std::move(file), std::move(*pages)};
}

void Run(benchmark::State& state, const Memory& memory) {
  const PrefaultOptions options{.threads = static_cast<unsigned>(state.range(0))};
  const int absent = memory.file.valid() ? MADV_REMOVE : MADV_DONTNEED;
  for (auto _ : state) {
    if (!Prefault(memory.pages.data(), kSize, options)) std::abort();
    state.PauseTiming();
    if (madvise(memory.pages.data(), kSize, absent) != 0) std::abort();
    state.ResumeTiming();
  }
  const auto bytes = static_cast<double>(state.iterations()) * static_cast<double>(kSize);
  state.counters["GiB/s"] =
      benchmark::Counter(bytes / static_cast<double>(1 << 30), benchmark::Counter::kIsRate);
}

void BM_PrefaultAnonymous(benchmark::State& state) {
  Run(state, Anonymous());
}
BENCHMARK(BM_PrefaultAnonymous)->ArgName("threads")->Arg(1)->Arg(2)->Arg(4)->Arg(8)->UseRealTime();

void BM_PrefaultMemfd(benchmark::State& state) {
  Run(state, InFile());
}
BENCHMARK(BM_PrefaultMemfd)->ArgName("threads")->Arg(1)->Arg(2)->Arg(4)->Arg(8)->UseRealTime();

}  // namespace
}  // namespace postern::iommu
