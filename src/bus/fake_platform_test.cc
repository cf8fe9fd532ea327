// The fakes behave as KVM does where devices can tell: other tests rest on that.

#include "src/bus/fake_platform.h"

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace postern::bus {
namespace {

using memory::Access;
using memory::Gpa;

TEST_CASE("fake_platform: a masked route collects, and unmasking delivers once") {
  FakePlatform platform;
  const std::unique_ptr<MsiRoute> route = std::move(*platform.interrupts.NewMsi());
  const MsiMessage first{0xfee00000, 0x41};
  const MsiMessage second{0xfee01000, 0x42};
  REQUIRE(route->Set(first).has_value());
  route->trigger().Signal();
  route->trigger().Signal();
  CHECK(platform.interrupts.TakeDelivered().empty());
  CHECK(platform.interrupts.Msi(0).pending);
  REQUIRE(route->Mask(false).has_value());
  CHECK(platform.interrupts.TakeDelivered() == std::vector<MsiMessage>{first});
  route->trigger().Signal();
  route->trigger().Signal();
  REQUIRE(route->Set(second).has_value());
  route->trigger().Signal();
  CHECK(platform.interrupts.TakeDelivered() == std::vector<MsiMessage>{first, first, second});
  REQUIRE(route->Mask(true).has_value());
  route->trigger().Signal();
  CHECK(platform.interrupts.TakeDelivered().empty());
  const FakeInterruptSource::MsiState state = platform.interrupts.Msi(0);
  CHECK(state.delivered == 4);
  CHECK(state.sets == 2);
  CHECK(state.masks == 2);
  CHECK(state.message == second);
}

TEST_CASE("fake_platform: routes are limited, can fail, and go away") {
  FakeInterruptSource source;
  source.LimitRoutes(1);
  std::unique_ptr<MsiRoute> route = std::move(*source.NewMsi());
  CHECK(source.NewMsi().error().code == Errc::kExhausted);
  source.FailUpdates(true);
  CHECK_FALSE(route->Set({}).has_value());
  CHECK_FALSE(route->Mask(false).has_value());
  CHECK(source.routes() == 1);
  route.reset();
  CHECK(source.routes() == 0);
  CHECK_FALSE(source.Msi(0).exists);
  CHECK(source.NewMsi().has_value());
}

TEST_CASE("fake_platform: a line has a level, pulses and an end of interrupt") {
  FakeInterruptSource source;
  const EventFd resample = std::move(*EventFd::Create());
  std::unique_ptr<IrqLine> line = std::move(*source.NewLine(5, &resample));
  CHECK(source.NewLine(5, nullptr).error().code == Errc::kOverlap);
  line->SetLevel(true);
  line->SetLevel(true);
  line->trigger().Signal();
  CHECK(source.Line(5).high);
  CHECK(source.Line(5).rises == 1);
  CHECK(source.Line(5).pulses == 1);
  source.EndOfInterrupt(5);
  CHECK(resample.Consume() == 1);
  line.reset();
  source.EndOfInterrupt(5);
  CHECK(resample.Consume() == 0);
  CHECK_FALSE(source.Line(5).exists);
  CHECK_FALSE(source.Line(6).exists);
  CHECK(source.NewLine(5, nullptr).has_value());
}

TEST_CASE("fake_platform: pages are mapped where nothing is, and reached as the guest would") {
  FakePageMapper mapper;
  mapper.Occupy(Gpa(0), 0x10000);
  alignas(4096) static std::array<std::byte, 8192> host{};
  const HostPages pages{.address = host.data(), .length = host.size()};
  std::unique_ptr<Mapping> mapping =
      std::move(*mapper.Map(Gpa(0x20000), pages, Access::kReadWrite));
  for (const std::uint64_t gpa : {0xf000ULL, 0x1f000ULL, 0x20000ULL, 0x21000ULL}) {
    CAPTURE(gpa);
    CHECK(mapper.Map(Gpa(gpa), pages, Access::kRead).error().code == Errc::kOverlap);
  }
  CHECK(mapper.Map(Gpa(0x30800), pages, Access::kRead).error().code == Errc::kInvalidArgument);
  CHECK(mapper.Map(Gpa(0x30000), {.address = host.data(), .length = 100}, Access::kRead)
            .error()
            .code == Errc::kInvalidArgument);
  CHECK(mapper.Map(Gpa(0x30000), {.length = 4096}, Access::kRead).error().code ==
        Errc::kInvalidArgument);
  const std::array<std::byte, 2> data{std::byte{1}, std::byte{2}};
  CHECK(mapper.GuestWrite(Gpa(0x21ffe), data));
  CHECK(host[8191] == std::byte{2});
  CHECK_FALSE(mapper.GuestWrite(Gpa(0x21fff), data));
  CHECK_FALSE(mapper.GuestWrite(Gpa(0x1ffff), data));
  std::array<std::byte, 2> back{};
  CHECK(mapper.GuestRead(Gpa(0x21ffe), back));
  CHECK(back == data);
  CHECK(mapper.Mappings().size() == 1);
  mapping.reset();
  CHECK(mapper.Mappings().empty());
  CHECK_FALSE(mapper.GuestRead(Gpa(0x21ffe), back));
  mapping = std::move(*mapper.Map(Gpa(0x20000), pages, Access::kRead));
  CHECK_FALSE(mapper.GuestWrite(Gpa(0x20000), data));
}

TEST_CASE("fake_platform: a doorbell takes the writes it matches") {
  FakeDoorbells doorbells;
  const EventFd any = std::move(*EventFd::Create());
  const EventFd one = std::move(*EventFd::Create());
  std::unique_ptr<Doorbell> a = std::move(*doorbells.Register(Gpa(0x1000), 0, std::nullopt, any));
  std::unique_ptr<Doorbell> b = std::move(*doorbells.Register(Gpa(0x2000), 2, 7, one));
  CHECK(doorbells.Register(Gpa(0x1000), 4, std::nullopt, one).error().code == Errc::kOverlap);
  CHECK(doorbells.Register(Gpa(0x2000), 2, 7, one).error().code == Errc::kOverlap);
  CHECK(doorbells.Register(Gpa(0x3000), 3, std::nullopt, one).error().code ==
        Errc::kInvalidArgument);
  CHECK(doorbells.Register(Gpa(0x3000), 0, 1, one).error().code == Errc::kInvalidArgument);
  CHECK(doorbells.Write(Gpa(0x1000), 1, 99));
  CHECK(doorbells.Write(Gpa(0x1000), 4, 99));
  CHECK(any.Consume() == 2);
  CHECK_FALSE(doorbells.Write(Gpa(0x2000), 2, 8));
  CHECK_FALSE(doorbells.Write(Gpa(0x2000), 4, 7));
  CHECK(doorbells.Write(Gpa(0x2000), 2, 7));
  CHECK(one.Consume() == 1);
  const std::unique_ptr<Doorbell> c = std::move(*doorbells.Register(Gpa(0x2000), 2, 8, one));
  CHECK(doorbells.size() == 3);
  a.reset();
  CHECK_FALSE(doorbells.Write(Gpa(0x1000), 1, 99));
  CHECK(doorbells.size() == 2);
}

}  // namespace
}  // namespace postern::bus
