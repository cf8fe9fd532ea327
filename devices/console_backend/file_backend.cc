#include <fcntl.h>

#include <utility>

#include <fmt/format.h>

#include "devices/console_backend/backends.h"
#include "devices/console_backend/stream_backend.h"
#include "src/base/log.h"
#include "src/base/text.h"

namespace postern::console {
namespace {

class FileBackend final : public StreamBackend {
 public:
  FileBackend(EventLoop& loop, Fd file, std::string path)
      : StreamBackend(loop), file_(std::move(file)), path_(std::move(path)) {
    SetOutput(file_.get());
  }
  ~FileBackend() override { Stop(); }
  [[nodiscard]] std::string description() const override { return path_; }

 private:
  void OnInputEnd(int /*error*/) override {}
  void OnOutputEnd(int error) override {
    // A full disk may have room later: the bytes at hand are lost, the file stays.
    GUEST_LOG("console", "{}: {}", Escaped(path_), Describe(SysError("write", error).value()));
    SetOutput(file_.get());
  }

  Fd file_;
  std::string path_;
};

}  // namespace

Outcome<std::unique_ptr<ConsoleBackend>> CreateFile(const std::string& path, bool append,
                                                    EventLoop& loop) {
  // O_NONBLOCK for what is no regular file: a FIFO without a reader is refused instead of waited
  // for.
  Fd file(open(
      path.c_str(),
      O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (append ? 0 : O_TRUNC),
      0600));
  if (!file.valid()) {
    return HostFailure(fmt::format("console file '{}'", Escaped(path)), SysError("open").value(),
                       "check the path and its permissions");
  }
  return std::make_unique<FileBackend>(loop, std::move(file), path);
}

}  // namespace postern::console
