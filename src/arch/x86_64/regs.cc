#include "src/arch/x86_64/regs.h"

#include <array>
#include <cstring>

#include "src/arch/x86_64/layout.h"
#include "src/base/endian.h"

namespace postern::x86_64 {
namespace {

using memory::Access;
using memory::Gpa;
using memory::GuestMemory;
using memory::GuestView;

// boot.rst asks for __BOOT_CS (0x10) and __BOOT_DS (0x18); the 32-bit code segment serves PVH.
constexpr std::uint16_t kSelectorCode32 = 0x08;
constexpr std::uint16_t kSelectorCode64 = 0x10;
constexpr std::uint16_t kSelectorData = 0x18;
constexpr std::uint16_t kSelectorTss = 0x20;

// SDM vol. 3A 3.4.5.1, tables 3-1 and 3-2.
constexpr std::uint8_t kTypeCode = 0xb;  // execute, read, accessed
constexpr std::uint8_t kTypeData = 0x3;  // read, write, accessed
constexpr std::uint8_t kTypeTss = 0xb;   // busy

constexpr std::uint64_t kCr0Pe = 1U << 0;
constexpr std::uint64_t kCr0Et = 1U << 4;
constexpr std::uint64_t kCr0Ne = 1U << 5;
constexpr std::uint64_t kCr0Pg = std::uint64_t{1} << 31;
constexpr std::uint64_t kCr4Pae = 1U << 5;
constexpr std::uint64_t kEferLme = 1U << 8;
constexpr std::uint64_t kEferLma = 1U << 10;
constexpr std::uint64_t kRflagsFixed = 1U << 1;

constexpr std::uint64_t kPtePresentWritable = 0x3;
constexpr std::uint64_t kPtePageSize = 0x80;

constexpr Segment Flat(std::uint16_t selector, std::uint8_t type, bool code64) {
  Segment segment;
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.db = code64 ? 0 : 1;
  segment.s = 1;
  segment.l = code64 ? 1 : 0;
  segment.g = 1;
  return segment;
}

constexpr Segment TaskState() {
  Segment segment;
  segment.limit = 0x67;
  segment.selector = kSelectorTss;
  segment.type = kTypeTss;
  segment.present = 1;
  return segment;
}

constexpr Segment Absent() {
  Segment segment;
  segment.unusable = 1;
  return segment;
}

// SDM vol. 3A figure 3-8: the memory form of a descriptor.
constexpr std::uint64_t Encode(const Segment& segment) {
  const std::uint64_t limit = segment.g != 0 ? segment.limit >> 12 : segment.limit;
  const std::uint64_t flags = std::uint64_t{segment.type} | std::uint64_t{segment.s} << 4 |
                              std::uint64_t{segment.dpl} << 5 |
                              std::uint64_t{segment.present} << 7 |
                              std::uint64_t{segment.avl} << 12 | std::uint64_t{segment.l} << 13 |
                              std::uint64_t{segment.db} << 14 | std::uint64_t{segment.g} << 15;
  return (limit & 0xffff) | (segment.base & 0xffffff) << 16 | flags << 40 |
         (limit >> 16 & 0xf) << 48 | (segment.base >> 24 & 0xff) << 56;
}

// The TSS descriptor takes two entries in long mode (SDM 7.2.3); the upper half is zero for a base
// below 4 GiB.
constexpr std::array<std::uint64_t, 6> kGdtEntries = {
    0,
    Encode(Flat(kSelectorCode32, kTypeCode, false)),
    Encode(Flat(kSelectorCode64, kTypeCode, true)),
    Encode(Flat(kSelectorData, kTypeData, false)),
    Encode(TaskState()),
    0,
};
static_assert(kGdtEntries[1] == 0x00cf9b000000ffff);
static_assert(kGdtEntries[2] == 0x00af9b000000ffff);
static_assert(kGdtEntries[3] == 0x00cf93000000ffff);
static_assert(kGdtEntries[4] == 0x00008b0000000067);
static_assert(kGdt + sizeof(kGdtEntries) <= kPvhStartInfo);

Sregs CommonSregs(const Segment& code) {
  Sregs sregs;
  const Segment data = Flat(kSelectorData, kTypeData, false);
  sregs.cs = code;
  sregs.ds = data;
  sregs.es = data;
  sregs.fs = data;
  sregs.gs = data;
  sregs.ss = data;
  sregs.tr = TaskState();
  sregs.ldt = Absent();
  sregs.gdt = {kGdt, sizeof(kGdtEntries) - 1};
  // An empty IDT: an exception this early is a triple fault either way, and says so.
  sregs.idt = {0, 0};
  return sregs;
}

template <std::size_t N>
Result<void> WriteWords(const GuestMemory& memory, std::uint64_t address,
                        const std::array<std::uint64_t, N>& words) {
  const GuestView view = TRY(memory.View(Gpa(address), sizeof(words), Access::kWrite));
  for (std::size_t i = 0; i < N; ++i) TRY(view.Write(i * 8, le64(words[i])));
  return {};
}

}  // namespace

InitialState Linux64State(std::uint64_t entry, std::uint64_t boot_params) {
  InitialState state;
  state.regs.rip = entry;
  state.regs.rsi = boot_params;
  state.regs.rflags = kRflagsFixed;
  state.sregs = CommonSregs(Flat(kSelectorCode64, kTypeCode, true));
  state.sregs.cr0 = kCr0Pg | kCr0Ne | kCr0Et | kCr0Pe;
  state.sregs.cr3 = kPml4;
  state.sregs.cr4 = kCr4Pae;
  state.sregs.efer = kEferLme | kEferLma;
  return state;
}

InitialState PvhState(std::uint64_t entry, std::uint64_t start_info) {
  InitialState state;
  state.regs.rip = entry;
  state.regs.rbx = start_info;
  state.regs.rflags = kRflagsFixed;
  state.sregs = CommonSregs(Flat(kSelectorCode32, kTypeCode, false));
  // pvh.pandoc: CR0 has PE set and all other writable bits clear; CR4 is 0. ET reads as 1 on every
  // processor that has long mode.
  state.sregs.cr0 = kCr0Et | kCr0Pe;
  return state;
}

Result<void> WriteGdt(const GuestMemory& memory) {
  return WriteWords(memory, kGdt, kGdtEntries);
}

Result<void> WritePageTables(const GuestMemory& memory, PageSize size) {
  TRY(memory.Write(Gpa(kPml4), le64(kPdpt | kPtePresentWritable)));
  std::array<std::uint64_t, 4> pdpt{};
  for (std::uint64_t i = 0; i < pdpt.size(); ++i) {
    pdpt[i] = size == PageSize::k1GiB ? (i * kGiB | kPtePageSize | kPtePresentWritable)
                                      : ((kPageDirectories + i * 0x1000) | kPtePresentWritable);
  }
  TRY(WriteWords(memory, kPdpt, pdpt));
  if (size == PageSize::k1GiB) return {};
  std::array<std::uint64_t, 512> directory{};
  for (std::uint64_t i = 0; i < pdpt.size(); ++i) {
    for (std::uint64_t j = 0; j < directory.size(); ++j) {
      directory[j] = (i * kGiB + j * 2 * kMiB) | kPtePageSize | kPtePresentWritable;
    }
    TRY(WriteWords(memory, kPageDirectories + i * 0x1000, directory));
  }
  return {};
}

bool IsAtReset(const Regs& regs, const Sregs& sregs) {
  // SDM vol. 3A table 10-1: the first instruction is at 0xfffffff0.
  constexpr std::uint64_t kResetRip = 0xfff0;
  constexpr std::uint64_t kResetCsBase = 0xffff0000;
  return regs.rip == kResetRip && sregs.cs.base == kResetCsBase && (sregs.cr0 & kCr0Pe) == 0;
}

std::uint64_t LinearRip(const Regs& regs, const Sregs& sregs) {
  return sregs.cs.l != 0 ? regs.rip : sregs.cs.base + regs.rip;
}

unsigned PrivilegeLevel(const Sregs& sregs) {
  return sregs.ss.dpl;
}

std::span<const Msr> InitialMsrs() {
  constexpr std::uint32_t kMtrrDefType = 0x2ff;
  constexpr std::uint32_t kMiscEnable = 0x1a0;
  static constexpr std::array<Msr, 2> kMsrs = {{
      // SDM vol. 3A 12.11.2.1: MTRRs enabled, default type write-back. Without a variable range all
      // of memory is cached, as it is.
      {kMtrrDefType, 1U << 11 | 6U, true},
      // Fast strings: without the bit Linux believes the firmware turned them off and stops using
      // `rep movs`. Processors without
      // the MSR (AMD) get it from KVM as a plain value, other hosts may refuse.
      {kMiscEnable, 1U, false},
  }};
  return kMsrs;
}

Result<void> SetLocalApicLvt(std::span<std::byte> page, bool boot_processor) {
  constexpr std::size_t kLvt0 = 0x350;
  constexpr std::size_t kLvt1 = 0x360;
  constexpr std::uint32_t kModeMask = 0x7 << 8;
  constexpr std::uint32_t kMasked = 1U << 16;
  constexpr std::uint32_t kModeNmi = 0x4 << 8;
  constexpr std::uint32_t kModeExtInt = 0x7 << 8;
  if (page.size() < 0x400) return Err(Errc::kInvalidArgument, "local APIC register page");
  const auto set_mode = [page](std::size_t offset, std::uint32_t mode) {
    le32 lvt;
    std::memcpy(&lvt, page.data() + offset, sizeof(lvt));
    lvt = (lvt.get() & ~(kModeMask | kMasked)) | mode;
    std::memcpy(page.data() + offset, &lvt, sizeof(lvt));
  };
  if (boot_processor) set_mode(kLvt0, kModeExtInt);
  set_mode(kLvt1, kModeNmi);
  return {};
}

}  // namespace postern::x86_64
