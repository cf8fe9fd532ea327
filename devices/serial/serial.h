#pragma once

// Serial: a 16550A UART as Linux's 8250 driver and early consoles use it: 64-byte receive FIFO, transmitter that is always ready,
// interrupts, loopback, modem lines of a connected terminal.
//
//   Serial serial(line, sink);
//   auto registration = bus.Add(kSerialPort, kSerialPorts, serial, serial.lock(), "serial");
//   std::size_t taken = serial.Enqueue(bytes);    // host input; fewer than given: wait for OnInputSpace
//
// Semantics of rust-vmm's vm-superio Serial. Differences: FCR clears the FIFOs as it is asked to, the interrupt identification
// follows priority instead of a set of bits, and the transmitter-empty interrupt is one event per write or enabling, not a level.
//
// Ownership: the interrupt line and the sink are borrowed and outlive this. Threads: Read and Write by vCPU threads with lock() held
// (the bus takes it); every other member takes it itself: any thread. The sink is called with the lock held and must not block.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"

namespace postern::serial {

constexpr std::size_t kFifoSize = 64;

class SerialSink {
 public:
  virtual ~SerialSink() = default;
  // One transmitted byte. False: it is lost (counted). Never blocks.
  virtual bool Transmit(std::byte byte) = 0;
  // The receive FIFO, full before, has room again: whoever stopped feeding may go on.
  virtual void OnInputSpace() {}
};

// Field names and meaning of vm-superio's SerialState.
struct SerialState {
  std::uint8_t baud_divisor_low = 0;
  std::uint8_t baud_divisor_high = 0;
  std::uint8_t interrupt_enable = 0;
  std::uint8_t interrupt_identification = 0;
  std::uint8_t line_control = 0;
  std::uint8_t line_status = 0;
  std::uint8_t modem_control = 0;
  std::uint8_t modem_status = 0;
  std::uint8_t scratch = 0;
  std::vector<std::uint8_t> in_buffer;
  friend bool operator==(const SerialState&, const SerialState&) = default;
};

struct SerialCounters {
  Counter read_bytes, written_bytes, lost_bytes, overruns, interrupts, refused_accesses;
};

class Serial : public bus::MmioHandler {
 public:
  Serial(bus::IrqLine& irq, SerialSink& sink);

  [[nodiscard]] Mutex& lock() { return lock_; }

  void Read(std::uint64_t offset, std::span<std::byte> data) override;
  void Write(std::uint64_t offset, std::span<const std::byte> data) override;

  // Gives the guest as many bytes as fit and says how many that were; 0 in loopback mode, where the line is cut.
  [[nodiscard]] std::size_t Enqueue(std::span<const std::byte> input);
  [[nodiscard]] std::size_t InputSpace();

  [[nodiscard]] SerialState Save();
  // Refuses (kBadFormat) states no Serial can be in and leaves the device as it was. A pending interrupt is raised again.
  [[nodiscard]] Result<void> Restore(const SerialState& state);
  void ReportCounters(CounterSink& sink) const;

 private:
  Mutex lock_;
};

}  // namespace postern::serial
