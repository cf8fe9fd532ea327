#include "iommu/vfio_info.h"

#include <linux/vfio.h>

#include <cerrno>
#include <cstring>

namespace postern::iommu {
namespace {

// The chain of a real kernel has a handful.
constexpr unsigned kMaxCapabilities = 64;
// The size an answer needs can grow between two calls: a group was attached.
constexpr unsigned kMaxAttempts = 4;

Unexpected Malformed(const char* op) {
  return SysError(op, EPROTO);
}

}  // namespace

Result<std::vector<std::byte>> ReadVfioInfo(KernelCalls& calls, int fd, unsigned long number,
                                            std::span<const std::byte> request, const char* op) {
  std::uint32_t size = 0;
  if (request.size() < sizeof(size) || request.size() > kMaxVfioInfo) {
    return Err(Errc::kInvalidArgument, op);
  }
  std::vector<std::byte> info(request.begin(), request.end());
  for (unsigned attempt = 0; attempt < kMaxAttempts; ++attempt) {
    const std::size_t room = info.size();
    // Anew each time: the first answer has left its own offsets in the struct.
    std::memcpy(info.data(), request.data(), request.size());
    size = static_cast<std::uint32_t>(room);
    std::memcpy(info.data(), &size, sizeof(size));
    TRY(calls.Ioctl(fd, number, info.data(), op));
    std::memcpy(&size, info.data(), sizeof(size));
    if (size <= room) return info;
    if (size > kMaxVfioInfo) return Malformed(op);
    info.assign(size, std::byte{0});
  }
  return Malformed(op);
}

Result<void> WalkVfioCapabilities(std::span<const std::byte> info, std::uint32_t first,
                                  std::size_t fixed,
                                  const std::function<Result<void>(const VfioCapability&)>& each) {
  constexpr const char* kOp = "VFIO capability chain";
  std::size_t lowest = fixed;
  unsigned count = 0;
  for (std::uint32_t offset = first; offset != 0;) {
    vfio_info_cap_header header{};
    if (++count > kMaxCapabilities || offset < lowest) return Malformed(kOp);
    if (offset > info.size() || info.size() - offset < sizeof(header)) return Malformed(kOp);
    const std::span<const std::byte> bytes = info.subspan(offset);
    std::memcpy(&header, bytes.data(), sizeof(header));
    TRY(each({.id = header.id, .version = header.version, .bytes = bytes}));
    // The kernel appends: a chain that does not ascend is one that loops sooner or later.
    lowest = offset + sizeof(header);
    offset = header.next;
  }
  return {};
}

}  // namespace postern::iommu
