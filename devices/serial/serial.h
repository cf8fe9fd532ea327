#pragma once

// Serial: a 16550A UART as Linux's 8250 driver and early consoles use it: 64-byte receive FIFO,
// transmitter that is always ready, interrupts, loopback, modem lines of a connected terminal.
//
//   Serial serial(line, sink);
//   auto registration = bus.Add(kSerialPort, kSerialPorts, serial, serial.lock(), "serial");
//   std::size_t taken = serial.Enqueue(bytes);    // host input; fewer than given: wait for
//   OnInputSpace
//
// Semantics of rust-vmm's vm-superio Serial. Differences: FCR clears the receive FIFO when asked
// to; reading IIR names the one interrupt of highest priority and acknowledges only the
// transmitter's; bytes lost in loopback show as LSR overrun. Is not: a line with a speed: break,
// parity and framing errors and the modem-status interrupt never happen.
//
// Ownership: the interrupt line and the sink are borrowed and outlive this. Threads: Read and Write
// by vCPU threads with lock() held (the bus takes it); every other member takes it itself: any
// thread. The sink is called with the lock held and must not block.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/byte_ring.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"
#include "src/bus/register_map.h"

namespace postern::serial {

constexpr std::size_t kFifoSize = 64;

class SerialSink {
 public:
  virtual ~SerialSink() = default;
  // One transmitted byte. False: it is lost (counted). Never blocks.
  virtual bool Transmit(std::byte byte) = 0;
  // There is room for input again after there was none: whoever stopped feeding may go on. With the
  // FIFO at most half full, so that a guest that takes bytes one by one does not cause a call for
  // each.
  virtual void OnInputSpace() {}
};

// Field names and meaning of vm-superio's SerialState. interrupt_identification holds what is
// pending, as a set: 2 = transmitter empty, 4 = data available, 1 = neither; bits 7:6 = FIFOs
// enabled.
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
  Counter read_bytes;     // taken by the guest
  Counter written_bytes;  // accepted by the sink
  Counter lost_bytes;     // refused by the sink
  Counter overruns;       // lost in loopback
  Counter interrupts;
};

class Serial final : public bus::MmioHandler, private bus::RegisterOwner {
 public:
  Serial(bus::IrqLine& irq, SerialSink& sink);

  [[nodiscard]] Mutex& lock() RETURN_CAPABILITY(lock_) { return lock_; }

  void Read(std::uint64_t offset, std::span<std::byte> data) override REQUIRES(lock_);
  void Write(std::uint64_t offset, std::span<const std::byte> data) override REQUIRES(lock_);

  // Gives the guest as many bytes as fit and says how many that were; none in loopback mode, where
  // the line is cut.
  [[nodiscard]] std::size_t Enqueue(std::span<const std::byte> input) EXCLUDES(lock_);
  [[nodiscard]] std::size_t InputSpace() EXCLUDES(lock_);

  [[nodiscard]] SerialState Save() EXCLUDES(lock_);
  // Refuses (kBadFormat) states no Serial can be in and leaves the device as it was. A pending
  // interrupt is raised again, and so is the transmitter's if it is enabled: the byte it was to
  // report may have been in flight when the state was saved.
  [[nodiscard]] Result<void> Restore(const SerialState& state) EXCLUDES(lock_);
  [[nodiscard]] const SerialCounters& counters() const { return counters_; }
  void ReportCounters(CounterSink& sink) EXCLUDES(lock_);

 private:
  // bus::RegisterOwner
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override REQUIRES(lock_);
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override REQUIRES(lock_);

  [[nodiscard]] bus::RegisterFile& Bank(std::uint64_t offset) REQUIRES(lock_);
  [[nodiscard]] std::uint8_t Get(std::uint32_t offset) const REQUIRES(lock_);
  [[nodiscard]] bool InLoopback() const REQUIRES(lock_);
  [[nodiscard]] std::size_t Space() REQUIRES(lock_);
  // Which interrupt IIR reports.
  [[nodiscard]] std::uint8_t Identify() const REQUIRES(lock_);
  // Pulses the line when it goes from idle to pending.
  void UpdateLine() REQUIRES(lock_);
  void Transmit(std::uint8_t byte) REQUIRES(lock_);
  [[nodiscard]] std::uint8_t Receive() REQUIRES(lock_);
  void ControlFifo(std::uint8_t written) REQUIRES(lock_);
  void TellSpace() REQUIRES(lock_);
  [[nodiscard]] std::uint8_t LineStatus() const REQUIRES(lock_);
  [[nodiscard]] std::uint8_t ModemStatus(std::uint8_t lines) const REQUIRES(lock_);

  bus::IrqLine& irq_;
  SerialSink& sink_;
  Mutex lock_;
  bus::RegisterFile registers_ GUARDED_BY(lock_);
  bus::RegisterFile divisor_ GUARDED_BY(lock_);
  ByteRing input_ GUARDED_BY(lock_){kFifoSize};
  bool fifos_enabled_ GUARDED_BY(lock_) = false;
  bool transmitter_empty_ GUARDED_BY(lock_) = false;  // an unacknowledged THRE event
  bool overrun_ GUARDED_BY(lock_) = false;
  bool line_pending_ GUARDED_BY(lock_) = false;
  bool feeder_waits_ GUARDED_BY(lock_) = false;
  SerialCounters counters_;
};

}  // namespace postern::serial
