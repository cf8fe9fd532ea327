#pragma once

// FakeHostDevice: a HostDevice in memory, for tests and fuzz targets: config space, BARs as bytes,
// interrupts that signal the eventfds they were given, a log of every call, and errors on demand.
//
//   FakeHostDevice device;
//   device.AddMsix(4, 2, 0x0, 0x800);
//   device.fail = [](const Call& call) { return call.op == Op::kReset ? EAGAIN : 0; };
//   ...
//   CHECK(device.Fire(kMsixIrq, 3));
//
// It keeps the kernel's rules: memory BARs and the ROM answer EIO while COMMAND.MEM is off or the
// power state is not D0; one interrupt kind at a time (EINVAL); INTx masks and unmask events only
// while INTx is enabled; no vector beyond the count; NORESIZE fixes the number of vectors at the
// first call. `config` is what reads see: tests write hostile bytes into it.
//
// A test that made it keeps a pointer (`FakeHandle`): the function under test owns the device.
// Threads: any; one mutex. Fields are set before the device is used.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "iommu/address_space.h"
#include "src/base/mutex.h"
#include "vfio/host_device.h"

namespace postern::vfio {

class FakeAddressSpace final : public iommu::AddressSpace {
 public:
  struct Mapped {
    std::uint64_t at;
    std::uint64_t length;
    const std::byte* address;
    friend bool operator==(const Mapped&, const Mapped&) = default;
  };
  [[nodiscard]] std::string_view name() const override { return "fake"; }
  [[nodiscard]] iommu::Limits limits() const override;
  [[nodiscard]] Result<void> Map(iommu::Iova at, const iommu::HostRange& from,
                                 memory::Access access) override;
  [[nodiscard]] Result<void> Unmap(iommu::Iova at, std::uint64_t length) override;
  [[nodiscard]] Result<void> TrackDirty(bool on) override;
  [[nodiscard]] Result<void> TakeDirty(iommu::Iova at, std::uint64_t length,
                                       std::uint64_t page_size,
                                       std::span<std::uint64_t> bits) override;
  std::vector<Mapped> mapped;
  int fail = 0;  // errno of Map
};

class FakeHostDevice final : public HostDevice {
 public:
  enum class Op : std::uint8_t {
    kRead,
    kWrite,
    kMap,
    kSetVectors,
    kDisable,
    kMaskIntx,
    kUnmaskEvent,
    kReset
  };
  struct Call {
    Op op = Op::kRead;
    std::uint32_t index = 0;   // region or irq
    std::uint64_t offset = 0;  // or first vector, or masked
    std::uint64_t value =
        0;                 // little-endian data of a write of up to 8 bytes; events that are not -1
    std::size_t size = 0;  // bytes, or events
  };
  static constexpr std::size_t kBar = 0x4000;

  // An Express endpoint 8086:10d3 with function-level reset, 4 KiB of config space, and power
  // management. BAR 0: 32-bit, 16 KiB, mappable whole. BAR 2: 64-bit prefetchable, 16 KiB, mappable
  // whole. BAR 4: I/O, 32 bytes. Error and request events. No interrupts until added.
  FakeHostDevice();
  ~FakeHostDevice() override {
    if (on_close) on_close();
  }

  // Capabilities at 0x50 (MSI) and 0x70 (MSI-X) with their vectors.
  void AddMsi(std::uint16_t vectors, bool address64 = true, bool masking = false);
  void AddMsix(std::uint16_t vectors, std::uint8_t bar = 2, std::uint32_t table = 0x1000,
               std::uint32_t pba = 0x2000);
  void AddIntx();
  void AddRom(std::size_t size, std::uint8_t first = 0x55, std::uint8_t second = 0xaa);
  void SetBar(std::size_t index, std::uint32_t register_value, std::uint64_t size, bool mappable);
  template <typename U>
  void Put(std::size_t at, U value) {
    for (std::size_t i = 0; i < sizeof(U); ++i)
      config[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
  template <typename U>
  [[nodiscard]] U Get(std::size_t at) const {
    std::uint64_t value = 0;
    for (std::size_t i = sizeof(U); i-- > 0;) value = value << 8 | config[at + i];
    return static_cast<U>(value);
  }

  // The device signals: false if nobody listens to that vector.
  bool Fire(std::uint32_t irq, std::uint32_t vector = 0);
  [[nodiscard]] int Event(std::uint32_t irq, std::uint32_t vector) const;
  // Which of INTx, MSI, MSI-X is enabled; kIrqCount: none.
  [[nodiscard]] std::uint32_t enabled() const;
  [[nodiscard]] std::size_t allocated() const;  // vectors of it
  [[nodiscard]] bool intx_masked() const;
  [[nodiscard]] bool decodes() const;

  [[nodiscard]] std::vector<Call> TakeCalls();
  [[nodiscard]] bool HasMappings() const { return mappings_ != 0; }

  // --- HostDevice ---
  [[nodiscard]] const DeviceInfo& info() const override { return device; }
  [[nodiscard]] iommu::AddressSpace& address_space() override { return space; }
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override;
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override;
  [[nodiscard]] Result<std::unique_ptr<RegionMapping>> MapRegion(std::uint32_t region,
                                                                 const MapArea& area) override;
  [[nodiscard]] Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) override;
  [[nodiscard]] Result<void> DisableIrq(std::uint32_t irq) override;
  [[nodiscard]] Result<void> MaskIntx(bool masked) override;
  [[nodiscard]] Result<void> SetIntxUnmask(int unmask) override;
  [[nodiscard]] Result<void> Reset() override;

  DeviceInfo device;
  FakeAddressSpace space;
  std::vector<std::uint8_t> config;
  std::array<std::vector<std::byte>, kRegionCount>
      memory;  // page aligned for mapping: see MapRegion
  // An errno for a call, before it does anything; 0: go on. Called without the mutex.
  std::function<int(const Call&)> fail;
  // Called at each call that was not failed, before it acts; without the mutex.
  std::function<void(const Call&)> on_call;
  std::function<void()> on_close;  // when it is destroyed
  int resets = 0;
  int function_resets = 0;  // by config space

 private:
  class Pages;
  [[nodiscard]] Result<void> Enter(const Call& call);
  [[nodiscard]] bool Decodes() const;
  void WriteConfig(std::uint64_t offset, std::span<const std::byte> data);
  void ResetRegisters();

  mutable Mutex mutex_;
  std::vector<Call> calls_;
  std::uint32_t enabled_ = kIrqCount;
  std::array<std::vector<int>, kIrqCount> events_;
  std::array<std::size_t, kIrqCount> fixed_{};
  bool intx_masked_ = false;
  int unmask_event_ = -1;
  int mappings_ = 0;
};

}  // namespace postern::vfio
