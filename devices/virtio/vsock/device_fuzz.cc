// The protocol state machine of vsock: the input is a sequence of packets a guest sends and of
// things host programs do, in between a hostile driver on both rings. The limits hold throughout.
#include "devices/virtio/vsock/device.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"

namespace {

using namespace postern;          // NOLINT(google-build-using-namespace)
using namespace postern::virtio;  // NOLINT(google-build-using-namespace)

struct World {
  std::string dir = "/tmp/postern_vsock_fuzz_XXXXXX";
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  UnixListener service;
  World() {
    if (mkdtemp(dir.data()) == nullptr) std::abort();
    service = UnixListener::Create(dir + "/v_1", "service").value();
  }
  ~World() {
    service.Close();
    (void)rmdir(dir.c_str());
  }
};

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  [[nodiscard]] bool left() const { return size_ > 0; }
  std::uint32_t Byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  std::uint32_t Word() {
    const std::uint32_t low = Byte();
    return low | Byte() << 8 | Byte() << 16 | Byte() << 24;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World world;
  Input input(data, size);
  auto vsock =
      Vsock::Create({.guest_cid = 3, .socket = world.dir + "/v", .max_connections = 8}, *world.loop)
          .value();
  {
    testing::DeviceRig rig(*vsock, {.event_idx = size % 2 == 0});
    rig.Activate();
    testing::HostileDriver rx(rig.driver(0), std::span(data, size));
    testing::HostileDriver tx(rig.driver(1), std::span(data, size));
    std::vector<Fd> programs;
    for (int step = 0; step < 100 && input.left(); ++step) {
      switch (input.Byte() % 10) {
        case 0:
          if (Result<Fd> fd = ConnectUnix(vsock->socket()); fd) {
            const std::string line = "CONNECT " + std::to_string(input.Byte() % 3) + "\n";
            if (send(fd->get(), line.data(), line.size() - input.Byte() % 2, MSG_NOSIGNAL) > 0)
              programs.push_back(std::move(*fd));
          }
          break;
        case 1:
          if (Result<Fd> fd = world.service.Accept(); fd) programs.push_back(std::move(*fd));
          break;
        case 2:
          if (!programs.empty())
            programs.erase(programs.begin() +
                           input.Byte() % static_cast<std::uint32_t>(programs.size()));
          break;
        case 3:
          for (const Fd& fd : programs) {
            std::byte bytes[3000];
            if (recv(fd.get(), bytes, sizeof(bytes), MSG_DONTWAIT) >= 0 &&
                send(fd.get(), bytes, 500, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
              continue;
          }
          break;
        case 4:
          for (int i = 0; i < 4; ++i) rig.driver(0).Build().Writable(input.Byte() * 20).Publish();
          break;
        case 5:
          (input.Byte() % 2 == 0 ? rx : tx).Step();
          break;
        default: {
          vsock::Packet packet;
          packet.src_cid = input.Byte() % 16 == 0 ? 4 : 3;
          packet.dst_cid = input.Byte() % 16 == 0 ? 1 : 2;
          packet.src_port = input.Byte() % 3;
          packet.dst_port = input.Byte() % 2 == 0 ? 1 : (1U << 30) + input.Byte() % 4;
          packet.op = static_cast<vsock::Op>(input.Byte() % 9);
          packet.flags = input.Byte() % 4;
          packet.len = input.Byte() % 8 == 0 ? input.Word() : input.Byte() * 100;
          packet.buf_alloc = input.Byte() % 4 == 0 ? input.Word() : 65536;
          packet.fwd_cnt = input.Byte() % 4 == 0 ? input.Word() : 0;
          auto build = rig.driver(1).Build();
          build.ReadableObject(vsock::Encode(packet));
          build.ReadableAt(0, input.Byte() % 8 == 0 ? 65536 : packet.len % 65536);
          build.Publish();
        }
      }
      rig.Kick(0);
      rig.Kick(1);
      if (vsock->connections() > 8) __builtin_trap();
      for (std::uint16_t queue = 0; queue < 2; ++queue) {
        while (rig.driver(queue).TakeUsed()) {
        }
      }
      if (rig.interrupt().needs_reset_count() > 0) break;
    }
    rig.Reset();
  }
  return 0;
}
