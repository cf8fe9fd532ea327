#pragma once

// GuestDriver: a DSA in a guest and that guest's driver of it, as Linux does it, in memory: a Vdev
// with DsaPersonality over any back end, on a bus of its own.
//
//   GuestDriver guest(std::move(backend), {.wqs = 1, .wq_size = 16}, PortalMode::kTrapped);
//   guest.Enable(0);
//   guest.SubmitTrapped(0, descriptor);
//
// Threads: the test's, which is the guest's vCPU and its loop.

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "devices/pci/fake_function.h"
#include "devices/siov/core/vdev.h"
#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/engine/fake_parts.h"
#include "src/base/check.h"
#include "src/base/event_loop.h"
#include "tests/support/counter.h"
#include "tests/support/memory.h"

namespace postern::dsa {

struct GuestDriver {
  static constexpr std::uint64_t kRegisters = 0xc0100000;
  static constexpr std::uint64_t kPortals = 0x4000100000;
  static constexpr std::uint32_t kExpress = 0x40;

  GuestDriver(std::unique_ptr<siov::Backend> backend, const DsaOptions& options,
              siov::PortalMode portal) {
    auto personality = DsaPersonality::Create(options, backend->caps()).value();
    vdev = siov::Vdev::Create({.name = "guest", .portal = portal}, std::move(personality),
                              std::move(backend), {bridge.platform.interrupts, *loop})
               .value();
    where = bridge.root->Add(*vdev).value();
    Start();
  }
  ~GuestDriver() { CHECK(bridge.root->Remove(*vdev).has_value()); }
  GuestDriver(const GuestDriver&) = delete;
  GuestDriver& operator=(const GuestDriver&) = delete;

  // BARs, memory decoding and bus mastering; after a function reset, too.
  void Start() {
    bridge.Config<std::uint32_t>(where, pci::kBar0, kRegisters);
    bridge.Config<std::uint32_t>(where, pci::kBar0 + 8, kPortals & 0xffff'ffff);
    bridge.Config<std::uint32_t>(where, pci::kBar0 + 12, kPortals >> 32);
    bridge.Config<std::uint16_t>(where, pci::kCommand, 0x6);
  }
  template <typename U>
  U Read(std::uint64_t offset) {
    return bridge.Read<U>(kRegisters + offset);
  }
  template <typename U>
  void Write(std::uint64_t offset, U value) {
    bridge.Write<U>(kRegisters + offset, value);
  }
  // Until it is not active any more.
  std::uint32_t Command(dsa_regs::Command code, std::uint32_t operand = 0) {
    Write<std::uint32_t>(dsa_regs::kCmd, static_cast<std::uint32_t>(code) << 20 | operand);
    CHECK(WaitFor([this] {
      loop->RunOnce(0);
      return (Read<std::uint32_t>(dsa_regs::kCmdstatus) >> 31) == 0;
    }));
    return Read<std::uint32_t>(dsa_regs::kCmdstatus);
  }
  void EnableMsix() {
    const auto vectors = vdev->personality().layout().vectors;
    for (std::uint32_t v = 0; v < vectors; ++v) {
      const std::uint64_t entry = dsa_regs::kMsixTable + 16 * v;
      Write<std::uint64_t>(entry, 0xfee00000);
      Write<std::uint32_t>(entry + 8, 0x40 + v);
      Write<std::uint32_t>(entry + 12, 0);
    }
    bridge.Config<std::uint16_t>(where, kExpress + pci::kExpressSizeV2 + pci::kMsixControl, 0x8000);
  }
  // As Linux does: the device, then one queue. 0, or the first status that is not.
  std::uint32_t Enable(std::uint32_t queue) {
    const std::uint32_t state = Read<std::uint32_t>(dsa_regs::kGensts) & 3;
    if (state == 0) {
      EnableMsix();
      Write<std::uint32_t>(dsa_regs::kGenctrl, 3);
      if (const std::uint32_t status = Command(dsa_regs::Command::kEnableDevice); status != 0)
        return status;
    }
    return Command(dsa_regs::Command::kEnableWq, queue);
  }
  std::uint32_t Handle(std::uint32_t vector) {
    if (!vdev->backend().caps().named_handles) return vector;
    return Command(dsa_regs::Command::kRequestHandle, vector) >> 8;
  }
  void FunctionLevelReset() {
    bridge.Config<std::uint16_t>(where, kExpress + pci::kExpressDeviceControl, pci::kExpressFlr);
  }
  // MOVDIR64B by an exit, and by the mapped page.
  void SubmitTrapped(std::uint32_t queue, const siov::Descriptor& descriptor) {
    const MutexLock lock(vdev->lock());
    vdev->SubmitAt(std::uint64_t{queue} * 0x4000 + 0x1000, descriptor);
  }
  void StoreDirect(std::uint32_t queue, const siov::Descriptor& descriptor) {
    const std::uint64_t at =
        kPortals + std::uint64_t{queue} * 0x4000 + 0x1000 + std::uint64_t{64} * slot;
    slot = (slot + 1) % 64;
    const std::span<const std::byte> bytes = descriptor;
    for (std::size_t i = 56;; i -= 8) {
      CHECK(bridge.platform.pages.GuestWrite(memory::Gpa(at + i), bytes.subspan(i, 8)));
      if (i == 0) break;
    }
  }
  std::uint64_t Counter(std::string_view name) { return testing::ReportedCounter(*vdev, name); }

  pci::FakeBridge bridge;
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  std::unique_ptr<siov::Vdev> vdev;
  pci::Bdf where;
  std::uint32_t slot = 0;
};

}  // namespace postern::dsa
