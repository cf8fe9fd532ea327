#include "devices/siov/core/fake_personality.h"

namespace postern::siov {
namespace {

using F = FakePersonality;

// clang-format off
constexpr auto kRows = std::to_array<bus::RegisterRow>({
  // offset        width name          writable           w1c            reset        on access
  {F::kId,         4,    "ID",         0,                 0,             F::kIdValue, bus::kNone},
  {F::kCapability, 8,    "CAPABILITY", 0,                 0,             0x1234,      bus::kNone},
  {F::kControl,    4,    "CONTROL",    0xf,               0,             0,           bus::kNone},
  {F::kEvents,     4,    "EVENTS",     0,                 F::kAllEvents, 0,           bus::kNone},
  {F::kCommand,    4,    "COMMAND",    0,                 0,             0,           bus::kOnWrite},
  {F::kResult,     4,    "RESULT",     0,                 0,             0,           bus::kNone},
  {F::kError,      8,    "ERROR",      0,                 0,             0,           bus::kNone},
  {F::kCount,      4,    "COUNT",      0,                 0,             0,           bus::kOnRead},
  {F::kScratch,    8,    "SCRATCH",    ~std::uint64_t{0}, 0,             0,           bus::kNone},
  {F::kSize,       4,    "SIZE",       0x3f,              0,             32,          bus::kNone},
});
static_assert(bus::IsWellFormed(kRows));
// clang-format on

constexpr std::uint32_t kCodeBits = 8;

}  // namespace

VdevLayout FakePersonality::DefaultLayout() {
  VdevLayout layout;
  layout.identity = {.vendor = 0x1234, .device = 0x5678, .revision = 1, .class_code = 0x088000};
  layout.vectors = 5;
  layout.queues = 3;
  return layout;
}

std::span<const bus::RegisterRow> FakePersonality::rows() const {
  return kRows;
}

void FakePersonality::Raise(std::uint32_t event) {
  bus::RegisterFile& registers = port_->registers();
  registers.Set(kEvents, registers.Get(kEvents) | event);
  port_->Trigger(0);
}

void FakePersonality::Finish(bool failed, std::uint32_t value) {
  port_->registers().Set(kResult, (failed ? kFailed : 0) | (value & 0xffff));
  Raise(kDoneEvent);
}

void FakePersonality::OnWrite(const bus::RegisterRow& row, std::uint64_t /*old*/,
                              std::uint64_t /*now*/, std::uint64_t written) {
  if (row.offset != kCommand) return;
  if ((port_->registers().Get(kResult) & kActive) != 0) return;
  port_->registers().Set(kResult, kActive);
  Run(static_cast<FakeCommand>(written & 0xff), static_cast<std::uint32_t>(written >> kCodeBits));
}

void FakePersonality::Run(FakeCommand command, std::uint32_t argument) {
  Backend& backend = port_->backend();
  switch (command) {
    case FakeCommand::kStart:
      Finish(!port_->bus_master() || !backend.Start({{{.queues = 1, .engines = 1}}}));
      return;
    case FakeCommand::kStop:
      backend.Stop();
      Finish(false);
      return;
    case FakeCommand::kEnable: {
      const auto size = static_cast<std::uint32_t>(port_->registers().Get(kSize));
      Finish(argument >= layout_.queues || !backend.Enable(argument, {.size = size}));
      return;
    }
    case FakeCommand::kDisable:
    case FakeCommand::kDrain:
    case FakeCommand::kAbort:
      if (argument >= layout_.queues) {
        Finish(true);
      } else {
        RunHalt(command, QueueSet{1} << argument);
      }
      return;
    default:
      RunHandle(command, argument);
  }
}

void FakePersonality::RunHalt(FakeCommand command, QueueSet queues) {
  Done done = port_->Later([this](HaltResult result) { Finish(result != HaltResult::kDone); });
  Backend& backend = port_->backend();
  if (command == FakeCommand::kDisable) return backend.Disable(queues, std::move(done));
  if (command == FakeCommand::kDrain) return backend.Drain(queues, std::move(done));
  backend.Abort(queues, std::move(done));
}

void FakePersonality::RunHandle(FakeCommand command, std::uint32_t argument) {
  if (command == FakeCommand::kOpenHandle) {
    const Result<std::uint32_t> handle = port_->OpenHandle(static_cast<std::uint16_t>(argument));
    Finish(!handle, handle.value_or(0));
  } else if (command == FakeCommand::kCloseHandle) {
    Finish(!port_->CloseHandle(argument));
  } else {
    Finish(true);
  }
}

std::uint64_t FakePersonality::OnRead(const bus::RegisterRow& row, std::uint64_t stored) {
  return row.offset == kCount ? ++count_ : stored;
}

void FakePersonality::OnBusMaster(bool on) {
  ++bus_master_changes;
  if (on == port_->bus_master()) Raise(kBusMasterEvent);
}

void FakePersonality::OnReset() {
  ++resets;
  count_ = 0;
}

void FakePersonality::OnError(const ErrorRecord& record) {
  ++errors;
  port_->registers().Set(kError, record.words[0]);
  Raise(kErrorEvent);
}

void FakePersonality::OnRefused(std::uint32_t /*queue*/, SubmitResult why) {
  ++refused;
  last_refused = why;
  Raise(kRefusedEvent);
}

PersonalityState FakePersonality::Save() const {
  return {.version = 1, .words = {count_}};
}

Result<void> FakePersonality::Restore(const PersonalityState& state) {
  if (state.version != 1 || state.words.size() != 1)
    return Err(Errc::kBadFormat, "ring of nothing's state");
  count_ = state.words[0];
  return {};
}

void FakePersonality::ReportCounters(CounterSink& sink) const {
  sink.Add("nothing", 0);
}

}  // namespace postern::siov
