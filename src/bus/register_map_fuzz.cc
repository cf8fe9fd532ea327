// Any sequence of accesses against a model that keeps a register block as single bits of single
// bytes.

#include "src/bus/register_map.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "src/base/check.h"

namespace postern::bus {
namespace {

constexpr auto kRows = std::to_array<RegisterRow>({
    {0x00, 4, "RO", 0, 0, 0x74726976, kNone},
    {0x04, 4, "RW", 0xffff'ffff, 0, 0, kNone},
    {0x08, 4, "MIXED", 0x00ff'ff00, 0x0f00'000f, 0x0a00'550f, kOnWrite},
    {0x10, 8, "WIDE", 0xffff'ffff'ffff'f000, 0x3, 0x3, kNone},
    {0x18, 2, "HALF", 0x7fff, 0x8000, 0x8000, kOnWrite},
    {0x1a, 1, "BYTE", 0xf0, 0x0f, 0xff, kNone},
    {0x1b, 1, "NEXT", 0xff, 0, 0, kNone},
    {0x1c, 4, "LAST4", 0xffff'0000, 0, 0x1234, kNone},
    {0x20, 4, "PAIRLOW", 0xffff'ffff, 0, 0, kOnWrite},
    {0x24, 4, "PAIRHIGH", 0x0f0f'0f0f, 0xf0f0'f0f0, 0xffff'ffff, kOnWrite},
    {0x30, 8, "CMD", 0, 0, 0, kOnWrite},
});
static_assert(IsWellFormed(kRows));
constexpr std::size_t kSize = 0x38;

struct ModelByte {
  bool present = false;
  std::size_t row = 0;
  std::uint8_t value = 0;
  std::uint8_t writable = 0;
  std::uint8_t w1c = 0;
};
using Model = std::array<ModelByte, kSize>;

Model NewModel() {
  Model model;
  for (std::size_t r = 0; r < kRows.size(); ++r) {
    for (std::size_t i = 0; i < kRows[r].width; ++i) {
      const auto byte = [i](std::uint64_t value) {
        return static_cast<std::uint8_t>(value >> (8 * i));
      };
      model[kRows[r].offset + i] = {true, r, byte(kRows[r].reset), byte(kRows[r].writable),
                                    byte(kRows[r].w1c)};
    }
  }
  return model;
}

// The header's rule, byte by byte: all bytes in one row, or in two adjacent 4-byte rows for an
// aligned 8-byte access.
bool Accepted(const Model& model, std::uint64_t offset, std::size_t width) {
  if (width != 1 && width != 2 && width != 4 && width != 8) return false;
  if (offset % width != 0 || offset >= kSize || kSize - offset < width) return false;
  bool one_row = true;
  bool four_byte_rows = true;
  for (std::size_t i = 0; i < width; ++i) {
    const ModelByte& byte = model[offset + i];
    if (!byte.present) return false;
    one_row = one_row && byte.row == model[offset].row;
    four_byte_rows = four_byte_rows && kRows[byte.row].width == 4;
  }
  return one_row || (width == 8 && four_byte_rows);
}

class Owner : public RegisterOwner {
 public:
  void OnWrite(const RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override {
    CHECK((row.on_access & kOnWrite) != 0);
    const std::uint64_t changed = old ^ now;
    CHECK((changed & ~(row.writable | row.w1c)) == 0);
    CHECK((now & row.w1c & ~old) == 0);  // a W1C bit is never set by a write
    CHECK((old & row.w1c & written) == (changed & row.w1c));
    ++calls;
  }
  std::uint64_t calls = 0;
};

struct Step {
  std::uint64_t offset;
  std::size_t width;
  bool write;
  std::array<std::byte, 16> data;
};

void Run(RegisterFile& file, Owner& owner, Model& model, const Step& step) {
  const bool accepted = Accepted(model, step.offset, step.width);
  const std::uint64_t refused = file.refused();
  const std::uint64_t calls = owner.calls;
  std::uint64_t expected_calls = 0;
  if (step.write) {
    file.Write(step.offset, std::span(step.data).first(step.width));
    for (std::size_t i = 0; accepted && i < step.width; ++i) {
      ModelByte& byte = model[step.offset + i];
      const auto written = std::to_integer<std::uint8_t>(step.data[i]);
      byte.value = static_cast<std::uint8_t>(
          ((byte.value & ~byte.writable) | (written & byte.writable)) & ~(written & byte.w1c));
      if ((i == 0 || byte.row != model[step.offset + i - 1].row) &&
          (kRows[byte.row].on_access & kOnWrite) != 0)
        ++expected_calls;
    }
  } else {
    std::array<std::byte, 16> data = step.data;
    file.Read(step.offset, std::span(data).first(step.width));
    for (std::size_t i = 0; i < step.width; ++i) {
      CHECK(std::to_integer<std::uint8_t>(data[i]) ==
            (accepted ? model[step.offset + i].value : 0));
    }
    for (std::size_t i = step.width; i < data.size(); ++i) CHECK(data[i] == step.data[i]);
  }
  CHECK(file.refused() == refused + (accepted ? 0U : 1U));
  CHECK(owner.calls == calls + expected_calls);
}

}  // namespace
}  // namespace postern::bus

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::bus;
  Owner owner;
  RegisterFile file(kRows, owner, "fuzz");
  Model model = NewModel();
  std::span<const std::uint8_t> input(data, size);
  while (input.size() >= 11) {
    Step step{};
    // Bit 7: a far offset; bit 6: write; bits 0-4: width, any of 0..16 and the usual ones more
    // often.
    const std::uint8_t head = input[0];
    constexpr std::array<std::size_t, 4> kUsual{1, 2, 4, 8};
    step.width = (head & 0x10) != 0 ? kUsual[head % 4] : head % 16 + 1U;
    step.write = (head & 0x40) != 0;
    step.offset = input[1] % (kSize + 8);
    if ((head & 0x80) != 0) step.offset += std::uint64_t{input[2]} << (8 * (1 + head % 7));
    for (std::size_t i = 0; i < step.data.size(); ++i)
      step.data[i] = static_cast<std::byte>(input[3 + i % 8]);
    Run(file, owner, model, step);
    input = input.subspan(11);
  }
  // What is saved comes back; anything else is refused or loaded whole.
  const std::vector<std::uint64_t> saved = file.Save();
  file.Reset();
  CHECK(file.Load(saved).has_value());
  CHECK(file.Save() == saved);
  std::vector<std::uint64_t> values(input.size());
  for (std::size_t i = 0; i < input.size(); ++i)
    values[i] = std::uint64_t{input[i]} << (input[i] % 64);
  const bool loaded = file.Load(values).has_value();
  CHECK(file.Save() == (loaded ? values : saved));
  return 0;
}
