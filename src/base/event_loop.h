#pragma once

// EventLoop: one thread's epoll loop: file descriptors with handlers, posted functions, timers.
//
//   class Blk : EventHandler { void OnEvent(std::uint32_t events) override { ... } };
//   loop.Watch(kick.fd(), EPOLLIN, *this);      // on the loop's thread, or before it runs
//   loop.Post([&] { ... });                     // from any thread
//   loop.RunSync([&] { ... });                  // from any other thread: returns when it has run
//
// Ownership: handlers and descriptors belong to the caller and outlive their Watch. Unwatch may be
// called from a handler, also for another descriptor of the same batch: its event is then dropped.
// Threads: Run on one thread, which becomes the owner; Watch, Modify, Unwatch and timers only there
// or before Run; Post, RunSync and Stop anywhere. RunSync on the owner thread, or while no thread
// runs the loop, runs the function at once.

#include <cstdint>
#include <functional>
#include <memory>

#include "src/base/result.h"

namespace postern {

class EventHandler {
 public:
  virtual ~EventHandler() = default;
  // `events`: EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR. `fd` is the watched descriptor.
  virtual void OnEvent(int fd, std::uint32_t events) = 0;
};

class EventLoop {
 public:
  [[nodiscard]] static Result<std::unique_ptr<EventLoop>> Create();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  [[nodiscard]] Result<void> Watch(int fd, std::uint32_t events, EventHandler& handler);
  [[nodiscard]] Result<void> Modify(int fd, std::uint32_t events);
  void Unwatch(int fd);

  using TimerId = std::uint64_t;
  // Runs `function` once, `delay_ms` from now (CLOCK_MONOTONIC). Cancelled timers never run.
  TimerId After(std::uint64_t delay_ms, std::function<void()> function);
  void Cancel(TimerId id);

  void Post(std::function<void()> function);
  void RunSync(const std::function<void()>& function);

  // Until Stop. Functions posted before Stop are run.
  void Run();
  void Stop();
  // One round that waits at most `timeout_ms` (-1: no limit); for tests and for embedding in
  // another loop.
  void RunOnce(int timeout_ms);
  [[nodiscard]] bool OnLoopThread() const;

 private:
  EventLoop();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace postern
