#pragma once

// KernelCalls: the system calls of kernel interfaces that are spoken by ioctl (VFIO, iommufd), as
// an object: a test puts a recording, failing or lying kernel in its place.
//
//   Fd container = TRY(calls.Open("/dev/vfio/vfio", O_RDWR));
//   vfio_device_info info{.argsz = sizeof(info)};
//   TRY(calls.Ioctl(device.get(), VFIO_DEVICE_GET_INFO, &info, "VFIO_DEVICE_GET_INFO"));
//
// Is not: a general system-call layer; KVM, TAP and files have their own typed libraries. A
// descriptor is closed by its Fd. Errors: kSystem with errno; `op` (static text) names the call.
// Threads: SystemCalls() from any thread.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "src/base/fd.h"
#include "src/base/mmap.h"
#include "src/base/result.h"

namespace postern {

class KernelCalls {
 public:
  virtual ~KernelCalls() = default;

  // Open(2); O_CLOEXEC is added.
  [[nodiscard]] virtual Result<Fd> Open(const std::string& path, int flags) = 0;
  // Ioctl(2) with its argument as the kernel's ABI has it: a number or a pointer. The answer is not
  // negative.
  [[nodiscard]] virtual Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                                             const char* op) = 0;
  // Pread(2) and pwrite(2), once.
  [[nodiscard]] virtual Result<std::size_t> Read(int fd, std::span<std::byte> to,
                                                 std::uint64_t offset, const char* op) = 0;
  [[nodiscard]] virtual Result<std::size_t> Write(int fd, std::span<const std::byte> from,
                                                  std::uint64_t offset, const char* op) = 0;
  // A shared mapping of a file, at an address that huge pages can be used at
  // (Mmap::CreateCongruent).
  [[nodiscard]] virtual Result<Mmap> Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                                         const char* op) = 0;

  template <typename T>
  [[nodiscard]] Result<int> Ioctl(int fd, unsigned long request, T* argument, const char* op) {
    return IoctlRaw(fd, request, reinterpret_cast<std::uintptr_t>(argument), op);
  }
  [[nodiscard]] Result<int> Ioctl(int fd, unsigned long request, const char* op) {
    return IoctlRaw(fd, request, 0, op);
  }
};

[[nodiscard]] KernelCalls& SystemCalls();

}  // namespace postern
