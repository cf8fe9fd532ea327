#include "src/boot/acpi/aml.h"

#include <array>
#include <cstring>
#include <type_traits>

#include "src/base/check.h"
#include "src/base/endian.h"

namespace postern::boot::acpi {
namespace {

constexpr std::size_t kSegment = 4;

template <typename T>
void Put(std::vector<std::byte>& out, std::type_identity_t<T> value) {
  const LittleEndian<T> wire(value);
  std::array<std::byte, sizeof(wire)> bytes{};
  std::memcpy(bytes.data(), &wire, sizeof(wire));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void Put8(std::vector<std::byte>& out, std::uint8_t value) {
  out.push_back(std::byte{value});
}

constexpr bool IsLead(char c) {
  return (c >= 'A' && c <= 'Z') || c == '_';
}
constexpr bool IsNameChar(char c) {
  return IsLead(c) || (c >= '0' && c <= '9');
}

// 20.2.2: one segment, padded with underscores.
void PutSegment(std::vector<std::byte>& out, std::string_view name) {
  CHECK(!name.empty() && name.size() <= kSegment && IsLead(name[0]));
  for (std::size_t i = 0; i < kSegment; ++i) {
    const char c = i < name.size() ? name[i] : '_';
    CHECK(IsNameChar(c));
    Put8(out, static_cast<std::uint8_t>(c));
  }
}

std::uint8_t HexDigit(char c) {
  if (c >= '0' && c <= '9') return static_cast<std::uint8_t>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<std::uint8_t>(c - 'a' + 10);
  CHECK(c >= 'A' && c <= 'F');
  return static_cast<std::uint8_t>(c - 'A' + 10);
}

// 6.4.3.5, tables 6.46 to 6.48: resource type, general flags (producer, positive decode, both ends
// fixed), type-specific flags.
constexpr std::uint8_t kSpaceMemory = 0;
constexpr std::uint8_t kSpaceIo = 1;
constexpr std::uint8_t kSpaceBus = 2;
constexpr std::uint8_t kFixedProducer = 0x0c;
// Not marked prefetchable, the 64-bit window neither: such a window would refuse BARs that are not,
// and one that is not takes both.
constexpr std::uint8_t kReadWrite = 0x01;
// 6.4.3.5.5, table 6.50: not only the ports an ISA bus knows.
constexpr std::uint8_t kAllPorts = 0x03;

template <typename T>
void PutAddressSpace(std::vector<std::byte>& out, std::uint8_t tag, std::uint8_t type,
                     std::uint8_t flags, T first, T last, T size) {
  Put8(out, tag);
  Put<std::uint16_t>(out, static_cast<std::uint16_t>(3 + 5 * sizeof(T)));
  Put8(out, type);
  Put8(out, kFixedProducer);
  Put8(out, flags);
  Put<T>(out, 0);  // granularity
  Put<T>(out, first);
  Put<T>(out, last);
  Put<T>(out, 0);  // translation
  Put<T>(out, size);
}

}  // namespace

std::vector<std::byte> EncodePkgLength(std::size_t content) {
  // 20.2.4: one byte holds 6 bits; otherwise the lead byte holds the low 4 and the number of bytes
  // that follow.
  std::vector<std::byte> out;
  if (content + 1 < (std::size_t{1} << 6)) {
    Put8(out, static_cast<std::uint8_t>(content + 1));
    return out;
  }
  std::size_t following = 1;
  while (following < 3 && content + 1 + following >= (std::size_t{1} << (4 + 8 * following)))
    ++following;
  const std::size_t length = content + 1 + following;
  CHECK(length < (std::size_t{1} << 28));
  Put8(out, static_cast<std::uint8_t>((following << 6) | (length & 0xf)));
  for (std::size_t i = 0; i < following; ++i)
    Put8(out, static_cast<std::uint8_t>((length >> (4 + 8 * i)) & 0xff));
  return out;
}

Resources& Resources::Memory32Fixed(std::uint32_t base, std::uint32_t size) {
  Put8(bytes_, 0x86);
  Put<std::uint16_t>(bytes_, 9);
  Put8(bytes_, 1);  // read-write
  Put<std::uint32_t>(bytes_, base);
  Put<std::uint32_t>(bytes_, size);
  return *this;
}

Resources& Resources::Io(std::uint16_t base, std::uint8_t ports) {
  Put8(bytes_, 0x47);
  Put8(bytes_, 1);  // decodes 16 bits
  Put<std::uint16_t>(bytes_, base);
  Put<std::uint16_t>(bytes_, base);
  Put8(bytes_, 1);  // alignment
  Put8(bytes_, ports);
  return *this;
}

Resources& Resources::Interrupt(std::uint32_t gsi) {
  constexpr std::uint8_t kConsumerEdge = 0x03;
  Put8(bytes_, 0x89);
  Put<std::uint16_t>(bytes_, 6);
  Put8(bytes_, kConsumerEdge);
  Put8(bytes_, 1);
  Put<std::uint32_t>(bytes_, gsi);
  return *this;
}

Resources& Resources::BusNumbers(std::uint16_t first, std::uint16_t last) {
  PutAddressSpace<std::uint16_t>(bytes_, 0x88, kSpaceBus, 0, first, last,
                                 static_cast<std::uint16_t>(last - first + 1));
  return *this;
}

Resources& Resources::PortWindow(std::uint16_t base, std::uint16_t size) {
  PutAddressSpace<std::uint16_t>(bytes_, 0x88, kSpaceIo, kAllPorts, base,
                                 static_cast<std::uint16_t>(base + (size - 1)), size);
  return *this;
}

Resources& Resources::MemoryWindow32(std::uint32_t base, std::uint32_t size) {
  PutAddressSpace<std::uint32_t>(bytes_, 0x87, kSpaceMemory, kReadWrite, base, base + (size - 1),
                                 size);
  return *this;
}

Resources& Resources::MemoryWindow64(std::uint64_t base, std::uint64_t size) {
  PutAddressSpace<std::uint64_t>(bytes_, 0x8a, kSpaceMemory, kReadWrite, base, base + (size - 1),
                                 size);
  return *this;
}

std::vector<std::byte> Resources::Finish() const {
  std::vector<std::byte> out = bytes_;
  Put8(out, 0x79);
  Put8(out, 0);
  return out;
}

void Aml::AppendPackage(std::initializer_list<std::uint8_t> opcode, const Aml& inner) {
  for (const std::uint8_t byte : opcode) Byte(byte);
  Append(EncodePkgLength(inner.bytes_.size()));
  Append(inner.bytes_);
}

void Aml::NameString(std::string_view path) {
  // 20.2.2: root or parent prefixes, then one segment, or two after 0x2e, or a counted number after
  // 0x2f.
  while (!path.empty() && (path[0] == '\\' || path[0] == '^')) {
    Byte(static_cast<std::uint8_t>(path[0]));
    path.remove_prefix(1);
  }
  std::vector<std::string_view> segments;
  while (!path.empty()) {
    const std::size_t dot = path.find('.');
    segments.push_back(path.substr(0, dot));
    if (dot == std::string_view::npos) break;
    path.remove_prefix(dot + 1);
  }
  CHECK(segments.size() <= 255);
  if (segments.empty()) Byte(0);
  if (segments.size() == 2) Byte(0x2e);
  if (segments.size() > 2) {
    Byte(0x2f);
    Byte(static_cast<std::uint8_t>(segments.size()));
  }
  for (const std::string_view segment : segments) PutSegment(bytes_, segment);
}

Aml& Aml::Name(std::string_view name) {
  Byte(0x08);
  NameString(name);
  return *this;
}

Aml& Aml::Integer(std::uint64_t value) {
  // 20.2.3: the shortest form.
  if (value == 0) {
    Byte(0x00);
  } else if (value == 1) {
    Byte(0x01);
  } else if (value <= 0xff) {
    Byte(0x0a);
    Byte(static_cast<std::uint8_t>(value));
  } else if (value <= 0xffff) {
    Byte(0x0b);
    Put<std::uint16_t>(bytes_, static_cast<std::uint16_t>(value));
  } else if (value <= 0xffffffff) {
    Byte(0x0c);
    Put<std::uint32_t>(bytes_, static_cast<std::uint32_t>(value));
  } else {
    Byte(0x0e);
    Put<std::uint64_t>(bytes_, value);
  }
  return *this;
}

Aml& Aml::String(std::string_view text) {
  Byte(0x0d);
  for (const char c : text) {
    CHECK(c > 0 && c <= 0x7f);
    Byte(static_cast<std::uint8_t>(c));
  }
  Byte(0);
  return *this;
}

Aml& Aml::EisaId(std::string_view id) {
  CHECK(id.size() == 7);
  // Three letters of 5 bits, four hexadecimal digits, most significant first; stored big-endian in
  // a little-endian integer.
  std::uint32_t value = 0;
  for (const char c : id.substr(0, 3)) {
    CHECK(c >= 'A' && c <= 'Z');
    value = value << 5 | static_cast<std::uint32_t>(c - 'A' + 1);
  }
  for (const char c : id.substr(3)) value = value << 4 | HexDigit(c);
  // Always a DWord, never shortened: that is how every compiler writes it.
  Byte(0x0c);
  Put<std::uint32_t>(bytes_, __builtin_bswap32(value));
  return *this;
}

Aml& Aml::Buffer(std::span<const std::byte> contents) {
  Aml inner;
  inner.Integer(contents.size());
  inner.Append(contents);
  AppendPackage({0x11}, inner);
  return *this;
}

Aml& Aml::Uuid(std::string_view uuid) {
  CHECK(uuid.size() == 36);
  // The first three groups are little-endian. Positions of the digits of byte 0, 1, 2, ...
  static constexpr std::array<std::uint8_t, 16> kPositions = {6,  4,  2,  0,  11, 9,  16, 14,
                                                              19, 21, 24, 26, 28, 30, 32, 34};
  std::array<std::byte, 16> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(HexDigit(uuid[kPositions[i]]) << 4 |
                                      HexDigit(uuid[kPositions[i] + 1U]));
  }
  return Buffer(bytes);
}

Aml& Aml::Path(std::string_view path) {
  NameString(path);
  return *this;
}

Aml& Aml::Arg(unsigned index) {
  CHECK(index <= 6);
  Byte(static_cast<std::uint8_t>(0x68 + index));
  return *this;
}

Aml& Aml::Local(unsigned index) {
  CHECK(index <= 7);
  Byte(static_cast<std::uint8_t>(0x60 + index));
  return *this;
}

Aml& Aml::CreateDWordFieldOfArg(unsigned argument, std::uint32_t byte_index,
                                std::string_view name) {
  Byte(0x8a);
  Arg(argument);
  Integer(byte_index);
  NameString(name);
  return *this;
}

Aml& Aml::LEqual() {
  Byte(0x93);
  return *this;
}

Aml& Aml::LNotEqual() {
  Byte(0x92);  // LNotOp
  Byte(0x93);
  return *this;
}

Aml& Aml::And() {
  Byte(0x7b);
  return *this;
}

Aml& Aml::Or() {
  Byte(0x7d);
  return *this;
}

Aml& Aml::Store() {
  Byte(0x70);
  return *this;
}

Aml& Aml::Return() {
  Byte(0xa4);
  return *this;
}

Aml& Aml::Notify(std::string_view object, std::uint8_t value) {
  Byte(0x86);
  NameString(object);
  Integer(value);
  return *this;
}

}  // namespace postern::boot::acpi
