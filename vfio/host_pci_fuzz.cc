// Addresses, `resource` files, modaliases and state files of any content.

#include "vfio/host_pci.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/base/check.h"
#include "vfio/bind.h"

namespace postern::vfio {
namespace {

void Address(std::string_view text) {
  const Outcome<HostBdf> bdf = ParseHostBdf(text);
  if (!bdf) {
    CHECK(!bdf.error().cause.empty() && !bdf.error().next_step.empty());
    return;
  }
  CHECK(bdf->device < 32 && bdf->function < 8);
  CHECK(ParseHostBdf(ToString(*bdf)) == *bdf);
}

void Resource(std::string_view text) {
  const std::vector<HostBar> bars = ParseResource(text);
  CHECK(bars.size() <= kRomIndex + 1);
  for (std::size_t i = 0; i < bars.size(); ++i) {
    CHECK(bars[i].index <= kRomIndex && bars[i].size != 0);
    CHECK(bars[i].address + (bars[i].size - 1) >= bars[i].address);
    CHECK(i == 0 || bars[i - 1].index < bars[i].index);
  }
}

void Modalias(std::string_view text) {
  if (!IsPciModalias(text)) return;
  CHECK(text.size() <= 256);
  CHECK(text.find_first_of(std::string_view("*?[]\\ \n\0", 8)) == std::string_view::npos);
}

void Record(std::string_view text) {
  const Result<BindRecord> record = ParseBindRecord(text);
  if (!record) return;
  CHECK(record->driver.find('/') == std::string::npos && record->driver != "..");
  CHECK(ParseBindRecord(FormatBindRecord(*record)) == *record);
}

}  // namespace
}  // namespace postern::vfio

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::vfio;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 8) {
    case 0:
      Address(text);
      break;
    case 1:
      // Random bytes are no addresses; digits of a random number are.
      Address(ToString({static_cast<std::uint32_t>(size), data[size - 1],
                        static_cast<std::uint8_t>(data[0] >> 3),
                        static_cast<std::uint8_t>(data[size / 2] & 7)}));
      break;
    case 2:
      Resource(text);
      break;
    case 3: {
      // Bytes to hexadecimal digits, spaces and line ends, so that lines come about.
      constexpr std::string_view kAlphabet = "0123456789abcdef0f  \n x0x";
      std::string lines;
      for (const char c : text) lines += kAlphabet[static_cast<std::uint8_t>(c) % kAlphabet.size()];
      Resource(lines);
      break;
    }
    case 4:
      Modalias(text);
      break;
    case 5:
      Modalias("pci:" + std::string(text));
      break;
    case 6:
      Record(text);
      break;
    default:
      Record("driver=" + std::string(text) + "\nmodule=\ndriver_override=\nbound=vfio-pci\n");
      break;
  }
  return 0;
}
