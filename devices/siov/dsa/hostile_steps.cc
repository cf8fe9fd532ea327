#include "devices/siov/dsa/hostile_steps.h"

#include <array>
#include <cstddef>
#include <vector>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/dsa_rig.h"
#include "src/base/check.h"

namespace postern::dsa {
namespace {

constexpr std::size_t kStep = 8;

struct Step {
  std::array<std::uint8_t, kStep> b{};

  [[nodiscard]] std::uint32_t word(std::size_t at) const {
    return b[at] | std::uint32_t{b[at + 1]} << 8;
  }
  // Values near those that mean something more often than any.
  [[nodiscard]] std::uint64_t value() const {
    const std::uint64_t raw = std::uint64_t{word(4)} | std::uint64_t{word(6)} << 16;
    switch (b[3] & 0xe0) {
      case 0x00:
        return raw & 0x3f;
      case 0x20:
        return std::uint64_t{1} << (raw % 64);
      case 0x40:
        return ~std::uint64_t{0};
      case 0x60:
        return 0xa1;
      case 0x80:
        return 21 | 5 << 5;
      default:
        return raw * 0x1'0000'0001;
    }
  }
};

DsaOptions OptionsOf(std::uint8_t byte) {
  DsaOptions options;
  options.profile = (byte & 1) != 0 ? DsaProfile::kConfigurable : DsaProfile::kReadOnly;
  options.event_log = (byte & 2) == 0;
  options.handles = (byte & 4) != 0;
  options.operations_config = (byte & 8) != 0;
  options.mode_support = (byte & 16) == 0;
  options.wqs = 1 + (byte >> 5);
  if (options.profile == DsaProfile::kReadOnly) options.wq_size = 16;
  return options;
}

// A configuration that can be enabled, from which to go wrong.
void ConfigureWell(DsaRig& rig) {
  const DsaShape& shape = rig.dsa().shape();
  const DsaRegisters at(rig.file(), shape);
  for (std::uint32_t queue = 0; queue < shape.wqs; ++queue) {
    rig.Write32(at.OfQueue(queue, dsa_regs::kWqSize), 8);
    rig.Write32(at.OfQueue(queue, dsa_regs::kWqMode), 0xa1);
    rig.Write32(at.OfQueue(queue, dsa_regs::kWqLimits), 21 | 5 << 5);
  }
  rig.Write64(dsa_regs::kGrpcfg, (std::uint64_t{1} << shape.wqs) - 1);
  rig.Write64(dsa_regs::kGrpcfg + dsa_regs::kGrpEngines, 1);
  rig.Write32(dsa_regs::kCmd, 1U << 20);
}

// What is saved comes back and goes on; with anything changed it is refused or taken, no more.
void SaveAndRestore(DsaRig& rig, const DsaOptions& options, const Step& step) {
  // Answers on their way belong to the back end that is left behind.
  DsaRig restored(options);
  CHECK(restored.RestoreFrom(rig).has_value());
  CHECK(restored.file().Save() == rig.file().Save());
  CHECK(restored.dsa().Save().words == rig.dsa().Save().words);
  restored.CheckInvariants();
  for (int i = 0; i < 4; ++i) {
    restored.scripted().CompleteAll();
    restored.RunPosted();
  }
  CHECK((restored.Read32(dsa_regs::kCmdstatus) & 0x8000'0000) == 0);
  restored.CheckInvariants();

  DsaRig spoiled(options);
  spoiled.scripted().SetLenient();
  spoiled.SetBusMaster(true);
  std::vector<std::uint64_t> values = rig.file().Save();
  siov::PersonalityState state = rig.dsa().Save();
  values[step.word(1) % values.size()] ^= step.value();
  if ((step.b[0] & 0x10) != 0) state.words[step.b[1] % state.words.size()] ^= step.value();
  if (!spoiled.Restore(values, state).has_value()) return;
  for (std::uint32_t code = 1; code < 15; ++code) static_cast<void>(spoiled.Command(code, 1, true));
}

void RunBackend(DsaRig& rig, const Step& step) {
  switch (step.b[1] & 7) {
    case 0:
      rig.dsa().OnRefused(step.b[2] % 10, siov::SubmitResult::kFull);
      return;
    case 1:
      rig.dsa().OnRefused(step.b[2] % 10, siov::SubmitResult::kDisabled);
      return;
    case 2:
      rig.dsa().OnError({.queue = step.b[2] % 10U, .words = {step.value(), step.value(), 0, 1}});
      return;
    case 3:
      rig.scripted().FailNext((step.b[2] & 1) != 0 ? Errc::kSystem : Errc::kInvalidArgument);
      return;
    case 4:
      rig.scripted().SetOccupancy(step.word(2) * 3);
      return;
    case 5:
      rig.scripted().SetImmediate((step.b[2] & 1) != 0);
      return;
    case 6:
      rig.scripted().SetNextHandle(step.b[2] < 16 ? 0x1'0000U : step.word(2));
      return;
    default:
      rig.dsa().OnHandlesRevoked();
  }
}

// False when the device is beyond saving.
bool Run(DsaRig& rig, const DsaOptions& options, const Step& step) {
  const auto rows = rig.dsa().rows();
  const bus::RegisterRow& row = rows[step.word(1) % rows.size()];
  const std::uint32_t code = step.b[1] % 18;
  constexpr std::array<std::size_t, 8> kWidths{4, 4, 4, 8, 8, 1, 2, 3};
  const std::size_t width = kWidths[step.b[3] % kWidths.size()];
  switch (step.b[0] & 0xf) {
    case 0:
    case 1:
    case 2:
      rig.Write(row.offset, row.width, step.value());
      break;
    case 3:
      rig.Write(row.offset + step.b[4] % 8U, width, step.value());
      break;
    case 4:
      static_cast<void>(rig.Read(step.word(1) % 0x1'0000, width));
      break;
    case 5:
    case 6:
    case 7:
      rig.Write32(dsa_regs::kCmd, code << 20 | (step.b[2] & 0x1fU) |
                                      (step.b[3] >= 0xf0 ? step.word(4) << 8 : 0) |
                                      std::uint32_t{step.b[3] & 1U} << 31);
      break;
    case 8:
    case 9:
      if (rig.scripted().waiting() != 0) rig.scripted().CompleteNext();
      break;
    case 10:
      rig.RunPosted();
      break;
    case 11:
      rig.SetBusMaster(step.b[1] >= 32);
      break;
    case 12:
      RunBackend(rig, step);
      break;
    case 13:
      if (step.b[1] < 8) rig.FunctionReset();
      if (step.b[1] == 255 && step.b[2] >= 0xf0) {
        rig.Lose();
        return false;
      }
      break;
    case 14:
      ConfigureWell(rig);
      break;
    default:
      SaveAndRestore(rig, options, step);
  }
  return true;
}

}  // namespace

void RunHostileSteps(std::span<const std::uint8_t> bytes) {
  if (bytes.empty()) return;
  const DsaOptions options = OptionsOf(bytes[0]);
  DsaRig rig(options);
  bytes = bytes.subspan(1);
  bool lost = false;
  while (bytes.size() >= kStep) {
    Step step;
    for (std::size_t i = 0; i < kStep; ++i) step.b[i] = bytes[i];
    bytes = bytes.subspan(kStep);
    // A lost device is only asked, not saved.
    if (lost && ((step.b[0] & 0xf) > 10)) continue;
    lost = !Run(rig, options, step) || lost;
    rig.CheckInvariants();
  }
}

}  // namespace postern::dsa
