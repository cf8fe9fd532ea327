// ExplainMapFailure: a failed DMA mapping in the words of who has to do something about it.

#include <sys/resource.h>

#include <cerrno>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/core.h>

#include "iommu/ram_mapper.h"
#include "src/base/units.h"

namespace postern::iommu {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};

// "guest memory 0x0-0x3fffffff (1G) cannot be mapped for devices (type1)".
std::string What(const AddressSpace& space, memory::Gpa at, std::uint64_t length) {
  return fmt::format("guest memory {:#x}-{:#x} ({}) cannot be mapped for devices ({})", at.value,
                     at.value + (length - 1), FormatSize(length), space.name());
}

Failure Host(std::string cause, std::string next_step) {
  return HostFailure(std::move(cause), std::move(next_step)).value();
}

std::vector<IovaRange> Gaps(const std::vector<IovaRange>& ranges) {
  std::vector<IovaRange> gaps;
  std::uint64_t next = 0;
  for (const IovaRange& range : ranges) {
    if (range.first > next) gaps.push_back({next, range.first - 1});
    if (range.last == kAll) return gaps;
    next = range.last + 1;
  }
  gaps.push_back({next, kAll});
  return gaps;
}

std::string NameOf(const IovaRange& gap) {
  if (gap == IovaRange{0xfee00000, 0xfeefffff}) return "the window of interrupt messages";
  if (gap.first == 0xfd00000000) return "HyperTransport's window on AMD hosts";
  if (gap.last == kAll) return "beyond the host's IOMMU";
  return "reserved by the host or its firmware (RMRR)";
}

Failure ExplainRange(const AddressSpace& space, memory::Gpa at, std::uint64_t length) {
  const std::uint64_t last = at.value + (length - 1);
  for (const IovaRange& gap : Gaps(space.limits().ranges)) {
    if (gap.last < at.value || gap.first > last) continue;
    std::string cause = fmt::format("{}: it overlaps {:#x}-{:#x}, {}", What(space, at, length),
                                    gap.first, gap.last, NameOf(gap));
    if (gap.last == kAll) {
      return Host(std::move(cause),
                  fmt::format("give the guest less memory: all of it has to lie below {:#x} for "
                              "this device",
                              gap.first));
    }
    return Host(std::move(cause),
                "give the guest so much memory that it ends below this window, or assign a device "
                "without it (/sys/kernel/iommu_groups/N/reserved_regions lists those of group N)");
  }
  return Host(What(space, at, length) + ": outside what the device reaches",
              "give the guest less memory, or take another device");
}

Failure ExplainMemlock(const AddressSpace& space, memory::Gpa at, std::uint64_t length,
                       std::uint64_t limit) {
  if (limit == kAll) {
    return Host(What(space, at, length) + ": the host is out of memory to pin",
                "give the guest less memory, or free some (or huge pages) on the host");
  }
  std::string cause = fmt::format(
      "{}: the limit of locked memory (RLIMIT_MEMLOCK) is {}, {} are needed for it alone",
      What(space, at, length), FormatSize(limit), FormatSize(length));
  if (limit >= length) {
    cause += space.name() == "iommufd"
                 ? ", and what this user's processes have pinned already counts too"
                 : ", and what is pinned already counts too, once for each container";
  }
  return Host(std::move(cause),
              "raise it to all that is pinned: 'ulimit -l unlimited', "
              "LimitMEMLOCK=infinity in a systemd unit, or memlock in /etc/security/limits.conf; "
              "or give CAP_IPC_LOCK");
}

Failure ExplainEntries(const AddressSpace& space, memory::Gpa at, std::uint64_t length) {
  return Host(What(space, at, length) + ": the host allows no more DMA mappings in this container",
              "raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit, or use iommufd=on");
}

std::optional<Failure> ExplainAlignment(const AddressSpace& space, memory::Gpa at,
                                        std::uint64_t length) {
  const std::uint64_t sizes = space.limits().page_sizes;
  const std::uint64_t page = sizes & -sizes;
  if (page == 0 || ((at.value | length) & (page - 1)) == 0) return std::nullopt;
  return Host(fmt::format("{}: the host's IOMMU has no pages smaller than {}",
                          What(space, at, length), FormatSize(page)),
              fmt::format("give the guest memory in multiples of {}", FormatSize(page)));
}

Failure ExplainErrno(const AddressSpace& space, memory::Gpa at, std::uint64_t length,
                     const Error& error, std::uint64_t limit) {
  // Prefaulting, which pins nothing: no limit of locked memory has a say.
  const bool populate =
      std::string_view(error.op != nullptr ? error.op : "").starts_with("madvise");
  // EFAULT is what it says where huge pages ran out.
  if (populate && (error.sys_errno == ENOMEM || error.sys_errno == EFAULT)) {
    return ExplainMemlock(space, at, length, kAll);
  }
  switch (error.sys_errno) {
    case ENOMEM:
      return ExplainMemlock(space, at, length, limit);
    case ENOSPC:
      return ExplainEntries(space, at, length);
    case EFAULT:
      return Host(What(space, at, length) + ": its pages cannot be pinned",
                  "back guest memory with anonymous memory, a memfd or reserved huge pages, not "
                  "with a file or a device");
    default:
      return HostFailure(What(space, at, length), error).value();
  }
}

}  // namespace

Failure ExplainMapFailure(const AddressSpace& space, memory::Gpa at, std::uint64_t length,
                          const Error& error, std::uint64_t memlock_limit) {
  if (error.code == Errc::kSystem) return ExplainErrno(space, at, length, error, memlock_limit);
  if (error.code == Errc::kGuestRange) return ExplainRange(space, at, length);
  if (error.code == Errc::kInvalidArgument) {
    if (std::optional<Failure> failure = ExplainAlignment(space, at, length)) return *failure;
  }
  return HostFailure(What(space, at, length), error).value();
}

Failure ExplainMapFailure(const AddressSpace& space, memory::Gpa at, std::uint64_t length,
                          const Error& error) {
  rlimit limit{};
  const bool known = getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
  return ExplainMapFailure(space, at, length, error, known ? limit.rlim_cur : kAll);
}

}  // namespace postern::iommu
