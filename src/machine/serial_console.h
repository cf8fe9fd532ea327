#pragma once

// SerialConsole: the 16550 on the port bus, joined to a console back end on an I/O loop.
//
// The UART transmits on vCPU threads and the back end writes on its loop's thread; a bounded buffer
// stands between. A back end slower than the guest loses the newest bytes (counted by the UART): an
// early console must never stall a vCPU. Ownership: borrows the loop, the bus and the platform.
// Threads: created and destroyed on the control thread while the loop runs.

#include <memory>

#include "devices/console_backend/backend.h"
#include "devices/serial/serial.h"
#include "src/base/byte_ring.h"
#include "src/base/event_loop.h"
#include "src/base/mutex.h"
#include "src/bus/bus.h"
#include "src/bus/platform.h"

namespace postern {

class SerialConsole final : private serial::SerialSink, private console::ConsoleClient {
 public:
  [[nodiscard]] static Outcome<std::unique_ptr<SerialConsole>> Create(
      const console::BackendOptions& options, EventLoop& loop, bus::Bus& ports,
      bus::InterruptSource& interrupts);
  ~SerialConsole() override;

  [[nodiscard]] std::string description() const { return backend_->description(); }
  void ReportCounters(CounterSink& sink) const;

 private:
  explicit SerialConsole(EventLoop& loop) : loop_(loop) {}
  // serial::SerialSink, with the UART's lock held.
  bool Transmit(std::byte byte) override;
  void OnInputSpace() override;
  // console::ConsoleClient, on the loop.
  void OnInput() override { Feed(); }
  void OnWritable() override { Flush(); }
  void Feed();
  void Flush();

  EventLoop& loop_;
  std::unique_ptr<console::ConsoleBackend> backend_;
  std::unique_ptr<bus::IrqLine> line_;
  std::unique_ptr<serial::Serial> uart_;
  bus::Registration registration_;
  Mutex mutex_;
  ByteRing output_ GUARDED_BY(mutex_){65536};
  bool flush_posted_ GUARDED_BY(mutex_) = false;
};

}  // namespace postern
