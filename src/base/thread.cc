#include "src/base/thread.h"

#include <memory>
#include <string>

#include "src/base/check.h"

namespace postern {
namespace {

struct StartArguments {
  std::string name;
  std::function<void()> function;
};

void* RunThread(void* argument) {
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): ownership crosses pthread_create as a pointer
  const std::unique_ptr<StartArguments> start(static_cast<StartArguments*>(argument));
  // Set here rather than by the starter, so that the thread never runs under another's name. Cannot
  // fail for 15 bytes.
  pthread_setname_np(pthread_self(), start->name.c_str());
  start->function();
  return nullptr;
}

}  // namespace

Result<Thread> Thread::Start(std::string_view name, std::function<void()> function) {
  auto start = std::make_unique<StartArguments>(
      StartArguments{std::string(name.substr(0, 15)), std::move(function)});
  pthread_t handle{};
  const int error = pthread_create(&handle, nullptr, RunThread, start.get());
  if (error != 0) return SysError("pthread_create", error);
  (void)start.release();  // RunThread owns it now
  return Thread(handle);
}

Thread& Thread::operator=(Thread&& other) noexcept {
  if (this != &other) {
    Join();
    handle_ = other.handle_;
    joinable_ = std::exchange(other.joinable_, false);
  }
  return *this;
}

void Thread::Join() {
  if (!std::exchange(joinable_, false)) return;
  // Fails only for a thread that joins itself, or one that was joined before.
  CHECK(pthread_join(handle_, nullptr) == 0);
}

}  // namespace postern
