#include "src/probe/cmdline.h"

#include "src/probe/text.h"

namespace postern::probe {
namespace {

// Cuts `text` at the first `separator`: returns what precedes it, leaves what follows.
std::string_view Cut(std::string_view& text, char separator) {
  const size_t at = text.find(separator);
  const std::string_view head(text.data(), at == std::string_view::npos ? text.size() : at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return head;
}

// Whether a comma-separated list has `name`.
bool IsListed(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    if (Cut(list, ',') == name) return true;
  }
  return false;
}

bool RemovePrefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// A size with Linux's memparse suffixes.
bool ParseSize(std::string_view text, uint64_t& size) {
  unsigned shift = 0;
  if (!text.empty()) {
    switch (text.back()) {
      case 'k':
      case 'K':
        shift = 10;
        break;
      case 'm':
      case 'M':
        shift = 20;
        break;
      case 'g':
      case 'G':
        shift = 30;
        break;
      default:
        break;
    }
  }
  if (shift != 0) text.remove_suffix(1);
  if (!ParseNumber(text, size) || size > (~uint64_t{0} >> shift)) return false;
  size <<= shift;
  return true;
}

bool ParseMmioDevice(std::string_view text, Options& options) {
  MmioDeviceArgument device{};
  uint64_t irq = 0;
  if (!ParseSize(Cut(text, '@'), device.size) || !ParseNumber(Cut(text, ':'), device.address) ||
      !ParseNumber(Cut(text, ':'), irq) || irq > 0xffff || device.address % 4 != 0 ||
      device.size < 0x100) {
    return false;
  }
  if (options.mmio_count == Options::kMaxMmioDevices) return false;
  device.irq = static_cast<uint32_t>(irq);
  options.mmio[options.mmio_count++] = device;
  return true;
}

bool ParseMode(std::string_view text, Mode& mode) {
  struct Name {
    const char* text;
    Mode mode;
  };
  static constexpr Name kNames[] = {
      {"table", Mode::kTable},     {"blkbench", Mode::kBlkBench}, {"netbench", Mode::kNetBench},
      {"exit", Mode::kExit},       {"pio", Mode::kPio},           {"mmio", Mode::kMmio},
      {"hostile", Mode::kHostile},
  };
  for (const Name& name : kNames) {
    if (text == name.text) {
      mode = name.mode;
      return true;
    }
  }
  return false;
}

bool ParseWord(std::string_view word, Options& options) {
  if (RemovePrefix(word, "mode=")) return ParseMode(word, options.mode);
  if (RemovePrefix(word, "ops=")) return ParseNumber(word, options.ops) && options.ops != 0;
  if (RemovePrefix(word, "qd="))
    return ParseNumber(word, options.queue_depth) && options.queue_depth != 0;
  if (RemovePrefix(word, "size=")) return ParseNumber(word, options.size) && options.size <= 1472;
  if (RemovePrefix(word, "seed=")) return ParseNumber(word, options.seed);
  if (RemovePrefix(word, "stores="))
    return ParseNumber(word, options.stores) && (options.stores == 8 || options.stores == 64);
  if (RemovePrefix(word, "descriptors="))
    return ParseNumber(word, options.descriptors) && options.descriptors != 0;
  if (RemovePrefix(word, "ip=")) return ParseIpv4(word, options.ip);
  if (RemovePrefix(word, "peer=")) {
    options.has_peer = word != "none";
    return !options.has_peer || ParseIpv4(word, options.peer);
  }
  if (RemovePrefix(word, "vsock=")) {
    options.has_vsock_peer = word != "none";
    return !options.has_vsock_peer ||
           (ParseNumber(word, options.vsock_port) && options.vsock_port <= 0xffffffff);
  }
  if (RemovePrefix(word, "require=")) {
    options.require = word;
    return true;
  }
  if (RemovePrefix(word, "only=")) {
    options.only = word;
    return true;
  }
  return false;
}

}  // namespace

bool Options::Requires(std::string_view name) const {
  return IsListed(require, name);
}
bool Options::Wants(std::string_view name) const {
  return only.empty() || IsListed(only, name);
}

void ParseCommandLine(std::string_view text, Options& options) {
  while (!text.empty()) {
    const std::string_view whole = Cut(text, ' ');
    std::string_view word = whole;
    bool understood = true;
    if (RemovePrefix(word, "probe.")) {
      understood = ParseWord(word, options);
    } else if (RemovePrefix(word, "virtio_mmio.device=")) {
      understood = ParseMmioDevice(word, options);
    }
    if (!understood && options.unknown.empty()) options.unknown = whole;
  }
}

}  // namespace postern::probe
