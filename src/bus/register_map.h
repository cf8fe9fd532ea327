#pragma once

// RegisterMap and RegisterFile: a block of trapped registers as a table, one row per row of its
// specification.
//
//   constexpr auto kRegs = std::to_array<RegisterRow>({
//       // offset width name      writable    w1c   reset  on access
//       {0x00, 4, "MagicValue",   0,          0,    0x74726976, kNone},
//       {0x60, 4, "InterruptStatus", 0,       0,    0,     kNone},
//       {0x70, 4, "Status",       0xff,       0,    0,     kOnWrite},
//   });
//   static_assert(IsWellFormed(kRegs));
//
// RegisterFile holds the values and does what every block does alike: checks the width, masks
// read-only and reserved bits, applies write-1-to-clear, stores, traces by name. The owner's one
// switch handles the rows that have a side effect.
//
// Accepted accesses: inside one row, naturally aligned, 1, 2, 4 or 8 bytes and no wider than the
// row (a narrower write leaves the other bytes alone). An 8-byte access may also cover two adjacent
// 4-byte rows (done as two 4-byte accesses, low first). Everything else reads 0 and ignores the
// write, and is counted.
//
// Threads: not synchronised: the bus holds the device's lock.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/counters.h"
#include "src/base/result.h"

namespace postern::bus {

enum OnAccess : std::uint8_t {
  kNone = 0,
  kOnWrite = 1,  // RegisterOwner::OnWrite after the value was stored
  kOnRead = 2,   // RegisterOwner::OnRead gives the value instead of the store
  kOnBoth = 3,
};

struct RegisterRow {
  std::uint32_t offset;
  std::uint8_t width;  // bytes: 1, 2, 4 or 8
  std::string_view name;
  std::uint64_t writable;  // bits a write stores
  std::uint64_t w1c;       // bits a written 1 clears
  std::uint64_t reset;
  OnAccess on_access;
};

// Sorted by offset, naturally aligned, disjoint, masks fit the width, writable and w1c disjoint.
[[nodiscard]] constexpr bool IsWellFormed(std::span<const RegisterRow> rows) {
  std::uint64_t next = 0;
  for (const RegisterRow& row : rows) {
    if (row.width != 1 && row.width != 2 && row.width != 4 && row.width != 8) return false;
    if (row.offset % row.width != 0 || row.offset < next) return false;
    const std::uint64_t mask =
        row.width == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * row.width)) - 1;
    if (((row.writable | row.w1c | row.reset) & ~mask) != 0 || (row.writable & row.w1c) != 0)
      return false;
    next = std::uint64_t{row.offset} + row.width;
  }
  return true;
}

class RegisterOwner {
 public:
  virtual ~RegisterOwner() = default;
  // `old` and `now` are the whole register before and after; what the guest wrote to read-only and
  // reserved bits is gone. For a write whose written bits matter beyond what was stored (a
  // command), `written` is the raw value at the row's width; bytes that a narrower write left alone
  // are 0 in it.
  virtual void OnWrite(const RegisterRow& row, std::uint64_t old, std::uint64_t now,
                       std::uint64_t written) = 0;
  // What the guest reads; bits beyond the row's width are dropped. The store keeps its value.
  virtual std::uint64_t OnRead(const RegisterRow& row, std::uint64_t stored) {
    (void)row;
    return stored;
  }
};

class RegisterFile {
 public:
  // `rows` is a constexpr table (kept by reference). `trace_name` names the block in traces.
  RegisterFile(std::span<const RegisterRow> rows, RegisterOwner& owner,
               std::string_view trace_name);

  void Read(std::uint64_t offset, std::span<std::byte> data);
  void Write(std::uint64_t offset, std::span<const std::byte> data);

  // The device's own side: no masks but the row's width, no callback. `offset` must be a row's
  // (CHECK: our constant, not the guest's).
  [[nodiscard]] std::uint64_t Get(std::uint32_t offset) const;
  void Set(std::uint32_t offset, std::uint64_t value);
  void Reset();

  // Values in row order, for saved state. Load refuses another length and values with bits that fit
  // no row.
  [[nodiscard]] std::vector<std::uint64_t> Save() const { return values_; }
  [[nodiscard]] Result<void> Load(std::span<const std::uint64_t> values);

  // Accesses refused so far (odd width, gap, straddle), and how often row `index` was accessed.
  // From any thread.
  [[nodiscard]] std::uint64_t refused() const { return refused_.Get(); }
  [[nodiscard]] std::uint64_t accesses(std::size_t index) const;
  [[nodiscard]] std::span<const RegisterRow> rows() const { return rows_; }

 private:
  // The row that takes a whole access, or null.
  [[nodiscard]] const RegisterRow* Find(std::uint64_t offset, std::size_t width) const;
  [[nodiscard]] std::size_t IndexOf(std::uint32_t offset) const;
  // The low one of the two adjacent 4-byte rows that an 8-byte access covers, or null.
  [[nodiscard]] const RegisterRow* FindPair(std::uint64_t offset, std::size_t width) const;
  void ReadRow(const RegisterRow& row, std::uint64_t offset, std::span<std::byte> data);
  void WriteRow(const RegisterRow& row, std::uint64_t offset, std::span<const std::byte> data);
  std::span<const RegisterRow> rows_;
  RegisterOwner& owner_;
  std::string_view trace_name_;
  std::vector<std::uint64_t> values_;
  std::vector<Counter> accesses_;
  Counter refused_;
};

}  // namespace postern::bus
