// The fake behaves as the kernel does where Postern can tell: other tests rest on that.

#include "iommu/fake_iommu_kernel.h"

#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "src/base/mmap.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using Lines = std::vector<std::string>;

int ErrnoOf(const Result<int>& result) {
  return result ? 0 : result.error().sys_errno;
}

// A kernel with a device node of its own, whose close it sees, and one device in group 26.
class DeviceKernel final : public FakeIommuKernel {
 public:
  bool busy = false;
  std::vector<std::string> closed;
  FileId device = 0;

 protected:
  Result<Fd> OpenOther(const std::string& path, int flags) override {
    if (path != "/dev/vfio/devices/vfio0") return FakeIommuKernel::OpenOther(path, flags);
    Fd fd = TRY(NewFile(path));
    device = Identify(fd.get());
    return fd;
  }
  Result<int> IoctlOther(int fd, unsigned long request, unsigned long argument,
                         const char* op) override {
    if (Identify(fd) == device && request == VFIO_DEVICE_RESET) return 7;
    if (GroupOf(fd) == 26U && request == VFIO_GROUP_GET_DEVICE_FD) {
      if (!HasDomain(26)) return SysError(op, EINVAL);
      return 5;
    }
    return FakeIommuKernel::IoctlOther(fd, request, argument, op);
  }
  bool GroupBusy(unsigned number) override { return number == 26 && busy; }
  void Closed(FileId file, const std::string& name) override {
    closed.push_back(name);
    if (file == device) device = 0;
  }
};

TEST_CASE("fake_iommu_kernel: a derived kernel's files, calls and closes are in one log") {
  DeviceKernel kernel;
  kernel.AddGroup(26, {});
  Fd device = *kernel.Open("/dev/vfio/devices/vfio0", O_RDWR);
  Fd copy = *device.Duplicate();
  CHECK(*kernel.Ioctl(copy.get(), VFIO_DEVICE_RESET, "VFIO_DEVICE_RESET") == 7);
  CHECK(ErrnoOf(kernel.Ioctl(copy.get(), VFIO_GROUP_GET_STATUS, "GET_STATUS")) == ENOTTY);
  CHECK_FALSE(kernel.Open("/dev/null", O_RDWR).has_value());
  device = Fd();
  CHECK(kernel.open_files() == 1);
  copy = Fd();
  CHECK(kernel.open_files() == 0);
  CHECK(kernel.closed == Lines{"/dev/vfio/devices/vfio0"});
  CHECK(kernel.TakeLog() == Lines{"open /dev/vfio/devices/vfio0", "VFIO_DEVICE_RESET",
                                  "GET_STATUS = ENOTTY", "open /dev/null = ENOENT",
                                  "close /dev/vfio/devices/vfio0"});
}

TEST_CASE("fake_iommu_kernel: groups, their containers and their devices") {
  DeviceKernel kernel;
  kernel.AddGroup(26, {});
  const Fd container = *kernel.Open("/dev/vfio/vfio", O_RDWR);
  Fd group = *kernel.Open("/dev/vfio/26", O_RDWR);
  CHECK(kernel.Open("/dev/vfio/26", O_RDWR).error().sys_errno == EBUSY);
  CHECK(kernel.Open("/dev/vfio/27", O_RDWR).error().sys_errno == ENOENT);
  const auto status = [&] {
    vfio_group_status answer{.argsz = sizeof(answer), .flags = 0};
    REQUIRE(kernel.Ioctl(group.get(), VFIO_GROUP_GET_STATUS, &answer, "status").has_value());
    return answer.flags;
  };
  const auto set_iommu = [&] {
    return ErrnoOf(kernel.IoctlRaw(container.get(), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, "set"));
  };
  std::int32_t number = container.get();
  const auto join = [&] {
    return ErrnoOf(kernel.Ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &number, "join"));
  };
  const auto leave = [&] {
    return ErrnoOf(kernel.Ioctl(group.get(), VFIO_GROUP_UNSET_CONTAINER, "leave"));
  };
  CHECK(status() == VFIO_GROUP_FLAGS_VIABLE);
  CHECK(set_iommu() == EINVAL);
  CHECK(leave() == EINVAL);
  CHECK(ErrnoOf(kernel.Ioctl(group.get(), VFIO_GROUP_GET_DEVICE_FD, "device")) == EINVAL);
  kernel.SetViable(26, false);
  CHECK(join() == EPERM);
  kernel.SetViable(26, true);
  CHECK(join() == 0);
  CHECK(join() == EINVAL);
  CHECK(set_iommu() == 0);
  CHECK(set_iommu() == EINVAL);
  CHECK(status() == (VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET));
  CHECK(*kernel.Ioctl(group.get(), VFIO_GROUP_GET_DEVICE_FD, "device") == 5);
  kernel.busy = true;
  CHECK(leave() == EBUSY);
  kernel.busy = false;
  CHECK(leave() == 0);
  CHECK(join() == 0);
  group = Fd();  // leaves by itself
  CHECK(set_iommu() == EINVAL);
  CHECK(kernel.Open("/dev/vfio/26", O_RDWR).has_value());
}

TEST_CASE("fake_iommu_kernel: an unmap that would cut a mapping in two does nothing") {
  FakeIommuKernel kernel;
  kernel.AddGroup(26, {});
  const Fd container = *kernel.Open("/dev/vfio/vfio", O_RDWR);
  const Fd group = *kernel.Open("/dev/vfio/26", O_RDWR);
  std::int32_t number = container.get();
  REQUIRE(kernel.Ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &number, "join").has_value());
  REQUIRE(kernel.IoctlRaw(container.get(), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, "set"));
  const Mmap ram = *Mmap::Create(0x4000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  const auto map = [&](std::uint64_t iova, std::uint64_t size) {
    vfio_iommu_type1_dma_map dma{};
    dma.argsz = sizeof(dma);
    dma.flags = VFIO_DMA_MAP_FLAG_READ;
    dma.vaddr = reinterpret_cast<std::uintptr_t>(ram.data());
    dma.iova = iova;
    dma.size = size;
    return ErrnoOf(kernel.Ioctl(container.get(), VFIO_IOMMU_MAP_DMA, &dma, "map"));
  };
  const auto unmap = [&](std::uint64_t iova, std::uint64_t size) -> std::int64_t {
    vfio_iommu_type1_dma_unmap dma{};
    dma.argsz = sizeof(dma);
    dma.iova = iova;
    dma.size = size;
    const int error = ErrnoOf(kernel.Ioctl(container.get(), VFIO_IOMMU_UNMAP_DMA, &dma, "unmap"));
    return error != 0 ? -error : static_cast<std::int64_t>(dma.size);
  };
  CHECK(map(0x1000, 0x2000) == 0);
  CHECK(map(0x3000, 0x1000) == 0);
  CHECK(map(0x2000, 0x4000) == EEXIST);
  CHECK(map(0x2000, 0x1000) == EEXIST);
  CHECK(map(0x8000, 0x1800) == EINVAL);
  CHECK(map(0xfee00000, 0x1000) == EINVAL);
  CHECK(unmap(0x1000, 0x1000) == -EINVAL);
  CHECK(unmap(0x2000, 0x2000) == -EINVAL);
  CHECK(unmap(0x8000, 0x1000) == 0);
  CHECK(unmap(0, 0x8000) == 0x3000);
}

TEST_CASE("fake_iommu_kernel: failures come when they are due, each once") {
  FakeIommuKernel kernel;
  const Fd container = *kernel.Open("/dev/vfio/vfio", O_RDWR);
  const auto call = [&] {
    return ErrnoOf(kernel.Ioctl(container.get(), VFIO_GET_API_VERSION, "version"));
  };
  kernel.Fail(VFIO_GET_API_VERSION, EIO, 1);
  kernel.Fail(VFIO_GET_API_VERSION, EPERM, 2);
  CHECK(call() == 0);
  CHECK(call() == EIO);
  CHECK(call() == EPERM);
  CHECK(call() == 0);
}

}  // namespace
}  // namespace postern::iommu
