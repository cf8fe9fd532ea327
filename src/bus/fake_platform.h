#pragma once

// Fakes of bus/platform.h for tests: what a device did with its interrupts, mapped pages and
// doorbells, and the guest's side of them.
//
//   FakePlatform platform;
//   Device device(platform.Get());
//   platform.doorbells.Write(Gpa(0x1000), 2, 0);              // the guest kicks
//   CHECK(platform.interrupts.TakeDelivered().size() == 1);   // what KVM would have injected
//
// Threads: any; as with irqfd, a signal counts from the moment it is in the eventfd. A fake
// outlives all it gave out.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/mutex.h"
#include "src/bus/platform.h"

namespace postern::bus {

class FakeInterruptSource final : public InterruptSource {
 public:
  FakeInterruptSource();
  ~FakeInterruptSource() override;

  [[nodiscard]] Result<std::unique_ptr<MsiRoute>> NewMsi() override;
  [[nodiscard]] Result<std::unique_ptr<IrqLine>> NewLine(std::uint32_t gsi,
                                                         const EventFd* resample) override;

  // NewMsi answers kExhausted while this many routes exist; MsiRoute::Set and Mask fail with EINVAL
  // while `fail` is set.
  void LimitRoutes(std::size_t limit);
  void FailUpdates(bool fail);

  // MSI routes that exist, and the messages delivered since the last call, in the order of the
  // routes.
  [[nodiscard]] std::size_t routes() const;
  [[nodiscard]] std::vector<MsiMessage> TakeDelivered();
  // The state of route `index` (in order of creation, gone ones included).
  struct MsiState {
    std::optional<MsiMessage> message;
    bool masked = true;
    bool pending = false;  // signalled while masked
    bool exists = true;
    std::uint64_t delivered = 0;
    std::uint64_t sets = 0;   // Set calls
    std::uint64_t masks = 0;  // Mask calls
  };
  [[nodiscard]] MsiState Msi(std::size_t index);

  struct LineState {
    bool exists = false;
    bool high = false;         // SetLevel
    std::uint64_t rises = 0;   // low to high
    std::uint64_t pulses = 0;  // signals of trigger()
  };
  [[nodiscard]] LineState Line(std::uint32_t gsi);
  // The guest's end of interrupt on a level line: signals its resample eventfd.
  void EndOfInterrupt(std::uint32_t gsi);

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

class FakePageMapper final : public PageMapper {
 public:
  FakePageMapper();
  ~FakePageMapper() override;
  [[nodiscard]] Result<std::unique_ptr<Mapping>> Map(memory::Gpa gpa, const HostPages& pages,
                                                     memory::Access access) override;
  // [base, base + size) is taken, as by RAM.
  void Occupy(memory::Gpa base, std::uint64_t size);

  struct MappingState {
    memory::Gpa gpa;
    HostPages pages;
    memory::Access access = memory::Access::kRead;
  };
  // What is mapped now, by address.
  [[nodiscard]] std::vector<MappingState> Mappings() const;
  // The guest's store to, and load from, a mapped page; false if it would exit (not mapped, or
  // mapped for reading alone).
  bool GuestWrite(memory::Gpa gpa, std::span<const std::byte> data);
  bool GuestRead(memory::Gpa gpa, std::span<std::byte> data);

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

class FakeDoorbells final : public Doorbells {
 public:
  FakeDoorbells();
  ~FakeDoorbells() override;
  // As KVM: kOverlap if one with the same address, width and match (or the same address and width 0
  // or no match) exists.
  [[nodiscard]] Result<std::unique_ptr<Doorbell>> Register(memory::Gpa gpa, std::uint32_t width,
                                                           std::optional<std::uint64_t> match,
                                                           const EventFd& event) override;
  // The guest writes: true if a doorbell took it (its eventfd is then signalled), false if it would
  // exit to the bus.
  bool Write(memory::Gpa gpa, std::uint32_t width, std::uint64_t value);
  [[nodiscard]] std::size_t size() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

struct FakePlatform {
  FakeInterruptSource interrupts;
  FakePageMapper pages;
  FakeDoorbells doorbells;
  [[nodiscard]] Platform Get() { return Platform{interrupts, pages, doorbells}; }
};

}  // namespace postern::bus
