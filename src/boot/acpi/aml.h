#pragma once

// Aml: writes ACPI Machine Language, the byte code of a DSDT, by nested calls that read like its
// source.
//
//   Aml aml;
//   aml.Scope("\\_SB", [](Aml& sb) {
//     sb.Device("COM1", [](Aml& com1) {
//       com1.Name("_HID").EisaId("PNP0501");
//       com1.Name("_CRS").Resources(Resources().Io(0x3f8, 8).Interrupt(4));
//     });
//   });
//
// Terms and operands are appended in the order of the grammar; each call writes one production.
// Names are constants of ours: a malformed one is a bug (CHECK). Is not: a compiler or a validator;
// what comes out is only as well-formed as the calls. Source: ACPI 6.5, chapter 20 (grammar and
// encoding) and 6.4 (resource descriptors). Threads: values.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace postern::boot::acpi {

// 20.2.4: the length of a package that has `content` bytes after the length itself; the length
// counts its own 1 to 4 bytes.
[[nodiscard]] std::vector<std::byte> EncodePkgLength(std::size_t content);

// One resource template (6.4).
class Resources {
 public:
  // 6.4.3.4
  Resources& Memory32Fixed(std::uint32_t base, std::uint32_t size);
  // 6.4.2.5: 16-bit decode, fixed.
  Resources& Io(std::uint16_t base, std::uint8_t ports);
  // 6.4.3.6: extended, consumed, edge-triggered, active high, exclusive.
  Resources& Interrupt(std::uint32_t gsi);
  // 6.4.3.5: address spaces a bridge produces: fixed at both ends, positive decode.
  Resources& BusNumbers(std::uint16_t first, std::uint16_t last);
  Resources& PortWindow(std::uint16_t base, std::uint16_t size);
  Resources& MemoryWindow32(std::uint32_t base, std::uint32_t size);
  Resources& MemoryWindow64(std::uint64_t base, std::uint64_t size);

  // With the end tag (6.4.2.9); its checksum is 0, which means "not checked".
  [[nodiscard]] std::vector<std::byte> Finish() const;

 private:
  std::vector<std::byte> bytes_;
};

class Aml {
 public:
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

  // ---- 20.2.5: terms with a body ----
  template <typename Body>
  Aml& Scope(std::string_view path, Body&& body) {
    Aml inner;
    inner.NameString(path);
    return Package({0x10}, std::move(inner), std::forward<Body>(body));
  }
  template <typename Body>
  Aml& Device(std::string_view name, Body&& body) {
    Aml inner;
    inner.NameString(name);
    return Package({0x5b, 0x82}, std::move(inner), std::forward<Body>(body));
  }
  // Always serialized: every method of ours makes named objects.
  template <typename Body>
  Aml& Method(std::string_view name, unsigned arguments, Body&& body) {
    Aml inner;
    inner.NameString(name);
    inner.Byte(static_cast<std::uint8_t>((arguments & 7U) | 8U));
    return Package({0x14}, std::move(inner), std::forward<Body>(body));
  }
  // `predicate` writes one term.
  template <typename Predicate, typename Body>
  Aml& If(Predicate&& predicate, Body&& body) {
    Aml inner;
    std::forward<Predicate>(predicate)(inner);
    return Package({0xa0}, std::move(inner), std::forward<Body>(body));
  }
  template <typename Body>
  Aml& Else(Body&& body) {
    return Package({0xa1}, Aml(), std::forward<Body>(body));
  }
  // A package object of `count` elements; `body` writes them.
  template <typename Body>
  Aml& PackageOf(std::uint8_t count, Body&& body) {
    Aml inner;
    inner.Byte(count);
    return Package({0x12}, std::move(inner), std::forward<Body>(body));
  }

  // ---- objects ----
  // Name(name, <the next object written>)
  Aml& Name(std::string_view name);
  Aml& Integer(std::uint64_t value);
  Aml& String(std::string_view text);
  // "PNP0A08" compressed into an integer (19.3.4); seven characters.
  Aml& EisaId(std::string_view id);
  Aml& Buffer(std::span<const std::byte> contents);
  Aml& Resources(const acpi::Resources& resources) { return Buffer(resources.Finish()); }
  // "33db4d5b-1ff7-401c-9657-7441c03dd766" in the byte order of ToUUID (19.6.142).
  Aml& Uuid(std::string_view uuid);

  // ---- expressions and statements ----
  Aml& Path(std::string_view path);
  Aml& Arg(unsigned index);
  Aml& Local(unsigned index);
  // CreateDWordField(<buffer term>, byte index, name); the buffer term is Arg(argument).
  Aml& CreateDWordFieldOfArg(unsigned argument, std::uint32_t byte_index, std::string_view name);
  // Binary operators; operands follow. Or and And also want a target.
  Aml& LEqual();
  Aml& LNotEqual();
  Aml& And();
  Aml& Or();
  Aml& Store();
  Aml& Return();
  Aml& Notify(std::string_view object, std::uint8_t value);

 private:
  template <typename Body>
  Aml& Package(std::initializer_list<std::uint8_t> opcode, Aml inner, Body&& body) {
    std::forward<Body>(body)(inner);
    AppendPackage(opcode, inner);
    return *this;
  }
  void AppendPackage(std::initializer_list<std::uint8_t> opcode, const Aml& inner);
  void NameString(std::string_view path);
  void Byte(std::uint8_t value) { bytes_.push_back(std::byte{value}); }
  void Append(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }

  std::vector<std::byte> bytes_;
};

}  // namespace postern::boot::acpi
