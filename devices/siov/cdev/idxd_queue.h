#pragma once

// IdxdQueue: one work queue of the host's idxd driver, opened by this process: /dev/dsa/wqX.Y.
//
//   std::unique_ptr<IdxdQueue> queue = TRY_OUTCOME(OpenIdxdQueue("/dev/dsa/wq0.0"));
//   if (queue->Write(descriptor) == 0) ... its completion record will be written ...
//
// The addresses in a descriptor are this process's own: the driver has bound the queue (or, of a
// shared one, what is submitted) to its address space. Who lets a guest's descriptor in here has
// rewritten it (rewriter.h).
//
// Submission is write(2) alone. The driver's mmap of the portal asks for CAP_SYS_RAWIO since
// INTEL-SA-01084, and what it spares is a system call beside an exit of the guest.
//
// Opening names what is wrong, and what to do about it, from the queue's attributes in sysfs.
//
// Ownership: values, a descriptor. Threads: as Backend uses it: one. Source: Linux 6.12
// drivers/dma/idxd/{cdev,sysfs}.c, Documentation/ABI/stable/sysfs-driver-dma-idxd.

#include <cstdint>
#include <memory>
#include <string>

#include "devices/siov/core/backend.h"
#include "src/base/failure.h"
#include "vfio/sysfs.h"

namespace postern::dsa {

struct IdxdQueueInfo {
  std::string name;        // "wq0.0"
  bool shared = false;     // of several processes; or dedicated to this one
  std::uint32_t size = 0;  // entries
  std::uint64_t max_transfer = 0;
  siov::OperationSet operations{};
};

class IdxdQueue {
 public:
  virtual ~IdxdQueue() = default;
  [[nodiscard]] virtual const IdxdQueueInfo& info() const = 0;
  // One descriptor: 0, or the errno of write(2). EAGAIN: the (shared) queue is full.
  [[nodiscard]] virtual int Write(const siov::Descriptor& descriptor) = 0;
  // Whether the driver still has the queue enabled.
  [[nodiscard]] virtual bool Alive() = 0;
  // When it returns nothing that was written touches this process's memory any more: the driver
  // drains what it holds. Write and Alive fail from then on.
  virtual void Close() = 0;
};

// What the attributes say, without opening it (which a dedicated queue allows one process). kConfig
// for what is no queue's path; kHost for one that cannot be used (as it is).
[[nodiscard]] Outcome<IdxdQueueInfo> ExamineIdxdQueue(const std::string& path,
                                                      const vfio::HostRoots& roots = {});
// As that, and what open(2) says.
[[nodiscard]] Outcome<std::unique_ptr<IdxdQueue>> OpenIdxdQueue(const std::string& path,
                                                                const vfio::HostRoots& roots = {});

// "00000001,003f03ff" as the driver prints operations: 32 bits each, the highest first. False: it
// is nothing of the kind.
[[nodiscard]] bool ParseOperations(const std::string& text, siov::OperationSet& operations);

}  // namespace postern::dsa
