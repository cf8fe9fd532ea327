// Memory made present by 1 to 8 threads, and absent again: what attaching a device costs most.

#include "iommu/prefault.h"

#include <sys/mman.h>

#include <cstdlib>

#include <benchmark/benchmark.h>

#include "src/base/mmap.h"

namespace postern::iommu {
namespace {

constexpr std::uint64_t kSize = std::uint64_t{64} << 20;

void BM_Prefault(benchmark::State& state) {
  Result<Mmap> memory =
      Mmap::Create(kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!memory) std::abort();
  const PrefaultOptions options{.threads = static_cast<unsigned>(state.range(0)),
                                .per_thread = std::uint64_t{8} << 20};
  for (auto _ : state) {
    if (!Prefault(memory->data(), kSize, options)) std::abort();
    state.PauseTiming();
    if (madvise(memory->data(), kSize, MADV_DONTNEED) != 0) std::abort();
    state.ResumeTiming();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kSize));
}
BENCHMARK(BM_Prefault)->ArgName("threads")->Arg(1)->Arg(2)->Arg(4)->Arg(8)->UseRealTime();

}  // namespace
}  // namespace postern::iommu
