#include "devices/siov/core/vdev.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "devices/pci/pci_regs.h"
#include "devices/pci/pcie_regs.h"
#include "src/base/check.h"

namespace postern::siov {
namespace {

constexpr std::uint64_t kPage = 4096;

constexpr std::uint64_t PageUp(std::uint64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

// [begin, end) of BAR 0.
struct Range {
  std::uint64_t begin;
  std::uint64_t end;
};
Range TableOf(const VdevLayout& layout) {
  const std::uint64_t begin = layout.msix_table_offset;
  return {begin, begin + PageUp(pci::MsixTable::TableBytes(layout.vectors))};
}
Range PbaOf(const VdevLayout& layout) {
  const std::uint64_t begin = layout.msix_pba_offset;
  return {begin, begin + PageUp(pci::MsixTable::PbaBytes(layout.vectors))};
}

bool IsWellFormed(const VdevLayout& layout, std::span<const bus::RegisterRow> rows) {
  const Range table = TableOf(layout);
  const Range pba = PbaOf(layout);
  if (table.begin % kPage != 0 || pba.begin % kPage != 0 || table.begin == 0 || pba.begin == 0)
    return false;
  if (table.end > pba.begin && pba.end > table.begin) return false;
  if (!std::has_single_bit(layout.register_bytes) || table.end > layout.register_bytes ||
      pba.end > layout.register_bytes) {
    return false;
  }
  if (!bus::IsWellFormed(rows) || rows.empty()) return false;
  const std::uint64_t end = std::uint64_t{rows.back().offset} + rows.back().width;
  return end <= std::min(table.begin, pba.begin) && Portals::Accepts(layout);
}

constexpr bool Touches(std::uint32_t offset, std::size_t width, std::uint32_t at,
                       std::uint32_t bytes) {
  return offset < at + bytes && offset + width > at;
}

}  // namespace

Result<std::unique_ptr<Vdev>> Vdev::Create(const VdevOptions& options,
                                           std::unique_ptr<Personality> personality,
                                           std::unique_ptr<Backend> backend, const Host& host) {
  CHECK(personality != nullptr && backend != nullptr);
  const VdevLayout& layout = personality->layout();
  if (!IsWellFormed(layout, personality->rows()))
    return Err(Errc::kInvalidArgument, "layout of a virtual device");
  const BackendCaps& caps = backend->caps();
  if (layout.queues > caps.queues) return Err(Errc::kInvalidArgument, "queues of the back end");
  if ((options.portal == PortalMode::kDirect && !caps.direct) ||
      (options.portal == PortalMode::kPolled && !caps.polled)) {
    return Err(Errc::kUnsupported, "portal mode of the back end");
  }
  std::unique_ptr<Vdev> vdev(new Vdev(options, std::move(personality), std::move(backend), host));
  TRY(vdev->Init(options, host.interrupts));
  return vdev;
}

Vdev::Vdev(const VdevOptions& options, std::unique_ptr<Personality> personality,
           std::unique_ptr<Backend> backend, const Host& host)
    : PciFunction(options.name, personality->layout().identity),
      personality_(std::move(personality)),
      backend_(std::move(backend)),
      handles_(personality_->layout().vectors),
      events_(host.loop, lock()),
      pages_leave_(options.pages_leave) {}

Vdev::~Vdev() {
  if (msix() != nullptr) msix()->SetObserver(nullptr);
  // Its threads call into the rest of this.
  backend_->Reset();
  backend_.reset();
}

Result<void> Vdev::Init(const VdevOptions& options, bus::InterruptSource& interrupts) {
  bus::RegisterOwner& owner = *this;
  registers_.emplace(personality_->rows(), owner, name());
  TRY(AddRegisterBar(interrupts));
  portals_ = std::make_unique<Portals>(
      personality_->layout(), *backend_,
      [this](std::uint32_t queue, SubmitResult why) { personality_->OnRefused(queue, why); });
  std::vector<pci::Tile> tiles = TRY(portals_->Open(options.portal));
  pci::Bar portal_bar =
      TRY(pci::Bar::Create(pci::BarKind::kMem64Prefetchable, portals_->bytes(), std::move(tiles)));
  TRY(AddBar(kPortalBar, std::move(portal_bar)));
  if (!backend_->caps().named_handles) {
    for (std::uint16_t v = 0; v < personality_->layout().vectors; ++v) TRY(handles_.Open(v, v));
  }
  personality_->Bind(port_);
  backend_->Attach(*this);
  return {};
}

Result<void> Vdev::AddRegisterBar(bus::InterruptSource& interrupts) {
  const VdevLayout& layout = personality_->layout();
  auto table = TRY(pci::MsixTable::Create(interrupts, layout.vectors));
  const Range table_at = TableOf(layout);
  const Range pba_at = PbaOf(layout);
  std::vector<pci::Tile> tiles;
  std::uint64_t next = 0;
  const auto until = [&](std::uint64_t end, bus::MmioHandler& handler, const char* what) {
    if (end > next) tiles.emplace_back(pci::Trapped{next, end - next, &handler, what});
    next = end;
  };
  until(std::min(table_at.begin, pba_at.begin), register_handler_, "registers");
  const bool table_first = table_at.begin < pba_at.begin;
  if (table_first) until(table_at.end, table->table(), "msix-table");
  until(pba_at.begin, empty_handler_, "empty");
  until(pba_at.end, table->pba(), "msix-pba");
  if (!table_first) {
    until(table_at.begin, empty_handler_, "empty");
    until(table_at.end, table->table(), "msix-table");
  }
  until(layout.register_bytes, empty_handler_, "empty");
  pci::Bar bar = TRY(
      pci::Bar::Create(pci::BarKind::kMem64Prefetchable, layout.register_bytes, std::move(tiles)));
  TRY(AddBar(kRegisterBar, std::move(bar)));
  TRY(AddExpressCapability());
  table->SetObserver(this);
  return AddMsix(std::move(table), kRegisterBar, layout.msix_table_offset, layout.msix_pba_offset);
}

// PCI Express Base 3.0 7.8: of a root complex integrated endpoint, which has no link, slot or root
// registers.
Result<void> Vdev::AddExpressCapability() {
  const std::array<std::uint8_t, pci::kExpressSizeV2 - 2> body{};
  express_ = TRY(config().AddCapability(pci::kCapPciExpress, body));
  pci::EXPRESS_FLAGS flags;
  flags.Set<pci::EXPRESS_FLAGS::Type>(pci::kExpressRootIntegrated);
  flags.Set<pci::EXPRESS_FLAGS::Version>(2);
  config().Set<std::uint16_t>(express_ + pci::kExpressFlags, flags.raw);
  config().Set<std::uint32_t>(express_ + pci::kExpressDevice,
                              pci::kExpressFlrCapable | pci::kRoleBasedErrors);
  config().Set<std::uint16_t>(express_ + pci::kExpressDeviceControl, pci::kDeviceControlReset);
  // 7.8.4: Initiate Function Level Reset always reads 0.
  config().Allow<std::uint16_t>(express_ + pci::kExpressDeviceControl, pci::kDeviceControlWritable);
  return {};
}

PortalMode Vdev::portal_mode(std::uint32_t queue) const {
  return portals_->mode(queue);
}

void Vdev::SubmitAt(std::uint64_t offset, const Descriptor& descriptor) {
  portals_->SubmitAt(offset, descriptor);
}

// --- hooks ---

void Vdev::OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) {
  const std::uint32_t flr = express_ + pci::kExpressDeviceControl + 1;
  if (Touches(offset, data.size(), flr, 1) &&
      (data[flr - offset] & std::byte{pci::kExpressFlr >> 8}) != std::byte{0}) {
    Reset();
    return;
  }
  if (!Touches(offset, data.size(), pci::kCommand, 2)) return;
  if (std::exchange(bus_master_, BusMaster()) != bus_master_)
    personality_->OnBusMaster(bus_master_);
}

void Vdev::OnReset() {
  resets_.Add();
  bus_master_ = false;
  backend_->Reset();
  if (quiesced_) backend_->Quiesce();
  // After the backend: what it said while it was being stopped is of before the reset, too.
  events_.Forget();
  broken_posted_.store(0, std::memory_order_relaxed);
  revoked_posted_.store(false, std::memory_order_relaxed);
  if (backend_->caps().named_handles) handles_.RevokeAll();
  portals_->Clear();
  registers_->Reset();
  personality_->OnReset();
  if (lost_) personality_->OnLost();
}

void Vdev::OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
                   std::uint64_t written) {
  personality_->OnWrite(row, old, now, written);
}

std::uint64_t Vdev::OnRead(const bus::RegisterRow& row, std::uint64_t stored) {
  return personality_->OnRead(row, stored);
}

void Vdev::OnVectorOpened(std::uint16_t vector, const EventFd& trigger) {
  backend_->SetVector(vector, &trigger);
}

void Vdev::OnDisabled() {
  for (std::uint16_t v = 0; v < personality_->layout().vectors; ++v)
    backend_->SetVector(v, nullptr);
}

void Vdev::EmptyHandler::Read(std::uint64_t /*offset*/, std::span<std::byte> data) {
  accesses.Add();
  std::ranges::fill(data, std::byte{0});
}

void Vdev::EmptyHandler::Write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) {
  accesses.Add();
}

// --- the personality's port ---

bool Vdev::BusMaster() const {
  return pci::COMMAND{{config().Get<std::uint16_t>(pci::kCommand)}}.Get<pci::COMMAND::BusMaster>();
}

bool Vdev::Port::bus_master() const {
  return vdev_.BusMaster();
}

Result<std::uint32_t> Vdev::Port::OpenHandle(std::uint16_t vector) {
  if (vector >= vdev_.personality_->layout().vectors)
    return Err(Errc::kInvalidArgument, "vector of an interrupt handle");
  if (!vdev_.backend_->caps().named_handles) return vector;
  const std::uint32_t handle = TRY(vdev_.backend_->OpenHandle(vector));
  // A backend may have one name for a vector and give it again.
  if (vdev_.handles_.VectorOf(handle) == vector) return handle;
  Result<void> opened = vdev_.handles_.Open(handle, vector);
  if (opened) return handle;
  if (opened.error().code != Errc::kOverlap) vdev_.backend_->CloseHandle(handle);
  return Unexpected(opened.error());
}

bool Vdev::Port::CloseHandle(std::uint32_t handle) {
  if (!vdev_.backend_->caps().named_handles) return vdev_.handles_.IsHandle(handle);
  if (!vdev_.handles_.Close(handle)) return false;
  vdev_.backend_->CloseHandle(handle);
  return true;
}

Done Vdev::Port::Later(std::function<void(HaltResult)> then) {
  PostedEvents& events = vdev_.events_;
  return [&events, generation = events.generation(), then = std::move(then)](HaltResult result) {
    events.Post(PostedEvents::kAnswer, generation, [then, result] { then(result); });
  };
}

void Vdev::ReportCounters(CounterSink& sink) const {
  PciFunction::ReportCounters(sink);
  const auto rows = registers_->rows();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (const std::uint64_t accesses = registers_->accesses(i); accesses != 0)
      sink.Add("register_" + std::string(rows[i].name), accesses);
  }
  sink.Add("registers_refused", registers_->refused());
  sink.Add("registers_empty", empty_handler_.accesses.Get());
  sink.Add("resets", resets_.Get());
  sink.Add("portal_rules_broken", rules_broken_.Get());
  sink.Add("handles_revoked", handles_revoked_.Get());
  sink.Add("portal_trap_failures", trap_failures_.Get());
  sink.Add("losses", losses_.Get());
  sink.Add("unknown_handles", unknown_handles_.Get());
  sink.Add("events_dropped", events_.dropped());
  portals_->ReportCounters(sink);
  backend_->ReportCounters(sink);
  personality_->ReportCounters(sink);
}

}  // namespace postern::siov
