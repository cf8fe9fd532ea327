#include "devices/virtio/net/device.h"

#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/base/log.h"
#include "src/base/random.h"

namespace postern::virtio {
namespace {

using net::MacAddress;
using net::Tap;

constexpr std::uint64_t kAlwaysOffered = net::kFeatureMac | net::kFeatureStatus |
                                         net::kFeatureMrgRxbuf | net::kFeatureCtrlVq |
                                         net::kFeatureCtrlRx | net::kFeatureCtrlRxExtra |
                                         net::kFeatureCtrlMacAddr | net::kFeatureSpeedDuplex;
constexpr std::uint64_t kOffloads =
    net::kFeatureCsum | net::kFeatureGuestCsum | net::kFeatureCtrlGuestOffloads |
    net::kFeatureGuestTso4 | net::kFeatureGuestTso6 | net::kFeatureGuestEcn |
    net::kFeatureHostTso4 | net::kFeatureHostTso6 | net::kFeatureHostEcn;
constexpr std::uint64_t kUso =
    net::kFeatureGuestUso4 | net::kFeatureGuestUso6 | net::kFeatureHostUso;
constexpr std::uint16_t kControlQueueSize = 64;
constexpr int kControlBatch = 64;

Result<MacAddress> RandomMac() {
  MacAddress mac{};
  TRY(FillRandom(std::as_writable_bytes(std::span(mac))));
  // IEEE 802: locally administered, not a group.
  mac[0] = static_cast<std::uint8_t>((mac[0] | 0x02) & ~0x01);
  return mac;
}

bool IsStationAddress(const MacAddress& mac) {
  return (mac[0] & 1) == 0 && mac != MacAddress{};
}

Outcome<void> CheckOptions(const NetOptions& options) {
  if (options.tap.empty() == options.fds.empty()) {
    return ConfigFailure(
        "network device: needs either the name of a TAP interface or open descriptors",
        "give tap=NAME or fd=N");
  }
  const std::size_t wanted = options.fds.empty() ? options.queue_pairs : options.fds.size();
  if (wanted < 1 || wanted > Net::kMaxPairs ||
      (!options.fds.empty() && options.queue_pairs != options.fds.size())) {
    return ConfigFailure(
        fmt::format("network device: {} queue pairs and {} descriptors", options.queue_pairs,
                    options.fds.size()),
        fmt::format("use 1 to {} queue pairs, and one descriptor for each", Net::kMaxPairs));
  }
  if (!std::has_single_bit(options.queue_size) || options.queue_size < 2 ||
      options.queue_size > 1024) {
    return ConfigFailure(fmt::format("network device: queue size {}", options.queue_size),
                         "use a power of two from 2 to 1024");
  }
  if (options.mtu != 0 && options.mtu < net::kMinMtu) {
    return ConfigFailure(fmt::format("network device: MTU {}", options.mtu),
                         fmt::format("use at least {}", net::kMinMtu));
  }
  if (options.mac && !IsStationAddress(*options.mac)) {
    return ConfigFailure("network device: the MAC address is a group address or zero",
                         "use one whose first byte is even, such as 02:00:00:00:00:01");
  }
  return {};
}

}  // namespace

Outcome<std::unique_ptr<Net>> Net::Create(NetOptions options, std::span<EventLoop* const> loops) {
  CHECK(!loops.empty());
  if (Outcome<void> checked = CheckOptions(options); !checked)
    return tl::unexpected(checked.error());
  Outcome<std::vector<Tap>> taps =
      options.fds.empty() ? Tap::Open({.name = options.tap, .queues = options.queue_pairs})
                          : Tap::Adopt(options.fds);
  if (!taps) return tl::unexpected(taps.error());
  MacAddress mac{};
  if (options.mac) {
    mac = *options.mac;
  } else {
    Result<MacAddress> random = RandomMac();
    if (!random) return HostFailure("network device", random.error());
    mac = *random;
  }
  const Tap& tap = taps->front();
  if (options.mtu == 0) {
    options.mtu = tap.Mtu().value_or(0);
  } else if (tap.created()) {
    if (Result<void> set = tap.SetMtu(options.mtu); !set) {
      return HostFailure(fmt::format("network interface '{}': MTU {}", tap.name(), options.mtu),
                         set.error());
    }
  }
  return std::unique_ptr<Net>(new Net(options, mac, std::move(*taps), loops));
}

Net::Net(const NetOptions& options, MacAddress mac, std::vector<Tap> taps,
         std::span<EventLoop* const> loops)
    : loops_(loops.begin(), loops.end()), own_mac_(mac), mtu_(options.mtu) {
  features_ = kAlwaysOffered;
  if (options.offload) features_ |= kOffloads | (taps.front().ProbeUso() ? kUso : 0);
  if (mtu_ != 0) features_ |= net::kFeatureMtu;
  if (taps.size() > 1) features_ |= net::kFeatureMq;
  net::PairOwner& owner = *this;
  for (std::size_t i = 0; i < taps.size(); ++i) {
    pairs_.push_back(
        std::make_unique<net::QueuePair>(*loops_[i % loops_.size()], std::move(taps[i]), owner));
  }
  queue_sizes_.assign(2 * pairs_.size(), options.queue_size);
  queue_sizes_.push_back(kControlQueueSize);
  const MutexLock lock(mutex_);
  state_.mac = own_mac_;
}

Net::~Net() {
  loop().RunSync([this] { Reset(); });
}

net::MacAddress Net::mac() const {
  const MutexLock lock(mutex_);
  return state_.mac;
}

void Net::ReadConfig(std::uint64_t offset, std::span<std::byte> data) {
  net::ConfigLayout config{};
  config.mac = mac();
  config.status = link_up_.load(std::memory_order_relaxed) ? net::kStatusLinkUp : std::uint16_t{0};
  config.max_virtqueue_pairs = pairs();
  config.mtu = mtu_;
  config.speed = net::kSpeedMbps;
  config.duplex = net::kDuplexFull;
  std::fill(data.begin(), data.end(), std::byte{0});
  if (offset >= net::kConfigSize) return;
  const std::size_t bytes = std::min<std::size_t>(data.size(), net::kConfigSize - offset);
  std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&config) + offset, bytes);
}

ActiveQueue* Net::queue(std::uint16_t index) const {
  return index < resources_.queues.size() ? resources_.queues[index].get() : nullptr;
}

void Net::Activate(Resources resources) {
  CHECK(!active_);
  resources_ = std::move(resources);
  active_ = true;
  broken_ = false;
  std::uint64_t offloads = resources_.features & net::kGuestOffloads;
  {
    const MutexLock lock(mutex_);
    if (std::exchange(restored_, false)) offloads &= state_.guest_offloads;
    state_.guest_offloads = offloads;
  }
  // An interface-wide setting: any of its queues will do.
  if (Result<void> set = pairs_.front()->tap().SetOffloads(offloads); !set && link_up_) {
    LOG_WARN("net", "{}: {}", tap_name(), Describe(set.error()));
  }
  StartPairs();
  StartControl();
}

void Net::StartPairs() {
  std::uint16_t active_pairs = 0;
  {
    const MutexLock lock(mutex_);
    active_pairs = state_.active_pairs;
  }
  for (std::uint16_t i = 0; i < pairs(); ++i) {
    net::QueuePair& pair = *pairs_[i];
    ActiveQueue* rx = queue(static_cast<std::uint16_t>(2 * i));
    ActiveQueue* tx = queue(static_cast<std::uint16_t>(2 * i + 1));
    pair.loop().RunSync([&] { pair.Start(rx, tx, resources_.features, i < active_pairs); });
  }
}

void Net::StopPairs() {
  for (const auto& pair : pairs_) {
    pair->loop().RunSync([&] { pair->Stop(); });
  }
}

void Net::StartControl() {
  ActiveQueue* control = queue(control_index());
  if (control == nullptr) return;
  if (Result<void> watched = loop().Watch(control->kick->fd(), EPOLLIN | EPOLLET, *this); !watched)
    return OnBroken(watched.error());
  if (control->queue.state().next_used != 0) control->queue.NotifyAlways();
  RunControl();
}

Resources Net::Reset() {
  if (!active_) return {};
  StopPairs();
  if (ActiveQueue* control = queue(control_index()); control != nullptr)
    loop().Unwatch(control->kick->fd());
  active_ = false;
  const MutexLock lock(mutex_);
  state_ = NetState{};
  state_.mac = own_mac_;
  return std::exchange(resources_, {});
}

std::unique_ptr<ActiveQueue> Net::ResetQueue(std::uint16_t index) {
  ActiveQueue* active = queue(index);
  if (active == nullptr) return nullptr;
  if (index == control_index()) {
    loop().Unwatch(active->kick->fd());
  } else {
    net::QueuePair& pair = *pairs_[index / 2];
    pair.loop().RunSync(
        [&] { index % 2 == 0 ? pair.SetReceiveQueue(nullptr) : pair.SetTransmitQueue(nullptr); });
  }
  return std::move(resources_.queues[index]);
}

void Net::ResumeQueue(std::unique_ptr<ActiveQueue> resumed) {
  const std::uint16_t index = resumed->index;
  CHECK(active_ && index < resources_.queues.size() && resources_.queues[index] == nullptr);
  resources_.queues[index] = std::move(resumed);
  if (index == control_index()) return StartControl();
  net::QueuePair& pair = *pairs_[index / 2];
  ActiveQueue* active = queue(index);
  pair.loop().RunSync(
      [&] { index % 2 == 0 ? pair.SetReceiveQueue(active) : pair.SetTransmitQueue(active); });
}

void Net::Pause() {
  if (active_) StopPairs();
}

void Net::Resume() {
  if (active_) StartPairs();
}

NetState Net::Save() const {
  const MutexLock lock(mutex_);
  return state_;
}

Result<void> Net::Restore(const NetState& state) {
  if (active_) return Err(Errc::kBadState, "restore network device");
  if (state.version != NetState::kVersion || state.active_pairs < 1 ||
      state.active_pairs > pairs() || (state.guest_offloads & ~net::kGuestOffloads) != 0 ||
      (state.rx_modes >> (net::kRxNoBroadcast + 1)) != 0 ||
      state.unicast.size() > net::kMaxMacTable || state.multicast.size() > net::kMaxMacTable ||
      !IsStationAddress(state.mac)) {
    return Err(Errc::kBadFormat, "network device state");
  }
  restored_ = true;
  const MutexLock lock(mutex_);
  state_ = state;
  return {};
}

void Net::OnBroken(const Error& error) {
  protocol_errors_.Add();
  GUEST_LOG("virtio", "net {}: {}; the device stops until it is reset", tap_name(),
            Describe(error));
  if (broken_.exchange(true)) return;
  resources_.interrupt->NeedsReset();
}

void Net::OnTapGone() {
  if (!link_up_.exchange(false)) return;
  LOG_ERROR("net", "network interface '{}' was deleted: the guest's link is down", tap_name());
  if ((resources_.features & net::kFeatureStatus) != 0) resources_.interrupt->Config();
}

// --- control queue ---

void Net::OnEvent(int fd, std::uint32_t /*events*/) {
  ActiveQueue* control = queue(control_index());
  if (control == nullptr || control->kick->fd() != fd) return;
  RunControl();
}

void Net::RunControl() {
  ActiveQueue& control = *queue(control_index());
  for (int i = 0; i < kControlBatch; ++i) {
    if (broken()) return;
    Result<std::optional<Chain>> next = control.queue.Pop();
    if (!next) return OnBroken(next.error());
    if (!*next) {
      control.queue.NotifyIfNeeded();
      if (!control.queue.EnableKicks()) return;
      continue;
    }
    Chain chain = std::move(**next);
    Reader reader = chain.reader();
    Result<net::Command> command = net::ParseCommand(reader, resources_.features, pairs());
    const bool done = command && Execute(*command);
    (done ? control_commands_ : control_refused_).Add();
    Writer writer = chain.writer();
    // 5.1.6.5: one byte of answer. A driver that left no room for it gets none.
    const bool answered = writer.Write(done ? net::kControlOk : net::kControlError).has_value();
    chain.Complete(answered ? 1 : 0);
  }
  control.queue.NotifyIfNeeded();
  control.kick->Signal();  // the rest waits for its turn
}

Result<void> Net::Execute(const net::Command& command) {
  return std::visit([this](const auto& what) { return Set(what); }, command);
}

Result<void> Net::Set(const net::SetRxMode& command) {
  const auto bit = static_cast<std::uint8_t>(1U << command.mode);  // mode is at most kRxNoBroadcast
  const MutexLock lock(mutex_);
  state_.rx_modes =
      static_cast<std::uint8_t>(command.on ? state_.rx_modes | bit : state_.rx_modes & ~bit);
  return {};
}

Result<void> Net::Set(const net::SetMacTable& command) {
  const MutexLock lock(mutex_);
  state_.unicast = command.unicast;
  state_.multicast = command.multicast;
  return {};
}

Result<void> Net::Set(const net::SetMacAddress& command) {
  if (!IsStationAddress(command.mac)) return Err(Errc::kGuestProtocol, "virtio-net: MAC address");
  const MutexLock lock(mutex_);
  state_.mac = command.mac;
  return {};
}

Result<void> Net::Set(const net::SetQueuePairs& command) {
  // 5.1.6.5.5.2: not more than the driver has queues for.
  for (std::uint16_t i = 0; i < command.pairs; ++i) {
    if (queue(static_cast<std::uint16_t>(2 * i)) == nullptr)
      return Err(Errc::kGuestProtocol, "virtio-net: queue pair is not set up");
  }
  {
    const MutexLock lock(mutex_);
    state_.active_pairs = command.pairs;
  }
  for (std::uint16_t i = 0; i < pairs(); ++i) {
    net::QueuePair& pair = *pairs_[i];
    pair.loop().RunSync([&] { pair.SetAttached(i < command.pairs); });
  }
  return {};
}

Result<void> Net::Set(const net::SetGuestOffloads& command) {
  TRY(pairs_.front()->tap().SetOffloads(command.offloads));
  const MutexLock lock(mutex_);
  state_.guest_offloads = command.offloads;
  return {};
}

void Net::ReportCounters(CounterSink& sink) const {
  const auto sum = [&](Counter net::PairCounters::*member) {
    std::uint64_t total = 0;
    for (const auto& pair : pairs_) total += (pair->counters().*member).Get();
    return total;
  };
  using Pair = net::PairCounters;
  sink.Add("rx_packets", sum(&Pair::rx_packets));
  sink.Add("rx_bytes", sum(&Pair::rx_bytes));
  sink.Add("rx_dropped", sum(&Pair::rx_dropped));
  sink.Add("rx_starved", sum(&Pair::rx_starved));
  sink.Add("rx_errors", sum(&Pair::rx_errors));
  sink.Add("tx_packets", sum(&Pair::tx_packets));
  sink.Add("tx_bytes", sum(&Pair::tx_bytes));
  sink.Add("tx_dropped", sum(&Pair::tx_dropped));
  sink.Add("tx_malformed", sum(&Pair::tx_malformed));
  sink.Add("tx_blocked", sum(&Pair::tx_blocked));
  sink.Add("tx_errors", sum(&Pair::tx_errors));
  sink.Add("kicks", sum(&Pair::kicks));
  sink.Add("control_commands", control_commands_.Get());
  sink.Add("control_refused", control_refused_.Get());
  sink.Add("protocol_errors", protocol_errors_.Get());
}

}  // namespace postern::virtio
