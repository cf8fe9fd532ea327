#pragma once

// Signal: an eventfd and what to do when it is signalled, on the thread of the loop that watches
// it. Ownership: of the eventfd; unwatched before it goes. Threads: the loop's.

#include <cstdint>
#include <functional>
#include <utility>

#include "src/base/event_fd.h"
#include "src/base/event_loop.h"

namespace postern::dsa {

class Signal final : public EventHandler {
 public:
  Signal(EventFd event, std::function<void()> function)
      : event_(std::move(event)), function_(std::move(function)) {}
  void OnEvent(int fd, std::uint32_t events) override {
    (void)fd;
    (void)events;
    event_.Consume();
    function_();
  }
  [[nodiscard]] const EventFd& event() const { return event_; }

 private:
  EventFd event_;
  std::function<void()> function_;
};

}  // namespace postern::dsa
