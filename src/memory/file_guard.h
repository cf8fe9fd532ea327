#pragma once

// FileGuard: a mapping of a file that another process may shorten while we use it: an access beyond
// the new end is a SIGBUS, which would end this process for what its peer did.
//
//   FileGuard guard = TRY(FileGuard::Create(mapping.data(), mapping.size()));
//   ...
//   if (guard.lost()) ...   // the memory is zeros of our own now
//
// While it lives, such an access replaces the whole mapping by anonymous memory and goes on: who
// cut its file off reads zeros, is written nowhere, and harms nobody else. Any other SIGBUS has the
// effect it had before.
//
// Is not for memory the kernel is told of by address (KVM memslots, IOMMU maps, read(2) into it):
// those see an error of their own. A process-wide signal handler is behind it, installed by the
// first one and never taken away; a program that wants SIGBUS for itself afterwards takes it from
// this. Ownership: destroyed before its mapping is. Threads: any. Source: POSIX mmap, "References
// within the address range ... beyond the end of an object shall result in delivery of a SIGBUS".

#include <cstddef>
#include <utility>

#include "src/base/result.h"

namespace postern::memory {

class FileGuard {
 public:
  // Mappings that can be guarded at once; kExhausted beyond.
  static constexpr std::size_t kMost = 4096;

  // Whole pages of a mapping that is to be read and written.
  [[nodiscard]] static Result<FileGuard> Create(const std::byte* address, std::size_t size);
  FileGuard(FileGuard&& other) noexcept : slot_(std::exchange(other.slot_, kMost)) {}
  FileGuard& operator=(FileGuard&& other) noexcept;
  FileGuard(const FileGuard&) = delete;
  FileGuard& operator=(const FileGuard&) = delete;
  ~FileGuard() { Release(); }

  // The file was shortened, and somebody here was where it had been.
  [[nodiscard]] bool lost() const;

 private:
  explicit FileGuard(std::size_t slot) : slot_(slot) {}
  void Release();

  std::size_t slot_ = kMost;
};

}  // namespace postern::memory
