// The personality in a whole Vdev: config space, BARs, portals, MSI-X, function reset, saved state.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/siov/core/fake_backend.h"
#include "devices/siov/dsa/guest_driver.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

constexpr std::uint16_t kMemory = 0x2, kBusMaster = 0x4;
constexpr DsaOptions kRo{.wqs = 2, .wq_size = 2};

siov::BackendCaps Caps(bool named_handles) {
  siov::BackendCaps caps = siov::FakeBackend::DefaultCaps();
  caps.queues = 8;
  caps.entries = 128;
  caps.engines = 4;
  caps.operations = {0x1003f03ff, 0, 0, 0};
  caps.max_transfer = std::uint64_t{1} << 31;
  caps.max_batch = 1024;
  caps.saves = true;
  caps.named_handles = named_handles;
  return caps;
}

struct DsaVdev : GuestDriver {
  explicit DsaVdev(const DsaOptions& options, bool named_handles = false)
      : DsaVdev(std::make_unique<siov::FakeBackend>(Caps(named_handles)), options) {}

  void SetCommand(std::uint16_t value) {
    bridge.Config<std::uint16_t>(where, pci::kCommand, value);
  }
  void Turn() {
    for (int i = 0; i < 4; ++i) loop->RunOnce(0);
  }
  std::uint32_t Command(std::uint32_t code, std::uint32_t operand = 0) {
    Write<std::uint32_t>(dsa_regs::kCmd, code << 20 | operand);
    Turn();
    return Read<std::uint32_t>(dsa_regs::kCmdstatus);
  }
  void Submit(std::uint64_t offset, std::uint64_t tag) {
    const MutexLock lock(vdev->lock());
    vdev->SubmitAt(offset, siov::FakeDescriptor(tag));
  }
  void Enable() {
    CHECK(Command(1) == 0);
    CHECK(Command(6, 0) == 0);
    Write<std::uint32_t>(dsa_regs::kGenctrl, 3);
  }
  siov::VdevState Save() {
    const MutexLock lock(vdev->lock());
    vdev->Quiesce();
    siov::VdevState state = vdev->Save().value();
    vdev->Resume();
    return state;
  }
  // "" or what was wrong with it.
  std::string Restore(const siov::VdevState& state) {
    const MutexLock lock(vdev->lock());
    const Result<void> restored = vdev->Restore(state);
    return restored.has_value() ? "" : restored.error().op;
  }

  siov::FakeBackend* backend;

 private:
  DsaVdev(std::unique_ptr<siov::FakeBackend> own, const DsaOptions& options)
      : DsaVdev(own.get(), own, options) {}
  DsaVdev(siov::FakeBackend* of, std::unique_ptr<siov::FakeBackend>& own, const DsaOptions& options)
      : GuestDriver(std::move(own), options, siov::PortalMode::kTrapped), backend(of) {}
};

}  // namespace

TEST_CASE("dsa vdev: both profiles are functions Linux would bind to") {
  for (const DsaProfile profile : {DsaProfile::kReadOnly, DsaProfile::kConfigurable}) {
    DsaVdev f({.profile = profile});
    CHECK(f.bridge.Config<std::uint32_t>(f.where, 0) == 0x0b258086);
    CHECK((f.bridge.Config<std::uint32_t>(f.where, 8) >> 8) == 0x088000);
    CHECK(f.Read<std::uint32_t>(0) == 0x100);
    CHECK(f.Read<std::uint64_t>(0x60) == 0x0000'0004'0008'0006);
    CHECK((f.Read<std::uint64_t>(0x10) >> 31 & 1) == (profile == DsaProfile::kReadOnly ? 0 : 1));
    CHECK(f.Command(5) == 0);
  }
}

TEST_CASE("dsa vdev: both portal pages take descriptors, and a full queue is an error") {
  DsaVdev f(kRo);
  f.Submit(0x1000, 1);  // disabled: silent
  f.Turn();
  CHECK(f.Read<std::uint64_t>(dsa_regs::kSwerror) == 0);
  f.Enable();
  f.Submit(0x0000, 2);
  f.Submit(0x1040, 3);
  CHECK(f.Read<std::uint32_t>(0x818) == 0x6000'0002);
  f.Submit(0x1080, 4);
  f.Turn();
  CHECK(f.Read<std::uint64_t>(dsa_regs::kSwerror) == 0x5309);
  CHECK(f.Read<std::uint32_t>(dsa_regs::kIntcause) == 1);
  CHECK(f.backend->Complete(0, 3) == 2);
  CHECK(f.backend->CompletedTags(0) == std::vector<std::uint64_t>{2, 3});
}

TEST_CASE("dsa vdev: a drain waits for what was submitted") {
  DsaVdev f(kRo);
  f.Enable();
  f.Submit(0x1000, 1);
  CHECK(f.Command(8, 1) == 0x8000'0000);
  CHECK(f.backend->Complete(0) == 1);
  f.Turn();
  CHECK(f.Read<std::uint32_t>(dsa_regs::kCmdstatus) == 0);
  f.Submit(0x1000, 2);
  // Reset WQ abandons what has not begun.
  CHECK(f.Command(10, 1) == 0);
  CHECK_FALSE(f.backend->enabled(0));
  CHECK(f.Read<std::uint32_t>(0x808) == 0xa1);
}

TEST_CASE("dsa vdev: a function reset under a command") {
  DsaVdev f(kRo);
  f.Enable();
  f.Submit(0x1000, 1);
  CHECK(f.Command(2) == 0x8000'0000);
  f.FunctionLevelReset();
  f.Turn();
  f.Start();
  CHECK(f.Read<std::uint32_t>(dsa_regs::kGensts) == 0);
  CHECK(f.Read<std::uint32_t>(dsa_regs::kCmdstatus) == 0);
  CHECK(f.Read<std::uint64_t>(dsa_regs::kSwerror) == 0);
  f.Enable();
}

TEST_CASE("dsa vdev: without bus mastering it halts, and recovers by Reset Device") {
  DsaVdev f(kRo);
  f.Enable();
  f.SetCommand(kMemory);
  CHECK(f.Read<std::uint32_t>(dsa_regs::kGensts) == 3);
  CHECK(f.Read<std::uint64_t>(dsa_regs::kSwerror) == 0x5101);
  CHECK_FALSE(f.backend->started());
  CHECK(f.Command(5) == 0);
  f.SetCommand(kMemory | kBusMaster);
  f.Enable();
}

TEST_CASE("dsa vdev: a device in the middle of a command goes on in another") {
  for (const bool named : {false, true}) {
    DsaVdev f(kRo, named);
    f.Enable();
    f.Submit(0x1000, 7);
    if (named) CHECK((f.Command(13, 1) & 0xff) == 0);
    CHECK(f.Command(2) == 0x8000'0000);
    const siov::VdevState state = f.Save();
    DsaVdev other(kRo, named);
    REQUIRE(other.Restore(state) == "");
    CHECK(other.Read<std::uint32_t>(dsa_regs::kCmdstatus) == 0x8000'0000);
    CHECK(other.Read<std::uint32_t>(dsa_regs::kIntcause) == (named ? 0x8000'0000 : 0));
    CHECK(other.backend->Complete(0) == 1);
    other.Turn();
    CHECK(other.Read<std::uint32_t>(dsa_regs::kCmdstatus) == 0);
    CHECK(other.Read<std::uint32_t>(dsa_regs::kGensts) == 0);
    CHECK_FALSE(other.backend->started());
  }
}

TEST_CASE("dsa vdev: a back end that vanishes, reset or not") {
  DsaVdev f(kRo);
  f.Enable();
  f.backend->events().OnLost();
  f.Turn();
  CHECK(f.Read<std::uint32_t>(dsa_regs::kGensts) == 0xf);
  f.FunctionLevelReset();
  f.Start();
  CHECK(f.Read<std::uint32_t>(dsa_regs::kGensts) == 0xf);
  CHECK(f.Command(5) == 0x03);
}

}  // namespace postern::dsa
