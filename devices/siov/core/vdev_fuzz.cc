// A guest, a back end and a state file of which the input decides: config space, registers, portal
// stores, whole stores, resets, what the back end says, save and restore, on a Vdev of fakes in
// each portal mode. Whatever happens: no descriptor is made up or taken twice, what is counted adds
// up, and a state that Save gave is taken back.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "devices/siov/core/fake_vdev.h"
#include "src/base/check.h"
#include "src/base/log.h"
#include "tests/support/fuzz_input.h"

using postern::siov::Descriptor;
using postern::siov::FakeDescriptor;
using postern::siov::FakePersonality;
using postern::siov::FakeVdev;
using postern::siov::PortalMode;
using postern::siov::VdevState;
using postern::testing::FuzzInput;

namespace {

std::array<std::byte, 8> Bytes(std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

class Run {
 public:
  Run(FuzzInput& input, const postern::siov::FakeVdevOptions& options)
      : input_(input), f_(options) {
    f_.EnableMsix(5);
  }

  void Step() {
    switch (input_.Take(1) % 12) {
      case 0:
        return Config();
      case 1:
        return Register();
      case 2:
        return Command();
      case 3:
        return Piece();
      case 4:
      case 5:
        return Store();
      case 6:
        return StoreWhole();
      case 7:
        f_.backend->Poll(Queue());
        return;
      case 8:
        f_.backend->Complete(Queue(), static_cast<std::uint32_t>(input_.Take(1)));
        return;
      case 9:
        return Say();
      case 10:
        return SaveAndRestore();
      default:
        f_.Turn();
        if (input_.Take(1) % 8 == 0) Revive();
    }
  }

  void Finish() {
    Revive();
    f_.Turn();
    std::set<std::uint64_t> seen;
    for (std::uint32_t q = 0; q < 3; ++q) {
      f_.backend->Poll(q);
      f_.backend->Complete(q, 1000);
      for (const std::uint64_t tag : f_.backend->CompletedTags(q)) {
        // Pieces and twisted states may make anything of a descriptor; whole ones stay what they
        // are.
        if (tag >> 48 != kOurs) continue;
        CHECK((tag & 0xffffffff) < next_tag_);
        CHECK(pieces_ || restored_ || seen.insert(tag).second);
      }
      const std::string queue = "queue" + std::to_string(q) + "_portal_";
      CHECK(f_.Counter(queue + "partial_slots") <= std::uint64_t{4} * 64);
    }
  }

 private:
  static constexpr std::uint64_t kOurs = 0x7a7a;

  std::uint32_t Queue() { return static_cast<std::uint32_t>(input_.Take(1) % 3); }
  std::size_t Width() { return std::size_t{1} << (input_.Take(1) & 3); }
  std::uint64_t Tag() { return kOurs << 48 | next_tag_++; }

  void Revive() {
    f_.Place();
    f_.Command(FakeVdev::kMemory | FakeVdev::kBusMaster);
  }
  void Config() {
    const std::uint64_t at = postern::pci::FakeBridge::ConfigAddress(
        f_.where, static_cast<std::uint32_t>(input_.Take(1)));
    const std::size_t width = Width();
    auto bytes = Bytes(input_.Take(width));
    const auto data = std::span(bytes).first(width);
    input_.Take(1) % 2 == 0 ? f_.bridge.mmio.Read(at, data) : f_.bridge.mmio.Write(at, data);
  }
  void Register() {
    const std::uint64_t at = FakeVdev::kRegisters + (input_.Take(2) & 0xffff);
    const std::size_t width = Width();
    auto bytes = Bytes(input_.Take(width));
    const auto data = std::span(bytes).first(width);
    input_.Take(1) % 2 == 0 ? f_.bridge.mmio.Read(at, data) : f_.bridge.mmio.Write(at, data);
  }
  void Command() {
    const auto command = static_cast<postern::siov::FakeCommand>(input_.Take(1) % 10);
    f_.Register<std::uint32_t>(
        FakePersonality::kCommand,
        static_cast<std::uint32_t>(command) | static_cast<std::uint32_t>(input_.Take(1)) << 8);
  }
  void Piece() {
    pieces_ = true;
    const std::size_t width = Width();
    const auto bytes = Bytes(input_.Take(width));
    f_.Store(input_.Take(2) % (0x10000 - 8), std::span<const std::byte>(bytes).first(width));
  }
  // Whole, and in a slot of its own: the driver's.
  void Store() {
    const std::uint64_t place = input_.Take(2);
    f_.StoreDescriptor((place & 0xffff) / 64 * 64, FakeDescriptor(Tag(), place % 7));
  }
  void StoreWhole() {
    const std::uint64_t offset = input_.Take(2);
    const postern::MutexLock lock(f_.vdev->lock());
    f_.vdev->SubmitAt(offset % 3 == 0 ? offset / 64 * 64 : offset, FakeDescriptor(Tag()));
  }
  void Say() {
    const auto what = input_.Take(1);
    const auto value = static_cast<std::uint32_t>(input_.Take(what % 2 == 0 ? 1 : 4));
    postern::siov::BackendEvents& events = f_.backend->events();
    switch (what % 7) {
      case 0:
        return events.SignalHandle(value);
      case 1:
        return events.OnError({.queue = value, .words = {value}});
      case 2:
        return events.OnRefused(value, postern::siov::SubmitResult::kFull);
      case 3:
        return events.OnRuleBroken(value % 5);
      case 4:
        CHECK(f_.vdev != nullptr && events.IsHandle(value) == events.IsHandle(value));
        return;
      case 5:
        return events.OnHandlesRevoked();
      default:
        if (value % 16 == 0) events.OnLost();
    }
  }

  void SaveAndRestore() {
    const postern::MutexLock lock(f_.vdev->lock());
    f_.vdev->Quiesce();
    VdevState state = f_.vdev->Save().value();
    const bool twisted = input_.Take(1) % 2 == 0;
    if (twisted) Twist(state);
    restored_ = true;
    const auto restored = f_.vdev->Restore(state);
    CHECK(restored || twisted);
    f_.vdev->Resume();
  }

  void Twist(VdevState& state) {
    const std::uint64_t value = input_.Take(8);
    switch (input_.Take(1) % 10) {
      case 0:
        state.version = static_cast<std::uint32_t>(value);
        return;
      case 1:
        state.registers[value % state.registers.size()] = input_.Take(8);
        return;
      case 2:
        state.registers.resize(value % 32);
        return;
      case 3:
        state.handles.push_back(static_cast<std::uint32_t>(value));
        return;
      case 4:
        state.partial_slots.push_back({.queue = static_cast<std::uint32_t>(value % 5),
                                       .page = static_cast<std::uint32_t>(value >> 8 & 7),
                                       .slot = static_cast<std::uint32_t>(value >> 16 & 127),
                                       .present = value >> 24});
        return;
      case 5:
        state.rule_broken = value % 16;
        return;
      case 6:
        state.function.config.registers[value % state.function.config.registers.size()] =
            static_cast<std::uint32_t>(value >> 32);
        return;
      case 7:
        state.function.msix->table_entries.resize(value % 8);
        return;
      case 8:
        state.backend.queues.resize(value % 6);
        return;
      default:
        state.personality.words.resize(value % 3);
    }
  }

  FuzzInput& input_;
  FakeVdev f_;
  std::uint64_t next_tag_ = 0;
  bool pieces_ = false;    // descriptors may be made of anything
  bool restored_ = false;  // and be there again
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::log::SetLevel(postern::LogLevel::kOff);
  FuzzInput input(data, size);
  const std::uint64_t kind = input.Take(1);
  postern::siov::FakeVdevOptions options;
  options.portal = static_cast<PortalMode>(kind % 3);
  options.caps.named_handles = (kind & 4) != 0;
  if ((kind & 8) != 0) options.layout.pages_per_queue = 2;
  Run run(input, options);
  for (int step = 0; step < 256 && input.left(); ++step) run.Step();
  run.Finish();
  return 0;
}
