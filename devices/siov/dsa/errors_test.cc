#include <cstdint>
#include <string>
#include <vector>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/dsa_rig.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

constexpr std::uint32_t kEnableDevice = 1, kDrainAll = 3, kResetDevice = 5, kEnableWq = 6,
                        kRequestHandle = 13;
constexpr DsaOptions kRo{.wqs = 2, .wq_size = 16};

void Enable(DsaRig& rig) {
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0);
  rig.Write32(dsa_regs::kGenctrl, 3);
  static_cast<void>(rig.scripted().TakeCalls());
}

}  // namespace

TEST_CASE("dsa: SWERROR keeps the first error and counts the others") {
  DsaRig rig(kRo);
  rig.Write32(dsa_regs::kGenctrl, 1);
  rig.dsa().OnRefused(1, siov::SubmitResult::kFull);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x1'5309);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 1);
  CHECK(rig.TakeInterrupts() == 1);
  rig.dsa().OnRefused(0, siov::SubmitResult::kFull);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x1'530b);
  // 9.2.15: the interrupt is for Valid going from 0 to 1.
  CHECK(rig.TakeInterrupts() == 0);
  // Overflow alone is cleared, then Valid; the rest goes with Valid.
  rig.Write64(dsa_regs::kSwerror, 2);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x1'5309);
  rig.dsa().OnRefused(0, siov::SubmitResult::kFull);
  rig.Write64(dsa_regs::kSwerror, 1);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 2);
  rig.dsa().OnRefused(0, siov::SubmitResult::kFull);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x530b);
  CHECK(rig.TakeInterrupts() == 1);
  rig.Write64(dsa_regs::kSwerror, 3);  // as Linux acknowledges
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0);
  CHECK(rig.counter("software_error_53") == 4);
  CHECK(rig.counter("software_error_overflows") == 2);
  CHECK(rig.counter("refused_full") == 4);
}

TEST_CASE("dsa: without its enable bit an error is only in the register") {
  DsaRig rig(kRo);
  rig.dsa().OnRefused(0, siov::SubmitResult::kFull);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x5309);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0);
  CHECK(rig.TakeInterrupts() == 0);
}

TEST_CASE("dsa: a submission to a disabled queue is ignored, and counted") {
  DsaRig rig(kRo);
  rig.dsa().OnRefused(0, siov::SubmitResult::kDisabled);
  rig.dsa().OnRefused(0, siov::SubmitResult::kAccepted);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0);
  CHECK(rig.counter("refused_disabled") == 1);
}

TEST_CASE("dsa: a descriptor's error has the words of the back end and a queue that is there") {
  DsaRig rig(kRo);
  rig.dsa().OnError(
      {.queue = 1, .words = {0xffff'ffff'ff05'1a76, 0x1111, 0x2222'2222'2222'2222, 0x3333}});
  // Overflow, too: the back end's device had no room for another.
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x0fff'ffff'0001'1a7f);
  CHECK(rig.counter("software_error_overflows") == 1);
  CHECK(rig.Read64(dsa_regs::kSwerror + 8) == 0x1111);
  CHECK(rig.Read64(dsa_regs::kSwerror + 16) == 0x2222'2222'2222'2222);
  CHECK(rig.Read64(dsa_regs::kSwerror + 24) == 0x3333);
  rig.Write64(dsa_regs::kSwerror, 3);
  CHECK(rig.Read64(dsa_regs::kSwerror + 16) == 0);
  for (const std::uint32_t queue : {2U, 255U, 256U, 0xffff'ffffU}) {
    rig.dsa().OnError({.queue = queue, .words = {0xff'1108, 0, 0, 0}});
    CHECK(rig.Read64(dsa_regs::kSwerror) == 0x1101);
    rig.Write64(dsa_regs::kSwerror, 3);
    rig.dsa().OnRefused(queue, siov::SubmitResult::kFull);
    CHECK(rig.Read64(dsa_regs::kSwerror) == 0x5301);
    rig.Write64(dsa_regs::kSwerror, 3);
  }
}

TEST_CASE("dsa: taking bus mastering away halts an enabled device until it is reset") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.SetBusMaster(false);
  CHECK(rig.scripted().TakeCalls() == std::vector<std::string>{"Reset"});
  CHECK(rig.Read32(dsa_regs::kGensts) == 3);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x5101);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x11);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(rig.Read32(rig.Row("WQCFG0.6").offset) == 0x2000'0000);
  for (std::uint32_t code = 1; code <= 12; ++code) {
    if (code == kResetDevice) continue;
    CAPTURE(code);
    CHECK(rig.Command(code, code == kEnableWq ? 0 : 1) == 0x05);
  }
  CHECK(rig.Command(kResetDevice) == 0);
  CHECK(rig.Read32(dsa_regs::kGensts) == 0);
  CHECK(rig.Command(kEnableDevice) == 0x12);
  rig.SetBusMaster(true);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0);
  rig.CheckInvariants();
}

TEST_CASE("dsa: taking bus mastering away from a disabled device is no error") {
  DsaRig rig(kRo);
  rig.SetBusMaster(false);
  rig.SetBusMaster(true);
  CHECK(rig.Read32(dsa_regs::kGensts) == 0);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0);
}

TEST_CASE("dsa: a halt ends the active command, and is shown after the command's end") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.Write32(dsa_regs::kCmd, kDrainAll << 20 | 1U << 31);
  rig.SetBusMaster(false);
  CHECK(rig.Read32(dsa_regs::kCmdstatus) == 0x03);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x02);
  CHECK(rig.TakeInterrupts() == 1);
  rig.Write32(dsa_regs::kIntcause, 0x02);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x11);
  CHECK(rig.TakeInterrupts() == 1);
  // A command that comes before the halt is acknowledged waits in turn.
  CHECK(rig.Command(kDrainAll, 0, true) == 0x05);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x11);
  CHECK(rig.TakeInterrupts() == 0);
  rig.Write32(dsa_regs::kIntcause, 0x11);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x02);
  CHECK(rig.TakeInterrupts() == 1);
  rig.CheckInvariants();
}

TEST_CASE("dsa: a halt without its interrupt is in GENSTS only") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.Write32(dsa_regs::kGenctrl, 0);
  rig.SetBusMaster(false);
  CHECK(rig.Read32(dsa_regs::kGensts) == 3);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0);
  CHECK(rig.TakeInterrupts() == 0);
}

TEST_CASE("dsa: handles lost by a halt are announced after the reset") {
  DsaRig rig({.wqs = 2, .wq_size = 16, .handles = true});
  Enable(rig);
  CHECK(rig.Command(kRequestHandle, 1) == 0x1'0000);
  rig.SetBusMaster(false);
  CHECK((rig.Read32(dsa_regs::kIntcause) & 0x8000'0000) == 0);
  CHECK(rig.Command(kResetDevice) == 0);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x8000'0000);
  rig.SetBusMaster(true);
  CHECK(rig.Command(kRequestHandle, 1) == 0x1'0100);
}

TEST_CASE("dsa: a late answer of the back end belongs to no later command") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.Write32(dsa_regs::kCmd, kDrainAll << 20);
  rig.scripted().CompleteNext();
  rig.SetBusMaster(false);  // between the answer and its handling
  CHECK(rig.Read32(dsa_regs::kCmdstatus) == 0x03);
  CHECK(rig.Command(kResetDevice) == 0);
  rig.SetBusMaster(true);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0);
  rig.Write32(dsa_regs::kCmd, kDrainAll << 20);
  rig.RunPosted();
  CHECK(rig.Read32(dsa_regs::kCmdstatus) == 0x8000'0000);
}

TEST_CASE("dsa: a back end that vanishes halts the device for good") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.dsa().OnLost();
  rig.dsa().OnLost();
  CHECK(rig.Read32(dsa_regs::kGensts) == 0xf);  // halted, cold reset
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x10);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(rig.counter("halts") == 1);
  for (std::uint32_t code = 1; code <= 12; ++code) {
    CAPTURE(code);
    CHECK(rig.Command(code, code == kEnableWq ? 0 : 1) == 0x03);
  }
  CHECK(rig.Command(31) == 0x01);
  rig.FunctionReset();
  CHECK(rig.Read32(dsa_regs::kGensts) == 0xf);
  CHECK(rig.Command(kResetDevice) == 0x03);
}

TEST_CASE("dsa: a back end that vanishes under a command ends it") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.Write32(dsa_regs::kCmd, 2U << 20 | 1U << 31);
  rig.scripted().CompleteNext(siov::HaltResult::kLost);
  rig.RunPosted();
  CHECK(rig.Read32(dsa_regs::kCmdstatus) == 0x03);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x02);
  CHECK(rig.Read32(dsa_regs::kGensts) == 0xf);
  rig.Write32(dsa_regs::kIntcause, 0x02);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x10);
}

TEST_CASE("dsa: a function reset ends everything") {
  DsaRig rig(kRo);
  Enable(rig);
  rig.dsa().OnRefused(0, siov::SubmitResult::kFull);
  rig.Write32(dsa_regs::kCmd, kResetDevice << 20 | 1U << 31);
  rig.scripted().CompleteNext();
  rig.FunctionReset();
  rig.RunPosted();
  for (const bus::RegisterRow& row : rig.dsa().rows()) {
    CAPTURE(row.name);
    CHECK(rig.file().Get(row.offset) == row.reset);
  }
  rig.SetBusMaster(true);
  Enable(rig);
  rig.CheckInvariants();
}

}  // namespace postern::dsa
