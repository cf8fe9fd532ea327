#include "devices/siov/dsa/dsa_rig.h"

#include <algorithm>
#include <array>
#include <span>

#include <fmt/format.h>

#include "src/base/check.h"
#include "tests/support/counter.h"

namespace postern::dsa {

siov::BackendCaps ScriptedBackend::DefaultCaps() {
  siov::BackendCaps caps;
  caps.queues = 8;
  caps.entries = 128;
  caps.engines = 4;
  caps.operations = {0x1003f03ff, 0, 0, 0};
  caps.max_transfer = std::uint64_t{1} << 31;
  caps.max_batch = 1024;
  caps.saves = true;
  return caps;
}

void ScriptedBackend::CompleteNext(siov::HaltResult result) {
  CHECK(!waiting_.empty());
  const Waiting next = std::move(waiting_.front());
  waiting_.pop_front();
  for (std::uint32_t queue = 0; queue < caps_.queues; ++queue) {
    if ((next.disables >> queue & 1) != 0) queues_.erase(queue);
  }
  next.done(result);
}

void ScriptedBackend::CompleteAll() {
  while (!waiting_.empty()) CompleteNext();
}

siov::QueueSet ScriptedBackend::enabled() const {
  siov::QueueSet set = 0;
  for (const auto& [queue, config] : queues_) set |= siov::QueueSet{1} << queue;
  return set;
}

void ScriptedBackend::Vanish() {
  waiting_.clear();
  queues_.clear();
  handles_.clear();
  started_ = false;
}

void ScriptedBackend::CopyFrom(const ScriptedBackend& other) {
  queues_ = other.queues_;
  handles_ = other.handles_;
  device_ = other.device_;
  next_handle_ = other.next_handle_;
  started_ = other.started_;
}

Result<bus::HostPages> ScriptedBackend::OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                   siov::PortalMode mode) {
  (void)queue;
  (void)page;
  (void)mode;
  return Err(Errc::kUnsupported, "scripted portal");
}

siov::SubmitResult ScriptedBackend::Submit(std::uint32_t queue,
                                           const siov::Descriptor& descriptor) {
  (void)descriptor;
  return queues_.contains(queue) ? siov::SubmitResult::kAccepted : siov::SubmitResult::kDisabled;
}

Result<void> ScriptedBackend::Start(const siov::DeviceConfig& config) {
  CHECK(!started_ || lenient_);
  calls_.emplace_back("Start");
  if (const auto error = TakeFailure(); error.has_value()) return Err(*error, "scripted start");
  device_ = config;
  started_ = true;
  return {};
}

void ScriptedBackend::Stop() {
  CHECK((started_ && queues_.empty() && waiting_.empty()) || lenient_);
  calls_.emplace_back("Stop");
  started_ = false;
}

Result<void> ScriptedBackend::Enable(std::uint32_t queue, const siov::QueueConfig& config) {
  CHECK((started_ && queue < caps_.queues && !queues_.contains(queue)) || lenient_);
  CHECK(config.size > 0 && config.size <= caps_.entries);
  CHECK(config.max_transfer <= caps_.max_transfer && config.max_batch <= caps_.max_batch);
  calls_.push_back(fmt::format("Enable {}", queue));
  if (const auto error = TakeFailure(); error.has_value()) return Err(*error, "scripted enable");
  queues_[queue] = config;
  return {};
}

void ScriptedBackend::Halt(const char* what, siov::QueueSet queues, siov::QueueSet disables,
                           siov::Done done) {
  calls_.push_back(fmt::format("{} {:#x}", what, queues));
  waiting_.push_back({disables, std::move(done)});
  if (immediate_) CompleteNext();
}

void ScriptedBackend::Drain(siov::QueueSet queues, siov::Done done) {
  Halt("Drain", queues, 0, std::move(done));
}

void ScriptedBackend::Disable(siov::QueueSet queues, siov::Done done) {
  Halt("Disable", queues, queues, std::move(done));
}

void ScriptedBackend::Abort(siov::QueueSet queues, siov::Done done) {
  Halt("Abort", queues, 0, std::move(done));
}

void ScriptedBackend::Reset() {
  calls_.emplace_back("Reset");
  Vanish();
}

Result<std::uint32_t> ScriptedBackend::OpenHandle(std::uint16_t vector) {
  if (const auto error = TakeFailure(); error.has_value()) return Err(*error, "scripted handle");
  const std::uint32_t handle = next_handle_++;
  calls_.push_back(fmt::format("OpenHandle {} = {:#x}", vector, handle));
  handles_[handle] = vector;
  return handle;
}

void ScriptedBackend::CloseHandle(std::uint32_t handle) {
  calls_.push_back(fmt::format("CloseHandle {:#x}", handle));
  CHECK(handles_.erase(handle) == 1);
}

std::uint32_t ScriptedBackend::Occupancy(std::uint32_t queue) const {
  CHECK(queue < caps_.queues);
  return occupancy_;
}

Result<siov::BackendState> ScriptedBackend::Save() {
  return siov::BackendState{};
}

Result<void> ScriptedBackend::Restore(const siov::BackendState& state) {
  (void)state;
  return {};
}

DsaRig::DsaRig(const DsaOptions& options, const siov::BackendCaps& caps) : backend_(caps) {
  auto created = DsaPersonality::Create(options, caps);
  CHECK(created.has_value());
  dsa_ = std::move(*created);
  bus::RegisterOwner& owner = *this;
  file_ = std::make_unique<bus::RegisterFile>(dsa_->rows(), owner, "rig");
  dsa_->Bind(*this);
}

std::uint64_t DsaRig::Read(std::uint64_t offset, std::size_t width) {
  std::array<std::byte, 16> data{};
  CHECK(width <= data.size());
  file_->Read(offset, std::span(data).first(width));
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < std::min<std::size_t>(width, 8); ++i)
    value |= std::to_integer<std::uint64_t>(data[i]) << (8 * i);
  return value;
}

void DsaRig::Write(std::uint64_t offset, std::size_t width, std::uint64_t value) {
  std::array<std::byte, 16> data{};
  CHECK(width <= data.size());
  for (std::size_t i = 0; i < std::min<std::size_t>(width, 8); ++i)
    data[i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
  file_->Write(offset, std::span(data).first(width));
}

const bus::RegisterRow& DsaRig::Row(std::string_view name) const {
  const auto rows = dsa_->rows();
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [name](const bus::RegisterRow& row) { return row.name == name; });
  CHECK(found != rows.end());
  return *found;
}

std::uint32_t DsaRig::Command(std::uint32_t code, std::uint32_t operand, bool interrupt) {
  Write32(dsa_regs::kCmd, code << 20 | operand | (interrupt ? 1U << 31 : 0));
  // A chain of halting calls has two at most.
  for (int i = 0; i < 4; ++i) {
    backend_.CompleteAll();
    RunPosted();
  }
  return Read32(dsa_regs::kCmdstatus);
}

void DsaRig::SetBusMaster(bool on) {
  if (on == bus_master_) return;
  bus_master_ = on;
  dsa_->OnBusMaster(on);
}

void DsaRig::FunctionReset() {
  ++resets_;
  backend_.Reset();
  file_->Reset();
  bus_master_ = false;
  dsa_->OnReset();
}

void DsaRig::RunPosted() {
  while (!posted_.empty()) {
    const auto next = std::move(posted_.front());
    posted_.pop_front();
    next();
  }
}

Result<void> DsaRig::RestoreFrom(DsaRig& other) {
  bus_master_ = other.bus_master_;
  backend_.CopyFrom(other.backend_);
  return Restore(other.file_->Save(), other.dsa_->Save());
}

Result<void> DsaRig::Restore(std::span<const std::uint64_t> values,
                             const siov::PersonalityState& state) {
  TRY(file_->Load(values));
  return dsa_->Restore(state);
}

void DsaRig::Lose() {
  backend_.Vanish();
  dsa_->OnLost();
}

std::uint64_t DsaRig::counter(std::string_view name) const {
  return testing::ReportedCounter(*dsa_, name);
}

void DsaRig::CheckInvariants() {
  using dsa_regs::DeviceState;
  using dsa_regs::QueueState;
  const DsaShape& shape = dsa_->shape();
  const DsaRegisters device(*file_, shape);
  const auto status = device.Get<dsa_regs::CMDSTATUS>(dsa_regs::kCmdstatus);
  const bool active = status.Get<dsa_regs::CMDSTATUS::Active>();
  // Active alone, or an answer.
  CHECK(!active || status.raw == dsa_regs::CMDSTATUS::Active::kMask);
  CHECK((status.raw & 0x7f00'0000) == 0);
  const DeviceState state = device.device_state();
  const bool running = state == DeviceState::kEnabled || state == DeviceState::kDraining;
  CHECK(backend_.started() == running);
  CHECK(device.active_queues() == backend_.enabled() || active);
  CHECK((backend_.enabled() & ~device.active_queues()) == 0);
  CHECK(running || device.active_queues() == 0);
  CHECK(active || (state != DeviceState::kDraining && device.QueuesIn(QueueState::kDraining) == 0));
  CHECK(!running || bus_master_);
  // Linux looks it up in a table without a check.
  const auto error = device.Get<dsa_regs::SWERROR0>(dsa_regs::kSwerror);
  CHECK(error.Get<dsa_regs::SWERROR0::Queue>() < shape.wqs);
  // ... and forgets a command it is told of together with a halt.
  const auto cause = device.Get<dsa_regs::INTCAUSE>(dsa_regs::kIntcause);
  CHECK(!cause.Get<dsa_regs::INTCAUSE::Halt>() || !cause.Get<dsa_regs::INTCAUSE::Command>());
  // Read-only rows of the capabilities.
  for (std::uint32_t offset = dsa_regs::kGencap; offset < dsa_regs::kGencfg; offset += 8) {
    for (const bus::RegisterRow& row : file_->rows())
      CHECK(row.offset != offset || file_->Get(offset) == row.reset);
  }
}

bool DsaRig::CloseHandle(std::uint32_t handle) {
  if (!backend_.handles().contains(handle)) return false;
  backend_.CloseHandle(handle);
  return true;
}

void DsaRig::Trigger(std::uint16_t vector) {
  CHECK(vector == 0);
  ++interrupts_;
}

siov::Done DsaRig::Later(std::function<void(siov::HaltResult)> then) {
  return [this, resets = resets_, then = std::move(then)](siov::HaltResult result) {
    posted_.emplace_back([this, resets, then, result] {
      if (resets == resets_) then(result);
    });
  };
}

}  // namespace postern::dsa
