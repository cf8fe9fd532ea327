#include "src/arch/x86_64/regs.h"

#include <array>
#include <vector>

#include "src/arch/x86_64/layout.h"

#include <doctest/doctest.h>

namespace postern::x86_64 {
namespace {

using memory::Gpa;

memory::GuestMemoryPtr MakeMemory(std::uint64_t size) {
  std::vector<memory::RegionPtr> regions;
  regions.push_back(memory::Region::Create(Gpa(0), size, {}).value());
  return memory::GuestMemory::Create(std::move(regions)).value();
}

std::uint64_t Word(const memory::GuestMemory& memory, std::uint64_t address) {
  return memory.Read<std::uint64_t>(Gpa(address)).value();
}

// What the processor's page walk makes of `address`, or all ones if it faults (SDM vol. 3A 4.5).
std::uint64_t Translate(const memory::GuestMemory& memory, std::uint64_t address) {
  constexpr std::uint64_t kFault = ~std::uint64_t{0};
  constexpr std::uint64_t kTable = 0x000ffffffffff000;
  const std::uint64_t pml4e = Word(memory, kPml4 + (address >> 39 & 0x1ff) * 8);
  if ((pml4e & 1) == 0) return kFault;
  const std::uint64_t pdpte = Word(memory, (pml4e & kTable) + (address >> 30 & 0x1ff) * 8);
  if ((pdpte & 1) == 0) return kFault;
  if ((pdpte & 0x80) != 0) return (pdpte & kTable & ~(kGiB - 1)) | (address & (kGiB - 1));
  const std::uint64_t pde = Word(memory, (pdpte & kTable) + (address >> 21 & 0x1ff) * 8);
  if ((pde & 0x81) != 0x81) return kFault;
  return (pde & kTable & ~(2 * kMiB - 1)) | (address & (2 * kMiB - 1));
}

TEST_CASE("regs: the page tables map the first 4 GiB to themselves and nothing else") {
  for (const PageSize size : {PageSize::k2MiB, PageSize::k1GiB}) {
    const auto memory = MakeMemory(1 * kMiB);
    REQUIRE(WritePageTables(*memory, size));
    for (const std::uint64_t address :
         {std::uint64_t{0}, kZeroPage, std::uint64_t{0x1fffff}, std::uint64_t{0x200000},
          1 * kGiB - 1, 1 * kGiB, 2 * kGiB + 12345, 4 * kGiB - 1}) {
      CAPTURE(address);
      CHECK(Translate(*memory, address) == address);
    }
    for (const std::uint64_t address : {4 * kGiB, 512 * kGiB, std::uint64_t{0xffffffff80000000}}) {
      CHECK(Translate(*memory, address) == ~std::uint64_t{0});
    }
    // Large pages leave the directories alone: a start touches less memory.
    CHECK((Word(*memory, kPageDirectories) != 0) == (size == PageSize::k2MiB));
  }
  CHECK_FALSE(WritePageTables(*MakeMemory(0x3000), PageSize::k1GiB));
}

TEST_CASE("regs: the GDT in memory agrees with the segments in the registers") {
  const auto memory = MakeMemory(1 * kMiB);
  REQUIRE(WriteGdt(*memory));
  for (const InitialState& state :
       {Linux64State(0x1000200, kZeroPage), PvhState(0x1000000, kPvhStartInfo)}) {
    const Sregs& sregs = state.sregs;
    CHECK(sregs.gdt.base == kGdt);
    CHECK(Word(*memory, kGdt) == 0);
    for (const Segment& segment :
         {sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr}) {
      CAPTURE(segment.selector);
      CHECK(segment.selector + 7U <= sregs.gdt.limit);
      const std::uint64_t descriptor = Word(*memory, kGdt + segment.selector);
      CHECK((descriptor >> 40 & 0xf) == segment.type);
      CHECK((descriptor >> 44 & 1) == segment.s);
      CHECK((descriptor >> 47 & 1) == segment.present);
      CHECK((descriptor >> 53 & 1) == segment.l);
      CHECK((descriptor >> 54 & 1) == segment.db);
      CHECK((descriptor >> 55 & 1) == segment.g);
    }
    CHECK(sregs.ldt.unusable == 1);
  }
}

TEST_CASE(
    "regs: boot.rst: 64-bit entry: long mode, paging, CS 0x10, DS 0x18, %rsi = boot_params, "
    "interrupts off") {
  const InitialState state = Linux64State(0x1000200, kZeroPage);
  CHECK(state.regs.rip == 0x1000200);
  CHECK(state.regs.rsi == kZeroPage);
  CHECK(state.regs.rflags == 2);
  CHECK(state.sregs.cs.selector == 0x10);
  CHECK(state.sregs.cs.l == 1);
  CHECK(state.sregs.ds.selector == 0x18);
  CHECK(state.sregs.cr0 == 0x80000031);
  CHECK(state.sregs.cr3 == kPml4);
  CHECK(state.sregs.cr4 == 0x20);
  CHECK(state.sregs.efer == 0x500);
}

TEST_CASE("regs: pvh.pandoc: 32-bit protected mode, flat segments, paging off, %ebx = start info") {
  const InitialState state = PvhState(0x1000000, kPvhStartInfo);
  CHECK(state.regs.rip == 0x1000000);
  CHECK(state.regs.rbx == kPvhStartInfo);
  CHECK(state.regs.rsi == 0);
  CHECK(state.regs.rflags == 2);
  CHECK(state.sregs.cs.l == 0);
  CHECK(state.sregs.cs.db == 1);
  CHECK(state.sregs.cs.limit == 0xffffffff);
  CHECK(state.sregs.tr.limit == 0x67);
  CHECK(state.sregs.cr0 == 0x11);
  CHECK(state.sregs.cr4 == 0);
  CHECK(state.sregs.efer == 0);
}

TEST_CASE(
    "regression: regs: a vCPU that KVM reset after a triple fault is told from one that ran") {
  Regs regs;
  regs.rip = 0xfff0;
  Sregs sregs;
  sregs.cs.base = 0xffff0000;
  sregs.cs.selector = 0xf000;
  sregs.cr0 = 0x60000010;
  CHECK(IsAtReset(regs, sregs));
  for (const std::uint64_t rip : {std::uint64_t{0}, std::uint64_t{0xfff1}, ~std::uint64_t{0}}) {
    Regs ran = regs;
    ran.rip = rip;
    CHECK_FALSE(IsAtReset(ran, sregs));
  }
  Sregs low = sregs;
  low.cs.base = 0xf0000;
  CHECK_FALSE(IsAtReset(regs, low));
  Sregs is_protected = sregs;
  is_protected.cr0 |= 1;
  CHECK_FALSE(IsAtReset(regs, is_protected));
  const InitialState linux_start = Linux64State(0xfff0, kZeroPage);
  CHECK_FALSE(IsAtReset(linux_start.regs, linux_start.sregs));
}

TEST_CASE("regs: all of memory is write-back by the MTRRs") {
  const auto msrs = InitialMsrs();
  REQUIRE_FALSE(msrs.empty());
  CHECK(msrs[0].index == 0x2ff);
  CHECK(msrs[0].value == 0x806);
  CHECK(msrs[0].required);
}

TEST_CASE("regs: LINT1 is NMI everywhere, LINT0 is ExtINT on the boot processor, other bits stay") {
  for (const bool boot_processor : {true, false}) {
    std::array<std::byte, 0x400> page{};
    page[0x352] = std::byte{0x01};  // masked, as after a reset
    page[0x362] = std::byte{0x01};
    page[0x361] = std::byte{0xa0};  // level, low: not ours to change
    page[0x370] = std::byte{0x77};
    REQUIRE(SetLocalApicLvt(page, boot_processor));
    CHECK(page[0x351] == std::byte(boot_processor ? 0x07 : 0x00));
    CHECK(page[0x352] == std::byte(boot_processor ? 0x00 : 0x01));
    CHECK(page[0x361] == std::byte{0xa4});
    CHECK(page[0x362] == std::byte{0x00});
    CHECK(page[0x370] == std::byte{0x77});
  }
  std::array<std::byte, 0x3ff> small{};
  CHECK_FALSE(SetLocalApicLvt(small, true));
}

}  // namespace
}  // namespace postern::x86_64
