#include "devices/virtio/queue/queue.h"

#include <array>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include "tests/support/driver_queue.h"
#include "tests/support/memory.h"

namespace postern::virtio {
namespace {

using testing::DriverQueue;
using testing::MakeMemory;

constexpr std::uint16_t kSize = 256;

std::uint16_t PlaceChain(DriverQueue& driver, std::int64_t descriptors, bool indirect) {
  auto builder = driver.Build();
  builder.Readable("0123456789abcdef");
  for (std::int64_t i = 1; i < descriptors; ++i) builder.Writable(512);
  if (indirect) builder.Indirect();
  return builder.Place();
}

// A request from the available to the used ring, in batches as a busy driver makes them; the
// driver's part is a store of the same heads again and is counted with it.
void BM_Queue_PopComplete(benchmark::State& state) {
  DriverQueue driver(MakeMemory(4 << 20),
                     {.size = kSize, .event_idx = true, .arena_size = 2 << 20});
  Queue queue = driver.MakeQueue().value();
  constexpr int kBatch = 8;
  std::array<std::uint16_t, kBatch> heads{};
  for (std::uint16_t& head : heads) head = PlaceChain(driver, state.range(0), state.range(1) != 0);
  for (auto _ : state) {
    for (const std::uint16_t head : heads) driver.StageHead(head);
    driver.PublishStaged();
    while (true) {
      Result<std::optional<Chain>> next = queue.Pop();
      if (!next || !*next) break;
      (*next)->Complete(1);
    }
    queue.NotifyIfNeeded();
    benchmark::DoNotOptimize(queue.EnableKicks());
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(BM_Queue_PopComplete)
    ->ArgNames({"descriptors", "indirect"})
    ->Args({1, 0})
    ->Args({3, 0})
    ->Args({16, 0})
    ->Args({3, 1})
    ->Args({16, 1});

// The cost of looking at a ring that has nothing.
void BM_Queue_PopEmpty(benchmark::State& state) {
  DriverQueue driver(MakeMemory(1 << 20), {.size = kSize});
  Queue queue = driver.MakeQueue().value();
  for (auto _ : state) benchmark::DoNotOptimize(queue.Pop().has_value());
}
BENCHMARK(BM_Queue_PopEmpty);

void BM_Queue_ReadHeaderWriteStatus(benchmark::State& state) {
  DriverQueue driver(MakeMemory(1 << 20), {.size = kSize});
  Queue queue = driver.MakeQueue().value();
  driver.PublishHead(PlaceChain(driver, 3, false));
  Chain chain = std::move(*queue.Pop().value());
  struct Header {
    le32 type, reserved;
    le64 sector;
  };
  for (auto _ : state) {
    Reader reader = chain.reader();
    benchmark::DoNotOptimize(reader.Read<Header>().has_value());
    Writer writer = chain.writer();
    Writer tail = writer.SplitOffTail(1).value();
    benchmark::DoNotOptimize(tail.Write(std::uint8_t{0}).has_value());
  }
  chain.Complete(1);
}
BENCHMARK(BM_Queue_ReadHeaderWriteStatus);

void BM_Queue_Copy(benchmark::State& state) {
  DriverQueue driver(MakeMemory(4 << 20), {.size = kSize, .arena_size = 2 << 20});
  Queue queue = driver.MakeQueue().value();
  auto builder = driver.Build();
  for (int i = 0; i < 16; ++i) builder.Writable(4096);
  driver.PublishHead(builder.Place());
  Chain chain = std::move(*queue.Pop().value());
  const std::vector<std::byte> bytes(65536, std::byte{1});
  for (auto _ : state) {
    Writer writer = chain.writer();
    benchmark::DoNotOptimize(writer.Copy(bytes).has_value());
  }
  chain.Complete(0);
  state.SetBytesProcessed(state.iterations() * 65536);
}
BENCHMARK(BM_Queue_Copy);

}  // namespace
}  // namespace postern::virtio
