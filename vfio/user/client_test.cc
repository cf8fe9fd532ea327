#include "vfio/user/client.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "src/base/thread.h"
#include "tests/support/memory.h"
#include "tests/support/vfio_user_server.h"
#include "vfio/user/client_rig.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using memory::Access;
using testing::kEngineDone;
using testing::kEngineError;
using testing::Pattern;
using testing::VfioUserServer;

TEST_CASE("vfio-user client: the device is as the server describes it") {
  ClientRig rig;
  const VfioUserServer server({.function = {.vectors = 7, .intx = true}});
  const auto device = rig.Connect(server);
  const DeviceInfo& info = device->info();
  CHECK(info.name == server.path());
  CHECK(info.can_reset);
  CHECK(info.regions[0].size == 4096);
  CHECK(info.regions[0].areas.empty());
  CHECK(info.regions[1].size == 0);
  CHECK(info.regions[2].size == testing::kTestMemorySize);
  CHECK(std::equal(info.regions[2].areas.begin(), info.regions[2].areas.end(),
                   testing::kTestAreas.begin(), testing::kTestAreas.end()));
  CHECK(info.regions[4].size == 8192);
  CHECK(info.regions[kConfigRegion].size == 4096);
  CHECK(info.regions[8].size == 0);
  CHECK(info.irqs[kIntxIrq].count == 1);
  CHECK(info.irqs[kIntxIrq].automasked);
  CHECK(info.irqs[kMsiIrq].count == 0);
  CHECK(info.irqs[kMsixIrq].count == 7);
  CHECK(info.irqs[kErrorIrq].count == 1);
  CHECK(info.irqs[kRequestIrq].count == 1);  // the client's own
  CHECK(ReadWord(*device, kConfigRegion, 0) ==
        (std::uint32_t{testing::kTestDeviceId} << 16 | testing::kTestVendorId));
  CHECK(ReadWord(*device, 0, testing::kEngineId) == testing::kEngineIdValue);
}

TEST_CASE("vfio-user client: regions are read and written in each width") {
  ClientRig rig;
  const VfioUserServer server;
  const auto device = rig.Connect(server);
  for (const std::size_t width : {1U, 2U, 4U, 8U}) {
    CAPTURE(width);
    const auto data = Pattern(width, static_cast<std::uint32_t>(width));
    REQUIRE(device->WriteRegion(0, testing::kEngineScratch, data));
    std::vector<std::byte> back(width);
    REQUIRE(device->ReadRegion(0, testing::kEngineScratch, back));
    CHECK(back == data);
  }
}

TEST_CASE("vfio-user client: accesses outside a region or against its direction do not leave") {
  ClientRig rig;
  const VfioUserServer server;
  const auto device = rig.Connect(server);
  const auto calls = device->counters().calls.Get();
  std::array<std::byte, 4> word{};
  const auto invalid = [](const Result<void>& result) {
    return !result && result.error().code == Errc::kInvalidArgument;
  };
  CHECK(device->ReadRegion(0, 4092, word));
  CHECK(invalid(device->ReadRegion(0, 4093, word)));
  CHECK(invalid(device->ReadRegion(0, 4096, word)));
  CHECK(invalid(device->ReadRegion(0, ~std::uint64_t{0}, word)));
  CHECK(invalid(device->WriteRegion(0, ~std::uint64_t{0} - 3, word)));
  CHECK(invalid(device->ReadRegion(1, 0, word)));
  CHECK(invalid(device->ReadRegion(8, 0, word)));
  CHECK(invalid(device->ReadRegion(9, 0, word)));
  CHECK(invalid(device->WriteRegion(0xffffffff, 0, word)));
  CHECK(device->counters().calls.Get() == calls + 1);
}

TEST_CASE("vfio-user client: accesses longer than a message may be are split") {
  ClientRig rig;
  const VfioUserServer server({.offers = {.max_msg_fds = 8, .max_data_xfer_size = 1000}});
  const auto device = rig.Connect(server);
  const auto data = Pattern(testing::kTestMemorySize, 3);
  const auto calls = device->counters().calls.Get();
  REQUIRE(device->WriteRegion(2, 0, data));
  CHECK(device->counters().calls.Get() == calls + 66);
  std::vector<std::byte> back(data.size());
  REQUIRE(device->ReadRegion(2, 0, back));
  CHECK(back == data);
}

TEST_CASE("vfio-user client: posted writes are not waited for and come before what follows") {
  ClientRig rig;
  const VfioUserServer server;
  const auto device = rig.Connect(server, {.posted_writes = true});
  for (std::uint32_t i = 1; i < 200; ++i) {
    WriteWord(*device, 0, testing::kEngineScratch, i);
    if (i % 50 == 0) CHECK(ReadWord(*device, 0, testing::kEngineScratch) == i);
  }
  // Configuration space waits.
  WriteWord(*device, kConfigRegion, 0x04, 0x6);
  CHECK((ReadWord(*device, kConfigRegion, 0x04) & 0xffff) == 0x6);
}

TEST_CASE("vfio-user client: an area maps the server's memory, and only an area does") {
  ClientRig rig;
  const VfioUserServer server;
  const auto device = rig.Connect(server);
  auto mapping = device->MapRegion(2, {0x1000, 0x2000});
  REQUIRE(mapping);
  const bus::HostPages& pages = (*mapping)->pages();
  CHECK(pages.length == 0x2000);
  CHECK(pages.fd >= 0);
  CHECK(pages.offset == 0x1000);
  const auto data = Pattern(64, 5);
  REQUIRE(device->WriteRegion(2, 0x1100, data));
  CHECK(std::memcmp(pages.address + 0x100, data.data(), data.size()) == 0);
  pages.address[0x100] = std::byte{0xee};
  std::array<std::byte, 1> byte{};
  REQUIRE(device->ReadRegion(2, 0x1100, byte));
  CHECK(byte[0] == std::byte{0xee});
  CHECK(device->MapRegion(2, {0x8000, 0x1000}));
  CHECK(device->MapRegion(2, {0xf000, 0x1000}));
  for (const MapArea& area :
       {MapArea{0, 0x1000}, MapArea{0x1000, 0x3000}, MapArea{0x1000, 0}, MapArea{0x1800, 0x1000},
        MapArea{0x1000, 0x800}, MapArea{0x3000, 0x1000}, MapArea{0xf000, 0x2000},
        MapArea{0x10000, 0x1000}, MapArea{0x1000, ~std::uint64_t{0xfff}},
        MapArea{~std::uint64_t{0xfff}, 0x1000}}) {
    CAPTURE(area.offset);
    CHECK_FALSE(device->MapRegion(2, area));
  }
  CHECK_FALSE(device->MapRegion(0, {0, 0x1000}));
  CHECK_FALSE(device->MapRegion(9, {0, 0x1000}));
}

TEST_CASE("vfio-user client: DMA goes through files, or by message, before and after the reply") {
  for (const bool by_file : {false, true}) {
    for (const bool by_message : {false, true}) {
      for (const bool after_reply : {false, true}) {
        CAPTURE(by_file);
        CAPTURE(by_message);
        CAPTURE(after_reply);
        ClientRig rig(by_file);
        VfioUserServer server({.dma_by_message = by_message, .dma_after_reply = after_reply});
        const auto device = rig.Connect(server);
        rig.MapAll(*device);
        CHECK(server.seen().mappings == 2);
        CHECK(server.seen().mappings_by_file == (by_file ? 2 : 0));
        const EventFd event = EventFd::Create().value();
        REQUIRE(device->SetVectors(kMsixIrq, 2, std::array{event.fd()}));
        const auto data = Pattern(10000, 1);
        testing::Store(rig.memory.Snapshot(), 0x1234, data);
        StartCopy(*device, 0x1234, 0x83210, 10000, 2);
        REQUIRE(WaitFor(event));
        CHECK(ReadWord(*device, 0, testing::kEngineStatus) == kEngineDone);
        CHECK(testing::Load(rig.memory.Snapshot(), 0x83210, data.size()) == data);
        const bool messages = by_message || !by_file;
        CHECK((device->counters().dma_read_bytes.Get() == 10000) == messages);
        CHECK((device->counters().dma_write_bytes.Get() == 10000) == messages);
        CHECK(device->counters().dma_faults.Get() == 0);
      }
    }
  }
}

TEST_CASE("vfio-user client: DMA across mappings that touch, and of more than a message holds") {
  ClientRig rig;
  VfioUserServer server({.dma_by_message = true});
  const auto device = rig.Connect(server);
  rig.MapAll(*device);
  const auto data = Pattern(3 << 20, 9);
  testing::Store(rig.memory.Snapshot(), 0x100000, data);
  // 0x80000 is where the first mapping ends and the second begins.
  StartCopy(*device, 0x100000, 0x7ff000, 3 << 20, 0);
  CHECK(ReadWord(*device, 0, testing::kEngineStatus) == kEngineDone);
  CHECK(testing::Load(rig.memory.Snapshot(), 0x7ff000, data.size()) == data);
  StartCopy(*device, 0x7fff0, 0x90000, 0x20, 0);
  CHECK(testing::Load(rig.memory.Snapshot(), 0x90000, 0x20) ==
        testing::Load(rig.memory.Snapshot(), 0x7fff0, 0x20));
}

TEST_CASE("vfio-user client: DMA by message marks what it wrote as dirty") {
  auto guest = testing::MakeMemory(1 << 20, true);
  memory::MemoryMap map(guest);
  ClientRig rig;
  VfioUserServer server({.dma_by_message = true});
  auto device = UserDevice::Connect(server.path(), map, *rig.loop);
  REQUIRE(device);
  const memory::RegionPtr& region = guest->regions()[0];
  REQUIRE((*device)->address_space().Map(
      iommu::Iova(0),
      {.address = reinterpret_cast<std::byte*>(region->host_address()), .length = 1 << 20},
      Access::kReadWrite));
  StartCopy(**device, 0x1000, 0x5000, 16, 0);
  CHECK_FALSE(testing::IsDirty(guest, 0x1000));
  CHECK(testing::IsDirty(guest, 0x5000));
}

TEST_CASE("vfio-user client: DMA outside of what is mapped for it is refused, and only that") {
  ClientRig rig;
  VfioUserServer server({.dma_by_message = true});
  const auto device = rig.Connect(server);
  iommu::AddressSpace& space = device->address_space();
  const auto& region = rig.memory.Snapshot()->regions()[0];
  auto* base = reinterpret_cast<std::byte*>(region->host_address());
  REQUIRE(space.Map(iommu::Iova(0), {.address = base, .length = 0x2000}, Access::kRead));
  REQUIRE(
      space.Map(iommu::Iova(0x4000), {.address = base + 0x4000, .length = 0x1000}, Access::kWrite));
  // Not guest memory at all: another device's BAR, say.
  std::array<std::byte, 64> elsewhere{};
  REQUIRE(space.Map(iommu::Iova(0x10000), {.address = elsewhere.data(), .length = 0x1000},
                    Access::kReadWrite));
  struct Row {
    std::uint64_t source;
    std::uint64_t destination;
    std::uint32_t length;
    bool ok;
  };
  std::uint64_t faults = 0;
  for (const Row& row : {
           Row{0, 0x4000, 0x1000, true},
           Row{0x1fff, 0x4fff, 1, true},
           Row{0x1fff, 0x4000, 2, false},   // read across the end
           Row{0, 0x4fff, 2, false},        // write across the end
           Row{0x4000, 0x4100, 16, false},  // read of what may only be written
           Row{0, 0x1000, 16, false},       // write to what may only be read
           Row{0x3fff, 0x4000, 16, false},  // begins before
           Row{1ULL << 40, 0x4000, 16, false},
           Row{~0ULL - 7, 0x4000, 8, false},  // the last bytes of the address space
           Row{0x10000, 0x4000, 16, false},   // no guest memory
           Row{0, 0x10000, 16, false},
       }) {
    CAPTURE(row.source);
    CAPTURE(row.destination);
    WriteWord(*device, 0, testing::kEngineStatus, 3);
    StartCopy(*device, row.source, row.destination, row.length, 0);
    CHECK(ReadWord(*device, 0, testing::kEngineStatus) == (row.ok ? kEngineDone : kEngineError));
    faults += row.ok ? 0 : 1;
  }
  CHECK(device->counters().dma_faults.Get() == faults);
  CHECK(server.seen().dma_errors == faults);
  CHECK_FALSE(device->vanished());
}

TEST_CASE("vfio-user address space: maps whole pages once, and unmaps exactly what it mapped") {
  ClientRig rig;
  VfioUserServer server({.offers = {.max_msg_fds = 8, .max_dma_maps = 3}});
  const auto device = rig.Connect(server);
  iommu::AddressSpace& space = device->address_space();
  CHECK(space.name() == "vfio-user");
  CHECK(space.limits().Allows(iommu::Iova(0), ~std::uint64_t{0}));
  CHECK(space.limits().page_sizes == 4096);
  CHECK(space.limits().mappings_left == 3);
  const auto& region = rig.memory.Snapshot()->regions()[0];
  auto* base = reinterpret_cast<std::byte*>(region->host_address());
  const auto map = [&](std::uint64_t at, std::uint64_t length) {
    return space.Map(iommu::Iova(at), {.address = base, .length = length}, Access::kReadWrite);
  };
  CHECK(map(0x1000, 0x2000));
  for (const auto& [at, length] : {std::pair{0ULL, 0ULL}, std::pair{0x10ULL, 0x1000ULL},
                                   std::pair{0ULL, 0x1001ULL}, std::pair{~0xfffULL, 0x2000ULL}}) {
    CHECK(map(at, length).error().code == Errc::kInvalidArgument);
  }
  for (const auto& [at, length] : {std::pair{0x1000ULL, 0x2000ULL}, std::pair{0ULL, 0x2000ULL},
                                   std::pair{0x2000ULL, 0x1000ULL}, std::pair{0ULL, 0x100000ULL}}) {
    CHECK(map(at, length).error().code == Errc::kOverlap);
  }
  CHECK(map(0, 0x1000));
  CHECK(map(~std::uint64_t{0xfff}, 0x1000));
  CHECK(space.limits().mappings_left == 0);
  CHECK(map(0x8000, 0x1000).error().sys_errno == ENOSPC);
  CHECK(server.seen().mappings == 3);
  CHECK(space.Unmap(iommu::Iova(0x1000), 0x1000).error().code == Errc::kNotFound);
  CHECK(space.Unmap(iommu::Iova(0x2000), 0x1000).error().code == Errc::kNotFound);
  CHECK(space.Unmap(iommu::Iova(0x1000), 0x2000));
  CHECK(space.Unmap(iommu::Iova(0x1000), 0x2000).error().code == Errc::kNotFound);
  CHECK(server.seen().mappings == 2);
  CHECK(map(0x1000, 0x2000));
  CHECK(space.TrackDirty(true).error().code == Errc::kUnsupported);
}

TEST_CASE("vfio-user address space: what the server refuses to map is not mapped") {
  ClientRig rig;
  VfioUserServer server({.dma_by_message = true,
                         .misbehaviour = {.kind = testing::Misbehaviour::Kind::kRefuse,
                                          .at = UserCommand::kDmaMap,
                                          .number = ENOMEM}});
  const auto device = rig.Connect(server);
  const auto& region = rig.memory.Snapshot()->regions()[0];
  const iommu::HostRange range{.address = reinterpret_cast<std::byte*>(region->host_address()),
                               .length = 0x10000};
  iommu::AddressSpace& space = device->address_space();
  CHECK(space.Map(iommu::Iova(0), range, Access::kReadWrite).error().sys_errno == ENOMEM);
  CHECK(space.Unmap(iommu::Iova(0), 0x10000).error().code == Errc::kNotFound);
  StartCopy(*device, 0, 0x1000, 16, 0);
  CHECK(ReadWord(*device, 0, testing::kEngineStatus) == kEngineError);
  CHECK_FALSE(device->vanished());
}

TEST_CASE("vfio-user client: vectors get and lose their eventfds, in batches the server takes") {
  ClientRig rig;
  VfioUserServer server({.function = {.vectors = 20}});
  const auto device = rig.Connect(server);
  std::vector<EventFd> events;
  std::vector<int> fds;
  for (int i = 0; i < 20; ++i) {
    events.push_back(EventFd::Create().value());
    fds.push_back(events.back().fd());
  }
  const auto assigned = [&] {
    const std::vector<bool> now = server.seen().assigned[kMsixIrq];
    return std::count(now.begin(), now.end(), true);
  };
  // Enabled without any: nothing to say.
  REQUIRE(device->SetVectors(kMsixIrq, 0, std::array{-1}));
  CHECK(server.seen().commands[UserCommand::kSetIrqs] == 0);
  REQUIRE(device->SetVectors(kMsixIrq, 0, fds));
  CHECK(server.seen().commands[UserCommand::kSetIrqs] == 3);  // 8, 8, 4
  CHECK(assigned() == 20);
  for (std::uint32_t i = 0; i < 20; ++i) {
    server.Raise(kMsixIrq, i);
    CHECK(events[i].Consume() == 1);
  }
  // 3 and 4 lose theirs, 5 gets another, 6 keeps being nobody's after 7 lost it.
  REQUIRE(device->SetVectors(kMsixIrq, 3, std::array{-1, -1, events[0].fd()}));
  CHECK(assigned() == 18);
  server.Raise(kMsixIrq, 3);
  CHECK_FALSE(events[3].Pending());
  server.Raise(kMsixIrq, 5);
  CHECK(events[0].Consume() == 1);
  CHECK_FALSE(events[5].Pending());
  REQUIRE(device->DisableIrq(kMsixIrq));
  CHECK(assigned() == 0);
  server.Raise(kMsixIrq, 0);
  CHECK_FALSE(events[0].Pending());
  const unsigned sent = server.seen().commands[UserCommand::kSetIrqs];
  REQUIRE(device->DisableIrq(kMsixIrq));
  REQUIRE(device->DisableIrq(kMsiIrq));
  CHECK(server.seen().commands[UserCommand::kSetIrqs] == sent);
}

TEST_CASE("vfio-user client: vectors a device does not have are refused here") {
  ClientRig rig;
  const VfioUserServer server;
  const auto device = rig.Connect(server);
  const auto invalid = [&](std::uint32_t irq, std::uint32_t start, std::span<const int> events) {
    const auto result = device->SetVectors(irq, start, events);
    return !result && result.error().code == Errc::kInvalidArgument;
  };
  const std::array<int, 2> none{-1, -1};
  CHECK(invalid(kMsixIrq, 3, none));
  CHECK(invalid(kMsixIrq, 4, std::span(none).first(1)));
  CHECK(invalid(kMsixIrq, 0xffffffff, none));
  CHECK(invalid(kMsiIrq, 0, none));
  CHECK(invalid(5, 0, none));
  CHECK(device->SetVectors(kMsixIrq, 2, none));
  CHECK(device->DisableIrq(5).error().code == Errc::kInvalidArgument);
  CHECK(device->MaskIntx(true).error().code == Errc::kInvalidArgument);
  CHECK(device->SetIntxUnmask(-1).error().code == Errc::kInvalidArgument);
}

TEST_CASE("vfio-user client: INTx masks itself and comes again after an unmask") {
  ClientRig rig;
  VfioUserServer server({.function = {.intx = true}});
  const auto device = rig.Connect(server);
  rig.MapAll(*device);
  const EventFd intx = EventFd::Create().value();
  const EventFd unmask = EventFd::Create().value();
  REQUIRE(device->SetVectors(kIntxIrq, 0, std::array{intx.fd()}));
  StartCopy(*device, 0, 0x1000, 16, 0);
  CHECK(intx.Consume() == 1);
  CHECK(server.seen().intx_masked);
  StartCopy(*device, 0, 0x1000, 16, 0);
  CHECK_FALSE(intx.Pending());
  // The level is high still.
  REQUIRE(device->MaskIntx(false));
  CHECK(intx.Consume() == 1);
  // The same by a signal, as KVM gives it at the end of an interrupt.
  REQUIRE(device->SetIntxUnmask(unmask.fd()));
  unmask.Signal();
  REQUIRE(WaitFor(intx));
  CHECK(intx.Consume() == 1);
  WriteWord(*device, 0, testing::kEngineStatus, 3);
  unmask.Signal();
  REQUIRE(server.WaitFor([](const VfioUserServer::Seen& seen) { return !seen.intx_masked; }));
  CHECK_FALSE(intx.Pending());
  REQUIRE(device->MaskIntx(true));
  StartCopy(*device, 0, 0x1000, 16, 0);
  CHECK_FALSE(intx.Pending());
  // Detached: the signal stays where it is.
  REQUIRE(device->SetIntxUnmask(-1));
  unmask.Signal();
  REQUIRE(device->MaskIntx(false));
  CHECK(intx.Consume() == 1);
  CHECK(unmask.Pending());
  REQUIRE(device->DisableIrq(kIntxIrq));
}

TEST_CASE(
    "vfio-user client: INTx that the guest disables waits for COMMAND, and STATUS tells of it") {
  ClientRig rig;
  const VfioUserServer server({.function = {.intx = true}});
  const auto device = rig.Connect(server);
  rig.MapAll(*device);
  constexpr std::uint32_t kInterruptStatus = 1U << 19;  // of the word at COMMAND
  const EventFd intx = EventFd::Create().value();
  REQUIRE(device->SetVectors(kIntxIrq, 0, std::array{intx.fd()}));
  WriteWord(*device, kConfigRegion, 4, 0x0406);
  CHECK((ReadWord(*device, kConfigRegion, 4) & kInterruptStatus) == 0);
  StartCopy(*device, 0, 0x1000, 16, 0);
  CHECK_FALSE(intx.Pending());
  CHECK((ReadWord(*device, kConfigRegion, 4) & kInterruptStatus) != 0);
  WriteWord(*device, kConfigRegion, 4, 0x0006);
  CHECK(intx.Consume() == 1);
  WriteWord(*device, 0, testing::kEngineStatus, 3);
  CHECK((ReadWord(*device, kConfigRegion, 4) & kInterruptStatus) == 0);
}

TEST_CASE("vfio-user client: reset, where the device can") {
  ClientRig rig;
  VfioUserServer server;
  const auto device = rig.Connect(server);
  WriteWord(*device, 0, testing::kEngineScratch, 0x12345678);
  REQUIRE(device->Reset());
  CHECK(server.seen().resets == 1);
  CHECK(ReadWord(*device, 0, testing::kEngineScratch) == 0);
  VfioUserServer without({.can_reset = false});
  const auto other = rig.Connect(without);
  CHECK_FALSE(other->info().can_reset);
  CHECK(other->Reset().error().code == Errc::kUnsupported);
}

TEST_CASE("vfio-user client: a server takes one client after the other; nothing is left open") {
  ClientRig rig(true);
  VfioUserServer server;
  const auto cycle = [&] {
    const auto device = rig.Connect(server);
    rig.MapAll(*device);
    const EventFd event = EventFd::Create().value();
    REQUIRE(device->SetVectors(kMsixIrq, 0, std::array{event.fd(), event.fd()}));
    REQUIRE(device->MapRegion(2, {0x1000, 0x1000}));
    StartCopy(*device, 0, 0x1000, 64, 0);
    CHECK(event.Pending());
  };
  const auto closed = [&](unsigned n) {
    return server.WaitFor([&](const VfioUserServer::Seen& seen) { return seen.closed == n; });
  };
  cycle();
  REQUIRE(closed(1));
  const auto fds = OpenFds();
  const auto maps = OpenMaps();
  for (unsigned i = 0; i < 100; ++i) cycle();
  REQUIRE(closed(101));
  CHECK(OpenFds() == fds);
  // The allocator may have taken a little for itself.
  CHECK(OpenMaps() <= maps + 8);
}

TEST_CASE("vfio-user client: several threads use one device while its server asks for memory") {
  ClientRig rig;
  VfioUserServer server({.dma_by_message = true, .dma_after_reply = true});
  const auto device = rig.Connect(server);
  rig.MapAll(*device);
  const EventFd event = EventFd::Create().value();
  REQUIRE(device->SetVectors(kMsixIrq, 0, std::array{event.fd()}));
  std::vector<Thread> threads;
  for (std::uint32_t t = 0; t < 3; ++t) {
    threads.push_back(Thread::Start("reader", [&device, t] {
                        for (int i = 0; i < 200; ++i) {
                          (void)ReadWord(*device, t == 0 ? kConfigRegion : 4, 0);
                        }
                      }).value());
  }
  for (int i = 0; i < 20; ++i) {
    StartCopy(*device, 0x1000, 0x2000, 5000, 0);
    REQUIRE(WaitFor(event));
    event.Consume();
  }
  for (Thread& thread : threads) thread.Join();
  CHECK(ReadWord(*device, 0, testing::kEngineCopies) == 20);
  CHECK_FALSE(device->vanished());
}

TEST_CASE("vfio-user client: a path where nobody listens is a failure that names it") {
  ClientRig rig;
  const auto device = UserDevice::Connect("/nonexistent/vfio.sock", rig.memory, *rig.loop);
  REQUIRE_FALSE(device);
  CHECK(device.error().cause.find("/nonexistent/vfio.sock") != std::string::npos);
  CHECK(device.error().cause.find("No such file") != std::string::npos);
  CHECK_FALSE(device.error().next_step.empty());
  CHECK_FALSE(UserDevice::Connect(std::string(200, 'x'), rig.memory, *rig.loop));
}

}  // namespace
}  // namespace postern::vfio
