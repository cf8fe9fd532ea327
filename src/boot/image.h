#pragma once

// Image: the bytes of a kernel or initrd: a regular file, or a span of this process's memory (the
// built-in guest). Nothing in it is trusted: every read is checked against the size taken when it
// was opened, and a file that shrinks meanwhile is an error, not zeros.
//
//   Outcome<Image> image = Image::Open("vmlinux", "kernel");
//   Result<void> r = image->ReadInto(memory, Gpa(0x100000), offset, length);   // straight into
//   guest memory, no copy between
//
// Ownership: Open and FromFd own or borrow a descriptor; FromBytes borrows the span. Threads:
// const, pread only: any.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "src/base/failure.h"
#include "src/base/fd.h"
#include "src/base/result.h"
#include "src/memory/guest_memory.h"

namespace postern::boot {

class Image {
 public:
  // `what` ("kernel", "initrd") starts the message of a Failure.
  [[nodiscard]] static Outcome<Image> Open(const std::string& path, const char* what);
  // `name` is for messages.
  [[nodiscard]] static Outcome<Image> FromFd(Fd fd, std::string name, const char* what);
  [[nodiscard]] static Image FromBytes(std::span<const std::byte> bytes, std::string name,
                                       const char* what);

  [[nodiscard]] std::uint64_t size() const { return size_; }
  // "kernel 'path'".
  [[nodiscard]] std::string Label() const;

  // Exactly to.size() bytes from `offset`; kBadFormat if the image ends before.
  [[nodiscard]] Result<void> Read(std::uint64_t offset, std::span<std::byte> to) const;
  // The same into guest RAM; kGuestRange if [gpa, gpa + length) is not all RAM.
  [[nodiscard]] Result<void> ReadInto(const memory::GuestMemory& memory, memory::Gpa gpa,
                                      std::uint64_t offset, std::uint64_t length) const;

 private:
  Image() = default;
  [[nodiscard]] bool Fits(std::uint64_t offset, std::uint64_t length) const {
    return offset <= size_ && size_ - offset >= length;
  }
  Fd fd_;
  std::span<const std::byte> bytes_;
  std::uint64_t size_ = 0;
  std::string name_;
  const char* what_ = "";
};

}  // namespace postern::boot
