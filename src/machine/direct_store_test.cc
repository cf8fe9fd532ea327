// MOVDIR64B and its relatives carried out for KVM: on a bus with a device that takes blocks and one
// that does not.

#include "src/machine/direct_store.h"

#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "src/base/mutex.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

using memory::Gpa;

constexpr std::uint64_t kRam = 0x10000;
constexpr std::uint64_t kPortal = 0x20000;
constexpr std::uint64_t kPlain = 0x21000;
constexpr std::uint64_t kLinear = 0xffff888000000000;  // RAM, as the guest sees it
constexpr std::uint64_t kLinearPortal = 0xffffc90000000000;
constexpr std::uint64_t kPage = kRam + 0x1000;  // mapped into the guest, no RAM
constexpr std::uint64_t kNowhere = 0x1000;
// movdir64b rax, [rcx]
constexpr std::array kMovdir = {std::byte{0x66}, std::byte{0x0f}, std::byte{0x38}, std::byte{0xf8},
                                std::byte{0x01}};
// enqcmd rax, [rcx]
constexpr std::array kEnqcmd = {std::byte{0xf2}, std::byte{0x0f}, std::byte{0x38}, std::byte{0xf8},
                                std::byte{0x01}};

struct BlockDevice final : bus::MmioHandler {
  void Read(std::uint64_t, std::span<std::byte>) override {}
  void Write(std::uint64_t offset, std::span<const std::byte> data) override {
    pieces.emplace_back(offset, data.size());
  }
  void WriteBlock(std::uint64_t offset, bus::Block data) override {
    blocks.emplace_back(offset, std::vector<std::byte>(data.begin(), data.end()));
  }
  std::vector<std::pair<std::uint64_t, std::size_t>> pieces;
  std::vector<std::pair<std::uint64_t, std::vector<std::byte>>> blocks;
};

struct PlainDevice final : bus::MmioHandler {
  void Read(std::uint64_t, std::span<std::byte>) override {}
  void Write(std::uint64_t offset, std::span<const std::byte> data) override {
    for (std::size_t i = 0; i < data.size(); ++i) bytes[offset + i] = data[i];
    ++writes;
  }
  std::map<std::uint64_t, std::byte> bytes;
  unsigned writes = 0;
};

// Long mode; RAM at kLinear, the devices' page from kLinearPortal on, nothing else.
struct StoreGuest {
  StoreGuest()
      : memory(*memory::GuestMemory::Create({*memory::Region::Create(Gpa(0), kRam, {})})),
        portal_range(*mmio.Add(kPortal, 0x1000, portal, lock, "portal")),
        plain_range(*mmio.Add(kPlain, 0x1000, plain, lock, "plain")) {
    sregs.efer = 1 << 10;
    sregs.cs.l = 1;
    regs.rip = 0x4000;
    regs.rflags = 0x8d7;
    regs.rax = kLinearPortal + 0x40;
    regs.rcx = kLinear + 0x3fe0;  // across a page
    for (std::size_t i = 0; i < block.size(); ++i) block[i] = std::byte(i + 1);
    CHECK(memory.Snapshot()->CopyIn(Gpa(0x3fe0), block));
  }
  DirectStoreHost host() {
    return {.translate = [](std::uint64_t linear) -> Result<std::uint64_t> {
              if (linear >= kLinear && linear - kLinear < 2 * kRam) return linear - kLinear;
              if (linear >= kLinearPortal && linear - kLinearPortal < 0x2000)
                return kPortal + (linear - kLinearPortal);
              return Err(Errc::kNotFound, "no such page");
            },
            .memory = memory,
            .store_to_pages =
                [this](Gpa gpa, bus::Block data) {
                  if (gpa != Gpa(kPage)) return false;
                  page.assign(data.begin(), data.end());
                  return true;
                },
            .mmio = mmio};
  }
  DirectStoreEnd Run(std::span<const std::byte> bytes) {
    return EmulateDirectStore(bytes, regs, sregs, host());
  }

  memory::MemoryMap memory;
  bus::Bus mmio;
  Mutex lock;
  BlockDevice portal;
  PlainDevice plain;
  bus::Registration portal_range, plain_range;
  x86_64::Regs regs;
  x86_64::Sregs sregs;
  std::array<std::byte, 64> block{};
  std::vector<std::byte> page;  // what was stored at kPage
};

TEST_CASE("direct store: a MOVDIR64B is one block at its destination, from a source of two pages") {
  StoreGuest guest;
  REQUIRE(guest.Run(kMovdir) == DirectStoreEnd::kDone);
  REQUIRE(guest.portal.blocks.size() == 1);
  CHECK(guest.portal.pieces.empty());
  CHECK(guest.portal.blocks[0].first == 0x40);
  CHECK(std::ranges::equal(guest.portal.blocks[0].second, guest.block));
  CHECK(guest.regs.rip == 0x4000 + kMovdir.size());
  CHECK(guest.regs.rflags == 0x8d7);  // the instruction leaves them alone
}

TEST_CASE("direct store: a device that knows no blocks is given eight writes") {
  StoreGuest guest;
  guest.regs.rax = kLinearPortal + 0x1fc0;  // the last of the page
  REQUIRE(guest.Run(kMovdir) == DirectStoreEnd::kDone);
  CHECK(guest.plain.writes == 8);
  REQUIRE(guest.plain.bytes.size() == 64);
  for (std::size_t i = 0; i < 64; ++i) CHECK(guest.plain.bytes[0xfc0 + i] == guest.block[i]);
}

TEST_CASE("direct store: an ENQCMD is told to try again, and stores nothing") {
  StoreGuest guest;
  REQUIRE(guest.Run(kEnqcmd) == DirectStoreEnd::kDone);
  CHECK(guest.portal.blocks.empty());
  CHECK(guest.regs.rflags == 0x42);  // ZF; CF, PF, AF, SF, OF are clear
  CHECK(guest.regs.rip == 0x4000 + kEnqcmd.size());
}

TEST_CASE("direct store: what is none, or cannot be carried out, changes nothing") {
  StoreGuest guest;
  std::vector<std::byte> bytes(kMovdir.begin(), kMovdir.end());
  SUBCASE("another instruction") {
    bytes[2] = std::byte{0x3a};
  }
  SUBCASE("a part of one") {
    bytes.pop_back();
  }
  SUBCASE("nothing") {
    bytes.clear();
  }
  SUBCASE("a destination that is not aligned") {
    guest.regs.rax += 8;
  }
  SUBCASE("a destination that is not mapped") {
    guest.regs.rax = kNowhere & ~63ULL;
  }
  SUBCASE("a source that is not mapped") {
    guest.regs.rcx = kNowhere;
  }
  SUBCASE("a source that is no RAM") {
    guest.regs.rcx = kLinearPortal;
  }
  SUBCASE("a source that ends where RAM does") {
    guest.regs.rcx = kLinear + kRam - 32;
  }
  const x86_64::Regs before = guest.regs;
  CHECK(guest.Run(bytes) == DirectStoreEnd::kOther);
  CHECK(guest.portal.blocks.empty());
  CHECK(guest.plain.writes == 0);
  CHECK(guest.regs.rip == before.rip);
  CHECK(guest.regs.rflags == before.rflags);
}

TEST_CASE("direct store: RAM and mapped pages are stored to, not the bus") {
  StoreGuest guest;
  guest.regs.rax = kLinear + 0x8000;
  REQUIRE(guest.Run(kMovdir) == DirectStoreEnd::kDone);
  std::array<std::byte, 64> got{};
  REQUIRE(guest.memory.Snapshot()->CopyOut(Gpa(0x8000), got));
  CHECK(got == guest.block);
  guest.regs.rax = kLinear + kPage;
  REQUIRE(guest.Run(kMovdir) == DirectStoreEnd::kDone);
  CHECK(std::ranges::equal(guest.page, guest.block));
  CHECK(guest.portal.blocks.empty());
  CHECK(guest.plain.writes == 0);
}

TEST_CASE("direct store: where nobody is, the block is lost and counted") {
  StoreGuest guest;
  guest.regs.rax = kLinear + kRam;  // maps to no RAM and to no device
  REQUIRE(guest.Run(kMovdir) == DirectStoreEnd::kDone);
  CHECK(testing::ReportedCounter(guest.mmio, "unmatched_writes") == 1);
}

TEST_CASE("direct store: an instruction is read up to where its page's neighbour is not mapped") {
  StoreGuest guest;
  const std::array<std::byte, 15> code = {std::byte{0x90}};
  CHECK(guest.memory.Snapshot()->CopyIn(Gpa(kRam - 15), code));
  CHECK(ReadInstruction(kLinear + kRam - 15, guest.host()).size() == 15);
  CHECK(ReadInstruction(kLinear + 0xffa, guest.host()).size() == 15);
  CHECK(ReadInstruction(kLinearPortal, guest.host()).empty());
  CHECK(ReadInstruction(kNowhere, guest.host()).empty());
}

}  // namespace
}  // namespace postern
