#pragma once

// DsaPersonality: what makes a Vdev an Intel Data Streaming Accelerator (8086:0b25): its registers,
// its commands with their checks and status codes, its error register and its interrupt causes.
//
//   auto dsa = TRY(DsaPersonality::Create({.profile = DsaProfile::kConfigurable},
//   backend->caps())); auto vdev = TRY(siov::Vdev::Create({.name = "dsa0"}, std::move(dsa),
//   std::move(backend), host));
//
// Is not: descriptors and what they do (the back end's), portals, MSI-X and config space (the
// Vdev's). Has no PASID, ATS or PRS capability, no shared queues, no interrupt message storage, no
// read-buffer controls, no occupancy interrupt. The event log, if there is one, stays empty: errors
// are in SWERROR whether the guest enabled it or not.
//
// Commands that wait for descriptors are asynchronous; everything else is done when the write
// returns. Reset Device and Reset WQ touch this Vdev's queues alone. A guest that takes bus
// mastering away, and a back end that vanishes, halt the device.
//
// State: a command under way is saved as such and issued anew by Restore, so the Vdev restores
// config space and back end before the personality.
//
// Ownership: as Personality. Threads: as Personality; ReportCounters from any.
// Source: Intel DSA Architecture Specification 3.0, chapters 3, 5, 7.5 and 9; Linux
// drivers/dma/idxd.

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/core/personality.h"
#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/dsa/register_table.h"
#include "devices/siov/dsa/registers.h"
#include "devices/siov/dsa/shape.h"
#include "src/base/counters.h"
#include "src/base/result.h"

namespace postern::dsa {

class DsaPersonality final : public siov::Personality {
 public:
  // As ShapeOf.
  [[nodiscard]] static Result<std::unique_ptr<DsaPersonality>> Create(
      const DsaOptions& options, const siov::BackendCaps& caps);

  [[nodiscard]] const DsaShape& shape() const { return shape_; }

  // --- siov::Personality ---
  [[nodiscard]] std::string name() const override;
  [[nodiscard]] const siov::VdevLayout& layout() const override { return layout_; }
  [[nodiscard]] std::span<const bus::RegisterRow> rows() const override { return table_.rows(); }
  void Bind(siov::VdevPort& port) override { port_ = &port; }
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override;
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override;
  void OnBusMaster(bool on) override;
  void OnReset() override;
  void OnError(const siov::ErrorRecord& record) override;
  void OnRefused(std::uint32_t queue, siov::SubmitResult why) override;
  void OnHandlesRevoked() override;
  void OnLost() override;
  [[nodiscard]] siov::PersonalityState Save() const override;
  [[nodiscard]] Result<void> Restore(const siov::PersonalityState& state) override;
  void ReportCounters(CounterSink& sink) const override;

 private:
  using CommandError = dsa_regs::CommandError;
  // How a command ended; nothing while it is under way.
  struct Answer {
    CommandError error = CommandError::kNone;
    std::uint16_t result = 0;
  };
  using MaybeAnswer = std::optional<Answer>;

  explicit DsaPersonality(const DsaShape& shape);
  [[nodiscard]] DsaRegisters registers() const { return {port_->registers(), shape_}; }

  // --- configuration (dsa_personality.cc) ---
  void OnQueueWrite(const bus::RegisterRow& row, std::uint64_t old);

  // --- commands (commands.cc) ---
  [[nodiscard]] bool command_active() const;
  [[nodiscard]] dsa_regs::CMD current_command() const;
  void OnCommand(std::uint32_t written);
  // What is wrong with it whatever the command.
  [[nodiscard]] CommandError CheckCommand(dsa_regs::CMD command) const;
  [[nodiscard]] CommandError CheckOperand(dsa_regs::CMD command) const;
  [[nodiscard]] MaybeAnswer Begin(dsa_regs::CMD command);
  [[nodiscard]] Answer EnableDevice();
  [[nodiscard]] Answer EnableQueue(std::uint32_t queue);
  // Whether it goes on after the write, if its checks pass.
  [[nodiscard]] static bool CommandWaits(dsa_regs::CMD command);
  // The commands that wait, once their checks passed; also after Restore.
  void Proceed();
  [[nodiscard]] siov::QueueSet AffectedQueues(dsa_regs::CMD command) const;
  void MarkDraining(dsa_regs::CMD command, siov::QueueSet queues);
  // `next` when the back end is done, unless the command ended otherwise in between.
  [[nodiscard]] siov::Done Then(std::function<void()> next);
  void Finish();
  void FinishResetDevice();
  void Complete(Answer answer);

  // --- interrupt handles (handles.cc) ---
  [[nodiscard]] Answer RequestHandle(dsa_regs::CMD command);
  [[nodiscard]] Answer ReleaseHandle(dsa_regs::CMD command);
  // All are void; true if there were any.
  bool DropHandles();

  // --- errors and interrupts (errors.cc) ---
  // Sets bits of INTCAUSE and interrupts.
  void RaiseCause(std::uint32_t cause);
  void OnCauseWritten(std::uint32_t now);
  // In SWERROR; the cause to raise for it, 0 for none.
  [[nodiscard]] std::uint32_t StoreError(const std::array<std::uint64_t, 4>& words);
  void RecordError(const std::array<std::uint64_t, 4>& words);
  void RecordError(dsa_regs::SoftwareError code, std::optional<std::uint32_t> queue);
  // `cause` is shown together with the halt's.
  void Halt(dsa_regs::ResetType required, std::uint32_t cause);

  // --- state (state.cc) ---
  [[nodiscard]] Result<void> CheckRows() const;
  [[nodiscard]] Result<void> CheckStates() const;
  [[nodiscard]] Result<void> CheckActiveCommand() const;

  const DsaShape shape_;
  const DsaRegisterTable table_;
  const siov::VdevLayout layout_;
  siov::VdevPort* port_ = nullptr;

  // By MSI-X vector: the handle the guest was given.
  std::vector<std::optional<std::uint32_t>> handles_;
  // Handles became void by a halt: the guest is told once it has reset the device.
  bool handles_void_ = false;
  // Causes that wait for another to be acknowledged (RaiseCause).
  std::uint32_t held_causes_ = 0;
  // Counts commands, resets and halts: tells a late answer of the back end.
  std::uint64_t epoch_ = 0;
  bool lost_ = false;

  std::array<Counter, dsa_regs::kCommands> commands_;
  std::array<Counter, 256> command_errors_;
  std::array<Counter, 256> software_errors_;
  Counter error_overflows_, refused_full_, refused_disabled_, halts_, locked_writes_;
};

}  // namespace postern::dsa
