#include "devices/pci/function.h"

#include <utility>
#include <vector>

#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::pci {
namespace {

constexpr std::uint64_t kMinRom = 2048;  // PCI 3.0 6.2.5.2: address bits 31:11
constexpr std::uint64_t kMaxRom = 16 << 20;

constexpr std::uint32_t BarRegister(std::size_t index) {
  return index == kRomIndex ? kRomBase : kBar0 + 4 * static_cast<std::uint32_t>(index);
}

constexpr bool Touches(std::uint32_t offset, std::size_t width, std::uint32_t begin,
                       std::uint32_t end) {
  return offset < end && offset + width > begin;
}

std::uint32_t TypeBits(BarKind kind) {
  switch (kind) {
    case BarKind::kMem32:
      return 0;
    case BarKind::kMem32Prefetchable:
      return kBarPrefetchable;
    case BarKind::kMem64:
      return kBarMem64;
    case BarKind::kMem64Prefetchable:
      return kBarMem64 | kBarPrefetchable;
    case BarKind::kIo:
      return kBarIo;
  }
  return 0;
}

}  // namespace

PciFunction::~PciFunction() {
  // Handlers of a derived class are gone by now: a BAR still decoded would call into them.
  CHECK(space_ == nullptr);
}

std::uint64_t PciFunction::BarAddress(std::size_t index) const {
  if (index >= bars_.size() || !bars_[index]) return 0;
  const Bar& bar = *bars_[index];
  std::uint64_t address = config_.Get<std::uint32_t>(BarRegister(index));
  if (Is64Bit(bar.kind()))
    address |= std::uint64_t{config_.Get<std::uint32_t>(BarRegister(index + 1))} << 32;
  return address & ~(bar.size() - 1);
}

Result<void> PciFunction::AddBar(std::size_t index, Bar bar) {
  const bool wide = Is64Bit(bar.kind());
  if (index + (wide ? 1 : 0) >= kBarCount || bars_[index])
    return Err(Errc::kInvalidArgument, "BAR index");
  if (wide && bars_[index + 1]) return Err(Errc::kInvalidArgument, "BAR index of the upper half");
  if (index > 0 && bars_[index - 1] && Is64Bit(bars_[index - 1]->kind())) {
    return Err(Errc::kInvalidArgument, "BAR index is the upper half of another");
  }
  // PCI 3.0 6.2.5.1: the bits below the size are hard-wired to 0, so that sizing by writing ones
  // needs no case of its own.
  const std::uint64_t writable = ~(bar.size() - 1);
  const std::uint32_t type = TypeBits(bar.kind());
  config_.Set<std::uint32_t>(BarRegister(index), type);
  config_.Allow<std::uint32_t>(BarRegister(index), static_cast<std::uint32_t>(writable));
  if (wide)
    config_.Allow<std::uint32_t>(BarRegister(index + 1),
                                 static_cast<std::uint32_t>(writable >> 32));
  COMMAND decode;
  if (bar.kind() == BarKind::kIo) {
    decode.Set<COMMAND::IoSpace>(true);
  } else {
    decode.Set<COMMAND::MemorySpace>(true);
  }
  config_.AllowAlso<std::uint16_t>(kCommand, decode.raw);
  bars_[index] = std::move(bar);
  return {};
}

Result<void> PciFunction::AddRom(Bar rom) {
  if (bars_[kRomIndex] || rom.kind() != BarKind::kMem32 || rom.size() < kMinRom ||
      rom.size() > kMaxRom) {
    return Err(Errc::kInvalidArgument, "expansion ROM");
  }
  config_.Set<std::uint32_t>(kRomBase, 0);
  config_.Allow<std::uint32_t>(kRomBase,
                               static_cast<std::uint32_t>(~(rom.size() - 1)) | kRomEnable);
  COMMAND decode;
  decode.Set<COMMAND::MemorySpace>(true);
  config_.AllowAlso<std::uint16_t>(kCommand, decode.raw);
  bars_[kRomIndex] = std::move(rom);
  return {};
}

Result<void> PciFunction::AddMsi(std::unique_ptr<MsiCapability> msi, std::uint32_t at) {
  if (msi_ != nullptr) return Err(Errc::kInvalidArgument, "MSI capability");
  if (at == 0) {
    const std::vector<std::uint8_t> body(msi->size() - 2);
    at = TRY(config_.AddCapability(kCapMsi, body));
  }
  msi->Place(config_, at);
  msi_ = std::move(msi);
  return {};
}

Result<std::uint32_t> PciFunction::PlaceMsix(std::uint16_t vectors, std::uint32_t at) {
  if (at == 0) {
    const std::array<std::uint8_t, kMsixCapSize - 2> body{};
    at = TRY(config_.AddCapability(kCapMsix, body));
  }
  MSIX_CONTROL control;
  control.Set<MSIX_CONTROL::TableSize>(static_cast<std::uint16_t>(vectors - 1));
  MSIX_CONTROL writable;
  writable.Set<MSIX_CONTROL::Enable>(true);
  writable.Set<MSIX_CONTROL::FunctionMask>(true);
  config_.Set<std::uint16_t>(at + kMsixControl, control.raw);
  config_.Allow<std::uint16_t>(at + kMsixControl, writable.raw);
  return at;
}

bool PciFunction::Holds(std::uint8_t bar, std::uint32_t offset, std::uint64_t bytes) const {
  if (bar >= kBarCount || !bars_[bar] || bars_[bar]->kind() == BarKind::kIo) return false;
  const std::uint64_t size = bars_[bar]->size();
  // PCI 3.0 6.8.2.4: the low three bits of each offset register name the BAR.
  return offset % 8 == 0 && offset <= size && bytes <= size - offset;
}

Result<void> PciFunction::AddMsix(std::unique_ptr<MsixTable> table, const MsixPlace& place,
                                  std::uint32_t at) {
  const std::uint16_t vectors = table->size();
  if (msix_ != nullptr ||
      !Holds(place.table_bar, place.table_offset, MsixTable::TableBytes(vectors)) ||
      !Holds(place.pba_bar, place.pba_offset, MsixTable::PbaBytes(vectors))) {
    return Err(Errc::kInvalidArgument, "MSI-X table outside its BAR");
  }
  at = TRY(PlaceMsix(vectors, at));
  config_.Set<std::uint32_t>(at + kMsixTable, place.table_offset | place.table_bar);
  config_.Set<std::uint32_t>(at + kMsixPba, place.pba_offset | place.pba_bar);
  msix_capability_ = at;
  msix_ = std::move(table);
  return {};
}

void PciFunction::Attach(BarSpace& space, Bdf where, std::optional<IntxInputs> intx) {
  CHECK(space_ == nullptr);
  space_ = &space;
  bdf_ = where;
  OnAttach(where, intx);
  UpdateDecoding();
}

void PciFunction::Detach() {
  for (std::size_t i = 0; i < bars_.size(); ++i) Unmap(i);
  if (std::exchange(decoding_, false)) OnMemoryDecode(false);
  if (std::exchange(space_, nullptr) != nullptr) OnDetach();
}

void PciFunction::PlaceBar(std::size_t index, std::uint64_t address) {
  CHECK(index < bars_.size() && bars_[index] && address % bars_[index]->size() == 0);
  const BarKind kind = bars_[index]->kind();
  config_.Set<std::uint32_t>(BarRegister(index),
                             static_cast<std::uint32_t>(address) | TypeBits(kind));
  if (Is64Bit(kind))
    config_.Set<std::uint32_t>(BarRegister(index + 1), static_cast<std::uint32_t>(address >> 32));
  UpdateDecoding();
}

Result<void> PciFunction::TrapBarPages(std::size_t bar, std::size_t index, const Trapped& tile) {
  if (bar >= bars_.size() || !bars_[bar]) return Err(Errc::kInvalidArgument, "BAR index");
  return bars_[bar]->TrapPages(index, tile);
}

void PciFunction::NoteWithoutPorts() {
  without_ports_.Add();
  LOG_WARN("pci", "{} {}: no I/O ports are left for it: what needs them does not work",
           ToString(bdf_), name_);
}

void PciFunction::BlockDecoding(bool blocked) {
  if (std::exchange(blocked_, blocked) != blocked) UpdateDecoding();
}

void PciFunction::RefuseDecoding() {
  decode_refused_ = true;
  decoding_ = false;  // asked again at the next write
}

void PciFunction::Unmap(std::size_t index) {
  if (!bars_[index] || !bars_[index]->mapped()) return;
  OnBarUnmapping(index);
  bars_[index]->Unmap();
}

void PciFunction::ReadConfig(std::uint32_t offset, std::span<std::byte> data) {
  if (msi_ != nullptr && Touches(offset, data.size(), msi_->at(), msi_->at() + msi_->size()))
    msi_->RefreshPending(config_);
  if (!config_.Read(offset, data)) {
    config_refused_.Add();
    return;
  }
  config_reads_.Add();
  OnConfigRead(offset, data);
}

void PciFunction::WriteConfig(std::uint32_t offset, std::span<const std::byte> data) {
  if (!ConfigSpace::Accepts(offset, data.size())) {
    config_refused_.Add();
    return;
  }
  config_writes_.Add();
  OnConfigWrite(offset, data);
  config_.Write(offset, data);
  if (Touches(offset, data.size(), kCommand, kCommand + 2) ||
      Touches(offset, data.size(), kBar0, kBarEnd) ||
      Touches(offset, data.size(), kRomBase, kRomBase + 4)) {
    UpdateDecoding();
  }
  if (msix_ != nullptr && Touches(offset, data.size(), msix_capability_ + kMsixControl,
                                  msix_capability_ + kMsixControl + 2)) {
    UpdateMsix();
  }
  if (msi_ != nullptr && Touches(offset, data.size(), msi_->at(), msi_->at() + msi_->size()))
    msi_->Update(config_);
  OnConfigWritten(offset, data);
}

std::optional<std::uint64_t> PciFunction::Wanted(std::size_t index) const {
  if (space_ == nullptr || blocked_ || !bars_[index]) return std::nullopt;
  const COMMAND command{{config_.Get<std::uint16_t>(kCommand)}};
  const bool decoded = bars_[index]->kind() == BarKind::kIo
                           ? command.Get<COMMAND::IoSpace>()
                           : command.Get<COMMAND::MemorySpace>() && !decode_refused_;
  const std::uint64_t address = BarAddress(index);
  if (!decoded || address == 0) return std::nullopt;
  const bool rom_off =
      index == kRomIndex && (config_.Get<std::uint32_t>(kRomBase) & kRomEnable) == 0;
  if (rom_off) return std::nullopt;
  return address;
}

void PciFunction::UpdateDecoding() {
  decode_refused_ = false;
  const bool decode = space_ != nullptr && !blocked_ &&
                      COMMAND{{config_.Get<std::uint16_t>(kCommand)}}.Get<COMMAND::MemorySpace>();
  // All that moves or goes is given up before anything is claimed: two BARs of one function may
  // swap places.
  for (std::size_t i = 0; i < bars_.size(); ++i) {
    if (bars_[i] && bars_[i]->mapped() && bars_[i]->mapped() != Wanted(i)) Unmap(i);
  }
  if (decode != decoding_) {
    decoding_ = decode;
    OnMemoryDecode(decode);
  }
  for (std::size_t i = 0; i < bars_.size(); ++i) {
    const std::optional<std::uint64_t> wanted = Wanted(i);
    if (!wanted || bars_[i]->mapped()) continue;
    Result<void> mapped = bars_[i]->Map(*space_, *wanted, lock_, ToString(bdf_) + " " + name_);
    if (mapped) {
      bar_maps_.Add();
      OnBarMapped(i);
    } else {
      bar_refusals_.Add();
      GUEST_LOG("pci", "{} {}: BAR {} stays unmapped at {:#x}: {}", ToString(bdf_), name_, i,
                *wanted, mapped.error().op);
    }
  }
}

void PciFunction::UpdateMsix() {
  const MSIX_CONTROL control{{config_.Get<std::uint16_t>(msix_capability_ + kMsixControl)}};
  msix_->SetControl(control.Get<MSIX_CONTROL::Enable>(), control.Get<MSIX_CONTROL::FunctionMask>());
}

void PciFunction::Reset() {
  OnResetBegin();
  // Interrupts first: what a device that is being stopped still signals is nobody's.
  if (msix_ != nullptr) msix_->Reset();
  if (msi_ != nullptr) msi_->Reset();
  config_.Update<std::uint16_t>(kCommand, 0);
  UpdateDecoding();
  OnReset();
  config_.Reset();
  OnResetDone();
}

FunctionState PciFunction::SaveFunction() {
  FunctionState state;
  state.config = config_.Save();
  if (msix_ != nullptr) state.msix = msix_->Save();
  if (msi_ != nullptr) state.msi = msi_->Save();
  return state;
}

Result<void> PciFunction::RestoreFunction(const FunctionState& state) {
  if (state.msix.has_value() != (msix_ != nullptr) || state.msi.has_value() != (msi_ != nullptr))
    return Err(Errc::kBadFormat, "PCI function state without its MSI or MSI-X");
  ConfigSpace config = config_;
  TRY(config.Restore(state.config));
  if (msix_ != nullptr) {
    const MSIX_CONTROL control{{config.Get<std::uint16_t>(msix_capability_ + kMsixControl)}};
    if (control.Get<MSIX_CONTROL::Enable>() != state.msix->enabled ||
        control.Get<MSIX_CONTROL::FunctionMask>() != state.msix->masked) {
      return Err(Errc::kBadFormat, "PCI function state disagrees on MSI-X control");
    }
  }
  if (msi_ != nullptr) TRY(msi_->Restore(config, *state.msi));
  if (msix_ != nullptr) TRY(msix_->Restore(*state.msix));
  config_ = std::move(config);
  UpdateDecoding();
  return {};
}

void PciFunction::ReportCounters(CounterSink& sink) const {
  sink.Add("pci_config_reads", config_reads_.Get());
  sink.Add("pci_config_writes", config_writes_.Get());
  sink.Add("pci_config_refused", config_refused_.Get());
  sink.Add("pci_bar_maps", bar_maps_.Get());
  sink.Add("pci_bar_refusals", bar_refusals_.Get());
  sink.Add("pci_without_ports", without_ports_.Get());
  if (msix_ != nullptr) msix_->ReportCounters(sink);
  if (msi_ != nullptr) msi_->ReportCounters(sink);
}

}  // namespace postern::pci
