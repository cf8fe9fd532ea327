#include <array>
#include <vector>

#include "vfio/interrupts.h"
#include "vfio/test_guest.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using Data = std::vector<std::uint32_t>;
constexpr std::uint32_t kGsi = 10;

struct Set {
  std::uint64_t start;
  std::size_t count;
  std::uint64_t given;
  friend bool operator==(const Set&, const Set&) = default;
};
std::vector<Set> Sets(FakeHostDevice& device, std::uint32_t irq) {
  std::vector<Set> list;
  for (const Call& call : Only(device.TakeCalls(), Op::kSetVectors)) {
    if (call.index == irq) list.push_back({call.offset, call.size, call.value});
  }
  return list;
}

std::unique_ptr<FakeHostDevice> Msix(std::uint16_t vectors, bool noresize = false) {
  return MakeDevice([=](FakeHostDevice& d) {
    d.AddMsix(vectors);
    d.device.irqs[kMsixIrq].noresize = noresize;
  });
}

TEST_CASE(
    "msix: regression b0223e29, 5ebffa4e: enabled with all masked, the device gets no eventfd") {
  TestGuest guest(Msix(4));
  guest.Command(kMemory);
  guest.MsixControl(true);
  CHECK(guest.device->enabled() == kMsixIrq);
  CHECK(Sets(*guest.device, kMsixIrq) == std::vector<Set>{{0, 1, 0}});
  CHECK(guest.bridge.platform.interrupts.routes() == 0);
  CHECK(!guest.device->Fire(kMsixIrq, 0));
}

TEST_CASE("msix: regression #7079: vectors are handed over one by one, when first unmasked") {
  TestGuest guest(Msix(32));
  guest.Command(kMemory);
  guest.MsixControl(true);
  (void)guest.device->TakeCalls();
  guest.UnmaskMsix(7, 0x47);
  CHECK(Sets(*guest.device, kMsixIrq) == std::vector<Set>{{7, 1, 1}});
  guest.UnmaskMsix(0, 0x40);
  CHECK(Sets(*guest.device, kMsixIrq) == std::vector<Set>{{0, 1, 1}});
  CHECK(guest.bridge.platform.interrupts.routes() == 2);
  CHECK(guest.device->Fire(kMsixIrq, 7));
  CHECK(guest.device->Fire(kMsixIrq, 0));
  CHECK(!guest.device->Fire(kMsixIrq, 1));
  CHECK(guest.Delivered() == Data{0x47, 0x40});
  // Masked and unmasked: the device hears nothing.
  guest.MaskMsix(7, true);
  guest.MaskMsix(7, false);
  CHECK(guest.device->TakeCalls().empty());
  CHECK(guest.Counter("vfio_vectors_opened") == 2);
}

TEST_CASE("msix: vectors unmasked before MSI-X is enabled come in runs") {
  TestGuest guest(Msix(8));
  guest.Command(kMemory);
  for (const std::uint32_t vector : {2U, 3U, 5U}) guest.UnmaskMsix(vector, 0x40 + vector);
  (void)guest.device->TakeCalls();
  guest.MsixControl(true);
  CHECK(Sets(*guest.device, kMsixIrq) == std::vector<Set>{{0, 1, 0}, {2, 2, 2}, {5, 1, 1}});
  CHECK(guest.device->Fire(kMsixIrq, 3));
  CHECK(guest.Delivered() == Data{0x43});
}

TEST_CASE("msix: regression #3827: route and irqfd are in place before the device may signal") {
  TestGuest guest(Msix(4));
  guest.Command(kMemory);
  guest.UnmaskMsix(1, 0x41);
  int seen = 0;
  guest.device->on_call = [&](const Call& call) {
    if (call.op != Op::kSetVectors || call.value == 0) return;
    ++seen;
    const auto state = guest.bridge.platform.interrupts.Msi(0);
    CHECK(state.message == bus::MsiMessage{0xfee00000, 0x41});
    CHECK(!state.masked);
  };
  guest.MsixControl(true);
  CHECK(seen == 1);
}

TEST_CASE("msix: a device whose vector number is fixed gets all of them at once") {
  TestGuest guest(Msix(8, true));
  guest.Command(kMemory);
  guest.UnmaskMsix(2, 0x42);
  (void)guest.device->TakeCalls();
  guest.MsixControl(true);
  CHECK(Sets(*guest.device, kMsixIrq) == std::vector<Set>{{0, 8, 1}});
  guest.UnmaskMsix(7, 0x47);
  CHECK(Sets(*guest.device, kMsixIrq) == std::vector<Set>{{7, 1, 1}});
  CHECK(guest.device->Fire(kMsixIrq, 2));
  CHECK(guest.device->Fire(kMsixIrq, 7));
  CHECK(guest.Delivered() == Data{0x42, 0x47});
  CHECK(guest.bridge.platform.interrupts.routes() == 2);
  CHECK(guest.Counter("vfio_interrupt_errors") == 0);
}

TEST_CASE("msix: regression 35d66b981, 5a792cb93: masked, an edge is pending and delivered once") {
  for (const bool by_function : {false, true}) {
    CAPTURE(by_function);
    TestGuest guest(Msix(4));
    guest.Command(kMemory);
    guest.MsixControl(true);
    guest.UnmaskMsix(1, 0x41);
    by_function ? guest.MsixControl(true, true) : guest.MaskMsix(1, true);
    CHECK(guest.device->Fire(kMsixIrq, 1));
    CHECK(guest.device->Fire(kMsixIrq, 1));
    CHECK(guest.Delivered().empty());
    CHECK(guest.Pba() == 2);
    // Regression 917b90e2a: the entry is rewritten meanwhile.
    guest.Program(1, 0x51);
    by_function ? guest.MsixControl(true) : guest.MaskMsix(1, false);
    CHECK(guest.Delivered() == Data{0x51});
    CHECK(guest.Pba() == 0);
    guest.Program(1, 0x52);  // and while unmasked
    CHECK(guest.device->Fire(kMsixIrq, 1));
    CHECK(guest.Delivered() == Data{0x52});
  }
}

TEST_CASE("msix: disabled with something pending, nothing comes after it is enabled again") {
  TestGuest guest(Msix(4));
  guest.Command(kMemory);
  guest.MsixControl(true);
  guest.UnmaskMsix(1, 0x41);
  guest.MaskMsix(1, true);
  CHECK(guest.device->Fire(kMsixIrq, 1));
  (void)guest.device->TakeCalls();
  guest.MsixControl(false);
  // Regression #457, #460, #473: the device hears of it.
  CHECK(Only(guest.device->TakeCalls(), Op::kDisable).size() == 1);
  CHECK(guest.device->enabled() == kIrqCount);
  CHECK(!guest.device->Fire(kMsixIrq, 1));
  guest.MsixControl(true);
  CHECK(guest.device->Event(kMsixIrq, 1) == -1);  // not before it is unmasked
  CHECK(guest.Pba() == 0);
  guest.MaskMsix(1, false);
  CHECK(guest.Delivered().empty());
  // Regression c048be5c: the vector is handed over anew.
  CHECK(guest.device->Fire(kMsixIrq, 1));
  CHECK(guest.Delivered() == Data{0x41});
}

TEST_CASE("msix: regression #7956, #505: control at every width of write, header and all") {
  for (const std::size_t width : {1U, 2U, 4U, 8U}) {
    CAPTURE(width);
    TestGuest guest(Msix(4));
    guest.Command(kMemory);
    guest.UnmaskMsix(3, 0x43);
    const auto write = [&](std::uint16_t control) {
      if (width == 1)
        guest.Config<std::uint8_t>(kMsixAt + 3, static_cast<std::uint8_t>(control >> 8));
      if (width == 2) guest.Config<std::uint16_t>(kMsixAt + 2, control);
      if (width == 4) guest.Config<std::uint32_t>(kMsixAt, std::uint32_t{control} << 16 | 0xffff);
      if (width == 8) {
        guest.bridge.Write<std::uint64_t>(pci::FakeBridge::ConfigAddress(guest.at, kMsixAt),
                                          ~std::uint64_t{0} << 32 | std::uint64_t{control} << 16);
      }
    };
    write(0x8000);
    CHECK(guest.device->enabled() == kMsixIrq);
    CHECK(guest.Config<std::uint8_t>(kMsixAt) == pci::kCapMsix);
    CHECK(guest.Config<std::uint32_t>(kMsixAt + 4) == 0x1002);
    CHECK((guest.device->Get<std::uint16_t>(kMsixAt + 2) & 0x8000) != 0);  // passed on
    CHECK(guest.device->Fire(kMsixIrq, 3));
    CHECK(guest.Delivered() == Data{0x43});
    write(0xc000);
    CHECK(guest.device->Fire(kMsixIrq, 3));
    CHECK(guest.Delivered().empty());
    write(0x8000);
    CHECK(guest.Delivered() == Data{0x43});
    write(0);
    CHECK(guest.device->enabled() == kIrqCount);
    CHECK((guest.device->Get<std::uint16_t>(kMsixAt + 2) & 0x8000) == 0);
  }
}

TEST_CASE("msix: regression #6657, #8417: tables at every width and offset, one vector and 2048") {
  for (const std::uint16_t vectors : std::array<std::uint16_t, 2>{1, 2048}) {
    CAPTURE(vectors);
    TestGuest guest(MakeDevice([=](FakeHostDevice& d) {
      d.SetBar(2, 0xe000000c, 0x10000, true);
      d.AddMsix(vectors, 2, 0x1000, 0xa000);
    }));
    guest.Command(kMemory);
    guest.MsixControl(true);
    const std::uint32_t last = vectors - 1U;
    guest.UnmaskMsix(last, 0x77);
    CHECK(guest.device->Fire(kMsixIrq, last));
    CHECK(guest.Delivered() == Data{0x77});
    CHECK(!guest.device->Fire(kMsixIrq, vectors));
    const std::uint64_t end = 0x1000 + 16ULL * vectors;
    for (const std::uint64_t offset :
         std::vector<std::uint64_t>{0x1000, 0x1001, end - 1, end - 2, end, 0xa000, 0xa001}) {
      (void)guest.Read<std::uint8_t>(2, offset);
      (void)guest.Read<std::uint16_t>(2, offset);
      (void)guest.Read<std::uint32_t>(2, offset);
      (void)guest.Read<std::uint64_t>(2, offset);
      guest.Write<std::uint8_t>(2, offset, 0xff);
      guest.Write<std::uint16_t>(2, offset, 0xffff);
    }
    guest.MaskMsix(last, true);
    CHECK(guest.device->Fire(kMsixIrq, last));
    CHECK(guest.Read<std::uint64_t>(2, 0xa000 + last / 64 * 8) == std::uint64_t{1} << (last % 64));
  }
}

TEST_CASE("msix: a device that has fewer vectors than its table is asked for no others") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
    d.AddMsix(8);
    d.device.irqs[kMsixIrq].count = 3;
  }));
  guest.Command(kMemory);
  CHECK((guest.Config<std::uint16_t>(kMsixAt + 2) & 0x7ff) == 2);
  guest.MsixControl(true);
  for (std::uint32_t vector = 0; vector < 8; ++vector) guest.UnmaskMsix(vector, 0x40 + vector);
  CHECK(guest.bridge.platform.interrupts.routes() == 3);
  CHECK(guest.device->allocated() == 3);
  CHECK(guest.device->memory[2][0x1000 + 16 * 7] == std::byte{0});  // nor reach the device's table
  CHECK(guest.Counter("vfio_interrupt_errors") == 0);
}

TEST_CASE("msix: a vector the device refuses is counted and tried again when unmasked next") {
  TestGuest guest(Msix(4));
  guest.Command(kMemory);
  guest.MsixControl(true);
  bool full = true;
  guest.device->fail = [&](const Call& call) {
    return full && call.op == Op::kSetVectors ? ENOSPC : 0;
  };
  guest.UnmaskMsix(1, 0x41);
  CHECK(guest.Counter("vfio_interrupt_errors") == 1);
  CHECK(!guest.function->lost());
  full = false;
  guest.MaskMsix(1, true);
  guest.MaskMsix(1, false);
  CHECK(guest.device->Fire(kMsixIrq, 1));
  CHECK(guest.Delivered() == Data{0x41});
}

TEST_CASE("msix: no route left: the vector stays silent, the others do not") {
  TestGuest guest(Msix(4));
  guest.Command(kMemory);
  guest.MsixControl(true);
  guest.bridge.platform.interrupts.LimitRoutes(1);
  guest.UnmaskMsix(0, 0x40);
  guest.UnmaskMsix(1, 0x41);
  CHECK(guest.device->Event(kMsixIrq, 1) == -1);
  CHECK(guest.device->Fire(kMsixIrq, 0));
  CHECK(guest.Delivered() == Data{0x40});
}

// --- MSI ---

void EnableMsi(TestGuest& guest, std::uint16_t log2, std::uint16_t data = 0x40) {
  guest.Config<std::uint32_t>(kMsiAt + 4, 0xfee00000);
  guest.Config<std::uint16_t>(kMsiAt + 0xc, data);
  guest.Config<std::uint16_t>(kMsiAt + 2, static_cast<std::uint16_t>(1 | log2 << 4));
}

TEST_CASE("msi: regression #5649, #5658: a device that has MSI alone") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsi(4); }));
  CHECK(guest.function->msix() == nullptr);
  EnableMsi(guest, 2);
  CHECK(guest.device->enabled() == kMsiIrq);
  CHECK(Sets(*guest.device, kMsiIrq) == std::vector<Set>{{0, 4, 4}});
  CHECK((guest.device->Get<std::uint16_t>(kMsiAt + 2) & 0x21) == 0x21);
  for (std::uint32_t vector = 0; vector < 4; ++vector) CHECK(guest.device->Fire(kMsiIrq, vector));
  CHECK(guest.Delivered() == Data{0x40, 0x41, 0x42, 0x43});
  // The message changes while enabled.
  guest.Config<std::uint16_t>(kMsiAt + 0xc, 0x80);
  CHECK(guest.device->Fire(kMsiIrq, 3));
  CHECK(guest.Delivered() == Data{0x83});
  guest.Config<std::uint16_t>(kMsiAt + 2, 0);
  CHECK(guest.device->enabled() == kIrqCount);
  CHECK(!guest.device->Fire(kMsiIrq, 0));
}

TEST_CASE("msi: one of its vectors, 32 bits, masked by its own bit") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsi(32, false, true); }));
  guest.Config<std::uint32_t>(kMsiAt + 4, 0xfee01000);
  guest.Config<std::uint32_t>(kMsiAt + 8, 0x60);
  guest.Config<std::uint32_t>(kMsiAt + 0xc, 0xfffffffd);
  guest.Config<std::uint32_t>(kMsiAt, 0x00510000);
  CHECK(Sets(*guest.device, kMsiIrq) == std::vector<Set>{{0, 32, 1}});
  CHECK(guest.device->Fire(kMsiIrq, 1));
  CHECK(guest.Delivered() == Data{0x61});
  guest.Config<std::uint32_t>(kMsiAt + 0xc, 0xffffffff);
  CHECK(guest.device->Fire(kMsiIrq, 1));
  CHECK(guest.Config<std::uint32_t>(kMsiAt + 0x10) == 2);
  CHECK(guest.Delivered().empty());
  guest.Config<std::uint32_t>(kMsiAt + 0xc, 0xfffffffd);
  CHECK(guest.Delivered() == Data{0x61});
  guest.Config<std::uint8_t>(kMsiAt + 0xf, 0x7f);  // vector 31, by a byte
  CHECK(guest.device->Fire(kMsiIrq, 31));
  CHECK(guest.Delivered() == Data{0x7f});
}

TEST_CASE("msi: a host that has fewer vectors left gives those") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsi(8); }));
  guest.device->fail = [](const Call& call) {
    return call.op == Op::kSetVectors && call.size > 2 ? ENOSPC : 0;
  };
  EnableMsi(guest, 3);
  CHECK(guest.device->enabled() == kMsiIrq);
  CHECK(guest.device->allocated() == 2);
  CHECK(guest.device->Fire(kMsiIrq, 1));
  CHECK(guest.Delivered() == Data{0x41});
  CHECK(guest.Counter("vfio_interrupt_errors") == 2);
}

TEST_CASE("interrupts: at most one kind is enabled at the device, the old one off first") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
                    d.AddMsix(4);
                    d.AddMsi(2);
                    d.AddIntx();
                  }),
                  {.intx_gsi = kGsi});
  const auto kinds = [&] {
    std::vector<std::uint32_t> list;
    for (const Call& call : guest.device->TakeCalls()) {
      if (call.op == Op::kDisable) list.push_back(call.index);
      if (call.op == Op::kSetVectors) list.push_back(call.index + 100);
    }
    return list;
  };
  CHECK(guest.device->enabled() == kIntxIrq);
  guest.Command(kMemory);
  EnableMsi(guest, 0);
  CHECK(kinds() == Data{kIntxIrq, kMsiIrq + 100});
  CHECK(guest.bridge.platform.interrupts.Line(kGsi).exists == false);
  guest.MsixControl(true);  // both: MSI-X it is
  CHECK(kinds() == Data{kMsiIrq, kMsixIrq + 100});
  CHECK(!guest.device->Fire(kMsiIrq, 0));
  guest.MsixControl(false);
  CHECK(kinds() == Data{kMsixIrq, kMsiIrq + 100});
  CHECK(guest.device->Fire(kMsiIrq, 0));
  CHECK(guest.Delivered() == Data{0x40});
  guest.Config<std::uint16_t>(kMsiAt + 2, 0);
  CHECK(kinds() == Data{kMsiIrq, kIntxIrq + 100});
  CHECK(guest.bridge.platform.interrupts.Line(kGsi).exists);
  CHECK(guest.Counter("vfio_interrupt_errors") == 0);
}

// --- INTx ---

TEST_CASE("intx: raised by the device, unmasked by the guest's end of interrupt alone") {
  auto fake = MakeDevice([](FakeHostDevice& d) { d.AddIntx(); });
  std::vector<Call> calls;
  fake->on_call = [&](const Call& call) {
    if (call.op != Op::kRead && call.op != Op::kWrite && call.index == kIntxIrq &&
        call.op != Op::kMap && call.op != Op::kReset) {
      calls.push_back(call);
    }
  };
  TestGuest guest(std::move(fake), {.intx_gsi = kGsi});
  CHECK(guest.Config<std::uint8_t>(pci::kInterruptPin) == 1);
  CHECK(guest.Config<std::uint8_t>(pci::kInterruptLine) == kGsi);
  REQUIRE(calls.size() == 4);
  CHECK(calls[0].op == Op::kSetVectors);
  CHECK(calls[1].op == Op::kMaskIntx);
  CHECK(calls[1].offset == 1);
  CHECK(calls[2].op == Op::kUnmaskEvent);
  CHECK(calls[2].value == 1);
  CHECK(calls[3].op == Op::kMaskIntx);
  CHECK(calls[3].offset == 0);
  for (int i = 0; i < 3; ++i) {
    CHECK(guest.device->Fire(kIntxIrq));
    CHECK(guest.device->intx_masked());
    CHECK(!guest.device->Fire(kIntxIrq));  // it masks itself
    CHECK(guest.bridge.platform.interrupts.Line(kGsi).pulses == static_cast<std::uint64_t>(i) + 1);
    guest.bridge.platform.interrupts.EndOfInterrupt(kGsi);
  }
  calls.clear();
  guest.Unplug();
  REQUIRE(calls.size() == 3);
  CHECK(calls[0].op == Op::kMaskIntx);
  CHECK(calls[1].op == Op::kUnmaskEvent);
  CHECK(calls[1].value == 0);
  CHECK(calls[2].op == Op::kDisable);
  CHECK(!guest.bridge.platform.interrupts.Line(kGsi).exists);
}

TEST_CASE("intx: regression mtty: a device that takes no unmask event is unmasked by hand") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
                    d.AddIntx();
                    d.AddMsix(2);
                    d.fail = [](const Call& call) {
                      return call.op == Op::kUnmaskEvent ? ENOTTY : 0;
                    };
                  }),
                  {.intx_gsi = kGsi});
  CHECK(guest.Config<std::uint8_t>(pci::kInterruptPin) == 1);
  auto& source = guest.bridge.platform.interrupts;
  for (std::uint64_t i = 1; i <= 3; ++i) {
    CHECK(guest.device->Fire(kIntxIrq));
    CHECK(source.Line(kGsi).pulses == i);
    CHECK(guest.device->intx_masked());
    source.EndOfInterrupt(kGsi);
    guest.loop->RunOnce(0);
    CHECK(!guest.device->intx_masked());
    CHECK(guest.Counter("vfio_intx_unmasks") == i);
  }
  // An end of interrupt that comes late, after another kind took over, unmasks nothing.
  CHECK(guest.device->Fire(kIntxIrq));
  source.EndOfInterrupt(kGsi);
  guest.MsixControl(true);
  CHECK(guest.device->enabled() == kMsixIrq);
  guest.loop->RunOnce(0);
  CHECK(guest.Counter("vfio_intx_unmasks") == 3);
  // Back again, and through a reset.
  guest.MsixControl(false);
  {
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(guest.device->Fire(kIntxIrq));
  source.EndOfInterrupt(kGsi);
  guest.loop->RunOnce(0);
  CHECK(!guest.device->intx_masked());
  CHECK(guest.Counter("vfio_intx_unmasks") == 4);
  CHECK(guest.Counter("vfio_interrupt_errors") == 0);
}

TEST_CASE("intx: without a wire, a pin or leave the guest is told of none") {
  const auto has = [](std::unique_ptr<FakeHostDevice> device, VfioFunction::Options options) {
    TestGuest guest(std::move(device), std::move(options));
    const bool pin = guest.Config<std::uint8_t>(pci::kInterruptPin) != 0;
    CHECK((guest.device->enabled() == kIntxIrq) == pin);
    return pin;
  };
  const auto intx = [] { return MakeDevice([](FakeHostDevice& d) { d.AddIntx(); }); };
  CHECK(has(intx(), {.intx_gsi = kGsi}));
  CHECK(!has(intx(), {}));
  CHECK(!has(intx(), {.intx = false, .intx_gsi = kGsi}));
  CHECK(!has(MakeDevice(), {.intx_gsi = kGsi}));
  CHECK(!has(MakeDevice([](FakeHostDevice& d) {
               d.AddIntx();
               d.Put<std::uint8_t>(pci::kInterruptPin, 5);
             }),
             {.intx_gsi = kGsi}));
  // The device refuses a step, or somebody has the wire.
  for (const Op step : {Op::kSetVectors, Op::kMaskIntx, Op::kUnmaskEvent}) {
    CHECK(!has(MakeDevice([=](FakeHostDevice& d) {
                 d.AddIntx();
                 d.fail = [=](const Call& call) {
                   return call.op == step && call.index == kIntxIrq ? EIO : 0;
                 };
               }),
               {.intx_gsi = kGsi}));
  }
  bus::FakePlatform platform;
  auto loop = EventLoop::Create().value();
  auto taken = platform.interrupts.NewLine(kGsi, nullptr).value();
  auto function =
      VfioFunction::Create(intx(), platform.Get(), *loop, {.intx_gsi = kGsi}, [] {}).value();
  CHECK(function->config().Get<std::uint8_t>(pci::kInterruptPin) == 0);
}

TEST_CASE("intx: the guest's disable bit goes to the device; a reset brings the wire back") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddIntx(); }), {.intx_gsi = kGsi});
  guest.Command(0x400);
  CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == 0x400);
  {
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(guest.device->enabled() == kIntxIrq);
  CHECK(guest.device->Fire(kIntxIrq));
  CHECK(guest.bridge.platform.interrupts.Line(kGsi).pulses == 1);
}

}  // namespace
}  // namespace postern::vfio
