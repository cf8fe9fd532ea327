#pragma once

// Fd: sole owner of a file descriptor. Move-only; closes once. All descriptors of this project are
// opened O_CLOEXEC. Threads: not synchronised; the descriptor itself may be used from any thread.

#include <utility>

#include "src/base/result.h"

namespace postern {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { Close(); }

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void Close();
  // A second descriptor of the same open file (F_DUPFD_CLOEXEC).
  [[nodiscard]] Result<Fd> Duplicate() const;

 private:
  int fd_ = -1;
};

}  // namespace postern
