#include "src/arch/x86_64/cpuid.h"

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

#include <doctest/doctest.h>

namespace postern::x86_64 {
namespace {

using Entries = std::vector<CpuidEntry>;

CpuidEntry Leaf(std::uint32_t function, std::uint32_t eax, std::uint32_t ebx = 0,
                std::uint32_t ecx = 0, std::uint32_t edx = 0) {
  return {function, 0, 0, eax, ebx, ecx, edx};
}
CpuidEntry Sub(std::uint32_t function, std::uint32_t index, std::uint32_t eax,
               std::uint32_t ebx = 0, std::uint32_t ecx = 0, std::uint32_t edx = 0) {
  return {function, index, kIndexSignificant, eax, ebx, ecx, edx};
}

// What KVM reports on a host of 16 cores with two threads each.
Entries Intel() {
  return {Leaf(0, 0x20, 0x756e6547, 0x6c65746e, 0x49656e69),
          Leaf(1, 0x806f8, 0x1d200800, 0x7ffafbff, 0x9fabfbff),
          Sub(4, 0, 0x7c004121, 0x02c0003f, 63),
          Sub(4, 1, 0x7c004122, 0x01c0003f, 63),
          Sub(4, 2, 0x7c004143, 0x03c0003f, 2047),
          Sub(4, 3, 0x7c0fc163, 0x0380003f, 0x1bfff),
          Sub(4, 4, 0),
          Sub(7, 0, 2, 0xf1bf07ab, 0x1b415fee, 0xbc814410),
          Sub(7, 1, 0x1c30),
          Sub(0xb, 0, 1, 2, 0x100, 0x1d),
          Sub(0xb, 1, 7, 64, 0x201, 0x1d),
          Sub(0xd, 0, 0x602e7, 0x2b00, 0x2b00),
          Leaf(0x15, 2, 200, 25000000),
          Leaf(0x16, 2500, 3500, 100),
          Sub(0x1f, 0, 1, 2, 0x100, 0x1d),
          Leaf(0x40000000, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
          Leaf(0x40000001, 0x01007efb),
          Leaf(0x80000000, 0x80000008),
          Leaf(0x80000001, 0, 0, 0x121, 0x2c100800),
          Leaf(0x80000008, 0x3934)};
}

Entries Amd() {
  return {Leaf(0, 0x10, 0x68747541, 0x444d4163, 0x69746e65),
          Leaf(1, 0xb00f10, 0x1b100800, 0xfff83203, 0x178bfbff),
          Sub(7, 0, 1, 0xf1bf97a9, 0x405fce, 0x10),
          Leaf(0x40000000, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
          Leaf(0x40000001, 0x01007efb),
          Leaf(0x80000000, 0x80000028),
          Leaf(0x80000001, 0xb00f10, 0, 0x75c237ff, 0x2fd3fbff),
          Leaf(0x80000008, 0x3934, 0x111, 0x501f, 0),
          Leaf(0x8000000a, 1, 0x8000, 0, 0x1bebfb),
          Sub(0x8000001d, 0, 0x4121, 0x2c0003f, 0x3f),
          Sub(0x8000001d, 3, 0x3c163, 0x3c0003f, 0x7fff, 1),
          Sub(0x8000001d, 4, 0),
          Leaf(0x8000001e, 0x1b, 0x10d, 0, 0),
          Sub(0x80000026, 0, 1, 2, 0x100, 0x1b)};
}

std::optional<CpuidEntry> Find(const Entries& entries, std::uint32_t function,
                               std::uint32_t index = 0) {
  for (const CpuidEntry& entry : entries) {
    if (entry.function == function && entry.index == index) return entry;
  }
  return std::nullopt;
}

CpuidEntry Get(const Entries& entries, std::uint32_t function, std::uint32_t index = 0) {
  const auto found = Find(entries, function, index);
  REQUIRE(found);
  return *found;
}

TEST_CASE("cpuid: ids and counts are the machine's, not the host's") {
  for (const std::uint32_t count : {1U, 2U, 3U, 4U, 5U, 32U, 64U, 254U, 300U}) {
    std::set<std::uint32_t> ids;
    for (std::uint32_t index = 0; index < count; ++index) {
      const Entries entries = BuildCpuid(Intel(), {.index = index, .count = count});
      const CpuidEntry basic = Get(entries, 1);
      CHECK((basic.ebx >> 24) == (index & 0xff));
      CHECK((basic.ebx >> 8 & 0xff) == 0x08);  // CLFLUSH line size stays
      CHECK((basic.edx >> 28 & 1) == (count > 1 ? 1 : 0));
      CHECK((basic.ecx >> 31) == 1);
      for (const std::uint32_t function : {0xbU, 0x1fU}) {
        const CpuidEntry smt = Get(entries, function, 0);
        const CpuidEntry core = Get(entries, function, 1);
        CHECK(smt.ecx == 0x100);
        CHECK(smt.eax == 0);
        CHECK(smt.ebx == 1);
        CHECK(core.ecx == 0x201);
        CHECK(core.ebx == count);
        CHECK(smt.edx == index);
        CHECK(core.edx == index);
        // All ids of the package are equal above the shift, and distinct below.
        CHECK((index >> core.eax) == 0);
        CHECK(Get(entries, function, 2).ebx == 0);
      }
      ids.insert(Get(entries, 0xb, 1).edx);
    }
    CHECK(ids.size() == count);
  }
}

TEST_CASE("cpuid: caches are shared by the package from level 3 on, by one core below") {
  const auto shared_by = [](const Entries& entries, std::uint32_t function, std::uint32_t index) {
    return (Get(entries, function, index).eax >> 14 & 0xfff) + 1;
  };
  const Entries four = BuildCpuid(Intel(), {.index = 1, .count = 4});
  CHECK(shared_by(four, 4, 0) == 1);
  CHECK(shared_by(four, 4, 2) == 1);
  CHECK(shared_by(four, 4, 3) == 4);
  CHECK((Get(four, 4, 0).eax >> 26) == 3);
  CHECK((Get(four, 4, 3).eax & 0x3fff) == (0x7c0fc163 & 0x3fff));
  CHECK(Get(four, 4, 4).eax == 0);
  // Three cores take four ids; the 6-bit field saturates.
  CHECK(shared_by(BuildCpuid(Intel(), {.index = 0, .count = 3}), 4, 3) == 4);
  CHECK((Get(BuildCpuid(Intel(), {.index = 0, .count = 254}), 4, 0).eax >> 26) == 63);
  CHECK(shared_by(BuildCpuid(Amd(), {.index = 0, .count = 8}), 0x8000001d, 3) == 8);
  CHECK(shared_by(BuildCpuid(Amd(), {.index = 0, .count = 8}), 0x8000001d, 0) == 1);
}

TEST_CASE("cpuid: AMD's own topology leaves agree") {
  const Entries entries = BuildCpuid(Amd(), {.index = 5, .count = 6});
  CHECK((Get(entries, 0x80000001).ecx >> 1 & 1) == 1);
  CHECK(Get(entries, 0x80000008).ecx == (3U << 12 | 5U));
  CHECK(Get(entries, 0x8000001e).eax == 5);
  CHECK(Get(entries, 0x8000001e).ebx == 5);
  CHECK(Get(entries, 0x8000001e).ecx == 0);
  CHECK_FALSE(Find(entries, 0x80000026));
  CHECK((Get(BuildCpuid(Amd(), {.index = 0, .count = 1}), 0x80000001).ecx >> 1 & 1) == 0);
  // Intel's extended leaves are left alone.
  CHECK(Get(BuildCpuid(Intel(), {.index = 0, .count = 4}), 0x80000008).ecx == 0);
}

TEST_CASE("cpuid: frequencies are told where they are believed, and never the host's") {
  const Entries intel = BuildCpuid(Intel(), {.index = 0, .count = 1, .tsc_khz = 2500000});
  const CpuidEntry tsc = Get(intel, 0x15);
  CHECK(std::uint64_t{tsc.ecx} * tsc.ebx / tsc.eax == 2500000000);
  CHECK(tsc.ecx == 1000000000);  // the crystal is the APIC timer's clock
  CHECK_FALSE(Find(intel, 0x16));
  CHECK(Get(intel, 0x40000000).eax == 0x40000010);
  CHECK(Get(intel, 0x40000000).ebx == 0x4b4d564b);
  CHECK(Get(intel, 0x40000001).eax == 0x01007efb);
  CHECK(Get(intel, 0x40000010).eax == 2500000);
  CHECK(Get(intel, 0x40000010).ebx == 1000000);
  const Entries amd = BuildCpuid(Amd(), {.index = 0, .count = 1, .tsc_khz = 2500000});
  CHECK_FALSE(Find(amd, 0x15));
  CHECK(Get(amd, 0x40000010).eax == 2500000);
  // Unknown: nothing is told.
  const Entries unknown = BuildCpuid(Intel(), {.index = 0, .count = 1});
  CHECK_FALSE(Find(unknown, 0x15));
  CHECK_FALSE(Find(unknown, 0x40000010));
}

TEST_CASE("cpuid: TSC deadline and nested virtualisation are on when asked for") {
  const auto ecx = [](bool deadline, bool nested) {
    return Get(BuildCpuid(Intel(),
                          {.index = 0, .count = 1, .tsc_deadline = deadline, .nested = nested}),
               1)
        .ecx;
  };
  CHECK((ecx(true, false) >> 24 & 1) == 1);
  // Without the capability the bit stays as KVM reported it.
  CHECK((ecx(false, false) >> 24 & 1) == (0x7ffafbff >> 24 & 1));
  CHECK((ecx(false, false) >> 5 & 1) == 0);
  CHECK((ecx(false, true) >> 5 & 1) == 1);
  const Entries plain = BuildCpuid(Amd(), {.index = 0, .count = 1});
  CHECK((Get(plain, 0x80000001).ecx >> 2 & 1) == 0);
  CHECK_FALSE(Find(plain, 0x8000000a));
  const Entries nested = BuildCpuid(Amd(), {.index = 0, .count = 1, .nested = true});
  CHECK((Get(nested, 0x80000001).ecx >> 2 & 1) == 1);
  CHECK(Find(nested, 0x8000000a));
}

TEST_CASE("cpuid: overrides come last and may add leaves") {
  const CpuidOverride changes[] = {
      {.function = 7,
       .index = 0,
       .reg = CpuidOverride::Register::kEcx,
       .set = 1U << 28,
       .clear = 1U << 1},
      {.function = 0x19, .index = 2, .reg = CpuidOverride::Register::kEdx, .set = 7, .clear = 0},
      {.function = 1,
       .index = 0,
       .reg = CpuidOverride::Register::kEcx,
       .set = 0,
       .clear = 1U << 31},
  };
  const Entries entries = BuildCpuid(Intel(), {.index = 0, .count = 1, .overrides = changes});
  CHECK(Get(entries, 7, 0).ecx == ((0x1b415fee | 1U << 28) & ~(1U << 1)));
  CHECK(Get(entries, 7, 1).ecx == 0);
  CHECK(Get(entries, 0x19, 2).edx == 7);
  CHECK(Get(entries, 0x19, 2).flags == kIndexSignificant);
  CHECK((Get(entries, 1).ecx >> 31) == 0);
}

TEST_CASE("cpuid: leaves of no concern pass unchanged, none twice, sorted") {
  const Entries entries = BuildCpuid(Intel(), {.index = 2, .count = 4, .tsc_khz = 1000000});
  CHECK(Get(entries, 0xd) == Intel()[11]);
  CHECK(Get(entries, 7, 1) == Intel()[8]);
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
  for (const CpuidEntry& entry : entries) CHECK(seen.emplace(entry.function, entry.index).second);
  CHECK(
      std::is_sorted(entries.begin(), entries.end(), [](const CpuidEntry& a, const CpuidEntry& b) {
        return std::pair(a.function, a.index) < std::pair(b.function, b.index);
      }));
}

TEST_CASE("cpuid: a KVM that supports next to nothing still gives a topology") {
  const Entries entries = BuildCpuid({}, {.index = 1, .count = 2, .tsc_khz = 1000});
  CHECK(Get(entries, 0).eax == 0xb);
  CHECK(Get(entries, 0xb, 1).edx == 1);
  CHECK_FALSE(Find(entries, 0x1f));
  const Entries old = BuildCpuid(Entries{Leaf(0x40000000, 0, 0x4b4d564b, 0x564b4d56, 0x4d)},
                                 {.index = 0, .count = 1});
  CHECK(Get(old, 0x40000000).eax == 0x40000001);
}

TEST_CASE("cpuid: address width and 1 GiB pages are read from their leaves") {
  CHECK(PhysicalAddressBits(Intel()) == 52);
  CHECK(PhysicalAddressBits({}) == 36);
  CHECK(PhysicalAddressBits(Entries{Leaf(0x80000008, 0x302e)}) == 46);
  CHECK(PhysicalAddressBits(Entries{Leaf(0x80000008, 0xff)}) == 36);
  CHECK(PhysicalAddressBits(Entries{Leaf(0x80000008, 0)}) == 36);
  CHECK(HasGigabytePages(Intel()));
  CHECK_FALSE(HasGigabytePages(Entries{Leaf(0x80000001, 0, 0, 0, 0)}));
  CHECK_FALSE(HasGigabytePages({}));
}

}  // namespace
}  // namespace postern::x86_64
