// What the register table adds to a trapped access.

#include "src/bus/register_map.h"

#include <array>

#include <benchmark/benchmark.h>

namespace postern::bus {
namespace {

template <std::size_t N>
constexpr std::array<RegisterRow, N> MakeRows() {
  std::array<RegisterRow, N> rows{};
  for (std::size_t i = 0; i < N; ++i) {
    rows[i] = {static_cast<std::uint32_t>(4 * i), 4, "ROW", 0xffff'ffff, 0, 0, kNone};
  }
  return rows;
}
constexpr auto kFew = MakeRows<8>();
constexpr auto kMany = MakeRows<64>();
static_assert(IsWellFormed(kFew) && IsWellFormed(kMany));

class Owner : public RegisterOwner {
 public:
  void OnWrite(const RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override {
    (void)row;
    (void)old;
    (void)now;
    (void)written;
  }
};

std::span<const RegisterRow> Rows(const benchmark::State& state) {
  return state.range(0) == 8 ? std::span<const RegisterRow>(kFew)
                             : std::span<const RegisterRow>(kMany);
}

void BM_RegisterFile_Read(benchmark::State& state) {
  Owner owner;
  RegisterFile file(Rows(state), owner, "bench");
  std::array<std::byte, 4> data{};
  std::uint64_t i = 0;
  for (auto _ : state) {
    file.Read(i++ % file.rows().size() * 4, data);
    benchmark::DoNotOptimize(data);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_RegisterFile_Read)->ArgName("rows")->Arg(8)->Arg(64);

void BM_RegisterFile_Write(benchmark::State& state) {
  Owner owner;
  RegisterFile file(Rows(state), owner, "bench");
  const std::array<std::byte, 4> data{};
  std::uint64_t i = 0;
  for (auto _ : state) file.Write(i++ % file.rows().size() * 4, data);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_RegisterFile_Write)->ArgName("rows")->Arg(8)->Arg(64);

void BM_RegisterFile_WritePair(benchmark::State& state) {
  Owner owner;
  RegisterFile file(Rows(state), owner, "bench");
  const std::array<std::byte, 8> data{};
  std::uint64_t i = 0;
  for (auto _ : state) file.Write(i++ % (file.rows().size() / 2) * 8, data);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_RegisterFile_WritePair)->ArgName("rows")->Arg(8)->Arg(64);

void BM_RegisterFile_Refused(benchmark::State& state) {
  Owner owner;
  RegisterFile file(Rows(state), owner, "bench");
  std::array<std::byte, 4> data{};
  for (auto _ : state) {
    file.Read(2, data);
    benchmark::DoNotOptimize(data);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_RegisterFile_Refused)->ArgName("rows")->Arg(8)->Arg(64);

}  // namespace
}  // namespace postern::bus
