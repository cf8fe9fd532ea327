// A whole virtio-blk device over a file in memory, driven by a driver that breaks rules: whatever
// it sends, the device answers or asks for a reset, touches only its file, and serves a correct
// request afterwards.

#include "devices/virtio/blk/blk.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/base/log.h"
#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"

namespace {

using postern::testing::DeviceRig;
using postern::testing::HostileDriver;
using namespace postern::virtio;  // NOLINT(google-build-using-namespace)

constexpr std::uint64_t kDiskBytes = 64 << 10;

BlkHeader Header(std::uint32_t type, std::uint64_t sector) {
  return {postern::le32(type), postern::le32(0), postern::le64(sector)};
}

// One device for all inputs: what an input leaves behind must not harm the next.
struct World {
  World() {
    postern::log::SetLevel(postern::LogLevel::kOff);
    file = postern::Fd(memfd_create("blk_fuzz", MFD_CLOEXEC));
    CHECK(file.valid() && ftruncate(file.get(), kDiskBytes) == 0);
    loop = postern::EventLoop::Create().value();
    postern::EventLoop* loops[] = {loop.get()};
    auto created = Blk::Create({.path = fmt::format("/proc/self/fd/{}", file.get()),
                                .engine = BlkOptions::Engine::kSync,
                                .serial = "fuzz"},
                               loops);
    CHECK(created.has_value());
    blk = *std::move(created);
    rig = std::make_unique<DeviceRig>(
        *blk, DeviceRig::Options{.event_idx = true, .queue_size = 16, .arena_size = 64 << 10});
  }
  postern::Fd file;
  std::unique_ptr<postern::EventLoop> loop;
  std::unique_ptr<Blk> blk;
  std::unique_ptr<DeviceRig> rig;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World world;
  DeviceRig& rig = *world.rig;
  rig.Activate();
  HostileDriver hostile(rig.driver(0), std::span(data, size));
  for (const std::uint32_t type : {kBlkTypeIn, kBlkTypeOut, kBlkTypeFlush, kBlkTypeGetId,
                                   kBlkTypeDiscard, kBlkTypeWriteZeroes, 0x55U}) {
    const BlkHeader header = Header(type, type % 3 == 0 ? 0 : kDiskBytes / 512 - 1);
    hostile.AddPrefix(std::as_bytes(std::span(&header, 1)));
  }
  while (hostile.input_left()) {
    hostile.Step();
    const std::uint64_t broken = rig.interrupt().needs_reset_count();
    rig.Kick(0);
    if (rig.interrupt().needs_reset_count() > broken) {
      rig.Reset();
      rig.Activate();
    }
  }
  rig.Reset();
  CHECK(lseek(world.file.get(), 0, SEEK_END) == static_cast<off_t>(kDiskBytes));
  rig.Activate();
  const std::uint16_t head = rig.driver(0)
                                 .Build()
                                 .ReadableObject(Header(kBlkTypeIn, 0))
                                 .Writable(512)
                                 .Writable(1)
                                 .Publish();
  rig.Kick(0);
  const auto used = rig.driver(0).TakeUsed();
  CHECK(used.has_value() && used->head == head && used->length == 513);
  rig.Reset();
  return 0;
}
