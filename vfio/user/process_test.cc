// The vfio-user client and a device in a real process (tests/support:vfio_user_device).

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>

#include "tests/support/memory.h"
#include "vfio/user/client.h"
#include "vfio/user/client_rig.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

class DeviceProcess {
 public:
  explicit DeviceProcess(std::vector<std::string> options = {}) {
    REQUIRE(mkdtemp(directory_.data()) != nullptr);
    path_ = directory_ + "/socket";
    std::array<int, 2> ends{};
    REQUIRE(pipe2(ends.data(), O_CLOEXEC) == 0);
    const Fd from(ends[0]);
    Fd to(ends[1]);
    posix_spawn_file_actions_t actions;
    REQUIRE(posix_spawn_file_actions_init(&actions) == 0);
    REQUIRE(posix_spawn_file_actions_adddup2(&actions, to.get(), 1) == 0);
    std::string program = "tests/support/vfio_user_device";
    std::vector<char*> arguments{program.data()};
    for (std::string& option : options) arguments.push_back(option.data());
    arguments.push_back(path_.data());
    arguments.push_back(nullptr);
    REQUIRE(posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments.data(), environ) == 0);
    REQUIRE(posix_spawn_file_actions_destroy(&actions) == 0);
    to.Close();
    // It says that it listens.
    std::array<char, 128> line{};
    REQUIRE(read(from.get(), line.data(), line.size()) > 0);
  }
  ~DeviceProcess() {
    if (pid_ > 0) (void)End(SIGTERM);
    (void)unlink(path_.c_str());
    (void)rmdir(directory_.c_str());
  }
  DeviceProcess(const DeviceProcess&) = delete;
  DeviceProcess& operator=(const DeviceProcess&) = delete;

  // Its wait status.
  int End(int signal) {
    int status = 0;
    REQUIRE(kill(pid_, signal) == 0);
    REQUIRE(waitpid(pid_, &status, 0) == pid_);
    pid_ = -1;
    return status;
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string directory_ = "/tmp/postern-vfio-user-XXXXXX";
  std::string path_;
  pid_t pid_ = -1;
};

TEST_CASE("vfio-user process: a device in another process moves guest memory and interrupts") {
  DeviceProcess process({"--vectors", "3"});
  ClientRig rig(true);
  {
    auto device = UserDevice::Connect(process.path(), rig.memory, *rig.loop);
    REQUIRE(device);
    CHECK((*device)->info().irqs[kMsixIrq].count == 3);
    rig.MapAll(**device);
    const EventFd event = EventFd::Create().value();
    REQUIRE((*device)->SetVectors(kMsixIrq, 1, std::array{event.fd()}));
    const auto data = testing::Pattern(8192, 4);
    testing::Store(rig.memory.Snapshot(), 0x3000, data);
    StartCopy(**device, 0x3000, 0x9000, 8192, 1);
    REQUIRE(WaitFor(event));
    CHECK(testing::Load(rig.memory.Snapshot(), 0x9000, data.size()) == data);
  }
  const int status = process.End(SIGTERM);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("vfio-user process: a device whose process is killed has vanished; guest memory stays") {
  DeviceProcess process;
  ClientRig rig(true);
  auto device = UserDevice::Connect(process.path(), rig.memory, *rig.loop);
  REQUIRE(device);
  rig.MapAll(**device);
  auto mapping = (*device)->MapRegion(2, {0x1000, 0x1000});
  REQUIRE(mapping);
  const EventFd request = EventFd::Create().value();
  REQUIRE((*device)->SetVectors(kRequestIrq, 0, std::array{request.fd()}));
  CHECK(WIFSIGNALED(process.End(SIGKILL)));
  REQUIRE(WaitFor(request));
  CHECK((*device)->vanished());
  std::array<std::byte, 4> word{};
  CHECK((*device)->ReadRegion(0, 0, word).error().sys_errno == ENODEV);
  // What was mapped stays mapped: the guest may be looking at it.
  (*mapping)->pages().address[0] = std::byte{1};
  CHECK(testing::Load(rig.memory.Snapshot(), 0, 16).size() == 16);
}

}  // namespace
}  // namespace postern::vfio
