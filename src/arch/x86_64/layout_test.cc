#include "src/arch/x86_64/layout.h"

#include <doctest/doctest.h>

namespace postern::x86_64 {
namespace {

TEST_CASE("layout: RAM splits at the hole") {
  CHECK(SplitRam(kMinRam).low == kMinRam);
  CHECK(SplitRam(kMinRam).high == 0);
  CHECK(SplitRam(3 * kGiB).low == 3 * kGiB);
  CHECK(SplitRam(3 * kGiB).high == 0);
  CHECK(SplitRam(3 * kGiB).End() == 3 * kGiB);
  CHECK(SplitRam(3 * kGiB + 4096).low == 3 * kGiB);
  CHECK(SplitRam(3 * kGiB + 4096).high == 4096);
  CHECK(SplitRam(3 * kGiB + 4096).End() == 4 * kGiB + 4096);
  CHECK(SplitRam(kMaxRam).low + SplitRam(kMaxRam).high == kMaxRam);
}

TEST_CASE("layout: the 64-bit window lies above RAM and inside the physical address space") {
  CHECK(PciWindow64(512 * kMiB, 46) == AddressRange{64 * kGiB, 65536 * kGiB - 64 * kGiB});
  CHECK(PciWindow64(64 * kGiB, 46).base == 64 * kGiB);
  CHECK(PciWindow64(64 * kGiB + 1, 46).base == 128 * kGiB);
  CHECK(PciWindow64(512 * kMiB, 52) == PciWindow64(512 * kMiB, 46));
  // 36 bits: 64 GiB in all, so every GiB counts.
  CHECK(PciWindow64(512 * kMiB, 36) == AddressRange{4 * kGiB, 60 * kGiB});
  CHECK(PciWindow64(8 * kGiB + 1, 36) == AddressRange{9 * kGiB, 55 * kGiB});
  CHECK(PciWindow64(64 * kGiB, 36).size == 0);
  CHECK(PciWindow64(4 * kGiB, 32).size == 0);
  CHECK(PciWindow64(kMaxRam + kGiB, 46).size != 0);
  // A huge BAR keeps its natural alignment.
  CHECK(PciWindow64(512 * kMiB, 39) == AddressRange{64 * kGiB, 448 * kGiB});
}

TEST_CASE("layout: the power-off value carries SLP_EN and the type of S5") {
  CHECK(kPowerOffValue == 0x34);
  CHECK(((kPowerOffValue >> kSleepTypeShift) & kSleepTypeMask) == kSleepTypeS5);
}

}  // namespace
}  // namespace postern::x86_64
