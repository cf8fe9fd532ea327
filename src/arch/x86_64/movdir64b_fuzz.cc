// Any bytes in any mode: what is decoded has its opcode in it, needs all its bytes and no more, and
// stays inside the address space of its mode.

#include "src/arch/x86_64/movdir64b.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "src/base/check.h"

using postern::x86_64::CodeMode;
using postern::x86_64::DecodeDirectStore;
using postern::x86_64::DecodeInput;

namespace {

bool Same(const postern::x86_64::DirectStore& a, const postern::x86_64::DirectStore& b) {
  return a.kind == b.kind && a.destination == b.destination && a.source == b.source &&
         a.length == b.length;
}

void CheckOne(std::span<const std::byte> bytes, const DecodeInput& input) {
  const auto store = DecodeDirectStore(bytes, input);
  if (!store) return;
  CHECK(store->length >= 5 && store->length <= 15 && store->length <= bytes.size());
  constexpr std::array kOpcode{std::byte{0x0f}, std::byte{0x38}, std::byte{0xf8}};
  const auto whole = bytes.first(store->length);
  CHECK(std::search(whole.begin(), whole.end(), kOpcode.begin(), kOpcode.end()) != whole.end());
  const auto alone = DecodeDirectStore(whole, input);
  CHECK(alone && Same(*alone, *store));
  CHECK(!DecodeDirectStore(whole.first(whole.size() - 1), input));
  if (input.mode != CodeMode::k64)
    CHECK(store->destination <= 0xffff'ffff && store->source <= 0xffff'ffff);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  DecodeInput input;
  input.mode = static_cast<CodeMode>(data[0] % 3);
  for (std::size_t i = 0; i < input.gpr.size(); ++i)
    input.gpr[i] = (data[1] + i) * 0x9e37'79b9'7f4a'7c15;
  input.rip = input.gpr[3];
  input.bases = {.es = input.gpr[5], .ds = input.gpr[7], .fs = input.gpr[11], .gs = input.gpr[13]};
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(2);
  CheckOne(bytes, input);
  // Random bytes are seldom this instruction: the same with its opcode put in.
  std::vector<std::byte> made(bytes.begin(), bytes.end());
  const std::size_t at = data[1] % 8;
  constexpr std::array kOpcode{std::byte{0x66}, std::byte{0x0f}, std::byte{0x38}, std::byte{0xf8}};
  if (made.size() < at + kOpcode.size()) return 0;
  std::ranges::copy(kOpcode, made.begin() + static_cast<std::ptrdiff_t>(at));
  // Before it, prefixes.
  constexpr std::array<std::uint8_t, 8> kPrefixes = {0x66, 0x67, 0x64, 0x65,
                                                     0xf2, 0xf3, 0x2e, 0x36};
  for (std::size_t i = 0; i < at; ++i)
    made[i] = std::byte{kPrefixes[std::to_integer<std::size_t>(made[i]) % kPrefixes.size()]};
  CheckOne(made, input);
  if (input.mode == CodeMode::k64 && at > 0) {
    std::swap(made[at], made[at - 1]);  // a prefix and then 66
    made[at] = std::byte{static_cast<std::uint8_t>(0x40 | (data[0] >> 4))};
    CheckOne(made, input);
  }
  return 0;
}
