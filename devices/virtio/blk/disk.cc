#include "devices/virtio/blk/disk.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "src/base/log.h"

namespace postern::virtio {

namespace {

constexpr std::uint32_t kLargestBlock = 4096;

const char* ErrorText(int error) {
  const char* text = strerrordesc_np(error);  // unlike strerror, safe with threads
  return text != nullptr ? text : "unknown error";
}

std::string NextStepFor(int error, bool readonly) {
  switch (error) {
    case ENOENT:
      return "check the path, or create it: truncate -s 1G FILE";
    case EACCES:
    case EPERM:
      return readonly ? "check its owner and mode"
                      : "check its owner and mode, or attach it readonly";
    case EROFS:
      return "attach it readonly, or put it on a writable file system";
    default:
      return {};
  }
}

// A sysfs number of the disk a block device is, or is a partition of; 0 if there is none.
std::uint64_t QueueLimit(dev_t device, const char* name) {
  for (const char* above : {"", "../"}) {
    const std::string path =
        fmt::format("/sys/dev/block/{}:{}/{}queue/{}", major(device), minor(device), above, name);
    const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::array<char, 32> text{};
    if (fd.valid() && read(fd.get(), text.data(), text.size() - 1) > 0) {
      return std::strtoull(text.data(), nullptr, 10);
    }
  }
  return 0;
}

}  // namespace

Outcome<Disk> Disk::Open(const std::string& path, bool readonly, bool direct) {
  struct stat info {};
  // Looked at before it is opened: opening a FIFO would wait for its other end.
  if (stat(path.c_str(), &info) != 0) {
    return ConfigFailure(fmt::format("cannot open disk '{}': {}", path, ErrorText(errno)),
                         NextStepFor(errno, readonly));
  }
  if (S_ISDIR(info.st_mode)) {
    return ConfigFailure(fmt::format("disk '{}' is a directory", path),
                         "name a raw image file or a block device");
  }
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return ConfigFailure(fmt::format("disk '{}' is neither a file nor a block device", path),
                         "name a raw image file or a block device");
  }
  Disk disk;
  disk.path_ = path;
  disk.readonly_ = readonly;
  disk.direct_ = direct;
  disk.block_device_ = S_ISBLK(info.st_mode);
  disk.fd_ = Fd(open(path.c_str(), (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY |
                                       (direct ? O_DIRECT : 0)));
  if (!disk.fd_.valid()) {
    if (errno == EINVAL && direct) {
      return ConfigFailure(fmt::format("the file system of disk '{}' does not do direct I/O", path),
                           "leave out the option 'direct'");
    }
    return ConfigFailure(fmt::format("cannot open disk '{}': {}", path, ErrorText(errno)),
                         NextStepFor(errno, readonly));
  }
  if (Outcome<void> locked = disk.Lock(); !locked) return tl::unexpected(locked.error());
  if (Outcome<void> measured = disk.Measure(); !measured) return tl::unexpected(measured.error());
  return disk;
}

// Open file description locks belong to the descriptor, not to the process: two disks of one
// process exclude each other as well.
Outcome<void> Disk::Lock() {
  struct flock lock {};
  lock.l_type = readonly_ ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd_.get(), F_OFD_SETLK, &lock) == 0) return {};
  if (errno == EAGAIN || errno == EACCES) {
    return ConfigFailure(
        fmt::format("disk '{}' is in use by another process or another disk", path_),
        readonly_ ? "end the one that writes to it"
                  : "end the other one, or attach it readonly in both");
  }
  LOG_WARN("blk", "disk '{}' cannot be locked against other users: {}", path_, ErrorText(errno));
  return {};
}

// The kernel may hold our descriptor a little longer (an io_uring that had it registered is torn
// down in the background): the lock ends here and not then.
Disk::~Disk() {
  if (!fd_.valid()) return;
  struct flock lock {};
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  fcntl(fd_.get(), F_OFD_SETLK, &lock);
}

Outcome<void> Disk::Measure() {
  struct stat info {};
  if (fstat(fd_.get(), &info) != 0) {
    return HostFailure(fmt::format("cannot measure disk '{}': {}", path_, ErrorText(errno)));
  }
  if (block_device_) {
    int logical = 0;
    unsigned int physical = 0;
    unsigned int optimal = 0;
    if (ioctl(fd_.get(), BLKSSZGET, &logical) == 0 && logical >= 512 &&
        std::has_single_bit(static_cast<unsigned>(logical))) {
      block_size_ = static_cast<std::uint32_t>(logical);
    }
    physical_block_size_ = block_size_;
    if (ioctl(fd_.get(), BLKPBSZGET, &physical) == 0 && std::has_single_bit(physical)) {
      physical_block_size_ = std::max(physical, block_size_);
    }
    if (ioctl(fd_.get(), BLKIOOPT, &optimal) == 0) optimal_io_size_ = optimal;
    can_discard_ = !readonly_ && QueueLimit(info.st_rdev, "discard_max_bytes") > 0;
  } else {
    const auto preferred = static_cast<std::uint64_t>(info.st_blksize);
    physical_block_size_ =
        std::has_single_bit(preferred) && preferred >= 512
            ? static_cast<std::uint32_t>(std::min<std::uint64_t>(preferred, 4096))
            : 512;
    // A hole beyond the end of a file is no change; the file system says whether it could make one.
    can_discard_ = !readonly_ && fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                           (info.st_size + 4095) / 4096 * 4096, 4096) == 0;
  }
  if (direct_) MeasureDirect();
  const off_t raw_size = lseek(fd_.get(), 0, SEEK_END);
  const Result<std::uint64_t> size = Size();
  if (!size) return HostFailure(fmt::format("cannot measure disk '{}'", path_), size.error());
  if (*size == 0) {
    return ConfigFailure(
        fmt::format("disk '{}' is empty: {} bytes, blocks have {}", path_, raw_size, block_size_),
        fmt::format("give it a size: truncate -s 1G {}", path_));
  }
  if (static_cast<std::uint64_t>(raw_size) != *size) {
    LOG_WARN("blk", "disk '{}' has {} bytes, no multiple of {}: the last {} bytes are out of reach",
             path_, raw_size, block_size_, static_cast<std::uint64_t>(raw_size) - *size);
  }
  WarnOfFormat();
  return {};
}

// The alignment O_DIRECT wants has no portable interface before STATX_DIOALIGN: ask by reading.
void Disk::MeasureDirect() {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  const std::unique_ptr<void, Free> buffer(std::aligned_alloc(kLargestBlock, 2UL * kLargestBlock));
  if (buffer == nullptr) return;
  auto* bytes = static_cast<std::byte*>(buffer.get());
  while (block_size_ < kLargestBlock && pread(fd_.get(), bytes, block_size_, 0) < 0 &&
         errno == EINVAL) {
    block_size_ *= 2;
  }
  physical_block_size_ = std::max(physical_block_size_, block_size_);
  memory_alignment_ = 512;
  while (memory_alignment_ < kLargestBlock &&
         pread(fd_.get(), bytes + memory_alignment_, block_size_, 0) < 0 && errno == EINVAL) {
    memory_alignment_ *= 2;
  }
}

Result<std::uint64_t> Disk::Size() const {
  const off_t end = lseek(fd_.get(), 0, SEEK_END);
  if (end < 0) return SysError("lseek");
  return static_cast<std::uint64_t>(end) / block_size_ * block_size_;
}

// Image formats are not interpreted: their backing file names would be the guest's to write.
// Whoever gives one by mistake is told.
void Disk::WarnOfFormat() const {
  alignas(kLargestBlock) std::array<char, kLargestBlock> start{};
  if (pread(fd_.get(), start.data(), start.size(), 0) < 4) return;
  if (std::memcmp(start.data(), "QFI\xfb", 4) == 0 || std::memcmp(start.data(), "KDMV", 4) == 0) {
    LOG_WARN("blk",
             "disk '{}' looks like a qcow2 or vmdk image and is used as raw bytes; convert it "
             "with: qemu-img convert -O raw",
             path_);
  }
}

}  // namespace postern::virtio
