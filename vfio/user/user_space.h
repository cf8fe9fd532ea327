#pragma once

// UserAddressSpace: the table of a vfio-user server as an AddressSpace. A mapping goes to the
// server with the file behind it, where there is one and the server takes descriptors: it then
// reaches the memory itself. Without, it asks by message, and the connection serves it (DmaTable).
//
// Mappings may lie anywhere. Nothing is pinned. A server that holds the file of guest memory keeps
// it until it unmaps it or ends: what it writes after Unmap was refused is its own doing, so one
// that refuses is taken for vanished. Memory of other devices is not for it. Threads: any. Source:
// vfio-user specification,
// VFIO_USER_DMA_MAP and VFIO_USER_DMA_UNMAP.

#include "iommu/address_space.h"
#include "vfio/user/connection.h"
#include "vfio/user/dma_table.h"

namespace postern::vfio {

class UserAddressSpace final : public iommu::AddressSpace {
 public:
  UserAddressSpace(UserConnection& connection, DmaTable& table,
                   const UserCapabilities& capabilities)
      : connection_(connection), table_(table), capabilities_(capabilities) {}

  [[nodiscard]] std::string_view name() const override { return "vfio-user"; }
  [[nodiscard]] iommu::Limits limits() const override;
  [[nodiscard]] Result<void> Map(iommu::Iova at, const iommu::HostRange& from,
                                 memory::Access access) override;
  [[nodiscard]] Result<void> Unmap(iommu::Iova at, std::uint64_t length) override;
  // kUnsupported: what the server writes by itself nobody sees.
  [[nodiscard]] Result<void> TrackDirty(bool on) override;
  [[nodiscard]] Result<void> TakeDirty(iommu::Iova at, std::uint64_t length,
                                       std::uint64_t page_size,
                                       std::span<std::uint64_t> bits) override;

 private:
  UserConnection& connection_;
  DmaTable& table_;
  const UserCapabilities capabilities_;
};

}  // namespace postern::vfio
