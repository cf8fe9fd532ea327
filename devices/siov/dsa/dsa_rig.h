#pragma once

// DsaRig: a DsaPersonality with a register file, a back end that does what the test says and the
// driver's side of BAR 0. No Vdev, no thread, no memory.
//
//   DsaRig rig({.profile = DsaProfile::kConfigurable});
//   rig.Write32(0xa0, 5u << 20);
//   rig.scripted().CompleteAll();              // what halting calls wait for
//   CHECK(rig.Read32(0xa8) == 0);
//
// Tests only. Threads: one.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/core/personality.h"
#include "devices/siov/dsa/dsa_personality.h"
#include "src/base/counters.h"
#include "src/base/result.h"
#include "src/bus/register_map.h"

namespace postern::dsa {

// Its calls are in calls(), in words; halting calls wait for CompleteNext. What the interface does
// not allow is a CHECK.
class ScriptedBackend final : public siov::Backend {
 public:
  [[nodiscard]] static siov::BackendCaps DefaultCaps();
  explicit ScriptedBackend(const siov::BackendCaps& caps) : caps_(caps) {}

  std::vector<std::string> TakeCalls() { return std::exchange(calls_, {}); }
  [[nodiscard]] std::size_t waiting() const { return waiting_.size(); }
  void CompleteNext(siov::HaltResult result = siov::HaltResult::kDone);
  void CompleteAll();
  void SetOccupancy(std::uint32_t occupancy) { occupancy_ = occupancy; }
  // The next Start, Enable or OpenHandle fails so.
  void FailNext(Errc code) { fail_ = code; }
  // Handles are numbered from here on.
  void SetNextHandle(std::uint32_t handle) { next_handle_ = handle; }
  // Halting calls are complete when they return.
  void SetImmediate(bool immediate) { immediate_ = immediate; }

  [[nodiscard]] bool started() const { return started_; }
  [[nodiscard]] siov::QueueSet enabled() const;
  [[nodiscard]] const siov::QueueConfig& config(std::uint32_t queue) const {
    return queues_.at(queue);
  }
  [[nodiscard]] const siov::DeviceConfig& device() const { return device_; }
  [[nodiscard]] const std::map<std::uint32_t, std::uint16_t>& handles() const { return handles_; }
  // Its host's side goes away: nothing runs, nothing waiting is answered.
  void Vanish();
  // Takes calls that do not fit its state: a restored device's back end need not agree with it.
  void SetLenient() { lenient_ = true; }
  // The same queues enabled, for a restored device.
  void CopyFrom(const ScriptedBackend& other);

  // --- siov::Backend ---
  [[nodiscard]] std::string Describe() const override { return "scripted"; }
  [[nodiscard]] const siov::BackendCaps& caps() const override { return caps_; }
  void Attach(siov::BackendEvents& events) override { (void)events; }
  [[nodiscard]] Result<bus::HostPages> OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                  siov::PortalMode mode) override;
  void StopPolling(std::uint32_t queue) override { (void)queue; }
  [[nodiscard]] siov::SubmitResult Submit(std::uint32_t queue,
                                          const siov::Descriptor& descriptor) override;
  [[nodiscard]] Result<void> Start(const siov::DeviceConfig& config) override;
  void Stop() override;
  [[nodiscard]] Result<void> Enable(std::uint32_t queue, const siov::QueueConfig& config) override;
  void Drain(siov::QueueSet queues, siov::Done done) override;
  void Disable(siov::QueueSet queues, siov::Done done) override;
  void Abort(siov::QueueSet queues, siov::Done done) override;
  void Reset() override;
  [[nodiscard]] Result<std::uint32_t> OpenHandle(std::uint16_t vector) override;
  void CloseHandle(std::uint32_t handle) override;
  void SetVector(std::uint16_t vector, const EventFd* trigger) override {
    (void)vector;
    (void)trigger;
  }
  [[nodiscard]] std::uint32_t Occupancy(std::uint32_t queue) const override;
  void Quiesce() override {}
  void Resume() override {}
  [[nodiscard]] Result<siov::BackendState> Save() override;
  [[nodiscard]] Result<void> Restore(const siov::BackendState& state) override;
  void ReportCounters(CounterSink& sink) const override { (void)sink; }

 private:
  struct Waiting {
    siov::QueueSet disables = 0;
    siov::Done done;
  };
  void Halt(const char* what, siov::QueueSet queues, siov::QueueSet disables, siov::Done done);
  [[nodiscard]] std::optional<Errc> TakeFailure() { return std::exchange(fail_, std::nullopt); }

  siov::BackendCaps caps_;
  std::vector<std::string> calls_;
  std::deque<Waiting> waiting_;
  std::map<std::uint32_t, siov::QueueConfig> queues_;
  std::map<std::uint32_t, std::uint16_t> handles_;
  siov::DeviceConfig device_;
  std::optional<Errc> fail_;
  std::uint32_t next_handle_ = 0x100;
  std::uint32_t occupancy_ = 0;
  bool started_ = false;
  bool immediate_ = false;
  bool lenient_ = false;
};

class DsaRig final : private siov::VdevPort, private bus::RegisterOwner {
 public:
  explicit DsaRig(const DsaOptions& options,
                  const siov::BackendCaps& caps = ScriptedBackend::DefaultCaps());

  [[nodiscard]] DsaPersonality& dsa() { return *dsa_; }
  [[nodiscard]] ScriptedBackend& scripted() { return backend_; }
  [[nodiscard]] bus::RegisterFile& file() { return *file_; }

  // --- the driver's side ---
  [[nodiscard]] std::uint64_t Read(std::uint64_t offset, std::size_t width);
  void Write(std::uint64_t offset, std::size_t width, std::uint64_t value);
  [[nodiscard]] std::uint32_t Read32(std::uint64_t offset) {
    return static_cast<std::uint32_t>(Read(offset, 4));
  }
  [[nodiscard]] std::uint64_t Read64(std::uint64_t offset) { return Read(offset, 8); }
  void Write32(std::uint64_t offset, std::uint32_t value) { Write(offset, 4, value); }
  void Write64(std::uint64_t offset, std::uint64_t value) { Write(offset, 8, value); }
  // A row by name; CHECK that there is one.
  [[nodiscard]] const bus::RegisterRow& Row(std::string_view name) const;
  // Writes the command and lets it end; CMDSTATUS.
  std::uint32_t Command(std::uint32_t code, std::uint32_t operand = 0, bool interrupt = false);
  // Interrupts of vector 0 since the last call.
  std::uint32_t TakeInterrupts() { return std::exchange(interrupts_, 0); }
  void SetBusMaster(bool on);
  // What a function reset does.
  void FunctionReset();
  // Runs what Later posted.
  void RunPosted();
  // Registers and personality of another, which goes on with the back end's state.
  [[nodiscard]] Result<void> RestoreFrom(DsaRig& other);
  // The same from values and words as they come.
  [[nodiscard]] Result<void> Restore(std::span<const std::uint64_t> values,
                                     const siov::PersonalityState& state);
  // The back end vanishes.
  void Lose();
  // What holds after any access, in any order (CHECK).
  void CheckInvariants();
  [[nodiscard]] std::uint64_t counter(std::string_view name) const;

 private:
  // --- siov::VdevPort ---
  [[nodiscard]] bus::RegisterFile& registers() override { return *file_; }
  [[nodiscard]] siov::Backend& backend() override { return backend_; }
  [[nodiscard]] bool CloseHandle(std::uint32_t handle) override;
  void Trigger(std::uint16_t vector) override;
  [[nodiscard]] bool bus_master() const override { return bus_master_; }
  [[nodiscard]] siov::Done Later(std::function<void(siov::HaltResult)> then) override;
  // --- bus::RegisterOwner ---
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override {
    dsa_->OnWrite(row, old, now, written);
  }
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override {
    return dsa_->OnRead(row, stored);
  }

  ScriptedBackend backend_;
  std::unique_ptr<DsaPersonality> dsa_;
  std::unique_ptr<bus::RegisterFile> file_;
  std::deque<std::function<void()>> posted_;
  std::uint64_t resets_ = 0;
  std::uint32_t interrupts_ = 0;
  bool bus_master_ = true;
};

}  // namespace postern::dsa
