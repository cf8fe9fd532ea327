// The parts of ACPI that are arithmetic on bytes. Pure; tested on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace postern::probe {

// ACPI 6.5 5.2.5: every table's bytes sum to zero.
inline bool HasZeroSum(std::span<const uint8_t> table) {
  uint8_t sum = 0;
  for (uint8_t byte : table) sum = static_cast<uint8_t>(sum + byte);
  return sum == 0;
}

// The sleep type of S5 from the DSDT: Name(_S5_, Package{type, ...}) in AML
// (ACPI 6.5 7.4.2, 20.2.5). A search rather than an interpreter: the name occurs once. False if it
// is not there or not a plain package of numbers.
inline bool FindS5Type(std::span<const uint8_t> aml, uint8_t& type) {
  constexpr uint8_t kPackageOp = 0x12;
  constexpr uint8_t kBytePrefix = 0x0a;
  for (size_t i = 0; i + 4 <= aml.size(); ++i) {
    if (aml[i] != '_' || aml[i + 1] != 'S' || aml[i + 2] != '5' || aml[i + 3] != '_') continue;
    size_t at = i + 4;
    if (at >= aml.size() || aml[at] != kPackageOp) continue;
    ++at;
    if (at >= aml.size()) return false;
    at += 1 + (aml[at] >> 6);  // PkgLength: the top two bits say how many bytes follow
    at += 1;                   // NumElements
    if (at >= aml.size()) return false;
    if (aml[at] == kBytePrefix && at + 1 < aml.size()) {
      type = aml[at + 1];
    } else if (aml[at] <= 1) {  // ZeroOp, OneOp
      type = aml[at];
    } else {
      return false;
    }
    return type <= 7;
  }
  return false;
}

struct AmlMmioDevice {
  uint32_t address;
  uint32_t size;
  uint32_t irq;
};

// virtio-mmio devices a DSDT describes: the hardware ID "LNRO0005", and in the resource template
// behind it a 32-bit fixed memory range and an extended interrupt (ACPI 6.5 6.4.3.4, 6.4.3.6).
// Again a search: returns how many of `devices` it filled.
inline size_t FindMmioDevices(std::span<const uint8_t> aml, std::span<AmlMmioDevice> devices) {
  constexpr size_t kIdSize = 8;
  constexpr size_t kWindow = 160;  // how far behind the ID its resources may begin
  const auto matches = [&](size_t at, std::span<const uint8_t> pattern, size_t needed) {
    if (aml.size() < needed || at > aml.size() - needed) return false;
    for (size_t i = 0; i < pattern.size(); ++i) {
      if (aml[at + i] != pattern[i]) return false;
    }
    return true;
  };
  const auto word = [&](size_t at) {
    return uint32_t{aml[at]} | uint32_t{aml[at + 1]} << 8 | uint32_t{aml[at + 2]} << 16 |
           uint32_t{aml[at + 3]} << 24;
  };
  constexpr uint8_t kIdBytes[kIdSize] = {'L', 'N', 'R', 'O', '0', '0', '0', '5'};
  constexpr uint8_t kMemory32Fixed[] = {0x86, 0x09, 0x00};
  constexpr uint8_t kExtendedInterrupt[] = {0x89, 0x06, 0x00};
  size_t count = 0;
  for (size_t i = 0; i + kIdSize <= aml.size() && count < devices.size(); ++i) {
    if (aml[i] != 'L' || !matches(i, kIdBytes, kIdSize)) continue;
    AmlMmioDevice device{};
    bool has_irq = false;
    for (size_t at = i + kIdSize; at < i + kWindow && !(device.size != 0 && has_irq); ++at) {
      if (device.size == 0 && matches(at, kMemory32Fixed, 12)) {
        device.address = word(at + 4);
        device.size = word(at + 8);
      } else if (!has_irq && matches(at, kExtendedInterrupt, 9)) {
        device.irq = word(at + 5);
        has_irq = true;
      }
    }
    if (device.size != 0 && has_irq) devices[count++] = device;
  }
  return count;
}

}  // namespace postern::probe
