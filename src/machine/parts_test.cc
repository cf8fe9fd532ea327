#include <optional>

#include "src/arch/x86_64/layout.h"
#include "src/machine/exit_report.h"
#include "src/machine/metrics.h"
#include "src/machine/power_ports.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

using Reason = ExitReport::Reason;

std::vector<std::byte> Bytes(std::uint64_t value, std::size_t width) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < width; ++i) bytes.push_back(static_cast<std::byte>(value >> (8 * i)));
  return bytes;
}

TEST_CASE("power ports: reading any of them gives zero") {
  PowerPorts ports([](Reason) { FAIL("a read ended the machine"); });
  for (std::uint64_t offset = 0; offset < x86_64::kPowerPortsSize; ++offset) {
    std::vector<std::byte> data(1, std::byte{0xff});
    ports.Read(offset, data);
    CHECK(data[0] == std::byte{0});
  }
}

TEST_CASE(
    "power ports: of all one-byte values, S5 with SLP_EN powers off, the reset value resets, and "
    "the rest does nothing") {
  for (std::uint64_t offset = 0; offset < x86_64::kPowerPortsSize; ++offset) {
    for (unsigned value = 0; value < 256; ++value) {
      CAPTURE(offset);
      CAPTURE(value);
      std::optional<Reason> end;
      PowerPorts ports([&](Reason reason) { end = reason; });
      ports.Write(offset, Bytes(value, 1));
      // ACPI 6.5 4.8.3.7: SLP_TYP is bits 4:2 and SLP_EN bit 5; other bits are reserved and
      // ignored.
      const bool off =
          offset == 0 && (value & 0x20) != 0 && ((value >> 2) & 7) == x86_64::kSleepTypeS5;
      const bool reset = offset == 2 && value == x86_64::kResetValue;
      CHECK(end.has_value() == (off || reset));
      if (off) CHECK(*end == Reason::kPowerOff);
      if (reset) CHECK(*end == Reason::kReset);
    }
  }
}

TEST_CASE("power ports: wide writes are ignored and counted") {
  PowerPorts ports([](Reason) { FAIL("a wide write ended the machine"); });
  for (const std::size_t width : {2u, 4u})
    ports.Write(0, Bytes(std::uint64_t{0x04030201} * x86_64::kPowerOffValue, width));
  CHECK(ports.ignored() == 2);
}

TEST_CASE("exit codes: one for each way a machine ends") {
  CHECK(ExitReport{Reason::kPowerOff, {}}.exit_code() == 0);
  CHECK(ExitReport{Reason::kStopped, {}}.exit_code() == 0);
  CHECK(ExitReport{Reason::kHostError, {}}.exit_code() == 1);
  CHECK(ExitReport{Reason::kReset, {}}.exit_code() == 3);
  CHECK(ExitReport{Reason::kTripleFault, {}}.exit_code() == 4);
  CHECK(ExitReport{Reason::kInternalError, {}}.exit_code() == 4);
}

TEST_CASE("metrics: groups nest and commas stand between members only") {
  MetricsWriter writer;
  writer.Value("a", 1);
  writer.Group("b", [](MetricsWriter& w) {
    w.Group("c", [](MetricsWriter&) {});
    w.Value("d", ~std::uint64_t{0});
  });
  writer.Counters([](CounterSink& sink) { sink.Add("e", 0); });
  CHECK(writer.Finish() == "{\"a\":1,\"b\":{\"c\":{},\"d\":18446744073709551615},\"e\":0}\n");
}

}  // namespace
}  // namespace postern
