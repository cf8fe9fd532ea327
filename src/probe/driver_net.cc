// virtio-net (VIRTIO 1.2 section 5.1). The far end is whatever answers ARP and ICMP echo: a Linux
// TAP with an address does.
#include "src/probe/main.h"
#include "src/probe/packet.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint64_t kFeatureMtu = uint64_t{1} << 3;
constexpr uint64_t kFeatureMac = uint64_t{1} << 5;
constexpr uint64_t kFeatureMergeable = uint64_t{1} << 15;
constexpr uint64_t kFeatureStatus = uint64_t{1} << 16;
constexpr uint64_t kFeatureControl = uint64_t{1} << 17;
constexpr uint64_t kFeatureControlRx = uint64_t{1} << 18;
constexpr uint64_t kFeatureMultiQueue = uint64_t{1} << 22;
constexpr uint64_t kFeatureControlMac = uint64_t{1} << 23;

constexpr uint32_t kConfigMac = 0;
constexpr uint32_t kConfigStatus = 6;
constexpr uint32_t kConfigPairs = 8;
constexpr uint32_t kConfigMtu = 10;
constexpr uint16_t kLinkUp = 1;

constexpr uint8_t kClassRx = 0;
constexpr uint8_t kRxPromiscuous = 0;
constexpr uint8_t kClassMac = 1;
constexpr uint8_t kMacSet = 1;
constexpr uint8_t kClassQueues = 4;
constexpr uint8_t kQueuesSet = 0;
constexpr uint8_t kClassUnknown = 0x7f;
constexpr uint8_t kAckOk = 0;
constexpr uint8_t kAckUnset = 0xaa;

struct Header {
  uint8_t flags;
  uint8_t gso_type;
  uint16_t header_length;
  uint16_t gso_size;
  uint16_t checksum_start;
  uint16_t checksum_offset;
  uint16_t buffers;
};
static_assert(sizeof(Header) == 12);

constexpr uint16_t kQueueEntries = 32;
constexpr uint32_t kWholeBuffer = 2048;
// Small ones where packets may span several: so that they do.
constexpr uint32_t kSmallBuffer = 512;
constexpr uint16_t kMaxPairs = 2;
constexpr uint16_t kControlToken = 1;

class Net {
 public:
  explicit Net(Transport& transport) : device_(transport) {}

  bool Open(Row& row) {
    constexpr uint64_t kWanted = kFeatureMtu | kFeatureMac | kFeatureMergeable | kFeatureStatus |
                                 kFeatureControl | kFeatureControlRx | kFeatureMultiQueue |
                                 kFeatureControlMac;
    if (!device_.Begin(kWanted, 2 * kMaxPairs, row)) return false;
    Transport& transport = device_.transport();
    const bool multi = device_.Has(kFeatureMultiQueue | kFeatureControl);
    const uint16_t offered_pairs = multi ? transport.ReadConfig16(kConfigPairs) : 1;
    if (offered_pairs == 0 || offered_pairs > 0x8000)
      return row.Fail("queue pairs:", offered_pairs);
    pairs_ = offered_pairs < kMaxPairs ? offered_pairs : kMaxPairs;
    buffer_size_ = device_.Has(kFeatureMergeable) ? kSmallBuffer : kWholeBuffer;
    for (uint16_t pair = 0; pair < pairs_; ++pair) {
      rx_[pair] = device_.AddQueue(static_cast<uint16_t>(2 * pair), kQueueEntries, row);
      tx_[pair] = device_.AddQueue(static_cast<uint16_t>(2 * pair + 1), kQueueEntries, row);
      if (rx_[pair] == nullptr || tx_[pair] == nullptr) return false;
      buffers_[pair] = static_cast<uint8_t*>(Allocate(size_t{rx_[pair]->size()} * buffer_size_));
      if (buffers_[pair] == nullptr) return row.Fail("no memory");
    }
    if (device_.Has(kFeatureControl)) {
      // 5.1.2: behind the last pair the device has, whether the driver uses it or not.
      control_ = device_.AddQueue(static_cast<uint16_t>(2 * offered_pairs), 8, row);
      if (control_ == nullptr) return false;
    }
    header_ = static_cast<Header*>(Allocate(sizeof(Header)));
    frame_ = static_cast<uint8_t*>(Allocate(kMaxFrame + 16));
    received_ = static_cast<uint8_t*>(Allocate(kWholeBuffer));
    command_ = static_cast<uint8_t*>(Allocate(16));
    if (header_ == nullptr || frame_ == nullptr || received_ == nullptr || command_ == nullptr)
      return row.Fail("no memory");
    *header_ = {};
    if (!device_.DriverOk(row)) return false;
    for (uint16_t pair = 0; pair < pairs_; ++pair) {
      for (uint16_t i = 0; i < rx_[pair]->size(); ++i) Post(pair, i);
      rx_[pair]->AskForInterrupt(true);
      rx_[pair]->Kick();
    }
    for (uint32_t i = 0; i < 6; ++i) {
      // 5.1.4.2: without an address of the device's own the driver picks one, locally administered.
      mac_.bytes[i] = device_.Has(kFeatureMac) ? transport.ReadConfig8(kConfigMac + i)
                                               : static_cast<uint8_t>(0x02 + 0x10 * i);
    }
    return true;
  }

  // Sends `size` bytes of frame() and waits until the device has taken them.
  bool Send(uint16_t pair, size_t size, Row& row) {
    uint32_t length = 0;
    const Segment readable[] = {{header_, sizeof(Header)}, {frame_, static_cast<uint32_t>(size)}};
    if (!tx_[pair]->Run(readable, {}, length))
      return row.Fail("a frame was not transmitted, queue", tx_[pair]->index());
    ++frames_sent_;
    bytes_sent_ += size;
    return true;
  }

  // Waits for the next frame on any pair; empty after the time limit or on a row failure.
  std::span<const uint8_t> Receive(uint64_t micros, Row& row) {
    for (uint16_t p = 0; p < pairs_; ++p) rx_[p]->AskForInterrupt(true);
    const bool any = WaitFor(micros, [this] {
      for (uint16_t p = 0; p < pairs_; ++p) {
        if (rx_[p]->HasUsed()) return true;
      }
      return false;
    });
    if (!any) return {};
    for (uint16_t p = 0; p < pairs_; ++p) {
      if (rx_[p]->HasUsed()) return Collect(p, row);
    }
    return {};
  }

  uint8_t Control(uint8_t command_class, uint8_t command, const uint8_t* data, uint32_t size) {
    command_[0] = command_class;
    command_[1] = command;
    for (uint32_t i = 0; i < size; ++i) command_[2 + i] = data[i];
    volatile uint8_t* ack = command_ + 15;
    *ack = kAckUnset;
    const Segment readable[] = {{command_, 2}, {command_ + 2, size}};
    const Segment writable[] = {{ack, 1}};
    if (!control_->Add(readable, writable, kControlToken)) return kAckUnset;
    control_->Kick();
    uint32_t length = 0;
    // No vector: polled, as Linux does.
    if (!WaitFor(kRequestMicros, [this] { return control_->HasUsed(); }) ||
        control_->Pop(length) != kControlToken)
      return kAckUnset;
    return *ack;
  }

  VirtioDevice& device() { return device_; }
  uint8_t* frame() { return frame_; }
  Queue& tx(uint16_t pair) { return *tx_[pair]; }
  Queue& rx(uint16_t pair) { return *rx_[pair]; }
  Header* header() { return header_; }
  [[nodiscard]] const Mac& mac() const { return mac_; }
  [[nodiscard]] uint16_t pairs() const { return pairs_; }
  [[nodiscard]] bool has_control() const { return control_ != nullptr; }
  [[nodiscard]] uint32_t frames_sent() const { return frames_sent_; }
  [[nodiscard]] uint32_t frames_received() const { return frames_received_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_sent_ + bytes_received_; }
  [[nodiscard]] uint32_t merged() const { return merged_; }

 private:
  void Post(uint16_t pair, uint16_t buffer) {
    const Segment writable[] = {{buffers_[pair] + size_t{buffer} * buffer_size_, buffer_size_}};
    rx_[pair]->Add({}, writable, buffer);
  }

  // Puts a frame together from the buffers it came in (5.1.6.3.2, 5.1.6.4) and gives the buffers
  // back.
  std::span<const uint8_t> Collect(uint16_t pair, Row& row) {
    Queue& queue = *rx_[pair];
    size_t size = 0;
    unsigned parts = 1;
    for (unsigned part = 0; part < parts; ++part) {
      uint32_t length = 0;
      // All parts of a frame are used in order, and made visible together.
      const uint16_t buffer = queue.Pop(length);
      if (buffer == Queue::kNoToken)
        return row.Fail("a frame with parts missing"), std::span<const uint8_t>();
      const uint8_t* data = buffers_[pair] + size_t{buffer} * buffer_size_;
      size_t skip = 0;
      if (part == 0) {
        if (length < sizeof(Header))
          return row.Fail("a frame shorter than its header:", length), std::span<const uint8_t>();
        parts = device_.Has(kFeatureMergeable) ? reinterpret_cast<const Header*>(data)->buffers : 1;
        if (parts == 0) return row.Fail("a frame of 0 buffers"), std::span<const uint8_t>();
        skip = sizeof(Header);
      }
      if (length > buffer_size_ || length - skip > kWholeBuffer - size)
        return row.Fail("a frame of too many bytes"), std::span<const uint8_t>();
      std::memcpy(received_ + size, data + skip, length - skip);
      size += length - skip;
      Post(pair, buffer);
    }
    queue.Kick();
    if (parts > 1) ++merged_;
    ++frames_received_;
    bytes_received_ += size;
    return {received_, size};
  }

  VirtioDevice device_;
  Queue* rx_[kMaxPairs]{};
  Queue* tx_[kMaxPairs]{};
  Queue* control_ = nullptr;
  uint8_t* buffers_[kMaxPairs]{};
  uint32_t buffer_size_ = 0;
  uint16_t pairs_ = 0;
  Header* header_ = nullptr;
  uint8_t* frame_ = nullptr;
  uint8_t* received_ = nullptr;
  uint8_t* command_ = nullptr;
  Mac mac_{};
  uint32_t frames_sent_ = 0;
  uint32_t frames_received_ = 0;
  uint32_t merged_ = 0;
  uint64_t bytes_sent_ = 0;
  uint64_t bytes_received_ = 0;
};

constexpr int kTries = 3;
constexpr uint64_t kReplyMicros = 1'000'000;

// Answers a question about our own address: without that the peer could not answer us once its
// entry is old.
void AnswerArp(Net& net, std::span<const uint8_t> frame, Row& row) {
  ArpView arp{};
  const Options& options = ProbeOptions();
  if (!ParseArp(frame, arp) || arp.operation != 1 || arp.target_ip != options.ip) return;
  net.Send(0, MakeArp(net.frame(), 2, net.mac(), options.ip, arp.sender, arp.sender_ip), row);
}

bool Resolve(Net& net, Mac& peer, Row& row) {
  const Options& options = ProbeOptions();
  for (int attempt = 0; attempt < kTries; ++attempt) {
    if (!net.Send(0, MakeArp(net.frame(), 1, net.mac(), options.ip, {}, options.peer), row))
      return false;
    const uint64_t limit = ReadTsc() + CyclesOf(kReplyMicros);
    while (ReadTsc() < limit) {
      const std::span<const uint8_t> frame = net.Receive(kReplyMicros, row);
      if (row.failed()) return false;
      if (frame.empty()) break;
      ArpView arp{};
      if (ParseArp(frame, arp) && arp.operation == 2 && arp.sender_ip == options.peer) {
        peer = arp.sender;
        return true;
      }
      AnswerArp(net, frame, row);
    }
  }
  return row.Fail("no ARP reply from the peer (probe.peer=ADDRESS or none)");
}

uint8_t EchoByte(uint16_t sequence, size_t index) {
  return static_cast<uint8_t>(size_t{sequence} * 31 + index);
}

// One echo of `size` bytes, sent by `pair`. Cycles from handing it over to having the reply.
bool Echo(Net& net, const Mac& peer, uint16_t pair, uint16_t sequence, size_t size,
          uint64_t& cycles, Row& row) {
  const Options& options = ProbeOptions();
  constexpr size_t kPayload = kEthernetSize + kIpSize + kIcmpSize;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    for (size_t i = 0; i < size; ++i) net.frame()[kPayload + i] = EchoByte(sequence, i);
    const size_t frame_size =
        MakeEcho(net.frame(), peer, net.mac(), options.ip, options.peer, sequence, size);
    const uint64_t begin = ReadTsc();
    if (!net.Send(pair, frame_size, row)) return false;
    const uint64_t limit = begin + CyclesOf(kReplyMicros);
    while (ReadTsc() < limit) {
      const std::span<const uint8_t> frame = net.Receive(kReplyMicros, row);
      if (row.failed()) return false;
      if (frame.empty()) break;
      bool damaged = false;
      const std::span<const uint8_t> payload =
          ParseEchoReply(frame, options.peer, sequence, damaged);
      if (payload.data() == nullptr) {
        AnswerArp(net, frame, row);
        continue;
      }
      cycles = ReadTsc() - begin;
      if (damaged) return row.Fail("an echo reply with a wrong checksum, bytes:", size);
      if (payload.size() != size) return row.Fail("echo reply: bytes", payload.size());
      for (size_t i = 0; i < size; ++i) {
        if (payload[i] != EchoByte(sequence, i)) return row.Fail("echo reply: wrong byte at", i);
      }
      return true;
    }
  }
  return row.Fail("no echo reply, bytes:", size);
}

bool CheckControl(Net& net, Row& row) {
  if (!net.has_control()) return true;
  if (net.device().Has(kFeatureControlRx)) {
    for (uint8_t on : {uint8_t{1}, uint8_t{0}}) {
      const uint8_t ack = net.Control(kClassRx, kRxPromiscuous, &on, 1);
      if (ack != kAckOk) return row.Fail("promiscuous mode: ack", ack);
    }
  }
  if (net.device().Has(kFeatureControlMac)) {
    const uint8_t ack = net.Control(kClassMac, kMacSet, net.mac().bytes, 6);
    if (ack != kAckOk) return row.Fail("setting the MAC: ack", ack);
  }
  const uint8_t nothing = 0;
  const uint8_t ack = net.Control(kClassUnknown, 0, &nothing, 1);
  if (ack == kAckOk || ack == kAckUnset) return row.Fail("unknown control class: ack", ack);
  row.tested().Add(", control");
  return true;
}

// With two pairs in use a frame may come in by either; it goes out by the second.
bool UsePairs(Net& net, uint16_t pairs, Row& row) {
  const uint8_t value[2] = {static_cast<uint8_t>(pairs), static_cast<uint8_t>(pairs >> 8)};
  const uint8_t ack = net.Control(kClassQueues, kQueuesSet, value, 2);
  return ack == kAckOk || row.Fail("setting queue pairs: ack", ack);
}

bool Exercise(Net& net, Row& row) {
  Transport& transport = net.device().transport();
  if (net.device().Has(kFeatureStatus) && (transport.ReadConfig16(kConfigStatus) & kLinkUp) == 0)
    return row.Fail("the link is down");
  size_t mtu = net.device().Has(kFeatureMtu) ? transport.ReadConfig16(kConfigMtu) : 1500;
  if (mtu < 68) return row.Fail("MTU", mtu);
  if (mtu > 1500) mtu = 1500;
  row.tested().Add("transmit");
  if (!CheckControl(net, row)) return false;
  if (!ProbeOptions().has_peer) {
    // Nobody there: something nobody answers.
    PutEthernet(net.frame(), kBroadcast, net.mac(), kTypeExperiment);
    return net.Send(0, kMinFrame, row);
  }
  Mac peer{};
  if (!Resolve(net, peer, row)) return false;
  row.tested().Put(", ARP, echo 8..", mtu - kIpSize - kIcmpSize);
  uint64_t best = ~uint64_t{0};
  uint16_t sequence = 0;
  for (size_t size :
       {size_t{8}, size_t{56}, size_t{511}, size_t{1024}, mtu - kIpSize - kIcmpSize}) {
    if (size > mtu - kIpSize - kIcmpSize) continue;
    uint64_t cycles = 0;
    if (!Echo(net, peer, 0, ++sequence, size, cycles, row)) return false;
    if (cycles < best) best = cycles;
  }
  if (net.pairs() > 1) {
    if (!UsePairs(net, 2, row)) return false;
    for (uint16_t i = 0; i < 4; ++i) {
      uint64_t cycles = 0;
      if (!Echo(net, peer, i % 2, ++sequence, 200, cycles, row)) return false;
    }
    if (!UsePairs(net, 1, row)) return false;
    row.tested().Add(", 2 pairs");
  }
  if (!net.device().InterruptsExceed(net.rx(0), 0)) return row.Fail("no receive interrupt arrived");
  row.figures().Put(net.frames_sent(), '+', net.frames_received(), " frames, ", net.bytes(),
                    " bytes, echo ");
  row.figures().Put(MicrosOf(best), " us");
  if (net.merged() != 0) row.figures().Put(", ", net.merged(), " merged");
  row.figures().Put(", ", net.device().TotalInterrupts(), " interrupts");
  return true;
}

}  // namespace

void TestNet(Transport& transport, Row& row) {
  Net net(transport);
  if (net.Open(row)) {
    Exercise(net, row);
    if (!net.device().InterruptsExceed(net.tx(0), 0)) row.Fail("no transmit interrupt arrived");
  }
  net.device().End(row);
}

bool NetBench() {
  Row row("netbench");
  Transport* transport = FindVirtio(kVirtioNet);
  if (transport == nullptr) {
    Print("netbench: no network card");
    return false;
  }
  const Options& options = ProbeOptions();
  Net net(*transport);
  bool good = net.Open(row);
  if (good) {
    PutEthernet(net.frame(), kBroadcast, net.mac(), kTypeExperiment);
    uint64_t frame_size = kEthernetSize + options.size;
    if (frame_size < kMinFrame) frame_size = kMinFrame;
    const Segment readable[] = {{net.header(), sizeof(Header)},
                                {net.frame(), static_cast<uint32_t>(frame_size)}};
    Queue& queue = net.tx(0);
    uint64_t sent = 0;
    uint64_t done = 0;
    const uint64_t begin = ReadTsc();
    while (sent < options.ops && queue.Add(readable, {}, 0)) ++sent;
    queue.AskForInterrupt(true);
    queue.Kick();
    while (done < sent) {
      const uint16_t head = queue.PopKept();
      if (head != Queue::kNoToken) {
        ++done;
        if (sent < options.ops) {
          queue.Repeat(head);
          ++sent;
        } else {
          queue.Free(head);
        }
        continue;
      }
      queue.Kick();
      if (queue.broken() || !queue.Wait()) {
        good = row.Fail("a frame was not transmitted");
        break;
      }
    }
    const uint64_t cycles = ReadTsc() - begin;
    const uint64_t micros = MicrosOf(cycles);
    Line line;
    line.Put("netbench tx ops=", done, " bytes=", frame_size, " cycles=", cycles, " us=", micros);
    line.Put(" ops_per_s=", micros == 0 ? 0 : done * 1000000 / micros,
             " interrupts=", net.device().Interrupts(queue));
    Print(line.Put(" notifications=", queue.notifications()));
  }
  Mac peer{};
  if (good && options.has_peer && Resolve(net, peer, row)) {
    const uint64_t rounds = options.ops < 10 ? 1 : options.ops / 10;
    uint64_t total = 0;
    for (uint64_t i = 0; i < rounds && good; ++i) {
      uint64_t cycles = 0;
      good = Echo(net, peer, 0, static_cast<uint16_t>(i), 56, cycles, row);
      total += cycles;
    }
    Line line;
    line.Put("netbench echo ops=", rounds, " bytes=56 cycles=", total, " us=", MicrosOf(total));
    if (good) Print(line);
  }
  net.device().End(row);
  if (row.failed()) row.Finish();
  return !row.failed();
}

}  // namespace postern::probe
