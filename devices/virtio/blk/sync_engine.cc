#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "devices/virtio/blk/engine.h"

namespace postern::virtio {

namespace {

class SyncEngine final : public BlkEngine {
 public:
  SyncEngine(int fd, std::uint32_t depth) : fd_(fd) { done_.reserve(depth); }

  void Submit(const BlkOp& op) override {
    std::int64_t result = 0;
    do {
      result = Run(op);
    } while (result < 0 && errno == EINTR);
    done_.push_back({op.tag, result < 0 ? -std::int64_t{errno} : result});
  }
  void Commit() override {}
  void Reap(BlkCompletions& completions) override {
    // OnDone may submit more, which lands at the end.
    for (std::size_t i = 0; i < done_.size(); ++i) {
      const Done done = done_[i];
      completions.OnDone(done.tag, done.result);
    }
    done_.clear();
  }
  void Drain(BlkCompletions& completions) override { Reap(completions); }
  [[nodiscard]] int poll_fd() const override { return -1; }
  [[nodiscard]] std::string_view name() const override { return "sync"; }

 private:
  struct Done {
    std::uint32_t tag;
    std::int64_t result;
  };

  [[nodiscard]] std::int64_t Run(const BlkOp& op) const {
    const auto offset = static_cast<off_t>(op.offset);
    const auto bytes = static_cast<off_t>(op.bytes);
    const auto count = static_cast<int>(op.iovecs.size());
    switch (op.kind) {
      case BlkOp::Kind::kRead:
        return preadv2(fd_, op.iovecs.data(), count, offset, 0);
      case BlkOp::Kind::kWrite:
        return pwritev2(fd_, op.iovecs.data(), count, offset, op.durable ? RWF_DSYNC : 0);
      case BlkOp::Kind::kSync:
        return fdatasync(fd_);
      case BlkOp::Kind::kPunchHole:
        return fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
      case BlkOp::Kind::kZeroRange:
        return fallocate(fd_, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes);
    }
    errno = EINVAL;
    return -1;
  }

  int fd_;
  std::vector<Done> done_;
};

}  // namespace

std::unique_ptr<BlkEngine> MakeSyncEngine(int fd, std::uint32_t depth) {
  return std::make_unique<SyncEngine>(fd, depth);
}

}  // namespace postern::virtio
