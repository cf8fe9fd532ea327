// What drivers do, register by register, and what they need to see. Sources: Linux 6.12
// drivers/dma/idxd (probe: init.c; device.c; irq.c), 6.1 where it differs, and DPDK's
// drivers/dma/idxd/idxd_pci.c.

#include <cstdint>
#include <string>
#include <vector>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/dsa_rig.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

constexpr DsaOptions kRo{.profile = DsaProfile::kReadOnly};
constexpr DsaOptions kCfg{.profile = DsaProfile::kConfigurable};

// One of its queues, as sysfs or the device set it.
struct LinuxQueue {
  int group = -1;
  std::uint32_t size = 0;
  std::uint32_t priority = 0;
  bool enabled = false;
};

class LinuxIdxd {
 public:
  enum class Version { k61, k612 };
  LinuxIdxd(DsaRig& rig, Version version) : rig_(rig), version_(version) {}

  void Probe();
  // idxd_device_drv_probe.
  void EnableDevice();
  // idxd_drv_enable_wq of a kernel queue.
  void EnableQueue(std::uint32_t queue);
  // idxd_drv_disable_wq.
  void DisableQueue(std::uint32_t queue);
  // idxd_device_drv_remove.
  void DisableDevice();
  // The misc interrupt's thread; the causes it saw.
  std::uint32_t HandleInterrupt();
  // idxd_device_reinit.
  void Reinit();

  std::vector<LinuxQueue> queues;
  std::vector<std::uint64_t> group_engines;
  [[nodiscard]] std::uint32_t handle(std::uint32_t vector) const { return handles_.at(vector); }

 private:
  [[nodiscard]] std::uint32_t Exec(std::uint32_t code, std::uint32_t operand);
  void Poll(std::uint32_t code, std::uint32_t operand);
  void LoadConfig();
  void WriteConfig();
  void WriteQueue(std::uint32_t queue);
  void SetUpEventLog();
  void FreeEventLog();

  DsaRig& rig_;
  Version version_;
  bool configurable_ = false;
  bool event_log_ = false;
  bool handles_wanted_ = false;
  std::uint32_t grpcfg_ = 0;
  std::uint32_t wqcfg_ = 0;
  std::uint32_t wqcfg_bytes_ = 0;
  std::vector<std::uint32_t> handles_;
};

// idxd_cmd_exec: sleeps until the interrupt says so, with no time limit.
std::uint32_t LinuxIdxd::Exec(std::uint32_t code, std::uint32_t operand) {
  REQUIRE((rig_.Read32(0x90) & 3) != 3);
  rig_.Write32(0xa0, 1U << 31 | code << 20 | operand);
  for (int i = 0; i < 4; ++i) {
    rig_.scripted().CompleteAll();
    rig_.RunPosted();
  }
  REQUIRE(rig_.TakeInterrupts() == 1);
  REQUIRE((HandleInterrupt() & 2) == 2);
  return rig_.Read32(0xa8);
}

void LinuxIdxd::Poll(std::uint32_t code, std::uint32_t operand) {
  rig_.Write32(0xa0, code << 20 | operand);
  rig_.scripted().CompleteAll();
  rig_.RunPosted();
  REQUIRE((rig_.Read32(0xa8) & 0x8000'0000) == 0);
}

std::uint32_t LinuxIdxd::HandleInterrupt() {
  const std::uint32_t cause = rig_.Read32(0x98);
  rig_.Write32(0x98, cause);
  if ((cause & 0x10) == 0 && (cause & 1) != 0) {
    std::uint64_t first = 0;
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint64_t word = rig_.Read64(0xc0 + 8 * i);
      if (i == 0) first = word;
    }
    rig_.Write64(0xc0, first & 3);
  }
  return cause;
}

void LinuxIdxd::Probe() {
  CHECK(rig_.Read32(0x00) == 0x100);
  CHECK((rig_.Read32(0x90) & 3) != 3);
  Poll(5, 0);
  const std::uint64_t gencap = rig_.Read64(0x10);
  configurable_ = (gencap >> 31 & 1) != 0;
  event_log_ = (gencap >> 13 & 3) != 0;
  if ((gencap >> 4 & 1) != 0) handles_wanted_ = (rig_.Read32(0xb0) >> 13 & 1) != 0;
  CHECK((gencap >> 16 & 0x1f) >= 21);  // its default limits: 2 MiB, 32 descriptors
  CHECK((gencap >> 21 & 0xf) >= 5);
  group_engines.assign(rig_.Read64(0x30) & 0xff, 0);
  CHECK((rig_.Read64(0x38) & 0xff) >= 1);
  const std::uint64_t wqcap = rig_.Read64(0x20);
  queues.assign(wqcap >> 16 & 0xff, {});
  handles_.assign(queues.size() + 1, 0);
  wqcfg_bytes_ = 1U << (5 + (wqcap >> 24 & 0xf));
  CHECK((rig_.Read64(0x40) & 0x9) == 0x9);  // no-op and move: what its channels need
  for (std::uint32_t offset = 0x48; offset < 0x60; offset += 8)
    static_cast<void>(rig_.Read64(offset));
  const std::uint64_t offsets = rig_.Read64(0x60);
  CHECK(rig_.Read64(0x68) == 0);
  grpcfg_ = static_cast<std::uint32_t>(offsets & 0xffff) * 0x100;
  wqcfg_ = static_cast<std::uint32_t>(offsets >> 16 & 0xffff) * 0x100;
  if (!configurable_) LoadConfig();
  CHECK(rig_.dsa().layout().vectors >= queues.size() + 1);
  rig_.Write32(0x88, rig_.Read32(0x88) | 3);
  // A cause left over by the polled reset would complete a command that is not there.
  CHECK(rig_.Read32(0x98) == 0);
  CHECK(rig_.TakeInterrupts() == 0);
}

// idxd_device_load_config; refuses a queue that is not dedicated or has a PASID, enabled or not.
void LinuxIdxd::LoadConfig() {
  static_cast<void>(rig_.Read32(0x80));
  for (std::uint32_t group = 0; group < group_engines.size(); ++group) {
    const std::uint64_t members = rig_.Read64(grpcfg_ + group * 64);
    for (std::uint32_t queue = 0; queue < queues.size(); ++queue) {
      if ((members >> queue & 1) != 0) queues[queue].group = static_cast<int>(group);
    }
    group_engines[group] = rig_.Read64(grpcfg_ + group * 64 + 32);
    static_cast<void>(rig_.Read64(grpcfg_ + group * 64 + 40));
  }
  for (std::uint32_t queue = 0; queue < queues.size(); ++queue) {
    const std::uint32_t at = wqcfg_ + queue * wqcfg_bytes_;
    for (std::uint32_t byte = 0; byte < wqcfg_bytes_; byte += 4)
      static_cast<void>(rig_.Read32(at + byte));
    const std::uint32_t mode = rig_.Read32(at + 8);
    REQUIRE((mode & 1) == 1);
    REQUIRE((mode >> 28 & 1) == 0);
    queues[queue].size = rig_.Read32(at) & 0xffff;
    queues[queue].priority = mode >> 4 & 0xf;
    CHECK(queues[queue].group == 0);
    CHECK(queues[queue].size > 0);
  }
}

// idxd_wq_config_write.
void LinuxIdxd::WriteQueue(std::uint32_t queue) {
  const LinuxQueue& settings = queues[queue];
  const std::uint32_t at = wqcfg_ + queue * wqcfg_bytes_;
  std::vector<std::uint32_t> words(wqcfg_bytes_ / 4);
  for (std::uint32_t i = 0; i < words.size(); ++i) words[i] |= rig_.Read32(at + 4 * i);
  words[0] = settings.size;
  words[2] = (words[2] & ~0xf0U) | settings.priority << 4 | 1;
  if (version_ == Version::k61) words[2] |= 1U << 29;
  words[3] = (words[3] & ~0x1ffU) | 5 << 5 | 21;
  for (std::uint32_t i = 0; i < words.size(); ++i) {
    rig_.Write32(at + 4 * i, words[i]);
    static_cast<void>(rig_.Read32(at + 4 * i));
  }
}

// idxd_device_config: all of it, each time.
void LinuxIdxd::WriteConfig() {
  for (std::uint32_t queue = 0; queue < queues.size(); ++queue) {
    if (queues[queue].group >= 0) WriteQueue(queue);
  }
  for (std::uint32_t group = 0; group < group_engines.size(); ++group) {
    std::uint64_t members = 0;
    for (std::uint32_t queue = 0; queue < queues.size(); ++queue) {
      if (queues[queue].group == static_cast<int>(group)) members |= std::uint64_t{1} << queue;
    }
    const std::uint32_t at = grpcfg_ + group * 64;
    for (std::uint32_t i = 0; i < 4; ++i) rig_.Write64(at + 8 * i, i == 0 ? members : 0);
    rig_.Write64(at + 32, group_engines[group]);
    rig_.Write64(at + 40, 1 | 1 << 3);
  }
}

void LinuxIdxd::SetUpEventLog() {
  if (version_ == Version::k61 || !event_log_) return;
  rig_.Write64(0xe0, 0x1234'5000);
  rig_.Write64(0xe8, 64);
  rig_.Write32(0x88, rig_.Read32(0x88) | 4);
  rig_.Write32(0x80, rig_.Read32(0x80) | 1 << 13);
}

// 6.12.117 writes GENCFG from a variable it never set.
void LinuxIdxd::FreeEventLog() {
  if (version_ == Version::k61) return;
  rig_.Write32(0x80, 0xdead'beef & ~(1U << 13));
  rig_.Write32(0x88, rig_.Read32(0x88) & ~4U);
  rig_.Write64(0xe0, 0);
  rig_.Write64(0xe8, 0);
}

void LinuxIdxd::EnableDevice() {
  if (configurable_) WriteConfig();
  SetUpEventLog();
  REQUIRE((rig_.Read32(0x90) & 3) != 1);
  REQUIRE(Exec(1, 0) == 0);
  CHECK((rig_.Read32(0x90) & 3) == 1);
}

void LinuxIdxd::EnableQueue(std::uint32_t queue) {
  if (configurable_) WriteConfig();
  REQUIRE(Exec(6, queue) == 0);
  queues[queue].enabled = true;
  if (!handles_wanted_) {
    handles_[queue + 1] = queue + 1;
    return;
  }
  const std::uint32_t status = Exec(13, queue + 1);
  REQUIRE((status & 0xff) == 0);
  handles_[queue + 1] = status >> 8 & 0xffff;
}

void LinuxIdxd::DisableQueue(std::uint32_t queue) {
  const std::uint32_t operand = 1U << queue % 16 | queue / 16 << 16;
  CHECK(Exec(8, operand) == 0);
  if (handles_wanted_) {
    Poll(14, handles_[queue + 1]);
    CHECK((rig_.Read32(0xa8) & 0xff) == 0);
  }
  rig_.Write32(0x400 + (queue + 1) * 8, 0);
  CHECK(Exec(10, operand) == 0);
  queues[queue].enabled = false;
}

void LinuxIdxd::DisableDevice() {
  CHECK(Exec(2, 0) == 0);
  CHECK((rig_.Read32(0x90) & 3) == 0);
  if (configurable_) {
    CHECK(Exec(5, 0) == 0);
    rig_.Write32(0x88, rig_.Read32(0x88) | 3);
  }
  FreeEventLog();
}

void LinuxIdxd::Reinit() {
  CHECK(Exec(5, 0) == 0);
  rig_.Write32(0x88, rig_.Read32(0x88) | 3);
  WriteConfig();
  REQUIRE(Exec(1, 0) == 0);
  for (std::uint32_t queue = 0; queue < queues.size(); ++queue) {
    if (queues[queue].enabled) REQUIRE(Exec(6, queue) == 0);
  }
}

// accel-config's: two queues in group 0 with engine 0, one in group 1 with engine 1.
void Configure(LinuxIdxd& driver) {
  driver.group_engines[0] = 1;
  driver.group_engines[1] = 2;
  driver.queues[0] = {.group = 0, .size = 16, .priority = 10};
  driver.queues[1] = {.group = 0, .size = 32, .priority = 1};
  driver.queues[2] = {.group = 1, .size = 63, .priority = 15};
}

}  // namespace

TEST_CASE("linux: probe, enable, disable and bind again, read-only") {
  for (const auto version : {LinuxIdxd::Version::k61, LinuxIdxd::Version::k612}) {
    DsaRig rig({.wqs = 2, .wq_size = 16});
    // Each bind of the PCI driver probes anew: 6.1 and 6.12 cannot enable a read-only queue twice.
    for (int bind = 0; bind < 3; ++bind) {
      LinuxIdxd driver(rig, version);
      driver.Probe();
      driver.EnableDevice();
      driver.EnableQueue(0);
      driver.EnableQueue(1);
      CHECK(driver.handle(2) == 2);
      CHECK(rig.scripted().enabled() == 3);
      CHECK(rig.scripted().config(0).size == 16);
      driver.DisableQueue(1);
      CHECK(rig.scripted().enabled() == 1);
      driver.DisableQueue(0);
      driver.DisableDevice();
      CHECK_FALSE(rig.scripted().started());
      rig.CheckInvariants();
    }
    CHECK(rig.file().refused() == 0);
    CHECK(rig.Read64(0xc0) == 0);
  }
}

TEST_CASE("linux: configure, enable, disable and bind again, configurable") {
  for (const auto version : {LinuxIdxd::Version::k61, LinuxIdxd::Version::k612}) {
    for (const bool operations : {false, true}) {
      DsaRig rig({.profile = DsaProfile::kConfigurable, .operations_config = operations});
      LinuxIdxd driver(rig, version);
      driver.Probe();
      for (int bind = 0; bind < 3; ++bind) {
        Configure(driver);
        driver.EnableDevice();
        // The others' configuration is written again while the first is enabled.
        for (const std::uint32_t queue : {0U, 2U, 1U}) driver.EnableQueue(queue);
        CHECK(rig.scripted().enabled() == 7);
        CHECK(rig.scripted().config(1).size == 32);
        CHECK(rig.scripted().config(2).priority == 15);
        CHECK(rig.scripted().config(0).max_transfer == 2U << 20);
        CHECK(rig.scripted().config(0).max_batch == 32);
        REQUIRE(rig.scripted().device().groups.size() == 2);
        // Off and on again: the size is still there, the rest is written again.
        driver.DisableQueue(1);
        driver.EnableQueue(1);
        for (const std::uint32_t queue : {0U, 1U, 2U}) driver.DisableQueue(queue);
        driver.DisableDevice();
        CHECK(rig.scripted().enabled() == 0);
        CHECK(rig.Read32(0x80) == (version == LinuxIdxd::Version::k61 ? 0 : 0x1000));
        rig.CheckInvariants();
      }
      CHECK(rig.file().refused() == 0);
    }
  }
}

TEST_CASE("linux: handles where the back end names them") {
  siov::BackendCaps caps = ScriptedBackend::DefaultCaps();
  caps.named_handles = true;
  DsaRig rig({.wqs = 2, .wq_size = 16}, caps);
  LinuxIdxd driver(rig, LinuxIdxd::Version::k612);
  driver.Probe();
  driver.EnableDevice();
  driver.EnableQueue(0);
  driver.EnableQueue(1);
  CHECK(driver.handle(1) == 0x100);
  CHECK(driver.handle(2) == 0x101);
  rig.dsa().OnHandlesRevoked();
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(driver.HandleInterrupt() == 0x8000'0000);
  // idxd_int_handle_revoke, for each vector it uses.
  CHECK(rig.Command(13, 1, true) == 0x1'0200);
  CHECK(rig.Command(13, 2, true) == 0x1'0300);
}

TEST_CASE("linux: an error is read and acknowledged") {
  DsaRig rig(kRo);
  LinuxIdxd driver(rig, LinuxIdxd::Version::k612);
  driver.Probe();
  driver.EnableDevice();
  driver.EnableQueue(0);
  rig.dsa().OnRefused(0, siov::SubmitResult::kFull);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(driver.HandleInterrupt() == 1);
  CHECK(rig.Read64(0xc0) == 0);
}

TEST_CASE("linux: a halted device is reset, configured and enabled again") {
  DsaRig rig(kCfg);
  LinuxIdxd driver(rig, LinuxIdxd::Version::k612);
  driver.Probe();
  Configure(driver);
  driver.EnableDevice();
  driver.EnableQueue(0);
  driver.EnableQueue(2);
  rig.SetBusMaster(false);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(driver.HandleInterrupt() == 0x11);
  CHECK(rig.Read32(0x90) == 3);
  rig.SetBusMaster(true);
  // idxd_cmd_exec refuses while halted; only a function reset or another driver recovers it there.
  CHECK(rig.Command(5) == 0);
  driver.Reinit();
  CHECK(rig.scripted().enabled() == 5);
  rig.CheckInvariants();
}

TEST_CASE("dpdk: its probe, start, stop and close") {
  DsaRig rig(kCfg);
  // init_pci_device
  CHECK((rig.Read32(0x90) & 3) == 0);
  CHECK((rig.Read32(0xa8) & 0x8000'0000) == 0);
  const auto groups = static_cast<std::uint32_t>(rig.Read64(0x30) & 0xff);
  const auto engines = static_cast<std::uint32_t>(rig.Read64(0x38) & 0xff);
  const std::uint64_t wqcap = rig.Read64(0x20);
  const auto queues = static_cast<std::uint32_t>(wqcap >> 16 & 0xff);
  const auto transfer = static_cast<std::uint32_t>(rig.Read64(0x10) >> 16 & 0x1f);
  const auto batch = static_cast<std::uint32_t>(rig.Read64(0x10) >> 21 & 0xf);
  REQUIRE(groups == 4);
  REQUIRE(engines == 4);
  REQUIRE(queues == 8);
  for (std::uint32_t group = 0; group < groups; ++group) {
    rig.Write64(0x600 + group * 64 + 32, 0);
    rig.Write64(0x600 + group * 64, 0);
  }
  for (std::uint32_t queue = 0; queue < queues; ++queue) rig.Write32(0x800 + queue * 32, 0);
  const auto add = [&rig](std::uint32_t offset, std::uint64_t bit) {
    rig.Write64(offset, rig.Read64(offset) | bit);
  };
  for (std::uint32_t engine = 0; engine < engines; ++engine)
    add(0x600 + engine % groups * 64 + 32, std::uint64_t{1} << engine);
  for (std::uint32_t queue = 0; queue < queues; ++queue) {
    add(0x600 + queue % groups * 64, std::uint64_t{1} << queue);
    rig.Write32(0x800 + queue * 32, static_cast<std::uint32_t>(wqcap & 0xffff) / queues);
    rig.Write32(0x800 + queue * 32 + 8, 1 << 4 | 1);
    rig.Write32(0x800 + queue * 32 + 12, transfer | batch << 5);
  }
  CHECK(rig.Command(1) == 0);
  for (std::uint32_t queue = 0; queue < queues; ++queue) {
    CHECK(rig.Command(6, queue) == 0);
    CHECK((rig.Read32(0x800 + queue * 32 + 24) >> 30) == 1);
  }
  CHECK(rig.scripted().config(7).max_batch == 1024);
  CHECK(rig.scripted().config(7).max_transfer == std::uint64_t{1} << 31);
  for (std::uint32_t queue = 0; queue < queues; ++queue) {
    CHECK(rig.Command(7, 1U << queue) == 0);
    CHECK((rig.Read32(0x800 + queue * 32 + 24) >> 30) == 0);
  }
  // The last queue's close disables the device, with the queue's number as operand.
  CHECK(rig.Command(2, queues - 1) == 0);
  CHECK((rig.Read32(0x90) & 3) == 0);
  CHECK(rig.file().refused() == 0);
}

}  // namespace postern::dsa
