#pragma once

// Thread: a named thread that is joined when its owner goes away. Move-only. Signals keep the mask
// of the thread that starts it.
//
//   Thread worker = TRY(Thread::Start("vcpu0", [&] { Run(); }));
//
// `function` must not throw. Whoever owns the Thread makes `function` return before it destroys it
// (EventLoop::Stop, an eventfd); the destructor waits. Threads: Start and Join by one owner.

#include <pthread.h>

#include <functional>
#include <string_view>
#include <utility>

#include "src/base/result.h"

namespace postern {

class Thread {
 public:
  Thread() = default;
  // `name` as ps and a debugger show it: the first 15 bytes of it.
  [[nodiscard]] static Result<Thread> Start(std::string_view name, std::function<void()> function);
  Thread(Thread&& other) noexcept
      : handle_(other.handle_), joinable_(std::exchange(other.joinable_, false)) {}
  Thread& operator=(Thread&& other) noexcept;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() { Join(); }

  [[nodiscard]] bool joinable() const { return joinable_; }
  // For pthread_kill and scheduling; valid while joinable.
  [[nodiscard]] pthread_t handle() const { return handle_; }
  void Join();

 private:
  explicit Thread(pthread_t handle) : handle_(handle), joinable_(true) {}
  pthread_t handle_{};
  bool joinable_ = false;
};

}  // namespace postern
