#include "devices/siov/host/guest_spaces.h"

#include <optional>
#include <utility>

#include <fmt/format.h>

#include "iommu/ioas.h"
#include "iommu/ram_mapper.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

class PasidSpace final : public GuestSpace {
 public:
  PasidSpace(vfio::PasidDevice& device, memory::MemoryMap& memory,
             std::unique_ptr<iommu::Ioas> space, unsigned prefault_threads)
      : device_(device),
        memory_(memory),
        space_(std::move(space)),
        mapper_(*space_, prefault_threads) {}

  ~PasidSpace() override {
    if (pasid_ != 0) {
      // Closing the device, which its owner does, detaches it too.
      if (const Result<void> detached = device_.Detach(pasid_); !detached)
        LOG_ERROR("siov", "PASID {}: {}", pasid_, Describe(detached.error()));
    }
    if (mapped_) memory_.Unobserve(mapper_);
  }
  PasidSpace(const PasidSpace&) = delete;
  PasidSpace& operator=(const PasidSpace&) = delete;

  Outcome<void> Open() {
    Result<std::uint32_t> pasid = device_.Attach(*space_);
    if (!pasid) return HostFailure("cannot give a guest a PASID", pasid.error());
    pasid_ = *pasid;
    // What the device reaches is known now, and memory is pinned from here on.
    if (const Result<void> ranges = space_->Attached(); !ranges)
      return HostFailure("cannot read what the device reaches", ranges.error());
    if (const Result<void> mapped = memory_.Observe(mapper_); !mapped) {
      const std::optional<iommu::RamMapper::MapError>& at = mapper_.last_error();
      if (!at) return HostFailure("cannot map guest memory for the device", mapped.error());
      return tl::unexpected(iommu::ExplainMapFailure(*space_, at->gpa, at->length, at->error));
    }
    mapped_ = true;
    return {};
  }

  [[nodiscard]] std::uint32_t pasid() const override { return pasid_; }

 private:
  vfio::PasidDevice& device_;
  memory::MemoryMap& memory_;
  std::unique_ptr<iommu::Ioas> space_;
  iommu::RamMapper mapper_;
  std::uint32_t pasid_ = 0;
  bool mapped_ = false;
};

}  // namespace

Outcome<std::unique_ptr<GuestSpace>> GuestSpaces::Admit(memory::MemoryMap& memory) {
  Result<std::unique_ptr<iommu::Ioas>> space = device_.NewSpace();
  if (!space) return HostFailure("cannot make an address space for a guest", space.error());
  auto admitted =
      std::make_unique<PasidSpace>(device_, memory, std::move(*space), prefault_threads_);
  if (const Outcome<void> opened = admitted->Open(); !opened) return tl::unexpected(opened.error());
  return admitted;
}

}  // namespace postern::dsa
