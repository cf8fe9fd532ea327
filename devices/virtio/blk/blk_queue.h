#pragma once

// BlkQueue: one running queue of a Blk: pops requests, gives them to the engine in batches, answers
// them. Internal to Blk.
//
// A request occupies the slot of its chain's head until it is answered. It is carried out in steps
// (the next of its ranges, what a short read left over, the next piece through the bounce buffer);
// each step is one operation of the engine. Threads: the queue's loop.

#include <sys/uio.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "devices/virtio/blk/blk.h"
#include "devices/virtio/blk/engine.h"

namespace postern::virtio {

class BlkQueue final : private EventHandler, private BlkCompletions {
 public:
  BlkQueue(Blk& blk, EventLoop& loop, std::unique_ptr<ActiveQueue> active);
  ~BlkQueue() override = default;
  BlkQueue(const BlkQueue&) = delete;
  BlkQueue& operator=(const BlkQueue&) = delete;

  [[nodiscard]] EventLoop& loop() const { return loop_; }
  [[nodiscard]] std::string_view engine() const { return engine_->name(); }
  // Watches the doorbell and serves what is there.
  void Start();
  // Answers everything in flight and gives the queue back.
  std::unique_ptr<ActiveQueue> Stop();

 private:
  static constexpr std::size_t kMaxIovecs = 1024;  // IOV_MAX
  static constexpr std::uint64_t kBounceSize = 1 << 20;
  static constexpr std::size_t kZeroSize = 64 << 10;

  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  using AlignedBuffer = std::unique_ptr<std::byte, Free>;

  struct Range {
    std::uint64_t offset;  // bytes
    std::uint64_t bytes;
    bool unmap;
  };
  struct Slot {
    std::optional<Chain> chain;
    BlkRequest request;
    std::uint64_t done = 0;  // bytes of the payload, or of the current range
    std::uint64_t step = 0;  // bytes the operation in flight should move
    std::vector<Range> ranges;
    std::size_t range = 0;     // which one is being worked on
    bool write_zeros = false;  // the host has no operation for it: write them
    std::uint8_t interruptions = 0;
    AlignedBuffer bounce;  // of kBounceSize or the payload's size
  };

  void OnEvent(int fd, std::uint32_t events) override;
  void OnDone(std::uint32_t tag, std::int64_t result) override;
  void Pump();
  void Complete();  // commits, reaps, and commits what that made, until nothing more happens

  void Begin(Chain chain);
  void BeginRanges(std::uint32_t tag, Reader& payload, const BlkLimits& limits);
  void Continue(std::uint32_t tag);
  void ContinueTransfer(std::uint32_t tag);
  void ContinueRange(std::uint32_t tag);
  // Iovecs for the rest of the payload, from the arena; empty when it must go through a bounce
  // buffer.
  [[nodiscard]] std::span<const iovec> DirectIovecs(const Slot& slot);
  // The next piece through the bounce buffer; empty if there is no memory for one.
  [[nodiscard]] std::span<const iovec> BounceIovecs(Slot& slot);
  void Submit(BlkOp op);
  std::span<iovec> Arena();
  void Moved(std::uint32_t tag, std::uint64_t bytes);
  void Failed(std::uint32_t tag, int error);
  void Finish(std::uint32_t tag, BlkStatus status, std::uint64_t data_bytes);
  [[nodiscard]] Queue& queue() { return active_->queue; }

  Blk& blk_;
  EventLoop& loop_;
  std::unique_ptr<ActiveQueue> active_;
  std::unique_ptr<BlkEngine> engine_;
  std::vector<Slot> slots_;   // by head
  std::vector<iovec> arena_;  // iovecs of operations not committed yet
  std::size_t arena_used_ = 0;
  AlignedBuffer zeros_;
  bool uncommitted_ = false;
};

}  // namespace postern::virtio
