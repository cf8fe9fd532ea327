// The words of ExplainMapFailure: each cause is named, and so is the cure.

#include <cerrno>
#include <string>
#include <vector>

#include "iommu/ram_mapper.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using memory::Gpa;

constexpr std::uint64_t kTop = ~std::uint64_t{0};
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

// An address space of which only the limits matter here.
class LimitsOnly final : public AddressSpace {
 public:
  Limits told;
  LimitsOnly() {
    told.ranges = {{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}};
    told.page_sizes = 4096;
  }
  [[nodiscard]] std::string_view name() const override { return "type1"; }
  [[nodiscard]] Limits limits() const override { return told; }
  [[nodiscard]] Result<void> Map(Iova, const HostRange&, memory::Access) override { return {}; }
  [[nodiscard]] Result<void> Unmap(Iova, std::uint64_t) override { return {}; }
  [[nodiscard]] Result<void> TrackDirty(bool) override { return {}; }
  [[nodiscard]] Result<void> TakeDirty(Iova, std::uint64_t, std::uint64_t,
                                       std::span<std::uint64_t>) override {
    return {};
  }
};

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("explain: the limit of locked memory, needed and present") {
  const LimitsOnly space;
  const Error error = SysError("VFIO_IOMMU_MAP_DMA", ENOMEM).value();
  const Failure failure = ExplainMapFailure(space, Gpa(0), kGiB, error, 65536);
  CHECK(failure.kind == Failure::Kind::kHost);
  CHECK(failure.cause ==
        "guest memory 0x0-0x3fffffff (1G) cannot be mapped for devices (type1): the limit of "
        "locked memory (RLIMIT_MEMLOCK) is 64K, 1G are needed for it alone");
  CHECK(Has(failure.next_step, "ulimit -l"));
  CHECK(Has(failure.next_step, "LimitMEMLOCK"));
  CHECK(Has(failure.next_step, "CAP_IPC_LOCK"));
  const Failure together = ExplainMapFailure(space, Gpa(0), kGiB, error, 2 * kGiB);
  CHECK(Has(together.cause, "is 2G, 1G are needed for it alone, and what is pinned already"));
  const Failure none = ExplainMapFailure(space, Gpa(0), kGiB, error, kTop);
  CHECK(Has(none.cause, "the host is out of memory"));
  CHECK_FALSE(Has(none.cause, "RLIMIT_MEMLOCK"));
  // With this process's own limit: one of the two.
  const Failure own = ExplainMapFailure(space, Gpa(0), kGiB, error);
  CHECK((own.cause == none.cause || Has(own.cause, "RLIMIT_MEMLOCK")));
}

TEST_CASE("explain: memory that ran out while it was made present") {
  const LimitsOnly space;
  for (const int cause : {ENOMEM, EFAULT}) {
    const Error error = SysError("madvise(MADV_POPULATE_WRITE)", cause).value();
    const Failure failure = ExplainMapFailure(space, Gpa(0), kGiB, error, 65536);
    CHECK(Has(failure.cause, "the host is out of memory"));
    CHECK(Has(failure.next_step, "huge pages"));
  }
}

TEST_CASE("explain: the reserved window is named") {
  LimitsOnly space;
  const Error error = Err(Errc::kGuestRange, "DMA mapping").value();
  const auto explain = [&](std::uint64_t at, std::uint64_t length) {
    return ExplainMapFailure(space, Gpa(at), length, error, kTop);
  };
  const Failure msi = explain(0, 4 * kGiB);
  CHECK(Has(msi.cause, "0xfee00000-0xfeefffff, the window of interrupt messages"));
  CHECK(Has(msi.next_step, "reserved_regions"));
  const Failure beyond = explain(4 * kGiB, 600 * kGiB);
  CHECK(Has(beyond.cause, "0x8000000000-0xffffffffffffffff, beyond the host's IOMMU"));
  CHECK(Has(beyond.next_step, "below 0x8000000000"));
  space.told.ranges = {{0x1000, 0x9ffff}, {0xb0000, 0xfcffffffff}, {0x10000000000, kTop}};
  CHECK(Has(explain(0, 0x2000).cause, "0x0-0xfff, reserved by the host or its firmware"));
  CHECK(Has(explain(0x9f000, 0x1000000).cause, "0xa0000-0xaffff, reserved by the host"));
  CHECK(Has(explain(0xfcfffff000, 0x2000).cause, "HyperTransport"));
  // Nothing of it is reserved: it is told all the same.
  CHECK(Has(explain(0x1000, 0x1000).cause, "outside what the device reaches"));
  space.told.ranges = {};
  CHECK(Has(explain(0, 0x1000).cause, "0x0-0xffffffffffffffff, beyond"));
}

TEST_CASE("explain: the limit of mappings, the page size, memory that cannot be pinned") {
  LimitsOnly space;
  const auto system = [&](int error) {
    return ExplainMapFailure(space, Gpa(0), kGiB, SysError("VFIO_IOMMU_MAP_DMA", error).value(),
                             kTop);
  };
  CHECK(Has(system(ENOSPC).cause, "no more DMA mappings"));
  CHECK(Has(system(ENOSPC).next_step, "dma_entry_limit"));
  CHECK(Has(system(EFAULT).cause, "cannot be pinned"));
  CHECK(Has(system(EFAULT).next_step, "memfd"));
  CHECK(Has(system(EIO).cause, "VFIO_IOMMU_MAP_DMA: Input/output error"));
  const Error argument = Err(Errc::kInvalidArgument, "alignment of a DMA mapping").value();
  space.told.page_sizes = 0x10000;
  const Failure pages = ExplainMapFailure(space, Gpa(0), 0x11000, argument, kTop);
  CHECK(Has(pages.cause, "no pages smaller than 64K"));
  CHECK(Has(pages.next_step, "multiples of 64K"));
  space.told.page_sizes = 4096;
  CHECK(Has(ExplainMapFailure(space, Gpa(0), 0x11000, argument, kTop).cause,
            "alignment of a DMA mapping: invalid argument"));
  const Error overlap = Err(Errc::kOverlap, "DMA mapping").value();
  CHECK(Has(ExplainMapFailure(space, Gpa(0), 0x1000, overlap, kTop).cause, "already taken"));
}

}  // namespace
}  // namespace postern::iommu
