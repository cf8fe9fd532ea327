#include "devices/pci/placement.h"

#include <algorithm>
#include <map>

namespace postern::pci {
namespace {

constexpr std::uint64_t kPageSize = 4096;

std::uint64_t AlignUp(std::uint64_t value, std::uint64_t align) {
  return (value + align - 1) & ~(align - 1);
}

}  // namespace

void Placement::Allocator::Occupy(std::uint64_t base, std::uint64_t size) {
  used_.push_back({base, size});
  std::ranges::sort(used_, {}, &Window::base);
}

std::optional<std::uint64_t> Placement::Allocator::Find(std::uint64_t size, std::uint64_t granule) {
  const std::uint64_t align = std::max(size, granule);
  // 0 in a base address register means "not placed".
  std::uint64_t at = AlignUp(std::max<std::uint64_t>(window_.base, 1), align);
  for (const Window& used : used_) {
    if (at + align > used.base && at < used.base + used.size)
      at = AlignUp(used.base + used.size, align);
  }
  if (!window_.Contains(at, align)) return std::nullopt;
  Occupy(at, align);
  return at;
}

void Placement::AddBars(PciFunction& function) {
  const MutexLock lock(function.lock());
  for (std::size_t i = 0; i < function.bars().size(); ++i) {
    const std::optional<Bar>& bar = function.bars()[i];
    if (!bar) continue;
    const std::uint64_t at = function.BarAddress(i);
    if (at == 0) {
      requests_.push_back({&function, nullptr, i, bar->kind(), bar->size()});
      continue;
    }
    // The registers are the guest's: what lies outside the windows blocks nothing.
    if (bar->kind() == BarKind::kIo) {
      if (windows_.io.Contains(at, bar->size())) io_.Occupy(at, bar->size());
    } else if (windows_.memory32.Contains(at, bar->size())) {
      low_.Occupy(at, bar->size());
    } else if (windows_.memory64.Contains(at, bar->size())) {
      high_.Occupy(at, bar->size());
    }
  }
}

void Placement::AddWindows(RootPort& port) {
  const RootPortOptions& options = port.options();
  if (options.window32 != 0)
    requests_.push_back({nullptr, &port, 0, BarKind::kMem32, options.window32});
  if (options.window64 != 0 && windows_.memory64.size != 0)
    requests_.push_back({nullptr, &port, 0, BarKind::kMem64Prefetchable, options.window64});
  if (options.window_io != 0)
    requests_.push_back({nullptr, &port, 0, BarKind::kIo, options.window_io});
}

std::optional<std::uint64_t> Placement::Find(const Request& request) {
  if (request.kind == BarKind::kIo) return io_.Find(request.size, 4);
  std::optional<std::uint64_t> at;
  if (Is64Bit(request.kind)) at = high_.Find(request.size, kPageSize);
  // A port's prefetchable window is asked for above 4 GiB, not wherever there is room.
  if (!at && (request.port == nullptr || !Is64Bit(request.kind)))
    at = low_.Find(request.size, kPageSize);
  return at;
}

Result<void> Placement::Place() {
  std::ranges::stable_sort(requests_, std::ranges::greater{}, &Request::size);
  for (Request& request : requests_) {
    const std::optional<std::uint64_t> at = Find(request);
    // PCI Express 3.0 2.1.1.2: a function works without its I/O ranges.
    if (!at && request.kind != BarKind::kIo) return Err(Errc::kExhausted, "PCI window");
    request.address = at.value_or(0);
  }
  Write();
  return {};
}

void Placement::Write() {
  std::map<RootPort*, RootPort::Forwarded> ports;
  for (const Request& request : requests_) {
    if (request.address == 0) {
      PciFunction& function = request.port != nullptr ? *request.port : *request.function;
      const MutexLock lock(function.lock());
      function.NoteWithoutPorts();
      continue;
    }
    if (request.port != nullptr) {
      RootPort::Forwarded& forwarded = ports[request.port];
      Window& window = request.kind == BarKind::kIo ? forwarded.io
                       : Is64Bit(request.kind)      ? forwarded.memory64
                                                    : forwarded.memory32;
      window = {request.address, request.size};
      continue;
    }
    const MutexLock lock(request.function->lock());
    request.function->PlaceBar(request.index, request.address);
  }
  for (const auto& [port, windows] : ports) {
    const MutexLock lock(port->lock());
    port->PlaceWindows(windows);
  }
}

}  // namespace postern::pci
