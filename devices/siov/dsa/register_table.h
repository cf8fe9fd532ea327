#pragma once

// DsaRegisterTable: the rows of one virtual DSA: the fixed ones with its capabilities as reset
// values, and an entry of MSIXPERM, GRPCFG and WQCFG for each vector, group and queue.
//
//   const DsaRegisterTable table(shape);
//   bus::RegisterFile file(table.rows(), owner, "dsa0");
//
// Ownership: owns rows and their names, which stay where they are. Threads: constant.

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "devices/siov/dsa/shape.h"
#include "src/bus/register_map.h"

namespace postern::dsa {

class DsaRegisterTable {
 public:
  explicit DsaRegisterTable(const DsaShape& shape);
  DsaRegisterTable(const DsaRegisterTable&) = delete;
  DsaRegisterTable& operator=(const DsaRegisterTable&) = delete;

  [[nodiscard]] std::span<const bus::RegisterRow> rows() const { return rows_; }

 private:
  void AddFixed(const DsaShape& shape);
  void AddGroup(const DsaShape& shape, std::uint32_t group);
  void AddQueue(const DsaShape& shape, std::uint32_t queue);
  void Add(bus::RegisterRow row, std::uint32_t base, std::string_view table, std::uint32_t index);

  std::vector<bus::RegisterRow> rows_;
  std::deque<std::string> names_;  // rows have views into them: a deque does not move its elements
};

}  // namespace postern::dsa
