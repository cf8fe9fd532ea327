#include "iommu/fake_iommu_kernel.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <iterator>
#include <utility>

#include <fmt/core.h>

namespace postern::iommu {
namespace {

constexpr const char* kGroupPrefix = "/dev/vfio/";

std::optional<unsigned> GroupNumber(const std::string& path) {
  const std::string_view text(path);
  if (!text.starts_with(kGroupPrefix)) return std::nullopt;
  const std::string_view digits = text.substr(std::strlen(kGroupPrefix));
  if (digits.empty() || digits.size() > 6) return std::nullopt;
  unsigned number = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<unsigned>(c - '0');
  }
  return number;
}

std::string Failed(const std::string& line, int error) {
  const char* name = strerrorname_np(error);
  return line + " = " + (name != nullptr ? name : std::to_string(error));
}

}  // namespace

void FakeIommuKernel::AddGroup(unsigned number, const FakeHardware& hardware) {
  const MutexLock lock(mutex_);
  groups_[number] = Group{.hardware = hardware};
}

void FakeIommuKernel::SetViable(unsigned number, bool viable) {
  const MutexLock lock(mutex_);
  groups_[number].viable = viable;
}

void FakeIommuKernel::TakeAway(unsigned number) {
  const MutexLock lock(mutex_);
  Group& group = groups_[number];
  group.gone = true;
  if (group.container != 0) Leave(number, group);
}

void FakeIommuKernel::Fail(unsigned long request, int error, unsigned after) {
  const MutexLock lock(mutex_);
  failing_.emplace(request, Failing{error, after});
}

void FakeIommuKernel::FailOpen(const std::string& path, int error) {
  const MutexLock lock(mutex_);
  failing_opens_[path] = error;
}

std::vector<std::string> FakeIommuKernel::TakeLog() {
  Reap();
  const MutexLock lock(mutex_);
  return std::exchange(log_, {});
}

void FakeIommuKernel::Record(std::string line) {
  const MutexLock lock(mutex_);
  log_.push_back(std::move(line));
}

std::size_t FakeIommuKernel::open_files() {
  Reap();
  const MutexLock lock(mutex_);
  return files_.size();
}

// One failure a call: the first of this request that is due. The others count down.
int FakeIommuKernel::TakeFailure(unsigned long request) {
  const auto [begin, end] = failing_.equal_range(request);
  auto due = end;
  for (auto it = begin; it != end; ++it) {
    if (it->second.after > 0) {
      --it->second.after;
    } else if (due == end) {
      due = it;
    }
  }
  if (due == end) return 0;
  const int error = due->second.error;
  failing_.erase(due);
  return error;
}

// --- files ---

Result<Fd> FakeIommuKernel::MakeFile(const std::string& name, Kind kind) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return SysError("pipe2");
  Fd watch(ends[0]);
  Fd given(ends[1]);
  struct stat status {};
  if (fstat(given.get(), &status) != 0) return SysError("fstat");
  files_[status.st_ino] = File{.watch = std::move(watch), .kind = kind, .name = name};
  return given;
}

Result<Fd> FakeIommuKernel::NewFile(const std::string& name) {
  const MutexLock lock(mutex_);
  return MakeFile(name, Kind::kOther);
}

FakeIommuKernel::FileId FakeIommuKernel::Find(int fd) const {
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISFIFO(status.st_mode)) return 0;
  return files_.contains(status.st_ino) ? status.st_ino : 0;
}

FakeIommuKernel::FileId FakeIommuKernel::Identify(int fd) {
  const MutexLock lock(mutex_);
  return Find(fd);
}

std::optional<unsigned> FakeIommuKernel::GroupOf(int fd) {
  const MutexLock lock(mutex_);
  const auto group = FindGroup(Find(fd));
  if (group == groups_.end()) return std::nullopt;
  return group->first;
}

bool FakeIommuKernel::IsIommufd(int fd) {
  const MutexLock lock(mutex_);
  const auto file = files_.find(Find(fd));
  return file != files_.end() && file->second.kind == Kind::kIommufd;
}

bool FakeIommuKernel::HasDomain(unsigned number) {
  const MutexLock lock(mutex_);
  const auto group = groups_.find(number);
  if (group == groups_.end() || group->second.container == 0) return false;
  return containers_[group->second.container].iommu;
}

void FakeIommuKernel::Reap() {
  std::vector<std::pair<FileId, std::string>> others;
  {
    const MutexLock lock(mutex_);
    std::vector<FileId> gone;
    for (const auto& [id, file] : files_) {
      pollfd watched{.fd = file.watch.get(), .events = 0, .revents = 0};
      if (poll(&watched, 1, 0) > 0 && (watched.revents & POLLHUP) != 0) gone.push_back(id);
    }
    for (const FileId id : gone) {
      log_.push_back("close " + files_[id].name);
      if (files_[id].kind == Kind::kOther) others.emplace_back(id, files_[id].name);
      Forget(id);
    }
  }
  for (const auto& [id, name] : others) Closed(id, name);
}

// What the kernel does when the last descriptor is closed. A container lives on while a group is
// attached; a device keeps its group (the derived kernel's devices are closed before).
void FakeIommuKernel::Forget(FileId file) {
  const Kind kind = files_[file].kind;
  if (kind == Kind::kGroup) {
    const auto group = FindGroup(file);
    if (group != groups_.end()) {
      if (group->second.container != 0) Leave(group->first, group->second);
      group->second.file = 0;
    }
  }
  if (kind == Kind::kContainer && containers_[file].groups.empty()) containers_.erase(file);
  if (kind == Kind::kIommufd) {
    std::erase_if(ioas_, [&](const auto& entry) { return entry.second.iommufd == file; });
    for (auto it = hwpts_.begin(); it != hwpts_.end();) {
      it = ioas_.contains(it->second.ioas) ? std::next(it) : hwpts_.erase(it);
    }
  }
  files_.erase(file);
}

// --- KernelCalls ---

Result<Fd> FakeIommuKernel::Open(const std::string& path, int flags) {
  Reap();
  const auto open = [&]() -> Result<Fd> {
    const MutexLock lock(mutex_);
    if (const auto failing = failing_opens_.find(path); failing != failing_opens_.end()) {
      const int error = failing->second;
      failing_opens_.erase(failing);
      return SysError("open", error);
    }
    if (path == "/dev/vfio/vfio" && rules.containers) {
      Fd fd = TRY(MakeFile(path, Kind::kContainer));
      containers_[Find(fd.get())] = {};
      return fd;
    }
    if (path == "/dev/iommu" && rules.iommufd) return MakeFile(path, Kind::kIommufd);
    const std::optional<unsigned> number = GroupNumber(path);
    const auto group = number ? groups_.find(*number) : groups_.end();
    if (group == groups_.end()) return Err(Errc::kNotFound, "open");
    if (group->second.file != 0) return SysError("open", EBUSY);
    Fd fd = TRY(MakeFile(path, Kind::kGroup));
    group->second.file = Find(fd.get());
    return fd;
  };
  Result<Fd> fd = open();
  if (!fd && fd.error().code == Errc::kNotFound) fd = OpenOther(path, flags);
  Record(fd ? "open " + path : Failed("open " + path, fd.error().sys_errno));
  return fd;
}

Result<int> FakeIommuKernel::IoctlRaw(int fd, unsigned long request, unsigned long argument,
                                      const char* op) {
  Reap();
  const std::optional<unsigned> number = GroupOf(fd);
  const bool busy = request == VFIO_GROUP_UNSET_CONTAINER && number && GroupBusy(*number);
  std::size_t entry = 0;
  int value = 0;
  int error = 0;
  {
    const MutexLock lock(mutex_);
    entry = log_.size();
    std::string line = op;
    error = TakeFailure(request);
    if (error == 0) error = Dispatch(Find(fd), request, argument, busy, value, line);
    log_.push_back(error > 0 ? Failed(line, error) : line);
  }
  if (error == 0) {
    if (tamper) tamper(request, reinterpret_cast<void*>(argument));
    return value;
  }
  if (error > 0) return SysError(op, error);
  Result<int> other = IoctlOther(fd, request, argument, op);
  if (!other) {
    const MutexLock lock(mutex_);
    if (entry < log_.size()) log_[entry] = Failed(log_[entry], other.error().sys_errno);
  }
  return other;
}

FakeIommuKernel::Answer FakeIommuKernel::Dispatch(FileId file, unsigned long request,
                                                  unsigned long argument, bool busy, int& value,
                                                  std::string& line) {
  const auto found = files_.find(file);
  if (found == files_.end()) return -1;
  switch (found->second.kind) {
    case Kind::kGroup:
      return GroupIoctl(FindGroup(file)->first, request, argument, busy);
    case Kind::kContainer:
      return ContainerIoctl(containers_[file], request, argument, value, line);
    case Kind::kIommufd:
      return IommufdIoctl(file, request, argument, line);
    case Kind::kOther:
      return -1;
  }
  return -1;
}

Result<std::size_t> FakeIommuKernel::Read(int /*fd*/, std::span<std::byte> /*to*/,
                                          std::uint64_t /*offset*/, const char* op) {
  return SysError(op, EINVAL);
}

Result<std::size_t> FakeIommuKernel::Write(int /*fd*/, std::span<const std::byte> /*from*/,
                                           std::uint64_t /*offset*/, const char* op) {
  return SysError(op, EINVAL);
}

Result<Mmap> FakeIommuKernel::Map(int /*fd*/, std::uint64_t /*offset*/, std::size_t /*size*/,
                                  int /*prot*/, const char* op) {
  return SysError(op, ENODEV);
}

Result<Fd> FakeIommuKernel::OpenOther(const std::string& /*path*/, int /*flags*/) {
  return SysError("open", ENOENT);
}

Result<int> FakeIommuKernel::IoctlOther(int /*fd*/, unsigned long /*request*/,
                                        unsigned long /*argument*/, const char* op) {
  return SysError(op, ENOTTY);
}

}  // namespace postern::iommu
