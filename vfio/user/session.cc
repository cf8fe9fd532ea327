#include "vfio/user/session.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "src/base/log.h"

namespace postern::vfio {
namespace {

// Answers that wait for a client to read them; above it no more of its commands are looked at.
constexpr std::size_t kMaxBacklog = std::size_t{2} << 20;

// The errno a client is told.
std::uint32_t ErrnoOf(const Error& error) {
  switch (error.code) {
    case Errc::kSystem:
      return error.sys_errno > 0 ? static_cast<std::uint32_t>(error.sys_errno) : EIO;
    case Errc::kOverlap:
      return EEXIST;
    case Errc::kNotFound:
      return ENOENT;
    case Errc::kExhausted:
      return ENOSPC;
    case Errc::kUnsupported:
      return EOPNOTSUPP;
    case Errc::kBadState:
      return EIO;
    default:
      return EINVAL;
  }
}

bool TakesFds(UserCommand command) {
  return command == UserCommand::kDmaMap || command == UserCommand::kSetIrqs;
}

}  // namespace

void ServerCounters::Report(CounterSink& sink) const {
  sink.Add("clients", clients.Get());
  sink.Add("clients_refused", clients_refused.Get());
  sink.Add("clients_dropped", clients_dropped.Get());
  sink.Add("commands", commands.Get());
  sink.Add("commands_refused", commands_refused.Get());
  sink.Add("commands_unknown", commands_unknown.Get());
  sink.Add("device_resets", resets.Get());
}

bool UserSession::broke_rules() const {
  const std::optional<Error>& why = channel_.closed();
  return why &&
         !(why->code == Errc::kSystem && (why->sys_errno == ECONNRESET || why->sys_errno == EPIPE));
}

std::uint32_t UserSession::events() const {
  return (channel_.backlog() <= kMaxBacklog ? EPOLLIN : 0U) |
         (channel_.backlog() > 0 ? EPOLLOUT : 0U);
}

bool UserSession::Work() {
  for (unsigned n = 0; n < kCommandsARound; ++n) {
    if (!channel_.Flush()) return false;
    if (channel_.backlog() > kMaxBacklog) return true;
    Result<std::optional<UserMessage>> message = channel_.Receive();
    if (!message) return false;
    if (!*message) return true;
    if (!Handle(**message)) return false;
  }
  return true;
}

Unexpected UserSession::End(const char* why) {
  const Unexpected error = Err(Errc::kPeerProtocol, why);
  channel_.Close(error.value());
  return error;
}

Result<void> UserSession::Handle(UserMessage& message) {
  counters_.commands.Add();
  const UserHeader& header = message.header;
  if (header.reply) return End("reply to nothing");
  if (!message.fds.empty() && !TakesFds(header.command))
    return End("descriptors with a command that takes none");
  const bool version = header.command == UserCommand::kVersion;
  if (!greeted_ && !version) return End("command before VERSION");
  return Dispatch(message);
}

Result<void> UserSession::Dispatch(UserMessage& message) {
  const UserHeader& header = message.header;
  switch (header.command) {
    case UserCommand::kVersion:
      return Version(message);
    case UserCommand::kDeviceInfo:
    case UserCommand::kRegionInfo:
    case UserCommand::kIrqInfo:
      return Query(message);
    case UserCommand::kDmaMap:
      return Map(message);
    case UserCommand::kDmaUnmap:
      return Unmap(message);
    case UserCommand::kSetIrqs:
      return SetIrqs(message);
    case UserCommand::kRegionRead:
    case UserCommand::kRegionWrite:
      return Access(message);
    case UserCommand::kReset:
      if (!message.payload.empty())
        return Refuse(header, Err(Errc::kPeerProtocol, "DEVICE_RESET with a payload").value());
      counters_.resets.Add();
      device_.Reset();
      return Answer(header, {});
    default:
      counters_.commands_unknown.Add();
      return Refuse(header, Err(Errc::kInvalidArgument, "command that is not known").value());
  }
}

// "The major version must be the same"; ours is the lower of the two minor ones.
Result<void> UserSession::Version(const UserMessage& message) {
  if (greeted_) return End("second VERSION");
  const Result<UserVersion> theirs = ParseVersion(message.payload);
  if (!theirs || theirs->major != 0) {
    TRY(Refuse(message.header, Err(Errc::kPeerProtocol, "VERSION").value()));
    return End("VERSION");
  }
  greeted_ = true;
  UserVersion ours;
  ours.minor = std::min<std::uint16_t>(theirs->minor, ours.minor);
  ours.capabilities.max_msg_fds = kServedMaxFds;
  ours.capabilities.max_data_xfer_size = kUserMaxTransfer;
  ours.capabilities.max_dma_maps = kServedMaxDmaMaps;
  return Answer(message.header, BuildVersion(ours));
}

Result<void> UserSession::Query(const UserMessage& message) {
  const UserHeader& header = message.header;
  const Result<UserQuery> query = ParseQuery(header.command, message.payload);
  if (!query) return Refuse(header, query.error());
  if (header.command == UserCommand::kDeviceInfo) {
    return Answer(
        header, BuildDeviceInfo(
                    {.can_reset = true, .pci = true, .regions = kRegionCount, .irqs = kIrqCount}));
  }
  if (header.command == UserCommand::kRegionInfo) return RegionInfo(header, *query);
  if (query->index >= kIrqCount)
    return Refuse(header, Err(Errc::kInvalidArgument, "index of an interrupt").value());
  return Answer(header, BuildIrqInfo(device_.Irq(query->index), query->index));
}

Result<void> UserSession::RegionInfo(const UserHeader& header, const UserQuery& query) {
  if (query.index >= kRegionCount)
    return Refuse(header, Err(Errc::kInvalidArgument, "index of a region").value());
  const ServedRegion region = device_.Region(query.index);
  const bool mappable = !region.info.areas.empty();
  const UserRegionInfo info{.index = query.index,
                            .readable = region.info.readable,
                            .writable = region.info.writable,
                            .mappable = mappable,
                            .size = region.info.size,
                            .offset = region.offset,
                            .sparse = mappable,
                            .areas = region.info.areas};
  const std::vector<std::byte> payload = BuildRegionInfo(info, query.argsz);
  // Cut short, the client asks again: the descriptor comes with the answer that names its areas.
  const bool whole = payload.size() == BuildRegionInfo(info, kUserMaxRegionInfo).size();
  const std::array<int, 1> fds{region.fd};
  return Answer(header, payload, std::span(fds).first(mappable && whole ? 1 : 0));
}

Result<void> UserSession::Map(UserMessage& message) {
  const Result<UserDmaMap> map = ParseDmaMap(message.payload);
  if (!map) return Refuse(message.header, map.error());
  if (message.fds.size() > 1)
    return Refuse(message.header, Err(Errc::kPeerProtocol, "descriptors with DMA_MAP").value());
  Fd file = message.fds.empty() ? Fd() : std::move(message.fds.front());
  if (const Result<void> done = device_.MapDma(*map, std::move(file)); !done) {
    GUEST_LOG("vfio-user", "{}: DMA mapping of {:#x} bytes at {:#x} is refused: {}", name_,
              map->size, map->address, done.error().op);
    return RefuseQuietly(message.header, done.error());
  }
  LOG_DEBUG("vfio-user", "{}: mapped {:#x} bytes at {:#x}", name_, map->size, map->address);
  return Answer(message.header, {});
}

Result<void> UserSession::Unmap(const UserMessage& message) {
  const Result<UserDmaUnmap> unmap = ParseDmaUnmap(message.payload);
  if (!unmap) return Refuse(message.header, unmap.error());
  if (const Result<void> done = device_.UnmapDma(*unmap); !done)
    return Refuse(message.header, done.error());
  return Answer(message.header, BuildDmaUnmap(*unmap));
}

Result<void> UserSession::SetIrqs(UserMessage& message) {
  const Result<UserSetIrqs> set = ParseSetIrqs(message.payload);
  if (!set) return Refuse(message.header, set.error());
  const std::uint32_t vectors = set->index < kIrqCount ? device_.Irq(set->index).count : 0;
  if (set->index >= kIrqCount || set->start > vectors || set->count > vectors - set->start)
    return Refuse(message.header, Err(Errc::kInvalidArgument, "vectors of an interrupt").value());
  const Result<void> done = SetVectors(*set, std::move(message.fds));
  return done ? Answer(message.header, {}) : Refuse(message.header, done.error());
}

Result<void> UserSession::SetVectors(const UserSetIrqs& set, std::vector<Fd> fds) {
  using Data = UserSetIrqs::Data;
  const bool events = set.data == Data::kEventFd && !fds.empty();
  if (!fds.empty() && (!events || fds.size() != set.count))
    return Err(Errc::kInvalidArgument, "descriptors of vectors");
  // There is none that could be masked.
  if (set.action != UserSetIrqs::Action::kTrigger)
    return Err(Errc::kUnsupported, "mask vectors by message");
  if (events) return device_.SetVectors(set.index, set.start, std::move(fds));
  if (set.data == Data::kEventFd) {
    device_.ClearVectors(set.index, set.start, set.count);
  } else if (set.data == Data::kNone && set.count == 0) {
    // "Disables the index".
    device_.ClearVectors(set.index, 0, device_.Irq(set.index).count);
  } else {
    for (std::uint32_t i = 0; i < set.count; ++i) {
      if (set.data == Data::kNone || set.flags[i] != std::byte{0})
        device_.TriggerVectors(set.index, set.start + i, 1);
    }
  }
  return {};
}

Result<void> UserSession::Access(const UserMessage& message) {
  const bool write = message.header.command == UserCommand::kRegionWrite;
  Result<UserRegionAccess> access =
      ParseRegionAccess(message.payload, write ? Carries::kData : Carries::kNothing);
  if (!access) return Refuse(message.header, access.error());
  if (access->region >= kRegionCount)
    return Refuse(message.header, Err(Errc::kInvalidArgument, "index of a region").value());
  const ServedRegion region = device_.Region(access->region);
  const bool allowed = write ? region.info.writable : region.info.readable;
  if (!allowed || access->offset > region.info.size ||
      access->count > region.info.size - access->offset) {
    return Refuse(message.header, Err(Errc::kInvalidArgument, "access to a region").value());
  }
  std::vector<std::byte> data(write ? 0 : access->count);
  const Result<void> done = write
                                ? device_.WriteRegion(access->region, access->offset, access->data)
                                : device_.ReadRegion(access->region, access->offset, data);
  if (!done) return Refuse(message.header, done.error());
  access->data = data;
  return Answer(message.header, BuildRegionAccess(*access));
}

Result<void> UserSession::Answer(const UserHeader& to, Payload payload, std::span<const int> fds) {
  if (to.no_reply) return {};
  return channel_.Send({.id = to.id, .command = to.command, .reply = true}, payload, fds);
}

Result<void> UserSession::Refuse(const UserHeader& to, const Error& why) {
  GUEST_LOG("vfio-user", "{}: command {} is refused: {}", name_,
            static_cast<std::uint16_t>(to.command), why.op);
  return RefuseQuietly(to, why);
}

Result<void> UserSession::RefuseQuietly(const UserHeader& to, const Error& why) {
  counters_.commands_refused.Add();
  if (to.no_reply) return {};
  return channel_.Send(
      {.id = to.id, .command = to.command, .reply = true, .failed = true, .error = ErrnoOf(why)},
      {});
}

}  // namespace postern::vfio
