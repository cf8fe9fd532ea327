#include <thread>
#include <vector>

#include "vfio/function.h"
#include "vfio/test_guest.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

void CheckGone(TestGuest& guest) {
  CHECK(guest.function->lost());
  CHECK(guest.Mappings() == 0);
  (void)guest.device->TakeCalls();
  CHECK(guest.Config<std::uint32_t>(0) == 0xffffffff);
  CHECK(guest.Config<std::uint16_t>(pci::kCommand) == 0xffff);
  CHECK(guest.Config<std::uint32_t>(0x40) == 0xffffffff);
  CHECK(guest.Config<std::uint8_t>(0xffc) == 0xff);
  guest.Command(kMemory | kMaster);
  guest.MsixControl(true);
  guest.Config<std::uint16_t>(kExpressAt + 8, 0x8000);
  CHECK(guest.Mappings() == 0);
  CHECK(guest.device->TakeCalls().empty());
}

TEST_CASE("request: the host wants the device back: told once, however often it asks") {
  TestGuest guest(MakeDevice());
  CHECK(guest.device->Fire(kRequestIrq));
  CHECK(guest.requests == 0);
  guest.loop->RunOnce(0);
  CHECK(guest.requests == 1);
  CHECK(guest.device->Fire(kRequestIrq));
  guest.loop->RunOnce(0);
  CHECK(guest.requests == 1);
  CHECK(guest.Counter("vfio_requests") == 2);
  CHECK(!guest.function->lost());
}

TEST_CASE("error: the function is gone for the guest, its interrupts stop, the rest goes on") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); }));
  guest.Command(kMemory | kMaster);
  guest.MsixControl(true);
  guest.UnmaskMsix(1, 0x41);
  CHECK(guest.device->Fire(kErrorIrq));
  CHECK(guest.device->Fire(kErrorIrq));
  for (int i = 0; i < 3; ++i) guest.loop->RunOnce(0);
  CHECK(guest.Counter("vfio_error_events") == 1);
  CHECK(guest.Counter("vfio_losses") == 1);
  CHECK(guest.device->enabled() == kIrqCount);
  CHECK(!guest.device->Fire(kMsixIrq, 1));
  CheckGone(guest);
  {
    // The machine's reset takes it back.
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(!guest.function->lost());
  CHECK(guest.Config<std::uint32_t>(0) == 0x10d38086);
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 3);
  guest.UnmaskMsix(1, 0x42);
  guest.MsixControl(true);
  CHECK(guest.device->Fire(kMsixIrq, 1));
  CHECK(guest.Delivered() == std::vector<std::uint32_t>{0x42});
  // And may be lost again.
  CHECK(guest.device->Fire(kErrorIrq));
  for (int i = 0; i < 3; ++i) guest.loop->RunOnce(0);
  CheckGone(guest);
}

TEST_CASE("error: a device that cannot be reset stays lost") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
    d.AddMsix(4);
    d.device.can_reset = false;
  }));
  CHECK(guest.device->Fire(kErrorIrq));
  for (int i = 0; i < 3; ++i) guest.loop->RunOnce(0);
  {
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
    const VfioFunctionState state = guest.function->Save();
    CHECK(guest.function->Restore(state).error().code == Errc::kBadState);
  }
  CheckGone(guest);
}

TEST_CASE("vanished: whichever call finds out, the function is gone at once and for good") {
  using Touch = std::function<void(TestGuest&)>;
  const struct {
    const char* name;
    Touch touch;
  } rows[] = {
      {"config read", [](TestGuest& g) { CHECK(g.Config<std::uint16_t>(0x88) == 0xffff); }},
      {"config write", [](TestGuest& g) { g.Config<std::uint32_t>(0xf8, 1); }},
      {"COMMAND", [](TestGuest& g) { g.Command(kMemory); }},
      {"decoding off", [](TestGuest& g) { g.Command(0); }},
      {"BAR read", [](TestGuest& g) { CHECK(g.Read<std::uint32_t>(2, 0x1080) == 0xffffffff); }},
      {"BAR write", [](TestGuest& g) { g.Write<std::uint32_t>(2, 0x1080, 1); }},
      {"vector opened", [](TestGuest& g) { g.UnmaskMsix(2, 0x42); }},
      {"MSI-X off", [](TestGuest& g) { g.MsixControl(false); }},
      {"FLR", [](TestGuest& g) { g.Config<std::uint16_t>(kExpressAt + 8, 0xa810); }},
      {"D3", [](TestGuest& g) { g.Config<std::uint16_t>(kPowerAt + 4, 3); }},
      {"reset",
       [](TestGuest& g) {
         const MutexLock lock(g.function->lock());
         g.function->Reset();
       }},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); }));
    guest.Command(kMemory | kMaster);
    guest.MsixControl(true);
    guest.UnmaskMsix(1, 0x41);
    guest.device->fail = [](const Call&) { return ENODEV; };
    row.touch(guest);
    CHECK(guest.function->lost());
    CHECK(guest.Config<std::uint32_t>(0) == 0xffffffff);
    guest.loop->RunOnce(0);
    CheckGone(guest);
    {
      const MutexLock lock(guest.function->lock());
      guest.function->Reset();
    }
    CheckGone(guest);
    CHECK(guest.Counter("vfio_losses") == 1);
    CHECK(guest.bridge.Config<std::uint32_t>({}, 0) == 0x00081b36);  // the bridge is well
  }
}

TEST_CASE("hostile: regression: a device whose config space turns all ones after set-up") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); }));
  guest.device->config.assign(0x1000, 0xff);
  CHECK(guest.Config<std::uint32_t>(0) == 0x10d38086);
  CHECK(guest.Config<std::uint16_t>(kExpressAt + 8) == 0x7fff);
  guest.Command(kMemory);
  guest.MsixControl(true);
  guest.UnmaskMsix(1, 0x41);
  CHECK(guest.device->Fire(kMsixIrq, 1));
  CHECK(guest.Delivered() == std::vector<std::uint32_t>{0x41});
  // It says D3 from now on; so nothing is mapped.
  guest.device->on_call = [&](const Call& call) {
    if (call.op == Op::kRead) guest.device->Put<std::uint8_t>(kPowerAt + 4, 0xff);
  };
  guest.Config<std::uint16_t>(kPowerAt + 4, 0);
  CHECK(guest.Mappings() == 0);
}

TEST_CASE("error: signalled while the function is being made, with the loop running") {
  auto loop = EventLoop::Create().value();
  std::thread thread([&] { loop->Run(); });
  bus::FakePlatform platform;
  auto fake = MakeDevice();
  FakeHostDevice* device = fake.get();
  device->on_call = [device](const Call& call) {
    if (call.op == Op::kSetVectors && call.index == kRequestIrq) (void)device->Fire(kErrorIrq);
  };
  auto function = VfioFunction::Create(std::move(fake), platform.Get(), *loop, {}, [] {}).value();
  while (!function->lost()) std::this_thread::yield();
  function.reset();
  loop->Stop();
  thread.join();
}

TEST_CASE("vanished: in the middle of set-up, where that can be survived") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
                    d.AddIntx();
                    d.fail = [](const Call& call) { return call.op == Op::kMaskIntx ? ENODEV : 0; };
                  }),
                  {.intx_gsi = 5});
  guest.loop->RunOnce(0);
  CHECK(guest.function->lost());
  CHECK(guest.Config<std::uint32_t>(0) == 0xffffffff);
}

TEST_CASE("threads: errors and requests arrive on the loop while vCPUs use the device") {
  auto fake = MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); });
  TestGuest guest(std::move(fake));
  guest.Command(kMemory);
  std::thread loop([&] { guest.loop->Run(); });
  std::thread device([&] {
    for (int i = 0; i < 200; ++i) {
      (void)guest.device->Fire(kMsixIrq, 1);
      if (i % 20 == 0) (void)guest.device->Fire(kRequestIrq);
    }
    (void)guest.device->Fire(kErrorIrq);
  });
  guest.MsixControl(true);
  for (std::uint32_t i = 0; i < 200; ++i) {
    guest.UnmaskMsix(1, 0x40 + i % 8);
    guest.MaskMsix(1, true);
    guest.Command(i % 2 == 0 ? 0 : kMemory);
  }
  device.join();
  while (!guest.function->lost()) std::this_thread::yield();
  guest.Unplug();  // with the loop running
  guest.loop->Stop();
  loop.join();
  CHECK(guest.requests == 1);
}

}  // namespace
}  // namespace postern::vfio
