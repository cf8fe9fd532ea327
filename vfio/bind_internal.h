#pragma once

// What bind.cc is made of: the folder of state files, and hands that write or only say what they
// would write. Threads: one.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"
#include "src/base/fd.h"
#include "vfio/bind.h"

namespace postern::vfio::internal {

// A name that stays in its folder and on its line.
[[nodiscard]] bool IsFileName(std::string_view text);

// RUN/bind, locked while this lives.
class StateFolder {
 public:
  // Makes the folder if need be and waits for the lock.
  [[nodiscard]] static Outcome<StateFolder> Open(const HostRoots& roots);
  // Replaces the file of `name` at once.
  [[nodiscard]] Outcome<void> Store(const std::string& name, const BindRecord& record) const;
  [[nodiscard]] Outcome<void> Remove(const std::string& name) const;

 private:
  StateFolder(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  Fd fd_;
  std::string path_;
};
// nullopt: there is none.
[[nodiscard]] Outcome<std::optional<BindRecord>> LoadRecord(const HostRoots& roots,
                                                            const std::string& name);

class Hands {
 public:
  Hands(SysfsWriter& writer, bool dry_run, std::vector<std::string>& steps)
      : writer_(writer), dry_run_(dry_run), steps_(steps) {}
  [[nodiscard]] Outcome<void> Write(const std::string& path, const std::string& text);
  [[nodiscard]] Outcome<void> Load(const std::string& module);
  [[nodiscard]] bool dry_run() const { return dry_run_; }
  [[nodiscard]] bool wrote() const { return wrote_; }

 private:
  SysfsWriter& writer_;
  bool dry_run_;
  bool wrote_ = false;
  std::vector<std::string>& steps_;
};

}  // namespace postern::vfio::internal
