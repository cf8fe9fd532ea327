// What the probe says: lines to the console, rows of the table, the count at the end.
#pragma once

#include <cstdint>
#include <string_view>

#include "src/probe/text.h"

namespace postern::probe {

// Takes bytes for the virtio console; false once it no longer works.
using ConsoleWriter = bool (*)(std::string_view bytes);

// Lines printed before this are kept and come out first. Without a writer they go to COM1 or to the
// debug port (0xe9), whichever is there.
void OpenOutput(ConsoleWriter writer);
// Keeps what is printed, as before the first OpenOutput.
void SuspendOutput();
void Print(std::string_view line);
inline void Print(const Line& line) {
  Print(line.view());
}

// One row of the table. Starts as passed; the first failure stays.
class Row {
 public:
  explicit Row(std::string_view name) : name_(name) {}
  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;

  // Both return false, so that a check reads `if (!x) return row.Fail("...")`.
  bool Fail(std::string_view reason);
  bool Fail(std::string_view reason, uint64_t number);

  [[nodiscard]] bool failed() const { return !reason_.empty(); }
  // Where the device is; what was done; what was measured.
  Line& address() { return address_; }
  Line& tested() { return tested_; }
  Line& figures() { return figures_; }

  void Finish();

 private:
  std::string_view name_;
  Line address_;
  Line reason_;
  Line tested_;
  Line figures_;
};

void PrintTableHead();
// A device the machine does not have; a failure if the command line requires it.
void ReportAbsent(std::string_view name, bool required);

struct Tally {
  unsigned passed;
  unsigned failed;
  unsigned absent;
};
const Tally& Results();

// An exception is a bug in the probe or a machine that broke its promise: says where, and resets.
[[noreturn]] void ReportException(uint8_t vector, uint64_t error, uint64_t rip, uint64_t address);

// Appends "12.3 MB/s" for `bytes` moved in `cycles`.
void AddRate(Line& line, uint64_t bytes, uint64_t cycles);

}  // namespace postern::probe
