#pragma once

// FakeBridge and FakeFunction: a root bus over fakes and a function with one BAR of each kind, for
// tests, benches and fuzz targets.
//
//   FakeBridge bridge;
//   FakeFunction function(bridge.platform.interrupts);
//   Bdf where = bridge.root->Add(function).value();
//   bridge.Config<std::uint16_t>(where, kCommand, 2);
//
// BAR 0: 32-bit, 8 KiB: 4 KiB of bytes that can be written and read, 4 KiB of MSI-X table (4
// vectors) and PBA. BAR 1: I/O, 16 bytes. BAR 2: 64-bit prefetchable, 64 KiB: pages, one doorbell
// page, pages.
// Threads: as what they are made of.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/pci/function.h"
#include "devices/pci/root.h"
#include "src/base/check.h"
#include "src/base/event_fd.h"
#include "src/bus/bus.h"
#include "src/bus/fake_platform.h"

namespace postern::pci {

struct FakeBridge {
  static constexpr std::uint64_t kEcam = 0xe0000000;
  static constexpr Windows kWindows{.memory32 = {0xc0000000, 0x10000000},
                                    .memory64 = {0x4000000000, 0x1000000000},
                                    .io = {0x1000, 0x1000}};

  static constexpr IntxInputs kIntx = {16, 17, 18, 19};

  explicit FakeBridge(std::uint32_t buses = 1)
      : root(PciRoot::Create(
                 {.ecam = memory::Gpa(kEcam), .windows = kWindows, .buses = buses, .intx = kIntx},
                 mmio, &ports, platform.Get())
                 .value()) {}

  static std::uint64_t ConfigAddress(Bdf where, std::uint32_t offset) {
    return kEcam + (std::uint64_t{where.value()} << 12) + offset;
  }
  template <typename U>
  U Load(bus::Bus& on, std::uint64_t address) {
    std::array<std::byte, sizeof(U)> bytes{};
    on.Read(address, bytes);
    U value;
    std::memcpy(&value, bytes.data(), sizeof(U));
    return value;
  }
  template <typename U>
  void Store(bus::Bus& on, std::uint64_t address, U value) {
    std::array<std::byte, sizeof(U)> bytes{};
    std::memcpy(bytes.data(), &value, sizeof(U));
    on.Write(address, bytes);
  }
  template <typename U>
  U Read(std::uint64_t address) {
    return Load<U>(mmio, address);
  }
  template <typename U>
  void Write(std::uint64_t address, U value) {
    Store<U>(mmio, address, value);
  }
  template <typename U>
  U Config(Bdf where, std::uint32_t offset) {
    return Load<U>(mmio, ConfigAddress(where, offset));
  }
  template <typename U>
  void Config(Bdf where, std::uint32_t offset, U value) {
    Store<U>(mmio, ConfigAddress(where, offset), value);
  }

  bus::FakePlatform platform;
  bus::Bus mmio;
  bus::Bus ports;
  std::unique_ptr<PciRoot> root;
};

// Memory behind trapped accesses.
class FakeRegisters final : public bus::MmioHandler {
 public:
  explicit FakeRegisters(std::size_t size) : bytes(size) {}
  void Read(std::uint64_t offset, std::span<std::byte> data) override {
    ++reads;
    CHECK(offset + data.size() <= bytes.size());
    std::memcpy(data.data(), bytes.data() + offset, data.size());
  }
  void Write(std::uint64_t offset, std::span<const std::byte> data) override {
    ++writes;
    CHECK(offset + data.size() <= bytes.size());
    std::memcpy(bytes.data() + offset, data.data(), data.size());
  }
  std::vector<std::byte> bytes;
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
};

class FakeFunction final : public PciFunction {
 public:
  static constexpr std::uint16_t kVectors = 4;
  static constexpr std::uint32_t kTable = 0x1000;
  static constexpr std::uint32_t kPba = 0x1800;
  static constexpr std::uint32_t kDoorbell = 0x8000;  // in BAR 2

  explicit FakeFunction(bus::InterruptSource& interrupts, const char* name = "fake")
      : PciFunction(name, {.vendor = 0x1234,
                           .device = 0x5678,
                           .revision = 0x9a,
                           .class_code = 0x123456,
                           .subsystem_vendor = 0xbcde,
                           .subsystem = 0xf012}),
        pages(0x10000) {
    auto table = MsixTable::Create(interrupts, kVectors).value();
    MustAdd(0, Bar::Create(BarKind::kMem32, 0x2000,
                           {Trapped{0, 0x1000, &registers, "registers"},
                            Trapped{0x1000, 0x800, &table->table(), "msix-table"},
                            Trapped{0x1800, 0x800, &table->pba(), "msix-pba"}}));
    MustAdd(1, Bar::Create(BarKind::kIo, 16, {Trapped{0, 16, &ports, "ports"}}));
    MustAdd(
        2, Bar::Create(BarKind::kMem64Prefetchable, 0x10000,
                       {Pages{0, HostPages(0, 0x8000), memory::Access::kReadWrite, "low"},
                        Trapped{0x8000, 0x1000, &doorbell_page, "doorbell"},
                        Pages{0x9000, HostPages(0x9000, 0x7000), memory::Access::kRead, "high"}},
                       {{.offset = kDoorbell, .width = 4, .match = std::nullopt, .event = &kick}}));
    CHECK(AddMsix(std::move(table), 0, kTable, kPba).has_value());
  }

  void OnAttach(Bdf where, const std::optional<IntxInputs>& inputs) override {
    CHECK(!attached);
    attached = where;
    intx = inputs;
  }
  void OnDetach() override {
    CHECK(attached && !bars()[0]->mapped());
    attached.reset();
  }
  void OnMemoryDecode(bool on) override {
    decode_events.push_back(on);
    mapped_at_decode.push_back(bars()[0]->mapped().has_value());
  }
  void OnReset() override { ++resets; }
  using PciFunction::TrapBarPages;

  FakeRegisters registers{0x1000};
  FakeRegisters ports{16};
  FakeRegisters doorbell_page{0x1000};
  EventFd kick{EventFd::Create().value()};
  std::vector<std::byte> pages;
  std::optional<Bdf> attached;
  std::optional<IntxInputs> intx;
  std::vector<bool> decode_events;
  std::vector<bool> mapped_at_decode;
  int resets = 0;

 private:
  bus::HostPages HostPages(std::size_t offset, std::size_t length) {
    return {.fd = -1, .offset = 0, .address = pages.data() + offset, .length = length};
  }
  void MustAdd(std::size_t index, Result<Bar> bar) {
    CHECK(bar.has_value());
    CHECK(AddBar(index, std::move(*bar)).has_value());
  }
};

// A function of `bars` 64-bit BARs of one size and nothing else, for address assignment.
class PlainFunction final : public PciFunction {
 public:
  struct Spec {
    std::size_t index;
    BarKind kind;
    std::uint64_t size;
  };
  explicit PlainFunction(const std::vector<Spec>& bars)
      : PciFunction("plain", {.vendor = 0x1234, .device = 1}) {
    for (const Spec& spec : bars) {
      auto bar = Bar::Create(spec.kind, spec.size, {Trapped{0, spec.size, &handler, "all"}});
      CHECK(bar.has_value());
      CHECK(AddBar(spec.index, std::move(*bar)).has_value());
    }
  }
  class Handler final : public bus::MmioHandler {
   public:
    void Read(std::uint64_t /*offset*/, std::span<std::byte> data) override {
      for (std::byte& byte : data) byte = std::byte{0x5a};
    }
    void Write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
  };
  Handler handler;
};

}  // namespace postern::pci
