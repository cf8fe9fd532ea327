#pragma once

// Personality: what makes a Vdev one kind of device: its identity, its registers as a table, and
// the few of them that do something. Everything else (config space, BARs, width and mask rules,
// MSI-X, portals, state) is the Vdev's and shared.
//
//   class DsaPersonality final : public siov::Personality { ... };
//   auto vdev = TRY(siov::Vdev::Create({.name = "dsa0"}, std::move(personality),
//   std::move(backend), host));
//
// Ownership: the Vdev owns it; it borrows the VdevPort from Bind on. Threads: every call with the
// function's lock held.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "devices/pci/config_space.h"
#include "devices/siov/core/backend.h"
#include "src/base/counters.h"
#include "src/base/result.h"
#include "src/bus/register_map.h"

namespace postern::siov {

struct VdevLayout {
  pci::Identity identity;
  // BAR 0: registers, with MSI-X table and pending bits inside, each in 4 KiB pages of its own.
  // Rows of the table end below msix_table_offset; the rest of the BAR reads 0.
  std::uint64_t register_bytes = 0x10000;
  std::uint32_t msix_table_offset = 0x4000;
  std::uint32_t msix_pba_offset = 0x5000;
  std::uint16_t vectors = 2;
  // BAR 2: `pages_per_queue` pages a queue, in the order of the queues. Bit p of portal_pages: page
  // p takes submissions; the others are sinks, which ignore writes and read as all-ones.
  std::uint32_t queues = 1;
  std::uint32_t pages_per_queue = 4;
  std::uint32_t portal_pages = 0x3;
};

// What a personality reaches of its Vdev.
class VdevPort {
 public:
  virtual ~VdevPort() = default;
  [[nodiscard]] virtual bus::RegisterFile& registers() = 0;
  [[nodiscard]] virtual Backend& backend() = 0;
  // The handle by which descriptors name MSI-X vector `vector`: the vector's number, or what the
  // backend names it (BackendCaps::named_handles). Descriptors' handles are looked up among those
  // opened here: not Backend::OpenHandle. kInvalidArgument, kExhausted.
  [[nodiscard]] virtual Result<std::uint32_t> OpenHandle(std::uint16_t vector) {
    return backend().OpenHandle(vector);
  }
  // False where it is not open.
  [[nodiscard]] virtual bool CloseHandle(std::uint32_t handle) {
    backend().CloseHandle(handle);
    return true;
  }
  // MSI-X vector `vector`, as the guest programmed it.
  virtual void Trigger(std::uint16_t vector) = 0;
  // COMMAND.BME now.
  [[nodiscard]] virtual bool bus_master() const = 0;
  // A completion for a halting call of the backend: `then` runs later with the lock held, unless
  // the Vdev was reset in between.
  [[nodiscard]] virtual Done Later(std::function<void(HaltResult)> then) = 0;
};

// Values beyond the registers, in an order of the personality's own.
struct PersonalityState {
  std::uint32_t version = 1;
  std::vector<std::uint64_t> words;
};

class Personality {
 public:
  virtual ~Personality() = default;
  // "dsa-ro"
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual const VdevLayout& layout() const = 0;
  // Well formed (bus::IsWellFormed), and there as long as the personality.
  [[nodiscard]] virtual std::span<const bus::RegisterRow> rows() const = 0;
  virtual void Bind(VdevPort& port) = 0;

  // As bus::RegisterOwner's.
  virtual void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
                       std::uint64_t written) = 0;
  virtual std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) {
    (void)row;
    return stored;
  }
  // COMMAND.BME changed.
  virtual void OnBusMaster(bool on) = 0;
  // Function reset: the backend was reset and all rows have their reset values.
  virtual void OnReset() = 0;
  virtual void OnError(const ErrorRecord& record) = 0;
  virtual void OnRefused(std::uint32_t queue, SubmitResult why) = 0;
  // All interrupt handles are void (the Vdev runs elsewhere now, or the backend's device took them
  // back): the guest is told to ask again.
  virtual void OnHandlesRevoked() = 0;
  // The backend is gone; again after each reset.
  virtual void OnLost() = 0;

  [[nodiscard]] virtual PersonalityState Save() const = 0;
  // kBadFormat for what Save could not have given. The registers are loaded already.
  [[nodiscard]] virtual Result<void> Restore(const PersonalityState& state) = 0;
  virtual void ReportCounters(CounterSink& sink) const = 0;
};

}  // namespace postern::siov
