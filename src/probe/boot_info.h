// What the loader left for the kernel, by either protocol, in one form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace postern::probe {

enum class BootProtocol : uint32_t { kPvh = 1, kLinux64 = 2 };

struct MemoryRange {
  uint64_t address;
  uint64_t size;
  uint32_t type;  // 1 = RAM, in E820 and in PVH alike
};

struct BootInfo {
  static constexpr size_t kMaxRanges = 32;
  static constexpr size_t kMaxCommandLine = 2048;

  BootProtocol protocol{};
  bool valid = false;  // the structure had its magic number
  uint64_t rsdp = 0;   // 0: not told
  MemoryRange ranges[kMaxRanges]{};
  size_t range_count = 0;

  // The command line copied out of the loader's memory, which the probe later uses for other
  // things.
  std::string_view command_line{};

  [[nodiscard]] uint64_t RamBytes() const;
  // True if [address, address + size) lies inside one range of RAM.
  [[nodiscard]] bool IsRam(uint64_t address, uint64_t size) const;
};

void ReadBootInfo(BootProtocol protocol, uint64_t info, BootInfo& boot);

}  // namespace postern::probe
