// A virtual DSA served by vfio-user, and Postern's own client of it, in one process: the path a
// guest of another process takes, without the guest.

#include "src/machine/served_vdev.h"

#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "devices/pci/pci_regs.h"
#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/fake_parts.h"
#include "src/base/check.h"
#include "src/base/event_fd.h"
#include "src/base/log.h"
#include "src/base/thread.h"
#include "src/memory/guest_memory.h"
#include "tests/support/counter.h"
#include "tests/support/memory.h"
#include "vfio/user/client.h"
#include "vfio/user/server.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

using dsa::Flag;
using dsa::Opcode;
using vfio::UserDevice;

constexpr std::uint64_t kMemory = 0x400000;
constexpr std::uint64_t kRecords = 0x1000;
constexpr std::uint64_t kFrom = 0x100000;
constexpr std::uint64_t kTo = 0x200000;
constexpr std::uint64_t kSize = 0x1000;
constexpr std::uint32_t kRegisters = 0;
constexpr std::uint32_t kPortals = 2;

// The server with a loop and thread of its own, as the process of `postern vdev serve` has.
class Server {
 public:
  explicit Server(const VdevConfig& config) : loop_(EventLoop::Create().value()) {
    log::SetLevel(LogLevel::kOff);
    CHECK(mkdtemp(directory_.data()) != nullptr);
    auto started = Thread::Start("server", [this] { loop_->Run(); });
    CHECK(started.has_value());
    thread_ = std::move(*started);
    loop_->RunSync([&] {
      auto made = vfio::UserServer::Create(
          path(), *loop_, [this, config] { return MakeServedVdev(config, "dsa0", *loop_); });
      CHECK(made.has_value());
      server_ = std::move(*made);
    });
  }
  ~Server() {
    loop_->RunSync([this] { server_.reset(); });
    loop_->Stop();
    thread_.Join();
    CHECK(access(path().c_str(), F_OK) != 0);
    CHECK(rmdir(directory_.c_str()) == 0);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] std::string path() const { return directory_ + "/socket"; }
  std::uint64_t Counter(const std::string& name) {
    std::uint64_t value = 0;
    loop_->RunSync([&] { value = testing::ReportedCounter(*server_, name); });
    return value;
  }
  bool busy() {
    bool busy = false;
    loop_->RunSync([&] { busy = server_->busy(); });
    return busy;
  }

 private:
  std::string directory_ = "/tmp/postern-served-XXXXXX";
  std::unique_ptr<EventLoop> loop_;
  Thread thread_;
  std::unique_ptr<vfio::UserServer> server_;
};

bool Eventually(const std::function<bool()>& done) {
  for (int i = 0; i < 2000; ++i) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return done();
}

// A guest's machine: memory that is shared, a loop, and the device.
class Client {
 public:
  explicit Client(const Server& server, bool shared = true)
      : memory(MakeRam(shared)), loop_(EventLoop::Create().value()) {
    auto started = Thread::Start("client", [this] { loop_->Run(); });
    CHECK(started.has_value());
    thread_ = std::move(*started);
    auto connected = UserDevice::Connect(server.path(), memory, *loop_);
    CHECK(connected.has_value());
    device = std::move(*connected);
  }
  ~Client() {
    device.reset();
    loop_->Stop();
    thread_.Join();
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  Result<void> Map() {
    const memory::RegionPtr region = memory.Snapshot()->regions()[0];
    return device->address_space().Map(
        iommu::Iova(0),
        {.address = reinterpret_cast<std::byte*>(region->host_address()),
         .fd = region->backing().shared ? region->fd() : -1,
         .length = region->size()},
        memory::Access::kReadWrite);
  }
  template <typename U>
  U Read(std::uint64_t offset, std::uint32_t region = kRegisters) {
    U value = 0;
    CHECK(device->ReadRegion(region, offset, std::as_writable_bytes(std::span(&value, 1)))
              .has_value());
    return value;
  }
  template <typename U>
  void Write(std::uint64_t offset, U value, std::uint32_t region = kRegisters) {
    CHECK(device->WriteRegion(region, offset, std::as_bytes(std::span(&value, 1))).has_value());
  }
  std::uint32_t Command(std::uint32_t code, std::uint32_t operand = 0) {
    Write<std::uint32_t>(dsa::dsa_regs::kCmd, code << 20 | operand);
    CHECK(Eventually([&] { return Read<std::uint32_t>(dsa::dsa_regs::kCmdstatus) >> 31 == 0; }));
    return Read<std::uint32_t>(dsa::dsa_regs::kCmdstatus);
  }
  // As a driver does: decoding and bus mastering, the device and queue 0, vector 1.
  void Start() {
    REQUIRE(Map());
    Write<std::uint16_t>(pci::kCommand, 0x6, vfio::kConfigRegion);
    const std::array<int, 2> events{misc.fd(), done.fd()};
    REQUIRE(device->SetVectors(vfio::kMsixIrq, 0, events));
    REQUIRE(Command(1) == 0);
    REQUIRE(Command(6, 0) == 0);
  }
  void Fill() {
    data = testing::Pattern(16 * kSize);
    testing::Store(memory.Snapshot(), kFrom, data);
  }
  static siov::Descriptor Move(std::uint32_t place) {
    dsa::WorkDescriptor words{};
    words.flags_and_opcode =
        le32(static_cast<std::uint32_t>(Opcode::kMove) << 24 | Flag::kRecordValid |
             Flag::kRequestRecord | Flag::kRequestInterrupt);
    words.record = le64(kRecords + place * dsa::kRecordSize);
    words.source = le64(kFrom + place * kSize);
    words.destination = le64(kTo + place * kSize);
    words.size = le32(kSize);
    words.handle = le16(1);
    siov::Descriptor descriptor;
    std::memcpy(descriptor.data(), &words, sizeof(words));
    return descriptor;
  }
  [[nodiscard]] std::byte Status(std::uint32_t place) const {
    return testing::Load(memory.Snapshot(), kRecords + place * dsa::kRecordSize, 1)[0];
  }
  [[nodiscard]] bool Complete(std::uint32_t place) const {
    return Eventually([&] { return Status(place) != std::byte{0}; });
  }
  [[nodiscard]] bool Copied(std::uint32_t place) const {
    const auto to = testing::Load(memory.Snapshot(), kTo + place * kSize, kSize);
    return std::equal(to.begin(), to.end(),
                      data.begin() + static_cast<std::ptrdiff_t>(place * kSize));
  }
  // Until the eventfd is signalled, which it takes.
  static bool Signalled(const EventFd& event) {
    pollfd entry{event.fd(), POLLIN, 0};
    if (poll(&entry, 1, 10'000) != 1) return false;
    return event.Consume() != 0;
  }

  memory::MemoryMap memory;
  std::unique_ptr<UserDevice> device;
  EventFd misc = EventFd::Create().value();
  EventFd done = EventFd::Create().value();
  std::vector<std::byte> data;

 private:
  static memory::GuestMemoryPtr MakeRam(bool shared) {
    using memory::Backing;
    const Backing backing{.kind = shared ? Backing::Kind::kMemfd : Backing::Kind::kAnonymous,
                          .shared = shared};
    return memory::GuestMemory::Create(
               {memory::Region::Create(memory::Gpa(0), kMemory, backing).value()})
        .value();
  }

  std::unique_ptr<EventLoop> loop_;
  Thread thread_;
};

VdevConfig Trapped() {
  return {.portal = VdevConfig::Portal::kAuto, .wqs = 2, .wq_size = 16};
}
VdevConfig Polled() {
  return {.portal = VdevConfig::Portal::kPolled, .wqs = 2, .wq_size = 16, .poll_sleep_us = 100};
}

}  // namespace

TEST_CASE("served vdev: a client sees the function, and nothing of its MSI-X table") {
  Server server(Trapped());
  Client client(server);
  const vfio::DeviceInfo& info = client.device->info();
  CHECK(info.can_reset);
  CHECK(info.regions[0].size == 0x10000);
  CHECK(info.regions[2].size == 0x8000);
  CHECK(info.regions[2].areas.empty());
  CHECK(info.regions[vfio::kConfigRegion].size == 256);
  CHECK(info.regions[vfio::kRomRegion].size == 0);
  CHECK(info.irqs[vfio::kMsixIrq].count == 3);
  CHECK(info.irqs[vfio::kIntxIrq].count == 0);
  CHECK(client.Read<std::uint32_t>(0, vfio::kConfigRegion) == 0x0b258086);
  CHECK(client.Read<std::uint32_t>(0) == 0x100);
  // Sizing BAR 0.
  client.Write<std::uint32_t>(pci::kBar0, ~0U, vfio::kConfigRegion);
  CHECK(client.Read<std::uint32_t>(pci::kBar0, vfio::kConfigRegion) == 0xffff000c);
  // Message control is the client's to write and read, and has no effect.
  std::uint32_t at = client.Read<std::uint8_t>(0x34, vfio::kConfigRegion);
  while (client.Read<std::uint8_t>(at, vfio::kConfigRegion) != pci::kCapMsix)
    at = client.Read<std::uint8_t>(at + 1, vfio::kConfigRegion);
  CHECK(client.Read<std::uint16_t>(at + 2, vfio::kConfigRegion) == 0x0002);
  client.Write<std::uint16_t>(at + 2, 0xc000, vfio::kConfigRegion);
  CHECK(client.Read<std::uint16_t>(at + 2, vfio::kConfigRegion) == 0xc002);
  // The table's own place.
  const std::uint64_t table =
      client.Read<std::uint32_t>(at + 4, vfio::kConfigRegion) & ~std::uint32_t{7};
  client.Write<std::uint64_t>(table + 8, 0);
  CHECK(client.Read<std::uint64_t>(table) == ~std::uint64_t{0});
  CHECK(server.Counter("msix_table_accesses") == 2);
}

TEST_CASE("served vdev: descriptors by messages move the client's memory and interrupt it") {
  Server server(Trapped());
  Client client(server);
  client.Fill();
  client.Start();
  // 64 bytes at once; in words, as a driver without MOVDIR64B; the first word last.
  const siov::Descriptor whole = Client::Move(0);
  REQUIRE(client.device->WriteRegion(kPortals, 0x1040, whole));
  CHECK(client.Complete(0));
  const siov::Descriptor parts = Client::Move(1);
  for (std::size_t i = 8; i-- > 0;) {
    REQUIRE(
        client.device->WriteRegion(kPortals, 0x1080 + 8 * i, std::span(parts).subspan(8 * i, 8)));
  }
  CHECK(client.Complete(1));
  for (const std::uint32_t place : {0U, 1U}) {
    CHECK(client.Status(place) == std::byte{1});
    CHECK(client.Copied(place));
  }
  CHECK(Client::Signalled(client.done));
  CHECK_FALSE(client.misc.Pending());
  CHECK(server.Counter("queue0_status_01") == 2);
  CHECK(server.Counter("stores_64") == 1);
  CHECK(server.Counter("queue0_portal_submitted") == 2);
  // Vector 0: the device's own.
  client.Write<std::uint32_t>(dsa::dsa_regs::kCmd, 1U << 31 | 8U << 20 | 1);
  CHECK(Client::Signalled(client.misc));
  // Unmapped: the device does not reach it, and says so.
  REQUIRE(client.device->address_space().Unmap(iommu::Iova(0), kMemory));
  CHECK(server.Counter("dma_unmaps") == 1);
  REQUIRE(client.device->WriteRegion(kPortals, 0x1000, Client::Move(2)));
  CHECK(Eventually([&] { return server.Counter("queue0_record_faults") != 0; }));
  CHECK(client.Status(2) == std::byte{0});
}

TEST_CASE("served vdev: without bus mastering there is no DMA") {
  Server server(Trapped());
  Client client(server);
  client.Fill();
  client.Start();
  client.Write<std::uint16_t>(pci::kCommand, 0x2, vfio::kConfigRegion);
  CHECK(client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 3);
  REQUIRE(client.device->WriteRegion(kPortals, 0x1000, Client::Move(0)));
  CHECK(client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 3);
  CHECK(client.Status(0) == std::byte{0});
  CHECK(server.Counter("queue0_status_01") == ~std::uint64_t{0});
}

TEST_CASE("served vdev: a mapped portal page, without a message") {
  Server server(Polled());
  Client client(server);
  client.Fill();
  const std::vector<vfio::MapArea> areas = client.device->info().regions[2].areas;
  REQUIRE(areas == std::vector<vfio::MapArea>{{0, 0x2000}, {0x4000, 0x2000}});
  client.Start();
  auto page = client.device->MapRegion(kPortals, {0x1000, 0x1000});
  REQUIRE(page);
  dsa::PageDriver driver((*page)->pages());
  const std::uint64_t messages = server.Counter("region_writes");
  for (std::uint32_t i = 0; i < 16; ++i) {
    driver.Store(Client::Move(i));
    CHECK(client.Complete(i));
    CHECK(client.Copied(i));
  }
  CHECK(Client::Signalled(client.done));
  CHECK(server.Counter("region_writes") == messages);
  CHECK(server.Counter("queue0_portal_exits") == 0);
  CHECK(server.Counter("portal_rules_broken") == 0);
  // Whoever does not map it reaches it by whole descriptors alone.
  REQUIRE(client.device->WriteRegion(kPortals, 0x1000, Client::Move(0)));
  std::array<std::byte, 8> word{};
  CHECK_FALSE(client.device->WriteRegion(kPortals, 0x1000, word));
  CHECK(server.Counter("mapped_page_accesses") == 1);
}

TEST_CASE("served vdev: a driver that breaks the rule of a mapped page halts the device") {
  Server server(Polled());
  {
    Client client(server);
    client.Fill();
    client.Start();
    auto page = client.device->MapRegion(kPortals, {0x1000, 0x1000});
    REQUIRE(page);
    dsa::PageDriver driver((*page)->pages());
    driver.StoreAt(0, Client::Move(0));
    CHECK(client.Complete(0));
    driver.StoreAt(7, Client::Move(1));
    CHECK(Eventually([&] { return client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 0xf; }));
    CHECK(server.Counter("portal_rules_broken") == 1);
    CHECK(server.Counter("losses") == 1);
    // What was stored is taken still; what comes after is not, and a reset does not hide it.
    CHECK(client.Complete(1));
    REQUIRE(client.device->Reset());
    CHECK(client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 0xf);
  }
  CHECK(Eventually([&] { return !server.busy(); }));
  Client next(server);
  next.Fill();
  next.Start();
  auto page = next.device->MapRegion(kPortals, {0x1000, 0x1000});
  REQUIRE(page);
  dsa::PageDriver(((*page)->pages())).Store(Client::Move(3));
  CHECK(next.Complete(3));
}

TEST_CASE("served vdev: a reset keeps mappings and eventfds, as VFIO's does") {
  Server server(Trapped());
  Client client(server);
  client.Fill();
  client.Start();
  REQUIRE(client.device->Reset());
  CHECK(client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 0);
  CHECK(client.Read<std::uint16_t>(pci::kCommand, vfio::kConfigRegion) == 0);
  client.Write<std::uint16_t>(pci::kCommand, 0x6, vfio::kConfigRegion);
  REQUIRE(client.Command(1) == 0);
  REQUIRE(client.Command(6, 1) == 0);
  REQUIRE(client.device->WriteRegion(kPortals, 0x5000, Client::Move(4)));
  CHECK(client.Complete(4));
  CHECK(client.Copied(4));
  CHECK(Client::Signalled(client.done));
  // Function-level, by config space.
  std::uint32_t at = client.Read<std::uint8_t>(0x34, vfio::kConfigRegion);
  while (client.Read<std::uint8_t>(at, vfio::kConfigRegion) != pci::kCapExpress)
    at = client.Read<std::uint8_t>(at + 1, vfio::kConfigRegion);
  client.Write<std::uint16_t>(at + 8, 0x8000, vfio::kConfigRegion);
  CHECK(client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 0);
  client.Write<std::uint16_t>(pci::kCommand, 0x6, vfio::kConfigRegion);
  REQUIRE(client.Command(1) == 0);
  REQUIRE(client.Command(6, 0) == 0);
  REQUIRE(client.device->WriteRegion(kPortals, 0x1000, Client::Move(5)));
  CHECK(client.Complete(5));
  CHECK(Client::Signalled(client.done));
}

TEST_CASE("served vdev: a client that goes in the middle leaves nothing to the next") {
  for (const VdevConfig& config : {Trapped(), Polled()}) {
    Server server(config);
    std::unique_ptr<vfio::RegionMapping> kept;
    for (int round = 0; round < 3; ++round) {
      Client client(server);
      CHECK(client.Read<std::uint32_t>(dsa::dsa_regs::kGensts) == 0);
      client.Fill();
      client.Start();
      for (std::uint32_t i = 0; i < 16; ++i)
        REQUIRE(client.device->WriteRegion(kPortals, 0x1000, Client::Move(i)));
      if (config.portal != VdevConfig::Portal::kPolled) continue;
      // A page of a client that is gone is no way into the device of this one.
      auto page = client.device->MapRegion(kPortals, {0x1000, 0x1000});
      REQUIRE(page);
      if (kept != nullptr) {
        CHECK(client.Complete(15));
        const std::uint64_t before = server.Counter("queue0_submitted");
        dsa::PageDriver(kept->pages()).Store(Client::Move(0));
        dsa::PageDriver((*page)->pages()).Store(Client::Move(1));
        CHECK(Eventually([&] { return server.Counter("queue0_submitted") == before + 1; }));
      }
      kept = std::move(*page);
    }
    CHECK(Eventually([&] { return !server.busy(); }));
    CHECK(server.Counter("clients") == 3);
    CHECK(server.Counter("clients_dropped") == 0);
    CHECK(server.Counter("dma_maps") == 3);
  }
}

TEST_CASE("served vdev: one client at a time; memory that is not shared is refused") {
  Server server(Trapped());
  {
    Client client(server, false);
    CHECK_FALSE(client.Map());
    CHECK(server.Counter("dma_maps_without_file") == 1);
    auto loop = EventLoop::Create().value();
    const auto second = UserDevice::Connect(server.path(), client.memory, *loop);
    CHECK_FALSE(second);
    CHECK(server.Counter("clients_refused") == 1);
    CHECK(client.Read<std::uint32_t>(0) == 0x100);
  }
  CHECK(Eventually([&] { return !server.busy(); }));
  Client client(server);
  CHECK(client.Map());
}

TEST_CASE("served vdev: what cannot be composed is said before anyone connects") {
  auto loop = EventLoop::Create().value();
  const VdevConfig bad{.engines = 100'000};
  const auto server = vfio::UserServer::Create("/tmp/postern-served-none", *loop,
                                               [&] { return MakeServedVdev(bad, "dsa0", *loop); });
  REQUIRE_FALSE(server);
  CHECK_FALSE(server.error().cause.empty());
}

}  // namespace postern
