#include "tests/support/vfio_user_server.h"

#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "src/base/check.h"
#include "tests/support/vfio_user_peer.h"

namespace postern::testing {

VfioUserServer::VfioUserServer(VfioUserServerOptions options)
    : VfioUserServer(std::move(options), std::string()) {}

VfioUserServer::VfioUserServer(VfioUserServerOptions options, std::string path)
    : options_(std::move(options)), function_(options_.function), path_(std::move(path)) {
  if (path_.empty()) {
    directory_ = "/tmp/postern-vfio-user-XXXXXX";
    CHECK(mkdtemp(directory_.data()) != nullptr);
    path_ = directory_ + "/socket";
  }
  auto listener = UnixListener::Create(path_, "vfio-user socket");
  CHECK(listener.has_value());
  listener_ = std::move(*listener);
  Result<EventFd> stop = EventFd::Create();
  Result<EventFd> drop = EventFd::Create();
  CHECK(stop.has_value() && drop.has_value());
  stop_ = std::move(*stop);
  drop_ = std::move(*drop);
  Result<Thread> thread = Thread::Start("vfio-user-test", [this] { Run(); });
  CHECK(thread.has_value());
  thread_ = std::move(*thread);
}

VfioUserServer::~VfioUserServer() {
  stop_.Signal();
  thread_.Join();
  listener_.Close();
  if (!directory_.empty()) (void)rmdir(directory_.c_str());
}

void VfioUserServer::Run() {
  while (true) {
    std::array<pollfd, 2> entries{{{stop_.fd(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}}};
    if (poll(entries.data(), entries.size(), -1) < 0) continue;
    if (entries[0].revents != 0) return;
    Result<Fd> peer = listener_.Accept();
    if (!peer) continue;
    Note([](Seen& seen) { ++seen.connections; });
    drop_.Consume();
    {
      VfioUserPeer connection(std::move(*peer), *this);
      connection.Run();
    }
    {
      const MutexLock lock(mutex_);
      for (auto& events : events_) events.clear();
    }
    Note([](Seen& seen) {
      ++seen.closed;
      seen.mappings = 0;
      seen.mappings_by_file = 0;
      seen.assigned = {};
    });
  }
}

void VfioUserServer::Note(const std::function<void(Seen&)>& change) {
  {
    const MutexLock lock(mutex_);
    change(seen_);
  }
  changed_.notify_all();
}

VfioUserServer::Seen VfioUserServer::seen() const {
  const MutexLock lock(mutex_);
  return seen_;
}

bool VfioUserServer::WaitFor(const std::function<bool(const Seen&)>& done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  const MutexLock lock(mutex_);
  while (!done(seen_)) {
    if (changed_.wait_until(mutex_, deadline) == std::cv_status::timeout) return done(seen_);
  }
  return true;
}

void VfioUserServer::Raise(std::uint32_t irq, std::uint32_t vector) {
  const MutexLock lock(mutex_);
  if (irq >= events_.size() || vector >= events_[irq].size()) return;
  if (events_[irq][vector]) events_[irq][vector]->Signal();
}

void VfioUserServer::Drop() {
  drop_.Signal();
}

}  // namespace postern::testing
