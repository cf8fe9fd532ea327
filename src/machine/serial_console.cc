#include "src/machine/serial_console.h"

#include <algorithm>
#include <array>

#include "src/arch/x86_64/layout.h"

namespace postern {

Outcome<std::unique_ptr<SerialConsole>> SerialConsole::Create(
    const console::BackendOptions& options, EventLoop& loop, bus::Bus& ports,
    bus::InterruptSource& interrupts) {
  std::unique_ptr<SerialConsole> self(new SerialConsole(loop));
  Outcome<std::unique_ptr<console::ConsoleBackend>> backend = console::CreateBackend(options, loop);
  if (!backend) return tl::unexpected(backend.error());
  self->backend_ = std::move(*backend);
  Result<std::unique_ptr<bus::IrqLine>> line = interrupts.NewLine(x86_64::kSerialGsi);
  if (!line) return HostFailure("serial port", line.error());
  self->line_ = std::move(*line);
  serial::SerialSink& sink = *self;
  self->uart_ = std::make_unique<serial::Serial>(*self->line_, sink);
  Result<bus::Registration> registration = ports.Add(x86_64::kSerialPort, x86_64::kSerialPorts,
                                                     *self->uart_, self->uart_->lock(), "serial");
  if (!registration) return HostFailure("serial port", registration.error());
  self->registration_ = std::move(*registration);
  self->backend_->Attach(*self);
  return self;
}

SerialConsole::~SerialConsole() {
  if (uart_ != nullptr) {
    MutexLock lock(uart_->lock());
    registration_.Reset();
  }
  loop_.RunSync([this] {
    if (backend_ == nullptr) return;
    Flush();
    backend_->Detach();
    backend_.reset();
  });
}

bool SerialConsole::Transmit(std::byte byte) {
  bool post = false;
  bool taken = false;
  {
    MutexLock lock(mutex_);
    taken = output_.Write(std::span(&byte, 1)) == 1;
    post = !std::exchange(flush_posted_, true);
  }
  if (post) loop_.Post([this] { Flush(); });
  return taken;
}

void SerialConsole::OnInputSpace() {
  loop_.Post([this] { Feed(); });
}

void SerialConsole::Feed() {
  std::array<std::byte, serial::kFifoSize> bytes{};
  while (backend_ != nullptr) {
    const std::size_t space = std::min(uart_->InputSpace(), bytes.size());
    if (space == 0) return;
    const std::size_t got = backend_->Read(std::span(bytes).first(space));
    if (got == 0) return;
    (void)uart_->Enqueue(std::span(bytes).first(got));
  }
}

void SerialConsole::Flush() {
  std::array<std::byte, 4096> bytes{};
  while (backend_ != nullptr) {
    std::size_t size = 0;
    {
      MutexLock lock(mutex_);
      flush_posted_ = false;
      for (const iovec& part : output_.Contents()) {
        const std::size_t n = std::min(part.iov_len, bytes.size() - size);
        std::copy_n(static_cast<const std::byte*>(part.iov_base), n, bytes.data() + size);
        size += n;
      }
    }
    if (size == 0) return;
    const iovec from{bytes.data(), size};
    const std::size_t written = backend_->Write(std::span(&from, 1));
    {
      MutexLock lock(mutex_);
      output_.Consume(written);
      // What is left goes out with OnWritable; until then no post is needed.
      if (written < size) {
        flush_posted_ = true;
        return;
      }
    }
  }
}

void SerialConsole::ReportCounters(CounterSink& sink) const {
  uart_->ReportCounters(sink);
}

}  // namespace postern
