#pragma once

// The messages of vfio-user: what stands in them, as values, and pure functions between values and
// bytes. Both sides of a connection use them.
//
//   const UserVersion version = TRY(ParseVersion(payload));
//   const auto bytes = BuildRegionAccess({.offset = 0, .region = 7, .count = 4}, {});
//
// A parser takes the payload of one message (without its header) and checks all that can be checked
// without knowing the device: sizes, counts, chains, flags. What breaks a rule is kPeerProtocol.
// Is not: framing (channel.h), nor what a message leads to (client.h). Migration, multiple writes,
// a second socket and descriptors for parts of regions are not spoken.
//
// Threads: pure functions. Units: bytes. Source: vfio-user specification, QEMU
// docs/interop/vfio-user.rst; Linux include/uapi/linux/vfio.h for the structures it borrows.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/result.h"
#include "vfio/host_device.h"

namespace postern::vfio {

// "Commands". The last two go from the server to the client, the others the other way.
enum class UserCommand : std::uint16_t {
  kVersion = 1,
  kDmaMap = 2,
  kDmaUnmap = 3,
  kDeviceInfo = 4,
  kRegionInfo = 5,
  kIrqInfo = 7,
  kSetIrqs = 8,
  kRegionRead = 9,
  kRegionWrite = 10,
  kReset = 13,
  kDmaRead = 11,
  kDmaWrite = 12,
};

// Ours. The data of one transfer is the specification's default.
constexpr std::uint32_t kUserMaxTransfer = 1 << 20;
constexpr std::size_t kUserHeaderSize = 16;
constexpr std::size_t kUserMaxPayload = kUserMaxTransfer + 16;
constexpr std::size_t kUserMaxVersionText = 4096;
constexpr std::uint32_t kUserMaxRegionInfo = 16384;
constexpr std::size_t kUserMaxAreas = 256;
constexpr std::size_t kUserMaxCapabilities = 16;
// Descriptors of one message: libvfio-user sends a region's once for each of its areas.
constexpr std::size_t kUserMaxFds = 32;

struct UserHeader {
  std::uint16_t id = 0;
  UserCommand command{};   // any number: what nobody knows is answered with an error
  std::uint32_t size = 0;  // of the whole message
  bool reply = false;
  bool no_reply = false;    // a command that is not answered
  bool failed = false;      // a reply without payload
  std::uint32_t error = 0;  // errno of a failed reply; may be 0
};
// kPeerProtocol: shorter than itself, longer than `max_payload` allows, or neither command nor
// reply.
[[nodiscard]] Result<UserHeader> ParseHeader(std::span<const std::byte, kUserHeaderSize> bytes,
                                             std::size_t max_payload);
[[nodiscard]] std::array<std::byte, kUserHeaderSize> BuildHeader(const UserHeader& header);

// VFIO_USER_VERSION. The defaults are the specification's for what is not told.
struct UserCapabilities {
  std::uint64_t max_msg_fds = 1;
  std::uint64_t max_data_xfer_size = 1 << 20;
  std::uint64_t max_dma_maps = 65535;
  std::uint64_t pgsizes = 4096;
};
struct UserVersion {
  std::uint16_t major = 0;
  std::uint16_t minor = 1;
  UserCapabilities capabilities;
};
// Numbers are cut to what we use (max_msg_fds to kUserMaxFds, max_data_xfer_size to
// kUserMaxTransfer, page sizes to those of 4 KiB and more). Unknown names are ignored.
[[nodiscard]] Result<UserVersion> ParseVersion(std::span<const std::byte> payload);
[[nodiscard]] std::vector<std::byte> BuildVersion(const UserVersion& version);

struct UserDmaMap {
  bool readable = false;
  bool writable = false;
  std::uint64_t offset = 0;  // in the descriptor that comes with it
  std::uint64_t address = 0;
  std::uint64_t size = 0;  // not 0; address + size - 1 does not wrap
};
[[nodiscard]] Result<UserDmaMap> ParseDmaMap(std::span<const std::byte> payload);
[[nodiscard]] std::vector<std::byte> BuildDmaMap(const UserDmaMap& map);

struct UserDmaUnmap {
  std::uint64_t address = 0;
  std::uint64_t size = 0;  // address + size - 1 does not wrap
  bool all = false;        // whatever the other two say
};
[[nodiscard]] Result<UserDmaUnmap> ParseDmaUnmap(std::span<const std::byte> payload);
[[nodiscard]] std::vector<std::byte> BuildDmaUnmap(const UserDmaUnmap& unmap);

// What the three queries have in common. `argsz`: the longest payload the reply may have, at least
// that of the fixed structure.
struct UserQuery {
  std::uint32_t argsz = 0;
  std::uint32_t index = 0;  // not of kDeviceInfo
};
[[nodiscard]] Result<UserQuery> ParseQuery(UserCommand command, std::span<const std::byte> payload);
[[nodiscard]] std::vector<std::byte> BuildQuery(UserCommand command, const UserQuery& query);

struct UserDeviceInfo {
  bool can_reset = false;
  bool pci = false;
  std::uint32_t regions = 0;
  std::uint32_t irqs = 0;
};
[[nodiscard]] Result<UserDeviceInfo> ParseDeviceInfo(std::span<const std::byte> payload);
[[nodiscard]] std::vector<std::byte> BuildDeviceInfo(const UserDeviceInfo& info);

struct UserRegionInfo {
  std::uint32_t needed = 0;  // argsz: if longer than the payload, capabilities are missing from it
  std::uint32_t index = 0;
  bool readable = false;
  bool writable = false;
  bool mappable = false;
  std::uint64_t size = 0;
  std::uint64_t offset = 0;    // of the region in its descriptor
  bool sparse = false;         // only `areas` of it are mappable
  std::vector<MapArea> areas;  // as told: not checked against the region
};
[[nodiscard]] Result<UserRegionInfo> ParseRegionInfo(std::span<const std::byte> payload);
// At most `argsz` bytes: without the areas, and any word of them, where they do not fit. (QEMU
// takes the flag without an offset for an error, and asks again by `needed` alone.)
[[nodiscard]] std::vector<std::byte> BuildRegionInfo(const UserRegionInfo& info,
                                                     std::uint32_t argsz);
// The areas as RegionInfo promises them: whole pages inside the region, ascending. An area is cut
// to whole pages, an empty one is left out; one that leaves the region, or two that overlap, are
// kPeerProtocol.
[[nodiscard]] Result<RegionInfo> CheckRegion(const UserRegionInfo& info);

[[nodiscard]] Result<IrqInfo> ParseIrqInfo(std::span<const std::byte> payload, std::uint32_t index);
[[nodiscard]] std::vector<std::byte> BuildIrqInfo(const IrqInfo& info, std::uint32_t index);

// VFIO_USER_DEVICE_SET_IRQS: one of each enumeration. kEventFd without descriptors detaches; kNone
// with kTrigger and count 0 disables the index, with another count it triggers.
struct UserSetIrqs {
  enum class Data : std::uint8_t { kNone = 1, kBool = 2, kEventFd = 4 };
  enum class Action : std::uint8_t { kMask = 8, kUnmask = 16, kTrigger = 32 };
  Data data = Data::kNone;
  Action action = Action::kTrigger;
  std::uint32_t index = 0;
  std::uint32_t start = 0;  // start + count does not wrap
  std::uint32_t count = 0;
  std::span<const std::byte> flags;  // kBool: `count` bytes of the payload
};
[[nodiscard]] Result<UserSetIrqs> ParseSetIrqs(std::span<const std::byte> payload);
[[nodiscard]] std::vector<std::byte> BuildSetIrqs(const UserSetIrqs& set);

// VFIO_USER_REGION_READ and _WRITE, either direction.
struct UserRegionAccess {
  std::uint64_t offset = 0;
  std::uint32_t region = 0;
  std::uint32_t count = 0;          // 1 to kUserMaxTransfer; offset + count does not wrap
  std::span<const std::byte> data;  // in the payload
};
enum class Carries : std::uint8_t { kNothing, kData };  // kData: exactly `count` bytes
[[nodiscard]] Result<UserRegionAccess> ParseRegionAccess(std::span<const std::byte> payload,
                                                         Carries carries);
[[nodiscard]] std::vector<std::byte> BuildRegionAccess(const UserRegionAccess& access);

// VFIO_USER_DMA_READ and _WRITE, either direction.
struct UserDmaAccess {
  std::uint64_t address = 0;
  std::uint64_t count = 0;          // 1 to kUserMaxTransfer; address + count - 1 does not wrap
  std::span<const std::byte> data;  // in the payload
};
[[nodiscard]] Result<UserDmaAccess> ParseDmaAccess(std::span<const std::byte> payload,
                                                   Carries carries);
[[nodiscard]] std::vector<std::byte> BuildDmaAccess(const UserDmaAccess& access);

}  // namespace postern::vfio
