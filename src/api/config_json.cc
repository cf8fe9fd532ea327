#include "src/api/config_json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "src/api/fields.h"
#include "src/base/fd.h"
#include "src/base/text.h"

namespace postern::api {
namespace {

using Json = Fields::Json;

Outcome<void> ReadMemory(const Json& json, const std::string& path, MemoryConfig& memory) {
  Fields fields(json, path);
  fields.Size("size", memory.size)
      .Size("hugepages", memory.hugepages, true)
      .Flag("shared", memory.shared)
      .Flag("prefault", memory.prefault)
      .Flag("thp", memory.thp)
      .Flag("mergeable", memory.mergeable);
  return fields.Finish();
}

Outcome<void> ReadDisk(const Json& json, const std::string& path, DiskConfig& disk) {
  Fields fields(json, path);
  fields.Text("path", disk.path)
      .Text("id", disk.id)
      .Flag("readonly", disk.readonly)
      .Flag("direct", disk.direct)
      .Choice("cache", disk.cache,
              {{"writeback", DiskConfig::Cache::kWriteback},
               {"writethrough", DiskConfig::Cache::kWritethrough},
               {"unsafe", DiskConfig::Cache::kUnsafe}})
      .Choice("engine", disk.engine,
              {{"auto", DiskConfig::Engine::kAuto},
               {"io_uring", DiskConfig::Engine::kIoUring},
               {"sync", DiskConfig::Engine::kSync}})
      .Text("serial", disk.serial)
      .Number("queues", disk.queues, 1, 64)
      .Number("queue_size", disk.queue_size, 4, 1024);
  return fields.Finish();
}

Outcome<void> ReadNet(const Json& json, const std::string& path, NetConfig& net) {
  Fields fields(json, path);
  fields.Text("tap", net.tap)
      .Number("fd", 0, 1 << 20, [&](std::uint64_t fd) { net.fd = static_cast<int>(fd); })
      .Text("id", net.id)
      .Text("mac", net.mac)
      .Number("mtu", net.mtu, 68, 65535)
      .Number("queue_pairs", net.queue_pairs, 1, 16)
      .Number("queue_size", net.queue_size, 2, 1024)
      .Flag("offload", net.offload);
  return fields.Finish();
}

Outcome<void> ReadVsock(const Json& json, const std::string& path,
                        std::optional<VsockConfig>& out) {
  VsockConfig vsock;
  Fields fields(json, path);
  // VIRTIO 1.2 5.10.4: 0, 1, 2 and the all-ones address are reserved.
  fields.Number("cid", vsock.cid, 3, 0xfffffffe).Text("socket", vsock.socket);
  if (Outcome<void> r = fields.Finish(); !r) return r;
  if (vsock.socket.empty())
    return ConfigFailure(path + ".socket: missing",
                         "give the path of the UNIX socket to listen on");
  out = std::move(vsock);
  return {};
}

// "on", "off", "auto", or "fd=N" for an open descriptor.
Outcome<void> ReadIommufd(const Json& json, const std::string& path, AssignedConfig& device) {
  constexpr std::string_view kFd = "fd=";
  const std::string text = json.is_string() ? json.get<std::string>() : "";
  if (text.starts_with(kFd)) {
    const Json object = {{"fd", text.substr(kFd.size())}};
    Fields fields(object, path);
    fields.Number("fd", 0, 1 << 20,
                  [&](std::uint64_t fd) { device.iommufd_fd = static_cast<int>(fd); });
    device.iommufd = AssignedConfig::Iommufd::kOn;
    return fields.Finish();
  }
  if (text == "on" || (json.is_boolean() && json.get<bool>())) {
    device.iommufd = AssignedConfig::Iommufd::kOn;
  } else if (text == "off" || (json.is_boolean() && !json.get<bool>())) {
    device.iommufd = AssignedConfig::Iommufd::kOff;
  } else if (text == "auto") {
    device.iommufd = AssignedConfig::Iommufd::kAuto;
  } else {
    return ConfigFailure(path + ": is none of: auto, on, off, fd=N", "choose one of these");
  }
  return {};
}

Outcome<void> ReadAssigned(const Json& json, const std::string& path, AssignedConfig& device) {
  Fields fields(json, path);
  fields.Text("host", device.host)
      .Text("path", device.path)
      .Text("socket", device.socket)
      .Number("fd", 0, 1 << 20, [&](std::uint64_t fd) { device.fd = static_cast<int>(fd); })
      .Member("iommufd",
              [&](const Json& v, const std::string& p) { return ReadIommufd(v, p, device); })
      .Text("id", device.id)
      .Flag("rombar", device.rombar)
      .Flag("intx", device.intx)
      .Flag("p2p", device.p2p)
      .Number("trap_bar", 0, 5,
              [&](std::uint64_t bar) { device.trap_bar = static_cast<int>(bar); });
  return fields.Finish();
}

Outcome<void> ReadVdev(const Json& json, const std::string& path, VdevConfig& vdev) {
  Fields fields(json, path);
  fields.Choice("type", vdev.type, {{"dsa", VdevConfig::Type::kDsa}})
      .Choice("profile", vdev.profile,
              {{"ro", VdevConfig::Profile::kReadOnly}, {"cfg", VdevConfig::Profile::kConfigurable}})
      .Choice("backend", vdev.backend,
              {{"engine", VdevConfig::Backend::kEngine},
               {"vfio", VdevConfig::Backend::kVfio},
               {"cdev", VdevConfig::Backend::kCdev}})
      .Text("host", vdev.host)
      .Text("socket", vdev.socket)
      .Text("path", vdev.path)
      .Choice("portal", vdev.portal,
              {{"auto", VdevConfig::Portal::kAuto},
               {"direct", VdevConfig::Portal::kDirect},
               {"polled", VdevConfig::Portal::kPolled},
               {"trapped", VdevConfig::Portal::kTrapped}})
      .Number("wqs", vdev.wqs, 1, 8)
      .Number("wq_size", vdev.wq_size, 1, 128)
      .Number("engines", vdev.engines, 1, 64)
      .Number("poll_sleep_us", vdev.poll_sleep_us, 100, 1000000)
      .Text("id", vdev.id);
  return fields.Finish();
}

Outcome<void> ReadConsole(const Json& json, const std::string& path, ConsoleConfig& console) {
  ConsoleConfig read;
  Fields fields(json, path);
  fields
      .Choice("mode", read.mode,
              {{"off", ConsoleConfig::Mode::kOff},
               {"stdio", ConsoleConfig::Mode::kStdio},
               {"pty", ConsoleConfig::Mode::kPty},
               {"file", ConsoleConfig::Mode::kFile},
               {"socket", ConsoleConfig::Mode::kSocket},
               {"null", ConsoleConfig::Mode::kNull}})
      .Text("path", read.path);
  if (Outcome<void> r = fields.Finish(); !r) return r;
  const bool needs_path =
      read.mode == ConsoleConfig::Mode::kFile || read.mode == ConsoleConfig::Mode::kSocket;
  if (needs_path && read.path.empty())
    return ConfigFailure(path + ".path: missing", "a file or socket console needs a path");
  if (!needs_path && !read.path.empty()) {
    return ConfigFailure(path + ".path: only a file or socket console has a path",
                         "remove it, or set mode to file or socket");
  }
  console = std::move(read);
  return {};
}

// Entries of a list: without an id, or with a new one, appended; with a known one, replaced.
template <typename T>
Outcome<void> AddEntry(const Json& json, const std::string& path, std::vector<T>& list,
                       Outcome<void> (*read)(const Json&, const std::string&, T&)) {
  T entry;
  if (Outcome<void> r = read(json, path, entry); !r) return r;
  const auto same = std::find_if(list.begin(), list.end(),
                                 [&](const T& t) { return !entry.id.empty() && t.id == entry.id; });
  if (same != list.end()) {
    *same = std::move(entry);
  } else {
    list.push_back(std::move(entry));
  }
  return {};
}

template <typename T>
Outcome<void> ReadList(const Json& json, const std::string& path, std::vector<T>& list,
                       Outcome<void> (*read)(const Json&, const std::string&, T&)) {
  if (!json.is_array())
    return ConfigFailure(path + ": expected a list", "write it as [{...}, {...}]");
  list.clear();
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (Outcome<void> r = AddEntry(json[i], fmt::format("{}[{}]", path, i), list, read); !r)
      return r;
  }
  return {};
}

Outcome<void> ReadDocument(const Json& json, Config& config) {
  Fields fields(json, "");
  fields.Text("kernel", config.kernel)
      .Text("initrd", config.initrd)
      .Text("cmdline", config.cmdline)
      .Number("cpus", config.cpus, 1, 1024)
      .Member("memory",
              [&](const Json& v, const std::string& p) { return ReadMemory(v, p, config.memory); })
      .Member("disks", [&](const Json& v,
                           const std::string& p) { return ReadList(v, p, config.disks, ReadDisk); })
      .Member("nets", [&](const Json& v,
                          const std::string& p) { return ReadList(v, p, config.nets, ReadNet); })
      .Member("vsock",
              [&](const Json& v, const std::string& p) { return ReadVsock(v, p, config.vsock); })
      .Member("devices",
              [&](const Json& v, const std::string& p) {
                return ReadList(v, p, config.devices, ReadAssigned);
              })
      .Member("vdevs", [&](const Json& v,
                           const std::string& p) { return ReadList(v, p, config.vdevs, ReadVdev); })
      .Member("console", [&](const Json& v,
                             const std::string& p) { return ReadConsole(v, p, config.console); })
      .Member("serial",
              [&](const Json& v, const std::string& p) { return ReadConsole(v, p, config.serial); })
      .Flag("rng", config.rng)
      .Choice("transport", config.transport, {{"pci", Transport::kPci}, {"mmio", Transport::kMmio}})
      .Number("io_threads", config.io_threads, 1, 64)
      .Flag("pit", config.pit)
      .Flag("movdir64b", config.movdir64b)
      .Number("hotplug_ports", config.hotplug_ports, 0, 31)
      .Text("control", config.control)
      .Text("metrics", config.metrics);
  return fields.Finish();
}

// Flags whose value is a list of keys: the key a bare first word stands for, and the keys that need
// no value.
struct StructuredFlag {
  const char* name;
  const char* bare;
  std::set<std::string_view> switches;
};

const StructuredFlag* FindStructured(std::string_view name) {
  static const StructuredFlag flags[] = {
      {"memory", "size", {"shared", "prefault", "thp", "mergeable"}},
      {"disk", "path", {"readonly", "direct"}},
      {"net", "tap", {"offload"}},
      {"vsock", "socket", {}},
      {"device", "host", {"rombar", "intx", "p2p"}},
      {"vdev", "type", {}},
      {"console", "mode", {}},
      {"serial", "mode", {}},
  };
  for (const StructuredFlag& flag : flags) {
    if (name == flag.name) return &flag;
  }
  return nullptr;
}

// "a=1,b,c=x" to an object of strings. A comma in a value is written twice.
Outcome<Json> ParseList(const StructuredFlag& flag, std::string_view text) {
  std::vector<std::string> words(1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      words.back() += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      words.back() += ',';
      ++i;
    } else {
      words.emplace_back();
    }
  }
  Json object = Json::object();
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const std::size_t equals = word.find('=');
    std::string key = word.substr(0, equals);
    std::string value;
    if (equals != std::string::npos) {
      std::replace(key.begin(), key.end(), '-', '_');
      value = word.substr(equals + 1);
      // --console file=PATH is --console mode=file,path=PATH.
      if ((key == "file" || key == "socket") && std::strcmp(flag.bare, "mode") == 0) {
        object["mode"] = key;
        key = "path";
      }
    } else if (flag.switches.contains(key)) {
      value = "on";
    } else if (i == 0 && !word.empty()) {
      key = flag.bare;
      value = word;
    } else {
      return ConfigFailure(fmt::format("--{} {}: '{}' has no value", flag.name, text, word),
                           fmt::format("write it as {}=VALUE; known keys: {}",
                                       word.empty() ? "key" : word, FlagKeys(flag.name)));
    }
    if (object.contains(key)) {
      return ConfigFailure(fmt::format("--{} {}: '{}' is given twice", flag.name, text, key),
                           "give it once");
    }
    object[key] = value;
  }
  return object;
}

Outcome<void> ReadStructured(std::string_view name, const Json& json, Config& config) {
  const std::string path = "--" + std::string(name);
  if (name == "memory") return ReadMemory(json, path, config.memory);
  if (name == "disk") return AddEntry(json, path, config.disks, ReadDisk);
  if (name == "net") return AddEntry(json, path, config.nets, ReadNet);
  if (name == "vsock") return ReadVsock(json, path, config.vsock);
  if (name == "device") return AddEntry(json, path, config.devices, ReadAssigned);
  if (name == "vdev") return AddEntry(json, path, config.vdevs, ReadVdev);
  if (name == "console") return ReadConsole(json, path, config.console);
  return ReadConsole(json, path, config.serial);
}

}  // namespace

Outcome<void> ApplyJson(std::string_view text, std::string_view source, Config& config) {
  Json json;
  try {
    // Comments are allowed: people keep machine files in repositories.
    json = Json::parse(text, nullptr, true, true);
  } catch (const Json::parse_error& error) {
    const std::size_t at = std::min(error.byte, text.size());
    const auto line =
        1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    return ConfigFailure(fmt::format("{}: not valid JSON near line {}", source, line),
                         "check commas, quotes and brackets there");
  }
  Config copy = config;
  if (Outcome<void> r = ReadDocument(json, copy); !r) {
    Failure failure = r.error();
    failure.cause = fmt::format("{}: {}", source, failure.cause);
    return tl::unexpected(std::move(failure));
  }
  config = std::move(copy);
  return {};
}

Outcome<void> ApplyJsonFile(const std::string& path, Config& config) {
  constexpr off_t kLargest = 1 << 20;
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid())
    return ConfigFailure(
        fmt::format("cannot open configuration '{}': {}", path, strerrordesc_np(errno)),
        "check the path");
  struct stat status {};
  if (fstat(fd.get(), &status) < 0 || !S_ISREG(status.st_mode)) {
    return ConfigFailure(fmt::format("configuration '{}' is not a regular file", path),
                         "give a JSON file");
  }
  if (status.st_size > kLargest) {
    return ConfigFailure(fmt::format("configuration '{}' is larger than 1 MiB", path),
                         "check that it is the JSON file you meant");
  }
  std::string text(static_cast<std::size_t>(status.st_size), '\0');
  std::size_t size = 0;
  while (size < text.size()) {
    const ssize_t n = read(fd.get(), text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    size += static_cast<std::size_t>(n);
  }
  text.resize(size);
  return ApplyJson(text, path, config);
}

Outcome<void> ApplyFlag(std::string_view name, std::string_view value, Config& config) {
  Config copy = config;
  Outcome<void> result;
  if (const StructuredFlag* flag = FindStructured(name); flag != nullptr) {
    Outcome<Json> object = ParseList(*flag, value);
    if (!object) return tl::unexpected(object.error());
    result = ReadStructured(name, *object, copy);
  } else {
    std::string field(name);
    std::replace(field.begin(), field.end(), '-', '_');
    result = ReadDocument(Json{{field, std::string(value)}}, copy);
    if (!result) {
      Failure failure = result.error();
      failure.cause = "--" + std::string(name) +
                      failure.cause.substr(std::min(field.size(), failure.cause.size()));
      return tl::unexpected(std::move(failure));
    }
  }
  if (result) config = std::move(copy);
  return result;
}

Outcome<DeviceConfig> ParseDevice(std::string_view spec) {
  const std::size_t comma = spec.find(',');
  const std::string_view kind = spec.substr(0, comma);
  if (kind != "disk" && kind != "device") {
    return ConfigFailure(fmt::format("a device of kind '{}' cannot be added", Escaped(kind, 80)),
                         "write disk,path=FILE and further keys of --disk, or device,host=BDF and "
                         "those of --device");
  }
  Config scratch;
  const std::string_view words = comma == std::string_view::npos ? "" : spec.substr(comma + 1);
  if (words.empty()) {
    return kind == "disk"
               ? ConfigFailure("disk.path: missing", "give the image file or block device")
               : ConfigFailure("device.host: missing", "give the PCI address, or a socket");
  }
  if (Outcome<void> r = ApplyFlag(kind, words, scratch); !r) return tl::unexpected(r.error());
  if (kind == "disk") return DeviceConfig(std::move(scratch.disks.front()));
  return DeviceConfig(std::move(scratch.devices.front()));
}

std::string FlagKeys(std::string_view name) {
  // Reading an object with one unknown member answers with the members there are.
  Config scratch;
  const Outcome<void> result = ReadStructured(name, Json{{"?", ""}}, scratch);
  if (result) return {};
  constexpr std::string_view kPrefix = "known here: ";
  const std::string& text = result.error().next_step;
  return text.starts_with(kPrefix) ? text.substr(kPrefix.size()) : text;
}

}  // namespace postern::api
