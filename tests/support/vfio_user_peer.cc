#include "tests/support/vfio_user_peer.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/fd_passing.h"

namespace postern::testing {

using vfio::UserCommand;
using vfio::UserHeader;
using vfio::UserMessage;

namespace {

Unexpected Ended(const char* why) {
  return Err(Errc::kBadState, why);
}

}  // namespace

void VfioUserPeer::Run() {
  while (channel_.Flush()) {
    Result<std::optional<UserMessage>> message = std::nullopt;
    if (!later_.empty()) {
      message = std::move(later_.front());
      later_.pop_front();
    } else {
      message = channel_.Receive();
    }
    if (!message) return;
    if (!*message) {
      if (!Wait()) return;
      continue;
    }
    if (!Handle(**message)) return;
  }
}

bool VfioUserPeer::Wait() {
  const short events = static_cast<short>(POLLIN | (channel_.backlog() > 0 ? POLLOUT : 0));
  std::array<pollfd, 3> entries{{{server_.stop_.fd(), POLLIN, 0},
                                 {server_.drop_.fd(), POLLIN, 0},
                                 {channel_.fd(), events, 0}}};
  if (poll(entries.data(), entries.size(), -1) < 0) return errno == EINTR;
  return entries[0].revents == 0 && entries[1].revents == 0;
}

void VfioUserPeer::Silence() {
  std::array<pollfd, 2> entries{{{server_.stop_.fd(), POLLIN, 0}, {server_.drop_.fd(), POLLIN, 0}}};
  while (poll(entries.data(), entries.size(), -1) < 0 && errno == EINTR) {
  }
}

Result<void> VfioUserPeer::Handle(UserMessage& message) {
  const UserHeader& header = message.header;
  if (header.reply) return Ended("reply to nothing");
  const Misbehaviour& wrong = options_.misbehaviour;
  misbehave_now_ = wrong.kind != Misbehaviour::Kind::kNone && wrong.at == header.command &&
                   server_.came_++ == wrong.skip;
  server_.Note([&](VfioUserServer::Seen& seen) { ++seen.commands[header.command]; });
  TRY(Dispatch(message));
  if (options_.dma_after_reply) RunEngine();
  return {};
}

Result<void> VfioUserPeer::Dispatch(UserMessage& message) {
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
      if (!options_.can_reset) return Refuse(header, EINVAL);
      server_.function_.Reset();
      server_.Note([](VfioUserServer::Seen& seen) { ++seen.resets; });
      return Reply(header, {});
    default:
      return Refuse(header, EINVAL);
  }
}

Result<void> VfioUserPeer::Version(const UserMessage& message) {
  const Result<vfio::UserVersion> theirs = vfio::ParseVersion(message.payload);
  if (!theirs || theirs->major != 0) return Ended("protocol version");
  client_ = theirs->capabilities;
  return Reply(message.header,
               vfio::BuildVersion({.major = 0,
                                   .minor = std::min<std::uint16_t>(theirs->minor, 1),
                                   .capabilities = options_.offers}));
}

Result<void> VfioUserPeer::Query(const UserMessage& message) {
  const UserHeader& header = message.header;
  const Result<vfio::UserQuery> query = vfio::ParseQuery(header.command, message.payload);
  if (!query) return Refuse(header, EINVAL);
  if (header.command == UserCommand::kRegionInfo) return RegionInfo(header, *query);
  if (header.command == UserCommand::kIrqInfo) return IrqInfo(header, *query);
  return Reply(header, vfio::BuildDeviceInfo({.can_reset = options_.can_reset,
                                              .pci = true,
                                              .regions = vfio::kRegionCount,
                                              .irqs = vfio::kIrqCount}));
}

Result<void> VfioUserPeer::RegionInfo(const UserHeader& header, const vfio::UserQuery& query) {
  // VGA: the device has none, and says so as the kernel does.
  if (query.index >= 8) return Refuse(header, EINVAL);
  vfio::UserRegionInfo info{.index = query.index, .size = TestFunction::RegionSize(query.index)};
  info.readable = info.writable = info.size > 0;
  if (query.index != 2) return Reply(header, vfio::BuildRegionInfo(info, query.argsz));
  info.mappable = true;
  info.sparse = true;
  info.areas.assign(kTestAreas.begin(), kTestAreas.end());
  const std::array<int, 1> fds{server_.function_.memory_fd()};
  return Reply(header, vfio::BuildRegionInfo(info, query.argsz), fds);
}

vfio::IrqInfo VfioUserPeer::Irq(std::uint32_t index) const {
  switch (index) {
    case vfio::kIntxIrq:
      return {.count = options_.function.intx ? 1U : 0U,
              .eventfd = true,
              .maskable = true,
              .automasked = true};
    case vfio::kMsixIrq:
      return {.count = options_.function.vectors, .eventfd = true};
    case vfio::kErrorIrq:
      return {.count = 1, .eventfd = true, .noresize = true};
    case vfio::kRequestIrq:
      return {.count = options_.request_irq ? 1U : 0U, .eventfd = true, .noresize = true};
    default:
      return {};
  }
}

Result<void> VfioUserPeer::IrqInfo(const UserHeader& header, const vfio::UserQuery& query) {
  if (query.index >= vfio::kIrqCount) return Refuse(header, EINVAL);
  return Reply(header, vfio::BuildIrqInfo(Irq(query.index), query.index));
}

Result<void> VfioUserPeer::Map(UserMessage& message) {
  const Result<vfio::UserDmaMap> map = vfio::ParseDmaMap(message.payload);
  if (!map || message.fds.size() > 1) return Refuse(message.header, EINVAL);
  if (mappings_.size() >= options_.offers.max_dma_maps) return Refuse(message.header, ENOSPC);
  const std::uint64_t last = map->address + (map->size - 1);
  const auto above = mappings_.upper_bound(last);
  if (above != mappings_.begin()) {
    const auto& [start, below] = *std::prev(above);
    if (start + (below.size - 1) >= map->address) return Refuse(message.header, EEXIST);
  }
  DmaMapping mapping{map->size, map->readable, map->writable, {}};
  if (!message.fds.empty()) {
    struct stat file {};
    const int fd = message.fds.front().get();
    const bool fits = fstat(fd, &file) == 0 &&
                      map->offset + map->size <= static_cast<std::uint64_t>(file.st_size);
    if (!fits) return Refuse(message.header, EINVAL);
    Result<Mmap> memory =
        Mmap::Create(map->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, map->offset);
    if (!memory) return Refuse(message.header, ENOMEM);
    mapping.memory = std::move(*memory);
  }
  const bool by_file = mapping.memory.data() != nullptr;
  mappings_.emplace(map->address, std::move(mapping));
  server_.Note([&](VfioUserServer::Seen& seen) {
    ++seen.mappings;
    if (by_file) ++seen.mappings_by_file;
  });
  return Reply(message.header, {});
}

Result<void> VfioUserPeer::Unmap(const UserMessage& message) {
  const Result<vfio::UserDmaUnmap> unmap = vfio::ParseDmaUnmap(message.payload);
  if (!unmap) return Refuse(message.header, EINVAL);
  const auto found = mappings_.find(unmap->address);
  if (found == mappings_.end() || found->second.size != unmap->size) {
    return Refuse(message.header, ENOENT);
  }
  const bool by_file = found->second.memory.data() != nullptr;
  mappings_.erase(found);
  server_.Note([&](VfioUserServer::Seen& seen) {
    --seen.mappings;
    if (by_file) --seen.mappings_by_file;
  });
  return Reply(message.header, vfio::BuildDmaUnmap(*unmap));
}

Result<void> VfioUserPeer::SetIrqs(UserMessage& message) {
  const Result<vfio::UserSetIrqs> set = vfio::ParseSetIrqs(message.payload);
  if (!set || set->index >= vfio::kIrqCount) return Refuse(message.header, EINVAL);
  const std::uint32_t count = Irq(set->index).count;
  const bool inside = set->start <= count && set->count <= count - set->start;
  const bool fds_fit = message.fds.empty() || message.fds.size() == set->count;
  if (!inside || !fds_fit) return Refuse(message.header, EINVAL);
  std::uint32_t error = 0;
  if (set->action == vfio::UserSetIrqs::Action::kTrigger) {
    error = SetTriggers(*set, std::move(message.fds));
  } else if (set->index == vfio::kIntxIrq && set->data == vfio::UserSetIrqs::Data::kNone) {
    MaskIntx(set->action == vfio::UserSetIrqs::Action::kMask);
  } else {
    error = EINVAL;
  }
  return error == 0 ? Reply(message.header, {}) : Refuse(message.header, error);
}

std::uint32_t VfioUserPeer::SetTriggers(const vfio::UserSetIrqs& set, std::vector<Fd> fds) {
  if (set.data == vfio::UserSetIrqs::Data::kBool) return EINVAL;
  const bool none = set.data == vfio::UserSetIrqs::Data::kNone;
  std::vector<bool> assigned;
  {
    const MutexLock lock(server_.mutex_);
    auto& events = server_.events_[set.index];
    events.resize(Irq(set.index).count);
    if (none && set.count == 0) {
      for (auto& event : events) event.reset();
    }
    for (std::uint32_t i = 0; i < set.count; ++i) {
      auto& event = events[set.start + i];
      if (none) {
        if (event) event->Signal();
      } else if (fds.empty()) {
        event.reset();
      } else {
        event.emplace(std::move(fds[i]));
      }
    }
    for (const auto& event : events) assigned.push_back(event.has_value());
  }
  server_.Note([&](VfioUserServer::Seen& seen) { seen.assigned[set.index] = assigned; });
  return 0;
}

void VfioUserPeer::MaskIntx(bool masked) {
  intx_masked_ = masked;
  server_.Note([&](VfioUserServer::Seen& seen) { seen.intx_masked = masked; });
  if (!masked) RaiseIntx();
}

void VfioUserPeer::Interrupt(std::uint32_t vector) {
  bool msix = false;
  {
    const MutexLock lock(server_.mutex_);
    for (const auto& event : server_.events_[vfio::kMsixIrq]) msix = msix || event.has_value();
  }
  if (msix) return server_.Raise(vfio::kMsixIrq, vector);
  RaiseIntx();
}

void VfioUserPeer::RaiseIntx() {
  if (!options_.function.intx || intx_masked_ || !server_.function_.interrupting()) return;
  // Masks itself until the client says otherwise.
  intx_masked_ = true;
  server_.Note([](VfioUserServer::Seen& seen) { seen.intx_masked = true; });
  server_.Raise(vfio::kIntxIrq, 0);
}

Result<void> VfioUserPeer::Access(const UserMessage& message) {
  const bool write = message.header.command == UserCommand::kRegionWrite;
  Result<vfio::UserRegionAccess> access = vfio::ParseRegionAccess(
      message.payload, write ? vfio::Carries::kData : vfio::Carries::kNothing);
  if (!access || access->count > options_.offers.max_data_xfer_size) {
    return Refuse(message.header, EINVAL);
  }
  if (write) {
    if (!server_.function_.Write(access->region, access->offset, access->data)) {
      return Refuse(message.header, EINVAL);
    }
    access->data = {};
    // INTx that was disabled while its cause is there.
    if (access->region == vfio::kConfigRegion) RaiseIntx();
    // Before the reply: a client that does not serve memory while it waits is stuck here.
    if (!options_.dma_after_reply) RunEngine();
    return Reply(message.header, vfio::BuildRegionAccess(*access));
  }
  std::vector<std::byte> data(access->count);
  if (!server_.function_.Read(access->region, access->offset, data)) {
    return Refuse(message.header, EINVAL);
  }
  access->data = data;
  return Reply(message.header, vfio::BuildRegionAccess(*access));
}

Result<void> VfioUserPeer::Refuse(const UserHeader& to, std::uint32_t error) {
  server_.Note([](VfioUserServer::Seen& seen) { ++seen.errors; });
  if (to.no_reply) return {};
  return channel_.Send(
      {.id = to.id, .command = to.command, .reply = true, .failed = true, .error = error}, {});
}

Result<void> VfioUserPeer::Reply(const UserHeader& to, Payload payload, std::span<const int> fds) {
  if (misbehave_now_) {
    misbehave_now_ = false;
    if (TRY(Misbehave(to, payload, fds))) return {};
  }
  if (to.no_reply) return {};
  return channel_.Send({.id = to.id, .command = to.command, .reply = true}, payload, fds);
}

void VfioUserPeer::RunEngine() {
  const std::optional<TestFunction::Copy> copy = server_.function_.TakeCopy();
  if (!copy) return;
  server_.function_.Finish(copy->length <= kEngineMaxLength && Copy(*copy));
  Interrupt(copy->vector);
}

bool VfioUserPeer::Copy(const TestFunction::Copy& copy) {
  std::vector<std::byte> data(copy.length);
  const std::size_t most =
      std::min<std::size_t>(client_.max_data_xfer_size, options_.offers.max_data_xfer_size);
  for (std::size_t done = 0; done < data.size();) {
    const auto part = std::span(data).subspan(done, std::min(most, data.size() - done));
    if (!ReadMemory(copy.source + done, part)) return false;
    if (!WriteMemory(copy.destination + done, part)) return false;
    done += part.size();
  }
  return true;
}

std::span<std::byte> VfioUserPeer::Direct(std::uint64_t address, std::size_t length, bool write) {
  if (options_.dma_by_message) return {};
  const auto above = mappings_.upper_bound(address);
  if (above == mappings_.begin()) return {};
  const auto& [start, mapping] = *std::prev(above);
  const std::uint64_t offset = address - start;
  const bool granted = write ? mapping.writable : mapping.readable;
  if (mapping.memory.data() == nullptr || !granted || offset >= mapping.size ||
      length > mapping.size - offset) {
    return {};
  }
  return {mapping.memory.data() + offset, length};
}

bool VfioUserPeer::ReadMemory(std::uint64_t address, std::span<std::byte> to) {
  if (const auto from = Direct(address, to.size(), false); !from.empty()) {
    std::memcpy(to.data(), from.data(), to.size());
    return true;
  }
  const Result<UserMessage> reply =
      Ask(UserCommand::kDmaRead, vfio::BuildDmaAccess({address, to.size(), {}}));
  if (!reply || reply->header.failed) return false;
  const auto access = vfio::ParseDmaAccess(reply->payload, vfio::Carries::kData);
  if (!access || access->address != address || access->count != to.size()) return false;
  std::memcpy(to.data(), access->data.data(), to.size());
  return true;
}

bool VfioUserPeer::WriteMemory(std::uint64_t address, Payload from) {
  if (const auto to = Direct(address, from.size(), true); !to.empty()) {
    std::memcpy(to.data(), from.data(), from.size());
    return true;
  }
  const Result<UserMessage> reply =
      Ask(UserCommand::kDmaWrite, vfio::BuildDmaAccess({address, from.size(), from}));
  return reply && !reply->header.failed;
}

Result<UserMessage> VfioUserPeer::Ask(UserCommand command, Payload payload,
                                      std::span<const int> fds) {
  const std::uint16_t id = next_id_++;
  TRY(channel_.Send({.id = id, .command = command}, payload, fds));
  while (true) {
    TRY(channel_.Flush());
    std::optional<UserMessage> message = TRY(channel_.Receive());
    if (!message) {
      if (!Wait()) return Ended("stopped");
      continue;
    }
    if (!message->header.reply) {
      later_.push_back(std::move(*message));
      continue;
    }
    if (message->header.id != id || message->header.command != command) return Ended("reply");
    if (message->header.failed) {
      server_.Note([](VfioUserServer::Seen& seen) { ++seen.dma_errors; });
    }
    return std::move(*message);
  }
}

}  // namespace postern::testing
