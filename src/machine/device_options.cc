#include "src/machine/device_options.h"

#include <utility>

namespace postern {
namespace {

virtio::BlkOptions::Cache CacheOf(DiskConfig::Cache cache) {
  switch (cache) {
    case DiskConfig::Cache::kWritethrough:
      return virtio::BlkOptions::Cache::kWritethrough;
    case DiskConfig::Cache::kUnsafe:
      return virtio::BlkOptions::Cache::kUnsafe;
    case DiskConfig::Cache::kWriteback:
      break;
  }
  return virtio::BlkOptions::Cache::kWriteback;
}

virtio::BlkOptions::Engine EngineOf(DiskConfig::Engine engine) {
  switch (engine) {
    case DiskConfig::Engine::kIoUring:
      return virtio::BlkOptions::Engine::kIoUring;
    case DiskConfig::Engine::kSync:
      return virtio::BlkOptions::Engine::kSync;
    case DiskConfig::Engine::kAuto:
      break;
  }
  return virtio::BlkOptions::Engine::kAuto;
}

console::BackendOptions::Kind KindOf(ConsoleConfig::Mode mode) {
  switch (mode) {
    case ConsoleConfig::Mode::kStdio:
      return console::BackendOptions::Kind::kStdio;
    case ConsoleConfig::Mode::kPty:
      return console::BackendOptions::Kind::kPty;
    case ConsoleConfig::Mode::kFile:
      return console::BackendOptions::Kind::kFile;
    case ConsoleConfig::Mode::kSocket:
      return console::BackendOptions::Kind::kSocket;
    case ConsoleConfig::Mode::kOff:
    case ConsoleConfig::Mode::kNull:
      break;
  }
  return console::BackendOptions::Kind::kNull;
}

}  // namespace

virtio::BlkOptions OptionsOf(const DiskConfig& disk, const std::string& id) {
  virtio::BlkOptions options;
  options.path = disk.path;
  options.readonly = disk.readonly;
  options.direct = disk.direct;
  options.cache = CacheOf(disk.cache);
  options.engine = EngineOf(disk.engine);
  // The specification's ID string has 20 bytes; a default is cut to them.
  options.serial = disk.serial.empty() ? id.substr(0, 20) : disk.serial;
  options.num_queues = disk.queues;
  options.queue_size = disk.queue_size;
  options.id = id;
  return options;
}

virtio::NetOptions OptionsOf(const NetConfig& net) {
  virtio::NetOptions options;
  options.tap = net.tap;
  if (net.fd >= 0) options.fds = {net.fd};
  if (!net.mac.empty()) options.mac = ParseMac(net.mac);
  options.mtu = net.mtu;
  options.queue_pairs = net.queue_pairs;
  options.queue_size = net.queue_size;
  options.offload = net.offload;
  return options;
}

console::BackendOptions OptionsOf(const ConsoleConfig& console, std::function<void()> quit) {
  console::BackendOptions options;
  options.kind = KindOf(console.mode);
  options.path = console.path;
  options.quit = std::move(quit);
  return options;
}

}  // namespace postern
