#include "vfio/user/connection.h"

#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <utility>

#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::vfio {
namespace {

// Replies the server has not taken: beyond this nothing more of it is read.
constexpr std::size_t kMaxBacklog = std::size_t{256} * 1024;
// Requests served before the loop looks after other devices.
constexpr unsigned kRequestsARound = 16;
constexpr std::uint32_t kMaxErrno = 4095;

// errno of a refused command. ENODEV is what a vanished device answers, and this one has not.
int ErrnoOf(std::uint32_t error) {
  if (error == 0 || error > kMaxErrno || error == ENODEV) return EIO;
  return static_cast<int>(error);
}

bool Control(int epoll, int operation, int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  return epoll_ctl(epoll, operation, fd, &event) == 0;
}

Result<Fd> DuplicateOf(int fd) {
  Fd borrowed(fd);
  Result<Fd> copy = borrowed.Duplicate();
  (void)borrowed.release();
  return copy;
}

}  // namespace

const char* NameOf(UserCommand command) {
  switch (command) {
    case UserCommand::kVersion:
      return "vfio-user VERSION";
    case UserCommand::kDmaMap:
      return "vfio-user DMA_MAP";
    case UserCommand::kDmaUnmap:
      return "vfio-user DMA_UNMAP";
    case UserCommand::kDeviceInfo:
      return "vfio-user DEVICE_GET_INFO";
    case UserCommand::kRegionInfo:
      return "vfio-user DEVICE_GET_REGION_INFO";
    case UserCommand::kIrqInfo:
      return "vfio-user DEVICE_GET_IRQ_INFO";
    case UserCommand::kSetIrqs:
      return "vfio-user DEVICE_SET_IRQS";
    case UserCommand::kRegionRead:
      return "vfio-user REGION_READ";
    case UserCommand::kRegionWrite:
      return "vfio-user REGION_WRITE";
    case UserCommand::kReset:
      return "vfio-user DEVICE_RESET";
    case UserCommand::kDmaRead:
      return "vfio-user DMA_READ";
    case UserCommand::kDmaWrite:
      return "vfio-user DMA_WRITE";
  }
  return "vfio-user command";
}

void UserCounters::Report(CounterSink& sink) const {
  sink.Add("calls", calls.Get());
  sink.Add("call_errors", call_errors.Get());
  sink.Add("dma_reads", dma_reads.Get());
  sink.Add("dma_read_bytes", dma_read_bytes.Get());
  sink.Add("dma_writes", dma_writes.Get());
  sink.Add("dma_write_bytes", dma_write_bytes.Get());
  sink.Add("dma_faults", dma_faults.Get());
  sink.Add("unknown_requests", unknown_requests.Get());
  sink.Add("vanished", vanished.Get());
}

UserConnection::UserConnection(Fd socket, std::string name, std::uint32_t timeout_ms, DmaTable& dma,
                               EventLoop& loop, UserCounters& counters)
    : name_(std::move(name)),
      timeout_ms_(timeout_ms),
      dma_(dma),
      loop_(loop),
      counters_(counters),
      channel_(std::move(socket), {}) {}

Result<std::unique_ptr<UserConnection>> UserConnection::Create(Fd socket, std::string name,
                                                               std::uint32_t timeout_ms,
                                                               DmaTable& dma, EventLoop& loop,
                                                               UserCounters& counters) {
  std::unique_ptr<UserConnection> connection(
      new UserConnection(std::move(socket), std::move(name), timeout_ms, dma, loop, counters));
  UserConnection& self = *connection;
  self.sources_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  self.gate_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!self.sources_.valid() || !self.gate_.valid()) return SysError("epoll_create1");
  self.armed_for_ = EPOLLIN;
  if (!Control(self.sources_.get(), EPOLL_CTL_ADD, self.channel_.fd(), EPOLLIN) ||
      !Control(self.gate_.get(), EPOLL_CTL_ADD, self.sources_.get(), EPOLLIN)) {
    return SysError("epoll_ctl");
  }
  return connection;
}

UserConnection::~UserConnection() {
  if (watched_) loop_.RunSync([this] { loop_.Unwatch(gate_.get()); });
}

Result<void> UserConnection::Serve() {
  Result<void> result;
  loop_.RunSync([&] { result = loop_.Watch(gate_.get(), EPOLLIN, *this); });
  watched_ = result.has_value();
  return result;
}

void UserConnection::Take() {
  {
    const MutexLock lock(mutex_);
    while (taken_) given_.wait(mutex_);
    taken_ = true;
  }
  Arm(false);
}

bool UserConnection::TryTake() {
  {
    const MutexLock lock(mutex_);
    if (taken_) return false;
    taken_ = true;
  }
  Arm(false);
  return true;
}

void UserConnection::Give() {
  if (channel_.closed() && !vanished()) NoteVanished();
  Arm(true);
  {
    const MutexLock lock(mutex_);
    taken_ = false;
  }
  given_.notify_one();
}

void UserConnection::Arm(bool on) {
  if (on && channel_.fd() >= 0) {
    const std::uint32_t events = (channel_.backlog() <= kMaxBacklog ? EPOLLIN : 0U) |
                                 (channel_.backlog() > 0 ? EPOLLOUT : 0U);
    if (events != armed_for_ && Control(sources_.get(), EPOLL_CTL_MOD, channel_.fd(), events)) {
      armed_for_ = events;
    }
  }
  // Cannot fail for a descriptor that was added; if it did, the loop would only look too often.
  (void)Control(gate_.get(), EPOLL_CTL_MOD, sources_.get(), on ? EPOLLIN : 0U);
}

void UserConnection::OnEvent(int /*fd*/, std::uint32_t /*events*/) {
  // Whoever has the turn arms the gate again, and then this comes again.
  if (!TryTake()) return;
  SendUnmask();
  ServeSome();
  Give();
}

void UserConnection::ServeSome() {
  for (unsigned n = 0; n < kRequestsARound; ++n) {
    if (channel_.closed() || !channel_.Flush()) return;
    const Result<std::optional<UserMessage>> message = Step();
    if (!message || !*message) return;
    if ((*message)->header.reply) {
      (void)Close(Err(Errc::kPeerProtocol, "reply that nobody waits for").value());
    }
  }
}

void UserConnection::SendUnmask() {
  if (!unmask_) return;
  if (unmask_->Consume() == 0 || channel_.closed()) return;
  if (channel_.backlog() > kMaxBacklog) {
    (void)Close(Err(Errc::kPeerProtocol, "vfio-user peer does not read").value());
    return;
  }
  const UserHeader header{.id = next_id_++, .command = UserCommand::kSetIrqs, .no_reply = true};
  (void)channel_.Send(header, unmask_payload_);
}

Unexpected UserConnection::Close(const Error& reason) {
  channel_.Close(reason);
  return SysError("vfio-user connection", ENODEV);
}

void UserConnection::NoteVanished() {
  vanished_.store(true, std::memory_order_release);
  counters_.vanished.Add();
  LOG_WARN("vfio-user", "{}: the device is gone: {}", name_, Describe(*channel_.closed()));
  if (vanish_event_) vanish_event_->Signal();
}

Result<std::optional<UserMessage>> UserConnection::Step() {
  if (channel_.backlog() > kMaxBacklog) return std::nullopt;
  std::optional<UserMessage> message = TRY(channel_.Receive());
  if (message && !message->header.reply) TRY(ServeRequest(*message));
  return message;
}

// Waits for the socket; the end of the time is the server's end.
Result<void> UserConnection::Proceed(std::uint64_t deadline) {
  const bool reading = channel_.backlog() <= kMaxBacklog;
  if (TRY(channel_.Wait(deadline, reading))) return {};
  return Close(SysError("vfio-user peer does not answer", ETIMEDOUT).value());
}

Result<UserMessage> UserConnection::Exchange(UserCommand command,
                                             std::span<const std::byte> payload,
                                             const Turn::Options& options) {
  const std::uint64_t deadline = options.deadline != 0 ? options.deadline : DeadlineIn(timeout_ms_);
  const std::uint16_t id = next_id_++;
  TRY(channel_.Send({.id = id, .command = command}, payload, options.fds));
  while (true) {
    TRY(channel_.Flush());
    std::optional<UserMessage> message = TRY(Step());
    if (message && message->header.reply) {
      const UserHeader& header = message->header;
      if (header.id != id || header.command != command || message->fds.size() > options.reply_fds) {
        return Close(Err(Errc::kPeerProtocol, "reply that nobody waits for").value());
      }
      return std::move(*message);
    }
    // A request was served: perhaps more is there; but not for ever.
    if (message && DeadlineIn(0) < deadline) continue;
    TRY(Proceed(deadline));
  }
}

Result<UserMessage> UserConnection::Turn::Call(UserCommand command,
                                               std::span<const std::byte> payload,
                                               const Options& options) const {
  connection_.counters_.calls.Add();
  UserMessage reply = TRY(connection_.Exchange(command, payload, options));
  if (reply.header.failed) {
    connection_.counters_.call_errors.Add();
    return SysError(NameOf(command), ErrnoOf(reply.header.error));
  }
  return reply;
}

Result<void> UserConnection::Drain(std::uint64_t deadline) {
  while (channel_.backlog() > kMaxBacklog) {
    TRY(channel_.Flush());
    if (channel_.backlog() > kMaxBacklog) TRY(Proceed(deadline));
  }
  return {};
}

Result<void> UserConnection::Turn::Post(UserCommand command,
                                        std::span<const std::byte> payload) const {
  connection_.counters_.calls.Add();
  TRY(connection_.Drain(DeadlineIn(connection_.timeout_ms_)));
  return connection_.channel_.Send(
      {.id = connection_.next_id_++, .command = command, .no_reply = true}, payload);
}

Unexpected UserConnection::Turn::Refuse(const Error& reason) const {
  return connection_.Close(reason);
}

Result<void> UserConnection::Turn::WatchUnmask(int fd, std::vector<std::byte> payload) const {
  UserConnection& self = connection_;
  if (self.unmask_) {
    // Fails only for a descriptor that is not there.
    (void)Control(self.sources_.get(), EPOLL_CTL_DEL, self.unmask_->fd(), 0);
    self.unmask_.reset();
  }
  if (fd < 0) return {};
  Fd copy = TRY(DuplicateOf(fd));
  if (!Control(self.sources_.get(), EPOLL_CTL_ADD, copy.get(), EPOLLIN)) {
    return SysError("epoll_ctl");
  }
  self.unmask_.emplace(std::move(copy));
  self.unmask_payload_ = std::move(payload);
  return {};
}

Result<void> UserConnection::Turn::SetVanishEvent(int fd) const {
  connection_.vanish_event_.reset();
  if (fd < 0) return {};
  connection_.vanish_event_.emplace(TRY(DuplicateOf(fd)));
  if (connection_.vanished()) connection_.vanish_event_->Signal();
  return {};
}

Result<void> UserConnection::Answer(const UserHeader& to, std::span<const std::byte> payload,
                                    std::uint32_t error) {
  if (to.no_reply) return {};
  return channel_.Send(
      {.id = to.id, .command = to.command, .reply = true, .failed = error != 0, .error = error},
      payload);
}

Result<void> UserConnection::ServeRequest(const UserMessage& message) {
  const bool write = message.header.command == UserCommand::kDmaWrite;
  if (!message.fds.empty()) {
    return Close(Err(Errc::kPeerProtocol, "descriptors with a request").value());
  }
  if (!write && message.header.command != UserCommand::kDmaRead) {
    counters_.unknown_requests.Add();
    GUEST_LOG("vfio-user", "{}: request {} is not known", name_,
              static_cast<std::uint16_t>(message.header.command));
    return Answer(message.header, {}, EINVAL);
  }
  const Result<UserDmaAccess> access =
      ParseDmaAccess(message.payload, write ? Carries::kData : Carries::kNothing);
  if (!access) return Close(access.error());
  return write ? ServeWrite(message.header, *access) : ServeRead(message.header, *access);
}

Result<void> UserConnection::ServeRead(const UserHeader& header, const UserDmaAccess& access) {
  std::vector<std::byte> data(access.count);
  if (!dma_.Read(iommu::Iova(access.address), data)) {
    counters_.dma_faults.Add();
    GUEST_LOG("vfio-user", "{}: DMA read of {} bytes at {:#x} is refused", name_, access.count,
              access.address);
    return Answer(header, {}, EFAULT);
  }
  counters_.dma_reads.Add();
  counters_.dma_read_bytes.Add(access.count);
  return Answer(header, BuildDmaAccess({access.address, access.count, data}));
}

Result<void> UserConnection::ServeWrite(const UserHeader& header, const UserDmaAccess& access) {
  if (!dma_.Write(iommu::Iova(access.address), access.data)) {
    counters_.dma_faults.Add();
    GUEST_LOG("vfio-user", "{}: DMA write of {} bytes at {:#x} is refused", name_, access.count,
              access.address);
    return Answer(header, {}, EFAULT);
  }
  counters_.dma_writes.Add();
  counters_.dma_write_bytes.Add(access.count);
  return Answer(header, BuildDmaAccess({access.address, access.count, {}}));
}

}  // namespace postern::vfio
