#include "devices/virtio/blk/blk_queue.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::virtio {

namespace {

std::unique_ptr<BlkEngine> MakeEngine(const BlkOptions& options, const Disk& disk,
                                      std::uint32_t depth) {
  if (options.engine != BlkOptions::Engine::kSync) {
    Result<std::unique_ptr<BlkEngine>> engine = MakeUringEngine(disk.fd(), depth);
    if (engine) return *std::move(engine);
    LOG_WARN("blk", "{}: {}; using plain system calls", options.id, Describe(engine.error()));
  }
  return MakeSyncEngine(disk.fd(), depth);
}

}  // namespace

BlkQueue::BlkQueue(Blk& blk, EventLoop& loop, std::unique_ptr<ActiveQueue> active)
    : blk_(blk),
      loop_(loop),
      active_(std::move(active)),
      engine_(MakeEngine(blk.options_, blk.disk_, active_->queue.size())),
      slots_(active_->queue.size()),
      arena_(2 * kMaxIovecs) {}

void BlkQueue::Start() {
  // Edge-triggered: each kick is one event, and the eventfd need not be read.
  Result<void> watched = loop_.Watch(active_->kick->fd(), EPOLLIN | EPOLLET, *this);
  if (watched && engine_->poll_fd() >= 0) {
    watched = loop_.Watch(engine_->poll_fd(), EPOLLIN, *this);
  }
  if (!watched) return blk_.Broken(watched.error());
  // A queue that was running before (a restore) may owe the driver an interrupt.
  if (queue().state().next_used != 0) queue().NotifyAlways();
  Pump();
}

std::unique_ptr<ActiveQueue> BlkQueue::Stop() {
  loop_.Unwatch(active_->kick->fd());
  // Everything the host was given is waited for (in other monitors it ran on into freed memory),
  // and answered: whoever stops the queue may continue it later.
  engine_->Drain(*this);
  if (engine_->poll_fd() >= 0) loop_.Unwatch(engine_->poll_fd());
  CHECK(queue().in_flight() == 0);
  queue().NotifyIfNeeded();
  return std::move(active_);
}

void BlkQueue::OnEvent(int fd, std::uint32_t /*events*/) {
  if (fd == active_->kick->fd()) {
    blk_.counters_.kicks.Add();
    return Pump();
  }
  Complete();
  queue().NotifyIfNeeded();
}

void BlkQueue::Pump() {
  if (blk_.broken_.load(std::memory_order_relaxed)) return;
  // A driver that refills the ring as fast as it is emptied must not keep the loop from its other
  // work.
  std::uint32_t budget = std::max<std::uint32_t>(queue().size(), 64);
  queue().DisableKicks();
  do {
    while (budget > 0) {
      Result<std::optional<Chain>> next = queue().Pop();
      if (!next) {
        Complete();
        queue().NotifyIfNeeded();
        return blk_.Broken(next.error());
      }
      if (!*next) break;
      --budget;
      blk_.counters_.chains.Add();
      Begin(std::move(**next));
      if (blk_.broken_.load(std::memory_order_relaxed)) break;
    }
    Complete();
    queue().NotifyIfNeeded();
    if (blk_.broken_.load(std::memory_order_relaxed)) return;
    if (budget == 0) return active_->kick->Signal();
  } while (queue().EnableKicks());
}

void BlkQueue::Complete() {
  do {
    if (std::exchange(uncommitted_, false)) {
      blk_.counters_.commits.Add();
      engine_->Commit();
      arena_used_ = 0;
    }
    engine_->Reap(*this);
  } while (uncommitted_);
}

void BlkQueue::Submit(BlkOp op) {
  uncommitted_ = true;
  engine_->Submit(op);
}

std::span<iovec> BlkQueue::Arena() {
  if (arena_.size() - arena_used_ < kMaxIovecs) {
    engine_->Commit();
    arena_used_ = 0;
  }
  return std::span(arena_).subspan(arena_used_, kMaxIovecs);
}

// --- one request ---

void BlkQueue::Begin(Chain chain) {
  const std::uint32_t tag = chain.head();
  Slot& slot = slots_[tag];
  Reader reader = chain.reader();
  Writer writer = chain.writer();
  Result<BlkRequest> request = ParseRequest(reader, writer);
  if (!request) {
    // No header or no room for a status: there is no way to answer (5.2.6.1).
    chain.Complete(0);
    return blk_.Broken(request.error());
  }
  slot.chain.emplace(std::move(chain));
  slot.request = *request;
  slot.done = 0;
  slot.range = 0;
  slot.write_zeros = false;
  slot.interruptions = 0;
  const BlkLimits limits = blk_.limits();
  if (const std::optional<BlkStatus> refused = Refuse(slot.request, limits)) {
    return Finish(tag, *refused, 0);
  }
  switch (slot.request.kind) {
    case BlkRequestKind::kGetId: {
      // 5.2.6: 20 bytes, padded with zeros, not terminated if all are used.
      std::array<std::byte, kBlkIdSize> id{};
      std::memcpy(id.data(), blk_.options_.serial.data(),
                  std::min(id.size(), blk_.options_.serial.size()));
      const std::size_t bytes = std::min<std::uint64_t>(id.size(), writer.remaining());
      const bool written = writer.Copy(std::span(id).first(bytes)).has_value();
      return Finish(tag, written ? BlkStatus::kOk : BlkStatus::kIoErr, bytes);
    }
    case BlkRequestKind::kFlush:
      if (blk_.options_.cache == BlkOptions::Cache::kUnsafe || blk_.options_.readonly) {
        return Finish(tag, BlkStatus::kOk, 0);
      }
      return Submit({.kind = BlkOp::Kind::kSync, .tag = tag});
    case BlkRequestKind::kDiscard:
    case BlkRequestKind::kWriteZeroes:
      return BeginRanges(tag, reader, limits);
    default:
      if (slot.request.bytes == 0) return Finish(tag, BlkStatus::kOk, 0);
      return ContinueTransfer(tag);
  }
}

// All ranges are read once and checked before the first is carried out.
void BlkQueue::BeginRanges(std::uint32_t tag, Reader& payload, const BlkLimits& limits) {
  Slot& slot = slots_[tag];
  slot.ranges.clear();
  while (payload.remaining() > 0) {
    const Result<BlkRange> range = payload.Read<BlkRange>();
    if (!range) return Finish(tag, BlkStatus::kIoErr, 0);
    if (const auto refused = RefuseRange(slot.request.kind, *range, limits)) {
      return Finish(tag, *refused, 0);
    }
    if (range->num_sectors.get() == 0) continue;
    slot.ranges.push_back({range->sector.get() * kSectorSize,
                           range->num_sectors.get() * kSectorSize,
                           (range->flags.get() & kBlkRangeUnmap) != 0});
  }
  if (slot.ranges.empty()) return Finish(tag, BlkStatus::kOk, 0);
  ContinueRange(tag);
}

void BlkQueue::Continue(std::uint32_t tag) {
  switch (slots_[tag].request.kind) {
    case BlkRequestKind::kRead:
    case BlkRequestKind::kWrite:
      return ContinueTransfer(tag);
    case BlkRequestKind::kDiscard:
    case BlkRequestKind::kWriteZeroes:
      return ContinueRange(tag);
    default:
      return Submit({.kind = BlkOp::Kind::kSync, .tag = tag});
  }
}

void BlkQueue::ContinueTransfer(std::uint32_t tag) {
  Slot& slot = slots_[tag];
  std::span<const iovec> iovecs;
  if (slot.bounce == nullptr) iovecs = DirectIovecs(slot);
  slot.step = slot.request.bytes - slot.done;
  if (iovecs.empty()) {
    iovecs = BounceIovecs(slot);
    if (iovecs.empty()) return Failed(tag, ENOMEM);
    slot.step = iovecs[0].iov_len;
  }
  const bool write = slot.request.kind == BlkRequestKind::kWrite;
  Submit({.kind = write ? BlkOp::Kind::kWrite : BlkOp::Kind::kRead,
          .durable = write && blk_.durable_writes(),
          .tag = tag,
          .offset = slot.request.sector * kSectorSize + slot.done,
          .bytes = slot.step,
          .iovecs = iovecs});
}

std::span<const iovec> BlkQueue::DirectIovecs(const Slot& slot) {
  const std::span<iovec> arena = Arena();
  const std::uint64_t left = slot.request.bytes - slot.done;
  Result<std::size_t> count = 0;
  if (slot.request.kind == BlkRequestKind::kWrite) {
    Reader payload = slot.chain->reader();
    if (!payload.Skip(sizeof(BlkHeader) + slot.done)) return {};
    count = payload.Iovecs(left, arena);
  } else {
    Writer payload = slot.chain->writer();
    if (!payload.Skip(slot.done)) return {};
    count = payload.Iovecs(left, arena);
  }
  if (!count) return {};
  const std::span<iovec> iovecs = arena.first(*count);
  const std::uint64_t alignment = blk_.disk_.memory_alignment();
  if (alignment > 1) {
    // O_DIRECT: every piece begins aligned in memory and is whole blocks long.
    const std::uint64_t block = blk_.disk_.block_size();
    for (const iovec& piece : iovecs) {
      if (reinterpret_cast<std::uintptr_t>(piece.iov_base) % alignment != 0 ||
          piece.iov_len % block != 0) {
        return {};
      }
    }
  }
  arena_used_ += *count;
  return iovecs;
}

std::span<const iovec> BlkQueue::BounceIovecs(Slot& slot) {
  if (slot.bounce == nullptr) {
    const std::uint64_t size = (std::min(slot.request.bytes, kBounceSize) + 4095) / 4096 * 4096;
    slot.bounce.reset(static_cast<std::byte*>(std::aligned_alloc(4096, size)));
    if (slot.bounce == nullptr) return {};
    blk_.counters_.bounced.Add();
  }
  const std::uint64_t bytes = std::min(slot.request.bytes - slot.done, kBounceSize);
  if (slot.request.kind == BlkRequestKind::kWrite) {
    Reader payload = slot.chain->reader();
    if (!payload.Skip(sizeof(BlkHeader) + slot.done) ||
        !payload.Copy(std::span(slot.bounce.get(), bytes))) {
      return {};
    }
  }
  const std::span<iovec> arena = Arena();
  arena[0] = {slot.bounce.get(), bytes};
  ++arena_used_;
  return arena.first(1);
}

void BlkQueue::ContinueRange(std::uint32_t tag) {
  Slot& slot = slots_[tag];
  const Range& range = slot.ranges[slot.range];
  const std::uint64_t left = range.bytes - slot.done;
  if (!slot.write_zeros) {
    // 5.2.6.2: zeros without unmap must leave the sectors allocated.
    const bool hole = slot.request.kind == BlkRequestKind::kDiscard || range.unmap;
    slot.step = left;
    return Submit({.kind = hole ? BlkOp::Kind::kPunchHole : BlkOp::Kind::kZeroRange,
                   .tag = tag,
                   .offset = range.offset + slot.done,
                   .bytes = left});
  }
  if (zeros_ == nullptr) {
    zeros_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, kZeroSize)));
    if (zeros_ == nullptr) return Failed(tag, ENOMEM);
    std::memset(zeros_.get(), 0, kZeroSize);
  }
  const std::span<iovec> arena = Arena();
  std::size_t count = 0;
  slot.step = 0;
  while (slot.step < left && count < kMaxIovecs / 4) {
    const std::uint64_t bytes = std::min<std::uint64_t>(left - slot.step, kZeroSize);
    arena[count++] = {zeros_.get(), bytes};
    slot.step += bytes;
  }
  arena_used_ += count;
  Submit({.kind = BlkOp::Kind::kWrite,
          .durable = blk_.durable_writes(),
          .tag = tag,
          .offset = range.offset + slot.done,
          .bytes = slot.step,
          .iovecs = arena.first(count)});
}

void BlkQueue::OnDone(std::uint32_t tag, std::int64_t result) {
  Slot& slot = slots_[tag];
  CHECK(slot.chain.has_value());
  if (result < 0) return Failed(tag, static_cast<int>(-result));
  switch (slot.request.kind) {
    case BlkRequestKind::kRead:
    case BlkRequestKind::kWrite:
      // The file ends before the disk does: it was cut under us.
      if (result == 0) return Failed(tag, EIO);
      return Moved(tag, std::min<std::uint64_t>(static_cast<std::uint64_t>(result), slot.step));
    case BlkRequestKind::kDiscard:
    case BlkRequestKind::kWriteZeroes:
      if (slot.write_zeros && result == 0) return Failed(tag, EIO);
      slot.done += slot.write_zeros ? static_cast<std::uint64_t>(result) : slot.step;
      if (slot.done >= slot.ranges[slot.range].bytes) {
        slot.done = 0;
        if (++slot.range == slot.ranges.size()) return Finish(tag, BlkStatus::kOk, 0);
      }
      return ContinueRange(tag);
    default:
      return Finish(tag, BlkStatus::kOk, 0);
  }
}

void BlkQueue::Moved(std::uint32_t tag, std::uint64_t bytes) {
  Slot& slot = slots_[tag];
  if (slot.bounce != nullptr && slot.request.kind == BlkRequestKind::kRead) {
    Writer payload = slot.chain->writer();
    if (!payload.Skip(slot.done) || !payload.Copy(std::span(slot.bounce.get(), bytes))) {
      return Failed(tag, EIO);
    }
  }
  slot.done += bytes;
  if (slot.done < slot.request.bytes) return ContinueTransfer(tag);
  Finish(tag, BlkStatus::kOk, slot.request.kind == BlkRequestKind::kRead ? slot.done : 0);
}

void BlkQueue::Failed(std::uint32_t tag, int error) {
  Slot& slot = slots_[tag];
  if ((error == EINTR || error == EAGAIN) && ++slot.interruptions < 16) return Continue(tag);
  if (error == EOPNOTSUPP && !slot.write_zeros) {
    if (slot.request.kind == BlkRequestKind::kWriteZeroes) {
      slot.write_zeros = true;
      return ContinueRange(tag);
    }
    if (slot.request.kind == BlkRequestKind::kDiscard)
      return Finish(tag, BlkStatus::kUnsupported, 0);
  }
  GUEST_LOG("blk", "{}: at sector {}: {}", blk_.options_.id, slot.request.sector,
            Describe(SysError("disk I/O", error).value()));
  // The host may have written any part of the guest's buffer before it failed.
  if (slot.request.kind == BlkRequestKind::kRead) slot.chain->MarkWritableDirty();
  Finish(tag, BlkStatus::kIoErr, 0);
}

void BlkQueue::Finish(std::uint32_t tag, BlkStatus status, std::uint64_t data_bytes) {
  Slot& slot = slots_[tag];
  Blk::Counters& counters = blk_.counters_;
  if (status != BlkStatus::kOk) {
    counters.errors.Add();
  } else {
    switch (slot.request.kind) {
      case BlkRequestKind::kRead:
        counters.reads.Add();
        counters.read_bytes.Add(slot.request.bytes);
        break;
      case BlkRequestKind::kWrite:
        counters.writes.Add();
        counters.write_bytes.Add(slot.request.bytes);
        break;
      case BlkRequestKind::kFlush:
        counters.flushes.Add();
        break;
      case BlkRequestKind::kDiscard:
        counters.discards.Add();
        break;
      case BlkRequestKind::kWriteZeroes:
        counters.write_zeroes.Add();
        break;
      default:
        break;
    }
  }
  // The status byte is inside the chain by construction of ParseRequest.
  CHECK(slot.request.status.Write(static_cast<std::uint8_t>(status)).has_value());
  slot.bounce.reset();
  // 5.2.6.1 and 2.7.8: what was written counts from the front; after a failure that is nothing but
  // the status.
  slot.chain->Complete(static_cast<std::uint32_t>(data_bytes + 1));
  slot.chain.reset();
}

}  // namespace postern::virtio
