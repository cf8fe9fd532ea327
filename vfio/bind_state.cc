#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>

#include "src/base/text.h"
#include "vfio/bind_internal.h"

namespace postern::vfio::internal {
namespace {

const char* Cure(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
      return "run as root";
    case EROFS:
      return "sysfs and /run have to be writable: not in an unprivileged container";
    default:
      return "the kernel's log (dmesg) may say why";
  }
}

tl::unexpected<Failure> StateFailure(const std::string& path, int error) {
  return HostFailure(
      fmt::format("cannot keep what was there before in {}: {}", path, strerrordesc_np(error)),
      Cure(error));
}

}  // namespace

Outcome<StateFolder> StateFolder::Open(const HostRoots& roots) {
  std::string path = roots.run + "/bind";
  for (const auto& [folder, mode] : {std::pair(&roots.run, mode_t{0755}), {&path, mode_t{0700}}}) {
    if (mkdir(folder->c_str(), mode) != 0 && errno != EEXIST) return StateFailure(*folder, errno);
  }
  Fd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return StateFailure(path, errno);
  while (flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return StateFailure(path, errno);
  }
  return StateFolder(std::move(fd), std::move(path));
}

Outcome<void> StateFolder::Store(const std::string& name, const BindRecord& record) const {
  const std::string fresh = name + ".new";
  const Fd file(openat(fd_.get(), fresh.c_str(),
                       O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.valid()) return StateFailure(path_, errno);
  const std::string text = FormatBindRecord(record);
  const ssize_t written = write(file.get(), text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size()))
    return StateFailure(path_, written < 0 ? errno : ENOSPC);
  if (renameat(fd_.get(), fresh.c_str(), fd_.get(), name.c_str()) != 0)
    return StateFailure(path_, errno);
  return {};
}

Outcome<void> StateFolder::Remove(const std::string& name) const {
  if (unlinkat(fd_.get(), name.c_str(), 0) != 0 && errno != ENOENT)
    return StateFailure(path_, errno);
  return {};
}

Outcome<std::optional<BindRecord>> LoadRecord(const HostRoots& roots, const std::string& name) {
  const std::string path = fmt::format("{}/bind/{}", roots.run, name);
  // The folder is root's alone: for another user a device that is bound must not seem to be free.
  if (access(path.c_str(), R_OK) != 0) {
    if (errno == ENOENT) return std::optional<BindRecord>();
    return HostFailure(
        fmt::format("cannot read what was there before in {}: {}", path, strerrordesc_np(errno)),
        Cure(errno));
  }
  const std::optional<std::string> text = ReadText(path);
  Result<BindRecord> record = ParseBindRecord(text.value_or(std::string()));
  if (!record) {
    return HostFailure(fmt::format("the state file {} is malformed", path),
                       "remove it; what the device had before is not known");
  }
  return std::optional<BindRecord>(std::move(*record));
}

Outcome<void> Hands::Write(const std::string& path, const std::string& text) {
  const bool clears = text == "\n";
  steps_.push_back(clears ? fmt::format("echo > {}", Escaped(path))
                          : fmt::format("echo {} > {}", Escaped(text), Escaped(path)));
  if (dry_run_) return {};
  Result<void> result = writer_.Write(path, text);
  if (result) {
    wrote_ = true;
    return {};
  }
  const std::string what = clears ? "clear" : fmt::format("write '{}' to", Escaped(text));
  return HostFailure(fmt::format("cannot {} {}", what, Escaped(path)), result.error(),
                     Cure(result.error().sys_errno));
}

Outcome<void> Hands::Load(const std::string& module) {
  steps_.push_back(fmt::format("modprobe {}", module));
  if (dry_run_) return {};
  return writer_.LoadModule(module);
}

}  // namespace postern::vfio::internal
