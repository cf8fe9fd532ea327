#include "vfio/sysfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include <fmt/format.h>

#include "src/base/fd.h"

namespace postern::vfio {
namespace {

constexpr std::size_t kMaxEntries = 65536;

bool IsAlphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Exit status of modprobe, or an errno (negative) if it could not be run.
int RunModprobe(const char* path, const std::string& module) {
  std::string name = module;
  std::string program = "modprobe";
  std::array<char*, 3> arguments{program.data(), name.data(), nullptr};
  std::string search = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  std::array<char*, 2> environment{search.data(), nullptr};
  pid_t child = 0;
  const int error =
      posix_spawn(&child, path, nullptr, nullptr, arguments.data(), environment.data());
  if (error != 0) return -error;
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -errno;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

class Host final : public SysfsWriter {
 public:
  Result<void> Write(const std::string& path, std::string_view text) override {
    const Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd.valid()) return SysError("open");
    const ssize_t written = write(fd.get(), text.data(), text.size());
    if (written < 0) return SysError("write");
    if (static_cast<std::size_t>(written) != text.size()) return SysError("write", EIO);
    return {};
  }
  Outcome<void> LoadModule(const std::string& module) override {
    int status = -ENOENT;
    for (const char* path : {"/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe"}) {
      status = RunModprobe(path, module);
      if (status != -ENOENT) break;
    }
    if (status == 0) return {};
    if (status < 0) {
      return HostFailure(
          fmt::format("cannot run modprobe for module '{}': {}", module, strerrordesc_np(-status)),
          "install kmod, or load the module yourself");
    }
    return HostFailure(fmt::format("modprobe {} failed with exit code {}", module, status),
                       geteuid() == 0
                           ? "its message above names the cause; the kernel's log may say more"
                           : "run as root");
  }
};

}  // namespace

std::optional<std::string> ReadText(const std::string& path, std::size_t limit) {
  // O_NONBLOCK: a pipe in place of the file must not hold us.
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return std::nullopt;
  std::string text;
  std::array<char, 16384> part{};
  while (text.size() < limit) {
    const ssize_t n = read(fd.get(), part.data(), std::min(part.size(), limit - text.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::nullopt;
    if (n == 0) break;
    text.append(part.data(), static_cast<std::size_t>(n));
  }
  return text;
}

std::optional<std::string> ReadLine(const std::string& path) {
  std::optional<std::string> text = ReadText(path, 4096);
  if (!text) return std::nullopt;
  text->resize(std::min(text->find_first_of(std::string_view("\n\0", 2)), text->size()));
  return text;
}

std::optional<std::uint64_t> ParseNumber(std::string_view text, int base) {
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> ReadNumber(const std::string& path, int base) {
  const std::optional<std::string> line = ReadLine(path);
  if (!line) return std::nullopt;
  return ParseNumber(*line, base);
}

std::string LinkName(const std::string& path) {
  std::array<char, PATH_MAX> target{};
  const ssize_t size = readlink(path.c_str(), target.data(), target.size());
  if (size <= 0) return {};
  const std::string_view text(target.data(), static_cast<std::size_t>(size));
  const std::string_view name = text.substr(text.rfind('/') + 1);
  if (name == "." || name == "..") return {};
  return std::string(name);
}

std::string RealPath(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return {};
  std::string text(resolved);
  std::free(resolved);
  return text;
}

std::vector<std::string> ListFolder(const std::string& path) {
  std::vector<std::string> names;
  DIR* folder = opendir(path.c_str());
  if (folder == nullptr) return names;
  // readdir is safe here: the stream is this function's own.
  while (const dirent* entry = readdir(folder)) {  // NOLINT(concurrency-mt-unsafe)
    if (entry->d_name[0] == '.') continue;
    if (names.size() == kMaxEntries) break;
    names.emplace_back(entry->d_name);
  }
  closedir(folder);
  std::sort(names.begin(), names.end());
  return names;
}

bool Exists(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0;
}

bool IsDriverName(std::string_view name) {
  if (name.empty() || name.size() > 64 || !IsAlphanumeric(name.front())) return false;
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return IsAlphanumeric(c) || c == '-' || c == '_' || c == '.'; });
}

SysfsWriter& HostSysfs() {
  static Host host;
  return host;
}

}  // namespace postern::vfio
