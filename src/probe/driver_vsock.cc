// virtio-vsock (VIRTIO 1.2 section 5.10): one stream to the host, echoed back under credit, and
// closed in order.
#include <cstring>

#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint64_t kHostCid = 2;
constexpr uint32_t kConfigCid = 0;
constexpr uint16_t kReceive = 0;
constexpr uint16_t kTransmit = 1;
constexpr uint16_t kEvents = 2;
constexpr uint16_t kTypeStream = 1;

constexpr uint16_t kOpRequest = 1;
constexpr uint16_t kOpResponse = 2;
constexpr uint16_t kOpReset = 3;
constexpr uint16_t kOpShutdown = 4;
constexpr uint16_t kOpData = 5;
constexpr uint16_t kOpCreditUpdate = 6;
constexpr uint16_t kOpCreditRequest = 7;
constexpr uint32_t kShutdownBoth = 3;

// struct virtio_vsock_hdr: 44 bytes, no padding at the end.
struct [[gnu::packed]] Header {
  uint64_t source_cid;
  uint64_t destination_cid;
  uint32_t source_port;
  uint32_t destination_port;
  uint32_t length;
  uint16_t type;
  uint16_t operation;
  uint32_t flags;
  uint32_t buffer_size;
  uint32_t forwarded;
};
static_assert(sizeof(Header) == 44);

constexpr uint16_t kBuffers = 16;
constexpr uint32_t kPayload = 4096;
constexpr uint32_t kOurWindow = 32768;
constexpr uint32_t kTotal = 65536;
constexpr uint32_t kLocalPort = 0x5052;
constexpr uint32_t kDeadPort = 0xfffffff0;

struct Buffer {
  Header header;
  alignas(16) uint8_t data[kPayload];
};

class Vsock {
 public:
  explicit Vsock(Transport& transport) : device_(transport) {}

  bool Open(Row& row) {
    if (!device_.Begin(0, 3, row)) return false;
    rx_ = device_.AddQueue(kReceive, kBuffers * 2, row);
    tx_ = device_.AddQueue(kTransmit, 8, row);
    Queue* events = device_.AddQueue(kEvents, 4, row);
    if (rx_ == nullptr || tx_ == nullptr || events == nullptr) return false;
    buffers_ = static_cast<Buffer*>(Allocate(sizeof(Buffer) * kBuffers, alignof(Buffer)));
    outgoing_ = static_cast<Header*>(Allocate(sizeof(Header)));
    auto* event = static_cast<uint32_t*>(Allocate(16));
    if (buffers_ == nullptr || outgoing_ == nullptr || event == nullptr)
      return row.Fail("no memory");
    if (!device_.DriverOk(row)) return false;
    cid_ = device_.transport().ReadConfig64(kConfigCid);
    // 5.10.4: 0, 1, 2, 2^32-1 and beyond are reserved.
    if (cid_ < 3 || cid_ >= 0xffffffff) return row.Fail("guest CID", cid_);
    for (uint16_t i = 0; i < kBuffers; ++i) Post(i);
    rx_->AskForInterrupt(true);
    rx_->Kick();
    const Segment writable[] = {{event, 4}};
    events->Add({}, writable, 0);
    events->Kick();
    return true;
  }

  bool Send(uint16_t operation, uint32_t port, const uint8_t* data, uint32_t size, uint32_t flags,
            Row& row) {
    *outgoing_ = {cid_,        kHostCid,  kLocalPort, port,       size,
                  kTypeStream, operation, flags,      kOurWindow, received_};
    reported_ = received_;
    const Segment readable[] = {{outgoing_, sizeof(Header)}, {data, size}};
    const std::span<const Segment> all(readable);
    uint32_t length = 0;
    ++packets_;
    return tx_->Run(size == 0 ? all.first(1) : all, {}, length) ||
           row.Fail("a packet was not transmitted, operation", operation);
  }

  // The next packet into packet(); false after the time limit. What is not from the port spoken to
  // is a failure.
  bool Receive(uint64_t micros, uint32_t port, Row& row) {
    Release();
    if (!rx_->HasUsed() && !rx_->Wait(micros)) return false;
    uint32_t length = 0;
    const uint16_t buffer = rx_->Pop(length);
    if (buffer >= kBuffers) return row.Fail("a completion nobody waits for");
    held_ = buffer;
    ++packets_;
    const Header& header = buffers_[buffer].header;
    if (length < sizeof(Header) || header.length > kPayload ||
        length != sizeof(Header) + header.length) {
      return row.Fail("a packet of the wrong size:", length);
    }
    if (header.source_cid != kHostCid || header.destination_cid != cid_ ||
        header.type != kTypeStream)
      return row.Fail("a packet from or to someone else");
    if (header.source_port != port || header.destination_port != kLocalPort)
      return row.Fail("a packet for another port:", header.destination_port);
    peer_window_ = header.buffer_size;
    peer_forwarded_ = header.forwarded;
    return true;
  }

  [[nodiscard]] const Header& header() const { return buffers_[held_].header; }
  [[nodiscard]] const uint8_t* data() const { return buffers_[held_].data; }

  void StartStream() { sent_ = received_ = reported_ = 0; }
  // 5.10.6.3: what the peer has room for.
  [[nodiscard]] uint32_t Credit() const {
    const uint32_t under_way = sent_ - peer_forwarded_;
    return under_way < peer_window_ ? peer_window_ - under_way : 0;
  }
  void CountSent(uint32_t bytes) { sent_ += bytes; }
  // False if the peer sent more than it was told there is room for.
  bool CountReceived(uint32_t bytes) {
    received_ += bytes;
    return received_ - reported_ <= kOurWindow;
  }
  [[nodiscard]] uint32_t sent() const { return sent_; }
  [[nodiscard]] uint32_t received() const { return received_; }
  [[nodiscard]] bool OwesUpdate() const { return received_ - reported_ >= kOurWindow / 2; }
  [[nodiscard]] uint64_t cid() const { return cid_; }
  [[nodiscard]] uint32_t packets() const { return packets_; }
  VirtioDevice& device() { return device_; }
  Queue& rx() { return *rx_; }

 private:
  static constexpr uint16_t kNone = 0xffff;

  void Post(uint16_t buffer) {
    const Segment writable[] = {{&buffers_[buffer].header, sizeof(Header)},
                                {buffers_[buffer].data, kPayload}};
    rx_->Add({}, writable, buffer);
  }
  void Release() {
    if (held_ == kNone) return;
    Post(held_);
    rx_->Kick();
    held_ = kNone;
  }

  VirtioDevice device_;
  Queue* rx_ = nullptr;
  Queue* tx_ = nullptr;
  Buffer* buffers_ = nullptr;
  Header* outgoing_ = nullptr;
  uint64_t cid_ = 0;
  uint16_t held_ = kNone;
  uint32_t packets_ = 0;
  uint32_t sent_ = 0;
  uint32_t received_ = 0;
  uint32_t reported_ = 0;
  uint32_t peer_window_ = 0;
  uint32_t peer_forwarded_ = 0;
};

// 5.10.6.4.3 and 5.10.6.5: asking for a port nobody listens on, and data for no connection, are
// both answered by a reset.
bool CheckRefusals(Vsock& vsock, Row& row) {
  for (uint16_t operation : {kOpRequest, kOpData}) {
    if (!vsock.Send(operation, kDeadPort, nullptr, 0, 0, row)) return false;
    if (!vsock.Receive(kRequestMicros, kDeadPort, row))
      return row.Fail("no answer for a port nobody listens on, operation", operation);
    if (vsock.header().operation != kOpReset)
      return row.Fail("a dead port answers with operation", vsock.header().operation);
  }
  row.tested().Add("refusals");
  return true;
}

bool Connect(Vsock& vsock, uint32_t port, Row& row) {
  vsock.StartStream();
  if (!vsock.Send(kOpRequest, port, nullptr, 0, 0, row)) return false;
  if (!vsock.Receive(kRequestMicros, port, row))
    return row.Fail("no answer to the connection request");
  if (vsock.header().operation == kOpReset)
    return row.Fail("refused: nobody listens on the host's port (probe.vsock=PORT or none)", port);
  return vsock.header().operation == kOpResponse ||
         row.Fail("connection request answered by operation", vsock.header().operation);
}

// Takes what has arrived, waiting for it if `wait`.
bool Drain(Vsock& vsock, const uint8_t* expected, uint32_t port, bool wait, Row& row) {
  while (wait || vsock.rx().HasUsed()) {
    if (!vsock.Receive(kRequestMicros, port, row))
      return row.Fail("the stream stalls; bytes so far:", vsock.received());
    wait = false;
    const Header& header = vsock.header();
    switch (header.operation) {
      case kOpData: {
        const uint32_t at = vsock.received();
        if (header.length == 0 || header.length > kTotal - at)
          return row.Fail("more came back than was sent:", at + header.length);
        if (!vsock.CountReceived(header.length)) return row.Fail("the host ignores our credit");
        if (std::memcmp(vsock.data(), expected + at, header.length) != 0)
          return row.Fail("wrong bytes behind", at);
        break;
      }
      case kOpCreditRequest:
        if (!vsock.Send(kOpCreditUpdate, port, nullptr, 0, 0, row)) return false;
        break;
      case kOpCreditUpdate:
        break;
      case kOpReset:
      case kOpShutdown:
        return row.Fail("the host closed the stream after", vsock.received());
      default:
        return row.Fail("unexpected operation", header.operation);
    }
    if (vsock.OwesUpdate() && !vsock.Send(kOpCreditUpdate, port, nullptr, 0, 0, row)) return false;
  }
  return true;
}

bool EchoStream(Vsock& vsock, uint32_t port, Row& row) {
  auto* pattern = static_cast<uint64_t*>(Allocate(kTotal));
  if (pattern == nullptr) return row.Fail("no memory");
  uint64_t value = ReadTsc() * 0x9e3779b97f4a7c15;
  for (uint32_t i = 0; i < kTotal / 8; ++i) {
    pattern[i] = value;
    value += 0x0807060504030201;
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(pattern);
  while (vsock.received() < kTotal) {
    uint32_t size = kTotal - vsock.sent();
    if (size > kPayload) size = kPayload;
    if (size > vsock.Credit()) size = vsock.Credit();
    if (size != 0) {
      if (!vsock.Send(kOpData, port, bytes + vsock.sent(), size, 0, row)) return false;
      vsock.CountSent(size);
    }
    if (!Drain(vsock, bytes, port, size == 0, row)) return false;
  }
  return true;
}

// 5.10.6.5: both directions shut, answered by a reset; credit news and data may still be under way.
bool Close(Vsock& vsock, uint32_t port, Row& row) {
  if (!vsock.Send(kOpShutdown, port, nullptr, 0, kShutdownBoth, row)) return false;
  for (int i = 0; i < 100; ++i) {
    if (!vsock.Receive(kRequestMicros, port, row))
      return row.Fail("the host does not confirm the shutdown");
    if (vsock.header().operation == kOpReset) return true;
  }
  return row.Fail("the host talks on after the shutdown");
}

bool Exercise(Vsock& vsock, Row& row) {
  row.figures().Put("CID ", vsock.cid());
  if (!CheckRefusals(vsock, row)) return false;
  if (ProbeOptions().has_vsock_peer) {
    const auto port = static_cast<uint32_t>(ProbeOptions().vsock_port);
    if (!Connect(vsock, port, row)) return false;
    const uint64_t begin = ReadTsc();
    if (!EchoStream(vsock, port, row)) return false;
    const uint64_t cycles = ReadTsc() - begin;
    if (!Close(vsock, port, row)) return false;
    row.tested().Add(", connect, echo under credit, shutdown");
    row.figures().Put(", ", kTotal, " bytes echoed, ");
    AddRate(row.figures(), 2 * uint64_t{kTotal}, cycles);
  }
  if (!vsock.device().InterruptsExceed(vsock.rx(), 0))
    return row.Fail("no receive interrupt arrived");
  row.figures().Put(", ", vsock.packets(), " packets, ", vsock.device().TotalInterrupts(),
                    " interrupts");
  return true;
}

}  // namespace

void TestVsock(Transport& transport, Row& row) {
  Vsock vsock(transport);
  if (vsock.Open(row)) Exercise(vsock, row);
  vsock.device().End(row);
}

}  // namespace postern::probe
