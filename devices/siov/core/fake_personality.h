#pragma once

// FakePersonality: a ring of nothing, for tests: a device with ten registers and commands that go
// to the backend, and no meaning.
//
//   CONTROL, SCRATCH, SIZE  hold what is written (SIZE: entries of a queue that is enabled)
//   COMMAND                 code | queue or vector << 8; while one is active others are ignored
//   RESULT                  bit 31: active; 30: failed; 15:0: the handle that was opened
//   EVENTS                  write 1 to clear; each event triggers vector 0
//   ERROR                   words[0] of the last error record
//   COUNT                   how often it was read
//
// Threads: as Personality.

#include <array>
#include <cstdint>
#include <string>

#include "devices/siov/core/personality.h"

namespace postern::siov {

enum class FakeCommand : std::uint8_t {
  kStart = 1,
  kStop,
  kEnable,
  kDisable,
  kDrain,
  kAbort,
  kOpenHandle,
  kCloseHandle,
};

class FakePersonality final : public Personality {
 public:
  static constexpr std::uint32_t kId = 0x00, kCapability = 0x08, kControl = 0x10, kEvents = 0x14,
                                 kCommand = 0x18, kResult = 0x1c, kError = 0x20, kCount = 0x28,
                                 kScratch = 0x30, kSize = 0x38;
  static constexpr std::uint32_t kIdValue = 0x676e6972;
  static constexpr std::uint32_t kActive = 1U << 31;
  static constexpr std::uint32_t kFailed = 1U << 30;
  // EVENTS.
  static constexpr std::uint32_t kErrorEvent = 1, kDoneEvent = 2, kLostEvent = 4, kRevokedEvent = 8,
                                 kRefusedEvent = 16, kBusMasterEvent = 32;
  static constexpr std::uint32_t kAllEvents = 63;

  explicit FakePersonality(const VdevLayout& layout = DefaultLayout()) : layout_(layout) {}
  [[nodiscard]] static VdevLayout DefaultLayout();

  [[nodiscard]] std::string name() const override { return "ring-of-nothing"; }
  [[nodiscard]] const VdevLayout& layout() const override { return layout_; }
  [[nodiscard]] std::span<const bus::RegisterRow> rows() const override;
  void Bind(VdevPort& port) override { port_ = &port; }
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override;
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override;
  void OnBusMaster(bool on) override;
  void OnReset() override;
  void OnError(const ErrorRecord& record) override;
  void OnRefused(std::uint32_t queue, SubmitResult why) override;
  void OnHandlesRevoked() override { Raise(kRevokedEvent); }
  void OnLost() override { Raise(kLostEvent); }
  [[nodiscard]] PersonalityState Save() const override;
  [[nodiscard]] Result<void> Restore(const PersonalityState& state) override;
  void ReportCounters(CounterSink& sink) const override;

  // --- what the test sees, with the function's lock ---
  std::uint32_t resets = 0;
  std::uint32_t errors = 0;
  std::uint32_t refused = 0;
  SubmitResult last_refused = SubmitResult::kAccepted;
  std::uint32_t bus_master_changes = 0;

 private:
  void Raise(std::uint32_t event);
  void Finish(bool failed, std::uint32_t value = 0);
  void Run(FakeCommand command, std::uint32_t argument);
  void RunHalt(FakeCommand command, QueueSet queues);
  void RunHandle(FakeCommand command, std::uint32_t argument);

  VdevLayout layout_;
  VdevPort* port_ = nullptr;
  std::uint64_t count_ = 0;
};

}  // namespace postern::siov
