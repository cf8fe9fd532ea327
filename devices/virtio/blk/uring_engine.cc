#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>

#include <array>
#include <bit>
#include <cerrno>
#include <utility>
#include <vector>

#include <liburing.h>

#include "devices/virtio/blk/engine.h"
#include "src/base/check.h"
#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::virtio {

namespace {

class UringEngine final : public BlkEngine {
 public:
  UringEngine(int fd, std::uint32_t depth) : fd_(fd), depth_(depth) {
    pending_.reserve(depth);
    fallback_ = MakeSyncEngine(fd, depth);
  }
  ~UringEngine() override {
    CHECK(in_flight_ == 0);
    if (open_) io_uring_queue_exit(&ring_);
  }
  UringEngine(const UringEngine&) = delete;
  UringEngine& operator=(const UringEngine&) = delete;

  // COOP_TASKRUN (5.19): completions wait for this thread's next system call instead of
  // interrupting it. Not DEFER_TASKRUN: its completions do not make the ring readable for epoll,
  // and it ties the ring to one thread.
  Result<void> Open() {
    int result = io_uring_queue_init(std::bit_ceil(depth_), &ring_, IORING_SETUP_COOP_TASKRUN);
    if (result == -EINVAL) result = io_uring_queue_init(std::bit_ceil(depth_), &ring_, 0);
    if (result != 0) return SysError("io_uring_setup", -result);
    open_ = true;
    // One reference for all operations instead of one each.
    fixed_file_ = io_uring_register_files(&ring_, &fd_, 1) == 0;
    return {};
  }

  void Submit(const BlkOp& op) override {
    if (dead_) return fallback_->Submit(op);
    pending_.push_back(op);
  }

  void Commit() override {
    if (pending_.empty() || dead_) return;
    for (const BlkOp& op : pending_) {
      io_uring_sqe* entry = io_uring_get_sqe(&ring_);
      CHECK(entry != nullptr);  // the queue holds `depth` of them, and all were submitted last time
      Prepare(op, *entry);
    }
    std::size_t submitted = 0;
    while (submitted < pending_.size()) {
      const int result = io_uring_submit(&ring_);
      if (result > 0) {
        submitted += static_cast<std::size_t>(result);
        in_flight_ += static_cast<std::size_t>(result);
      } else if (result != -EINTR && result != -EAGAIN && result != -EBUSY) {
        Die(-result, submitted);
        break;
      }
    }
    pending_.clear();
  }

  void Reap(BlkCompletions& completions) override {
    std::array<io_uring_cqe*, 64> entries{};
    while (in_flight_ > 0) {
      const unsigned count = io_uring_peek_batch_cqe(&ring_, entries.data(), entries.size());
      if (count == 0) break;
      in_flight_ -= count;
      for (unsigned i = 0; i < count; ++i) {
        completions.OnDone(static_cast<std::uint32_t>(entries[i]->user_data), entries[i]->res);
      }
      io_uring_cq_advance(&ring_, count);
    }
    fallback_->Reap(completions);
  }

  void Drain(BlkCompletions& completions) override {
    Commit();
    Reap(completions);
    while (in_flight_ > 0 || !pending_.empty()) {
      Commit();
      io_uring_cqe* entry = nullptr;
      const int result = in_flight_ > 0 ? io_uring_wait_cqe(&ring_, &entry) : 0;
      if (result < 0 && result != -EINTR && result != -EAGAIN) {
        LOG_ERROR("blk", "{}; operations in flight are lost",
                  Describe(SysError("io_uring_enter", -result).value()));
        in_flight_ = 0;
        break;
      }
      Reap(completions);
    }
    fallback_->Reap(completions);
  }

  [[nodiscard]] int poll_fd() const override { return ring_.ring_fd; }
  [[nodiscard]] std::string_view name() const override { return "io_uring"; }

 private:
  void Prepare(const BlkOp& op, io_uring_sqe& entry) const {
    const int fd = fixed_file_ ? 0 : fd_;
    const auto count = static_cast<unsigned>(op.iovecs.size());
    switch (op.kind) {
      case BlkOp::Kind::kRead:
        if (count == 1) {
          io_uring_prep_read(&entry, fd, op.iovecs[0].iov_base, static_cast<unsigned>(op.bytes),
                             op.offset);
        } else {
          io_uring_prep_readv(&entry, fd, op.iovecs.data(), count, op.offset);
        }
        break;
      case BlkOp::Kind::kWrite:
        if (count == 1) {
          io_uring_prep_write(&entry, fd, op.iovecs[0].iov_base, static_cast<unsigned>(op.bytes),
                              op.offset);
        } else {
          io_uring_prep_writev(&entry, fd, op.iovecs.data(), count, op.offset);
        }
        entry.rw_flags = op.durable ? RWF_DSYNC : 0;
        break;
      case BlkOp::Kind::kSync:
        io_uring_prep_fsync(&entry, fd, IORING_FSYNC_DATASYNC);
        break;
      case BlkOp::Kind::kPunchHole:
      case BlkOp::Kind::kZeroRange:
        io_uring_prep_fallocate(
            &entry, fd,
            FALLOC_FL_KEEP_SIZE |
                (op.kind == BlkOp::Kind::kPunchHole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
            static_cast<off_t>(op.offset), static_cast<off_t>(op.bytes));
        break;
    }
    if (fixed_file_) entry.flags |= IOSQE_FIXED_FILE;
    entry.user_data = op.tag;
  }

  // io_uring_enter refuses this ring for good (it was used by another thread before, or a sandbox
  // closed on us): what it did not take, and all that follows, goes by plain system calls. The
  // kernel keeps what it took.
  void Die(int error, std::size_t submitted) {
    LOG_WARN("blk", "{}; continuing without io_uring",
             Describe(SysError("io_uring_enter", error).value()));
    dead_ = true;
    for (std::size_t i = submitted; i < pending_.size(); ++i) fallback_->Submit(pending_[i]);
  }

  int fd_;
  std::uint32_t depth_;
  io_uring ring_{};
  bool open_ = false;
  bool fixed_file_ = false;
  bool dead_ = false;
  std::size_t in_flight_ = 0;   // in the kernel's hands
  std::vector<BlkOp> pending_;  // submitted to us, not to the kernel
  std::unique_ptr<BlkEngine> fallback_;
};

}  // namespace

Result<std::unique_ptr<BlkEngine>> MakeUringEngine(int fd, std::uint32_t depth) {
  auto engine = std::make_unique<UringEngine>(fd, depth);
  TRY(engine->Open());
  return std::unique_ptr<BlkEngine>(std::move(engine));
}

}  // namespace postern::virtio
