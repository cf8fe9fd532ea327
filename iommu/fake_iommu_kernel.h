#pragma once

// FakeIommuKernel: a kernel for tests that has /dev/vfio/vfio (containers of type 1), groups
// /dev/vfio/N and /dev/iommu, with the rules of the real one: ranges, overlap, page sizes, limits,
// what leaves with the last group. It records the calls in their order, fails on request, and lies
// if `tamper` makes it.
//
//   FakeIommuKernel kernel;
//   kernel.AddGroup(26, {});
//   auto container = Type1Container::Open(kernel);
//   const Fd group = *kernel.Open("/dev/vfio/26", O_RDWR);
//   kernel.Fail(VFIO_IOMMU_MAP_DMA, ENOMEM, 1);        // the second one from now
//   ...
//   CHECK(kernel.TakeLog() == std::vector<std::string>{"open /dev/vfio/vfio", ...});
//
// A base: a fake VFIO kernel derives from it and plays devices in the hooks below; open files,
// their identity across dup, and their closing (seen, and logged, at the next call) are shared.
//
// Descriptors are real (pipes), so that Fd closes them. Lines of the log: "open PATH", "close
// PATH", or the `op` of an ioctl and what it was about (not if it was made to fail: then it was not
// looked at); " = ENOMEM" follows if it failed.
// Threads: any, except for the public fields. Hooks are called without its lock. Source of the
// rules: Linux drivers/vfio/{container,group,vfio_iommu_type1}.c, drivers/iommu/iommufd/.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "iommu/fake_dma_space.h"
#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/base/mutex.h"
#include "src/base/result.h"

namespace postern::iommu {

class FakeIommuKernel : public KernelCalls {
 public:
  // Names an open file, whichever descriptor is at hand; 0: none of this kernel's.
  using FileId = std::uint64_t;

  struct Rules {
    bool containers = true;  // /dev/vfio/vfio exists
    bool iommufd = true;     // /dev/iommu exists
    int api_version = 0;
    bool type1v2 = true;
    bool iova_range_cap = true;
    bool dma_avail_cap = true;
    bool migration_cap = true;
    bool map_file = true;                       // IOMMU_IOAS_MAP_FILE
    std::uint32_t entry_limit = 65535;          // mappings of one container
    std::uint64_t memlock = ~std::uint64_t{0};  // bytes one container or IOAS may pin
  };
  Rules rules;
  // Called after an ioctl of this kernel that succeeded, with its argument: change the answer.
  std::function<void(unsigned long request, void* argument)> tamper;

  FakeIommuKernel() = default;
  ~FakeIommuKernel() override = default;

  void AddGroup(unsigned number, const FakeHardware& hardware);
  void SetViable(unsigned number, bool viable);
  // The host took its last device away: the group leaves its container by itself.
  void TakeAway(unsigned number);
  // One call of `request` fails, after `after` that do not.
  void Fail(unsigned long request, int error, unsigned after = 0);
  void FailOpen(const std::string& path, int error);

  // The calls since the last TakeLog.
  [[nodiscard]] std::vector<std::string> TakeLog();
  // What a device reaches: by its group, or by its IOAS. Null where DMA faults.
  [[nodiscard]] std::byte* DmaOfGroup(unsigned number, std::uint64_t iova, std::uint64_t length,
                                      memory::Access access);
  [[nodiscard]] std::byte* DmaOfIoas(std::uint32_t ioas, std::uint64_t iova, std::uint64_t length,
                                     memory::Access access);
  [[nodiscard]] std::vector<FakeMapping> MappingsOfGroup(unsigned number);
  [[nodiscard]] std::vector<FakeMapping> MappingsOfIoas(std::uint32_t ioas);
  [[nodiscard]] std::size_t open_files();
  [[nodiscard]] std::size_t ioas_count();

  // A device `who` (a number of the caller's) behind `hardware` on an IOAS or a hardware page table
  // over one; as VFIO_DEVICE_ATTACH_IOMMUFD_PT would. ENOENT, EADDRINUSE, ENOMEM.
  [[nodiscard]] Result<void> AttachDevice(int iommufd, std::uint32_t page_table, std::uint64_t who,
                                          const FakeHardware& hardware);
  void DetachDevice(std::uint64_t who);
  // The device wrote there: seen by IOMMU_HWPT_GET_DIRTY_BITMAP if tracking is on.
  void MarkDirty(std::uint32_t hwpt, std::uint64_t iova, std::uint64_t length);

  // KernelCalls.
  [[nodiscard]] Result<Fd> Open(const std::string& path, int flags) override;
  [[nodiscard]] Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                                     const char* op) override;
  [[nodiscard]] Result<std::size_t> Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                                         const char* op) override;
  [[nodiscard]] Result<std::size_t> Write(int fd, std::span<const std::byte> from,
                                          std::uint64_t offset, const char* op) override;
  [[nodiscard]] Result<Mmap> Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                                 const char* op) override;

 protected:
  // Hooks. A path this kernel does not have: ENOENT. The call is in the log already.
  [[nodiscard]] virtual Result<Fd> OpenOther(const std::string& path, int flags);
  // A request that is not one of a container, group or iommufd, or a file that is none: ENOTTY. The
  // call is in the log, by its op. An error gets its " = ENAME".
  [[nodiscard]] virtual Result<int> IoctlOther(int fd, unsigned long request,
                                               unsigned long argument, const char* op);
  // A device of the group is open: VFIO_GROUP_UNSET_CONTAINER fails with EBUSY.
  [[nodiscard]] virtual bool GroupBusy(unsigned /*number*/) { return false; }
  // The last descriptor of a file made by NewFile was closed.
  virtual void Closed(FileId /*file*/, const std::string& /*name*/) {}

  // A new open file of the derived kernel.
  [[nodiscard]] Result<Fd> NewFile(const std::string& name);
  [[nodiscard]] FileId Identify(int fd);
  [[nodiscard]] std::optional<unsigned> GroupOf(int fd);
  // The group is attached to a container that has its IOMMU.
  [[nodiscard]] bool HasDomain(unsigned number);
  [[nodiscard]] bool IsIommufd(int fd);
  void Record(std::string line);
  // Logs and closes what was closed since; every call does.
  void Reap();

 private:
  enum class Kind : std::uint8_t { kContainer, kGroup, kIommufd, kOther };
  struct File {
    Fd watch;  // the other end of the pipe: hangs up with the last descriptor
    Kind kind = Kind::kOther;
    std::string name;
  };
  struct Group {
    FakeHardware hardware;
    bool viable = true;
    bool gone = false;
    FileId file = 0;
    FileId container = 0;
  };
  struct Container {
    bool iommu = false;
    std::set<unsigned> groups;
    FakeDmaSpace space;
  };
  struct IoasObject {
    FileId iommufd = 0;
    FakeDmaSpace space;
  };
  struct Hwpt {
    std::uint32_t ioas = 0;
    bool dirty_tracking = false;
    bool on = false;
    std::set<std::uint64_t> dirty;  // pages of 4096 bytes
  };
  struct Failing {
    int error = 0;
    unsigned after = 0;
  };
  // Answers: an errno, or -1: not a request of this kind of file.
  using Answer = int;

  [[nodiscard]] Result<Fd> MakeFile(const std::string& name, Kind kind) REQUIRES(mutex_);
  [[nodiscard]] FileId Find(int fd) const REQUIRES(mutex_);
  [[nodiscard]] std::map<unsigned, Group>::iterator FindGroup(FileId file) REQUIRES(mutex_);
  void Leave(unsigned number, Group& group) REQUIRES(mutex_);
  void Forget(FileId file) REQUIRES(mutex_);
  [[nodiscard]] int TakeFailure(unsigned long request) REQUIRES(mutex_);
  [[nodiscard]] Answer Dispatch(FileId file, unsigned long request, unsigned long argument,
                                bool busy, int& value, std::string& line) REQUIRES(mutex_);
  [[nodiscard]] Answer GroupIoctl(unsigned number, unsigned long request, unsigned long argument,
                                  bool busy) REQUIRES(mutex_);
  [[nodiscard]] int SetContainer(unsigned number, Group& group, int container) REQUIRES(mutex_);
  [[nodiscard]] Answer ContainerIoctl(Container& container, unsigned long request,
                                      unsigned long argument, int& value, std::string& line)
      REQUIRES(mutex_);
  [[nodiscard]] int Type1Info(const Container& container, void* argument) const REQUIRES(mutex_);
  [[nodiscard]] int Type1Map(Container& container, const void* argument, std::string& line)
      REQUIRES(mutex_);
  [[nodiscard]] int Type1Unmap(Container& container, void* argument, std::string& line)
      REQUIRES(mutex_);
  [[nodiscard]] Answer IommufdIoctl(FileId file, unsigned long request, unsigned long argument,
                                    std::string& line) REQUIRES(mutex_);
  [[nodiscard]] int Destroy(FileId file, std::uint32_t id) REQUIRES(mutex_);
  [[nodiscard]] int IoasRanges(FileId file, void* argument) REQUIRES(mutex_);
  [[nodiscard]] int IoasMap(FileId file, const void* argument, std::string& line) REQUIRES(mutex_);
  [[nodiscard]] int IoasMapFile(FileId file, const void* argument, std::string& line)
      REQUIRES(mutex_);
  [[nodiscard]] int IoasUnmap(FileId file, void* argument, std::string& line) REQUIRES(mutex_);
  [[nodiscard]] int AddToIoas(IoasObject& ioas, const FakeMapping& mapping) REQUIRES(mutex_);
  [[nodiscard]] int HwptAlloc(FileId file, void* argument) REQUIRES(mutex_);
  [[nodiscard]] int HwptTrack(const void* argument, std::string& line) REQUIRES(mutex_);
  [[nodiscard]] int HwptBitmap(void* argument) REQUIRES(mutex_);
  [[nodiscard]] IoasObject* FindIoas(FileId file, std::uint32_t id) REQUIRES(mutex_);

  Mutex mutex_;
  std::map<FileId, File> files_ GUARDED_BY(mutex_);
  std::map<unsigned, Group> groups_ GUARDED_BY(mutex_);
  std::map<FileId, Container> containers_ GUARDED_BY(mutex_);
  std::map<std::uint32_t, IoasObject> ioas_ GUARDED_BY(mutex_);
  std::map<std::uint32_t, Hwpt> hwpts_ GUARDED_BY(mutex_);
  std::uint32_t next_id_ GUARDED_BY(mutex_) = 1;
  std::multimap<unsigned long, Failing> failing_ GUARDED_BY(mutex_);
  std::map<std::string, int> failing_opens_ GUARDED_BY(mutex_);
  std::vector<std::string> log_ GUARDED_BY(mutex_);
};

}  // namespace postern::iommu
