#include "devices/virtio/console/device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "src/base/check.h"
#include "src/base/endian.h"

namespace postern::virtio {
namespace {

// VIRTIO 1.2 5.3.4
struct ConsoleConfig {
  le16 cols;
  le16 rows;
  le32 max_nr_ports;
  le32 emerg_wr;
};
static_assert(sizeof(ConsoleConfig) == 12);

constexpr std::size_t kChunk = 4096;
// A guest may describe 4 GiB of output in one chain: after this much the loop's other work has its
// turn.
constexpr std::uint64_t kBytesPerTurn = 65536;

}  // namespace

Outcome<std::unique_ptr<Console>> Console::Create(const ConsoleOptions& options, EventLoop& loop) {
  Outcome<std::unique_ptr<console::ConsoleBackend>> backend =
      console::CreateBackend(options.backend, loop);
  if (!backend) return tl::unexpected(backend.error());
  return std::make_unique<Console>(std::move(*backend), loop);
}

Console::Console(std::unique_ptr<console::ConsoleBackend> backend, EventLoop& loop)
    : SingleLoopDevice(loop, "console"), backend_(std::move(backend)) {
  loop.RunSync([this] {
    const MutexLock lock(mutex_);
    size_ = backend_->window_size();
    backend_->Attach(*this);
  });
}

Console::~Console() {
  loop().RunSync([this] {
    backend_->Detach();
    Reset();
  });
}

std::uint32_t Console::config_size() const {
  return sizeof(ConsoleConfig);
}

void Console::ReadConfig(std::uint64_t offset, std::span<std::byte> data) {
  ConsoleConfig config{};
  {
    const MutexLock lock(mutex_);
    config.cols = size_.cols;
    config.rows = size_.rows;
  }
  config.max_nr_ports = 1;
  std::fill(data.begin(), data.end(), std::byte{0});
  if (offset >= sizeof(config)) return;
  const std::size_t bytes =
      std::min(data.size(), sizeof(config) - static_cast<std::size_t>(offset));
  std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&config) + offset, bytes);
}

void Console::OnActivate() {
  // Linux takes the size from a configuration change, not from the configuration it starts with.
  bool known = false;
  {
    const MutexLock lock(mutex_);
    known = size_.cols != 0 && size_.rows != 0;
  }
  if (known && (negotiated() & kFeatureSize) != 0) interrupt().Config();
  if (!carry_.empty()) Transmit();
}

void Console::OnDeactivate() {
  loop().Cancel(continue_);
  OnQueueReset(kTransmitQueue);
  carry_.clear();
}

void Console::OnQueueReset(std::uint16_t queue) {
  if (queue != kTransmitQueue || !pending_) return;
  pending_->Discard();
  pending_.reset();
}

bool Console::WantsChain(std::uint16_t queue) {
  return queue == kReceiveQueue ? backend_->has_input() : !pending_ && carry_.empty();
}

void Console::OnChain(std::uint16_t queue, Chain chain) {
  if (queue == kReceiveQueue) {
    Receive(std::move(chain));
  } else {
    pending_.emplace(std::move(chain));
    pending_sent_ = 0;
    Transmit();
  }
}

void Console::Receive(Chain chain) {
  Writer writer = chain.writer();
  std::array<std::byte, kChunk> bytes{};
  while (writer.remaining() > 0) {
    const std::size_t n = backend_->Read(
        std::span(bytes).first(std::min<std::uint64_t>(bytes.size(), writer.remaining())));
    if (n == 0) break;
    // As many bytes as remain: it fits.
    CHECK(writer.Copy(std::span(bytes).first(n)).has_value());
  }
  received_bytes_.Add(writer.written());
  chain.Complete(static_cast<std::uint32_t>(writer.written()));
}

bool Console::TransmitCarried() {
  if (carry_.empty()) return true;
  const iovec part{carry_.data(), carry_.size()};
  const std::size_t n = backend_->Write(std::span(&part, 1));
  transmitted_bytes_.Add(n);
  carry_.erase(carry_.begin(), carry_.begin() + static_cast<std::ptrdiff_t>(n));
  return carry_.empty();
}

void Console::Transmit() {
  if (!TransmitCarried() || !pending_) return;
  Reader reader = pending_->reader();
  // Nothing of the chain changes while it is pending, so what was sent can be skipped again.
  CHECK(reader.Skip(pending_sent_).has_value());
  std::array<std::byte, kChunk> bytes{};
  std::uint64_t budget = kBytesPerTurn;
  while (reader.remaining() > 0) {
    const std::size_t want = std::min<std::uint64_t>(bytes.size(), reader.remaining());
    CHECK(reader.Copy(std::span(bytes).first(want)).has_value());
    const iovec part{bytes.data(), want};
    const std::size_t n = backend_->Write(std::span(&part, 1));
    pending_sent_ += n;
    transmitted_bytes_.Add(n);
    if (n < want) {
      stalls_.Add();
      return;  // OnWritable goes on
    }
    budget -= std::min<std::uint64_t>(budget, n);
    if (budget == 0 && reader.remaining() > 0) {
      loop().Cancel(continue_);
      continue_ = loop().After(0, [this] { Continue(); });
      return;
    }
  }
  pending_->Complete(0);
  pending_.reset();
}

void Console::Continue() {
  if (!active()) return;
  Transmit();
  if (pending_ || !carry_.empty()) return;
  Notify(kTransmitQueue);
  Pump(kTransmitQueue);
}

void Console::OnInput() {
  if (active()) Pump(kReceiveQueue);
}

void Console::OnWritable() {
  Continue();
}

void Console::OnResize(console::WindowSize size) {
  {
    const MutexLock lock(mutex_);
    if (size_ == size) return;
    size_ = size;
  }
  // 5.3.4: the driver of a device without SIZE would not know what changed.
  if (active() && (negotiated() & kFeatureSize) != 0) interrupt().Config();
}

void Console::Quiesce() {
  if (!pending_) return;
  Reader reader = pending_->reader();
  CHECK(reader.Skip(pending_sent_).has_value());
  const std::size_t old = carry_.size();
  const std::size_t keep = std::min<std::uint64_t>(kMaxSavedOutput - old, reader.remaining());
  output_dropped_.Add(reader.remaining() - keep);
  carry_.resize(old + keep);
  CHECK(reader.Copy(std::span(carry_).subspan(old)).has_value());
  pending_->Complete(0);
  pending_.reset();
  Notify(kTransmitQueue);
}

ConsoleState Console::Save() const {
  ConsoleState state;
  const MutexLock lock(mutex_);
  state.cols = size_.cols;
  state.rows = size_.rows;
  state.output = carry_;
  return state;
}

Result<void> Console::Restore(const ConsoleState& state) {
  if (active()) return Err(Errc::kBadState, "restore console");
  if (state.version != ConsoleState::kVersion || state.output.size() > kMaxSavedOutput) {
    return Err(Errc::kBadFormat, "console state");
  }
  carry_ = state.output;
  const console::WindowSize here = backend_->window_size();
  const MutexLock lock(mutex_);
  size_ = here == console::WindowSize{} ? console::WindowSize{state.cols, state.rows} : here;
  return {};
}

void Console::ReportCounters(CounterSink& sink) const {
  SingleLoopDevice::ReportCounters(sink);
  sink.Add("received_bytes", received_bytes_.Get());
  sink.Add("transmitted_bytes", transmitted_bytes_.Get());
  sink.Add("transmit_stalls", stalls_.Get());
  sink.Add("save_dropped_bytes", output_dropped_.Get());
  backend_->ReportCounters(sink);
}

}  // namespace postern::virtio
