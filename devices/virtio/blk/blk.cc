#include "devices/virtio/blk/blk.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "devices/virtio/blk/blk_queue.h"
#include "devices/virtio/blk/engine.h"
#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::virtio {

namespace {

// Of one request: enough to keep a guest's trim busy, little enough that one request does not
// occupy the host for long.
constexpr std::uint32_t kMaxRanges = 16;
constexpr std::uint32_t kMaxDiscardSectors = (1U << 30) / kSectorSize;
constexpr std::uint32_t kMaxWriteZeroesSectors = (64U << 20) / kSectorSize;

Outcome<void> Check(const BlkOptions& options) {
  const auto wrong = [&](const char* field, const char* want) {
    return ConfigFailure(fmt::format("disk '{}': {} {}", options.path, field, want));
  };
  if (options.serial.size() > kBlkIdSize) return wrong("serial", "is longer than 20 bytes");
  if (options.num_queues < 1 || options.num_queues > 64) return wrong("queues", "must be 1 to 64");
  if (!std::has_single_bit(options.queue_size) || options.queue_size < 4 ||
      options.queue_size > 1024) {
    return wrong("queue size", "must be a power of two from 4 to 1024");
  }
  return {};
}

std::uint8_t Log2(std::uint32_t n) {
  return static_cast<std::uint8_t>(std::countr_zero(n));
}

}  // namespace

Outcome<std::unique_ptr<Blk>> Blk::Create(const BlkOptions& options,
                                          std::span<EventLoop* const> loops) {
  CHECK(!loops.empty());
  if (Outcome<void> checked = Check(options); !checked) return tl::unexpected(checked.error());
  Outcome<Disk> disk = Disk::Open(options.path, options.readonly, options.direct);
  if (!disk) return tl::unexpected(disk.error());
  if (options.engine == BlkOptions::Engine::kIoUring) {
    // Asked for by name: its absence is an error now, not a fallback later.
    const Result<std::unique_ptr<BlkEngine>> engine = MakeUringEngine(disk->fd(), 1);
    if (!engine) {
      return HostFailure(fmt::format("disk '{}': io_uring", options.path), engine.error(),
                         "allow io_uring (kernel.io_uring_disabled, seccomp), or use engine=auto");
    }
  }
  const Result<std::uint64_t> size = disk->Size();
  if (!size) return HostFailure(fmt::format("disk '{}'", options.path), size.error());
  std::unique_ptr<Blk> blk(new Blk(options, *std::move(disk), loops));
  blk->capacity_.store(*size / kSectorSize, std::memory_order_relaxed);
  return blk;
}

Blk::Blk(BlkOptions options, Disk disk, std::span<EventLoop* const> loops)
    : options_(std::move(options)),
      disk_(std::move(disk)),
      loops_(loops.begin(), loops.end()),
      queue_sizes_(options_.num_queues, options_.queue_size),
      writeback_(options_.cache != BlkOptions::Cache::kWritethrough) {
  features_ = kBlkFeatureSegMax | kBlkFeatureBlkSize | kBlkFeatureTopology;
  if (options_.readonly) {
    features_ |= kBlkFeatureRo;
  } else {
    features_ |= kBlkFeatureWriteZeroes;
    if (disk_.can_discard()) features_ |= kBlkFeatureDiscard;
    // Without FLUSH a driver takes every write for stable, which is what writethrough makes it.
    if (options_.cache != BlkOptions::Cache::kWritethrough) {
      features_ |= kBlkFeatureFlush | kBlkFeatureConfigWce;
    }
  }
  if (options_.num_queues > 1) features_ |= kBlkFeatureMq;
  queues_.resize(options_.num_queues);
}

Blk::~Blk() {
  static_cast<void>(Reset());
}

// --- configuration space; vCPU threads ---

void Blk::ReadConfig(std::uint64_t offset, std::span<std::byte> data) {
  BlkConfig config{};
  const std::uint32_t block = disk_.block_size();
  config.capacity = capacity();
  // 5.2.4: the most segments of a request beside header and status; no chain is longer than its
  // queue.
  config.seg_max = options_.queue_size - 2U;
  config.blk_size = block;
  config.physical_block_exp = Log2(disk_.physical_block_size() / block);
  config.min_io_size = static_cast<std::uint16_t>(disk_.physical_block_size() / block);
  config.opt_io_size = disk_.optimal_io_size() / block;
  config.writeback = writeback_.load(std::memory_order_relaxed) ? 1 : 0;
  config.num_queues = options_.num_queues;
  if ((features_ & kBlkFeatureDiscard) != 0) {
    config.max_discard_sectors = kMaxDiscardSectors;
    config.max_discard_seg = kMaxRanges;
    config.discard_sector_alignment =
        static_cast<std::uint32_t>(disk_.physical_block_size() / kSectorSize);
  }
  if ((features_ & kBlkFeatureWriteZeroes) != 0) {
    config.max_write_zeroes_sectors = kMaxWriteZeroesSectors;
    config.max_write_zeroes_seg = kMaxRanges;
    config.write_zeroes_may_unmap = 1;
  }
  const auto bytes = std::as_bytes(std::span(&config, 1)).first(kBlkConfigSize);
  for (std::size_t i = 0; i < data.size(); ++i) {
    const bool inside = offset < bytes.size() && i < bytes.size() - offset;
    data[i] = inside ? bytes[offset + i] : std::byte{0};
  }
}

void Blk::WriteConfig(std::uint64_t offset, std::span<const std::byte> data) {
  // 5.2.5.2: writeback is the one field a driver may write, where CONFIG_WCE was offered.
  if ((features_ & kBlkFeatureConfigWce) == 0) return;
  constexpr std::uint64_t kWriteback = offsetof(BlkConfig, writeback);
  if (offset != kWriteback || data.size() != 1 || std::to_integer<int>(data[0]) > 1) return;
  writeback_.store(data[0] == std::byte{1}, std::memory_order_relaxed);
}

// --- what the queues ask ---

BlkLimits Blk::limits() const {
  return {.capacity = capacity(),
          .readonly = options_.readonly,
          .alignment = disk_.block_size(),
          .discard = (features_ & kBlkFeatureDiscard) != 0,
          .write_zeroes = (features_ & kBlkFeatureWriteZeroes) != 0,
          .max_ranges = kMaxRanges,
          .max_discard_sectors = kMaxDiscardSectors,
          .max_write_zeroes_sectors = kMaxWriteZeroesSectors};
}

bool Blk::durable_writes() const {
  if (options_.cache != BlkOptions::Cache::kWriteback) {
    return options_.cache == BlkOptions::Cache::kWritethrough;
  }
  // 5.2.5.2: the driver's choice if it can choose, else what its knowledge of FLUSH implies.
  const std::uint64_t negotiated = negotiated_.load(std::memory_order_relaxed);
  if ((negotiated & kBlkFeatureConfigWce) != 0) return !writeback_.load(std::memory_order_relaxed);
  return (negotiated & kBlkFeatureFlush) == 0;
}

void Blk::Broken(const Error& error) {
  counters_.protocol_errors.Add();
  GUEST_LOG("blk", "{}: {}; the device stops until it is reset", options_.id, Describe(error));
  if (!broken_.exchange(true)) resources_.interrupt->NeedsReset();
}

// --- control; loops_[0] ---

void Blk::Activate(Resources resources) {
  CHECK(!active_);
  active_ = true;
  broken_.store(false);
  negotiated_.store(resources.features, std::memory_order_relaxed);
  // 5.2.5.2: a driver that may choose but knows no flush begins with writethrough.
  if ((resources.features & (kBlkFeatureConfigWce | kBlkFeatureFlush)) == kBlkFeatureConfigWce) {
    writeback_.store(false, std::memory_order_relaxed);
  }
  std::vector<std::unique_ptr<ActiveQueue>> queues = std::move(resources.queues);
  resources_ = std::move(resources);
  resources_.queues.clear();
  CHECK(queues.size() <= queues_.size());
  for (auto& queue : queues) {
    if (queue != nullptr) Start(std::move(queue));
  }
}

void Blk::Start(std::unique_ptr<ActiveQueue> queue) {
  const std::uint16_t index = queue->index;
  CHECK(index < queues_.size() && queues_[index] == nullptr);
  EventLoop& loop = LoopOf(index);
  queues_[index] = std::make_unique<BlkQueue>(*this, loop, std::move(queue));
  loop.RunSync([&] { queues_[index]->Start(); });
}

std::unique_ptr<ActiveQueue> Blk::ResetQueue(std::uint16_t index) {
  if (!active_ || index >= queues_.size() || queues_[index] == nullptr) return nullptr;
  std::unique_ptr<ActiveQueue> queue;
  queues_[index]->loop().RunSync([&] {
    queue = queues_[index]->Stop();
    queues_[index].reset();
  });
  return queue;
}

void Blk::ResumeQueue(std::unique_ptr<ActiveQueue> queue) {
  CHECK(active_);
  Start(std::move(queue));
}

Resources Blk::Reset() {
  if (!active_) return {};
  std::vector<std::unique_ptr<ActiveQueue>> queues(queues_.size());
  for (std::size_t i = 0; i < queues.size(); ++i)
    queues[i] = ResetQueue(static_cast<std::uint16_t>(i));
  active_ = false;
  negotiated_.store(0, std::memory_order_relaxed);
  Resources resources = std::exchange(resources_, {});
  resources.queues = std::move(queues);
  return resources;
}

std::string_view Blk::engine() const {
  for (const auto& queue : queues_) {
    if (queue != nullptr) return queue->engine();
  }
  return {};
}

Result<void> Blk::Resize() {
  const std::uint64_t sectors = TRY(disk_.Size()) / kSectorSize;
  if (capacity_.exchange(sectors, std::memory_order_relaxed) == sectors) return {};
  LOG_INFO("blk", "{}: capacity is now {} sectors", options_.id, sectors);
  loop().RunSync([&] {
    if (active_) resources_.interrupt->Config();
  });
  return {};
}

BlkState Blk::Save() const {
  return {.capacity = capacity(), .writeback = writeback_.load(std::memory_order_relaxed)};
}

Result<void> Blk::Restore(const BlkState& state) {
  if (active_) return Err(Errc::kBadState, "blk state: restored into a running device");
  if (state.version != BlkState{}.version) return Err(Errc::kBadFormat, "blk state: version");
  const std::uint64_t sectors = TRY(disk_.Size()) / kSectorSize;
  if (state.capacity == 0 || state.capacity > sectors) {
    return Err(Errc::kBadFormat, "blk state: capacity");
  }
  if (!state.writeback && options_.cache == BlkOptions::Cache::kUnsafe) {
    LOG_WARN("blk", "{}: the guest asked for writethrough, which cache=unsafe ignores",
             options_.id);
  }
  capacity_.store(state.capacity, std::memory_order_relaxed);
  writeback_.store(state.writeback, std::memory_order_relaxed);
  return {};
}

void Blk::ReportCounters(CounterSink& sink) const {
  const Counters& c = counters_;
  sink.Add("kicks", c.kicks.Get());
  sink.Add("chains", c.chains.Get());
  sink.Add("protocol_errors", c.protocol_errors.Get());
  sink.Add("reads", c.reads.Get());
  sink.Add("read_bytes", c.read_bytes.Get());
  sink.Add("writes", c.writes.Get());
  sink.Add("write_bytes", c.write_bytes.Get());
  sink.Add("flushes", c.flushes.Get());
  sink.Add("discards", c.discards.Get());
  sink.Add("write_zeroes", c.write_zeroes.Get());
  sink.Add("errors", c.errors.Get());
  sink.Add("bounced", c.bounced.Get());
  sink.Add("commits", c.commits.Get());
}

}  // namespace postern::virtio
