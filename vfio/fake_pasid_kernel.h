#pragma once

// FakePasidKernel: a kernel for tests that has PASIDs, by the rules of Linux 6.15. FakeVfioKernel
// knows page tables without that flag, and attachments without a PASID; the rest is here.
//
//   FakePasidKernel kernel;
//   FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
//   KernelHost host(kernel, nullptr, kernel.fake.sysfs(), kernel.fake.dev());
//   auto shared = host.OpenShared({.sysfs = "/sys/bus/pci/devices/0000:6a:01.0"});
//   CHECK(kernel.attached.empty());
//
// Knows one device, whose number in its iommufd is 1. Threads: as FakeVfioKernel; the public fields
// belong to the test while no call runs. Source of the rules: Linux 6.15 drivers/vfio/iommufd.c,
// drivers/iommu/iommufd/{device,hw_pagetable}.c.

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "src/base/kernel_calls.h"
#include "vfio/fake_vfio_kernel.h"

namespace postern::vfio {

class FakePasidKernel : public KernelCalls {
 public:
  FakeVfioKernel fake;
  bool tables = true;                               // IOMMU_HWPT_ALLOC_PASID is known
  bool attaches = true;                             // VFIO_DEVICE_ATTACH_PASID is known
  std::map<std::uint32_t, std::uint32_t> attached;  // PASID to table
  std::map<std::uint32_t, std::uint32_t> spaces;    // table to the IOAS it is over
  std::vector<std::string> order;                   // what was bound, attached, destroyed

  [[nodiscard]] Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                                     const char* op) override;
  [[nodiscard]] Result<Fd> Open(const std::string& path, int flags) override {
    return fake.Open(path, flags);
  }
  [[nodiscard]] Result<std::size_t> Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                                         const char* op) override {
    return fake.Read(fd, to, offset, op);
  }
  [[nodiscard]] Result<std::size_t> Write(int fd, std::span<const std::byte> from,
                                          std::uint64_t offset, const char* op) override {
    return fake.Write(fd, from, offset, op);
  }
  [[nodiscard]] Result<Mmap> Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                                 const char* op) override {
    return fake.Map(fd, offset, size, prot, op);
  }

 private:
  [[nodiscard]] Result<int> Alloc(int fd, unsigned long argument, const char* op);
  [[nodiscard]] Result<int> Attach(int fd, unsigned long argument, const char* op);
  [[nodiscard]] Result<int> Detach(int fd, unsigned long argument, const char* op);
  [[nodiscard]] Result<int> Destroy(int fd, unsigned long argument, const char* op);

  std::set<std::uint32_t> allowing_;  // tables with the flag
  bool allowed_ = false;              // the device's own is one
};

}  // namespace postern::vfio
