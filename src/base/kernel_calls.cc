#include "src/base/kernel_calls.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace postern {
namespace {

class System final : public KernelCalls {
 public:
  Result<Fd> Open(const std::string& path, int flags) override {
    Fd fd(open(path.c_str(), flags | O_CLOEXEC));
    if (!fd.valid()) return SysError("open");
    return fd;
  }
  Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                       const char* op) override {
    const int answer = ioctl(fd, request, argument);
    if (answer < 0) return SysError(op);
    return answer;
  }
  Result<std::size_t> Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                           const char* op) override {
    const ssize_t n = pread(fd, to.data(), to.size(), static_cast<off_t>(offset));
    if (n < 0) return SysError(op);
    return static_cast<std::size_t>(n);
  }
  Result<std::size_t> Write(int fd, std::span<const std::byte> from, std::uint64_t offset,
                            const char* op) override {
    const ssize_t n = pwrite(fd, from.data(), from.size(), static_cast<off_t>(offset));
    if (n < 0) return SysError(op);
    return static_cast<std::size_t>(n);
  }
  Result<Mmap> Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                   const char* op) override {
    Result<Mmap> mapping = Mmap::CreateCongruent(size, prot, MAP_SHARED, fd, offset);
    if (!mapping) return SysError(op, mapping.error().sys_errno);
    return mapping;
  }
};

}  // namespace

KernelCalls& SystemCalls() {
  static System system;
  return system;
}

}  // namespace postern
