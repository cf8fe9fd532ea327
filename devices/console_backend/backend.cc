#include "devices/console_backend/backend.h"

#include "devices/console_backend/backends.h"

namespace postern::console {
namespace {

class NullBackend final : public ConsoleBackend {
 public:
  void Attach(ConsoleClient& /*client*/) override {}
  void Detach() override {}
  std::size_t Write(std::span<const iovec> from) override {
    std::size_t total = 0;
    for (const iovec& part : from) total += part.iov_len;
    dropped_.Add(total);
    return total;
  }
  std::size_t Read(std::span<std::byte> /*to*/) override { return 0; }
  [[nodiscard]] bool has_input() const override { return false; }
  [[nodiscard]] std::string description() const override { return "nowhere"; }
  void ReportCounters(CounterSink& sink) const override {
    sink.Add("output_dropped", dropped_.Get());
  }

 private:
  Counter dropped_;
};

}  // namespace

std::unique_ptr<ConsoleBackend> CreateNull() {
  return std::make_unique<NullBackend>();
}

Outcome<std::unique_ptr<ConsoleBackend>> CreateBackend(const BackendOptions& options,
                                                       EventLoop& loop) {
  Outcome<std::unique_ptr<ConsoleBackend>> backend = nullptr;
  // Descriptors are watched by the loop's thread alone.
  loop.RunSync([&] {
    switch (options.kind) {
      case BackendOptions::Kind::kNull:
        backend = CreateNull();
        break;
      case BackendOptions::Kind::kStdio:
        backend = CreateStdio(options.quit, loop);
        break;
      case BackendOptions::Kind::kPty:
        backend = CreatePty(options.announce, loop);
        break;
      case BackendOptions::Kind::kFile:
        backend = CreateFile(options.path, options.append, loop);
        break;
      case BackendOptions::Kind::kSocket:
        backend = CreateSocket(options.path, loop);
        break;
    }
  });
  return backend;
}

}  // namespace postern::console
