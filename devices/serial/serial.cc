#include "devices/serial/serial.h"

#include <algorithm>
#include <array>
#include <utility>

#include "devices/serial/serial_regs.h"

namespace postern::serial {
namespace {

constexpr std::uint8_t kStateTransmitterEmpty = 0x2;
constexpr std::uint8_t kStateDataAvailable = 0x4;
constexpr std::uint8_t kStateNone = 0x1;
constexpr std::uint8_t kStateFifosEnabled = 0xc0;

constexpr std::uint8_t kLineStatusBits = 0x63;
constexpr std::uint8_t kModemStatusLines = 0xf0;

bool IsPossible(const SerialState& state) {
  const auto within = [](std::uint8_t value, std::uint64_t bits) { return (value & ~bits) == 0; };
  const bool data_ready = LSR{{state.line_status}}.Get<LSR::DataReady>();
  return state.in_buffer.size() <= kFifoSize && data_ready != state.in_buffer.empty() &&
         within(state.interrupt_enable, kRegisters[kIer].writable) &&
         within(state.interrupt_identification, kStateFifosEnabled | 0x0f) &&
         within(state.line_status, kLineStatusBits) &&
         within(state.modem_control, kRegisters[kMcr].writable) &&
         within(state.modem_status, kModemStatusLines);
}

}  // namespace

Serial::Serial(bus::IrqLine& irq, SerialSink& sink)
    : irq_(irq),
      sink_(sink),
      registers_(kRegisters, *this, "serial"),
      divisor_(kDivisorRegisters, *this, "serial") {}

bus::RegisterFile& Serial::Bank(std::uint64_t offset) {
  const bool divisor = LCR{{Get(kLcr)}}.Get<LCR::DivisorLatchAccess>();
  return divisor && offset <= kDlm ? divisor_ : registers_;
}

void Serial::Read(std::uint64_t offset, std::span<std::byte> data) {
  Bank(offset).Read(offset, data);
}

void Serial::Write(std::uint64_t offset, std::span<const std::byte> data) {
  Bank(offset).Write(offset, data);
}

std::uint8_t Serial::Get(std::uint32_t offset) const {
  return static_cast<std::uint8_t>(registers_.Get(offset));
}

bool Serial::InLoopback() const {
  return MCR{{Get(kMcr)}}.Get<MCR::Loopback>();
}

void Serial::OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
                     std::uint64_t written) {
  switch (row.offset) {
    case kRbrThr:
      Transmit(static_cast<std::uint8_t>(written));
      break;
    case kIer: {
      // Enabling the interrupt while the holding register is empty raises it (data sheet 8.4).
      const bool was = IER{{static_cast<std::uint8_t>(old)}}.Get<IER::TransmitterEmpty>();
      const bool is = IER{{static_cast<std::uint8_t>(now)}}.Get<IER::TransmitterEmpty>();
      if (!was && is) transmitter_empty_ = true;
      break;
    }
    case kIirFcr:
      ControlFifo(static_cast<std::uint8_t>(written));
      break;
    case kMcr:
      if (!InLoopback()) TellSpace();
      break;
    default:
      return;
  }
  UpdateLine();
}

std::uint64_t Serial::OnRead(const bus::RegisterRow& row, std::uint64_t stored) {
  switch (row.offset) {
    case kRbrThr: {
      const std::uint8_t byte = Receive();
      UpdateLine();
      return byte;
    }
    case kIirFcr: {
      const std::uint8_t id = Identify();
      // Data sheet 8.5: reading IIR acknowledges the transmitter's interrupt if that is what it
      // shows.
      if (id == kIirTransmitterEmpty) transmitter_empty_ = false;
      UpdateLine();
      IIR iir;
      iir.Set<IIR::Identification>(id);
      iir.Set<IIR::FifosEnabled>(fifos_enabled_ ? kIirFifosOn : 0);
      return iir.raw;
    }
    case kLsr: {
      const std::uint8_t status = LineStatus();
      overrun_ = false;
      UpdateLine();
      return status;
    }
    case kMsr:
      return ModemStatus(static_cast<std::uint8_t>(stored));
    default:
      return stored;
  }
}

std::uint8_t Serial::Identify() const {
  const IER enabled{{Get(kIer)}};
  if (enabled.Get<IER::LineStatus>() && overrun_) return kIirLineStatus;
  if (enabled.Get<IER::DataAvailable>() && !input_.empty()) return kIirDataAvailable;
  if (enabled.Get<IER::TransmitterEmpty>() && transmitter_empty_) return kIirTransmitterEmpty;
  return kIirNone;
}

void Serial::UpdateLine() {
  const bool pending = Identify() != kIirNone;
  if (pending && !line_pending_) {
    counters_.interrupts.Add();
    irq_.trigger().Signal();
  }
  line_pending_ = pending;
}

void Serial::Transmit(std::uint8_t byte) {
  // A write takes the transmitter's interrupt away and, as the byte is gone at once, the interrupt
  // comes back: an edge of its own.
  transmitter_empty_ = false;
  UpdateLine();
  const auto value = static_cast<std::byte>(byte);
  if (InLoopback()) {
    // CVE-2020-27173: the FIFO is bounded here as it is for the host's input.
    if (input_.Write(std::span(&value, 1)) == 0) {
      overrun_ = true;
      counters_.overruns.Add();
    }
  } else if (sink_.Transmit(value)) {
    counters_.written_bytes.Add();
  } else {
    counters_.lost_bytes.Add();
  }
  transmitter_empty_ = true;
}

std::uint8_t Serial::Receive() {
  std::byte byte{0};
  if (input_.Read(std::span(&byte, 1)) == 0) return 0;
  counters_.read_bytes.Add();
  if (input_.size() <= kFifoSize / 2) TellSpace();
  return std::to_integer<std::uint8_t>(byte);
}

void Serial::ControlFifo(std::uint8_t written) {
  const FCR control{{written}};
  const bool enable = control.Get<FCR::Enable>();
  // Data sheet 8.6: the other bits count only together with the enable bit; switching modes clears
  // the FIFOs.
  if (enable != std::exchange(fifos_enabled_, enable) ||
      (enable && control.Get<FCR::ClearReceiver>())) {
    input_.Clear();
    TellSpace();
  }
}

void Serial::TellSpace() {
  if (InLoopback()) return;
  if (std::exchange(feeder_waits_, false)) sink_.OnInputSpace();
}

std::uint8_t Serial::LineStatus() const {
  LSR status;
  status.Set<LSR::TransmitterIdle>(true);
  status.Set<LSR::TransmitterHoldingEmpty>(true);
  status.Set<LSR::Overrun>(overrun_);
  status.Set<LSR::DataReady>(!input_.empty());
  return status.raw;
}

std::uint8_t Serial::ModemStatus(std::uint8_t lines) const {
  if (!InLoopback()) return lines;
  // Data sheet 8.7: in loopback the modem lines are the control outputs.
  const MCR control{{Get(kMcr)}};
  MSR status;
  status.Set<MSR::CarrierDetect>(control.Get<MCR::Out2>());
  status.Set<MSR::RingIndicator>(control.Get<MCR::Out1>());
  status.Set<MSR::DataSetReady>(control.Get<MCR::DataTerminalReady>());
  status.Set<MSR::ClearToSend>(control.Get<MCR::RequestToSend>());
  return status.raw;
}

std::size_t Serial::Space() {
  const std::size_t space = InLoopback() ? 0 : input_.room();
  // Whoever sees no room waits to be told of some.
  if (space == 0) feeder_waits_ = true;
  return space;
}

std::size_t Serial::InputSpace() {
  const MutexLock lock(lock_);
  return Space();
}

std::size_t Serial::Enqueue(std::span<const std::byte> input) {
  const MutexLock lock(lock_);
  const std::size_t taken = std::min(Space(), input.size());
  input_.Write(input.first(taken));
  if (taken < input.size()) feeder_waits_ = true;
  UpdateLine();
  return taken;
}

SerialState Serial::Save() {
  const MutexLock lock(lock_);
  SerialState state;
  state.baud_divisor_low = static_cast<std::uint8_t>(divisor_.Get(kDll));
  state.baud_divisor_high = static_cast<std::uint8_t>(divisor_.Get(kDlm));
  state.interrupt_enable = Get(kIer);
  std::uint8_t pending = 0;
  if (transmitter_empty_) pending |= kStateTransmitterEmpty;
  if (!input_.empty()) pending |= kStateDataAvailable;
  if (pending == 0) pending = kStateNone;
  state.interrupt_identification =
      static_cast<std::uint8_t>(pending | (fifos_enabled_ ? kStateFifosEnabled : 0));
  state.line_control = Get(kLcr);
  state.line_status = LineStatus();
  state.modem_control = Get(kMcr);
  state.modem_status = Get(kMsr);
  state.scratch = Get(kScr);
  for (const iovec& part : input_.Contents()) {
    const auto* bytes = static_cast<const std::uint8_t*>(part.iov_base);
    state.in_buffer.insert(state.in_buffer.end(), bytes, bytes + part.iov_len);
  }
  return state;
}

Result<void> Serial::Restore(const SerialState& state) {
  const MutexLock lock(lock_);
  if (!IsPossible(state)) return Err(Errc::kBadFormat, "serial state");
  // RBR, IIR and LSR hold no value of their own.
  TRY(registers_.Load(std::array<std::uint64_t, 8>{0, state.interrupt_enable, 0, state.line_control,
                                                   state.modem_control, 0, state.modem_status,
                                                   state.scratch}));
  TRY(divisor_.Load(std::array<std::uint64_t, 2>{state.baud_divisor_low, state.baud_divisor_high}));
  input_.Clear();
  input_.Write(std::as_bytes(std::span(state.in_buffer)));
  fifos_enabled_ = (state.interrupt_identification & kStateFifosEnabled) == kStateFifosEnabled;
  overrun_ = LSR{{state.line_status}}.Get<LSR::Overrun>();
  transmitter_empty_ = (state.interrupt_identification & kStateTransmitterEmpty) != 0 ||
                       IER{{state.interrupt_enable}}.Get<IER::TransmitterEmpty>();
  line_pending_ = false;
  UpdateLine();
  TellSpace();
  return {};
}

void Serial::ReportCounters(CounterSink& sink) {
  sink.Add("read_bytes", counters_.read_bytes.Get());
  sink.Add("written_bytes", counters_.written_bytes.Get());
  sink.Add("lost_bytes", counters_.lost_bytes.Get());
  sink.Add("overruns", counters_.overruns.Get());
  sink.Add("interrupts", counters_.interrupts.Get());
  const MutexLock lock(lock_);
  sink.Add("refused_accesses", registers_.refused() + divisor_.refused());
}

}  // namespace postern::serial
