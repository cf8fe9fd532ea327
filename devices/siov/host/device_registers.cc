#include "devices/siov/host/device_registers.h"

#include <array>
#include <cerrno>
#include <cstddef>
#include <limits>
#include <span>

namespace postern::dsa {
namespace {

template <typename U>
Result<U> Read(vfio::HostDevice& device, std::uint32_t region, std::uint64_t offset) {
  std::array<std::byte, sizeof(U)> bytes{};
  TRY(device.ReadRegion(region, offset, bytes));
  U value = 0;
  for (std::size_t i = sizeof(U); i-- > 0;)
    value = static_cast<U>(value << 8 | std::to_integer<U>(bytes[i]));
  return value;
}

template <typename U>
Result<void> Write(vfio::HostDevice& device, std::uint32_t region, std::uint64_t offset, U value) {
  std::array<std::byte, sizeof(U)> bytes{};
  for (std::size_t i = 0; i < sizeof(U); ++i) bytes[i] = static_cast<std::byte>(value >> (8 * i));
  return device.WriteRegion(region, offset, bytes);
}

template <typename U>
Result<U> Present(U value) {
  if (value == std::numeric_limits<U>::max())
    return SysError("register of a device that is gone", ENODEV);
  return value;
}

}  // namespace

Result<std::uint32_t> DeviceRegisters::Read32(std::uint64_t offset) const {
  return Present(TRY(Read<std::uint32_t>(device_, kRegisterRegion, offset)));
}

Result<std::uint64_t> DeviceRegisters::Read64(std::uint64_t offset) const {
  return Present(TRY(ReadRaw64(offset)));
}

Result<std::uint64_t> DeviceRegisters::ReadRaw64(std::uint64_t offset) const {
  return Read<std::uint64_t>(device_, kRegisterRegion, offset);
}

Result<void> DeviceRegisters::Write32(std::uint64_t offset, std::uint32_t value) const {
  return Write(device_, kRegisterRegion, offset, value);
}

Result<void> DeviceRegisters::Write64(std::uint64_t offset, std::uint64_t value) const {
  return Write(device_, kRegisterRegion, offset, value);
}

Result<std::uint16_t> DeviceRegisters::Config16(std::uint32_t offset) const {
  return Read<std::uint16_t>(device_, vfio::kConfigRegion, offset);
}

Result<void> DeviceRegisters::SetConfig16(std::uint32_t offset, std::uint16_t value) const {
  return Write(device_, vfio::kConfigRegion, offset, value);
}

}  // namespace postern::dsa
