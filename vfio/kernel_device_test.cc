// A device of the fake kernel, as the guest's function uses it.

#include "vfio/kernel_device.h"

#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "src/base/event_fd.h"
#include "src/base/thread.h"
#include "vfio/fake_vfio_kernel.h"
#include "vfio/kernel_host.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using Log = std::vector<std::string>;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kReadWrite = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;

struct Rig {
  FakeVfioKernel kernel;
  FakeVfioDevice& fake = kernel.AddDevice("0000:3b:00.0", 12);
  KernelHost host{kernel, &kernel.kvm(), kernel.sysfs(), kernel.dev()};
  std::unique_ptr<HostDevice> device;

  Outcome<void> TryOpen() {
    auto opened = host.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.0"});
    if (!opened) return tl::unexpected(opened.error());
    device = std::move(*opened);
    (void)kernel.TakeLog();
    return {};
  }
  void Open() { REQUIRE(TryOpen()); }
  // The SET_IRQS calls since.
  Log Irqs() {
    Log lines;
    for (const std::string& line : kernel.TakeLog()) {
      if (const auto at = line.find("irqs "); at != std::string::npos) {
        lines.push_back(line.substr(at));
      }
    }
    return lines;
  }
};

int Errno(const Result<void>& result) {
  return result ? 0 : result.error().sys_errno;
}

TEST_CASE("device: what it has is told as the kernel told it, made safe") {
  Rig rig;
  rig.fake.regions[2] = {.size = 2 * kPage,
                         .flags = kReadWrite | VFIO_REGION_INFO_FLAG_MMAP,
                         .sparse = {{{0, kPage}, {kPage, 7}}}};
  rig.fake.irqs[kMsixIrq].count = 5000;
  rig.Open();
  const DeviceInfo& info = rig.device->info();
  CHECK(info.name == "0000:3b:00.0");
  CHECK(info.can_reset);
  CHECK(info.regions[0].areas == std::vector<MapArea>{{0, 16384}});
  CHECK(info.regions[1].size == 0);
  CHECK(info.regions[2].areas == std::vector<MapArea>{{0, kPage}});
  CHECK(info.regions[kConfigRegion].size == 4096);
  CHECK(info.irqs[kIntxIrq].automasked);
  CHECK(info.irqs[kMsiIrq].noresize);
  CHECK(info.irqs[kMsixIrq].count == 2048);
  CHECK_FALSE(info.irqs[kMsixIrq].noresize);
}

TEST_CASE("device: one that lies about sizes or has no configuration space is refused") {
  Rig rig;
  std::string cause;
  SUBCASE("a region over 2^62") {
    rig.fake.regions[0].size = (std::uint64_t{1} << 62) + 1;
    cause = "region over 2^62 bytes";
  }
  SUBCASE("a region past the file's end") {
    rig.fake.regions[0].offset = (std::uint64_t{1} << 63) - 100;
    cause = "region past the end of the device file";
  }
  SUBCASE("garbage for an answer") {
    rig.fake.regions[0].raw.assign(64, std::byte{0xff});
    const std::uint32_t size = 64;
    std::memcpy(rig.fake.regions[0].raw.data(), &size, sizeof(size));
    cause = "region over 2^62 bytes";
  }
  SUBCASE("a chain of capabilities that loops") {
    rig.fake.regions[0].raw.assign(40, std::byte{0});
    const vfio_region_info info{.argsz = 40,
                                .flags = VFIO_REGION_INFO_FLAG_CAPS,
                                .cap_offset = sizeof(info),
                                .size = kPage};
    const vfio_info_cap_header loop{.id = 9, .version = 1, .next = sizeof(info)};
    std::memcpy(rig.fake.regions[0].raw.data(), &info, sizeof(info));
    std::memcpy(rig.fake.regions[0].raw.data() + sizeof(info), &loop, sizeof(loop));
    cause = "Protocol error";
  }
  SUBCASE("no configuration space") {
    rig.fake.regions[kConfigRegion].size = 0;
    cause = "device without a configuration space";
  }
  SUBCASE("half a header") {
    rig.fake.regions[kConfigRegion].size = 63;
    cause = "device without a configuration space";
  }
  SUBCASE("no regions") {
    rig.fake.region_count = 0;
    cause = "device without a configuration space";
  }
  SUBCASE("not PCI") {
    rig.fake.flags = VFIO_DEVICE_FLAGS_PLATFORM;
    cause = "VFIO device that is not PCI";
  }
  SUBCASE("gone") {
    rig.fake.gone = true;
    cause = "it is gone";
  }
  const Outcome<void> opened = rig.TryOpen();
  REQUIRE_FALSE(opened);
  CAPTURE(opened.error().cause);
  CHECK(opened.error().cause.find(cause) != std::string::npos);
  CHECK(opened.error().cause.find("0000:3b:00.0") != std::string::npos);
  CHECK(rig.kernel.open_files() == 1);  // the address space
}

TEST_CASE("device: counts of regions and interrupts past ours are no harm") {
  Rig rig;
  rig.fake.region_count = ~0u;
  rig.fake.irq_count = ~0u;
  rig.Open();
  CHECK(rig.device->info().irqs[kRequestIrq].count == 1);
}

TEST_CASE("registers: read and written at the region's own offset, in pieces if need be") {
  Rig rig;
  rig.fake.regions[0].offset = std::uint64_t{77} << 32;
  rig.fake.transfer = 3;
  rig.Open();
  std::array<std::byte, 8> pattern{};
  for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<std::byte>(i + 1);
  CHECK(rig.device->WriteRegion(0, 16384 - 8, pattern));
  CHECK(rig.fake.regions[0].bytes[16383] == std::byte{8});
  std::array<std::byte, 8> back{};
  rig.fake.reads = 0;
  CHECK(rig.device->ReadRegion(0, 16384 - 8, back));
  CHECK(back == pattern);
  CHECK(rig.fake.reads == 3);
}

TEST_CASE("registers: accesses outside a region, or the wrong way, never reach the kernel") {
  Rig rig;
  rig.fake.regions[1] = {.size = kPage, .flags = VFIO_REGION_INFO_FLAG_READ};
  rig.fake.regions[3] = {.size = kPage, .flags = VFIO_REGION_INFO_FLAG_WRITE};
  rig.Open();
  std::array<std::byte, 4> word{};
  rig.fake.reads = 0;
  struct Row {
    std::uint32_t region;
    std::uint64_t offset;
  };
  for (const Row& row : {Row{0, 16381},
                         {0, 16384},
                         {0, ~std::uint64_t{0}},
                         {0, ~std::uint64_t{0} - 3},
                         {0, std::uint64_t{1} << 40},
                         {2, 0},
                         {9, 0},
                         {~0u, 0},
                         {kConfigRegion, 4093}}) {
    CAPTURE(row.region);
    CAPTURE(row.offset);
    CHECK(rig.device->ReadRegion(row.region, row.offset, word).error().code ==
          Errc::kInvalidArgument);
    CHECK(rig.device->WriteRegion(row.region, row.offset, word).error().code ==
          Errc::kInvalidArgument);
  }
  CHECK(rig.device->ReadRegion(1, 0, word));
  CHECK(rig.device->WriteRegion(1, 0, word).error().code == Errc::kInvalidArgument);
  CHECK(rig.device->ReadRegion(3, 0, word).error().code == Errc::kInvalidArgument);
  CHECK(rig.device->WriteRegion(3, 0, word));
  CHECK(rig.device->ReadRegion(0, 16384, {}));
  CHECK(rig.fake.reads == 1);
}

TEST_CASE("registers: EIO of a device without memory decoding is passed up, and passes") {
  Rig rig;
  rig.Open();
  std::array<std::byte, 4> word{};
  rig.fake.memory_off = true;
  CHECK(Errno(rig.device->ReadRegion(0, 0, word)) == EIO);
  CHECK(Errno(rig.device->WriteRegion(0, 0, word)) == EIO);
  CHECK(rig.device->ReadRegion(kConfigRegion, 0, word));
  rig.fake.memory_off = false;
  CHECK(rig.device->ReadRegion(0, 0, word));
  rig.fake.transfer = 0;  // a kernel that makes no progress
  CHECK(Errno(rig.device->ReadRegion(0, 0, word)) == EIO);
  CHECK(Errno(rig.device->WriteRegion(0, 0, word)) == EIO);
}

TEST_CASE("mapping: parts of an area can be mapped as the region allows, nothing else") {
  Rig rig;
  rig.fake.regions[2] = {.size = 8 * kPage,
                         .flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_MMAP,
                         .sparse = {{{0, 2 * kPage}, {4 * kPage, 4 * kPage}}}};
  rig.Open();
  {
    const auto whole = rig.device->MapRegion(2, {4 * kPage, 4 * kPage});
    REQUIRE(whole);
    CHECK((*whole)->pages().length == 4 * kPage);
    CHECK((*whole)->pages().address != nullptr);
    CHECK((*whole)->pages().fd == -1);
    CHECK(rig.kernel.TakeLog() == Log{"0000:3b:00.0 map region 2 0x4000+0x4000 prot 1"});
    CHECK(rig.device->MapRegion(2, {5 * kPage, kPage}));
    (void)rig.kernel.TakeLog();
  }
  for (const MapArea& area : {MapArea{0, 0},
                              {0, 3 * kPage},
                              {kPage, 4 * kPage},
                              {2 * kPage, kPage},
                              {1, kPage},
                              {0, kPage + 1},
                              {7 * kPage, 2 * kPage},
                              {std::uint64_t{0} - kPage, 2 * kPage},
                              {0, ~std::uint64_t{0} - kPage + 1}}) {
    CAPTURE(area.offset);
    CAPTURE(area.length);
    CHECK(rig.device->MapRegion(2, area).error().code == Errc::kInvalidArgument);
  }
  CHECK(rig.device->MapRegion(1, {0, kPage}).error().code == Errc::kInvalidArgument);
  CHECK(rig.device->MapRegion(9, {0, kPage}).error().code == Errc::kInvalidArgument);
  CHECK(rig.kernel.TakeLog().empty());
}

TEST_CASE("interrupts: vectors are set and taken away one by one, and disabled together") {
  Rig rig;
  rig.Open();
  const EventFd a = *EventFd::Create();
  const EventFd b = *EventFd::Create();
  CHECK(rig.device->SetVectors(kMsixIrq, 3, std::array{a.fd(), b.fd()}));
  CHECK(rig.fake.irqs[kMsixIrq].events == std::vector<int>{-1, -1, -1, a.fd(), b.fd()});
  CHECK(rig.device->SetVectors(kMsixIrq, 3, std::array{-1}));
  CHECK(rig.fake.irqs[kMsixIrq].events == std::vector<int>{-1, -1, -1, -1, b.fd()});
  CHECK(rig.device->SetVectors(kMsixIrq, 15, std::array{a.fd()}));
  CHECK(rig.device->DisableIrq(kMsixIrq));
  CHECK_FALSE(rig.fake.irqs[kMsixIrq].enabled);
  CHECK(rig.device->DisableIrq(kMsixIrq));  // nothing to do, and the kernel would refuse
  CHECK(rig.Irqs() == Log{"irqs 2 trigger eventfd 3+2", "irqs 2 trigger eventfd 3+1",
                          "irqs 2 trigger eventfd 15+1", "irqs 2 trigger none 0+0"});
}

TEST_CASE("interrupts: MSI-X is enabled with no vector in use, once (regression)") {
  Rig rig;
  rig.Open();
  const EventFd a = *EventFd::Create();
  CHECK(rig.device->SetVectors(kMsixIrq, 0, {}));
  CHECK(rig.fake.irqs[kMsixIrq].enabled);
  CHECK(rig.device->SetVectors(kMsixIrq, 0, std::array{a.fd()}));
  CHECK(rig.device->SetVectors(kMsixIrq, 0, {}));
  CHECK(rig.fake.irqs[kMsixIrq].events == std::vector<int>{a.fd()});  // not taken away
  CHECK(rig.Irqs() == Log{"irqs 2 trigger eventfd 0+1", "irqs 2 trigger eventfd 0+1"});
  CHECK(rig.device->SetVectors(kIntxIrq, 0, {}).error().code == Errc::kInvalidArgument);
}

TEST_CASE("interrupts: vectors the device does not have never reach the kernel") {
  Rig rig;
  rig.fake.irqs[kErrorIrq].count = 0;
  rig.Open();
  const std::vector<int> many(17, -1);
  CHECK_FALSE(rig.device->SetVectors(kMsixIrq, 0, many));
  CHECK_FALSE(rig.device->SetVectors(kMsixIrq, 16, std::array{-1}));
  CHECK_FALSE(rig.device->SetVectors(kMsixIrq, ~0u, std::array{-1, -1}));
  CHECK_FALSE(rig.device->SetVectors(kErrorIrq, 0, std::array{-1}));
  CHECK_FALSE(rig.device->SetVectors(5, 0, std::array{-1}));
  CHECK_FALSE(rig.device->DisableIrq(5));
  CHECK(rig.Irqs().empty());
  CHECK(rig.device->SetVectors(kMsixIrq, 15, std::array{-1}));
}

TEST_CASE("interrupts: a host short of vectors is an error, and nothing is enabled") {
  Rig rig;
  rig.Open();
  const std::vector<int> eight(8, -1);
  rig.fake.irqs[kMsiIrq].available = 4;
  const auto refused = rig.device->SetVectors(kMsiIrq, 0, eight);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::kExhausted);
  CHECK(rig.device->DisableIrq(kMsiIrq));
  CHECK(rig.Irqs() == Log{"irqs 1 trigger eventfd 0+8"});
  rig.fake.irqs[kMsiIrq].available = 0;
  CHECK(rig.device->SetVectors(kMsiIrq, 0, std::span(eight).first(4)));
}

TEST_CASE("interrupts: one kind at a time, the other disabled before (regression)") {
  Rig rig;
  rig.Open();
  CHECK(rig.device->SetVectors(kMsiIrq, 0, std::array{-1}));
  CHECK(Errno(rig.device->SetVectors(kMsixIrq, 0, std::array{-1})) == EINVAL);
  CHECK(rig.device->DisableIrq(kMsixIrq));
  CHECK(rig.device->DisableIrq(kMsiIrq));
  CHECK(rig.device->SetVectors(kMsixIrq, 0, std::array{-1}));
  const EventFd event = *EventFd::Create();
  CHECK(rig.device->SetVectors(kRequestIrq, 0, std::array{event.fd()}));  // beside any of them
  CHECK(rig.device->SetVectors(kErrorIrq, 0, std::array{event.fd()}));
}

TEST_CASE("interrupts: error and request are disabled by taking their event away, or outright") {
  Rig rig;
  rig.Open();
  const EventFd event = *EventFd::Create();
  for (const std::uint32_t irq : {kErrorIrq, kRequestIrq}) {
    CHECK(rig.device->SetVectors(irq, 0, std::array{event.fd()}));
    CHECK(rig.fake.irqs[irq].events == std::vector<int>{event.fd()});
    CHECK(rig.device->SetVectors(irq, 0, std::array{-1}));
    CHECK(rig.device->DisableIrq(irq));  // the kernel would refuse it now
    CHECK(rig.device->SetVectors(irq, 0, std::array{event.fd()}));
    CHECK(rig.device->DisableIrq(irq));
    CHECK_FALSE(rig.fake.irqs[irq].enabled);
  }
  CHECK(rig.Irqs().size() == 8);
}

TEST_CASE("INTx: masked and unmasked by call and by event, once it is enabled") {
  Rig rig;
  rig.Open();
  const EventFd event = *EventFd::Create();
  const EventFd unmask = *EventFd::Create();
  CHECK(Errno(rig.device->MaskIntx(true)) == EINVAL);
  CHECK(rig.device->SetVectors(kIntxIrq, 0, std::array{event.fd()}));
  CHECK(rig.device->MaskIntx(true));
  CHECK(rig.fake.intx_masked);
  CHECK(rig.device->SetIntxUnmask(unmask.fd()));
  CHECK(rig.fake.intx_unmask == unmask.fd());
  CHECK(rig.device->MaskIntx(false));
  CHECK_FALSE(rig.fake.intx_masked);
  CHECK(rig.device->SetIntxUnmask(-1));
  CHECK(rig.fake.intx_unmask == -1);
  CHECK(rig.device->DisableIrq(kIntxIrq));
  CHECK(rig.Irqs() == Log{"irqs 0 mask none 0+1", "irqs 0 trigger eventfd 0+1",
                          "irqs 0 mask none 0+1", "irqs 0 unmask eventfd 0+1",
                          "irqs 0 unmask none 0+1", "irqs 0 unmask eventfd 0+1",
                          "irqs 0 trigger none 0+0"});
}

TEST_CASE("reset: tried again while the host is at it, for a while") {
  Rig rig;
  rig.Open();
  rig.kernel.Fail(VFIO_DEVICE_RESET, EAGAIN);
  rig.kernel.Fail(VFIO_DEVICE_RESET, EAGAIN);
  CHECK(rig.device->Reset());
  CHECK(rig.fake.resets == 1);
  for (int i = 0; i < 50; ++i) rig.kernel.Fail(VFIO_DEVICE_RESET, EAGAIN);
  CHECK(Errno(rig.device->Reset()) == EAGAIN);
  CHECK(rig.fake.resets == 1);
}

TEST_CASE("reset: refused for a device that cannot") {
  Rig rig;
  rig.fake.flags = VFIO_DEVICE_FLAGS_PCI;
  rig.Open();
  CHECK_FALSE(rig.device->info().can_reset);
  CHECK(rig.device->Reset().error().code == Errc::kUnsupported);
  CHECK(rig.kernel.TakeLog().empty());
}

TEST_CASE("vanished: after ENODEV nothing is asked of it again, and it goes quietly (regression)") {
  Rig rig;
  rig.Open();
  std::array<std::byte, 4> word{};
  CHECK(rig.device->SetVectors(kMsixIrq, 0, std::array{-1}));
  rig.fake.gone = true;
  SUBCASE("seen by a read") {
    CHECK(Errno(rig.device->ReadRegion(0, 0, word)) == ENODEV);
  }
  SUBCASE("seen by a write") {
    CHECK(Errno(rig.device->WriteRegion(0, 0, word)) == ENODEV);
  }
  SUBCASE("seen by interrupts") {
    CHECK(Errno(rig.device->DisableIrq(kMsixIrq)) == ENODEV);
  }
  SUBCASE("seen by a reset") {
    CHECK(Errno(rig.device->Reset()) == ENODEV);
  }
  SUBCASE("seen by a mapping") {
    CHECK(rig.device->MapRegion(0, {0, kPage}).error().sys_errno == ENODEV);
  }
  (void)rig.kernel.TakeLog();
  rig.fake.reads = 0;
  CHECK(Errno(rig.device->ReadRegion(0, 0, word)) == ENODEV);
  CHECK(Errno(rig.device->WriteRegion(kConfigRegion, 0, word)) == ENODEV);
  CHECK(rig.device->MapRegion(0, {0, kPage}).error().sys_errno == ENODEV);
  CHECK(Errno(rig.device->SetVectors(kMsixIrq, 0, std::array{-1})) == ENODEV);
  CHECK(Errno(rig.device->DisableIrq(kMsixIrq)) == ENODEV);
  CHECK(Errno(rig.device->MaskIntx(true)) == ENODEV);
  CHECK(Errno(rig.device->SetIntxUnmask(-1)) == ENODEV);
  CHECK(Errno(rig.device->Reset()) == ENODEV);
  CHECK(rig.fake.reads == 0);
  CHECK(rig.kernel.TakeLog().empty());
  rig.device.reset();
}

TEST_CASE("destruction: interrupts are disabled before the device is closed") {
  Rig rig;
  rig.Open();
  CHECK(rig.device->SetVectors(kMsixIrq, 0, std::array{-1}));
  const EventFd event = *EventFd::Create();
  CHECK(rig.device->SetVectors(kRequestIrq, 0, std::array{event.fd()}));
  rig.device.reset();
  const Log log = rig.kernel.TakeLog();
  CHECK(std::count(log.begin(), log.end(), "0000:3b:00.0 irqs 2 trigger none 0+0") == 1);
  CHECK(std::count(log.begin(), log.end(), "0000:3b:00.0 irqs 4 trigger none 0+0") == 1);
  CHECK(std::count(log.begin(), log.end(), "0000:3b:00.0 closed with interrupts enabled") == 0);
}

TEST_CASE("destruction: a kernel that will not disable them is no obstacle") {
  Rig rig;
  rig.Open();
  CHECK(rig.device->SetVectors(kMsixIrq, 0, std::array{-1}));
  rig.kernel.Fail(VFIO_DEVICE_SET_IRQS, EIO);
  rig.device.reset();
  const Log log = rig.kernel.TakeLog();
  CHECK(std::count(log.begin(), log.end(), "0000:3b:00.0 closed with interrupts enabled") == 1);
}

TEST_CASE("threads: registers and interrupts are used from several at once") {
  Rig rig;
  rig.Open();
  std::vector<Thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t) {
    const std::uint64_t offset = std::uint64_t{4} * t;
    auto thread = Thread::Start("user", [&, t, offset] {
      std::array<std::byte, 4> word{};
      for (int i = 0; i < 200; ++i) {
        (void)rig.device->ReadRegion(0, offset, word);
        (void)rig.device->WriteRegion(0, offset, word);
        (void)rig.device->SetVectors(kMsixIrq, t, std::array{-1});
        if (i == 100 && t == 0) (void)rig.device->DisableIrq(kMsixIrq);
      }
    });
    REQUIRE(thread);
    threads.push_back(std::move(*thread));
  }
  threads.clear();
  CHECK(rig.device->DisableIrq(kMsixIrq));
}

}  // namespace
}  // namespace postern::vfio
