#pragma once

// ServedFunction: a PCI function as a vfio-user server serves it: its config space, BARs and MSI-X
// seen as a VFIO driver of a kernel shows those of a device.
//
//   auto served = TRY(ServedFunction::Create([&](bus::InterruptSource& interrupts,
//                                                const memory::MemoryMap& memory) { ... }));
//
// What a client sees: config space as the function has it, but Enable and Function Mask of MSI-X,
// which are kept for it and have no effect (SET_IRQS has); BARs at offset 0 of their regions,
// whether memory decoding is on or not, as nothing decodes them here; pages of a BAR as areas with
// a descriptor, everything else by messages, in naturally aligned pieces of 1, 2, 4 and 8 bytes;
// the MSI-X table reads as all-ones and ignores writes, as with VFIO. Where pages cannot be mapped
// by the client (no file) they are refused (EIO). The function is attached to no root.
//
// Its reset (DEVICE_RESET, FLR) keeps DMA mappings and eventfds, as VFIO's does.
//
// Ownership: owns function, interrupts and memory. Threads: one, the server's loop; the function's
// own threads come to interrupts and memory.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/pci/function.h"
#include "src/base/counters.h"
#include "src/base/failure.h"
#include "src/base/result.h"
#include "src/bus/platform.h"
#include "src/memory/guest_memory.h"
#include "vfio/user/client_interrupts.h"
#include "vfio/user/client_memory.h"
#include "vfio/user/served.h"

namespace postern::vfio {

// What differs from function to function; each with the function's lock held, and each may be
// empty.
struct ServedHooks {
  // Between the two the function touches no memory.
  std::function<void()> stop_dma;
  std::function<void()> resume_dma;
  // A store of 64 bytes at a multiple of 64 that came as one message. False: nothing special.
  std::function<bool(std::size_t bar, std::uint64_t offset, std::span<const std::byte, 64> data)>
      store_64;
};

struct ServedParts {
  std::unique_ptr<pci::PciFunction> function;
  ServedHooks hooks;
};

class ServedFunction final : public UserServed {
 public:
  using Make = std::function<Outcome<ServedParts>(bus::InterruptSource& interrupts,
                                                  const memory::MemoryMap& memory)>;
  // Fails as `make`; and where pages of a BAR lie in more files than one.
  [[nodiscard]] static Outcome<std::unique_ptr<ServedFunction>> Create(const Make& make);
  ~ServedFunction() override;

  [[nodiscard]] pci::PciFunction& function() { return *parts_.function; }

  [[nodiscard]] std::string Describe() const override;
  [[nodiscard]] ServedRegion Region(std::uint32_t index) const override;
  [[nodiscard]] IrqInfo Irq(std::uint32_t index) const override;
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override;
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override;
  [[nodiscard]] Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::vector<Fd> events) override;
  void ClearVectors(std::uint32_t irq, std::uint32_t start, std::uint32_t count) override;
  void TriggerVectors(std::uint32_t irq, std::uint32_t start, std::uint32_t count) override;
  [[nodiscard]] Result<void> MapDma(const UserDmaMap& map, Fd file) override;
  [[nodiscard]] Result<void> UnmapDma(const UserDmaUnmap& unmap) override;
  void Reset() override;
  void ReportCounters(CounterSink& sink) const override;

 private:
  // The MSI-X table in its BAR, and where message control is in config space; 0: there is none.
  struct Msix {
    std::uint32_t capability = 0;
    std::uint32_t bar = 0;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };

  ServedFunction() = default;
  [[nodiscard]] Result<void> FindMsix();
  [[nodiscard]] Result<void> PlanRegions();
  [[nodiscard]] Result<ServedRegion> PlanBar(const pci::Bar& bar) const;
  void Arm() REQUIRES(function().lock());
  void ReadConfig(std::uint32_t offset, std::span<std::byte> data) REQUIRES(function().lock());
  void WriteConfig(std::uint32_t offset, std::span<const std::byte> data)
      REQUIRES(function().lock());
  [[nodiscard]] Result<void> ReadBar(std::uint32_t bar, std::uint64_t offset,
                                     std::span<std::byte> data);
  [[nodiscard]] Result<void> WriteBar(std::uint32_t bar, std::uint64_t offset,
                                      std::span<const std::byte> data);
  [[nodiscard]] bool InTable(std::uint32_t bar, std::uint64_t offset) const;
  [[nodiscard]] Unexpected RefusePages(std::uint32_t bar);

  std::unique_ptr<ClientMemory> memory_;
  ClientInterrupts interrupts_;
  ServedParts parts_;
  std::array<ServedRegion, kRegionCount> regions_;
  Msix msix_;
  std::byte shadow_control_{0};  // Enable and Function Mask, as the client wrote them
  Counter region_reads_, region_writes_, table_accesses_, page_accesses_, stores_64_;
};

}  // namespace postern::vfio
