#include "vfio/user/client.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "src/base/mmap.h"
#include "src/base/text.h"
#include "src/base/unix_socket.h"

namespace postern::vfio {
namespace {

constexpr std::uint64_t kPage = 4096;
// Enough for the areas of most; a server that needs more says so and is asked again.
constexpr std::uint32_t kRegionInfoSize = 1024;
// PCI 3.0 6.1: the header and the device's own part.
constexpr std::uint64_t kLeastConfig = 256;

Unexpected Broken(const char* what) {
  return Err(Errc::kPeerProtocol, what);
}

class FileMapping final : public RegionMapping {
 public:
  FileMapping(Mmap map, int fd, std::uint64_t offset)
      : map_(std::move(map)), pages_{fd, offset, map_.data(), map_.size()} {}
  [[nodiscard]] const bus::HostPages& pages() const override { return pages_; }

 private:
  Mmap map_;
  bus::HostPages pages_;
};

// That `length` bytes from `offset` are in the file: a mapping beyond its end faults.
Result<void> CheckFile(int fd, std::uint64_t offset, std::uint64_t length) {
  struct stat file {};
  if (fstat(fd, &file) != 0) return SysError("fstat");
  const auto size = static_cast<std::uint64_t>(std::max<off_t>(file.st_size, 0));
  if (!S_ISREG(file.st_mode) || offset > size || length > size - offset) {
    return Broken("area beyond the end of its file");
  }
  return {};
}

}  // namespace

Outcome<std::unique_ptr<UserDevice>> UserDevice::Connect(const std::string& socket,
                                                         const memory::MemoryMap& memory,
                                                         EventLoop& loop,
                                                         const UserOptions& options) {
  Result<Fd> fd = ConnectUnix(socket);
  if (!fd) {
    return HostFailure(fmt::format("vfio-user device '{}'", Escaped(socket)), fd.error(),
                       "start the device's server first, and give the path of its socket");
  }
  return Adopt(std::move(*fd), socket, memory, loop, options);
}

Outcome<std::unique_ptr<UserDevice>> UserDevice::Adopt(Fd socket, std::string name,
                                                       const memory::MemoryMap& memory,
                                                       EventLoop& loop,
                                                       const UserOptions& options) {
  const std::string what = fmt::format("vfio-user device '{}'", Escaped(name));
  std::unique_ptr<UserDevice> device(new UserDevice(std::move(name), memory, options));
  UserDevice& self = *device;
  auto connection = UserConnection::Create(std::move(socket), Escaped(self.info_.name),
                                           options.timeout_ms, self.dma_, loop, self.counters_);
  if (!connection) return HostFailure(what, connection.error());
  self.connection_ = std::move(*connection);
  {
    const Turn turn(*self.connection_);
    if (Result<void> done = self.Handshake(turn, DeadlineIn(options.connect_timeout_ms)); !done) {
      // What the last call says, or why there were no more.
      return HostFailure(what, turn.reason().value_or(done.error()),
                         "check that a vfio-user server of protocol version 0 listens there");
    }
  }
  self.space_ = std::make_unique<UserAddressSpace>(*self.connection_, self.dma_, self.server_);
  if (Result<void> served = self.connection_->Serve(); !served) {
    return HostFailure(what, served.error());
  }
  return device;
}

Result<void> UserDevice::Negotiate(const Turn& turn, std::uint64_t deadline) {
  UserVersion ours;
  ours.capabilities.max_msg_fds = kUserMaxFds;
  ours.capabilities.max_data_xfer_size = kUserMaxTransfer;
  const UserMessage reply =
      TRY(turn.Call(UserCommand::kVersion, BuildVersion(ours), {.deadline = deadline}));
  const UserVersion theirs = TRY(ParseVersion(reply.payload));
  // "The major version in the reply must be the same as proposed", the minor not above it.
  if (theirs.major != ours.major || theirs.minor > ours.minor) return Broken("protocol version");
  server_ = theirs.capabilities;
  return {};
}

Result<void> UserDevice::Handshake(const Turn& turn, std::uint64_t deadline) {
  TRY(Negotiate(turn, deadline));
  const UserMessage reply = TRY(turn.Call(
      UserCommand::kDeviceInfo, BuildQuery(UserCommand::kDeviceInfo, {.argsz = 16, .index = 0}),
      {.deadline = deadline}));
  const UserDeviceInfo device = TRY(ParseDeviceInfo(reply.payload));
  if (!device.pci) return Err(Errc::kUnsupported, "device that is not PCI");
  info_.can_reset = device.can_reset;
  // More regions than these are the device's own and nothing here uses them.
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(device.regions, kRegionCount); ++i) {
    TRY(QueryRegion(turn, i, deadline));
  }
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(device.irqs, kIrqCount); ++i) {
    TRY(QueryIrq(turn, i, deadline));
  }
  const RegionInfo& config = info_.regions[kConfigRegion];
  if (config.size < kLeastConfig || !config.readable || !config.writable) {
    return Broken("configuration space of the device");
  }
  server_requests_ = info_.irqs[kRequestIrq].count > 0;
  info_.irqs[kRequestIrq] = {.count = 1, .eventfd = true, .noresize = true};
  for (std::size_t i = 0; i < kIrqCount; ++i) irqs_[i].assigned.resize(info_.irqs[i].count);
  return {};
}

Result<void> UserDevice::QueryRegion(const Turn& turn, std::uint32_t index,
                                     std::uint64_t deadline) {
  std::uint32_t argsz = kRegionInfoSize;
  for (int attempt = 0; attempt < 2; ++attempt) {
    Result<UserMessage> reply =
        turn.Call(UserCommand::kRegionInfo,
                  BuildQuery(UserCommand::kRegionInfo, {.argsz = argsz, .index = index}),
                  {.reply_fds = kUserMaxFds, .deadline = deadline});
    // As the kernel does for a region the device does not have (VGA).
    if (!reply && reply.error().sys_errno == EINVAL && index != kConfigRegion) return {};
    if (!reply) return Unexpected(reply.error());
    const UserRegionInfo region = TRY(ParseRegionInfo(reply->payload));
    if (region.index != index || reply->payload.size() > argsz) return Broken("region's index");
    if (region.needed > reply->payload.size()) {
      // Cut short without need: what is missing might have forbidden a mapping.
      if (region.needed <= argsz) return Broken("region's information");
      argsz = region.needed;
      continue;
    }
    info_.regions[index] = TRY(CheckRegion(region));
    return TakeFile(index, region, std::move(reply->fds));
  }
  return Broken("region's information that grows");
}

Result<void> UserDevice::TakeFile(std::uint32_t index, const UserRegionInfo& from,
                                  std::vector<Fd> fds) {
  std::vector<MapArea>& areas = info_.regions[index].areas;
  // Without a file there is nothing to map: every access is a message. The same where it is not
  // memory (memfd, tmpfs, hugetlbfs, which alone know of seals): a page of a file system that the
  // server serves itself may never come, nor even its size.
  if (fds.empty() || fcntl(fds.front().get(), F_GET_SEALS) < 0) areas.clear();
  if (areas.empty()) return {};
  const std::uint64_t end = areas.back().offset + areas.back().length;
  if (from.offset % kPage != 0) return Broken("offset of a region in its file");
  if (!CheckedAdd(from.offset, end)) return Broken("area beyond the end of its file");
  // The last area ends last: the others are in the file if it is.
  TRY(CheckFile(fds.front().get(), from.offset, end));
  files_[index] = File{std::move(fds.front()), from.offset};
  return {};
}

Result<void> UserDevice::QueryIrq(const Turn& turn, std::uint32_t index, std::uint64_t deadline) {
  const Result<UserMessage> reply = turn.Call(
      UserCommand::kIrqInfo, BuildQuery(UserCommand::kIrqInfo, {.argsz = 16, .index = index}),
      {.deadline = deadline});
  if (!reply && reply.error().sys_errno == EINVAL) return {};
  if (!reply) return Unexpected(reply.error());
  info_.irqs[index] = TRY(ParseIrqInfo(reply->payload, index));
  // Without descriptors nothing can be signalled.
  if (server_.max_msg_fds == 0 || !info_.irqs[index].eventfd) info_.irqs[index] = {};
  return {};
}

Result<void> UserDevice::CheckAccess(std::uint32_t region, std::uint64_t offset,
                                     std::uint64_t length, bool write) const {
  if (region >= kRegionCount) return Err(Errc::kInvalidArgument, "region");
  const RegionInfo& in = info_.regions[region];
  if (offset > in.size || length > in.size - offset || !(write ? in.writable : in.readable)) {
    return Err(Errc::kInvalidArgument, "access to a region");
  }
  return {};
}

Result<void> UserDevice::ReadPart(const Turn& turn, const UserRegionAccess& access,
                                  std::span<std::byte> to) {
  const UserMessage reply = TRY(turn.Call(UserCommand::kRegionRead, BuildRegionAccess(access)));
  const Result<UserRegionAccess> answer = ParseRegionAccess(reply.payload, Carries::kData);
  if (!answer) return turn.Refuse(answer.error());
  if (answer->offset != access.offset || answer->region != access.region ||
      answer->count != to.size()) {
    return turn.Refuse(Broken("reply to REGION_READ").value());
  }
  std::memcpy(to.data(), answer->data.data(), to.size());
  return {};
}

Result<void> UserDevice::ReadRegion(std::uint32_t region, std::uint64_t offset,
                                    std::span<std::byte> data) {
  TRY(CheckAccess(region, offset, data.size(), false));
  const Turn turn(*connection_);
  for (std::size_t done = 0; done < data.size();) {
    const auto part =
        data.subspan(done, std::min<std::size_t>(data.size() - done, server_.max_data_xfer_size));
    TRY(ReadPart(turn, {offset + done, region, static_cast<std::uint32_t>(part.size()), {}}, part));
    done += part.size();
  }
  return {};
}

Result<void> UserDevice::WritePart(const Turn& turn, const UserRegionAccess& access) {
  const std::vector<std::byte> payload = BuildRegionAccess(access);
  if (options_.posted_writes && access.region < kRomRegion) {
    return turn.Post(UserCommand::kRegionWrite, payload);
  }
  const UserMessage reply = TRY(turn.Call(UserCommand::kRegionWrite, payload));
  const Result<UserRegionAccess> answer = ParseRegionAccess(reply.payload, Carries::kNothing);
  if (!answer) return turn.Refuse(answer.error());
  if (answer->offset != access.offset || answer->region != access.region ||
      answer->count != access.count) {
    return turn.Refuse(Broken("reply to REGION_WRITE").value());
  }
  return {};
}

Result<void> UserDevice::WriteRegion(std::uint32_t region, std::uint64_t offset,
                                     std::span<const std::byte> data) {
  TRY(CheckAccess(region, offset, data.size(), true));
  const Turn turn(*connection_);
  for (std::size_t done = 0; done < data.size();) {
    const auto part =
        data.subspan(done, std::min<std::size_t>(data.size() - done, server_.max_data_xfer_size));
    TRY(WritePart(turn, {offset + done, region, static_cast<std::uint32_t>(part.size()), part}));
    done += part.size();
  }
  return {};
}

Result<std::unique_ptr<RegionMapping>> UserDevice::MapRegion(std::uint32_t region,
                                                             const MapArea& area) {
  if (region >= kRegionCount || area.length == 0 || area.offset % kPage != 0 ||
      area.length % kPage != 0) {
    return Err(Errc::kInvalidArgument, "area of a region");
  }
  const RegionInfo& in = info_.regions[region];
  const bool inside = std::any_of(in.areas.begin(), in.areas.end(), [&](const MapArea& whole) {
    return area.offset >= whole.offset && area.offset - whole.offset <= whole.length &&
           area.length <= whole.length - (area.offset - whole.offset);
  });
  if (!inside) return Err(Errc::kInvalidArgument, "area of a region");
  if (vanished()) return SysError("vfio-user connection", ENODEV);
  const File& file = files_[region];
  // Again: the file is the server's.
  TRY(CheckFile(file.fd.get(), file.offset, area.offset + area.length));
  const int protection = (in.readable ? PROT_READ : 0) | (in.writable ? PROT_WRITE : 0);
  Mmap map = TRY(
      Mmap::Create(area.length, protection, MAP_SHARED, file.fd.get(), file.offset + area.offset));
  return std::make_unique<FileMapping>(std::move(map), file.fd.get(), file.offset + area.offset);
}

Result<void> UserDevice::SetIrqs(const Turn& turn, const UserSetIrqs& set,
                                 std::span<const int> fds) {
  const UserMessage reply = TRY(turn.Call(UserCommand::kSetIrqs, BuildSetIrqs(set), {.fds = fds}));
  if (!reply.payload.empty()) return turn.Refuse(Broken("reply to DEVICE_SET_IRQS").value());
  return {};
}

// A run of vectors that all get an eventfd, or of which all lose theirs.
Result<void> UserDevice::SetRun(const Turn& turn, std::uint32_t irq, std::uint32_t start,
                                std::span<const int> events) {
  const bool assign = events.front() >= 0;
  std::vector<bool>& assigned = irqs_[irq].assigned;
  const std::size_t batch = assign ? server_.max_msg_fds : events.size();
  for (std::size_t done = 0; done < events.size();) {
    const auto part = events.subspan(done, std::min(batch, events.size() - done));
    const auto first = static_cast<std::uint32_t>(start + done);
    // "If no file descriptors are provided, this de-assigns".
    TRY(SetIrqs(turn,
                {.data = UserSetIrqs::Data::kEventFd,
                 .index = irq,
                 .start = first,
                 .count = static_cast<std::uint32_t>(part.size())},
                assign ? part : std::span<const int>()));
    for (std::size_t i = 0; i < part.size(); ++i) assigned[first + i] = assign;
    done += part.size();
  }
  return {};
}

Result<void> UserDevice::SetVectors(std::uint32_t irq, std::uint32_t start,
                                    std::span<const int> events) {
  if (irq >= kIrqCount || start > info_.irqs[irq].count ||
      events.size() > info_.irqs[irq].count - start) {
    return Err(Errc::kInvalidArgument, "interrupt vectors");
  }
  const Turn turn(*connection_);
  irqs_[irq].enabled = true;
  if (irq == kRequestIrq && !events.empty()) {
    TRY(turn.SetVanishEvent(events.front()));
    if (!server_requests_) return {};
  }
  if (vanished()) return SysError("vfio-user connection", ENODEV);
  // The protocol has no place holders: runs of vectors with an eventfd, runs of vectors that lose
  // one; vectors that have none and get none are not spoken of.
  const auto kind = [&](std::size_t i) {
    if (events[i] >= 0) return 2;
    return irqs_[irq].assigned[start + i] ? 1 : 0;
  };
  for (std::size_t i = 0; i < events.size();) {
    std::size_t end = i + 1;
    while (end < events.size() && kind(end) == kind(i)) ++end;
    if (kind(i) != 0) {
      TRY(SetRun(turn, irq, static_cast<std::uint32_t>(start + i), events.subspan(i, end - i)));
    }
    i = end;
  }
  return {};
}

Result<void> UserDevice::DisableIrq(std::uint32_t irq) {
  if (irq >= kIrqCount) return Err(Errc::kInvalidArgument, "interrupt");
  const Turn turn(*connection_);
  // Not sent for nothing: there are servers that then disable another index as well.
  if (!std::exchange(irqs_[irq].enabled, false)) return {};
  if (irq == kRequestIrq) TRY(turn.SetVanishEvent(-1));
  std::vector<bool>& assigned = irqs_[irq].assigned;
  const bool any = std::find(assigned.begin(), assigned.end(), true) != assigned.end();
  assigned.assign(assigned.size(), false);
  if (vanished()) return SysError("vfio-user connection", ENODEV);
  if (!any) return {};
  return SetIrqs(turn, {.data = UserSetIrqs::Data::kNone, .index = irq});
}

Result<void> UserDevice::MaskIntx(bool masked) {
  const IrqInfo& intx = info_.irqs[kIntxIrq];
  if (intx.count == 0) return Err(Errc::kInvalidArgument, "INTx");
  const bool can = intx.maskable || intx.automasked;
  if (!can && masked) return Err(Errc::kUnsupported, "mask INTx");
  const Turn turn(*connection_);
  if (vanished()) return SysError("vfio-user connection", ENODEV);
  // One that cannot be masked is not.
  if (!can) return {};
  return SetIrqs(turn,
                 {.action = masked ? UserSetIrqs::Action::kMask : UserSetIrqs::Action::kUnmask,
                  .index = kIntxIrq,
                  .count = 1});
}

Result<void> UserDevice::SetIntxUnmask(int unmask) {
  const IrqInfo& intx = info_.irqs[kIntxIrq];
  if (intx.count == 0) return Err(Errc::kInvalidArgument, "INTx");
  const Turn turn(*connection_);
  if (vanished() && unmask >= 0) return SysError("vfio-user connection", ENODEV);
  // Nothing to unmask: the signal is nobody's.
  if (!intx.maskable && !intx.automasked) return turn.WatchUnmask(-1, {});
  return turn.WatchUnmask(
      unmask,
      BuildSetIrqs({.action = UserSetIrqs::Action::kUnmask, .index = kIntxIrq, .count = 1}));
}

Result<void> UserDevice::Reset() {
  if (!info_.can_reset) return Err(Errc::kUnsupported, "reset of a vfio-user device");
  const Turn turn(*connection_);
  const UserMessage reply = TRY(turn.Call(UserCommand::kReset, {}));
  if (!reply.payload.empty()) return turn.Refuse(Broken("reply to DEVICE_RESET").value());
  return {};
}

}  // namespace postern::vfio
