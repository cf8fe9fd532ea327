// A device that answers anything: every register read, config read, failure and interrupt is the
// fuzzer's, while an owner does all an owner can.

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "devices/siov/host/dsa_host.h"
#include "devices/siov/host/vfio_backend.h"
#include "src/base/check.h"
#include "src/base/log.h"
#include "src/base/mutex.h"
#include "tests/support/fuzz_input.h"
#include "vfio/fake_host_device.h"

namespace postern::dsa {
namespace {

constexpr std::size_t kBar = 0x10000;
constexpr std::uint32_t kVectors = 9;

// What it was told to say, then zeroes; so that most devices get past their reset.
class Liar final : public vfio::HostDevice {
 public:
  explicit Liar(testing::FuzzInput& input) {
    info_.name = "liar";
    info_.can_reset = input.Take(1) != 0;
    info_.regions[0] = {.size = kBar, .readable = true, .writable = true, .areas = {}};
    info_.regions[2] = {.size = 0x40000, .readable = true, .writable = true, .areas = {}};
    info_.regions[vfio::kConfigRegion] = {
        .size = 4096, .readable = true, .writable = true, .areas = {}};
    info_.irqs[vfio::kMsixIrq] = {.count = kVectors, .eventfd = true};
    info_.irqs[vfio::kRequestIrq] = {.count = 1, .eventfd = true};
    registers_.resize(kBar);
    // A good device, of which the fuzzer changes some registers.
    Put(0x00, 0x100);
    Put(0x10, 0x815f'0006);
    Put(0x20, 0x000a'0000'0008'0080);
    Put(0x30, 4);
    Put(0x38, 4);
    Put(0x40, 0x1003f03ff);
    Put(0x60, 0x0000'0004'0008'0006);
    for (std::uint64_t n = input.Take(1) % 8; n > 0; --n) {
      const std::uint64_t at = input.Take(1);
      const std::uint64_t width = input.Take(1) % 8 + 1;
      const std::uint64_t value = input.Take(8);
      std::memcpy(registers_.data() + at, &value, width);
    }
  }
  // From now on a register may say something else; the low byte of `at` in units of 4.
  void Change(std::uint64_t at, std::uint64_t value) {
    const MutexLock lock(mutex_);
    std::memcpy(registers_.data() + (at & 0xff) * 4, &value, sizeof(value));
  }
  void Fail(int error) {
    const MutexLock lock(mutex_);
    error_ = error;
  }
  void Signal(std::uint32_t vector) {
    const MutexLock lock(mutex_);
    if (vector < kVectors && events_[vector] != nullptr) events_[vector]->Signal();
  }

  [[nodiscard]] const vfio::DeviceInfo& info() const override { return info_; }
  [[nodiscard]] iommu::AddressSpace& address_space() override { return space_; }
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override {
    const MutexLock lock(mutex_);
    if (error_ != 0) return SysError("liar", error_);
    std::ranges::fill(data, std::byte{0});
    if (region == vfio::kConfigRegion) {
      constexpr std::uint32_t kIds = 0x0b258086;
      if (offset + data.size() <= sizeof(kIds))
        std::memcpy(data.data(), std::as_bytes(std::span(&kIds, 1)).data() + offset, data.size());
      return {};
    }
    CHECK(region == 0 && offset + data.size() <= registers_.size());
    std::memcpy(data.data(), registers_.data() + offset, data.size());
    return {};
  }
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override {
    const MutexLock lock(mutex_);
    if (error_ != 0) return SysError("liar", error_);
    CHECK(region != 0 || offset + data.size() <= registers_.size());
    return {};
  }
  [[nodiscard]] Result<std::unique_ptr<vfio::RegionMapping>> MapRegion(
      std::uint32_t /*region*/, const vfio::MapArea& /*area*/) override {
    return Err(Errc::kUnsupported, "liar");
  }
  [[nodiscard]] Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) override {
    const MutexLock lock(mutex_);
    if (irq != vfio::kMsixIrq) return {};
    CHECK(start + events.size() <= kVectors);
    for (std::size_t i = 0; i < events.size(); ++i) {
      events_[start + i].reset();
      if (events[i] >= 0)
        events_[start + i] = std::make_unique<EventFd>(Fd(fcntl(events[i], F_DUPFD_CLOEXEC, 0)));
    }
    return {};
  }
  [[nodiscard]] Result<void> DisableIrq(std::uint32_t /*irq*/) override { return {}; }
  [[nodiscard]] Result<void> MaskIntx(bool /*masked*/) override { return {}; }
  [[nodiscard]] Result<void> SetIntxUnmask(int /*unmask*/) override { return {}; }
  [[nodiscard]] Result<void> Reset() override { return {}; }

 private:
  void Put(std::size_t at, std::uint64_t value) REQUIRES(mutex_) {
    std::memcpy(registers_.data() + at, &value, sizeof(value));
  }
  vfio::DeviceInfo info_;
  vfio::FakeAddressSpace space_;
  Mutex mutex_;
  std::vector<std::byte> registers_ GUARDED_BY(mutex_);
  std::unique_ptr<EventFd> events_[kVectors] GUARDED_BY(mutex_);
  int error_ GUARDED_BY(mutex_) = 0;
};

struct Events final : siov::BackendEvents {
  [[nodiscard]] bool IsHandle(std::uint32_t /*handle*/) const override { return true; }
  void SignalHandle(std::uint32_t /*handle*/) override {}
  void OnError(const siov::ErrorRecord& record) override {
    CHECK(record.queue < siov::kMaxQueues);
    CHECK((record.words[0] >> 40 & 0xfffff) == 0);
  }
  void OnRefused(std::uint32_t /*queue*/, siov::SubmitResult /*why*/) override {}
  void OnRuleBroken(std::uint32_t /*queue*/) override {}
  void OnHandlesRevoked() override {}
  void OnLost() override {}
};

void Step(testing::FuzzInput& input, Liar& liar, VfioBackend& backend) {
  const auto queues = siov::QueueSet{input.Take(1)};
  const auto queue = static_cast<std::uint32_t>(queues % 9);
  constexpr std::uint64_t kSteps = 14;
  switch (input.Take(1) % kSteps) {
    case 0:
      (void)backend.Start({.groups = {{.queues = queues, .engines = queue}}});
      break;
    case 1:
      (void)backend.Enable(queue, {.size = static_cast<std::uint32_t>(input.Take(1)),
                                   .max_transfer = 4096,
                                   .max_batch = 2,
                                   .operations = backend.caps().operations});
      break;
    case 2:
      backend.Drain(queues, [](siov::HaltResult) {});
      break;
    case 3:
      backend.Disable(queues, [](siov::HaltResult) {});
      break;
    case 4:
      backend.Abort(queues, [](siov::HaltResult) {});
      break;
    case 5:
      backend.Reset();
      break;
    case 6:
      (void)backend.OpenHandle(static_cast<std::uint16_t>(queue));
      break;
    case 7:
      (void)backend.Occupancy(queue);
      break;
    case 8:
      backend.Quiesce();
      (void)backend.Save();
      backend.Resume();
      break;
    case 9:
      liar.Fail(static_cast<int>(input.Take(1) % 3 == 0 ? ENODEV : 0));
      break;
    case 10:
      liar.Signal(queue);
      break;
    case 11:
      backend.Stop();
      break;
    case 12:
      (void)backend.Submit(queue, {});
      break;
    default:
      liar.Change(input.Take(1), input.Take(8));
  }
}

void Run(const std::uint8_t* data, std::size_t size) {
  log::SetLevel(LogLevel::kOff);
  testing::FuzzInput input(data, size);
  auto own = std::make_unique<Liar>(input);
  Liar& liar = *own;
  auto host = DsaHost::Create(std::move(own), {.name = "liar",
                                               .command_limit = std::chrono::milliseconds(2),
                                               .reset_limit = std::chrono::milliseconds(1),
                                               .portals_are_memory = true});
  if (!host) return;
  Events events;
  auto backend =
      VfioBackend::Create(**host, {.queues = static_cast<std::uint32_t>(input.Take(1) % 4 + 1),
                                   .size = static_cast<std::uint32_t>(input.Take(1) % 64)});
  if (!backend) return;
  (*backend)->Attach(events);
  (void)(*backend)->CanSubmit();
  for (int steps = 0; input.left() && steps < 64; ++steps) Step(input, liar, **backend);
}

}  // namespace
}  // namespace postern::dsa

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::dsa::Run(data, size);
  return 0;
}
