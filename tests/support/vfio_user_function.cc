#include "tests/support/vfio_user_function.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "src/base/check.h"

namespace postern::testing {
namespace {

constexpr std::size_t kCommand = 0x04;
constexpr std::size_t kStatus = 0x06;
constexpr std::uint16_t kIntxDisable = 0x0400;
constexpr std::byte kInterruptStatus{0x08};
constexpr std::size_t kPowerCap = 0x40;
constexpr std::size_t kExpressCap = 0x50;  // 0x3c bytes
constexpr std::size_t kMsixCap = 0x90;
constexpr std::size_t kDeviceControl = kExpressCap + 0x08;
constexpr std::size_t kSerialCap = 0x100;

template <typename T>
void Put(std::span<std::byte> to, std::size_t at, T value) {
  static_assert(std::is_unsigned_v<T>);
  std::memcpy(to.data() + at, &value, sizeof(T));
}

template <typename T>
T Get(std::span<const std::byte> from, std::size_t at) {
  T value = 0;
  std::memcpy(&value, from.data() + at, sizeof(T));
  return value;
}

using U8 = std::uint8_t;
using U16 = std::uint16_t;
using U32 = std::uint32_t;
using U64 = std::uint64_t;

void FillHeader(std::span<std::byte> config, std::span<std::byte> writable, bool intx) {
  Put<U16>(config, 0x00, kTestVendorId);
  Put<U16>(config, 0x02, kTestDeviceId);
  Put<U16>(config, kStatus, 0x0010);   // STATUS: capability list
  Put<U32>(config, 0x08, 0x08800001);  // class 0x0880 (system peripheral), revision 1
  Put<U32>(config, 0x2c, 0x00011209);
  Put<U8>(config, 0x34, kPowerCap);
  Put<U8>(config, 0x3d, intx ? 1 : 0);
  Put<U16>(writable, kCommand, 0x0547);
  Put<U8>(writable, 0x0c, 0xff);
  Put<U8>(writable, 0x3c, 0xff);
  // BARs: the low bits stay, the bits above the size may be written, which is what sizing needs.
  Put<U32>(writable, 0x10, ~U32{0xfff});
  Put<U32>(config, 0x18, 0xc);
  Put<U32>(writable, 0x18, ~U32{0xffff});
  Put<U32>(writable, 0x1c, ~U32{0});
  Put<U32>(writable, 0x20, ~U32{0x1fff});
}

void FillCapabilities(std::span<std::byte> config, std::span<std::byte> writable,
                      unsigned vectors) {
  // Power management 3.2: version 3, state D0, no soft reset.
  Put<U16>(config, kPowerCap, 0x01 | kExpressCap << 8);
  Put<U16>(config, kPowerCap + 2, 0x0003);
  Put<U16>(config, kPowerCap + 4, 0x0008);
  Put<U16>(writable, kPowerCap + 4, 0x0003);
  // PCI Express 7.8: version 2, endpoint; function-level reset.
  Put<U16>(config, kExpressCap, 0x10 | kMsixCap << 8);
  Put<U16>(config, kExpressCap + 0x02, 0x0002);
  Put<U32>(config, kExpressCap + 0x04, 1U << 28 | 1U << 15);
  Put<U16>(config, kExpressCap + 0x08, 0x2810);
  Put<U16>(writable, kExpressCap + 0x08, 0x7fff);
  Put<U32>(config, kExpressCap + 0x0c, 0x00000011);  // x1, 2.5 GT/s
  Put<U16>(config, kExpressCap + 0x12, 0x0011);
  // MSI-X: table and pending bits in BAR4.
  Put<U16>(config, kMsixCap, 0x11);
  Put<U16>(config, kMsixCap + 2, static_cast<U16>(vectors - 1));
  Put<U32>(config, kMsixCap + 4, 4);
  Put<U32>(config, kMsixCap + 8, U32{kTestPba} | 4);
  Put<U16>(writable, kMsixCap + 2, 0xc000);
  // Device serial number, the one extended capability.
  Put<U32>(config, kSerialCap, 0x00010003);
  Put<U64>(config, kSerialCap + 4, 0x0123456789abcdef);
}

}  // namespace

TestFunction::TestFunction(const Options& options) : options_(options) {
  CHECK(options.vectors >= 1 && options.vectors <= 256);
  memory_fd_ = Fd(memfd_create("vfio-user-test-bar2", MFD_CLOEXEC));
  CHECK(memory_fd_.valid() && ftruncate(memory_fd_.get(), kTestMemorySize) == 0);
  Result<Mmap> map =
      Mmap::Create(kTestMemorySize, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd_.get());
  CHECK(map.has_value());
  memory_ = std::move(*map);
  Reset();
}

void TestFunction::Reset() {
  config_ = {};
  writable_ = {};
  FillHeader(config_, writable_, options_.intx);
  FillCapabilities(config_, writable_, options_.vectors);
  registers_ = {};
  Put<U32>(registers_, kEngineId, kEngineIdValue);
  table_ = {};
  // PCI 3.0 6.8.2.9: masked after reset.
  for (unsigned i = 0; i < options_.vectors; ++i) Put<U32>(table_, std::size_t{i} * 16 + 12, 1);
  rung_ = false;
}

std::uint64_t TestFunction::RegionSize(std::uint32_t region) {
  switch (region) {
    case 0:
    case vfio::kConfigRegion:
      return 4096;
    case 2:
      return kTestMemorySize;
    case 4:
      return 8192;
    default:
      return 0;
  }
}

std::span<std::byte> TestFunction::Bytes(std::uint32_t region) {
  switch (region) {
    case 0:
      return registers_;
    case 2:
      return {memory_.data(), memory_.size()};
    case 4:
      return table_;
    case vfio::kConfigRegion:
      return config_;
    default:
      return {};
  }
}

bool TestFunction::Read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> to) {
  const std::span<std::byte> from = Bytes(region);
  if (offset > from.size() || to.size() > from.size() - offset) return false;
  std::memcpy(to.data(), from.data() + offset, to.size());
  // PCI 3.0 6.2.3: the interrupt's state is told whether INTx is disabled or not.
  if (region == vfio::kConfigRegion && options_.intx && offset <= kStatus &&
      kStatus - offset < to.size() && Get<U32>(registers_, kEngineStatus) != 0) {
    to[kStatus - offset] |= kInterruptStatus;
  }
  return true;
}

bool TestFunction::Write(std::uint32_t region, std::uint64_t offset,
                         std::span<const std::byte> from) {
  const std::span<std::byte> to = Bytes(region);
  if (from.empty() || offset > to.size() || from.size() > to.size() - offset) return false;
  if (region == vfio::kConfigRegion) {
    WriteConfig(offset, from);
  } else if (region == 0) {
    WriteRegisters(offset, from);
  } else {
    std::memcpy(to.data() + offset, from.data(), from.size());
  }
  return true;
}

void TestFunction::WriteConfig(std::uint64_t offset, std::span<const std::byte> from) {
  for (std::size_t i = 0; i < from.size(); ++i) {
    const std::byte mask = writable_[offset + i];
    config_[offset + i] = (config_[offset + i] & ~mask) | (from[i] & mask);
  }
  // PCI Express 7.8.4: bit 15 of Device Control starts a function-level reset and reads as 0.
  const std::uint64_t high = kDeviceControl + 1;
  if (offset <= high && high - offset < from.size() &&
      (from[high - offset] & std::byte{0x80}) != std::byte{0}) {
    Reset();
  }
}

void TestFunction::WriteRegisters(std::uint64_t offset, std::span<const std::byte> from) {
  for (std::size_t i = 0; i < from.size(); ++i) {
    const std::uint64_t at = offset + i;
    if (at >= kEngineStatus && at < kEngineStatus + 4) {
      registers_[at] &= ~from[i];
    } else if ((at >= kEngineSource && at < kEngineDoorbell) ||
               (at >= kEngineScratch && at < kEngineScratch + 8)) {
      registers_[at] = from[i];
    } else if (at == kEngineDoorbell) {
      rung_ = true;
    }
  }
}

std::optional<TestFunction::Copy> TestFunction::TakeCopy() {
  if (!std::exchange(rung_, false)) return std::nullopt;
  return Copy{Get<U64>(registers_, kEngineSource), Get<U64>(registers_, kEngineDestination),
              Get<U32>(registers_, kEngineLength), Get<U32>(registers_, kEngineVector)};
}

void TestFunction::Finish(bool ok) {
  const U32 status = Get<U32>(registers_, kEngineStatus);
  Put<U32>(registers_, kEngineStatus, status | (ok ? kEngineDone : kEngineError));
  if (ok) Put<U32>(registers_, kEngineCopies, Get<U32>(registers_, kEngineCopies) + 1);
}

bool TestFunction::interrupting() const {
  return Get<U32>(registers_, kEngineStatus) != 0 &&
         (Get<U16>(config_, kCommand) & kIntxDisable) == 0;
}

}  // namespace postern::testing
