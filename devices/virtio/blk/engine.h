#pragma once

// BlkEngine: how block operations of one queue reach the host: io_uring, or plain system calls
// where io_uring is refused.
//
//   engine->Submit({.kind = BlkOp::Kind::kRead, .tag = slot, .offset = ..., .iovecs = ..., .bytes =
//   ...}); engine->Commit();                 // one system call for all that was submitted
//   engine->Reap(completions);        // OnDone(tag, bytes or -errno) for what is finished; more
//   may be submitted from there
//   ... engine->poll_fd() is readable when there is something to reap ...
//
// Ownership: borrows the file. Iovecs are borrowed until the next Commit returns, the memory they
// name until OnDone. Threads: one, the loop of the queue; destroyed there too, after Drain.

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "src/base/result.h"

namespace postern::virtio {

struct BlkOp {
  enum class Kind : std::uint8_t { kRead, kWrite, kSync, kPunchHole, kZeroRange };
  Kind kind = Kind::kRead;
  bool durable = false;  // kWrite: done means on stable storage
  std::uint32_t tag = 0;
  std::uint64_t offset = 0;  // bytes in the file
  std::uint64_t bytes = 0;
  std::span<const iovec> iovecs = {};  // kRead, kWrite: `bytes` of memory
};

class BlkCompletions {
 public:
  // `result`: bytes moved, which may be fewer than asked for; 0 for the kinds that move none; or
  // -errno.
  virtual void OnDone(std::uint32_t tag, std::int64_t result) = 0;

 protected:
  ~BlkCompletions() = default;
};

class BlkEngine {
 public:
  virtual ~BlkEngine() = default;
  // At most `depth` operations (see the factories) are between Submit and OnDone.
  virtual void Submit(const BlkOp& op) = 0;
  virtual void Commit() = 0;
  virtual void Reap(BlkCompletions& completions) = 0;
  // Commits, then waits until nothing is in flight, reaping all of it.
  virtual void Drain(BlkCompletions& completions) = 0;
  // -1: everything is finished when Commit returns.
  [[nodiscard]] virtual int poll_fd() const = 0;
  [[nodiscard]] virtual std::string_view name() const = 0;
};

// kSystem where the kernel or a sandbox refuses io_uring.
[[nodiscard]] Result<std::unique_ptr<BlkEngine>> MakeUringEngine(int fd, std::uint32_t depth);
// Blocks the loop for the time of each operation.
[[nodiscard]] std::unique_ptr<BlkEngine> MakeSyncEngine(int fd, std::uint32_t depth);

}  // namespace postern::virtio
