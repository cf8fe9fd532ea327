#include "src/machine/direct_store.h"

#include <algorithm>
#include <array>
#include <optional>

#include "src/arch/x86_64/movdir64b.h"

namespace postern {
namespace {

constexpr std::uint64_t kPageSize = 4096;
constexpr std::uint64_t kZeroFlag = 0x40;
constexpr std::uint64_t kArithmeticFlags = 0x8d5;  // CF, PF, AF, ZF, SF, OF

// How many of `to`'s bytes could be read from RAM, page by page.
std::size_t ReadLinear(std::uint64_t linear, std::span<std::byte> to, const DirectStoreHost& host) {
  const memory::GuestMemoryPtr ram = host.memory.Snapshot();
  std::size_t done = 0;
  while (done < to.size()) {
    const std::uint64_t at = linear + done;
    const std::size_t length = std::min<std::size_t>(to.size() - done, kPageSize - at % kPageSize);
    const Result<std::uint64_t> physical = host.translate(at);
    if (!physical || !ram->CopyOut(memory::Gpa(*physical), to.subspan(done, length))) break;
    done += length;
  }
  return done;
}

void Store(std::uint64_t physical, bus::Block block, const DirectStoreHost& host) {
  const memory::Gpa to(physical);
  if (host.memory.Snapshot()->CopyIn(to, block) || host.store_to_pages(to, block)) return;
  host.mmio.WriteBlock(physical, block);
}

}  // namespace

std::vector<std::byte> ReadInstruction(std::uint64_t linear, const DirectStoreHost& host) {
  constexpr std::size_t kLongest = 15;
  std::vector<std::byte> bytes(kLongest);
  bytes.resize(ReadLinear(linear, bytes, host));
  return bytes;
}

DirectStoreEnd EmulateDirectStore(std::span<const std::byte> bytes, x86_64::Regs& regs,
                                  const x86_64::Sregs& sregs, const DirectStoreHost& host) {
  const std::optional<x86_64::DirectStore> store =
      x86_64::DecodeDirectStore(bytes, x86_64::DecodeInputOf(regs, sregs));
  if (!store || store->destination % bus::kBlockSize != 0) return DirectStoreEnd::kOther;
  if (store->kind == x86_64::DirectStoreKind::kMovdir64b) {
    std::array<std::byte, bus::kBlockSize> block{};
    const Result<std::uint64_t> destination = host.translate(store->destination);
    if (!destination || ReadLinear(store->source, block, host) != block.size())
      return DirectStoreEnd::kOther;
    Store(*destination, block, host);
  } else {
    regs.rflags = (regs.rflags & ~kArithmeticFlags) | kZeroFlag;
  }
  regs.rip += store->length;
  return DirectStoreEnd::kDone;
}

}  // namespace postern
