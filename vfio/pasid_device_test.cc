#include "vfio/pasid_device.h"

#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "src/base/kernel_calls.h"
#include "vfio/fake_vfio_kernel.h"
#include "vfio/pasid_abi.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

// A kernel that has PASIDs, as the rules of Linux 6.15 are: FakeVfioKernel knows page tables
// without that flag, and attachments without a PASID; the rest is here.
class PasidKernel final : public KernelCalls {
 public:
  FakeVfioKernel fake;
  bool tables = true;                               // IOMMU_HWPT_ALLOC_PASID is known
  bool attaches = true;                             // VFIO_DEVICE_ATTACH_PASID is known
  std::map<std::uint32_t, std::uint32_t> attached;  // PASID to table
  std::vector<std::string> order;

  Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                       const char* op) override {
    switch (request) {
      case IOMMU_HWPT_ALLOC:
        return Alloc(fd, argument, op);
      case VFIO_DEVICE_BIND_IOMMUFD:
        order.emplace_back("bind");
        break;
      case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
        return Attach(fd, argument, op);
      case VFIO_DEVICE_DETACH_IOMMUFD_PT:
        return Detach(fd, argument, op);
      case IOMMU_DESTROY:
        return Destroy(fd, argument, op);
      default:
        break;
    }
    return fake.IoctlRaw(fd, request, argument, op);
  }

  Result<Fd> Open(const std::string& path, int flags) override { return fake.Open(path, flags); }
  Result<std::size_t> Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                           const char* op) override {
    return fake.Read(fd, to, offset, op);
  }
  Result<std::size_t> Write(int fd, std::span<const std::byte> from, std::uint64_t offset,
                            const char* op) override {
    return fake.Write(fd, from, offset, op);
  }
  Result<Mmap> Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                   const char* op) override {
    return fake.Map(fd, offset, size, prot, op);
  }

 private:
  Result<int> Alloc(int fd, unsigned long argument, const char* op) {
    auto* alloc = reinterpret_cast<iommu_hwpt_alloc*>(argument);
    if (alloc->flags != kHwptAllocPasid) return fake.IoctlRaw(fd, IOMMU_HWPT_ALLOC, argument, op);
    if (!tables) return SysError(op, EOPNOTSUPP);
    if (alloc->dev_id != 1) return SysError(op, ENOENT);
    alloc->flags = 0;
    const Result<int> done = fake.IoctlRaw(fd, IOMMU_HWPT_ALLOC, argument, op);
    if (done) {
      allowing_.insert(alloc->out_hwpt_id);
      order.emplace_back("table");
    }
    return done;
  }
  Result<int> Attach(int fd, unsigned long argument, const char* op) {
    AttachPasidPt attach;
    std::uint32_t size = 0;
    std::memcpy(&size, reinterpret_cast<const void*>(argument), sizeof(size));
    std::memcpy(&attach, reinterpret_cast<const void*>(argument),
                std::min<std::size_t>(size, sizeof(attach)));
    if (attach.flags == 0) {
      const Result<int> done = fake.IoctlRaw(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, argument, op);
      if (done) {
        allowed_ = allowing_.contains(attach.pt_id);
        order.emplace_back("attach");
      }
      return done;
    }
    if (!attaches || size < sizeof(attach) || attach.flags != kAttachPasid)
      return SysError(op, EINVAL);
    // "Otherwise attaching a PASID will be blocked", of the table without one; and the like.
    if (!allowed_ || !allowing_.contains(attach.pt_id)) return SysError(op, EINVAL);
    if (attached.contains(attach.pasid)) return SysError(op, EBUSY);
    attached[attach.pasid] = attach.pt_id;
    order.push_back("attach " + std::to_string(attach.pasid));
    return 0;
  }
  Result<int> Detach(int fd, unsigned long argument, const char* op) {
    std::array<std::uint32_t, 2> head{};  // argsz and flags
    std::memcpy(head.data(), reinterpret_cast<const void*>(argument), sizeof(head));
    DetachPasidPt detach;
    if (head[1] == 0) {
      if (!attached.empty()) return SysError(op, EBUSY);
      order.emplace_back("detach");
      return fake.IoctlRaw(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, argument, op);
    }
    std::memcpy(&detach, reinterpret_cast<const void*>(argument), sizeof(detach));
    if (attached.erase(detach.pasid) == 0) return SysError(op, EINVAL);
    order.push_back("detach " + std::to_string(detach.pasid));
    return 0;
  }
  Result<int> Destroy(int fd, unsigned long argument, const char* op) {
    const std::uint32_t id = reinterpret_cast<const iommu_destroy*>(argument)->id;
    if (!allowing_.contains(id)) return fake.IoctlRaw(fd, IOMMU_DESTROY, argument, op);
    for (const auto& [pasid, table] : attached) {
      if (table == id) return SysError(op, EBUSY);
    }
    allowing_.erase(id);
    order.emplace_back("destroy table");
    return 0;
  }

  std::set<std::uint32_t> allowing_;  // tables with the flag
  bool allowed_ = false;              // the device's own is one
};

Fd FileOf(PasidKernel& kernel, const FakeVfioDevice& device) {
  return kernel.Open(kernel.fake.dev() + "/vfio/devices/" + device.file, O_RDWR).value();
}

using Order = std::vector<std::string>;

}  // namespace

TEST_CASE("pasid device: bound, then a table that allows PASIDs, then one for each guest") {
  PasidKernel kernel;
  FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
  {
    auto device = PasidDevice::Open(kernel, FileOf(kernel, dsa)).value();
    CHECK(kernel.order == Order{"bind", "table", "attach"});
    auto one = device->NewSpace().value();
    auto two = device->NewSpace().value();
    CHECK(one->id() != two->id());
    REQUIRE(device->Attach(7, *one));
    REQUIRE(device->Attach(8, *two));
    CHECK(kernel.attached.size() == 2);
    CHECK(kernel.attached[7] != kernel.attached[8]);
    CHECK(device->Attach(7, *two).error().code == Errc::kOverlap);
    CHECK(device->Attach(0, *two).error().code == Errc::kInvalidArgument);
    CHECK(device->Attach(1 << 20, *two).error().code == Errc::kInvalidArgument);
    CHECK(device->Detach(9).error().code == Errc::kNotFound);
    REQUIRE(device->Detach(7));
    // Its number is free again.
    REQUIRE(device->Attach(7, *one));
    REQUIRE(device->Detach(7));
    kernel.order.clear();
  }
  CHECK(kernel.attached.empty());
  CHECK(kernel.order == Order{"detach 8", "destroy table", "detach", "destroy table"});
}

TEST_CASE("pasid device: a kernel or an IOMMU without PASIDs is said to be one") {
  PasidKernel kernel;
  FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
  kernel.tables = false;
  const auto refused = PasidDevice::Open(kernel, FileOf(kernel, dsa));
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == Errc::kUnsupported);
  CHECK(std::string(refused.error().op).find("Linux 6.15") != std::string::npos);
  kernel.tables = true;
  kernel.attaches = false;
  FakeVfioDevice& other = kernel.fake.AddDevice("0000:e7:01.0", 8);
  auto device = PasidDevice::Open(kernel, FileOf(kernel, other)).value();
  auto space = device->NewSpace().value();
  kernel.order.clear();
  CHECK(device->Attach(7, *space).error().code == Errc::kUnsupported);
  // Nothing is left of it.
  CHECK(kernel.order == Order{"table", "destroy table"});
}

TEST_CASE("pasid device: what else the kernel refuses is handed on") {
  PasidKernel kernel;
  FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
  kernel.fake.Fail(VFIO_DEVICE_BIND_IOMMUFD, EPERM);
  CHECK(PasidDevice::Open(kernel, FileOf(kernel, dsa)).error().sys_errno == EPERM);
  kernel.fake.FailOpen("/dev/iommu", EACCES);
  CHECK(PasidDevice::Open(kernel, FileOf(kernel, dsa)).error().sys_errno == EACCES);
}

}  // namespace postern::vfio
