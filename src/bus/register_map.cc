#include "src/bus/register_map.h"

#include <algorithm>

#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::bus {
namespace {

std::uint64_t MaskOf(std::size_t width) {
  return width >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * width)) - 1;
}

// Registers are little-endian whatever the host is.
std::uint64_t FromBytes(std::span<const std::byte> data) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < data.size(); ++i)
    value |= std::to_integer<std::uint64_t>(data[i]) << (8 * i);
  return value;
}

void ToBytes(std::uint64_t value, std::span<std::byte> data) {
  for (std::size_t i = 0; i < data.size(); ++i)
    data[i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
}

}  // namespace

RegisterFile::RegisterFile(std::span<const RegisterRow> rows, RegisterOwner& owner,
                           std::string_view trace_name)
    : rows_(rows),
      owner_(owner),
      trace_name_(trace_name),
      values_(rows.size()),
      accesses_(rows.size()) {
  CHECK(IsWellFormed(rows));
  Reset();
}

const RegisterRow* RegisterFile::Find(std::uint64_t offset, std::size_t width) const {
  if (width != 1 && width != 2 && width != 4 && width != 8) return nullptr;
  if (offset % width != 0) return nullptr;
  const auto after =
      std::upper_bound(rows_.begin(), rows_.end(), offset,
                       [](std::uint64_t o, const RegisterRow& row) { return o < row.offset; });
  if (after == rows_.begin()) return nullptr;
  const RegisterRow& row = *std::prev(after);
  // Natural alignment on both sides: an access no wider than the row that begins in it also ends in
  // it.
  return width <= row.width && offset - row.offset < row.width ? &row : nullptr;
}

const RegisterRow* RegisterFile::FindPair(std::uint64_t offset, std::size_t width) const {
  if (width != 8 || offset % 8 != 0) return nullptr;
  const RegisterRow* low = Find(offset, 4);
  // Rows are sorted and disjoint: the one above, if there is one, is the next.
  if (low == nullptr || low->width != 4 || low == &rows_.back()) return nullptr;
  const RegisterRow* high = low + 1;
  return high->width == 4 && high->offset == std::uint64_t{low->offset} + 4 ? low : nullptr;
}

void RegisterFile::Read(std::uint64_t offset, std::span<std::byte> data) {
  if (const RegisterRow* row = Find(offset, data.size()); row != nullptr) {
    ReadRow(*row, offset, data);
  } else if (const RegisterRow* low = FindPair(offset, data.size()); low != nullptr) {
    ReadRow(low[0], offset, data.first(4));
    ReadRow(low[1], offset + 4, data.subspan(4));
  } else {
    refused_.Add();
    std::fill(data.begin(), data.end(), std::byte{0});
    LOG_TRACE("bus", "{}: read of {} bytes at {:#x} refused", trace_name_, data.size(), offset);
  }
}

void RegisterFile::Write(std::uint64_t offset, std::span<const std::byte> data) {
  if (const RegisterRow* row = Find(offset, data.size()); row != nullptr) {
    WriteRow(*row, offset, data);
  } else if (const RegisterRow* low = FindPair(offset, data.size()); low != nullptr) {
    WriteRow(low[0], offset, data.first(4));
    WriteRow(low[1], offset + 4, data.subspan(4));
  } else {
    refused_.Add();
    LOG_TRACE("bus", "{}: write of {} bytes at {:#x} refused", trace_name_, data.size(), offset);
  }
}

void RegisterFile::ReadRow(const RegisterRow& row, std::uint64_t offset,
                           std::span<std::byte> data) {
  const auto index = static_cast<std::size_t>(&row - rows_.data());
  accesses_[index].Add();
  std::uint64_t value = values_[index];
  if ((row.on_access & kOnRead) != 0) value = owner_.OnRead(row, value) & MaskOf(row.width);
  LOG_TRACE("bus", "{}.{} reads {:#x}", trace_name_, row.name, value);
  ToBytes(value >> (8 * (offset - row.offset)), data);
}

void RegisterFile::WriteRow(const RegisterRow& row, std::uint64_t offset,
                            std::span<const std::byte> data) {
  const auto index = static_cast<std::size_t>(&row - rows_.data());
  accesses_[index].Add();
  const std::uint64_t shift = 8 * (offset - row.offset);
  const std::uint64_t lanes = MaskOf(data.size()) << shift;  // the bytes this access touches
  const std::uint64_t written = FromBytes(data) << shift;
  const std::uint64_t old = values_[index];
  const std::uint64_t stored = row.writable & lanes;
  const std::uint64_t now = ((old & ~stored) | (written & stored)) & ~(written & row.w1c);
  values_[index] = now;
  LOG_TRACE("bus", "{}.{} written {:#x}: {:#x} -> {:#x}", trace_name_, row.name, written, old, now);
  if ((row.on_access & kOnWrite) != 0) owner_.OnWrite(row, old, now, written);
}

std::size_t RegisterFile::IndexOf(std::uint32_t offset) const {
  const auto it =
      std::lower_bound(rows_.begin(), rows_.end(), offset,
                       [](const RegisterRow& row, std::uint32_t o) { return row.offset < o; });
  CHECK(it != rows_.end() && it->offset == offset);
  return static_cast<std::size_t>(it - rows_.begin());
}

std::uint64_t RegisterFile::Get(std::uint32_t offset) const {
  return values_[IndexOf(offset)];
}

void RegisterFile::Set(std::uint32_t offset, std::uint64_t value) {
  const std::size_t index = IndexOf(offset);
  values_[index] = value & MaskOf(rows_[index].width);
}

void RegisterFile::Reset() {
  for (std::size_t i = 0; i < rows_.size(); ++i) values_[i] = rows_[i].reset;
}

Result<void> RegisterFile::Load(std::span<const std::uint64_t> values) {
  if (values.size() != rows_.size()) return Err(Errc::kBadFormat, "register values");
  for (std::size_t i = 0; i < values.size(); ++i) {
    if ((values[i] & ~MaskOf(rows_[i].width)) != 0) return Err(Errc::kBadFormat, "register value");
  }
  values_.assign(values.begin(), values.end());
  return {};
}

std::uint64_t RegisterFile::accesses(std::size_t index) const {
  CHECK(index < accesses_.size());
  return accesses_[index].Get();
}

}  // namespace postern::bus
