#include "devices/siov/dsa/registers.h"

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/dsa_rig.h"
#include "devices/siov/dsa/register_table.h"
#include "devices/siov/dsa/shape.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

struct Expected {
  std::string_view name;
  std::uint64_t value;
};

constexpr DsaOptions kRo{.profile = DsaProfile::kReadOnly};
constexpr DsaOptions kCfg{.profile = DsaProfile::kConfigurable};

// Rows that are not named read 0.
void CheckResetValues(DsaRig& rig, const std::vector<Expected>& expected) {
  std::set<std::string_view> named;
  for (const Expected& row : expected) {
    CAPTURE(row.name);
    const bus::RegisterRow& found = rig.Row(row.name);
    CHECK(rig.Read(found.offset, found.width) == row.value);
    named.insert(row.name);
  }
  for (const bus::RegisterRow& row : rig.dsa().rows()) {
    if (named.contains(row.name)) continue;
    CAPTURE(row.name);
    CHECK(rig.Read(row.offset, row.width) == 0);
  }
  CHECK(rig.file().refused() == 0);
}

std::vector<Expected> RoValues() {
  return {{"VERSION", 0x100},
          {"GENCAP", 0x015f2016},
          {"WQCAP", 0x000a'0000'0001'0020},
          {"GRPCAP", 1},
          {"ENGCAP", 1},
          {"OPCAP0", 0x1'003f'03ff},
          {"OFFSETS0", 0x0000'0004'0008'0006},
          {"CMDCAP", 0x1ffe},
          {"GRPCFG0.WQS0", 1},
          {"GRPCFG0.ENGINES", 1},
          {"WQCFG0.0", 32},
          {"WQCFG0.2", 0xa1},
          {"WQCFG0.3", 0x15f},
          {"WQCFG0.6", 0x2000'0000}};
}

std::vector<Expected> CfgValues() {
  return {{"VERSION", 0x100},
          {"GENCAP", 0x815f2006},
          {"WQCAP", 0x000a'0000'0008'0080},
          {"GRPCAP", 4},
          {"ENGCAP", 4},
          {"OPCAP0", 0x1'003f'03ff},
          {"OFFSETS0", 0x0000'0004'0008'0006}};
}

}  // namespace

TEST_CASE("dsa-ro: every row reads its reset value") {
  DsaRig rig(kRo);
  CHECK(rig.dsa().name() == "dsa-ro");
  CheckResetValues(rig, RoValues());
}

TEST_CASE("dsa-cfg: every row reads its reset value") {
  DsaRig rig(kCfg);
  CHECK(rig.dsa().name() == "dsa-cfg");
  CheckResetValues(rig, CfgValues());
}

TEST_CASE("dsa: options move the capabilities and nothing else") {
  SUBCASE("no event log") {
    DsaRig rig({.profile = DsaProfile::kConfigurable, .event_log = false});
    CHECK(rig.Read64(dsa_regs::kGencap) == 0x815f0006);
  }
  SUBCASE("handles") {
    DsaRig rig({.profile = DsaProfile::kConfigurable, .handles = true});
    CHECK(rig.Read64(dsa_regs::kGencap) == 0x815f2016);
    CHECK(rig.Read64(dsa_regs::kCmdcap) == 0x7ffe);
    CHECK(rig.Read32(dsa_regs::kCmdcap) == 0x7ffe);  // Linux reads 32 bits of it
  }
  SUBCASE("operations of each queue") {
    DsaRig rig({.profile = DsaProfile::kConfigurable, .operations_config = true});
    CHECK(rig.Read64(dsa_regs::kWqcap) == 0x004a'0000'0108'0080);
    CHECK(rig.Row("WQCFG3.OPCFG0").offset == 0x800 + 3 * 64 + 32);
    CHECK(rig.Read64(0x800 + 3 * 64 + 32) == 0x1'003f'03ff);
  }
  SUBCASE("several queues of a read-only device are in its one group") {
    DsaRig rig({.wqs = 3, .wq_size = 20, .engines = 4, .mode_support = false});
    CHECK(rig.Read64(dsa_regs::kWqcap) == 0x000a'0000'0003'003c);
    CHECK(rig.Read64(0x600) == 7);
    CHECK(rig.Read64(0x600 + 32) == 0xf);
    CHECK(rig.Read32(0x800 + 2 * 32) == 20);
    CHECK(rig.Read32(0x800 + 2 * 32 + 24) == 0);
  }
  SUBCASE("no batches") {
    siov::BackendCaps caps = ScriptedBackend::DefaultCaps();
    caps.max_batch = 0;
    DsaRig rig(kCfg, caps);
    CHECK(rig.Read64(dsa_regs::kGencap) == 0x801f2006);
    CHECK(rig.Read64(dsa_regs::kOpcap) == 0x1'003f'03fd);
  }
  SUBCASE("less than the fields can say") {
    siov::BackendCaps caps = ScriptedBackend::DefaultCaps();
    caps.max_transfer = std::uint64_t{1} << 40;
    caps.max_batch = 1U << 20;
    DsaRig rig(kCfg, caps);
    CHECK(rig.Read64(dsa_regs::kGencap) == 0x81ff2006);
  }
}

TEST_CASE("dsa: a layout as the specification's example has it") {
  DsaRig rig({.wqs = 2, .wq_size = 16});
  const siov::VdevLayout& layout = rig.dsa().layout();
  CHECK(layout.identity.vendor == 0x8086);
  CHECK(layout.identity.device == 0x0b25);
  CHECK(layout.identity.class_code == 0x088000);
  CHECK(layout.vectors == 3);
  CHECK(layout.queues == 2);
  CHECK(layout.pages_per_queue == 4);
  CHECK(layout.portal_pages == 3);
  CHECK(layout.msix_table_offset == 0x4000);
  CHECK(layout.msix_pba_offset == 0x5000);
  CHECK(rig.dsa().rows().back().offset < layout.msix_table_offset);
}

TEST_CASE("dsa: what is not writable stays, whatever is written at whatever width") {
  for (const DsaOptions& options : {kRo, kCfg}) {
    DsaRig rig(options);
    for (const bus::RegisterRow& row : rig.dsa().rows()) {
      if (row.offset == dsa_regs::kCmd) continue;
      CAPTURE(row.name);
      for (const std::size_t width : {1U, 2U, 4U, 8U}) {
        if (width > row.width) continue;
        for (std::uint32_t at = 0; at < row.width; at += static_cast<std::uint32_t>(width)) {
          rig.Write(row.offset + at, width, 0x0403'0201'8070'6050);
          rig.Write(row.offset + at, width, ~std::uint64_t{0});
        }
      }
      CHECK(((rig.file().Get(row.offset) ^ row.reset) & ~row.writable) == 0);
      CHECK((rig.file().Get(row.offset) & row.writable) == row.writable);
    }
  }
}

TEST_CASE("dsa: reserved bits of what is writable") {
  DsaRig rig(kCfg);
  const std::array<Expected, 15> masks{{{"GENCFG", 0x3000},
                                        {"GENCTRL", 0x7},
                                        {"GENSTS", 0},
                                        {"EVLCFG0", 0xffff'ffff'ffff'f003},
                                        {"EVLCFG1", 0xf'ffff'ffff},
                                        {"EVLSTATUS", 0xffff},
                                        {"MSIXPERM8", 0xffff'f00c},
                                        {"GRPCFG3.WQS0", ~std::uint64_t{0}},
                                        {"GRPCFG3.FLAGS", 0xff33'0000'00bf},
                                        {"WQCFG7.0", 0xffff},
                                        {"WQCFG7.1", 0xffff},
                                        {"WQCFG7.2", 0x3fff'ffff},
                                        {"WQCFG7.3", 0x1ff},
                                        {"WQCFG7.6", 0},
                                        {"WQCFG7.7", 0}}};
  for (const Expected& mask : masks) {
    CAPTURE(mask.name);
    const bus::RegisterRow& row = rig.Row(mask.name);
    rig.Write(row.offset, row.width, ~std::uint64_t{0});
    CHECK(rig.Read(row.offset, row.width) == mask.value);
  }
}

TEST_CASE("dsa-ro: what a fixed configuration leaves to the guest") {
  const std::array<Expected, 5> chosen{{{"WQCFG0.0", 32},
                                        {"WQCFG0.1", 0xffff},
                                        {"WQCFG0.2", 0x3fff'ffa1},
                                        {"WQCFG0.3", 0x15f},
                                        {"WQCFG0.4", 0x1'ffff}}};
  DsaRig rig({.operations_config = true});
  for (const Expected& row : chosen) {
    CAPTURE(row.name);
    rig.Write(rig.Row(row.name).offset, 4, 0xffff'ffff);
    CHECK(rig.Read32(rig.Row(row.name).offset) == row.value);
  }
  rig.Write64(rig.Row("WQCFG0.OPCFG0").offset, 0);
  CHECK(rig.Read64(rig.Row("WQCFG0.OPCFG0").offset) == 0x1'003f'03ff);
  rig.Write64(rig.Row("GRPCFG0.WQS0").offset, 0);
  CHECK(rig.Read64(rig.Row("GRPCFG0.WQS0").offset) == 1);
  rig.Write32(dsa_regs::kGencfg, 0xffff'ffff);
  CHECK(rig.Read32(dsa_regs::kGencfg) == 0x2000);

  DsaRig fixed({.mode_support = false});
  for (std::uint32_t offset = 0x800; offset < 0x820; offset += 4) {
    const std::uint32_t before = fixed.Read32(offset);
    fixed.Write32(offset, ~before);
    CHECK(fixed.Read32(offset) == before);
  }
}

TEST_CASE("dsa: without an event log its registers are reserved") {
  DsaRig rig({.profile = DsaProfile::kConfigurable, .event_log = false});
  for (const std::string_view name : {"EVLCFG0", "EVLCFG1", "EVLSTATUS"}) {
    rig.Write64(rig.Row(name).offset, ~std::uint64_t{0});
    CHECK(rig.Read64(rig.Row(name).offset) == 0);
  }
  rig.Write32(dsa_regs::kGencfg, 0xffff'ffff);
  CHECK(rig.Read32(dsa_regs::kGencfg) == 0x1000);
}

TEST_CASE("dsa: causes and errors are cleared by writing 1") {
  DsaRig rig(kCfg);
  rig.file().Set(dsa_regs::kIntcause, 0x8000'003f);
  rig.Write32(dsa_regs::kIntcause, 0);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x8000'003f);
  rig.Write32(dsa_regs::kIntcause, 0x8000'0024);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x1b);
  rig.Write(dsa_regs::kIntcause, 1, 0x03);
  CHECK(rig.Read32(dsa_regs::kIntcause) == 0x18);
  rig.file().Set(dsa_regs::kEvlstatus, std::uint64_t{1} << 62);
  rig.Write32(dsa_regs::kEvlstatus + 4, 1U << 30);  // as Linux does
  CHECK(rig.Read64(dsa_regs::kEvlstatus) == 0);
}

TEST_CASE("dsa: odd widths, gaps and straddling accesses read 0, write nothing and are counted") {
  DsaRig rig(kCfg);
  std::uint64_t refused = 0;
  for (const std::size_t width : {0U, 3U, 5U, 6U, 7U, 9U, 16U}) {
    CAPTURE(width);
    CHECK(rig.Read(dsa_regs::kGencap, width) == 0);
    rig.Write(dsa_regs::kGenctrl, width, ~std::uint64_t{0});
    CHECK(rig.file().refused() == (refused += 2));
  }
  for (const std::uint64_t offset : {0x04U, 0x08U, 0x18U, 0x28U, 0x70U, 0x84U, 0xa4U, 0xf8U, 0x110U,
                                     0x404U, 0x448U, 0x630U, 0x700U, 0x900U, 0x3ffcU}) {
    CAPTURE(offset);
    CHECK(rig.Read32(offset) == 0);
    rig.Write32(offset, 0xffff'ffff);
    CHECK(rig.file().refused() == (refused += 2));
  }
  rig.Write(dsa_regs::kGenctrl + 1, 2, 0xffff);
  rig.Write64(dsa_regs::kGenctrl + 4, ~std::uint64_t{0});
  CHECK(rig.file().refused() == refused + 2);
  CHECK(rig.Read32(dsa_regs::kGenctrl) == 0);
  // 8 bytes over two dwords of WQCFG are two accesses.
  rig.Write64(0x800, 0x0000'0007'0000'0010);
  CHECK(rig.Read32(0x800) == 0x10);
  CHECK(rig.Read32(0x804) == 7);
  CHECK(rig.Read64(0x800) == 0x0000'0007'0000'0010);
  CHECK(rig.file().refused() == refused + 2);
}

TEST_CASE("dsa: options are checked against the back end and name what is wrong") {
  siov::BackendCaps caps = ScriptedBackend::DefaultCaps();
  const auto refusal = [&caps](const DsaOptions& options) -> std::string {
    const auto shape = ShapeOf(options, caps);
    if (shape.has_value()) return "";
    CHECK(shape.error().code == Errc::kInvalidArgument);
    return std::string(shape.error().op).substr(0, std::string(shape.error().op).find(':'));
  };
  const auto cfg = [](DsaOptions options) {
    options.profile = DsaProfile::kConfigurable;
    return options;
  };
  CHECK(refusal({.wqs = 8}) == "");
  CHECK(refusal({.wqs = 9}) == "wqs");
  CHECK(refusal({.wqs = 0xffff'ffff}) == "wqs");
  CHECK(refusal({.wq_size = 128}) == "");
  CHECK(refusal({.wq_size = 129}) == "wq-size");
  CHECK(refusal({.wqs = 2, .wq_size = 65}) == "wq-size");
  CHECK(refusal({.wqs = 8, .wq_size = 0xffff'ffff}) == "wq-size");
  CHECK(refusal({.entries = 64}) == "entries");
  CHECK(refusal({.groups = 2}) == "groups");
  CHECK(refusal({.engines = 5}) == "engines");
  CHECK(refusal(cfg({.entries = 128})) == "");
  CHECK(refusal(cfg({.entries = 129})) == "entries");
  CHECK(refusal(cfg({.entries = 7})) == "entries");
  CHECK(refusal(cfg({.wq_size = 129})) == "wq-size");
  CHECK(refusal(cfg({.groups = 8})) == "");
  CHECK(refusal(cfg({.groups = 9})) == "groups");
  CHECK(refusal(cfg({.engines = 65})) == "engines");
  caps.queues = 2;
  CHECK(refusal({.wqs = 3}) == "wqs");
  CHECK(ShapeOf(kCfg, caps)->wqs == 2);
  CHECK(ShapeOf(kCfg, caps)->entries == 126);
  caps.queues = 1;
  CHECK(ShapeOf(kCfg, caps)->entries == 63);
  CHECK(ShapeOf(kCfg, caps)->wq_size == 63);
  caps.engines = 1;
  CHECK(ShapeOf(kCfg, caps)->engines == 1);
  caps.entries = 10;
  CHECK(ShapeOf(kRo, caps)->wq_size == 10);
  caps.named_handles = true;
  CHECK(ShapeOf(kRo, caps)->handles);
  for (const std::uint64_t transfer : {std::uint64_t{0}, std::uint64_t{3}}) {
    caps.max_transfer = transfer;
    CHECK(refusal(kRo) == "back end");
  }
  caps = ScriptedBackend::DefaultCaps();
  for (const std::uint32_t batch : {1U, 3U, 1023U}) {
    caps.max_batch = batch;
    CHECK(refusal(kRo) == "back end");
  }
  caps = ScriptedBackend::DefaultCaps();
  caps.queues = 65;
  CHECK(refusal(kRo) == "back end");
}

TEST_CASE("dsa: the trapped rows of both profiles") {
  std::array<std::size_t, 2> rows{};
  std::array<std::size_t, 2> active{};
  for (const DsaOptions& options : {kRo, kCfg}) {
    DsaRig rig(options);
    const std::size_t at = options.profile == DsaProfile::kReadOnly ? 0 : 1;
    rows[at] = rig.dsa().rows().size();
    for (const bus::RegisterRow& row : rig.dsa().rows()) active[at] += row.on_access != 0 ? 1 : 0;
    MESSAGE(rig.dsa().name(), ": ", rows[at], " trapped rows, ", active[at],
            " of them with a side effect");
  }
  const std::size_t templates = dsa_regs::kFixedRows.size() + dsa_regs::kMsixpermRows.size() +
                                dsa_regs::kGrpcfgRows.size() + dsa_regs::kWqcfgRows.size();
  MESSAGE("rows of the table: ", templates, ", and ", dsa_regs::kWqOperationsRows.size(),
          " for the operations of a queue");
  CHECK(templates == 30 + 1 + 6 + 8);
  CHECK(rows[0] == 30 + 2 + 6 + 8);
  CHECK(rows[1] == 30 + 9 + 4 * 6 + 8 * 8);
}

}  // namespace postern::dsa
