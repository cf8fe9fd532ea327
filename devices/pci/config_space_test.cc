#include "devices/pci/config_space.h"

#include <array>
#include <vector>

#include <doctest/doctest.h>

namespace postern::pci {
namespace {

constexpr Identity kIdentity{.vendor = 0x1234,
                             .device = 0x5678,
                             .revision = 0x9a,
                             .class_code = 0x123456,
                             .subsystem_vendor = 0xbcde,
                             .subsystem = 0xf012};

std::uint64_t Read(const ConfigSpace& config, std::uint32_t offset, std::size_t width) {
  std::array<std::byte, 8> bytes{};
  (void)config.Read(offset, std::span(bytes).first(width));
  std::uint64_t value = 0;
  for (std::size_t i = width; i-- > 0;)
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

bool Write(ConfigSpace& config, std::uint32_t offset, std::size_t width, std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  for (std::size_t i = 0; i < width; ++i) bytes[i] = static_cast<std::byte>(value >> (8 * i));
  return config.Write(offset, std::span(bytes).first(width));
}

TEST_CASE("config space: the header identifies the function and is read-only") {
  ConfigSpace config(kIdentity);
  CHECK(Read(config, 0x00, 4) == 0x56781234);
  CHECK(Read(config, 0x08, 4) == 0x1234569a);
  CHECK(Read(config, 0x2c, 4) == 0xf012bcde);
  CHECK(Read(config, kHeaderType, 1) == 0);
  CHECK(Read(config, kInterruptPin, 1) == 0);
  // Everything the guest may write in the header, by byte; the rest does not move.
  for (std::uint32_t offset = 0; offset < kHeaderEnd; ++offset) {
    CAPTURE(offset);
    const std::uint64_t before = Read(config, offset, 1);
    CHECK(Write(config, offset, 1, 0xff));
    std::uint64_t writable = 0;
    if (offset == kCommand) writable = 0x44;      // bus master, parity; no BAR: no decoding bits
    if (offset == kCommand + 1) writable = 0x05;  // SERR, interrupt disable
    if (offset == kCacheLineSize || offset == kInterruptLine) writable = 0xff;
    CHECK(Read(config, offset, 1) == (before | writable));
  }
}

TEST_CASE("config space: accepts 1, 2, 4 bytes within a dword and aligned 8, nothing else") {
  ConfigSpace config(kIdentity);
  const std::array<std::size_t, 8> widths{0, 1, 2, 3, 4, 5, 8, 16};
  const std::array<std::uint32_t, 18> offsets{
      0, 1, 2, 3, 4, 5, 7, 8, 12, 250, 254, 255, 256, 0xff8, 0xffc, 0xffe, 0xfff, 0x1000};
  for (const std::size_t width : widths) {
    for (const std::uint32_t offset : offsets) {
      CAPTURE(width);
      CAPTURE(offset);
      bool expected = offset + width <= 0x1000;
      if (width == 8) {
        expected = expected && offset % 8 == 0;
      } else {
        expected = expected && (width == 1 || width == 2 || width == 4) &&
                   offset / 4 == (offset + width - 1) / 4;
      }
      CHECK(ConfigSpace::Accepts(offset, width) == expected);
      std::array<std::byte, 16> bytes{};
      CHECK(config.Read(offset, std::span(bytes).first(width)) == expected);
      if (!expected && width > 0) CHECK(bytes[width - 1] == std::byte{0xff});
      CHECK(config.Write(offset, std::span<const std::byte>(bytes).first(width)) == expected);
    }
  }
  CHECK(!ConfigSpace::Accepts(0xffffffff, 1));
  CHECK(!ConfigSpace::Accepts(0xfffffffc, 4));
  CHECK(Read(config, 0, 8) == (Read(config, 4, 4) << 32 | 0x56781234));
  CHECK(Read(config, 0x800, 4) == 0);  // no extended capabilities: zero, PCI Express 3.0 7.9.1
}

TEST_CASE("config space: bits are read-only, writable or cleared by writing 1, at every width") {
  ConfigSpace config(kIdentity);
  config.Set<std::uint32_t>(0x80, 0xa5a5a5a5);
  config.Allow<std::uint32_t>(0x80, 0x0000ffff, 0xff000000);
  CHECK(Write(config, 0x80, 4, 0x0f001234));
  CHECK(Read(config, 0x80, 4) == 0xa0a51234);
  CHECK(Write(config, 0x83, 1, 0x80));
  CHECK(Read(config, 0x80, 4) == 0x20a51234);
  CHECK(Write(config, 0x81, 1, 0xff));
  CHECK(Read(config, 0x80, 4) == 0x20a5ff34);
  CHECK(Write(config, 0x80, 8, 0x00000000'20000000));
  CHECK(Read(config, 0x80, 4) == 0x00a50000);
  config.AllowAlso<std::uint32_t>(0x80, 0x00010000);
  CHECK(Write(config, 0x80, 4, 0xffffffff));
  CHECK(Read(config, 0x80, 4) == 0x00a5ffff);
  config.Reset();
  CHECK(Read(config, 0x80, 4) == 0xa5a5a5a5);
  config.Update<std::uint16_t>(0x80, 7);
  CHECK(config.Get<std::uint16_t>(0x80) == 7);
  config.Reset();
  CHECK(Read(config, 0x80, 4) == 0xa5a5a5a5);
}

TEST_CASE("config space: capabilities are chained, aligned, and end with 0") {
  ConfigSpace config(kIdentity);
  CHECK(Read(config, kCapabilitiesPointer, 1) == 0);
  CHECK((Read(config, kStatus, 2) & 0x10) == 0);
  const std::vector<std::uint8_t> body{1, 2, 3};
  const std::vector<std::uint8_t> writable{0, 0xff, 0x0f};
  CHECK(config.AddCapability(0x09, body, writable).value() == 0x40);
  CHECK(config.AddCapability(0x11, std::vector<std::uint8_t>(10)).value() == 0x48);
  CHECK(config.AddCapability(0x05, {}).value() == 0x54);
  CHECK(Read(config, kCapabilitiesPointer, 1) == 0x40);
  CHECK((Read(config, kStatus, 2) & 0x10) != 0);
  CHECK(Read(config, 0x40, 4) == 0x02014809);
  CHECK(Read(config, 0x48, 2) == 0x5411);
  CHECK(Read(config, 0x54, 2) == 0x0005);
  CHECK(Write(config, 0x40, 4, 0xffffffff));
  CHECK(Write(config, 0x44, 1, 0xff));
  CHECK(Read(config, 0x40, 4) == 0xff014809);
  CHECK(Read(config, 0x44, 1) == 0x0f);

  // 0x58..0xff: 168 bytes are left.
  CHECK(config.AddCapability(0x09, std::vector<std::uint8_t>(167)).error().code ==
        Errc::kExhausted);
  CHECK(Read(config, 0x54, 2) == 0x0005);
  CHECK(config.AddCapability(0x09, std::vector<std::uint8_t>(166)).value() == 0x58);
  CHECK(config.AddCapability(0x09, {}).error().code == Errc::kExhausted);
}

TEST_CASE("config space: extended capabilities start at 0x100") {
  ConfigSpace config(kIdentity);
  CHECK(config
            .AddExtendedCapability(0x000d, 1, std::vector<std::uint8_t>{0xaa, 0xbb},
                                   std::vector<std::uint8_t>{0xff, 0})
            .value() == 0x100);
  CHECK(config.AddExtendedCapability(0x001b, 2, std::vector<std::uint8_t>(4)).value() == 0x108);
  CHECK(Read(config, 0x100, 4) == 0x1081000d);
  CHECK(Read(config, 0x104, 2) == 0xbbaa);
  CHECK(Read(config, 0x108, 4) == 0x0002001b);
  CHECK(Write(config, 0x104, 2, 0));
  CHECK(Read(config, 0x104, 2) == 0xbb00);
  CHECK(config.AddExtendedCapability(0x000b, 1, std::vector<std::uint8_t>(0x1000)).error().code ==
        Errc::kExhausted);
  CHECK(Read(config, 0x108, 4) == 0x0002001b);
  CHECK(config.AddExtendedCapability(0x000b, 1, std::vector<std::uint8_t>(0x1000 - 0x110 - 4))
            .value() == 0x110);
}

TEST_CASE("config space: saved state restores what the guest wrote and nothing else") {
  ConfigSpace config(kIdentity);
  const std::uint32_t at =
      config.AddCapability(0x09, std::vector<std::uint8_t>(6), std::vector<std::uint8_t>(6, 0xff))
          .value();
  CHECK(Write(config, at + 4, 4, 0x04030201));
  CHECK(Write(config, kCommand, 2, 0x4));
  const ConfigState state = config.Save();
  CHECK(state.registers.size() == 64);

  ConfigSpace other(kIdentity);
  CHECK(other.AddCapability(0x09, std::vector<std::uint8_t>(6), std::vector<std::uint8_t>(6, 0xff))
            .has_value());
  CHECK(other.Restore(state).has_value());
  CHECK(other.Save().registers == state.registers);
  CHECK(Read(other, at + 4, 4) == 0x04030201);

  SUBCASE("another size") {
    ConfigState bad = state;
    bad.registers.push_back(0);
    CHECK(other.Restore(bad).error().code == Errc::kBadFormat);
    bad.registers.resize(1024);
    CHECK(other.Restore(bad).error().code == Errc::kBadFormat);
    CHECK(other.Restore({}).error().code == Errc::kBadFormat);
  }
  SUBCASE("every read-only bit") {
    for (std::size_t bit = 0; bit < 2048; ++bit) {
      ConfigState bad = state;
      bad.registers[bit / 32] ^= 1U << (bit % 32);
      const std::uint32_t dword = static_cast<std::uint32_t>(bit / 32 * 4);
      // What ones written, then zeros, change: the bits that are the guest's, or W1C.
      ConfigSpace probe = other;
      Write(probe, dword, 4, 0);
      const std::uint64_t zeros = Read(probe, dword, 4);
      Write(probe, dword, 4, 0xffffffff);
      const std::uint64_t guests = zeros ^ Read(probe, dword, 4);
      const std::uint64_t w1c = dword == kCommand ? std::uint64_t{kStatusErrorBits} << 16 : 0;
      CAPTURE(bit);
      ConfigSpace fresh = other;
      CHECK(fresh.Restore(bad).has_value() == (((guests | w1c) >> (bit % 32) & 1) != 0));
    }
  }
}

}  // namespace
}  // namespace postern::pci
