// CRC generation, alone and with a copy. DSA 8.3.12, 8.3.13 and appendix A. The CRC is of exactly
// the bytes of the transfer: the zeros that appendix A pads with belong to RFC 3720's segments, and
// a continuation from a partial result could not work with them.

#include <cstring>

#include "devices/siov/engine/operations.h"

namespace postern::dsa::internal {

using memory::Access;

namespace {

std::uint32_t ReverseBits(std::uint32_t value) {
  std::uint32_t reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (value >> bit & 1) << (31 - bit);
  return reversed;
}

// The bits of each of the eight bytes the other way round.
std::uint64_t ReverseBitsOfBytes(std::uint64_t bytes) {
  bytes = (bytes >> 1 & 0x5555555555555555) | (bytes & 0x5555555555555555) << 1;
  bytes = (bytes >> 2 & 0x3333333333333333) | (bytes & 0x3333333333333333) << 2;
  return (bytes >> 4 & 0x0f0f0f0f0f0f0f0f) | (bytes & 0x0f0f0f0f0f0f0f0f) << 4;
}

// A CRC under way, in the bit order the flags ask for.
class CrcSum {
 public:
  CrcSum(const Checksums& checksums, const WorkDescriptor& descriptor, std::uint32_t seed)
      : checksums_(checksums),
        plain_(descriptor.Has(Flag::kBypassInversion)),
        reflect_(descriptor.Has(Flag::kBypassDataReflection)),
        state_(plain_ ? ReverseBits(seed) : ~seed) {}

  void Add(std::span<const std::byte> data) {
    if (!reflect_) {
      state_ = checksums_.crc32c(state_, data.data(), data.size());
      return;
    }
    std::array<std::uint64_t, 64> turned{};
    while (!data.empty()) {
      const std::size_t n = std::min(data.size(), sizeof(turned));
      std::memcpy(turned.data(), data.data(), n);
      for (std::uint64_t& word : turned) word = ReverseBitsOfBytes(word);
      state_ = checksums_.crc32c(state_, std::as_bytes(std::span(turned)).data(), n);
      data = data.subspan(n);
    }
  }
  [[nodiscard]] std::uint32_t value() const { return plain_ ? ReverseBits(state_) : ~state_; }

 private:
  const Checksums& checksums_;
  bool plain_;
  bool reflect_;
  std::uint32_t state_;
};

// Where the seed's address has no memory: that fault.
std::optional<OperationOutcome> FetchSeed(const OperationContext& context,
                                          const WorkDescriptor& descriptor, std::uint32_t& seed) {
  const auto fields = descriptor.As<CrcFields>();
  seed = fields.seed.get();
  if (!descriptor.Has(Flag::kReadSeed)) return std::nullopt;
  const std::uint64_t address = fields.seed_address.get();
  const Result<le32> value = context.memory.Read<le32>(memory::Gpa(address));
  if (!value) return Fault({address, Access::kRead}, address, 0);
  seed = value->get();
  return std::nullopt;
}

}  // namespace

OperationOutcome Crc(const OperationContext& context, const WorkDescriptor& descriptor) {
  std::uint32_t seed = 0;
  if (const auto fault = FetchSeed(context, descriptor, seed)) return *fault;
  CrcSum sum(context.checksums, descriptor, seed);
  OperationOutcome outcome =
      ForPieces<1>(context, {{{descriptor.source.get(), Access::kRead}}}, descriptor.size.get(),
                   [&sum](const auto& views, std::uint64_t, std::uint64_t n) {
                     Must(views[0].Sum(0, n, [&sum](auto data) { sum.Add(data); }));
                     return true;
                   });
  outcome.specific[0] = sum.value();
  return outcome;
}

// Through a copy of ours that stays in the nearest cache, so that the CRC is of what was written
// whatever the guest does meanwhile.
OperationOutcome CopyCrc(const OperationContext& context, const WorkDescriptor& descriptor) {
  std::uint32_t seed = 0;
  if (const auto fault = FetchSeed(context, descriptor, seed)) return *fault;
  CrcSum sum(context.checksums, descriptor, seed);
  std::array<std::byte, 4096> copy;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  OperationOutcome outcome = ForPieces<2>(
      context,
      {{{descriptor.source.get(), Access::kRead}, {descriptor.destination.get(), Access::kWrite}}},
      descriptor.size.get(), [&](const auto& views, std::uint64_t, std::uint64_t n) {
        for (std::uint64_t at = 0; at < n;) {
          const auto part = std::span(copy).first(std::min<std::uint64_t>(n - at, copy.size()));
          Must(views[0].CopyOut(at, part));
          sum.Add(part);
          Must(views[1].CopyIn(at, part));
          at += part.size();
        }
        return true;
      });
  outcome.specific[0] = sum.value();
  return outcome;
}

}  // namespace postern::dsa::internal
