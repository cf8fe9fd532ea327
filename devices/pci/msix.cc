#include "devices/pci/msix.h"

#include <algorithm>

#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::pci {
namespace {

constexpr std::uint32_t kVectorMasked = MSIX_VECTOR_CONTROL::Mask::kMask;

std::uint64_t LoadLittle(std::span<const std::byte> data) {
  std::uint64_t value = 0;
  for (std::size_t i = data.size(); i-- > 0;)
    value = (value << 8) | std::to_integer<std::uint64_t>(data[i]);
  return value;
}

void StoreLittle(std::uint64_t value, std::span<std::byte> data) {
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(value >> (8 * i));
}

// PCI 3.0 6.8.2: software uses aligned dword or qword accesses.
bool Accepts(std::uint64_t offset, std::size_t width, std::uint64_t bytes) {
  return (width == 4 || width == 8) && offset % width == 0 && offset < bytes &&
         width <= bytes - offset;
}

}  // namespace

Result<std::unique_ptr<MsixTable>> MsixTable::Create(bus::InterruptSource& interrupts,
                                                     std::uint16_t vectors) {
  if (vectors == 0 || vectors > kMsixMaxVectors)
    return Err(Errc::kInvalidArgument, "MSI-X vector count");
  return std::unique_ptr<MsixTable>(new MsixTable(interrupts, vectors));
}

MsixTable::MsixTable(bus::InterruptSource& interrupts, std::uint16_t vectors)
    : interrupts_(interrupts), entries_(vectors), vectors_(std::make_unique<Vector[]>(vectors)) {}

MsixTable::~MsixTable() = default;

void MsixTable::Trigger(std::uint16_t vector) {
  if (vector >= entries_.size() || !enabled()) return;
  triggers_.Add();
  Vector& v = vectors_[vector];
  if (const EventFd* trigger = v.trigger.load(std::memory_order_acquire)) {
    trigger->Signal();
    return;
  }
  // Never unmasked so far. EnsureRoute publishes the trigger under this mutex and then looks at
  // `pending`.
  const MutexLock lock(pending_mutex_);
  if (const EventFd* trigger = v.trigger.load(std::memory_order_relaxed)) {
    trigger->Signal();
  } else {
    v.pending = true;
  }
}

bool MsixTable::WantsMasked(std::size_t index) const {
  return !enabled_.load(std::memory_order_relaxed) || function_masked_ ||
         (entries_[index].vector_ctl & kVectorMasked) != 0;
}

bool MsixTable::EnsureRoute(std::size_t index) {
  Vector& v = vectors_[index];
  if (v.route != nullptr) return true;
  auto route = interrupts_.NewMsi();
  if (!route) return false;
  v.route = std::move(*route);
  const MutexLock lock(pending_mutex_);
  v.trigger.store(&v.route->trigger(), std::memory_order_release);
  if (v.pending) v.route->trigger().Signal();  // collects: a new route is masked
  v.pending = false;
  return true;
}

Result<void> MsixTable::Open(std::size_t index) {
  Vector& v = vectors_[index];
  if (!EnsureRoute(index)) return Err(Errc::kExhausted, "MSI-X route");
  const MsixTableEntry& entry = entries_[index];
  const bus::MsiMessage message{entry.msg_addr_lo | std::uint64_t{entry.msg_addr_hi} << 32,
                                entry.msg_data};
  if (!v.has_message || message != v.message) {
    TRY(v.route->Set(message));
    v.message = message;
    v.has_message = true;
  }
  if (v.masked) {
    TRY(v.route->Mask(false));
    v.masked = false;
    if (observer_ != nullptr)
      observer_->OnVectorOpened(static_cast<std::uint16_t>(index), v.route->trigger());
  }
  return {};
}

void MsixTable::Apply(std::size_t index) {
  Vector& v = vectors_[index];
  Result<void> done;
  if (!WantsMasked(index)) {
    done = Open(index);
  } else if (!v.masked) {
    done = v.route->Mask(true);
    if (done) v.masked = true;
  }
  if (!done) {
    route_errors_.Add();
    GUEST_LOG("pci", "MSI-X vector {}: {} failed (errno {})", index, done.error().op,
              done.error().sys_errno);
  }
}

void MsixTable::DropPending() {
  const MutexLock lock(pending_mutex_);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    vectors_[i].pending = false;
    if (vectors_[i].route != nullptr) vectors_[i].route->trigger().Consume();
  }
}

void MsixTable::SetControl(bool enable, bool function_masked) {
  const bool was_enabled = enabled_.load(std::memory_order_relaxed);
  if (enable == was_enabled && function_masked == function_masked_) return;
  // A trigger that raced with the last disable may have left its signal: nothing from before
  // survives an enable.
  if (enable && !was_enabled) DropPending();
  function_masked_ = function_masked;
  enabled_.store(enable, std::memory_order_release);
  for (std::size_t i = 0; i < entries_.size(); ++i) Apply(i);
  if (observer_ != nullptr && enable != was_enabled) {
    enable ? observer_->OnEnabled() : observer_->OnDisabled();
  }
  if (!enable && was_enabled) DropPending();
}

void MsixTable::SetEntry(std::uint16_t vector, const MsixTableEntry& entry) {
  CHECK(vector < entries_.size());
  entries_[vector] = {entry.msg_addr_lo & kMsixAddressLowMask, entry.msg_addr_hi, entry.msg_data,
                      entry.vector_ctl & kVectorMasked};
  Apply(vector);
}

void MsixTable::Reset() {
  SetControl(false, false);
  std::ranges::fill(entries_, MsixTableEntry{});
}

bool MsixTable::Pending(std::size_t index) const {
  const Vector& v = vectors_[index];
  if (!enabled_.load(std::memory_order_relaxed)) return false;
  if (v.route != nullptr) return v.masked && v.route->trigger().Pending();
  const MutexLock lock(pending_mutex_);
  return v.pending;
}

std::uint64_t MsixTable::PbaWord(std::size_t index) const {
  std::uint64_t word = 0;
  const std::size_t end = std::min<std::size_t>(entries_.size(), (index + 1) * 64);
  for (std::size_t i = index * 64; i < end; ++i) {
    if (Pending(i)) word |= std::uint64_t{1} << (i % 64);
  }
  return word;
}

std::uint32_t MsixTable::GetDword(std::uint64_t offset) const {
  const MsixTableEntry& entry = entries_[offset / kMsixEntrySize];
  switch (offset % kMsixEntrySize) {
    case kMsixAddressLow:
      return entry.msg_addr_lo;
    case kMsixAddressHigh:
      return entry.msg_addr_hi;
    case kMsixData:
      return entry.msg_data;
    default:
      return entry.vector_ctl;
  }
}

void MsixTable::SetDword(std::size_t index, std::uint32_t field, std::uint32_t value) {
  MsixTableEntry& entry = entries_[index];
  switch (field) {
    case kMsixAddressLow:
      entry.msg_addr_lo = value & kMsixAddressLowMask;
      return;
    case kMsixAddressHigh:
      entry.msg_addr_hi = value;
      return;
    case kMsixData:
      entry.msg_data = value;
      return;
    default:
      entry.vector_ctl = value & kVectorMasked;
      return;
  }
}

void MsixTable::TableHandler::Read(std::uint64_t offset, std::span<std::byte> data) {
  std::uint64_t value = 0;
  if (Accepts(offset, data.size(), TableBytes(owner_.size()))) {
    value = owner_.GetDword(offset);
    if (data.size() == 8) value |= std::uint64_t{owner_.GetDword(offset + 4)} << 32;
  } else {
    owner_.refused_.Add();
  }
  StoreLittle(value, data);
}

void MsixTable::TableHandler::Write(std::uint64_t offset, std::span<const std::byte> data) {
  if (!Accepts(offset, data.size(), TableBytes(owner_.size()))) {
    owner_.refused_.Add();
    return;
  }
  const std::uint64_t value = LoadLittle(data);
  const std::size_t index = offset / kMsixEntrySize;
  const auto field = static_cast<std::uint32_t>(offset % kMsixEntrySize);
  owner_.SetDword(index, field, static_cast<std::uint32_t>(value));
  if (data.size() == 8) owner_.SetDword(index, field + 4, static_cast<std::uint32_t>(value >> 32));
  owner_.Apply(index);
}

void MsixTable::PbaHandler::Read(std::uint64_t offset, std::span<std::byte> data) {
  std::uint64_t value = 0;
  if (Accepts(offset, data.size(), PbaBytes(owner_.size()))) {
    value = owner_.PbaWord(offset / 8) >> (8 * (offset % 8));
  } else {
    owner_.refused_.Add();
  }
  StoreLittle(value, data);
}

// PCI 3.0 6.8.2.10: software should never write pending bits; the result is undefined.
void MsixTable::PbaHandler::Write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) {
  owner_.refused_.Add();
}

MsixState MsixTable::Save() const {
  MsixState state;
  state.table_entries = entries_;
  state.enabled = enabled();
  state.masked = function_masked_;
  state.pba_entries.resize((entries_.size() + 63) / 64);
  for (std::size_t i = 0; i < state.pba_entries.size(); ++i) state.pba_entries[i] = PbaWord(i);
  return state;
}

Result<void> MsixTable::Restore(const MsixState& state) {
  const std::size_t count = entries_.size();
  if (state.table_entries.size() != count || state.pba_entries.size() != (count + 63) / 64) {
    return Err(Errc::kBadFormat, "MSI-X state size");
  }
  for (const MsixTableEntry& entry : state.table_entries) {
    if ((entry.msg_addr_lo & ~kMsixAddressLowMask) != 0 ||
        (entry.vector_ctl & ~kVectorMasked) != 0) {
      return Err(Errc::kBadFormat, "MSI-X state entry");
    }
  }
  const std::uint64_t last_valid =
      count % 64 == 0 ? ~std::uint64_t{0} : (std::uint64_t{1} << (count % 64)) - 1;
  const bool any_pending =
      std::ranges::any_of(state.pba_entries, [](std::uint64_t word) { return word != 0; });
  if ((state.pba_entries.back() & ~last_valid) != 0 || (any_pending && !state.enabled)) {
    return Err(Errc::kBadFormat, "MSI-X state pending bits");
  }
  Reset();
  entries_ = state.table_entries;
  function_masked_ = state.masked;
  enabled_.store(state.enabled, std::memory_order_release);
  for (std::size_t i = 0; i < count; ++i) {
    if ((state.pba_entries[i / 64] >> (i % 64) & 1) != 0) Trigger(static_cast<std::uint16_t>(i));
    Apply(i);
  }
  if (observer_ != nullptr && state.enabled) observer_->OnEnabled();
  return {};
}

void MsixTable::ReportCounters(CounterSink& sink) const {
  sink.Add("msix_triggers", triggers_.Get());
  sink.Add("msix_refused_accesses", refused_.Get());
  sink.Add("msix_route_errors", route_errors_.Get());
}

}  // namespace postern::pci
