// The cost of one port access and of one received byte, without KVM's part.

#include "devices/serial/serial.h"

#include <array>
#include <cstddef>
#include <cstdint>

#include <benchmark/benchmark.h>

#include "src/base/event_fd.h"

namespace postern::serial {
namespace {

class Line final : public bus::IrqLine {
 public:
  [[nodiscard]] const EventFd& trigger() const override { return event_; }
  void SetLevel(bool high) override { (void)high; }

 private:
  EventFd event_ = EventFd::Create().value();
};

class Sink final : public SerialSink {
 public:
  bool Transmit(std::byte byte) override {
    benchmark::DoNotOptimize(byte);
    return true;
  }
};

// What printk does for a character: read LSR, write THR, no interrupt.
void BM_Serial_PolledByte(benchmark::State& state) {
  Line line;
  Sink sink;
  Serial serial(line, sink);
  std::array<std::byte, 1> data{};
  for (auto step : state) {
    (void)step;
    const MutexLock lock(serial.lock());
    serial.Read(5, data);
    data[0] = std::byte{'x'};
    serial.Write(0, data);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Serial_PolledByte);

// Host input through the FIFO, one full FIFO at a time.
void BM_Serial_Input(benchmark::State& state) {
  Line line;
  Sink sink;
  Serial serial(line, sink);
  const std::array<std::byte, kFifoSize> input{};
  std::array<std::byte, 1> data{};
  for (auto step : state) {
    (void)step;
    benchmark::DoNotOptimize(serial.Enqueue(input));
    for (std::size_t i = 0; i < kFifoSize; ++i) {
      const MutexLock lock(serial.lock());
      serial.Read(0, data);
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(kFifoSize));
}
BENCHMARK(BM_Serial_Input);

}  // namespace
}  // namespace postern::serial
