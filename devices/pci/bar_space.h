#pragma once

// BarSpace: where the functions of one host bridge may be decoded: its windows, who occupies them
// now, and the buses, page mapper and doorbells a mapped BAR uses.
//
// A BAR is decoded only inside a window of its host bridge and where no other BAR is; RAM, the
// APICs and ECAM lie outside all windows, so a guest that moves a BAR can hide nothing but its
// own device. Windows of `memory32` end below 4 GiB.
//
// Ownership: borrows all it is given. Threads: any; its mutex is a leaf.

#include <cstdint>
#include <map>

#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/bus.h"
#include "src/bus/platform.h"

namespace postern::pci {

// [base, base + size); size 0: there is none.
struct Window {
  std::uint64_t base = 0;
  std::uint64_t size = 0;
  // Whether [at, at + length) lies inside; never wraps.
  [[nodiscard]] constexpr bool Contains(std::uint64_t at, std::uint64_t length) const {
    return at >= base && length <= size && at - base <= size - length;
  }
};

struct Windows {
  Window memory32;
  Window memory64;
  Window io;
};

class BarSpace;

// One occupied range; gives it up when destroyed.
class Claim {
 public:
  Claim() = default;
  Claim(Claim&& other) noexcept;
  Claim& operator=(Claim&& other) noexcept;
  ~Claim() { Release(); }
  void Release();

 private:
  friend class BarSpace;
  Claim(BarSpace* space, bool io, std::uint64_t base) : space_(space), io_(io), base_(base) {}
  BarSpace* space_ = nullptr;
  bool io_ = false;
  std::uint64_t base_ = 0;
};

class BarSpace {
 public:
  // `ports` may be null: there are no I/O BARs then.
  BarSpace(const Windows& windows, bus::Bus& memory, bus::Bus* ports, bus::PageMapper& pages,
           bus::Doorbells& doorbells)
      : windows_(windows), memory_(memory), ports_(ports), pages_(pages), doorbells_(doorbells) {}

  // kGuestRange outside the windows, kOverlap where another claim is.
  [[nodiscard]] Result<Claim> Take(bool io, std::uint64_t base, std::uint64_t size);

  [[nodiscard]] const Windows& windows() const { return windows_; }
  [[nodiscard]] bus::Bus& memory() const { return memory_; }
  [[nodiscard]] bus::Bus* ports() const { return ports_; }
  [[nodiscard]] bus::PageMapper& pages() const { return pages_; }
  [[nodiscard]] bus::Doorbells& doorbells() const { return doorbells_; }

 private:
  friend class Claim;
  const Windows windows_;
  bus::Bus& memory_;
  bus::Bus* const ports_;
  bus::PageMapper& pages_;
  bus::Doorbells& doorbells_;
  Mutex mutex_;
  using Ranges = std::map<std::uint64_t, std::uint64_t>;  // base -> size
  Ranges memory_claims_ GUARDED_BY(mutex_);
  Ranges io_claims_ GUARDED_BY(mutex_);
};

}  // namespace postern::pci
