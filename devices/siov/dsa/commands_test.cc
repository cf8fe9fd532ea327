#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "devices/siov/dsa/checks.h"
#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/dsa_rig.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using Calls = std::vector<std::string>;

constexpr std::uint32_t kEnableDevice = 1, kDisableDevice = 2, kDrainAll = 3, kAbortAll = 4,
                        kResetDevice = 5, kEnableWq = 6, kDisableWq = 7, kDrainWq = 8, kAbortWq = 9,
                        kResetWq = 10, kDrainPasid = 11, kAbortPasid = 12, kRequestHandle = 13,
                        kReleaseHandle = 14;
constexpr std::uint32_t kActive = 0x8000'0000;
constexpr DsaOptions kCfg{.profile = DsaProfile::kConfigurable, .operations_config = true};

std::uint32_t OfQueue(std::uint32_t queue, std::uint32_t dword) {
  return 0x800 + queue * 64 + dword * 4;
}
std::uint32_t OfGroup(std::uint32_t group, std::uint32_t qword) {
  return 0x600 + group * 64 + qword * 8;
}
std::uint32_t DeviceState(DsaRig& rig) {
  return rig.Read32(dsa_regs::kGensts);
}
std::uint32_t QueueState(DsaRig& rig, std::uint32_t queue) {
  return rig.Read32(OfQueue(queue, 6)) >> 30;
}

// Queues 0 and 1 of 16 entries with engine 0 in group 0, queue 2 with engine 1 in group 2.
void Configure(DsaRig& rig) {
  for (const std::uint32_t queue : {0U, 1U, 2U}) {
    rig.Write32(OfQueue(queue, 0), 16);
    rig.Write32(OfQueue(queue, 2), 0xa1);
    rig.Write32(OfQueue(queue, 3), 21 | 5 << 5);
  }
  rig.Write64(OfGroup(0, 0), 0x3);
  rig.Write64(OfGroup(0, 4), 0x1);
  rig.Write64(OfGroup(2, 0), 0x4);
  rig.Write64(OfGroup(2, 4), 0x2);
}

// All three queues enabled.
void Enable(DsaRig& rig) {
  Configure(rig);
  CHECK(rig.Command(kEnableDevice) == 0);
  for (const std::uint32_t queue : {0U, 1U, 2U}) CHECK(rig.Command(kEnableWq, queue) == 0);
  static_cast<void>(rig.scripted().TakeCalls());
}

}  // namespace

TEST_CASE("dsa: Enable Device tells the back end the groups") {
  DsaRig rig(kCfg);
  Configure(rig);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(DeviceState(rig) == 1);
  CHECK(rig.scripted().TakeCalls() == Calls{"Start"});
  const siov::DeviceConfig& device = rig.scripted().device();
  REQUIRE(device.groups.size() == 2);
  CHECK(device.groups[0].queues == 0x3);
  CHECK(device.groups[0].engines == 1);
  CHECK(device.groups[1].queues == 0x4);
  CHECK(rig.Command(kEnableDevice) == 0x10);
}

TEST_CASE("dsa: Enable WQ tells the back end the queue's settings") {
  DsaRig rig(kCfg);
  Configure(rig);
  rig.Write64(OfQueue(1, 8), 0x9);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 1) == 0);
  CHECK(QueueState(rig, 1) == 1);
  CHECK(QueueState(rig, 0) == 0);
  const siov::QueueConfig& config = rig.scripted().config(1);
  CHECK(config.size == 16);
  CHECK(config.priority == 10);
  CHECK_FALSE(config.privileged);
  CHECK(config.max_transfer == 1U << 21);
  CHECK(config.max_batch == 32);
  CHECK(config.operations == siov::OperationSet{0x9, 0, 0, 0});
  // Linux 6.1 sets Priv without a PASID, where it is ignored.
  rig.Write32(OfQueue(0, 2), 0x2000'00a1);
  CHECK(rig.Command(kEnableWq, 0) == 0);
}

TEST_CASE("dsa: what Enable Device refuses, with the code of table 5-8") {
  struct Case {
    std::uint32_t error;
    const char* what;
    std::function<void(DsaRig&)> spoil;
  };
  const std::vector<Case> cases{
      {0x11, "a queue larger than a portal of memory holds",
       [](DsaRig& rig) { rig.Write32(OfQueue(0, 0), 64); }},
      {0x11, "a progress limit", [](DsaRig& rig) { rig.Write64(OfGroup(3, 5), 1ULL << 32); }},
      {0x11, "a batch progress limit", [](DsaRig& rig) { rig.Write64(OfGroup(3, 5), 2ULL << 36); }},
      {0x12, "no bus mastering", [](DsaRig& rig) { rig.SetBusMaster(false); }},
      {0x14, "129 entries", [](DsaRig& rig) { rig.Write32(OfQueue(2, 0), 97); }},
      {0x14, "the largest size", [](DsaRig& rig) { rig.Write32(OfQueue(2, 0), 0xffff); }},
      {0x15, "engines without queues", [](DsaRig& rig) { rig.Write64(OfGroup(1, 4), 0x4); }},
      {0x15, "queues without engines", [](DsaRig& rig) { rig.Write64(OfGroup(2, 4), 0); }},
      {0x16, "a queue in two groups", [](DsaRig& rig) { rig.Write64(OfGroup(2, 0), 0x6); }},
      {0x16, "a queue of a size in no group", [](DsaRig& rig) { rig.Write64(OfGroup(0, 0), 0x1); }},
      {0x16, "a queue of no size in a group", [](DsaRig& rig) { rig.Write32(OfQueue(1, 0), 0); }},
      {0x16, "a queue that does not exist", [](DsaRig& rig) { rig.Write64(OfGroup(0, 0), 0x103); }},
      {0x16, "queue 64", [](DsaRig& rig) { rig.Write64(OfGroup(0, 1), 1); }},
      {0x16, "queue 255", [](DsaRig& rig) { rig.Write64(OfGroup(3, 3), 1ULL << 63); }},
      {0x17, "an engine in two groups", [](DsaRig& rig) { rig.Write64(OfGroup(2, 4), 0x3); }},
      {0x17, "engine 4", [](DsaRig& rig) { rig.Write64(OfGroup(0, 4), 0x11); }},
      {0x18, "the global limit", [](DsaRig& rig) { rig.Write64(OfGroup(1, 5), 0x80); }},
      {0x18, "a read bandwidth limit", [](DsaRig& rig) { rig.Write64(OfGroup(1, 5), 1ULL << 40); }},
      {0x18, "a write bandwidth limit",
       [](DsaRig& rig) { rig.Write64(OfGroup(1, 5), 1ULL << 44); }},
      {0x19, "a log of 0 entries", [](DsaRig& rig) { rig.Write32(0x80, 0x2000); }},
      {0x19, "a log of 63 entries",
       [](DsaRig& rig) {
         rig.Write32(0x80, 0x2000);
         rig.Write64(0xe8, 63);
       }},
      {0x19, "a log that wraps",
       [](DsaRig& rig) {
         rig.Write32(0x80, 0x2000);
         rig.Write64(0xe0, 0xffff'ffff'ffff'f000);
         rig.Write64(0xe8, 65);
       }},
      {0x1b, "a PASID for the log", [](DsaRig& rig) { rig.Write64(0xe0, 1); }},
      {0x1b, "privilege for the log", [](DsaRig& rig) { rig.Write64(0xe0, 2); }},
  };
  for (const Case& row : cases) {
    CAPTURE(row.what);
    DsaRig rig(kCfg);
    Configure(rig);
    row.spoil(rig);
    CHECK(rig.Command(kEnableDevice) == row.error);
    CHECK(DeviceState(rig) == 0);
    CHECK(rig.scripted().TakeCalls().empty());
    CHECK(rig.counter("command_error_" + std::string(row.error == 0x11   ? "11"
                                                     : row.error == 0x12 ? "12"
                                                     : row.error == 0x14 ? "14"
                                                     : row.error == 0x15 ? "15"
                                                     : row.error == 0x16 ? "16"
                                                     : row.error == 0x17 ? "17"
                                                     : row.error == 0x18 ? "18"
                                                     : row.error == 0x19 ? "19"
                                                                         : "1b")) == 1);
  }
}

TEST_CASE("dsa: limits that Enable Device allows") {
  DsaRig rig(kCfg);
  Configure(rig);
  // 63 + 63 + 2 entries; the last log that fits below 2^64; traffic classes.
  rig.Write32(OfQueue(0, 0), 63);
  rig.Write32(OfQueue(1, 0), 63);
  rig.Write32(OfQueue(2, 0), 2);
  rig.Write32(0x80, 0x2000);
  rig.Write64(0xe0, 0xffff'ffff'ffff'f000);
  rig.Write64(0xe8, 64);
  for (const std::uint32_t group : {0U, 1U, 2U, 3U}) rig.Write64(OfGroup(group, 5), 0x09);
  // 5.1: an enabled log begins anew.
  rig.Write64(0xf0, 5);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Read64(0xf0) == 0);
}

TEST_CASE("dsa: what Enable WQ refuses, with the code of table 5-8") {
  struct Case {
    std::uint32_t error;
    const char* what;
    std::uint32_t dword;
    std::uint32_t value;
  };
  const std::vector<Case> cases{
      {0x23, "no priority", 2, 0x01},
      {0x24, "shared mode", 2, 0xa0},
      {0x24, "shared mode with a PASID", 2, 0x1000'00a0},
      {0x25, "block on fault", 2, 0xa3},
      {0x26, "a PASID", 2, 0x1000'01a1},
      {0x2a, "a PASID with privilege", 2, 0x3000'01a1},
      {0x2c, "ATS disable", 2, 0xa5},
      {0x2e, "PRS disable", 2, 0xa9},
      {0x27, "batches of 1", 3, 21},
      {0x27, "batches of 2048", 3, 21 | 11 << 5},
      {0x28, "transfers of 4 MiB", 3, 22 | 5 << 5},
      {0x2b, "an interrupt of no table", 4, 0x1'0000},
      {0x2b, "an occupancy interrupt", 4, 1},
      {0x2d, "an operation that is not there", 8, 0x400},
      {0x2d, "another", 15, 0x8000'0000},
  };
  siov::BackendCaps caps = ScriptedBackend::DefaultCaps();
  caps.max_transfer = 1U << 21;
  for (const Case& row : cases) {
    CAPTURE(row.what);
    DsaRig rig(kCfg, caps);
    Configure(rig);
    CHECK(rig.Command(kEnableDevice) == 0);
    rig.Write32(OfQueue(1, row.dword), row.value);
    CHECK(rig.Command(kEnableWq, 1) == row.error);
    CHECK(QueueState(rig, 1) == 0);
    CHECK(rig.scripted().enabled() == 0);
    // The others are not affected.
    CHECK(rig.Command(kEnableWq, 0) == 0);
  }
  DsaRig rig(kCfg, caps);
  Configure(rig);
  CHECK(rig.Command(kEnableWq, 0) == 0x20);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 3) == 0x22);
  CHECK(rig.Command(kEnableWq, 0) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0x21);
}

TEST_CASE("dsa: without batches the batch field is nobody's business") {
  siov::BackendCaps caps = ScriptedBackend::DefaultCaps();
  caps.max_batch = 0;
  DsaRig rig(kCfg, caps);
  Configure(rig);
  rig.Write64(OfQueue(0, 8), 0x9);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0);
  CHECK(rig.scripted().config(0).max_batch == 0);
}

TEST_CASE("dsa: errors that any command has") {
  DsaRig rig(kCfg);
  for (const std::uint32_t code : {0U, 13U, 14U, 15U, 16U, 17U, 31U}) {
    CAPTURE(code);
    CHECK(rig.Command(code) == 0x01);
  }
  for (std::uint32_t bit = 25; bit < 31; ++bit) CHECK(rig.Command(kResetDevice, 1U << bit) == 0x04);
  for (std::uint32_t bit = 8; bit < 20; ++bit) CHECK(rig.Command(kEnableWq, 1U << bit) == 0x04);
  for (const std::uint32_t queue : {8U, 9U, 255U}) CHECK(rig.Command(kEnableWq, queue) == 0x02);
  for (const std::uint32_t code : {kDisableWq, kDrainWq, kAbortWq, kResetWq}) {
    CAPTURE(code);
    for (const std::uint32_t operand : {0x100U, 0x8000U, 0x1'0001U, 0xf'0001U, 0x2'0000U})
      CHECK(rig.Command(code, operand) == 0x02);
    CHECK(rig.Command(code, 0) == 0);
  }
  CHECK(rig.scripted().TakeCalls().empty());
  CHECK(rig.counter("command_enable_wq") == 15);
  CHECK(rig.counter("command_code_31") == 1);
  CHECK(rig.counter("command_error_02") == 3 + 4 * 5);
}

TEST_CASE("dsa: an operand where there is none is not looked at, as DPDK leaves one there") {
  DsaRig rig(kCfg);
  Configure(rig);
  CHECK(rig.Command(kEnableDevice, 3) == 0);
  CHECK(rig.Command(kDisableDevice, 7) == 0);
}

TEST_CASE("dsa: commands that need something enabled") {
  DsaRig rig(kCfg);
  Configure(rig);
  CHECK(rig.Command(kDisableDevice) == 0x31);
  for (const std::uint32_t code : {kDisableWq, kDrainWq, kAbortWq})
    CHECK(rig.Command(code, 1) == 0x32);
  CHECK(rig.Command(kEnableDevice) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0);
  // One that is enabled does not help one that is not.
  for (const std::uint32_t code : {kDisableWq, kDrainWq, kAbortWq})
    CHECK(rig.Command(code, 3) == 0x32);
  CHECK(QueueState(rig, 0) == 1);
  // Table 5-8: no codes for the others.
  for (const std::uint32_t code : {kDrainAll, kAbortAll, kDrainPasid, kAbortPasid})
    CHECK(rig.Command(code) == 0);
}

TEST_CASE("dsa: a command that waits is active until the back end is done") {
  struct Case {
    std::uint32_t code;
    std::uint32_t operand;
    Calls calls;
    std::uint32_t device_state;
    std::vector<std::uint32_t> queue_states;
    std::vector<std::uint32_t> after;
  };
  const std::vector<Case> cases{
      {kDisableDevice, 0, {"Disable 0x7", "Stop"}, 2, {2, 2, 2}, {0, 0, 0}},
      {kDrainAll, 0, {"Drain 0x7"}, 1, {1, 1, 1}, {1, 1, 1}},
      {kAbortAll, 0, {"Abort 0x7"}, 1, {1, 1, 1}, {1, 1, 1}},
      {kResetDevice, 0, {"Abort 0x7", "Disable 0x7", "Stop"}, 2, {2, 2, 2}, {0, 0, 0}},
      {kDisableWq, 5, {"Disable 0x5"}, 1, {2, 1, 2}, {0, 1, 0}},
      {kDrainWq, 2, {"Drain 0x2"}, 1, {1, 1, 1}, {1, 1, 1}},
      {kAbortWq, 6, {"Abort 0x6"}, 1, {1, 1, 1}, {1, 1, 1}},
      {kResetWq, 0x84, {"Abort 0x4", "Disable 0x4"}, 1, {1, 1, 2}, {1, 1, 0}},
      {kDrainPasid, 0xfffff, {"Drain 0x7"}, 1, {1, 1, 1}, {1, 1, 1}},
      {kAbortPasid, 0, {"Drain 0x7"}, 1, {1, 1, 1}, {1, 1, 1}},
  };
  for (const Case& row : cases) {
    CAPTURE(row.code);
    DsaRig rig(kCfg);
    Enable(rig);
    rig.Write32(dsa_regs::kCmd, row.code << 20 | row.operand | 1U << 31);
    CHECK(rig.Read32(dsa_regs::kCmdstatus) == kActive);
    CHECK(DeviceState(rig) == row.device_state);
    for (std::uint32_t queue = 0; queue < 3; ++queue)
      CHECK(QueueState(rig, queue) == row.queue_states[queue]);
    CHECK(rig.TakeInterrupts() == 0);
    while (rig.scripted().waiting() != 0) {
      rig.CheckInvariants();
      CHECK(rig.Read32(dsa_regs::kCmdstatus) == kActive);
      rig.scripted().CompleteNext();
      // Not before the lock is ours.
      CHECK(rig.Read32(dsa_regs::kCmdstatus) == kActive);
      rig.RunPosted();
    }
    CHECK(rig.Read32(dsa_regs::kCmdstatus) == 0);
    CHECK(rig.Read32(dsa_regs::kIntcause) == 2);
    CHECK(rig.TakeInterrupts() == 1);
    CHECK(rig.scripted().TakeCalls() == row.calls);
    CHECK(DeviceState(rig) == (row.device_state == 2 ? 0 : 1));
    for (std::uint32_t queue = 0; queue < 3; ++queue)
      CHECK(QueueState(rig, queue) == row.after[queue]);
    rig.CheckInvariants();
  }
}

TEST_CASE("dsa: a back end that is done at once") {
  DsaRig rig(kCfg);
  Enable(rig);
  rig.scripted().SetImmediate(true);
  CHECK(rig.Command(kDrainAll) == 0);
  CHECK(rig.Command(kResetWq, 7) == 0);
  CHECK(rig.Command(kDisableDevice) == 0);
  CHECK(DeviceState(rig) == 0);
}

TEST_CASE("dsa: a command while one is active is discarded and an error") {
  DsaRig rig(kCfg);
  Enable(rig);
  rig.Write32(dsa_regs::kGenctrl, 1);
  rig.Write32(dsa_regs::kCmd, kDrainAll << 20);
  rig.Write32(dsa_regs::kCmd, kDisableDevice << 20 | 1U << 31);
  CHECK(rig.Read32(dsa_regs::kCmdstatus) == kActive);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x5201);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 1);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(DeviceState(rig) == 1);
  rig.scripted().CompleteAll();
  rig.RunPosted();
  CHECK(rig.Read32(dsa_regs::kCmdstatus) == 0);
  // The first had not asked for an interrupt, and the second is gone.
  CHECK(rig.TakeInterrupts() == 0);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 1);
  CHECK(DeviceState(rig) == 1);
  CHECK(rig.counter("software_error_52") == 1);
}

TEST_CASE("dsa: only a command that asks raises a cause") {
  DsaRig rig(kCfg);
  CHECK(rig.Command(kResetDevice) == 0);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0);
  CHECK(rig.TakeInterrupts() == 0);
  CHECK(rig.Command(kDisableDevice, 0, true) == 0x31);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 2);
  CHECK(rig.TakeInterrupts() == 1);
}

TEST_CASE("dsa: Reset Device clears the configuration and keeps command, errors and log status") {
  DsaRig rig(kCfg);
  Enable(rig);
  rig.Write32(dsa_regs::kGenctrl, 7);
  rig.Write32(rig.Row("MSIXPERM1").offset, 0x1008);
  rig.dsa().OnRefused(1, siov::SubmitResult::kFull);
  rig.Write64(dsa_regs::kEvlstatus, 3);
  CHECK(rig.Command(kDrainAll, 0, true) == 0);
  CHECK(rig.Command(kResetDevice, 0, true) == 0);
  CHECK(rig.Read64(dsa_regs::kSwerror) == 0x1'5309);
  CHECK(rig.Read64(dsa_regs::kEvlstatus) == 3);
  CHECK(rig.Read32(dsa_regs::kCmd) == (1U << 31 | kResetDevice << 20));
  CHECK(rig.Read32(dsa_regs::kIntcause) == 2);
  for (const bus::RegisterRow& row : rig.dsa().rows()) {
    CAPTURE(row.name);
    const bool kept = row.offset == dsa_regs::kSwerror || row.offset == dsa_regs::kEvlstatus ||
                      row.offset == dsa_regs::kCmd || row.offset == dsa_regs::kIntcause;
    if (!kept) CHECK(rig.file().Get(row.offset) == row.reset);
  }
  CHECK(rig.scripted().enabled() == 0);
  CHECK_FALSE(rig.scripted().started());
}

TEST_CASE("dsa: Reset WQ keeps the size, and of a disabled queue only resets the rest") {
  DsaRig rig(kCfg);
  Enable(rig);
  rig.Write32(OfQueue(1, 1), 7);
  CHECK(rig.Command(kDisableWq, 1) == 0);
  static_cast<void>(rig.scripted().TakeCalls());
  CHECK(rig.Command(kResetWq, 3) == 0);
  CHECK(rig.scripted().TakeCalls() == Calls{"Abort 0x2", "Disable 0x2"});
  for (const std::uint32_t queue : {0U, 1U}) {
    CHECK(rig.Read32(OfQueue(queue, 0)) == 16);
    for (std::uint32_t dword = 1; dword < 8; ++dword) CHECK(rig.Read32(OfQueue(queue, dword)) == 0);
    CHECK(rig.Read64(OfQueue(queue, 8)) == 0x1'003f'03ff);
  }
  CHECK(rig.Read32(OfQueue(2, 2)) == 0xa1);
  CHECK(QueueState(rig, 2) == 1);
}

TEST_CASE("dsa: what is locked while device or queue is not disabled is ignored") {
  DsaRig rig(kCfg);
  Enable(rig);
  CHECK(rig.Command(kDisableWq, 1U << 1) == 0);
  for (const std::uint32_t offset :
       {0x80U, 0xe0U, 0xe8U, OfGroup(0, 0), OfGroup(0, 4), OfGroup(0, 5), OfQueue(0, 0),
        OfQueue(1, 0), OfQueue(0, 2), OfQueue(0, 3), OfQueue(0, 4), OfQueue(0, 8)}) {
    CAPTURE(offset);
    const std::uint32_t before = rig.Read32(offset);
    rig.Write32(offset, ~before);
    CHECK(rig.Read32(offset) == before);
  }
  CHECK(rig.counter("locked_writes") == 12);
  // Table 9-7: the queue's own settings while it is disabled, and the threshold always.
  rig.Write32(OfQueue(1, 2), 0x51);
  CHECK(rig.Read32(OfQueue(1, 2)) == 0x51);
  rig.Write32(OfQueue(1, 3), 12 | 1 << 5);
  CHECK(rig.Read32(OfQueue(1, 3)) == (12 | 1 << 5));
  rig.Write32(OfQueue(0, 1), 9);
  CHECK(rig.Read32(OfQueue(0, 1)) == 9);
  CHECK(rig.Command(kEnableWq, 1) == 0);
  CHECK(rig.scripted().config(1).priority == 5);
}

TEST_CASE("dsa: a queue's occupancy is the back end's") {
  DsaRig rig(kCfg);
  rig.scripted().SetOccupancy(0x1'2345);
  CHECK(rig.Read32(OfQueue(0, 6)) == 0);
  Enable(rig);
  CHECK(rig.Read32(OfQueue(0, 6)) == 0x4000'ffff);
  rig.scripted().SetOccupancy(7);
  CHECK(rig.Read64(OfQueue(2, 6)) == 0x4000'0007);
  CHECK(rig.Read32(OfQueue(3, 6)) == 0);
}

TEST_CASE("dsa: a back end that cannot") {
  DsaRig rig(kCfg);
  Configure(rig);
  rig.scripted().FailNext(Errc::kSystem);
  CHECK(rig.Command(kEnableDevice) == 0x03);
  rig.scripted().FailNext(Errc::kUnsupported);
  CHECK(rig.Command(kEnableDevice) == 0x11);
  CHECK(rig.Command(kEnableDevice) == 0);
  rig.scripted().FailNext(Errc::kSystem);
  CHECK(rig.Command(kEnableWq, 0) == 0x03);
  CHECK(QueueState(rig, 0) == 0);
  CHECK(rig.Command(kEnableWq, 0) == 0);
}

TEST_CASE("dsa: interrupt handles are asked for and given back") {
  DsaRig rig({.wqs = 2, .wq_size = 16, .handles = true});
  CHECK(rig.Command(kRequestHandle, 1) == 0x1'0000);
  CHECK(rig.Command(kRequestHandle, 2) == 0x1'0100);
  // The same again.
  CHECK(rig.Command(kRequestHandle, 1) == 0x1'0000);
  CHECK(rig.Command(kRequestHandle, 0) == 0x1'0200);
  CHECK(rig.scripted().handles().size() == 3);
  CHECK(rig.Command(kRequestHandle, 3) == 0x41);
  CHECK(rig.Command(kRequestHandle, 0xffff) == 0x41);
  CHECK(rig.Command(kRequestHandle, 0x1'0001) == 0x41);
  for (const std::uint32_t reserved : {0x2'0001U, 0x4'0001U, 0x8'0001U}) {
    CHECK(rig.Command(kRequestHandle, reserved) == 0x04);
    CHECK(rig.Command(kReleaseHandle, reserved) == 0x04);
  }
  // Linux's operand, and the specification's.
  CHECK(rig.Command(kReleaseHandle, 0x100) == 0);
  CHECK(rig.Command(kReleaseHandle, 0x100) == 0x41);
  CHECK(rig.Command(kReleaseHandle, 2) == 0);
  CHECK(rig.Command(kReleaseHandle, 2) == 0x41);
  CHECK(rig.Command(kReleaseHandle, 0x1'0000) == 0x41);
  CHECK(rig.Command(kReleaseHandle, 7) == 0x41);
  CHECK(rig.scripted().handles().size() == 1);
  rig.scripted().FailNext(Errc::kExhausted);
  CHECK(rig.Command(kRequestHandle, 1) == 0x42);
  rig.scripted().FailNext(Errc::kInvalidArgument);
  CHECK(rig.Command(kRequestHandle, 1) == 0x41);
  rig.scripted().SetNextHandle(0x1'0000);
  CHECK(rig.Command(kRequestHandle, 1) == 0x42);
  CHECK(rig.scripted().handles().size() == 1);
  rig.scripted().SetNextHandle(0xffff);
  CHECK(rig.Command(kRequestHandle, 1) == 0xff'ff00);
}

TEST_CASE("dsa: a number that is a handle and an index is a handle, as Linux means it") {
  DsaRig rig({.wqs = 2, .wq_size = 16, .handles = true});
  rig.scripted().SetNextHandle(2);
  CHECK(rig.Command(kRequestHandle, 1) == 0x200);
  CHECK(rig.Command(kRequestHandle, 2) == 0x300);
  CHECK(rig.Command(kReleaseHandle, 2) == 0);
  CHECK(rig.scripted().handles() == std::map<std::uint32_t, std::uint16_t>{{3, 2}});
}

TEST_CASE("dsa: revoked handles are announced, and asked for anew") {
  DsaRig rig({.wqs = 2, .wq_size = 16, .handles = true});
  rig.dsa().OnHandlesRevoked();
  CHECK(rig.TakeInterrupts() == 0);  // 3.7: none were asked for
  CHECK(rig.Command(kRequestHandle, 1) == 0x1'0000);
  rig.dsa().OnHandlesRevoked();
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x8000'0000);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(rig.Command(kRequestHandle, 1) == 0x1'0100);
  // A reset takes them too.
  rig.Write32(dsa_regs::kIntcause, 0x8000'0000);
  CHECK(rig.Command(kResetDevice) == 0);
  CHECK(rig.scripted().TakeCalls().back() == "CloseHandle 0x101");
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x8000'0000);
  CHECK(rig.Command(kReleaseHandle, 1) == 0x41);
}

}  // namespace postern::dsa
