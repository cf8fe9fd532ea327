#include "vfio/user/protocol.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "src/base/endian.h"
#include "vfio/user/wire.h"

namespace postern::vfio {
namespace {

constexpr std::uint64_t kMaxRegionSize = std::uint64_t{1} << 62;
constexpr std::uint64_t kPage = 4096;

Unexpected Broken(const char* what) {
  return Err(Errc::kPeerProtocol, what);
}

// A copy of the structure at `offset`, or kPeerProtocol if the payload ends before it does.
template <typename T>
Result<T> Take(std::span<const std::byte> from, std::size_t offset, const char* what) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (offset > from.size() || from.size() - offset < sizeof(T)) return Broken(what);
  T value{};
  std::memcpy(&value, from.data() + offset, sizeof(T));
  return value;
}

template <typename T>
void Append(std::vector<std::byte>& to, const T& value) {
  const std::size_t at = to.size();
  to.resize(at + sizeof(T));
  std::memcpy(to.data() + at, &value, sizeof(T));
}

template <typename T>
std::vector<std::byte> Bytes(const T& value, std::span<const std::byte> data = {}) {
  std::vector<std::byte> bytes(sizeof(T) + data.size());
  std::memcpy(bytes.data(), &value, sizeof(T));
  if (!data.empty()) std::memcpy(bytes.data() + sizeof(T), data.data(), data.size());
  return bytes;
}

bool Wraps(std::uint64_t start, std::uint64_t length) {
  return length > 0 && start > std::numeric_limits<std::uint64_t>::max() - (length - 1);
}

// "VFIO region capabilities": forward only, so that a chain cannot loop.
Result<void> ParseSparse(std::span<const std::byte> payload, std::size_t at, UserRegionInfo& info) {
  const auto sparse = TRY(Take<WireSparse>(payload, at, "sparse areas of a region"));
  const std::size_t count = sparse.count.get();
  if (count > kUserMaxAreas) return Broken("number of a region's areas");
  std::size_t next = at + sizeof(WireSparse);
  for (std::size_t i = 0; i < count; ++i, next += sizeof(WireArea)) {
    const auto area = TRY(Take<WireArea>(payload, next, "sparse areas of a region"));
    info.areas.push_back({area.offset.get(), area.size.get()});
  }
  info.sparse = true;
  return {};
}

Result<void> ParseCapabilities(std::span<const std::byte> payload, std::size_t first,
                               UserRegionInfo& info) {
  std::size_t at = first;
  std::size_t least = sizeof(WireRegionInfo);
  for (std::size_t n = 0; at != 0; ++n) {
    if (n == kUserMaxCapabilities || at < least || at % 4 != 0) {
      return Broken("capability chain of a region");
    }
    const auto header = TRY(Take<WireCapability>(payload, at, "capability chain of a region"));
    if (header.id.get() == kWireCapabilitySparse) {
      if (info.sparse) return Broken("second list of a region's areas");
      TRY(ParseSparse(payload, at + sizeof(WireCapability), info));
    }
    least = at + sizeof(WireCapability);
    at = header.next.get();
  }
  return {};
}

}  // namespace

Result<UserHeader> ParseHeader(std::span<const std::byte, kUserHeaderSize> bytes,
                               std::size_t max_payload) {
  const auto raw = TRY(Take<WireHeader>(bytes, 0, "message header"));
  const std::uint32_t flags = raw.flags.get();
  const std::uint32_t type = flags & kWireTypeMask;
  if (type > kWireTypeReply) return Broken("type of a message");
  UserHeader header;
  header.id = raw.id.get();
  header.command = static_cast<UserCommand>(raw.command.get());
  header.size = raw.size.get();
  header.reply = type == kWireTypeReply;
  header.no_reply = (flags & kWireNoReply) != 0;
  header.failed = header.reply && (flags & kWireError) != 0;
  header.error = raw.error.get();
  if (header.size < kUserHeaderSize) return Broken("message shorter than its header");
  if (header.size - kUserHeaderSize > max_payload) return Broken("message longer than allowed");
  return header;
}

std::array<std::byte, kUserHeaderSize> BuildHeader(const UserHeader& header) {
  WireHeader raw{};
  raw.id = header.id;
  raw.command = static_cast<std::uint16_t>(header.command);
  raw.size = header.size;
  raw.flags = (header.reply ? kWireTypeReply : 0) | (header.no_reply ? kWireNoReply : 0) |
              (header.failed ? kWireError : 0);
  raw.error = header.error;
  std::array<std::byte, kUserHeaderSize> bytes{};
  std::memcpy(bytes.data(), &raw, sizeof(raw));
  return bytes;
}

Result<UserDmaMap> ParseDmaMap(std::span<const std::byte> payload) {
  const auto raw = TRY(Take<WireDmaMap>(payload, 0, "DMA_MAP"));
  const std::uint32_t flags = raw.flags.get();
  UserDmaMap map{.readable = (flags & kWireDmaRead) != 0,
                 .writable = (flags & kWireDmaWrite) != 0,
                 .offset = raw.offset.get(),
                 .address = raw.address.get(),
                 .size = raw.size.get()};
  const bool unknown = (flags & ~(kWireDmaRead | kWireDmaWrite)) != 0;
  if (payload.size() != sizeof(raw) || raw.argsz.get() != sizeof(raw) || unknown || map.size == 0 ||
      Wraps(map.address, map.size) || Wraps(map.offset, map.size)) {
    return Broken("DMA_MAP");
  }
  return map;
}

std::vector<std::byte> BuildDmaMap(const UserDmaMap& map) {
  WireDmaMap raw{};
  raw.argsz = sizeof(raw);
  raw.flags = (map.readable ? kWireDmaRead : 0) | (map.writable ? kWireDmaWrite : 0);
  raw.offset = map.offset;
  raw.address = map.address;
  raw.size = map.size;
  return Bytes(raw);
}

Result<UserDmaUnmap> ParseDmaUnmap(std::span<const std::byte> payload) {
  const auto raw = TRY(Take<WireDmaUnmap>(payload, 0, "DMA_UNMAP"));
  const UserDmaUnmap unmap{raw.address.get(), raw.size.get(), raw.flags.get() == kWireUnmapAll};
  if (payload.size() != sizeof(raw) || raw.argsz.get() < sizeof(raw) ||
      (raw.flags.get() & ~kWireUnmapAll) != 0 || (!unmap.all && Wraps(unmap.address, unmap.size))) {
    return Broken("DMA_UNMAP");
  }
  return unmap;
}

std::vector<std::byte> BuildDmaUnmap(const UserDmaUnmap& unmap) {
  WireDmaUnmap raw{};
  raw.argsz = sizeof(raw);
  raw.flags = unmap.all ? kWireUnmapAll : 0;
  raw.address = unmap.address;
  raw.size = unmap.size;
  return Bytes(raw);
}

Result<UserQuery> ParseQuery(UserCommand command, std::span<const std::byte> payload) {
  const std::size_t size =
      command == UserCommand::kRegionInfo ? sizeof(WireRegionInfo) : sizeof(WireIrqInfo);
  const auto raw = TRY(Take<WireIrqInfo>(payload, 0, "query of a device"));
  if (payload.size() != size || raw.argsz.get() < size) return Broken("query of a device");
  return UserQuery{raw.argsz.get(), raw.index.get()};
}

std::vector<std::byte> BuildQuery(UserCommand command, const UserQuery& query) {
  WireIrqInfo raw{};  // the three begin alike
  raw.argsz = query.argsz;
  if (command != UserCommand::kDeviceInfo) raw.index = query.index;
  std::vector<std::byte> bytes = Bytes(raw);
  if (command == UserCommand::kRegionInfo) bytes.resize(sizeof(WireRegionInfo));
  return bytes;
}

Result<UserDeviceInfo> ParseDeviceInfo(std::span<const std::byte> payload) {
  const auto raw = TRY(Take<WireDeviceInfo>(payload, 0, "DEVICE_GET_INFO"));
  if (raw.argsz.get() < sizeof(raw)) return Broken("DEVICE_GET_INFO");
  return UserDeviceInfo{(raw.flags.get() & kWireDeviceReset) != 0,
                        (raw.flags.get() & kWireDevicePci) != 0, raw.regions.get(), raw.irqs.get()};
}

std::vector<std::byte> BuildDeviceInfo(const UserDeviceInfo& info) {
  WireDeviceInfo raw{};
  raw.argsz = sizeof(raw);
  raw.flags = (info.can_reset ? kWireDeviceReset : 0) | (info.pci ? kWireDevicePci : 0);
  raw.regions = info.regions;
  raw.irqs = info.irqs;
  return Bytes(raw);
}

Result<UserRegionInfo> ParseRegionInfo(std::span<const std::byte> payload) {
  const auto raw = TRY(Take<WireRegionInfo>(payload, 0, "DEVICE_GET_REGION_INFO"));
  const std::uint32_t flags = raw.flags.get();
  UserRegionInfo info;
  info.needed = raw.argsz.get();
  info.index = raw.index.get();
  info.readable = (flags & kWireRegionRead) != 0;
  info.writable = (flags & kWireRegionWrite) != 0;
  info.mappable = (flags & kWireRegionMap) != 0;
  info.size = raw.size.get();
  info.offset = raw.offset.get();
  if (info.needed < sizeof(raw) || info.needed > kUserMaxRegionInfo) {
    return Broken("size of a region's information");
  }
  if (info.needed > payload.size() || (flags & kWireRegionCaps) == 0) return info;
  TRY(ParseCapabilities(payload, raw.cap_offset.get(), info));
  return info;
}

std::vector<std::byte> BuildRegionInfo(const UserRegionInfo& info, std::uint32_t argsz) {
  WireRegionInfo raw{};
  const std::size_t caps = info.sparse ? sizeof(WireCapability) + sizeof(WireSparse) +
                                             info.areas.size() * sizeof(WireArea)
                                       : 0;
  raw.argsz = static_cast<std::uint32_t>(sizeof(raw) + caps);
  const bool fits = raw.argsz.get() <= argsz;
  raw.flags = (info.readable ? kWireRegionRead : 0) | (info.writable ? kWireRegionWrite : 0) |
              (info.mappable ? kWireRegionMap : 0) | (info.sparse && fits ? kWireRegionCaps : 0);
  raw.index = info.index;
  raw.cap_offset = info.sparse && fits ? static_cast<std::uint32_t>(sizeof(raw)) : 0;
  raw.size = info.size;
  raw.offset = info.offset;
  std::vector<std::byte> bytes = Bytes(raw);
  if (!info.sparse || !fits) return bytes;
  WireCapability header{};
  header.id = kWireCapabilitySparse;
  header.version = 1;
  Append(bytes, header);
  WireSparse sparse{};
  sparse.count = static_cast<std::uint32_t>(info.areas.size());
  Append(bytes, sparse);
  for (const MapArea& from : info.areas) {
    WireArea area{};
    area.offset = from.offset;
    area.size = from.length;
    Append(bytes, area);
  }
  return bytes;
}

Result<RegionInfo> CheckRegion(const UserRegionInfo& info) {
  if (info.size > kMaxRegionSize) return Broken("size of a region");
  RegionInfo region{.size = info.size, .readable = info.readable, .writable = info.writable};
  if (!info.mappable || info.size == 0) return region;
  const std::vector<MapArea> areas =
      info.sparse ? info.areas : std::vector<MapArea>{{0, info.size}};
  for (const MapArea& area : areas) {
    if (area.offset > info.size || area.length > info.size - area.offset) {
      return Broken("area outside its region");
    }
    // The region is at most 2^62: rounding up does not wrap.
    const std::uint64_t first = (area.offset + kPage - 1) / kPage * kPage;
    const std::uint64_t end = (area.offset + area.length) / kPage * kPage;
    if (first < end) region.areas.push_back({first, end - first});
  }
  std::sort(region.areas.begin(), region.areas.end(),
            [](const MapArea& a, const MapArea& b) { return a.offset < b.offset; });
  for (std::size_t i = 1; i < region.areas.size(); ++i) {
    const MapArea& before = region.areas[i - 1];
    if (before.offset + before.length > region.areas[i].offset) return Broken("overlapping areas");
  }
  return region;
}

Result<IrqInfo> ParseIrqInfo(std::span<const std::byte> payload, std::uint32_t index) {
  const auto raw = TRY(Take<WireIrqInfo>(payload, 0, "DEVICE_GET_IRQ_INFO"));
  if (raw.argsz.get() < sizeof(raw) || raw.index.get() != index) {
    return Broken("DEVICE_GET_IRQ_INFO");
  }
  // PCI 3.0 6.8.1.3 and 6.8.2.3.
  const std::uint32_t most = index == kMsixIrq ? 2048 : index == kMsiIrq ? 32 : 1;
  if (raw.count.get() > most) return Broken("number of vectors");
  const std::uint32_t flags = raw.flags.get();
  return IrqInfo{.count = raw.count.get(),
                 .eventfd = (flags & kWireIrqEventFd) != 0,
                 .maskable = (flags & kWireIrqMaskable) != 0,
                 .automasked = (flags & kWireIrqAutomasked) != 0,
                 .noresize = (flags & kWireIrqNoResize) != 0};
}

std::vector<std::byte> BuildIrqInfo(const IrqInfo& info, std::uint32_t index) {
  WireIrqInfo raw{};
  raw.argsz = sizeof(raw);
  raw.flags = (info.eventfd ? kWireIrqEventFd : 0) | (info.maskable ? kWireIrqMaskable : 0) |
              (info.automasked ? kWireIrqAutomasked : 0) | (info.noresize ? kWireIrqNoResize : 0);
  raw.index = index;
  raw.count = info.count;
  return Bytes(raw);
}

Result<UserSetIrqs> ParseSetIrqs(std::span<const std::byte> payload) {
  const auto raw = TRY(Take<WireIrqSet>(payload, 0, "DEVICE_SET_IRQS"));
  const std::uint32_t flags = raw.flags.get();
  const std::uint32_t data = flags & kWireIrqDataMask;
  const std::uint32_t action = flags & kWireIrqActionMask;
  const auto one_bit = [](std::uint32_t bits) { return bits != 0 && (bits & (bits - 1)) == 0; };
  if (raw.argsz.get() != payload.size() || (data | action) != flags || !one_bit(data) ||
      !one_bit(action)) {
    return Broken("DEVICE_SET_IRQS");
  }
  UserSetIrqs set;
  set.data = static_cast<UserSetIrqs::Data>(data);
  set.action = static_cast<UserSetIrqs::Action>(action);
  set.index = raw.index.get();
  set.start = raw.start.get();
  set.count = raw.count.get();
  set.flags = payload.subspan(sizeof(raw));
  const std::size_t expected = set.data == UserSetIrqs::Data::kBool ? set.count : 0;
  if (set.flags.size() != expected ||
      set.count > std::numeric_limits<std::uint32_t>::max() - set.start) {
    return Broken("DEVICE_SET_IRQS");
  }
  return set;
}

std::vector<std::byte> BuildSetIrqs(const UserSetIrqs& set) {
  WireIrqSet raw{};
  raw.argsz = static_cast<std::uint32_t>(sizeof(raw) + set.flags.size());
  raw.flags = static_cast<std::uint32_t>(set.data) | static_cast<std::uint32_t>(set.action);
  raw.index = set.index;
  raw.start = set.start;
  raw.count = set.count;
  return Bytes(raw, set.flags);
}

Result<UserRegionAccess> ParseRegionAccess(std::span<const std::byte> payload, Carries carries) {
  const auto raw = TRY(Take<WireRegionAccess>(payload, 0, "access to a region"));
  UserRegionAccess access{raw.offset.get(), raw.region.get(), raw.count.get(),
                          payload.subspan(sizeof(raw))};
  const std::size_t expected = carries == Carries::kData ? access.count : 0;
  if (access.count == 0 || access.count > kUserMaxTransfer || access.data.size() != expected ||
      Wraps(access.offset, std::uint64_t{access.count} + 1)) {
    return Broken("access to a region");
  }
  return access;
}

std::vector<std::byte> BuildRegionAccess(const UserRegionAccess& access) {
  WireRegionAccess raw{};
  raw.offset = access.offset;
  raw.region = access.region;
  raw.count = access.count;
  return Bytes(raw, access.data);
}

Result<UserDmaAccess> ParseDmaAccess(std::span<const std::byte> payload, Carries carries) {
  const auto raw = TRY(Take<WireDmaAccess>(payload, 0, "DMA access"));
  UserDmaAccess access{raw.address.get(), raw.count.get(), payload.subspan(sizeof(raw))};
  const std::uint64_t expected = carries == Carries::kData ? access.count : 0;
  if (access.count == 0 || access.count > kUserMaxTransfer || access.data.size() != expected ||
      Wraps(access.address, access.count)) {
    return Broken("DMA access");
  }
  return access;
}

std::vector<std::byte> BuildDmaAccess(const UserDmaAccess& access) {
  WireDmaAccess raw{};
  raw.address = access.address;
  raw.count = access.count;
  return Bytes(raw, access.data);
}

}  // namespace postern::vfio
