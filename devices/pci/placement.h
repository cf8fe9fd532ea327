#pragma once

// Placement: what firmware does before boot: finds places in a host bridge's windows for BARs and
// for the windows of root ports. Internal to PciRoot.
//
// Largest first, first fit: naturally aligned powers of two then leave no holes. Threads: a value;
// takes the locks of the functions it is given.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "devices/pci/bar_space.h"
#include "devices/pci/function.h"
#include "devices/pci/root_port.h"
#include "src/base/result.h"

namespace postern::pci {

class Placement {
 public:
  explicit Placement(const Windows& windows)
      : windows_(windows), low_(windows.memory32), high_(windows.memory64), io_(windows.io) {}

  // BARs that have no address; those that have one keep it.
  void AddBars(PciFunction& function);
  // A prefetchable window is left out where there is no place above 4 GiB at all.
  void AddWindows(RootPort& port);
  // kExhausted, and nothing was written, when they do not fit; what wants ports may stay without.
  [[nodiscard]] Result<void> Place();

 private:
  // First fit in one window around what is taken.
  class Allocator {
   public:
    explicit Allocator(const Window& window) : window_(window) {}
    void Occupy(std::uint64_t base, std::uint64_t size);
    [[nodiscard]] std::optional<std::uint64_t> Find(std::uint64_t size, std::uint64_t granule);

   private:
    Window window_;
    std::vector<Window> used_;
  };
  struct Request {
    PciFunction* function = nullptr;  // a BAR of it,
    RootPort* port = nullptr;         // or a window of it
    std::size_t index = 0;
    BarKind kind = BarKind::kMem32;
    std::uint64_t size = 0;
    std::uint64_t address = 0;
  };
  [[nodiscard]] std::optional<std::uint64_t> Find(const Request& request);
  void Write();

  const Windows windows_;
  Allocator low_, high_, io_;
  std::vector<Request> requests_;
};

}  // namespace postern::pci
