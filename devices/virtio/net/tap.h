#pragma once

// Tap: one queue of a TAP interface with a virtio-net header of 12 bytes before each packet; and
// how to get the queues of one.
//
//   auto taps = Tap::Open({.name = "tap0", .queues = 2});   // Outcome: the cause and what to do
//   about it
//
// An interface that exists is attached to; otherwise one is created, brought up, and gone with its
// last descriptor. The only place with TUN ioctls. Threads: each Tap one owner; attaching and
// offloads from any.

#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/net/net_regs.h"
#include "src/base/failure.h"
#include "src/base/fd.h"

namespace postern::virtio::net {

class Tap {
 public:
  struct Options {
    std::string name;  // at most 15 bytes
    std::uint16_t queues = 1;
  };
  // One Tap per queue, all attached.
  [[nodiscard]] static Outcome<std::vector<Tap>> Open(const Options& options);
  // Queues somebody else opened (one descriptor each, with IFF_VNET_HDR); takes them over, also
  // when it fails.
  [[nodiscard]] static Outcome<std::vector<Tap>> Adopt(std::span<const int> descriptors);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] bool created() const { return created_; }

  // As readv and writev of one packet with its header; bytes, or -errno.
  [[nodiscard]] long Read(std::span<const iovec> parts) const;
  [[nodiscard]] long Write(std::span<const iovec> parts) const;

  // Which of kGuestOffloads the kernel may use on packets to the guest. Those without GUEST_CSUM
  // are left out.
  [[nodiscard]] Result<void> SetOffloads(std::uint64_t guest_offloads) const;
  // Whether UDP segmentation is known to the kernel (since Linux 6.2). Leaves all offloads off.
  [[nodiscard]] bool ProbeUso() const;
  // A queue that is detached gets no packets (multi-queue interfaces only).
  [[nodiscard]] Result<void> Attach(bool attached);
  // The interface's MTU, if it is in this network namespace.
  [[nodiscard]] std::optional<std::uint16_t> Mtu() const;
  [[nodiscard]] Result<void> SetMtu(std::uint16_t mtu) const;

 private:
  Tap(Fd fd, std::string name, bool created)
      : fd_(std::move(fd)), name_(std::move(name)), created_(created) {}
  [[nodiscard]] static Result<void> Prepare(int fd);
  Fd fd_;
  std::string name_;
  bool created_;
  bool attached_ = true;
};

}  // namespace postern::virtio::net
