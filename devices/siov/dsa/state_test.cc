#include <cstdint>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/dsa_rig.h"
#include "devices/siov/dsa/hostile_steps.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

constexpr DsaOptions kRo{.wqs = 2, .wq_size = 16, .handles = true};

void Enable(DsaRig& rig) {
  CHECK(rig.Command(1) == 0);
  CHECK(rig.Command(6, 0) == 0);
  CHECK(rig.Command(6, 1) == 0);
  rig.Write32(dsa_regs::kGenctrl, 3);
}

}  // namespace

TEST_CASE("dsa state: a device goes on elsewhere, handles and all") {
  DsaRig rig(kRo);
  Enable(rig);
  CHECK(rig.Command(13, 1) == 0x1'0000);
  rig.dsa().OnRefused(1, siov::SubmitResult::kFull);
  DsaRig other(kRo);
  REQUIRE(other.RestoreFrom(rig).has_value());
  CHECK(other.file().Save() == rig.file().Save());
  CHECK(other.Command(13, 1) == 0x1'0000);
  CHECK(other.Command(14, 0x100) == 0);
  CHECK(other.Command(7, 3) == 0);
  CHECK(other.Command(2) == 0);
  other.CheckInvariants();
}

TEST_CASE("dsa state: a command under way is issued anew, at either of its steps") {
  for (const std::uint32_t command :
       {0x0020'0000U, 0x0030'0000U, 0x0040'0000U, 0x0050'0000U, 0x0070'0002U, 0x0080'0001U,
        0x0090'0003U, 0x00a0'0003U, 0x00b0'0000U, 0x00c0'0000U}) {
    for (const int steps : {0, 1}) {
      CAPTURE(command);
      DsaRig rig(kRo);
      Enable(rig);
      rig.Write32(dsa_regs::kCmd, command | 1U << 31);
      for (int i = 0; i < steps; ++i) rig.scripted().CompleteNext();
      // The answer is not handled here: it is lost with the back end that gave it.
      DsaRig other(kRo);
      REQUIRE(other.RestoreFrom(rig).has_value());
      CHECK(other.Read32(dsa_regs::kCmdstatus) == 0x8000'0000);
      CHECK(other.TakeInterrupts() == 0);
      for (int i = 0; i < 4; ++i) {
        other.scripted().CompleteAll();
        other.RunPosted();
      }
      CHECK(other.Read32(dsa_regs::kCmdstatus) == 0);
      CHECK(other.Read32(dsa_regs::kIntcause) == 2);
      CHECK(other.TakeInterrupts() == 1);
      other.CheckInvariants();
    }
  }
}

TEST_CASE("dsa state: a cause that is held back is still shown later") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.Write32(dsa_regs::kCmd, 3U << 20 | 1U << 31);
  rig.SetBusMaster(false);
  DsaRig other(kRo);
  REQUIRE(other.RestoreFrom(rig).has_value());
  CHECK(other.Read32(dsa_regs::kIntcause) == 2);
  other.Write32(dsa_regs::kIntcause, 2);
  CHECK(other.Read32(dsa_regs::kIntcause) == 0x11);
}

TEST_CASE("dsa state: what no device could have saved is refused") {
  DsaRig rig(kRo);
  Enable(rig);
  CHECK(rig.Command(13, 1) == 0x1'0000);
  const std::vector<std::uint64_t> values = rig.file().Save();
  const siov::PersonalityState state = rig.dsa().Save();
  const auto refused =
      [&](const std::function<void(std::vector<std::uint64_t>&, siov::PersonalityState&)>& spoil) {
        std::vector<std::uint64_t> spoiled_values = values;
        siov::PersonalityState spoiled = state;
        spoil(spoiled_values, spoiled);
        DsaRig other(kRo);
        const auto restored = other.Restore(spoiled_values, spoiled);
        return !restored.has_value() && restored.error().code == Errc::kBadFormat;
      };
  const auto set = [&](std::string_view name, std::uint64_t value) {
    return refused([&](std::vector<std::uint64_t>& spoiled, siov::PersonalityState&) {
      spoiled[static_cast<std::size_t>(&rig.Row(name) - rig.dsa().rows().data())] = value;
    });
  };
  const auto word = [&](std::size_t at, std::uint64_t value) {
    return refused([&](std::vector<std::uint64_t>&, siov::PersonalityState& spoiled) {
      spoiled.words[at] = value;
    });
  };
  CHECK_FALSE(refused([](std::vector<std::uint64_t>&, siov::PersonalityState&) {}));
  CHECK(set("GENCAP", 0x815f2016));
  CHECK(set("WQCAP", 0));
  CHECK(set("OPCAP3", 1));
  CHECK(set("GENCFG", 0x1000));
  CHECK(set("GENSTS", 0));  // queues enabled, the device not
  CHECK(set("GENSTS", 2));  // draining without a command
  CHECK(set("GENSTS", 5));  // enabled, and in need of a function reset
  CHECK(set("GENSTS", 0x11));
  CHECK(set("INTCAUSE", 0x40));
  CHECK(set("CMDSTATUS", 0x8000'0000));  // a command that does not wait
  CHECK(set("CMDSTATUS", 0x0100'0000));
  CHECK(set("SWERROR0", 0x2'0001));
  CHECK(set("SWERROR0", 0x0100'0001));
  CHECK(set("EVLCFG0", 1));
  CHECK(set("MSIXPERM1", 1));
  CHECK(set("GRPCFG0.WQS0", 3 ^ 7));
  CHECK(set("WQCFG0.0", 17));
  CHECK(set("WQCFG0.2", 0xa0));
  CHECK(set("WQCFG0.4", 1));
  CHECK(set("WQCFG0.6", 0xe000'0000));  // no state
  CHECK(set("WQCFG0.6", 0xa000'0000));  // draining without a command
  CHECK(set("WQCFG0.6", 0x4000'0000));  // no mode support
  CHECK(word(0, 4));
  CHECK(word(1, 2));
  CHECK(word(2, 1));
  CHECK(word(2, 0x2'0000));
  CHECK(word(2, 0x1'0100));  // the handle of another vector
  CHECK_FALSE(word(2, 0x1'0200));
  CHECK(refused([](auto&, siov::PersonalityState& spoiled) { spoiled.version = 2; }));
  CHECK(refused([](auto&, siov::PersonalityState& spoiled) { spoiled.words.pop_back(); }));
  CHECK(refused([](auto&, siov::PersonalityState& spoiled) { spoiled.words.push_back(0); }));
  CHECK(refused([](auto&, siov::PersonalityState& spoiled) { spoiled.words.clear(); }));

  DsaRig plain({.wqs = 2, .wq_size = 16});
  siov::PersonalityState handle = plain.dsa().Save();
  handle.words[2] = 0x1'0001;
  DsaRig other({.wqs = 2, .wq_size = 16});
  CHECK_FALSE(other.Restore(plain.file().Save(), handle).has_value());

  DsaRig unmastered(kRo);
  unmastered.SetBusMaster(false);
  CHECK_FALSE(unmastered.Restore(values, state).has_value());
}

TEST_CASE("dsa: a hostile driver, back end and host") {
  for (std::uint32_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::vector<std::uint8_t> bytes(1 + 8 * 400);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    RunHostileSteps(bytes);
  }
}

}  // namespace postern::dsa
