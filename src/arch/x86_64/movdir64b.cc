#include "src/arch/x86_64/movdir64b.h"

#include <algorithm>

namespace postern::x86_64 {
namespace {

constexpr std::size_t kMaxLength = 15;  // SDM vol. 2 2.3.11
constexpr unsigned kRsp = 4;
constexpr unsigned kRbp = 5;
constexpr unsigned kRsi = 6;
constexpr unsigned kRdi = 7;
constexpr unsigned kRbx = 3;

enum class Prefix66F2F3 : std::uint8_t { kNone, kOperandSize, kRepne, kRep };
enum class SegmentName : std::uint8_t { kDefault, kEs, kCs, kSs, kDs, kFs, kGs };

// The bytes of one instruction; past their end everything is 0 and nothing decodes.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes)
      : bytes_(bytes.first(std::min(bytes.size(), kMaxLength))) {}
  std::uint8_t Take() {
    if (at_ == bytes_.size()) {
      ended_ = true;
      return 0;
    }
    return std::to_integer<std::uint8_t>(bytes_[at_++]);
  }
  [[nodiscard]] std::uint8_t Peek() const {
    return at_ == bytes_.size() ? std::uint8_t{0} : std::to_integer<std::uint8_t>(bytes_[at_]);
  }
  // Little-endian, sign-extended.
  std::uint64_t Displacement(unsigned width) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < width; ++i) value |= std::uint64_t{Take()} << (8 * i);
    const std::uint64_t sign = width == 0 ? 0 : std::uint64_t{1} << (8 * width - 1);
    return (value ^ sign) - sign;
  }
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] std::uint8_t length() const { return static_cast<std::uint8_t>(at_); }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  bool ended_ = false;
};

struct Prefixes {
  bool operand_size = false;
  bool address_size = false;
  bool lock = false;
  Prefix66F2F3 repeat = Prefix66F2F3::kNone;  // the last of F2 and F3
  SegmentName segment = SegmentName::kDefault;
  std::uint8_t rex = 0;
  [[nodiscard]] unsigned Extend(unsigned low, unsigned rex_bit) const {
    return low | ((rex >> rex_bit & 1U) << 3);
  }
};
constexpr unsigned kRexB = 0;
constexpr unsigned kRexX = 1;
constexpr unsigned kRexR = 2;

// In 64-bit mode the prefixes of ES, CS, SS and DS do nothing (SDM vol. 2 2.2.1).
void TakeSegment(SegmentName name, bool long_mode, Prefixes& prefixes) {
  if (!long_mode || name == SegmentName::kFs || name == SegmentName::kGs) prefixes.segment = name;
}

bool TakeLegacyPrefix(std::uint8_t byte, bool long_mode, Prefixes& prefixes) {
  switch (byte) {
    case 0x66:
      prefixes.operand_size = true;
      return true;
    case 0x67:
      prefixes.address_size = true;
      return true;
    case 0xf0:
      prefixes.lock = true;
      return true;
    case 0xf2:
      prefixes.repeat = Prefix66F2F3::kRepne;
      return true;
    case 0xf3:
      prefixes.repeat = Prefix66F2F3::kRep;
      return true;
    case 0x26:
      TakeSegment(SegmentName::kEs, long_mode, prefixes);
      return true;
    case 0x2e:
      TakeSegment(SegmentName::kCs, long_mode, prefixes);
      return true;
    case 0x36:
      TakeSegment(SegmentName::kSs, long_mode, prefixes);
      return true;
    case 0x3e:
      TakeSegment(SegmentName::kDs, long_mode, prefixes);
      return true;
    case 0x64:
      TakeSegment(SegmentName::kFs, long_mode, prefixes);
      return true;
    case 0x65:
      TakeSegment(SegmentName::kGs, long_mode, prefixes);
      return true;
    default:
      return false;
  }
}

Prefixes TakePrefixes(Reader& reader, bool long_mode) {
  Prefixes prefixes;
  for (;; reader.Take()) {
    const std::uint8_t byte = reader.Peek();
    if (TakeLegacyPrefix(byte, long_mode, prefixes)) {
      prefixes.rex = 0;  // SDM vol. 2 2.2.1: one that is not right before the opcode is ignored
    } else if (long_mode && (byte & 0xf0) == 0x40) {
      prefixes.rex = byte;
    } else {
      return prefixes;
    }
  }
}

std::optional<DirectStoreKind> KindOf(const Prefixes& prefixes) {
  // SDM vol. 2 3.1.1.1: F2 and F3 select the instruction even where 66 is there, too.
  if (prefixes.repeat == Prefix66F2F3::kRepne) return DirectStoreKind::kEnqcmd;
  if (prefixes.repeat == Prefix66F2F3::kRep) return DirectStoreKind::kEnqcmds;
  if (prefixes.operand_size) return DirectStoreKind::kMovdir64b;
  return std::nullopt;
}

unsigned AddressBits(CodeMode mode, bool other) {
  switch (mode) {
    case CodeMode::k16:
      return other ? 32 : 16;
    case CodeMode::k32:
      return other ? 16 : 32;
    case CodeMode::k64:
      break;
  }
  return other ? 32 : 64;
}

std::uint64_t Truncate(std::uint64_t value, unsigned bits) {
  return bits == 64 ? value : value & ((std::uint64_t{1} << bits) - 1);
}

struct MemoryOperand {
  std::uint64_t offset = 0;
  bool stack = false;  // SS by default
  bool rip_relative = false;
};

// SDM vol. 2 table 2-1.
MemoryOperand Operand16(Reader& reader, unsigned mod, unsigned rm, const DecodeInput& input) {
  const auto& gpr = input.gpr;
  MemoryOperand operand;
  const bool absolute = mod == 0 && rm == 6;
  switch (rm) {
    case 0:
      operand.offset = gpr[kRbx] + gpr[kRsi];
      break;
    case 1:
      operand.offset = gpr[kRbx] + gpr[kRdi];
      break;
    case 2:
      operand.offset = gpr[kRbp] + gpr[kRsi];
      break;
    case 3:
      operand.offset = gpr[kRbp] + gpr[kRdi];
      break;
    case 4:
      operand.offset = gpr[kRsi];
      break;
    case 5:
      operand.offset = gpr[kRdi];
      break;
    case 6:
      operand.offset = absolute ? 0 : gpr[kRbp];
      break;
    default:
      operand.offset = gpr[kRbx];
      break;
  }
  operand.stack = rm == 2 || rm == 3 || (rm == 6 && !absolute);
  operand.offset += reader.Displacement(absolute || mod == 2 ? 2 : mod);
  return operand;
}

// SDM vol. 2 tables 2-2, 2-3 and 2-7.
MemoryOperand Operand32(Reader& reader, unsigned mod, unsigned rm, const Prefixes& prefixes,
                        const DecodeInput& input) {
  MemoryOperand operand;
  unsigned displacement = mod == 1 ? 1 : (mod == 2 ? 4 : 0);
  unsigned base = prefixes.Extend(rm, kRexB);
  bool has_base = true;
  if (rm == kRsp) {
    const std::uint8_t sib = reader.Take();
    const unsigned index = prefixes.Extend(sib >> 3 & 7U, kRexX);
    base = prefixes.Extend(sib & 7U, kRexB);
    if (index != kRsp) operand.offset = input.gpr[index] << (sib >> 6);
    has_base = mod != 0 || (sib & 7U) != kRbp;
    if (!has_base) displacement = 4;
  } else if (mod == 0 && rm == kRbp) {
    has_base = false;
    displacement = 4;
    operand.rip_relative = input.mode == CodeMode::k64;
  }
  if (has_base) {
    operand.offset += input.gpr[base];
    operand.stack = base == kRsp || base == kRbp;
  }
  operand.offset += reader.Displacement(displacement);
  return operand;
}

std::uint64_t BaseOf(SegmentName segment, const MemoryOperand& operand, const DecodeInput& input) {
  const SegmentBases& bases = input.bases;
  switch (segment) {
    case SegmentName::kFs:
      return bases.fs;
    case SegmentName::kGs:
      return bases.gs;
    default:
      break;
  }
  if (input.mode == CodeMode::k64) return 0;
  switch (segment) {
    case SegmentName::kEs:
      return bases.es;
    case SegmentName::kCs:
      return bases.cs;
    case SegmentName::kSs:
      return bases.ss;
    case SegmentName::kDs:
      return bases.ds;
    default:
      return operand.stack ? bases.ss : bases.ds;
  }
}

}  // namespace

DecodeInput DecodeInputOf(const Regs& regs, const Sregs& sregs) {
  constexpr std::uint64_t kLongModeActive = 1 << 10;  // EFER.LMA
  DecodeInput input;
  input.gpr = {regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
               regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15};
  input.rip = regs.rip;
  if ((sregs.efer & kLongModeActive) != 0 && sregs.cs.l != 0) {
    input.mode = CodeMode::k64;
  } else {
    input.mode = sregs.cs.db != 0 ? CodeMode::k32 : CodeMode::k16;
  }
  input.bases = {.es = sregs.es.base,
                 .cs = sregs.cs.base,
                 .ss = sregs.ss.base,
                 .ds = sregs.ds.base,
                 .fs = sregs.fs.base,
                 .gs = sregs.gs.base};
  return input;
}

std::optional<DirectStore> DecodeDirectStore(std::span<const std::byte> bytes,
                                             const DecodeInput& input) {
  const bool long_mode = input.mode == CodeMode::k64;
  Reader reader(bytes);
  const Prefixes prefixes = TakePrefixes(reader, long_mode);
  if (reader.Take() != 0x0f || reader.Take() != 0x38 || reader.Take() != 0xf8) return std::nullopt;
  const std::optional<DirectStoreKind> kind = KindOf(prefixes);
  const std::uint8_t modrm = reader.Take();
  const unsigned mod = modrm >> 6;
  const unsigned rm = modrm & 7U;
  if (!kind || prefixes.lock || mod == 3) return std::nullopt;

  const unsigned bits = AddressBits(input.mode, prefixes.address_size);
  MemoryOperand operand =
      bits == 16 ? Operand16(reader, mod, rm, input) : Operand32(reader, mod, rm, prefixes, input);
  if (reader.ended()) return std::nullopt;
  if (operand.rip_relative) operand.offset += input.rip + reader.length();

  const unsigned linear_bits = long_mode ? 64 : 32;
  const std::uint64_t destination =
      Truncate(input.gpr[prefixes.Extend(modrm >> 3 & 7U, kRexR)], bits) +
      (long_mode ? 0 : input.bases.es);
  const std::uint64_t source =
      Truncate(operand.offset, bits) + BaseOf(prefixes.segment, operand, input);
  return DirectStore{.kind = *kind,
                     .destination = Truncate(destination, linear_bits),
                     .source = Truncate(source, linear_bits),
                     .length = reader.length()};
}

}  // namespace postern::x86_64
