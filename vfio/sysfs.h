#pragma once

// Reading small text files of sysfs and procfs, and the one door through which they are written.
//
//   const std::string driver = LinkName("/sys/bus/pci/devices/0000:3b:00.0/driver");  // "nvme"
//   const std::optional<std::string> node = ReadLine(device + "/numa_node");
//
// What is read is untrusted text: sizes are capped, nothing is interpreted here. What is not there
// is nullopt or empty, never an error: sysfs differs from kernel to kernel.
// Threads: any; no state. Ownership: values.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"
#include "src/base/result.h"

namespace postern::vfio {

// Where the host's folders are; a test has its own.
struct HostRoots {
  std::string sysfs = "/sys";
  std::string proc = "/proc";
  std::string dev = "/dev";
  std::string run = "/run/postern";
  std::string modules;  // empty: /lib/modules/RELEASE of the running kernel
};

// The first `limit` bytes of a file (64 KiB unless said), or nullopt if it cannot be read.
[[nodiscard]] std::optional<std::string> ReadText(const std::string& path,
                                                  std::size_t limit = std::size_t{64} << 10);
// Its first line without the newline and without NUL bytes after it.
[[nodiscard]] std::optional<std::string> ReadLine(const std::string& path);
// A whole first line that is a number: "0x..." hexadecimal (also without the prefix for base 16).
[[nodiscard]] std::optional<std::uint64_t> ReadNumber(const std::string& path, int base = 10);
[[nodiscard]] std::optional<std::uint64_t> ParseNumber(std::string_view text, int base = 10);

// Last component of what a symbolic link points to; empty if there is no such link.
[[nodiscard]] std::string LinkName(const std::string& path);
// The path with all links resolved; empty if it leads nowhere.
[[nodiscard]] std::string RealPath(const std::string& path);
// Names in a folder without those that start with a dot, sorted; at most 65536.
[[nodiscard]] std::vector<std::string> ListFolder(const std::string& path);
[[nodiscard]] bool Exists(const std::string& path);

// What may name a driver or a module: letters, digits, '-', '_' and '.', starting with a letter or
// a digit, at most 64 bytes. Everything that becomes a part of a path or an argument is one.
[[nodiscard]] bool IsDriverName(std::string_view name);

// What bind and unbind do to the host, as an object: a test answers like a kernel. Threads: one.
class SysfsWriter {
 public:
  virtual ~SysfsWriter() = default;
  // `text` into an existing file, by one write(2).
  [[nodiscard]] virtual Result<void> Write(const std::string& path, std::string_view text) = 0;
  // Loads a kernel module and what it needs. `module` is a driver name (see IsDriverName).
  [[nodiscard]] virtual Outcome<void> LoadModule(const std::string& module) = 0;
};

// The real one: write(2), and modprobe for modules (resolving dependencies is its job alone).
[[nodiscard]] SysfsWriter& HostSysfs();

}  // namespace postern::vfio
