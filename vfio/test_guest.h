#pragma once

// TestGuest: an assigned FakeHostDevice behind a host bridge, and the guest's side of it, for the
// tests of this package.
//
//   TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); }));
//   guest.Command(kMemory);
//   guest.UnmaskMsix(2, 0x42);
//   CHECK(guest.device->Fire(kMsixIrq, 2));

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/pci/fake_function.h"
#include "src/base/event_loop.h"
#include "tests/support/counter.h"
#include "vfio/fake_host_device.h"
#include "vfio/function.h"

namespace postern::vfio {

constexpr std::uint16_t kIoOn = 1;
constexpr std::uint16_t kMemory = 2;
constexpr std::uint16_t kMaster = 4;
constexpr std::uint32_t kPowerAt = 0x40;
constexpr std::uint32_t kMsiAt = 0x50;
constexpr std::uint32_t kMsixAt = 0x70;
constexpr std::uint32_t kExpressAt = 0x80;

inline std::unique_ptr<FakeHostDevice> MakeDevice(
    const std::function<void(FakeHostDevice&)>& change = {}) {
  auto device = std::make_unique<FakeHostDevice>();
  if (change) change(*device);
  return device;
}

class TestGuest {
 public:
  explicit TestGuest(std::unique_ptr<FakeHostDevice> fake, VfioFunction::Options options = {})
      : device(fake.get()), loop(EventLoop::Create().value()) {
    auto made = VfioFunction::Create(std::move(fake), bridge.platform.Get(), *loop,
                                     std::move(options), [this] { ++requests; });
    CHECK(made.has_value());
    function = std::move(*made);
    at = bridge.root->Add(*function).value();
    CHECK(bridge.root->AssignAddresses().has_value());
    (void)device->TakeCalls();
  }
  ~TestGuest() {
    if (function == nullptr) return;
    // They may refer to what the test made after this.
    device->fail = nullptr;
    device->on_call = nullptr;
    Unplug();
  }
  TestGuest(const TestGuest&) = delete;
  TestGuest& operator=(const TestGuest&) = delete;

  void Unplug() {
    if (function == nullptr) return;
    CHECK(bridge.root->Remove(*function).has_value());
    function.reset();
  }
  template <typename U>
  U Config(std::uint32_t offset) {
    return bridge.Config<U>(at, offset);
  }
  template <typename U>
  void Config(std::uint32_t offset, U value) {
    bridge.Config<U>(at, offset, value);
  }
  void Command(std::uint16_t value) { Config<std::uint16_t>(pci::kCommand, value); }
  [[nodiscard]] std::uint64_t Bar(std::size_t index) const {
    const MutexLock hold(function->lock());
    return function->BarAddress(index);
  }
  template <typename U>
  U Read(std::size_t bar, std::uint64_t offset) {
    return bridge.Read<U>(Bar(bar) + offset);
  }
  template <typename U>
  void Write(std::size_t bar, std::uint64_t offset, U value) {
    bridge.Write<U>(Bar(bar) + offset, value);
  }
  // What is mapped of a BAR: (offset, length) of each piece.
  std::vector<std::pair<std::uint64_t, std::uint64_t>> Mapped(std::size_t bar) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> list;
    if (!function->bars()[bar]) return list;
    const std::uint64_t base = Bar(bar);
    const std::uint64_t size = function->bars()[bar]->size();
    for (const auto& mapping : bridge.platform.pages.Mappings()) {
      if (mapping.gpa.value >= base && mapping.gpa.value - base < size)
        list.emplace_back(mapping.gpa.value - base, mapping.pages.length);
    }
    return list;
  }
  std::size_t Mappings() { return bridge.platform.pages.Mappings().size(); }
  [[nodiscard]] std::uint64_t Counter(std::string_view name) const {
    return testing::ReportedCounter(*function, name);
  }

  // --- MSI-X in BAR 2 at 0x1000, pending bits at 0x2000, memory decoding on ---
  void MsixControl(bool enable, bool mask = false) {
    Config<std::uint16_t>(
        kMsixAt + 2, static_cast<std::uint16_t>((enable ? 0x8000U : 0U) | (mask ? 0x4000U : 0U)));
  }
  void Program(std::uint32_t vector, std::uint32_t data) {
    Write<std::uint64_t>(2, 0x1000 + 16 * vector, 0xfee00000);
    Write<std::uint32_t>(2, 0x1000 + 16 * vector + 8, data);
  }
  void MaskMsix(std::uint32_t vector, bool masked) {
    Write<std::uint32_t>(2, 0x1000 + 16 * vector + 12, masked ? 1 : 0);
  }
  void UnmaskMsix(std::uint32_t vector, std::uint32_t data) {
    Program(vector, data);
    MaskMsix(vector, false);
  }
  std::uint64_t Pba(std::uint32_t word = 0) { return Read<std::uint64_t>(2, 0x2000 + 8 * word); }
  std::vector<std::uint32_t> Delivered() {
    std::vector<std::uint32_t> list;
    for (const bus::MsiMessage& message : bridge.platform.interrupts.TakeDelivered())
      list.push_back(message.data);
    return list;
  }

  pci::FakeBridge bridge;
  FakeHostDevice* device;  // function's
  std::unique_ptr<EventLoop> loop;
  int requests = 0;
  std::unique_ptr<VfioFunction> function;
  pci::Bdf at;
};

using Call = FakeHostDevice::Call;
using Op = FakeHostDevice::Op;

// Those of one kind.
inline std::vector<Call> Only(const std::vector<Call>& calls, Op op) {
  std::vector<Call> list;
  for (const Call& call : calls) {
    if (call.op == op) list.push_back(call);
  }
  return list;
}

}  // namespace postern::vfio
