#pragma once

// FakeVfioKernel: a kernel for tests that has VFIO devices: in groups, as device files, in a sysfs
// tree of a temporary folder, and a KVM that is told of them. It keeps the rules of the real one
// (what is refused before what, one kind of interrupt at a time, one user of a group), records the
// order of calls, fails on request, and lies where a test makes it.
//
//   FakeVfioKernel kernel;
//   FakeVfioDevice& nvme = kernel.AddDevice("0000:3b:00.0", 12);
//   KernelHost host(kernel, &kernel.kvm(), kernel.sysfs(), kernel.dev(), fill);
//   auto device = host.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.0"});
//   CHECK(kernel.TakeLog() == std::vector<std::string>{...});
//
// Lines of the log beyond those of FakeIommuKernel: "KVM add FILE", "KVM remove FILE",
// "NAME opened, KVM knows, N mappings" (or "KVM does not know"), "NAME irqs INDEX ACTION DATA
// START+COUNT".
//
// Ownership: of the folder. Threads: as FakeIommuKernel; the public fields of a device belong to
// the test while no call runs. Source of the rules: Linux drivers/vfio/{group,device_cdev}.c,
// drivers/vfio/pci/vfio_pci_{core,intrs}.c, virt/kvm/vfio.c.

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "iommu/fake_iommu_kernel.h"
#include "src/base/mutex.h"
#include "src/bus/vfio_files.h"
#include "vfio/host_device.h"

namespace postern::vfio {

// What the kernel would say of a device, and how it is.
struct FakeVfioDevice {
  struct Region {
    std::uint64_t size = 0;
    std::uint32_t flags = 0;  // VFIO_REGION_INFO_FLAG_*
    std::optional<std::vector<MapArea>> sparse;
    bool msix_mappable = false;
    std::optional<std::uint64_t> offset;  // in the file; index << 40 if not said
    std::vector<std::byte> bytes;         // contents; what lies beyond reads as 0
    std::vector<std::byte> raw;           // not empty: the whole answer of GET_REGION_INFO
    int error = 0;                        // of GET_REGION_INFO
  };
  struct Irq {
    std::uint32_t count = 0;
    std::uint32_t flags = 0;  // VFIO_IRQ_INFO_*
    bool enabled = false;
    std::vector<int> events;  // by vector; -1: nobody
    int available = 0;        // not 0: enabling more vectors answers this number
  };
  std::string name;
  unsigned group = 0;
  std::string file;  // "vfio3"
  iommu::FakeHardware hardware;
  std::uint32_t flags = 0;  // VFIO_DEVICE_FLAGS_*
  std::uint32_t region_count = kRegionCount;
  std::uint32_t irq_count = kIrqCount;
  std::array<Region, kRegionCount> regions;
  std::array<Irq, kIrqCount> irqs;
  bool gone = false;            // everything answers ENODEV
  bool memory_off = false;      // accesses to BARs answer EIO
  std::size_t transfer = 4096;  // bytes one read or write carries at most
  bool intx_masked = false;
  int intx_unmask = -1;
  bool takes_intx_unmask = true;  // an eventfd that unmasks INTx
  unsigned resets = 0;
  unsigned reads = 0;  // pread calls
};

class FakeVfioKernel final : public iommu::FakeIommuKernel {
 public:
  FakeVfioKernel();
  ~FakeVfioKernel() override;

  // A function like an NVMe controller bound to vfio-pci: BAR 0 of 16 KiB, configuration space,
  // INTx, 8 MSI and 16 MSI-X vectors, error and request. Its group if that is new.
  FakeVfioDevice& AddDevice(const std::string& name, unsigned group,
                            const iommu::FakeHardware& hardware = {});
  FakeVfioDevice& AddMediated(const std::string& uuid, unsigned group);
  // A device of the group that VFIO does not have: only in sysfs. No driver if that is empty.
  void AddStranger(const std::string& name, unsigned group, const std::string& driver);
  // Another driver ("": none). It is no VFIO driver: there is no device file.
  void Bind(const std::string& name, const std::string& driver);
  void RemoveGroupLink(const std::string& name);
  void MakeNoiommu(unsigned group);
  // What a host without device files looks like: the entries in vfio-dev stay.
  void RemoveDeviceFiles();

  [[nodiscard]] std::string sysfs() const { return root_ + "/sys"; }
  [[nodiscard]] std::string dev() const { return root_ + "/dev"; }
  [[nodiscard]] bus::VfioFiles& kvm() { return kvm_; }
  // The next Add fails.
  void FailKvm(int error) { kvm_.error = error; }

  [[nodiscard]] Result<Fd> Open(const std::string& path, int flags) override;
  [[nodiscard]] Result<std::size_t> Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                                         const char* op) override;
  [[nodiscard]] Result<std::size_t> Write(int fd, std::span<const std::byte> from,
                                          std::uint64_t offset, const char* op) override;
  [[nodiscard]] Result<Mmap> Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                                 const char* op) override;

 protected:
  [[nodiscard]] Result<Fd> OpenOther(const std::string& path, int flags) override;
  [[nodiscard]] Result<int> IoctlOther(int fd, unsigned long request, unsigned long argument,
                                       const char* op) override;
  [[nodiscard]] bool GroupBusy(unsigned number) override;
  void Closed(FileId file, const std::string& name) override;

 private:
  // KVM keeps the files it knows open.
  struct Kvm final : public bus::VfioFiles {
    explicit Kvm(FakeVfioKernel& owner) : kernel(owner) {}
    Result<void> Add(int fd) override;
    void Remove(int fd) override;
    FakeVfioKernel& kernel;
    std::map<FileId, Fd> held;
    int error = 0;
  };
  struct OpenDevice {
    FakeVfioDevice* device = nullptr;
    bool by_file = false;
    int iommufd = -1;  // bound
    bool attached = false;
  };
  [[nodiscard]] std::string FileName(int fd);
  void Link(const std::string& from, const std::string& to) const;
  void MakeSysfs(const std::string& name, const std::string& bus, unsigned group,
                 const std::string& driver);
  [[nodiscard]] std::string Folder(const std::string& name) const;
  FakeVfioDevice& Add(const std::string& name, unsigned group, const std::string& bus,
                      const std::string& driver, const iommu::FakeHardware& hardware);

  // Errno values; answers above 0 in `value`.
  [[nodiscard]] int GetDevice(unsigned group, int fd, const char* name, int& value)
      REQUIRES(devices_mutex_);
  [[nodiscard]] int DeviceIoctl(FileId file, OpenDevice& open, int fd, unsigned long request,
                                void* argument, int& value) REQUIRES(devices_mutex_);
  [[nodiscard]] int Bind(OpenDevice& open, int fd, void* argument) REQUIRES(devices_mutex_);
  [[nodiscard]] int Attach(FileId file, OpenDevice& open, void* argument) REQUIRES(devices_mutex_);
  [[nodiscard]] int RegionInfoOf(const FakeVfioDevice& device, void* argument) const;
  [[nodiscard]] int IrqInfoOf(const FakeVfioDevice& device, void* argument) const;
  [[nodiscard]] int SetIrqs(FakeVfioDevice& device, const void* argument, int& value);
  [[nodiscard]] int SetIntxMask(FakeVfioDevice& device, std::uint32_t flags, int event) const;
  [[nodiscard]] OpenDevice* Find(int fd) REQUIRES(devices_mutex_);
  // The region's index and the offset inside it.
  [[nodiscard]] std::optional<std::pair<std::size_t, std::uint64_t>> Locate(
      const FakeVfioDevice& device, std::uint64_t offset, std::size_t length) const;

  std::string root_;
  Kvm kvm_{*this};
  Mutex devices_mutex_;
  std::vector<std::unique_ptr<FakeVfioDevice>> devices_;
  std::map<FileId, OpenDevice> open_ GUARDED_BY(devices_mutex_);
};

}  // namespace postern::vfio
