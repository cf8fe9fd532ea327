#pragma once

// Config: everything a machine is made from. Filled by the command line and the JSON file alike
// (src/api/config.h), or by an embedder. Plain values; defaults are those of `postern run`. Sizes
// are bytes. Machine::Create validates it and names the field that is wrong.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/base/failure.h"

namespace postern {

struct MemoryConfig {
  std::uint64_t size = std::uint64_t{512} << 20;  // a multiple of the page size below
  std::uint64_t hugepages = 0;  // 0, 2 MiB or 1 GiB: take RAM from the host's reserved huge pages
  bool shared = false;          // a memfd mapped shared, for backends in other processes
  bool prefault = false;        // touch all pages before the guest starts
  bool thp = false;             // ask for transparent huge pages
  bool mergeable = false;       // offer pages to KSM
};

struct DiskConfig {
  enum class Cache : std::uint8_t { kWriteback, kWritethrough, kUnsafe };
  enum class Engine : std::uint8_t { kAuto, kIoUring, kSync };
  std::string id;    // default: disk0, disk1, ...
  std::string path;  // raw image file or block device
  bool readonly = false;
  bool direct = false;  // O_DIRECT
  Cache cache = Cache::kWriteback;
  Engine engine = Engine::kAuto;
  std::string serial;  // at most 20 bytes; default: the id
  std::uint16_t queues = 1;
  std::uint16_t queue_size = 256;
};

struct NetConfig {
  std::string id;   // default: net0, net1, ...
  std::string tap;  // interface name; created for the life of the machine if it does not exist
  int fd = -1;      // or an open TAP descriptor
  std::string mac;  // default: random, locally administered
  std::uint16_t mtu = 0;  // 0: not told to the guest
  std::uint16_t queue_pairs = 1;
  std::uint16_t queue_size = 256;
  bool offload = true;  // checksum and segmentation offloads
};

struct VsockConfig {
  std::uint64_t cid = 3;  // 3 .. 2^32 - 2
  std::string socket;     // host side: connect here and say "CONNECT port"; the guest's own
                          // connections go to socket_PORT
};

// A device that is not ours, given to the guest: a PCI function of the host by VFIO, or a device of
// another process by vfio-user. Exactly one of host, path, fd and socket says which.
struct AssignedConfig {
  enum class Iommufd : std::uint8_t { kAuto, kOn, kOff };
  std::string id;                    // default: device0, device1, ...
  std::string host;                  // PCI address, 0000:3b:00.0
  std::string path;                  // its folder in sysfs (mediated devices have no address)
  int fd = -1;                       // an open VFIO device file
  std::string socket;                // a vfio-user server
  Iommufd iommufd = Iommufd::kAuto;  // /dev/iommu or a container; kAuto: what the host has
  int iommufd_fd = -1;               // an open /dev/iommu
  bool rombar = false;               // show the option ROM
  bool intx = true;                  // wired interrupts, where it has nothing else
  bool p2p = false;                  // let it and others with p2p reach each other's memory
  int trap_bar = -1;                 // a BAR whose accesses are all trapped
};

// A device composed in this process: a virtual Intel DSA whose work queues are served by threads of
// ours, or are some of a physical DSA's, or one of its driver's (devices/siov).
struct VdevConfig {
  enum class Type : std::uint8_t { kDsa };
  enum class Backend : std::uint8_t {
    kEngine,  // threads of this process
    kVfio,    // queues of a DSA of the host that Postern drives: `host` or `socket` says which
    kCdev,    // a queue of the host's own idxd driver: `path`
  };
  enum class Profile : std::uint8_t {
    kReadOnly,      // "ro": configured by us, as the specification asks of a composed device
    kConfigurable,  // "cfg": the guest configures groups and queues
  };
  enum class Portal : std::uint8_t {
    kAuto,     // kDirect where the back end has it, kPolled where it loses nothing, else kTrapped
    kDirect,   // the guest stores to pages of the device itself
    kPolled,   // stores to a portal do not exit: one vCPU and queues of at most 63 entries
    kTrapped,  // each is an exit
  };
  std::string id;  // default: vdev0, vdev1, ...
  Type type = Type::kDsa;
  Profile profile = Profile::kReadOnly;
  Backend backend = Backend::kEngine;
  std::string host;    // PCI address of a DSA bound to a VFIO driver; several vdevs may share one
  std::string socket;  // or a DSA that is a vfio-user server's
  std::string path;    // /dev/dsa/wqX.Y
  Portal portal = Portal::kAuto;
  std::uint32_t wqs = 0;                // 1 to 8; 0: 1, or 8 when configurable
  std::uint32_t wq_size = 0;            // entries; 0: 32, or at most 63 when configurable
  std::uint32_t engines = 1;            // threads that do the work
  std::uint32_t poll_sleep_us = 10000;  // how late an idle polled portal may be looked at
};

// Where a console's or the serial port's bytes go.
struct ConsoleConfig {
  enum class Mode : std::uint8_t { kOff, kStdio, kPty, kFile, kSocket, kNull };
  Mode mode = Mode::kOff;
  std::string path;  // kFile, kSocket
};

enum class Transport : std::uint8_t { kPci, kMmio };

// A device that can be added to a running machine.
using DeviceConfig = std::variant<DiskConfig, AssignedConfig>;

struct Config {
  std::string kernel;  // bzImage or ELF; empty: the built-in guest
  std::string initrd;
  std::string cmdline;  // appended after what the machine itself adds
  std::uint32_t cpus = 1;
  MemoryConfig memory;
  std::vector<DiskConfig> disks;
  std::vector<NetConfig> nets;
  std::optional<VsockConfig> vsock;
  std::vector<AssignedConfig> devices;
  std::vector<VdevConfig> vdevs;
  ConsoleConfig console{ConsoleConfig::Mode::kStdio, {}};
  ConsoleConfig serial;
  bool rng = true;
  Transport transport = Transport::kPci;
  std::uint32_t io_threads = 1;
  bool pit = false;
  // Whether guests are told of the instruction; as the host's processor has it if nothing is said.
  // True: for guests that bring it along themselves (a test's, under a processor without it).
  std::optional<bool> movdir64b;
  std::uint32_t hotplug_ports = 0;  // slots for devices added while the guest runs; PCI alone
  std::string control;  // UNIX socket for `postern ctl`; empty: none. Served by src/api/control.h
  std::string metrics;  // JSON, written when the machine ends and when asked for; empty: none
};

// "02:00:00:00:00:01"; nothing for another form, and for a group or all-zero address, which no
// interface can have.
[[nodiscard]] std::optional<std::array<std::uint8_t, 6>> ParseMac(std::string_view text);

// Whether the fields make sense, alone and together; the first that does not is named.
// Machine::Create begins with this.
[[nodiscard]] Outcome<void> Validate(const Config& config);
// The same of one device; `where` names it in messages ("disks[0]").
[[nodiscard]] Outcome<void> Validate(const DeviceConfig& device, const std::string& where);

}  // namespace postern
