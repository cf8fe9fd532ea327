#include "src/boot/acpi/aml.h"

#include <cstdint>
#include <initializer_list>
#include <vector>

#include <doctest/doctest.h>

namespace postern::boot::acpi {
namespace {

using Bytes = std::vector<std::byte>;

Bytes Of(std::initializer_list<unsigned> values) {
  Bytes bytes;
  for (const unsigned value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

TEST_CASE("aml: PkgLength counts itself and grows at its boundaries") {
  CHECK(EncodePkgLength(0) == Of({0x01}));
  CHECK(EncodePkgLength(61) == Of({0x3e}));
  CHECK(EncodePkgLength(62) == Of({0x3f}));        // 63: the most one byte holds
  CHECK(EncodePkgLength(63) == Of({0x41, 0x04}));  // 65
  CHECK(EncodePkgLength(64) == Of({0x42, 0x04}));
  CHECK(EncodePkgLength(4093) == Of({0x4f, 0xff}));                 // 4095: the most two bytes hold
  CHECK(EncodePkgLength(4094) == Of({0x81, 0x00, 0x01}));           // 4097
  CHECK(EncodePkgLength(1048572) == Of({0x8f, 0xff, 0xff}));        // 2^20 - 1
  CHECK(EncodePkgLength(1048573) == Of({0xc1, 0x00, 0x00, 0x01}));  // 2^20 + 1
}

TEST_CASE("aml: integers take the shortest form") {
  const auto encode = [](std::uint64_t value) {
    Aml aml;
    aml.Integer(value);
    return aml.bytes();
  };
  CHECK(encode(0) == Of({0x00}));
  CHECK(encode(1) == Of({0x01}));
  CHECK(encode(2) == Of({0x0a, 2}));
  CHECK(encode(0xff) == Of({0x0a, 0xff}));
  CHECK(encode(0x100) == Of({0x0b, 0x00, 0x01}));
  CHECK(encode(0xffff) == Of({0x0b, 0xff, 0xff}));
  CHECK(encode(0x10000) == Of({0x0c, 0, 0, 1, 0}));
  CHECK(encode(0xffffffff) == Of({0x0c, 0xff, 0xff, 0xff, 0xff}));
  CHECK(encode(0x100000000) == Of({0x0e, 0, 0, 0, 0, 1, 0, 0, 0}));
}

TEST_CASE("aml: names are padded, prefixed and joined as the grammar says") {
  const auto encode = [](const char* path) {
    Aml aml;
    aml.Path(path);
    return aml.bytes();
  };
  CHECK(encode("ABC") == Of({'A', 'B', 'C', '_'}));
  CHECK(encode("\\") == Of({'\\', 0}));
  CHECK(encode("\\_SB") == Of({'\\', '_', 'S', 'B', '_'}));
  CHECK(encode("^^A1") == Of({'^', '^', 'A', '1', '_', '_'}));
  CHECK(encode("\\_SB.PCI0") == Of({'\\', 0x2e, '_', 'S', 'B', '_', 'P', 'C', 'I', '0'}));
  CHECK(encode("A.B.C") ==
        Of({0x2f, 3, 'A', '_', '_', '_', 'B', '_', '_', '_', 'C', '_', '_', '_'}));
}

TEST_CASE("aml: EISA ids, strings, UUIDs, buffers") {
  Aml eisa;
  eisa.EisaId("PNP0A03");
  CHECK(eisa.bytes() == Of({0x0c, 0x41, 0xd0, 0x0a, 0x03}));
  Aml text;
  text.String("LNRO0005");
  CHECK(text.bytes() == Of({0x0d, 'L', 'N', 'R', 'O', '0', '0', '0', '5', 0}));
  Aml uuid;
  uuid.Uuid("33db4d5b-1ff7-401c-9657-7441c03dd766");
  CHECK(uuid.bytes() == Of({0x11, 0x13, 0x0a, 0x10, 0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f,
                            0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66}));
  Aml buffer;
  buffer.Buffer(Of({7, 8}));
  CHECK(buffer.bytes() == Of({0x11, 0x05, 0x0a, 2, 7, 8}));
}

TEST_CASE("aml: bodies nest inside their package") {
  Aml aml;
  aml.Scope("\\_SB", [](Aml& sb) {
    sb.Device("DEV0", [](Aml& device) { device.Name("_UID").Integer(0); });
    sb.Method("_EVT", 1, [](Aml& method) {
      method.If([](Aml& is) { is.LEqual().Arg(0).Integer(5); },
                [](Aml& then) { then.Notify("DEV0", 0x80); });
      method.Else([](Aml& other) { other.Return().Local(1); });
    });
  });
  CHECK(aml.bytes() ==
        Of({0x10, 0x2b, '\\', '_',  'S',  'B', '_',                                 // Scope
            0x5b, 0x82, 0x0b, 'D',  'E',  'V', '0',  0x08, '_', 'U', 'I', 'D',  0,  // Device
            0x14, 0x17, '_',  'E',  'V',  'T', 0x09,  // Method, serialized, 1 argument
            0xa0, 0x0c, 0x93, 0x68, 0x0a, 5,   0x86, 'D',  'E', 'V', '0', 0x0a, 0x80,
            0xa1, 0x03, 0xa4, 0x61}));
}

TEST_CASE("aml: operators put their operands in the order of the grammar") {
  Aml aml;
  aml.And().Path("CDW3").Integer(0x3d).Local(0);
  aml.Or().Path("CDW1").Integer(4).Path("CDW1");
  aml.Store().Local(0).Path("CDW3");
  aml.LNotEqual().Arg(1).Integer(1);
  aml.CreateDWordFieldOfArg(3, 8, "CDW3");
  aml.Name("_S5_").PackageOf(2, [](Aml& values) { values.Integer(5).Integer(0); });
  CHECK(aml.bytes() == Of({0x7b, 'C',  'D',  'W',  '3', 0x0a, 0x3d, 0x60, 0x7d, 'C',  'D', 'W',
                           '1',  0x0a, 4,    'C',  'D', 'W',  '1',  0x70, 0x60, 'C',  'D', 'W',
                           '3',  0x92, 0x93, 0x69, 1,   0x8a, 0x6b, 0x0a, 8,    'C',  'D', 'W',
                           '3',  0x08, '_',  'S',  '5', '_',  0x12, 0x05, 2,    0x0a, 5,   0}));
}

TEST_CASE("resources: each descriptor has the bytes of its table in the specification") {
  CHECK(Resources().Memory32Fixed(0xe0000000, 0x100000).Finish() ==
        Of({0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x10, 0, 0x79, 0}));
  CHECK(Resources().Io(0x3f8, 8).Finish() == Of({0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x79, 0}));
  CHECK(Resources().Interrupt(5).Finish() == Of({0x89, 6, 0, 3, 1, 5, 0, 0, 0, 0x79, 0}));
  CHECK(Resources().BusNumbers(0, 0).Finish() ==
        Of({0x88, 0x0d, 0, 2, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x79, 0}));
  CHECK(Resources().PortWindow(0x1000, 0xf000).Finish() ==
        Of({0x88, 0x0d, 0, 1, 0x0c, 3, 0, 0, 0, 0x10, 0xff, 0xff, 0, 0, 0, 0xf0, 0x79, 0}));
  CHECK(Resources().MemoryWindow32(0xc0000000, 0x20000000).Finish() ==
        Of({0x87, 0x17, 0,    0,    0x0c, 1, 0, 0, 0, 0, 0, 0,    0,    0xc0,
            0xff, 0xff, 0xff, 0xdf, 0,    0, 0, 0, 0, 0, 0, 0x20, 0x79, 0}));
  CHECK(Resources().MemoryWindow64(0x1000000000, 0x3000000000).Finish() ==
        Of({0x8a, 0x2b, 0,    0, 0x0c, 1, 0,    0,    0,    0,    0,    0, 0, 0, 0,    0,
            0,    0,    0x10, 0, 0,    0, 0xff, 0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0,    0,
            0,    0,    0,    0, 0,    0, 0,    0,    0,    0,    0x30, 0, 0, 0, 0x79, 0}));
}

}  // namespace
}  // namespace postern::boot::acpi
