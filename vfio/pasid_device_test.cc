#include "vfio/pasid_device.h"

#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "vfio/fake_pasid_kernel.h"
#include "vfio/kernel_host.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

Fd FileOf(FakePasidKernel& kernel, const FakeVfioDevice& device) {
  return kernel.Open(kernel.fake.dev() + "/vfio/devices/" + device.file, O_RDWR).value();
}

using Order = std::vector<std::string>;

}  // namespace

TEST_CASE("pasid device: bound, then a table that allows PASIDs, then one for each guest") {
  FakePasidKernel kernel;
  FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
  {
    std::unique_ptr<iommu::Ioas> one;
    std::unique_ptr<iommu::Ioas> two;
    auto device = PasidDevice::Open(kernel, FileOf(kernel, dsa)).value();
    CHECK(kernel.order == Order{"bind", "table", "attach"});
    one = device->NewSpace().value();
    two = device->NewSpace().value();
    CHECK(one->id() != two->id());
    CHECK(device->Attach(*one) == 1U);
    CHECK(device->Attach(*two) == 2U);
    CHECK(kernel.attached.size() == 2);
    CHECK(kernel.spaces[kernel.attached[1]] == one->id());
    CHECK(kernel.spaces[kernel.attached[2]] == two->id());
    CHECK(device->Detach(0).error().code == Errc::kNotFound);
    CHECK(device->Detach(3).error().code == Errc::kNotFound);
    REQUIRE(device->Detach(1));
    // Its number is free again, and so it is the next one.
    CHECK(device->Attach(*one) == 1U);
    REQUIRE(device->Detach(1));
    kernel.order.clear();
  }
  CHECK(kernel.attached.empty());
  CHECK(kernel.order == Order{"detach 2", "destroy table", "detach", "destroy table"});
}

TEST_CASE("pasid device: a kernel or an IOMMU without PASIDs is said to be one") {
  FakePasidKernel kernel;
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
  CHECK(device->Attach(*space).error().code == Errc::kUnsupported);
  // Nothing is left of it.
  CHECK(kernel.order == Order{"table", "destroy table"});
}

TEST_CASE("pasid device: what else the kernel refuses is handed on") {
  FakePasidKernel kernel;
  FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
  kernel.fake.Fail(VFIO_DEVICE_BIND_IOMMUFD, EPERM);
  CHECK(PasidDevice::Open(kernel, FileOf(kernel, dsa)).error().sys_errno == EPERM);
  kernel.fake.FailOpen("/dev/iommu", EACCES);
  CHECK(PasidDevice::Open(kernel, FileOf(kernel, dsa)).error().sys_errno == EACCES);
}

namespace {

constexpr const char* kDsa = "/sys/bus/pci/devices/0000:6a:01.0";

// A host whose one device may be shared.
struct SharedRig {
  FakePasidKernel kernel;
  FakeVfioDevice& dsa = kernel.fake.AddDevice("0000:6a:01.0", 7);
  KernelHost host{kernel, &kernel.fake.kvm(), kernel.fake.sysfs(), kernel.fake.dev(),
                  [](iommu::AddressSpace&) -> Outcome<void> {
                    return ConfigFailure("nobody's memory is mapped", "");
                  }};
  std::string Refused(const KernelHost::Spec& spec) {
    const auto shared = host.OpenShared(spec);
    REQUIRE_FALSE(shared.has_value());
    return shared.error().cause;
  }
};

bool Has(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("shared device: opened by its path or its file, and given back whole") {
  SharedRig rig;
  const Fd file = FileOf(rig.kernel, rig.dsa);
  for (const KernelHost::Spec& spec :
       {KernelHost::Spec{.sysfs = kDsa}, KernelHost::Spec{.fd = file.get()}}) {
    rig.kernel.order.clear();
    auto shared = rig.host.OpenShared(spec).value();
    CHECK(shared.device->info().regions[0].size == 16384);
    CHECK(shared.device->Reset().has_value());
    auto space = shared.pasids->NewSpace().value();
    CHECK(shared.pasids->Attach(*space) == 1U);
    CHECK(Has(rig.Refused(spec), "already"));
    CHECK_FALSE(rig.host.Open(spec).has_value());
    CHECK(shared.pasids->Detach(1).has_value());
    space.reset();
    shared.device.reset();
    CHECK(rig.kernel.order == Order{"bind", "table", "attach", "table", "attach 1", "detach 1",
                                    "destroy table", "detach", "destroy table"});
    CHECK(rig.kernel.fake.ioas_count() == 0);
  }
  // The file passed in, and nothing else.
  CHECK(rig.kernel.fake.open_files() == 1);
}

TEST_CASE("shared device: what keeps it from being shared is said, and nothing stays open") {
  SharedRig rig;
  CHECK(Has(rig.Refused({.sysfs = kDsa, .iommufd = KernelHost::Spec::Iommufd::kOff}),
            "needs its file and an iommufd"));
  rig.kernel.tables = false;
  CHECK(Has(rig.Refused({.sysfs = kDsa}), "Linux 6.15"));
  rig.kernel.tables = true;
  rig.kernel.fake.FailOpen("/dev/iommu", EACCES);
  CHECK(Has(rig.Refused({.sysfs = kDsa}), "/iommu"));
  rig.kernel.fake.FailKvm(EEXIST);
  CHECK(Has(rig.Refused({.sysfs = kDsa}), "KVM"));
  rig.kernel.fake.Fail(VFIO_DEVICE_BIND_IOMMUFD, EBUSY);
  CHECK(Has(rig.Refused({.sysfs = kDsa}), "in use"));
  rig.dsa.flags = 0;  // no PCI device
  CHECK(Has(rig.Refused({.sysfs = kDsa}), "cannot use"));
  rig.kernel.fake.RemoveDeviceFiles();
  CHECK(Has(rig.Refused({.sysfs = kDsa}), "device file"));
  CHECK(rig.kernel.fake.open_files() == 0);
  CHECK(rig.kernel.fake.ioas_count() == 0);
}

}  // namespace postern::vfio
