#include "devices/siov/host/dsa_host.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/siov/host/host_rig.h"
#include "devices/siov/host/rendezvous.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using Access = LoopbackDevice::Access;
using Words = std::array<std::uint64_t, 4>;

struct Owner final : QueueOwner {
  void OnQueueError(std::uint32_t queue, const Words& words) override {
    queues.fetch_or(1U << queue);
    last = words[0];
    ++errors;
  }
  void OnHandlesRevoked() override { ++revocations; }
  void OnHostLost() override { ++losses; }
  std::atomic<std::uint32_t> queues{0};
  std::atomic<std::uint64_t> last{0};
  std::atomic<int> errors{0};
  std::atomic<int> losses{0};
  std::atomic<int> revocations{0};
};

siov::QueueConfig ConfigOf(const DsaHost& host, std::uint32_t size) {
  return {.size = size,
          .priority = 0,
          .max_transfer = 0x1000,
          .max_batch = 2,
          .operations = host.caps().operations};
}

siov::HaltResult Halt(DsaHost& host, QueueHalt kind, siov::QueueSet queues) {
  Rendezvous<siov::HaltResult> answer;
  host.Halt(kind, queues, [&answer](siov::HaltResult result) { answer.Give(result); });
  return answer.Wait();
}

// The last value written to an offset of BAR 0; all ones: none.
std::uint64_t Written(LoopbackDevice& device, std::uint64_t offset) {
  std::uint64_t value = ~std::uint64_t{0};
  for (const Access& access : device.Writes(0)) {
    if (access.offset == offset) value = access.value;
  }
  return value;
}

std::uint64_t CommandsOf(LoopbackDevice& device, regs::Command code) {
  std::uint64_t count = 0;
  for (const Access& access : device.Writes(0)) {
    const regs::CMD command{{static_cast<std::uint32_t>(access.value)}};
    count += access.offset == regs::kCmd &&
                     command.Get<regs::CMD::Code>() == static_cast<std::uint64_t>(code)
                 ? 1
                 : 0;
  }
  return count;
}

template <typename U>
void Answer(std::span<std::byte> data, U value) {
  std::memcpy(data.data(), &value, std::min(data.size(), sizeof(value)));
}

}  // namespace

TEST_CASE("dsa host: the device is reset, examined and left disabled until somebody starts it") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  CHECK(rig.device->resets == 1);
  CHECK(CommandsOf(*rig.device, regs::Command::kResetDevice) == 1);
  const HostCaps& caps = rig.host->caps();
  CHECK(caps.version == 0x100);
  CHECK(caps.configurable);
  CHECK(caps.queues == 4);
  CHECK(caps.entries == 128);
  CHECK(caps.groups == 4);
  CHECK(caps.engines == 4);
  CHECK(caps.transfer_shift == 31);
  CHECK(caps.batch_shift == 10);
  CHECK(caps.grpcfg == regs::kGrpcfg);
  CHECK(caps.wqcfg == regs::kWqcfg);
  CHECK(caps.msixperm == regs::kMsixperm);
  CHECK(caps.wqcfg_bytes == 32);
  CHECK_FALSE(caps.handles);
  CHECK(Written(*rig.device, regs::kGenctrl) == 3);
  CHECK(CommandsOf(*rig.device, regs::Command::kEnableDevice) == 0);
}

TEST_CASE("dsa host: queues are planned, grouped and given all the entries there are") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  Owner one;
  Owner two;
  DsaHost& host = *rig.host;
  CHECK(host.Reserve({.queues = 0}, one).error().code == Errc::kInvalidArgument);
  CHECK(host.Reserve({.queues = 5}, one).error().code == Errc::kExhausted);
  CHECK(host.Reserve({.queues = 1, .size = 129}, one).error().code == Errc::kExhausted);
  CHECK(host.Reserve({.queues = 1, .size = 8, .pasid = 7}, one).error().code == Errc::kUnsupported);
  const HostLease first = host.Reserve({.queues = 2, .size = 24}, one).value();
  CHECK(first.queues == std::vector<std::uint32_t>{0, 1});
  CHECK(first.size == 24);
  CHECK(host.Reserve({.queues = 1, .size = 81}, two).error().code == Errc::kExhausted);
  CHECK(host.EnableQueue(0, ConfigOf(host, 24)).error().code == Errc::kBadState);
  REQUIRE(host.Start());
  REQUIRE(host.Start());
  CHECK(CommandsOf(*rig.device, regs::Command::kEnableDevice) == 1);
  for (const auto& [queue, size] : {std::pair{0U, 24U}, {1U, 24U}, {2U, 32U}, {3U, 32U}})
    CHECK(Written(*rig.device, regs::kWqcfg + 32 * queue) == size);
  for (std::uint32_t group = 0; group < 4; ++group) {
    CHECK(Written(*rig.device, regs::kGrpcfg + 64 * group) == 1U << group);
    CHECK(Written(*rig.device, regs::kGrpcfg + 64 * group + 32) == 1U << group);
    CHECK(Written(*rig.device, regs::kGrpcfg + 64 * group + 40) == 9);
  }
  // From now on those that are left, if they are large enough.
  CHECK(host.Reserve({.queues = 1, .size = 33}, two).error().code == Errc::kExhausted);
  const HostLease second = host.Reserve({.queues = 1}, two).value();
  CHECK(second.queues == std::vector<std::uint32_t>{2});
  CHECK(second.size == 32);
  host.Release(first);
  host.Release(second);
}

TEST_CASE("dsa host: queues are enabled, halted by their bits, reset alone") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  Owner owner;
  DsaHost& host = *rig.host;
  const HostLease lease = host.Reserve({.queues = 3, .size = 8}, owner).value();
  REQUIRE(host.Start());
  CHECK(host.EnableQueue(9, ConfigOf(host, 8)).error().code == Errc::kInvalidArgument);
  CHECK(host.EnableQueue(1, ConfigOf(host, 0)).error().code == Errc::kInvalidArgument);
  CHECK(host.EnableQueue(1, ConfigOf(host, 9)).error().code == Errc::kInvalidArgument);
  for (const std::uint32_t queue : lease.queues)
    REQUIRE(host.EnableQueue(queue, ConfigOf(host, 8)));
  CHECK(host.EnableQueue(1, ConfigOf(host, 8)).error().code == Errc::kBadState);
  // Dedicated, of the least priority there is, and no PASID.
  CHECK(Written(*rig.device, regs::kWqcfg + 32 + regs::kWqMode) == 0x11);
  CHECK(Written(*rig.device, regs::kWqcfg + 32 + regs::kWqLimits) == (12 | 1 << 5));
  CHECK(Written(*rig.device, regs::kMsixperm + 16) == 0);
  CHECK(Halt(host, QueueHalt::kDrain, 7) == siov::HaltResult::kDone);
  CHECK(Written(*rig.device, regs::kCmd) == (0x80000000U | 8U << 20 | 7));
  CHECK(Halt(host, QueueHalt::kAbort, 2) == siov::HaltResult::kDone);
  CHECK(Written(*rig.device, regs::kCmd) == (0x80000000U | 9U << 20 | 2));
  CHECK(Halt(host, QueueHalt::kDisable, 2) == siov::HaltResult::kDone);
  CHECK(Written(*rig.device, regs::kCmd) == (0x80000000U | 7U << 20 | 2));
  // Those that are disabled are left out, as the device would refuse them all.
  CHECK(Halt(host, QueueHalt::kDrain, 7) == siov::HaltResult::kDone);
  CHECK(Written(*rig.device, regs::kCmd) == (0x80000000U | 8U << 20 | 5));
  const std::uint64_t before = testing::ReportedCounter(host, "host_commands");
  CHECK(Halt(host, QueueHalt::kDrain, 2) == siov::HaltResult::kDone);
  CHECK(Halt(host, QueueHalt::kDrain, 0) == siov::HaltResult::kDone);
  CHECK(testing::ReportedCounter(host, "host_commands") == before);
  host.Reset(4);
  CHECK(Written(*rig.device, regs::kCmd) == (0x80000000U | 10U << 20 | 4));
  CHECK(CommandsOf(*rig.device, regs::Command::kResetDevice) == 1);
  REQUIRE(host.EnableQueue(2, ConfigOf(host, 4)));
  CHECK(host.DrainNow(5) == siov::HaltResult::kDone);
  CHECK(testing::ReportedCounter(host, "host_command_errors") == 0);
  host.Release(lease);
  CHECK(owner.losses == 0);
}

TEST_CASE("dsa host: interrupt handles are asked for once, vectors are the queues' own") {
  HostRig rig({.named_handles = true});
  REQUIRE(rig.Open() == "");
  Owner owner;
  DsaHost& host = *rig.host;
  CHECK(host.caps().handles);
  const HostLease lease = host.Reserve({.queues = 1, .size = 8}, owner).value();
  const std::uint32_t handle = host.Handle(1).value();
  CHECK(handle >= 2048);
  CHECK(host.Handle(1).value() == handle);
  CHECK(host.Handle(0).error().code == Errc::kInvalidArgument);
  CHECK(host.Handle(5).error().code == Errc::kInvalidArgument);
  CHECK(CommandsOf(*rig.device, regs::Command::kRequestHandle) == 1);
  const EventFd event = EventFd::Create().value();
  REQUIRE(host.SetVector(1, event.fd()));
  CHECK(rig.device->Signal(vfio::kMsixIrq, 1));
  CHECK(event.Pending());
  CHECK_FALSE(host.SetVector(0, event.fd()).has_value());
  CHECK_FALSE(host.SetVector(5, event.fd()).has_value());
  host.Release(lease);
}

TEST_CASE("dsa host: a command that is never completed is the end, for all owners alike") {
  std::atomic<bool> stuck{false};
  HostRig rig({.host = {.name = "slow",
                        .command_limit = std::chrono::milliseconds(20),
                        .portals_are_memory = true}});
  rig.device->read = [&](const Access& access, std::span<std::byte> data) {
    if (stuck && access.region == 0 && access.offset == regs::kCmdstatus)
      Answer(data, std::uint32_t{0x80000000});
  };
  REQUIRE(rig.Open() == "");
  Owner one;
  Owner two;
  DsaHost& host = *rig.host;
  const HostLease first = host.Reserve({.queues = 2, .size = 8}, one).value();
  const HostLease second = host.Reserve({.queues = 1, .size = 8}, two).value();
  REQUIRE(host.Start());
  REQUIRE(host.EnableQueue(0, ConfigOf(host, 8)));
  stuck = true;
  CHECK(Halt(host, QueueHalt::kDrain, 1) == siov::HaltResult::kLost);
  CHECK(host.lost());
  CHECK(one.losses == 1);
  CHECK(two.losses == 1);
  // What it may still do reaches no memory.
  CHECK((rig.device->Writes(vfio::kConfigRegion).back().value & 4) == 0);
  CHECK(host.EnableQueue(2, ConfigOf(host, 8)).error().sys_errno == ENODEV);
  CHECK(host.Start().error().sys_errno == ENODEV);
  CHECK(host.Reserve({.queues = 1}, one).error().sys_errno == ENODEV);
  CHECK(host.Occupancy(0) == 0);
  CHECK(Halt(host, QueueHalt::kDisable, 1) == siov::HaltResult::kLost);
  CHECK(host.DrainNow(7) == siov::HaltResult::kLost);
  host.Reset(3);
  host.Release(first);
  host.Release(second);
  CHECK(testing::ReportedCounter(host, "host_losses") == 1);
}

TEST_CASE("dsa host: registers of all ones, and calls that fail, are a device that is gone") {
  for (const bool ones : {true, false}) {
    CAPTURE(ones);
    std::atomic<bool> gone{false};
    HostRig rig;
    rig.device->fail = [&](const Access&) { return gone && !ones ? ENODEV : 0; };
    rig.device->read = [&](const Access&, std::span<std::byte> data) {
      if (gone && ones) std::ranges::fill(data, std::byte{0xff});
    };
    REQUIRE(rig.Open() == "");
    Owner owner;
    DsaHost& host = *rig.host;
    const HostLease lease = host.Reserve({.queues = 1, .size = 8}, owner).value();
    REQUIRE(host.Start());
    gone = true;
    CHECK(host.EnableQueue(0, ConfigOf(host, 8)).error().sys_errno == ENODEV);
    CHECK(owner.losses == 1);
    CHECK(host.lost());
    host.Release(lease);
  }
}

TEST_CASE("dsa host: a halt, and an error interrupt of the kernel's, are losses") {
  for (const std::uint32_t irq : {vfio::kErrorIrq, vfio::kRequestIrq, vfio::kMsixIrq}) {
    CAPTURE(irq);
    std::atomic<bool> halted{false};
    HostRig rig;
    rig.device->read = [&](const Access& access, std::span<std::byte> data) {
      if (halted && access.region == 0 && access.offset == regs::kIntcause)
        Answer(data, std::uint32_t{0x10});
    };
    REQUIRE(rig.Open() == "");
    Owner owner;
    const HostLease lease = rig.host->Reserve({.queues = 1, .size = 8}, owner).value();
    halted = irq == vfio::kMsixIrq;
    CHECK(rig.device->Signal(irq, 0));
    CHECK(WaitFor([&] { return owner.losses == 1; }));
    rig.host->Release(lease);
  }
}

TEST_CASE("dsa host: an error goes to the owner of its queue, without the PASID") {
  std::atomic<std::uint64_t> record{0};
  std::atomic<bool> told{false};
  HostRig rig;
  rig.device->read = [&](const Access& access, std::span<std::byte> data) {
    if (record == 0 || access.region != 0) return;
    if (access.offset == regs::kIntcause) Answer(data, std::uint32_t{1});
    if (access.offset == regs::kSwerror) {
      Answer(data, record.load());
      told = true;
    }
  };
  REQUIRE(rig.Open() == "");
  Owner one;
  Owner two;
  const HostLease first = rig.host->Reserve({.queues = 1, .size = 8}, one).value();
  const HostLease second = rig.host->Reserve({.queues = 2, .size = 8}, two).value();
  const auto say = [&](std::uint64_t what) {
    told = false;
    record = what;
    CHECK(rig.device->Signal(vfio::kMsixIrq, 0));
    CHECK(WaitFor([&] { return told.load(); }));
  };
  // Valid, of queue 2, code 0x13, with PASID 0x12345.
  say(0x0123'4500'0002'130d);
  CHECK(WaitFor([&] { return two.errors == 1; }));
  CHECK(two.queues == 2);
  CHECK(two.last == 0x0000'0000'0002'130d);
  // Of a queue that is nobody's, and of one that is not there; of none; and not valid.
  say(0x0000'0000'0003'1309);
  say(0x0000'0000'00ff'1309);
  say(0x0000'0000'0002'5201);
  say(0x0000'0000'0002'1308);
  CHECK(WaitFor([&] { return testing::ReportedCounter(*rig.host, "host_errors_of_nobody") == 3; }));
  CHECK(two.errors == 1);
  CHECK(one.errors == 0);
  CHECK(testing::ReportedCounter(*rig.host, "host_errors_routed") == 1);
  rig.host->Release(first);
  rig.host->Release(second);
}

TEST_CASE("dsa host: an error that came while another was cleared is told as an overflow") {
  std::atomic<bool> error{false};
  std::atomic<bool> cleared{false};
  HostRig rig;
  rig.device->fail = [&](const Access& access) {
    if (access.write && access.region == 0 && access.offset == regs::kSwerror) cleared = true;
    return 0;
  };
  rig.device->read = [&](const Access& access, std::span<std::byte> data) {
    if (!error || access.region != 0) return;
    if (access.offset == regs::kIntcause) Answer(data, std::uint32_t{1});
    // Valid; and then Overflow alone, which has no interrupt.
    if (access.offset == regs::kSwerror)
      Answer(data, cleared ? std::uint64_t{2} : std::uint64_t{0x0002'130d});
  };
  REQUIRE(rig.Open() == "");
  Owner owner;
  const HostLease lease = rig.host->Reserve({.queues = 3, .size = 8}, owner).value();
  cleared = false;
  error = true;
  CHECK(rig.device->Signal(vfio::kMsixIrq, 0));
  CHECK(WaitFor([&] { return owner.errors == 1; }));
  CHECK(owner.last == 0x0002'130f);
  CHECK(testing::ReportedCounter(*rig.host, "host_error_overflows") == 1);
  CHECK(Written(*rig.device, regs::kSwerror) == 2);
  rig.host->Release(lease);
}

TEST_CASE("dsa host: what the device refuses is an error, and not its end, where it can be") {
  std::atomic<std::uint32_t> status{0};
  HostRig rig;
  rig.device->read = [&](const Access& access, std::span<std::byte> data) {
    if (status != 0 && access.region == 0 && access.offset == regs::kCmdstatus)
      Answer(data, status.load());
  };
  REQUIRE(rig.Open() == "");
  Owner owner;
  DsaHost& host = *rig.host;
  const HostLease lease = host.Reserve({.queues = 1, .size = 8}, owner).value();
  status = 0x14;
  CHECK(host.Start().error().sys_errno == EIO);
  status = 0;
  // The device did it all the same: it lied.
  CHECK(host.Start().error().sys_errno == EIO);
  CHECK_FALSE(host.lost());
  host.Release(lease);

  HostRig other;
  other.device->read = rig.device->read;
  REQUIRE(other.Open() == "");
  const HostLease again = other.host->Reserve({.queues = 1, .size = 8}, owner).value();
  REQUIRE(other.host->Start());
  status = 0x21;
  CHECK(other.host->EnableQueue(0, ConfigOf(*other.host, 8)).error().sys_errno == EIO);
  status = 0;
  CHECK_FALSE(other.host->lost());
  // "Not disabled": so it is reset with the others, and can be enabled again.
  other.host->Reset(1);
  CHECK(other.host->EnableQueue(0, ConfigOf(*other.host, 8)).has_value());
  other.host->Release(again);

  HostRig third;
  third.device->read = rig.device->read;
  REQUIRE(third.Open() == "");
  const HostLease last = third.host->Reserve({.queues = 1, .size = 8}, owner).value();
  REQUIRE(third.host->Start());
  REQUIRE(third.host->EnableQueue(0, ConfigOf(*third.host, 8)));
  status = 0x32;  // not enabled: as good as drained
  CHECK(Halt(*third.host, QueueHalt::kDrain, 1) == siov::HaltResult::kDone);
  status = 0x03;  // a queue that cannot be stopped
  CHECK(Halt(*third.host, QueueHalt::kDrain, 1) == siov::HaltResult::kLost);
  CHECK(third.host->lost());
  status = 0;
  third.host->Release(last);
}

TEST_CASE("dsa host: a device that lies about what it is, is refused with a reason") {
  struct Lie {
    std::uint64_t offset;
    std::uint64_t value;
    std::string why;
  };
  const std::vector<Lie> lies = {
      {regs::kVersion, 0x900, "VERSION of the DSA"},
      {regs::kVersion, 0, "VERSION of the DSA"},
      {regs::kWqcap, 0x000a'0000'0000'0080, "WQCAP: no queue"},
      {regs::kWqcap, 0x000a'0000'0008'0000, "WQCAP: no queue"},
      {regs::kWqcap, 0x0008'0000'0008'0080, "WQCAP: no dedicated queues"},
      {regs::kWqcap, 0x000a'0000'0f08'0080, "WQCAP: size of a queue's entry"},
      {regs::kGrpcap, 0, "GRPCAP, ENGCAP: no group or no engine"},
      {regs::kEngcap, 0, "GRPCAP, ENGCAP: no group or no engine"},
      {regs::kOffsets, 0x0000'0004'0008'0100, "OFFSETS: a table beyond BAR 0"},
      {regs::kOffsets, 0x0000'0004'ffff'0006, "OFFSETS: a table beyond BAR 0"},
      {regs::kOffsets, 0x0000'0000'0008'0006, "OFFSETS: a table beyond BAR 0"},
  };
  for (const Lie& lie : lies) {
    CAPTURE(lie.offset);
    CAPTURE(lie.value);
    HostRig rig;
    rig.device->read = [&](const Access& access, std::span<std::byte> data) {
      if (access.region == 0 && access.offset == lie.offset) Answer(data, lie.value);
    };
    const std::string cause = rig.Open();
    CHECK(cause.find("loopback cannot be driven as a DSA: " + lie.why) == 0);
  }
  // More than there can be is cut down to what has a vector and a page.
  HostRig rig;
  rig.device->read = [&](const Access& access, std::span<std::byte> data) {
    if (access.region == 0 && access.offset == regs::kWqcap)
      Answer(data, std::uint64_t{0x000a'0000'00fe'fffe});
    if (access.region == 0 && access.offset == regs::kEngcap) Answer(data, std::uint32_t{0xfe});
  };
  REQUIRE(rig.Open() == "");
  CHECK(rig.host->caps().queues == 4);
  CHECK(rig.host->caps().engines == 64);
}

TEST_CASE("dsa host: what is no DSA is not touched") {
  struct Id {
    std::uint16_t vendor;
    std::uint16_t device;
    std::string cause;
  };
  const std::vector<Id> ids = {
      {0x8086, 0x0cfe, "loopback is an analytics accelerator (8086:0cfe), not a DSA"},
      {0x8086, 0x10d3, "loopback is not a DSA (8086:10d3)"},
      {0x1af4, 0x0b25, "loopback is not a DSA (1af4:0b25)"},
      {0xffff, 0xffff, "loopback is not a DSA (ffff:ffff)"}};
  for (const Id& id : ids) {
    std::vector<Access> writes;
    HostRig rig;
    rig.device->read = [&](const Access& access, std::span<std::byte> data) {
      if (access.region != vfio::kConfigRegion) return;
      if (access.offset == 0) Answer(data, id.vendor);
      if (access.offset == 2) Answer(data, id.device);
    };
    rig.device->fail = [&](const Access& access) {
      if (access.write) writes.push_back(access);
      return 0;
    };
    CHECK(rig.Open() == id.cause);
    CHECK(writes.empty());
  }
}

TEST_CASE("dsa host: a device that does not end its reset is refused") {
  HostRig rig({.host = {.name = "stuck", .reset_limit = std::chrono::milliseconds(5)}});
  rig.device->read = [&](const Access& access, std::span<std::byte> data) {
    if (access.region == 0 && access.offset == regs::kCmdstatus)
      Answer(data, std::uint32_t{0x80000000});
  };
  CHECK(rig.Open().find("loopback cannot be driven as a DSA: a command is not completed") == 0);
}

TEST_CASE("dsa host: a device whose configuration is fixed is taken as it is") {
  HostRig rig({.device = {.profile = DsaProfile::kReadOnly, .wqs = 2, .wq_size = 12}});
  REQUIRE(rig.Open() == "");
  DsaHost& host = *rig.host;
  CHECK_FALSE(host.caps().configurable);
  Owner owner;
  CHECK(host.Reserve({.queues = 1, .size = 13}, owner).error().code == Errc::kExhausted);
  const HostLease lease = host.Reserve({.queues = 2}, owner).value();
  CHECK(lease.size == 12);
  REQUIRE(host.Start());
  REQUIRE(host.EnableQueue(1, ConfigOf(host, 12)));
  CHECK(Written(*rig.device, regs::kWqcfg) == ~std::uint64_t{0});
  CHECK(host.DrainNow(2) == siov::HaltResult::kDone);
  host.Release(lease);

  HostRig pasids({.device = {.profile = DsaProfile::kReadOnly, .wqs = 2, .wq_size = 12},
                  .host = {.name = "pasids", .pasids = true}});
  CHECK(pasids.Open().find("PASIDs of a device whose configuration is fixed") != std::string::npos);
}

TEST_CASE("dsa host: a queue with a PASID, and its vector, carry it") {
  HostRig rig({.host = {.name = "pasids", .pasids = true}});
  REQUIRE(rig.Open() == "");
  DsaHost& host = *rig.host;
  Owner owner;
  CHECK(host.Reserve({.queues = 1, .size = 8, .pasid = 0}, owner).error().code ==
        Errc::kUnsupported);
  CHECK(host.Reserve({.queues = 1, .size = 8, .pasid = 1 << 20}, owner).error().code ==
        Errc::kUnsupported);
  const HostLease lease = host.Reserve({.queues = 1, .size = 8, .pasid = 0x12345}, owner).value();
  REQUIRE(host.Start());
  CHECK(Written(*rig.device, regs::kGencfg) == 0x1000);
  // The device is a Vdev, which has no PASIDs: it says so.
  CHECK(host.EnableQueue(0, ConfigOf(host, 8)).error().sys_errno == EIO);
  CHECK(Written(*rig.device, regs::kWqcfg + regs::kWqMode) == 0x1123'4511);
  CHECK(Written(*rig.device, regs::kMsixperm + 8) == 0x1234'5008);
  host.Release(lease);
}

}  // namespace postern::dsa
