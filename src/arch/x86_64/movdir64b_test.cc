#include "src/arch/x86_64/movdir64b.h"

#include <initializer_list>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace postern::x86_64 {
namespace {

using Code = std::vector<std::uint8_t>;

constexpr std::uint64_t kRip = 0xffff'8000'0010'0000;
constexpr SegmentBases kBases{.es = 0x0100'0000,
                              .cs = 0x0200'0000,
                              .ss = 0x0300'0000,
                              .ds = 0x0400'0000,
                              .fs = 0x0500'0000,
                              .gs = 0xffff'8880'0000'0000};

// Different in every byte that an address size cuts off.
constexpr std::uint64_t R(unsigned i) {
  return 0xfe00'0000'0000'0000 + (std::uint64_t{i} << 40) + (std::uint64_t{i} << 28) +
         (std::uint64_t{i} << 13) + std::uint64_t{0x40} * i;
}
constexpr std::uint64_t R32(unsigned i) {
  return R(i) & 0xffff'ffff;
}
enum Register : unsigned {
  kAx,
  kCx,
  kDx,
  kBx,
  kSp,
  kBp,
  kSi,
  kDi,
  k8,
  k9,
  k10,
  k11,
  k12,
  k13,
  k14,
  k15
};

DecodeInput Input(CodeMode mode) {
  DecodeInput input;
  for (unsigned i = 0; i < 16; ++i) input.gpr[i] = R(i);
  input.rip = kRip;
  input.mode = mode;
  input.bases = kBases;
  return input;
}

std::optional<DirectStore> Decode(const Code& code, CodeMode mode = CodeMode::k64) {
  return DecodeDirectStore(std::as_bytes(std::span(code)), Input(mode));
}

struct Row {
  const char* text;  // as GNU as takes it, which made the bytes
  Code code;
  std::uint64_t destination;
  std::uint64_t source;
  DirectStoreKind kind = DirectStoreKind::kMovdir64b;
};

void CheckRows(CodeMode mode, std::initializer_list<Row> rows) {
  for (const Row& row : rows) {
    CAPTURE(row.text);
    Code code = row.code;
    code.resize(15, 0xcc);  // what follows is another instruction
    const auto store = Decode(code, mode);
    REQUIRE(store);
    CHECK(store->kind == row.kind);
    CHECK(store->destination == row.destination);
    CHECK(store->source == row.source);
    CHECK(store->length == row.code.size());
    // All its bytes are needed, and no more.
    CHECK(Decode(row.code, mode)->length == row.code.size());
    for (std::size_t cut = 0; cut < row.code.size(); ++cut)
      CHECK(!Decode(Code(row.code.begin(), row.code.begin() + static_cast<long>(cut)), mode));
  }
}

TEST_CASE("movdir64b: every form of address of 64-bit mode") {
  CheckRows(
      CodeMode::k64,
      {{"movdir64b (%rdx), %rax", {0x66, 0x0f, 0x38, 0xf8, 0x02}, R(kAx), R(kDx)},
       {"movdir64b (%rax), %rcx", {0x66, 0x0f, 0x38, 0xf8, 0x08}, R(kCx), R(kAx)},
       {"movdir64b 0x40(%rsp), %rdi",
        {0x66, 0x0f, 0x38, 0xf8, 0x7c, 0x24, 0x40},
        R(kDi),
        R(kSp) + 0x40},
       {"movdir64b -0x80(%rbp), %rsi", {0x66, 0x0f, 0x38, 0xf8, 0x75, 0x80}, R(kSi), R(kBp) - 0x80},
       {"movdir64b 0x12345678(%rbx,%rcx,8), %rdx",
        {0x66, 0x0f, 0x38, 0xf8, 0x94, 0xcb, 0x78, 0x56, 0x34, 0x12},
        R(kDx),
        R(kBx) + 8 * R(kCx) + 0x12345678},
       {"movdir64b 0x0(%rip), %r8",
        {0x66, 0x44, 0x0f, 0x38, 0xf8, 0x05, 0x00, 0x00, 0x00, 0x00},
        R(k8),
        kRip + 10},
       {"movdir64b -0x1234(%rip), %rax",
        {0x66, 0x0f, 0x38, 0xf8, 0x05, 0xcc, 0xed, 0xff, 0xff},
        R(kAx),
        kRip + 9 - 0x1234},
       {"movdir64b 0x11223344, %rax",
        {0x66, 0x0f, 0x38, 0xf8, 0x04, 0x25, 0x44, 0x33, 0x22, 0x11},
        R(kAx),
        0x11223344},
       {"movdir64b -0x11223344, %rax",
        {0x66, 0x0f, 0x38, 0xf8, 0x04, 0x25, 0xbc, 0xcc, 0xdd, 0xee},
        R(kAx),
        0xffff'ffff'eedd'ccbc},
       {"movdir64b (,%r9,4), %rax",
        {0x66, 0x42, 0x0f, 0x38, 0xf8, 0x04, 0x8d, 0x00, 0x00, 0x00, 0x00},
        R(kAx),
        4 * R(k9)},
       {"movdir64b (%r12), %r15", {0x66, 0x45, 0x0f, 0x38, 0xf8, 0x3c, 0x24}, R(k15), R(k12)},
       {"movdir64b (%r13), %r14", {0x66, 0x45, 0x0f, 0x38, 0xf8, 0x75, 0x00}, R(k14), R(k13)},
       {"movdir64b 0x10(%r13,%r12,2), %r11",
        {0x66, 0x47, 0x0f, 0x38, 0xf8, 0x5c, 0x65, 0x10},
        R(k11),
        R(k13) + 2 * R(k12) + 0x10},
       {"movdir64b (%rsp,%r12,1), %r10",
        {0x66, 0x46, 0x0f, 0x38, 0xf8, 0x14, 0x24},
        R(k10),
        R(kSp) + R(k12)},
       {"movdir64b (%r8,%rax,1), %r9",
        {0x66, 0x45, 0x0f, 0x38, 0xf8, 0x0c, 0x00},
        R(k9),
        R(k8) + R(kAx)},
       {"movdir64b -0x7fffffff(%rax,%rax,1), %rax",
        {0x66, 0x0f, 0x38, 0xf8, 0x84, 0x00, 0x01, 0x00, 0x00, 0x80},
        R(kAx),
        2 * R(kAx) - 0x7fffffff},
       {"movdir64b (%rbp,%rbp,1), %rbp",
        {0x66, 0x0f, 0x38, 0xf8, 0x6c, 0x2d, 0x00},
        R(kBp),
        2 * R(kBp)},
       {"movdir64b (%r13,%rbp,1), %rsp",
        {0x66, 0x41, 0x0f, 0x38, 0xf8, 0x64, 0x2d, 0x00},
        R(kSp),
        R(k13) + R(kBp)}});
}

TEST_CASE("movdir64b: segments and the address size of 64-bit mode") {
  CheckRows(
      CodeMode::k64,
      {{"movdir64b %fs:(%rdx), %rax",
        {0x64, 0x66, 0x0f, 0x38, 0xf8, 0x02},
        R(kAx),
        R(kDx) + kBases.fs},
       {"movdir64b %gs:0x8(%r10), %rbx",
        {0x65, 0x66, 0x41, 0x0f, 0x38, 0xf8, 0x5a, 0x08},
        R(kBx),
        R(k10) + 8 + kBases.gs},
       {"movdir64b (%edx), %eax", {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x02}, R32(kAx), R32(kDx)},
       {"movdir64b -1(%r9d), %r10d",
        {0x67, 0x66, 0x45, 0x0f, 0x38, 0xf8, 0x51, 0xff},
        R32(k10),
        R32(k9) - 1},
       {"movdir64b %gs:-4(%eip), %eax",
        {0x65, 0x67, 0x66, 0x0f, 0x38, 0xf8, 0x05, 0xfc, 0xff, 0xff, 0xff},
        R32(kAx),
        ((kRip + 11 - 4) & 0xffff'ffff) + kBases.gs},
       // ES, CS, SS and DS do nothing, and do not undo what did; the last of FS and GS counts.
       {"movdir64b %es:(%rdx), %rax", {0x26, 0x66, 0x0f, 0x38, 0xf8, 0x02}, R(kAx), R(kDx)},
       {"movdir64b %ss:(%rsp), %rax", {0x36, 0x66, 0x0f, 0x38, 0xf8, 0x04, 0x24}, R(kAx), R(kSp)},
       {"gs cs fs ds movdir64b (%rdx), %rax",
        {0x65, 0x2e, 0x64, 0x3e, 0x66, 0x0f, 0x38, 0xf8, 0x02},
        R(kAx),
        R(kDx) + kBases.fs}});
}

TEST_CASE("movdir64b: ENQCMD and ENQCMDS by F2 and F3, whatever 66 says") {
  CheckRows(CodeMode::k64, {{"enqcmd (%rdx), %rax",
                             {0xf2, 0x0f, 0x38, 0xf8, 0x02},
                             R(kAx),
                             R(kDx),
                             DirectStoreKind::kEnqcmd},
                            {"enqcmd 0x7f(%r9,%r10,8), %r11",
                             {0xf2, 0x47, 0x0f, 0x38, 0xf8, 0x5c, 0xd1, 0x7f},
                             R(k11),
                             R(k9) + 8 * R(k10) + 0x7f,
                             DirectStoreKind::kEnqcmd},
                            {"enqcmds (%rsi), %rdi",
                             {0xf3, 0x0f, 0x38, 0xf8, 0x3e},
                             R(kDi),
                             R(kSi),
                             DirectStoreKind::kEnqcmds},
                            {"enqcmds (%ecx), %ebx",
                             {0x67, 0xf3, 0x0f, 0x38, 0xf8, 0x19},
                             R32(kBx),
                             R32(kCx),
                             DirectStoreKind::kEnqcmds},
                            {"data16 enqcmd (%rdx), %rax",
                             {0xf2, 0x66, 0x0f, 0x38, 0xf8, 0x02},
                             R(kAx),
                             R(kDx),
                             DirectStoreKind::kEnqcmd},
                            {"repne repe enqcmds (%rdx), %rax",
                             {0xf2, 0xf3, 0x0f, 0x38, 0xf8, 0x02},
                             R(kAx),
                             R(kDx),
                             DirectStoreKind::kEnqcmds}});
}

TEST_CASE("movdir64b: a REX prefix counts right before the opcode alone") {
  CheckRows(CodeMode::k64,
            {{"rex.WRXB, then 66", {0x4f, 0x66, 0x0f, 0x38, 0xf8, 0x02}, R(kAx), R(kDx)},
             {"two of them: the last", {0x66, 0x4f, 0x41, 0x0f, 0x38, 0xf8, 0x02}, R(kAx), R(k10)},
             {"rex.W changes nothing", {0x66, 0x48, 0x0f, 0x38, 0xf8, 0x02}, R(kAx), R(kDx)}});
}

TEST_CASE("movdir64b: 32-bit code, with 16-bit addresses, too") {
  const auto near = [](std::uint64_t offset) { return offset & 0xffff; };
  CheckRows(CodeMode::k32, {{"movdir64b (%edx), %eax",
                             {0x66, 0x0f, 0x38, 0xf8, 0x02},
                             R32(kAx) + kBases.es,
                             R32(kDx) + kBases.ds},
                            {"movdir64b 8(%ebp), %eax",
                             {0x66, 0x0f, 0x38, 0xf8, 0x45, 0x08},
                             R32(kAx) + kBases.es,
                             R32(kBp) + 8 + kBases.ss},
                            {"movdir64b (%esp), %ecx",
                             {0x66, 0x0f, 0x38, 0xf8, 0x0c, 0x24},
                             R32(kCx) + kBases.es,
                             R32(kSp) + kBases.ss},
                            {"movdir64b 0x11223344, %ecx",
                             {0x66, 0x0f, 0x38, 0xf8, 0x0d, 0x44, 0x33, 0x22, 0x11},
                             R32(kCx) + kBases.es,
                             0x11223344 + kBases.ds},
                            {"movdir64b %fs:(%edx,%esi,4), %ebx",
                             {0x64, 0x66, 0x0f, 0x38, 0xf8, 0x1c, 0xb2},
                             R32(kBx) + kBases.es,
                             ((R(kDx) + 4 * R(kSi)) & 0xffff'ffff) + kBases.fs},
                            {"movdir64b %es:(%edx), %ebx",
                             {0x26, 0x66, 0x0f, 0x38, 0xf8, 0x1a},
                             R32(kBx) + kBases.es,
                             R32(kDx) + kBases.es},
                            {"movdir64b %cs:(%edx), %ebx",
                             {0x2e, 0x66, 0x0f, 0x38, 0xf8, 0x1a},
                             R32(kBx) + kBases.es,
                             R32(kDx) + kBases.cs},
                            {"movdir64b %ss:(%edx), %ebx",
                             {0x36, 0x66, 0x0f, 0x38, 0xf8, 0x1a},
                             R32(kBx) + kBases.es,
                             R32(kDx) + kBases.ss},
                            {"movdir64b %ds:(%ebp), %ebx",
                             {0x3e, 0x66, 0x0f, 0x38, 0xf8, 0x5d, 0x00},
                             R32(kBx) + kBases.es,
                             R32(kBp) + kBases.ds},
                            {"movdir64b (%bx,%si), %ax",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x00},
                             near(R(kAx)) + kBases.es,
                             near(R(kBx) + R(kSi)) + kBases.ds},
                            {"movdir64b (%bx,%di), %ax",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x01},
                             near(R(kAx)) + kBases.es,
                             near(R(kBx) + R(kDi)) + kBases.ds},
                            {"movdir64b (%bp,%si), %ax",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x02},
                             near(R(kAx)) + kBases.es,
                             near(R(kBp) + R(kSi)) + kBases.ss},
                            {"movdir64b (%bp,%di), %cx",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x0b},
                             near(R(kCx)) + kBases.es,
                             near(R(kBp) + R(kDi)) + kBases.ss},
                            {"movdir64b (%si), %ax",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x04},
                             near(R(kAx)) + kBases.es,
                             near(R(kSi)) + kBases.ds},
                            {"movdir64b 0x10(%bp), %dx",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x56, 0x10},
                             near(R(kDx)) + kBases.es,
                             near(R(kBp) + 0x10) + kBases.ss},
                            {"movdir64b -0x7000(%di), %bx",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x9d, 0x00, 0x90},
                             near(R(kBx)) + kBases.es,
                             near(R(kDi) - 0x7000) + kBases.ds},
                            {"movdir64b 0x1234, %si",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x36, 0x34, 0x12},
                             near(R(kSi)) + kBases.es,
                             0x1234 + kBases.ds},
                            {"enqcmd (%edx), %eax",
                             {0xf2, 0x0f, 0x38, 0xf8, 0x02},
                             R32(kAx) + kBases.es,
                             R32(kDx) + kBases.ds,
                             DirectStoreKind::kEnqcmd}});
}

TEST_CASE("movdir64b: 16-bit code, with 32-bit addresses, too") {
  CheckRows(CodeMode::k16, {{"movdir64b (%bx), %ax",
                             {0x66, 0x0f, 0x38, 0xf8, 0x07},
                             (R(kAx) & 0xffff) + kBases.es,
                             (R(kBx) & 0xffff) + kBases.ds},
                            {"movdir64b -2(%bp,%si), %ax",
                             {0x66, 0x0f, 0x38, 0xf8, 0x42, 0xfe},
                             (R(kAx) & 0xffff) + kBases.es,
                             ((R(kBp) + R(kSi) - 2) & 0xffff) + kBases.ss},
                            {"movdir64b (%edx), %eax",
                             {0x67, 0x66, 0x0f, 0x38, 0xf8, 0x02},
                             R32(kAx) + kBases.es,
                             R32(kDx) + kBases.ds}});
}

TEST_CASE("movdir64b: linear addresses outside 64-bit mode have 32 bits") {
  DecodeInput input = Input(CodeMode::k32);
  input.bases.es = 0xffff'f000;
  input.bases.ds = 0xffff'ffff;
  input.gpr[kAx] = 0x2000;
  input.gpr[kDx] = 0x11;
  const Code code{0x66, 0x0f, 0x38, 0xf8, 0x02};
  const auto store = DecodeDirectStore(std::as_bytes(std::span(code)), input);
  REQUIRE(store);
  CHECK(store->destination == 0x1000);
  CHECK(store->source == 0x10);
}

TEST_CASE("movdir64b: everything else is not this instruction") {
  struct Other {
    const char* text;
    Code code;
  };
  const Other others[] = {
      {"movdir64b with a register for memory", {0x66, 0x0f, 0x38, 0xf8, 0xc2}},
      {"enqcmd with a register for memory", {0xf2, 0x0f, 0x38, 0xf8, 0xfa}},
      {"no mandatory prefix", {0x0f, 0x38, 0xf8, 0x02}},
      {"lock", {0xf0, 0x66, 0x0f, 0x38, 0xf8, 0x02}},
      {"movdiri %rax, (%rdx)", {0x48, 0x0f, 0x38, 0xf9, 0x02}},
      {"movbe", {0x66, 0x0f, 0x38, 0xf0, 0x02}},
      {"mov %rax, (%rdx)", {0x48, 0x89, 0x02}},
      {"three-byte opcode of the other map", {0x66, 0x0f, 0x3a, 0xf8, 0x02}},
      {"VEX", {0xc4, 0xe2, 0x79, 0xf8, 0x02}},
      {"REX between the bytes of the opcode", {0x66, 0x0f, 0x48, 0x38, 0xf8, 0x02}},
      {"nothing", {}},
  };
  for (const Other& other : others) {
    CAPTURE(other.text);
    CHECK(!Decode(other.code));
  }
  // A REX byte is an instruction of its own outside 64-bit mode.
  CHECK(!Decode({0x66, 0x44, 0x0f, 0x38, 0xf8, 0x02}, CodeMode::k32));
}

TEST_CASE("movdir64b: 15 bytes are an instruction, 16 are none") {
  Code code(10, 0x66);
  code.insert(code.end(), {0x0f, 0x38, 0xf8, 0x42, 0x08});
  REQUIRE(Decode(code));
  CHECK(Decode(code)->length == 15);
  code.insert(code.begin(), 0x66);
  CHECK(!Decode(code));
  CHECK(!Decode(Code(15, 0x66)));
  CHECK(!Decode(Code(64, 0x66)));
}

TEST_CASE("movdir64b: the mode and the registers come from the processor's state") {
  Regs regs;
  regs.rax = 1;
  regs.rcx = 2;
  regs.rdx = 3;
  regs.rbx = 4;
  regs.rsp = 5;
  regs.rbp = 6;
  regs.rsi = 7;
  regs.rdi = 8;
  regs.r8 = 9;
  regs.r15 = 16;
  regs.rip = 0x1234;
  Sregs sregs;
  sregs.es.base = 0x10;
  sregs.cs.base = 0x20;
  sregs.ss.base = 0x30;
  sregs.ds.base = 0x40;
  sregs.fs.base = 0x50;
  sregs.gs.base = 0x60;
  CHECK(DecodeInputOf(regs, sregs).mode == CodeMode::k16);
  sregs.cs.db = 1;
  CHECK(DecodeInputOf(regs, sregs).mode == CodeMode::k32);
  sregs.cs.l = 1;
  sregs.cs.db = 0;
  CHECK(DecodeInputOf(regs, sregs).mode == CodeMode::k16);  // L means nothing without long mode
  sregs.efer = 0x500;
  const DecodeInput input = DecodeInputOf(regs, sregs);
  CHECK(input.mode == CodeMode::k64);
  for (unsigned i = 0; i < 9; ++i) CHECK(input.gpr[i] == i + 1);
  CHECK(input.gpr[15] == 16);
  CHECK(input.rip == 0x1234);
  CHECK(input.bases.es == 0x10);
  CHECK(input.bases.cs == 0x20);
  CHECK(input.bases.ss == 0x30);
  CHECK(input.bases.ds == 0x40);
  CHECK(input.bases.fs == 0x50);
  CHECK(input.bases.gs == 0x60);
}

}  // namespace
}  // namespace postern::x86_64
