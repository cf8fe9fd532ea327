#include "vfio/user/user_space.h"

#include <cerrno>
#include <limits>

namespace postern::vfio {

iommu::Limits UserAddressSpace::limits() const {
  const std::uint64_t used = table_.size();
  const std::uint64_t most = capabilities_.max_dma_maps;
  return {.ranges = {{0, std::numeric_limits<std::uint64_t>::max()}},
          .page_sizes = capabilities_.pgsizes,
          .mappings_left = static_cast<std::uint32_t>(most > used ? most - used : 0),
          // There is no file of them that could be given away; and whoever maps a BAR would wait
          // for this server.
          .device_memory = false};
}

Result<void> UserAddressSpace::Map(iommu::Iova at, const iommu::HostRange& from,
                                   memory::Access access) {
  const std::uint64_t page = capabilities_.pgsizes & ~(capabilities_.pgsizes - 1);
  if (at.value % page != 0 || from.length % page != 0) {
    return Err(Errc::kInvalidArgument, "DMA mapping");
  }
  const UserConnection::Turn turn(connection_);
  if (table_.size() >= capabilities_.max_dma_maps) {
    return SysError("vfio-user DMA_MAP", ENOSPC);
  }
  // First: the server may use it before its reply arrives.
  TRY(table_.Add(at, from, access));
  const bool by_file = from.fd >= 0 && capabilities_.max_msg_fds > 0;
  const auto bits = static_cast<unsigned>(access);
  const UserDmaMap map{.readable = (bits & static_cast<unsigned>(memory::Access::kRead)) != 0,
                       .writable = (bits & static_cast<unsigned>(memory::Access::kWrite)) != 0,
                       .offset = by_file ? from.offset : 0,
                       .address = at.value,
                       .size = from.length};
  const std::span<const int> fds(&from.fd, by_file ? 1 : 0);
  const Result<UserMessage> reply = turn.Call(UserCommand::kDmaMap, BuildDmaMap(map), {.fds = fds});
  if (reply && reply->payload.empty()) return {};
  // Was added above.
  (void)table_.Remove(at, from.length);
  if (!reply) return Unexpected(reply.error());
  return turn.Refuse(Err(Errc::kPeerProtocol, "reply to DMA_MAP").value());
}

Result<void> UserAddressSpace::Unmap(iommu::Iova at, std::uint64_t length) {
  const UserConnection::Turn turn(connection_);
  TRY(table_.Remove(at, length));
  const Result<UserMessage> reply =
      turn.Call(UserCommand::kDmaUnmap, BuildDmaUnmap({at.value, length}));
  if (!reply) {
    if (reply.error().sys_errno == ENODEV) return Unexpected(reply.error());
    return turn.Refuse(reply.error());
  }
  // The specification has the entry come back; servers exist that send nothing.
  if (reply->payload.empty()) return {};
  const Result<UserDmaUnmap> entry = ParseDmaUnmap(reply->payload);
  if (!entry) return turn.Refuse(entry.error());
  if (entry->address != at.value || entry->size != length) {
    return turn.Refuse(Err(Errc::kPeerProtocol, "reply to DMA_UNMAP").value());
  }
  return {};
}

Result<void> UserAddressSpace::TrackDirty(bool /*on*/) {
  return Err(Errc::kUnsupported, "dirty tracking of a vfio-user device");
}

Result<void> UserAddressSpace::TakeDirty(iommu::Iova /*at*/, std::uint64_t /*length*/,
                                         std::uint64_t /*page_size*/,
                                         std::span<std::uint64_t> /*bits*/) {
  return Err(Errc::kUnsupported, "dirty tracking of a vfio-user device");
}

}  // namespace postern::vfio
