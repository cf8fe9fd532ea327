#include "vfio/config_plan.h"

#include <array>
#include <utility>
#include <vector>

#include "vfio/fake_host_device.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

struct Planned {
  explicit Planned(const FakeHostDevice& device)
      : plan(PlanConfig(device.config, device.device, ShapeBars(device.config, device.device))
                 .value()) {}
  // The chain as a guest walks it: the shadow alone has the links.
  [[nodiscard]] std::vector<std::pair<int, int>> Chain() const {
    std::vector<std::pair<int, int>> list;
    std::uint8_t at = plan.image.values[0x34];
    while (at != 0 && list.size() < 64) {
      list.emplace_back(plan.image.values[at], at);
      at = plan.image.values[at + 1U];
    }
    return list;
  }
  [[nodiscard]] std::vector<std::pair<int, int>> Extended() const {
    std::vector<std::pair<int, int>> list;
    std::uint32_t at = 0x100;
    while (at != 0 && list.size() < 1024) {
      const std::uint32_t header = Dword(at);
      if (header == 0) break;
      list.emplace_back(header & 0xffff, at);
      at = header >> 20;
    }
    return list;
  }
  [[nodiscard]] std::uint32_t Dword(std::uint32_t at) const {
    std::uint32_t value = 0;
    for (std::uint32_t i = 4; i-- > 0;) value = value << 8 | plan.image.values[at + i];
    return value;
  }
  ConfigPlan plan;
};

using List = std::vector<std::pair<int, int>>;

TEST_CASE("config plan: identity is ours to answer, the multifunction bit is cleared") {
  FakeHostDevice device;
  const Planned p(device);
  CHECK(p.Dword(0) == 0x10d38086);
  CHECK(p.Dword(8) == 0x02000003);
  CHECK(p.Dword(0x2c) == 0xa01f8086);
  CHECK(p.plan.image.values[pci::kHeaderType] == 0);
  for (std::uint32_t at = 0; at < pci::kHeaderEnd; ++at) {
    CAPTURE(at);
    const bool status = at == 6 || at == 7;
    CHECK((p.plan.emulated[at] == 0xff) == !status);
    CHECK((p.plan.forwarded[at] == 0) == (at != 7));
  }
  CHECK(p.plan.emulated[6] == 0x10);
  CHECK(p.plan.forwarded[7] == 0xf9);
  CHECK(p.Dword(pci::kCommand) == 0x00100000);
  CHECK(p.Dword(pci::kBar0) == 0);
}

TEST_CASE("config plan: what has no type 0 header is refused") {
  FakeHostDevice device;
  const auto code = [&] { return PlanConfig(device.config, device.device, {}).error().code; };
  device.Put<std::uint8_t>(pci::kHeaderType, 1);
  CHECK(code() == Errc::kUnsupported);
  device.Put<std::uint8_t>(pci::kHeaderType, 0x82);
  CHECK(code() == Errc::kUnsupported);
  device.config.assign(pci::kConfigEnd, 0xff);
  CHECK(code() == Errc::kNotFound);
  for (const std::size_t size : {0U, 64U, 255U, 257U, 4095U, 4097U}) {
    device.config.assign(size, 0);
    CHECK(code() == Errc::kInvalidArgument);
  }
  device.config.assign(256, 0);
  CHECK(PlanConfig(device.config, device.device, {}).has_value());
}

TEST_CASE("config plan: an Express endpoint becomes an integrated one without a link") {
  FakeHostDevice device;
  const Planned p(device);
  CHECK(p.Chain() == List{{pci::kCapPower, 0x40}, {pci::kCapExpress, 0x80}});
  CHECK(p.plan.image.values[0x82] == 0x92);
  for (std::uint32_t at = 0x8c; at < 0xbc; ++at) {
    CAPTURE(at);
    const bool device2 = at >= 0xa4 && at < 0xac;
    CHECK(p.plan.emulated[at] == (device2 ? 0 : 0xff));
    CHECK(p.plan.image.values[at] == 0);
    CHECK((p.plan.forwarded[at] != 0) == device2);
  }
  // Device control is the device's, but for the reset bit.
  CHECK(p.plan.emulated[0x88] == 0);
  CHECK(p.plan.emulated[0x89] == 0x80);
  CHECK(p.plan.forwarded[0x89] == 0x7f);
  CHECK(p.plan.express_flr == 0x89);

  for (const std::uint16_t type : std::array<std::uint16_t, 7>{1, 4, 5, 6, 7, 8, 10}) {
    FakeHostDevice other;
    other.Put<std::uint16_t>(0x82, static_cast<std::uint16_t>(2 | type << 4));
    const Planned q(other);
    CAPTURE(type);
    CHECK(q.Chain() == List{{pci::kCapPower, 0x40}});
    CHECK(q.plan.dropped == 1);
    CHECK(q.plan.express_flr == 0);
    CHECK(q.plan.forwarded[0x88] == 0);
  }
  FakeHostDevice old;
  old.Put<std::uint16_t>(0x82, 0);
  CHECK(Planned(old).plan.image.values[0x82] == 0x91);
  old.Put<std::uint32_t>(0x84, 0);
  CHECK(Planned(old).plan.express_flr == 0);  // it cannot
}

TEST_CASE("config plan: power management without PME") {
  FakeHostDevice device;
  const Planned p(device);
  CHECK(p.plan.power == 0x40);
  CHECK(p.plan.emulated[0x43] == 0xf9);
  CHECK(p.plan.image.values[0x43] == 0);
  CHECK(p.plan.forwarded[0x44] == 3);
  CHECK(p.plan.emulated[0x45] == 0x81);
  CHECK((p.plan.forwarded[0x45] & 0x81) == 0);
}

TEST_CASE(
    "config plan: regression #7018: links that loop, point low or are all ones end the walk") {
  const struct {
    const char* name;
    std::uint8_t first;
    std::uint8_t next;  // of power management at 0x40
    List chain;
    unsigned refused;
  } rows[] = {
      {"to itself", 0x40, 0x40, {{1, 0x40}}, 1},
      {"low bits set", 0x42, 0x83, {{1, 0x40}, {0x10, 0x80}}, 0},
      {"all ones", 0x40, 0xff, {{1, 0x40}}, 0},
      {"first all ones", 0xff, 0, {}, 0},
      {"into the header", 0x40, 0x3c, {{1, 0x40}}, 1},
      {"first in the header", 0x04, 0, {}, 1},
      {"to an empty place", 0x40, 0xf8, {{1, 0x40}}, 0},
      {"none", 0x00, 0, {}, 0},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    FakeHostDevice device;
    device.Put<std::uint8_t>(0x34, row.first);
    device.Put<std::uint8_t>(0x41, row.next);
    const Planned p(device);
    CHECK(p.Chain() == row.chain);
    CHECK(p.plan.refused == row.refused);
    CHECK((p.plan.image.values[pci::kStatus] & 0x10) == (row.chain.empty() ? 0 : 0x10));
  }
  // A loop over two, and a status without a list.
  FakeHostDevice device;
  device.Put<std::uint8_t>(0x81, 0x40);
  CHECK(Planned(device).Chain().size() == 2);
  device.Put<std::uint16_t>(pci::kStatus, 0);
  CHECK(Planned(device).Chain().empty());
  // An ID of all ones.
  FakeHostDevice ones;
  ones.Put<std::uint16_t>(0x80, 0x00ff);
  CHECK(Planned(ones).Chain() == List{{1, 0x40}});
}

TEST_CASE("config plan: capabilities that overlap, repeat or do not fit are refused, others kept") {
  FakeHostDevice device;
  device.AddMsix(4);
  device.Put<std::uint8_t>(0x71, 0x44);  // inside power management
  device.Put<std::uint16_t>(0x44, 0x8009);
  device.Put<std::uint8_t>(0x46, 0x10);
  CHECK(Planned(device).Chain() ==
        List{{pci::kCapPower, 0x40}, {pci::kCapMsix, 0x70}, {pci::kCapExpress, 0x80}});
  CHECK(Planned(device).plan.refused == 1);

  FakeHostDevice twice;
  twice.AddMsix(4);
  twice.Put<std::uint8_t>(0x71, 0xc0);
  twice.Put<std::uint16_t>(0xc0, 0x8011);
  CHECK(Planned(twice).Chain().size() == 3);
  CHECK(Planned(twice).plan.refused == 1);

  FakeHostDevice beyond;
  beyond.Put<std::uint8_t>(0x41, 0xfc);
  beyond.Put<std::uint16_t>(0xfc, 0x8010);  // Express: 60 bytes
  CHECK(Planned(beyond).Chain() == List{{1, 0x40}, {0x10, 0x80}});
  for (const std::uint8_t length : std::array<std::uint8_t, 3>{0, 1, 2}) {
    FakeHostDevice vendor;
    vendor.Put<std::uint8_t>(0x41, 0xc0);
    vendor.Put<std::uint16_t>(0xc0, 0x8009);
    vendor.Put<std::uint8_t>(0xc2, length);
    CHECK(Planned(vendor).Chain().size() == 2);
    CHECK(Planned(vendor).plan.refused == 1);
  }
}

TEST_CASE("config plan: capabilities of no use to a guest are unlinked and read as nothing") {
  FakeHostDevice device;
  device.Put<std::uint8_t>(0x41, 0xc0);
  device.Put<std::uint32_t>(0xc0, 0x12348014);  // enhanced allocation
  device.Put<std::uint32_t>(0xc4, 0x12345678);
  const Planned p(device);
  CHECK(p.Chain() == List{{1, 0x40}, {0x10, 0x80}});
  CHECK(p.plan.dropped == 1);
  CHECK(p.plan.emulated[0xc4] == 0xff);
  CHECK(p.Dword(0xc4) == 0);
  CHECK(p.plan.forwarded[0xc4] == 0);
  CHECK(p.plan.emulated[0xd0] == 0);  // no longer part of it, as far as one can tell
}

struct ExtendedRow {
  std::uint32_t at;
  std::uint16_t id;
  std::uint32_t next;
};

void PutExtended(FakeHostDevice& device, const std::vector<ExtendedRow>& rows) {
  for (const auto& row : rows) {
    device.Put<std::uint32_t>(row.at, row.id | 1U << 16 | row.next << 20);
    device.Put<std::uint32_t>(row.at + 4, 0x01000001);  // a vendor length of 16
  }
}

TEST_CASE("config plan: of the extended capabilities those a guest can use are kept") {
  FakeHostDevice device;
  PutExtended(device, {{0x100, 0x0001, 0x140},  // AER
                       {0x140, 0x0003, 0x150},  // serial number
                       {0x150, 0x000e, 0x160},  // ARI
                       {0x160, 0x0010, 0x1a0},  // SR-IOV
                       {0x1a0, 0x0018, 0x1c0},  // LTR
                       {0x1c0, 0x0015, 0x1e0},  // Resizable BAR
                       {0x1e0, 0x000b, 0x200},  // vendor
                       {0x200, 0x000f, 0x210},  // ATS
                       {0x210, 0x0013, 0x220},  // PRI
                       {0x220, 0x001b, 0x230},  // PASID
                       {0x230, 0x0017, 0x250},  // TPH
                       {0x250, 0x0023, 0}});    // DVSEC
  const Planned p(device);
  // Regression: the head cannot be unlinked; it stays as an empty header.
  CHECK(p.Extended() ==
        List{{0, 0x100}, {3, 0x140}, {0x18, 0x1a0}, {0xb, 0x1e0}, {0x17, 0x230}, {0x23, 0x250}});
  CHECK(p.plan.dropped == 7);
  CHECK(p.plan.refused == 0);
  CHECK(p.Dword(0x140) == (3U | 1U << 16 | 0x1a0U << 20));
  for (const std::uint32_t at : {0x104U, 0x154U, 0x164U, 0x1c4U, 0x204U}) {
    CAPTURE(at);
    CHECK(p.plan.emulated[at] == 0xff);
    CHECK(p.Dword(at) == 0);
    CHECK(p.plan.forwarded[at] == 0);
  }
  CHECK(p.plan.emulated[0x1a4] == 0);  // LTR is read, not written
  CHECK(p.plan.forwarded[0x1a4] == 0);
  CHECK(p.plan.forwarded[0x1e4] == 0xff);
}

TEST_CASE("config plan: the extended walk goes over an empty header and stops at hostile ones") {
  const struct {
    const char* name;
    std::vector<ExtendedRow> rows;
    List list;
    unsigned refused;
  } rows[] = {
      {"empty head", {{0x100, 0, 0x140}, {0x140, 3, 0}}, {{0, 0x100}, {3, 0x140}}, 0},
      {"kept head", {{0x100, 3, 0x140}, {0x140, 0x18, 0}}, {{3, 0x100}, {0x18, 0x140}}, 0},
      {"to itself", {{0x100, 3, 0x100}}, {{3, 0x100}}, 1},
      {"loop", {{0x100, 3, 0x140}, {0x140, 0x18, 0x100}}, {{3, 0x100}, {0x18, 0x140}}, 1},
      {"into the header", {{0x100, 3, 0x0fc}}, {{3, 0x100}}, 1},
      {"low bits", {{0x100, 3, 0x143}, {0x140, 0x18, 0}}, {{3, 0x100}, {0x18, 0x140}}, 0},
      {"overlap", {{0x100, 3, 0x108}, {0x108, 0x18, 0}}, {{3, 0x100}}, 1},
      {"second of a kind", {{0x100, 3, 0x140}, {0x140, 3, 0}}, {{3, 0x100}}, 1},
      {"past the end", {{0x100, 3, 0xff8}, {0xff8, 0xb, 0}}, {{3, 0x100}}, 1},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    FakeHostDevice device;
    for (const auto& r : row.rows)
      device.Put<std::uint32_t>(r.at, r.id | (r.id == 0 ? 0U : 1U << 16) | r.next << 20);
    if (row.rows.back().at == 0xff8) device.Put<std::uint32_t>(0xffc, 0x01000001);
    const Planned p(device);
    CHECK(p.Extended() == row.list);
    CHECK(p.plan.refused == row.refused);
  }
  FakeHostDevice ones;
  for (std::size_t at = 0x100; at < 0x1000; ++at) ones.config[at] = 0xff;
  CHECK(Planned(ones).Extended().empty());
  CHECK(Planned(ones).Dword(0x100) == 0);
}

TEST_CASE("config plan: MSI-X whose tables do not fit is not shown") {
  const struct {
    const char* name;
    std::uint32_t table;
    std::uint32_t pba;
    std::uint32_t vectors;
    bool good;
  } rows[] = {
      {"as it should be", 0x1002, 0x2002, 4, true},
      {"tables in two BARs", 0x1002, 0x2000, 4, true},
      {"at the very end", 0x3fc2, 0x0002, 4, true},
      {"past the end", 0x3fca, 0x0002, 4, false},
      {"far past the end", 0xfffffff8 | 2, 0x0002, 4, false},
      {"pending bits past the end", 0x1002, 0x4002, 4, false},
      {"overlap", 0x1002, 0x1032, 4, false},
      {"side by side", 0x1002, 0x1042, 4, true},
      {"no such BAR", 0x1001, 0x2002, 4, false},
      {"upper half of a BAR", 0x1003, 0x2003, 4, false},
      {"BAR 7", 0x1007, 0x2002, 4, false},
      {"I/O BAR", 0x0004, 0x2002, 1, false},
      {"2048 vectors in 16 KiB", 0x0002, 0x2000, 2048, false},
      {"1024 vectors in 16 KiB", 0x0002, 0x2000, 1024, true},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    FakeHostDevice device;
    device.AddMsix(static_cast<std::uint16_t>(row.vectors));
    device.Put<std::uint32_t>(0x74, row.table);
    device.Put<std::uint32_t>(0x78, row.pba);
    const Planned p(device);
    CHECK(p.plan.msix.has_value() == row.good);
    CHECK(p.Chain().size() == (row.good ? 3 : 2));
    CHECK(p.plan.refused == (row.good ? 0 : 1));
    CHECK(p.plan.forwarded[0x73] == 0);
  }
}

TEST_CASE("config plan: vectors are what both the registers and the interrupt info allow") {
  FakeHostDevice device;
  device.AddMsix(8);
  device.AddMsi(16);
  CHECK(Planned(device).plan.msix->vectors == 8);
  CHECK(Planned(device).plan.msi->options.vectors == 16);
  device.device.irqs[kMsixIrq].count = 5;
  device.device.irqs[kMsiIrq].count = 5;
  CHECK(Planned(device).plan.msix->vectors == 5);
  CHECK(Planned(device).plan.msix->device_vectors == 8);
  CHECK(Planned(device).plan.msi->options.vectors == 4);
  device.device.irqs[kMsixIrq].count = 2048;
  CHECK(Planned(device).plan.msix->vectors == 8);
  device.device.irqs[kMsixIrq].count = 0;
  device.device.irqs[kMsiIrq].eventfd = false;
  const Planned p(device);
  CHECK(!p.plan.msix.has_value());
  CHECK(!p.plan.msi.has_value());
  CHECK(p.Chain() == List{{1, 0x40}, {0x10, 0x80}});
  FakeHostDevice reserved;
  reserved.AddMsi(32);
  reserved.Put<std::uint16_t>(0x52, 0x8c);  // 2^6 vectors
  CHECK(!Planned(reserved).plan.msi.has_value());
}

}  // namespace
}  // namespace postern::vfio
