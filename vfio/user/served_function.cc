#include "vfio/user/served_function.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "devices/pci/pci_regs.h"
#include "src/base/log.h"
#include "vfio/user/session.h"

namespace postern::vfio {
namespace {

// PCI 3.0 6.8.2.3: bits 15 and 14 of message control, in its upper byte.
constexpr std::byte kControlBits{0xc0};
constexpr std::byte kControlEnabled{0x80};
// PCI 3.0 6.7: the chain cannot be longer than what is behind the header.
constexpr int kMostCapabilities = 48;
constexpr std::uint32_t kCapabilities = 0x34;

// The next naturally aligned piece of an access.
std::size_t Piece(std::uint64_t offset, std::size_t left, std::size_t most) {
  std::size_t piece = most;
  while (piece > left || offset % piece != 0) piece /= 2;
  return piece;
}

bool SameFile(int a, int b) {
  struct stat first {};
  struct stat second {};
  return fstat(a, &first) == 0 && fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

}  // namespace

Outcome<std::unique_ptr<ServedFunction>> ServedFunction::Create(const Make& make) {
  std::unique_ptr<ServedFunction> served(new ServedFunction());
  Result<std::unique_ptr<ClientMemory>> memory = ClientMemory::Create(kServedMaxDmaMaps);
  if (!memory) return HostFailure("memory of a client", memory.error());
  served->memory_ = std::move(*memory);
  Outcome<ServedParts> parts = make(served->interrupts_, served->memory_->map());
  if (!parts) return tl::unexpected(parts.error());
  served->parts_ = std::move(*parts);
  const MutexLock lock(served->function().lock());
  Result<void> done = served->FindMsix();
  if (done) done = served->PlanRegions();
  if (!done) return HostFailure("cannot be served by vfio-user", done.error());
  served->Arm();
  return served;
}

ServedFunction::~ServedFunction() {
  if (parts_.function == nullptr) return;
  const MutexLock lock(function().lock());
  // Its threads are about to be waited for.
  interrupts_.Detach();
  if (memory_->lost() != 0) {
    LOG_WARN("vfio-user", "{}: the client had shortened {} of its memory files: zeros were used",
             function().name(), memory_->lost());
  }
}

Result<void> ServedFunction::FindMsix() {
  if (function().msix() == nullptr) return {};
  const pci::ConfigSpace& config = function().config();
  std::uint32_t at = config.Get<std::uint8_t>(kCapabilities);
  for (int n = 0; n < kMostCapabilities && at != 0; ++n) {
    if (config.Get<std::uint8_t>(at) == pci::kCapMsix) {
      const auto place = config.Get<std::uint32_t>(at + pci::kMsixTable);
      const std::uint64_t begin = place & ~std::uint32_t{7};
      msix_ = {at, place & 7, begin, begin + pci::MsixTable::TableBytes(function().msix()->size())};
      return {};
    }
    at = config.Get<std::uint8_t>(at + 1);
  }
  return Err(Errc::kUnsupported, "MSI-X without its capability");
}

Result<void> ServedFunction::PlanRegions() {
  const auto bars = function().bars();
  for (std::size_t i = 0; i < bars.size() && i < kConfigRegion; ++i) {
    if (bars[i]) regions_[i] = TRY(PlanBar(*bars[i]));
  }
  ServedRegion& config = regions_[kConfigRegion];
  config.info.size = function().config().Save().registers.size() * sizeof(std::uint32_t);
  config.info.readable = config.info.writable = true;
  return {};
}

Result<ServedRegion> ServedFunction::PlanBar(const pci::Bar& bar) const {
  ServedRegion region{.info = {.size = bar.size(), .readable = true, .writable = true}};
  for (const pci::Tile& tile : bar.tiles()) {
    const auto* pages = std::get_if<pci::Pages>(&tile);
    // One descriptor and one offset stand for the whole region in the protocol.
    if (pages == nullptr || pages->host.fd < 0 || pages->host.offset < pages->offset) continue;
    const std::uint64_t offset = pages->host.offset - pages->offset;
    if (region.fd < 0) {
      region.fd = pages->host.fd;
      region.offset = offset;
    } else if (offset != region.offset || !SameFile(region.fd, pages->host.fd)) {
      return Err(Errc::kUnsupported, "pages of a BAR in several files");
    }
    const MapArea area{pages->offset, pages->host.length};
    std::vector<MapArea>& areas = region.info.areas;
    if (!areas.empty() && areas.back().offset + areas.back().length == area.offset) {
      areas.back().length += area.length;
    } else {
      areas.push_back(area);
    }
  }
  if (region.info.areas.size() > kUserMaxAreas)
    return Err(Errc::kUnsupported, "number of areas of a BAR");
  return region;
}

// MSI-X on, every vector unmasked, its number as its message.
void ServedFunction::Arm() {
  shadow_control_ = std::byte{0};
  if (msix_.capability == 0) return;
  pci::MsixTable& table = *function().msix();
  for (std::uint16_t v = 0; v < table.size(); ++v) {
    table.SetEntry(v, {.msg_addr_lo = 0, .msg_addr_hi = 0, .msg_data = v, .vector_ctl = 0});
  }
  const std::array<std::byte, 2> control{std::byte{0}, kControlEnabled};
  function().WriteConfig(msix_.capability + pci::kMsixControl, control);
}

std::string ServedFunction::Describe() const {
  const std::size_t most = memory_->most_mappings();
  return fmt::format("at most {} MiB in {} mapping{}", memory_->most_bytes() >> 20, most,
                     most == 1 ? "" : "s");
}

ServedRegion ServedFunction::Region(std::uint32_t index) const {
  return regions_[index];
}

IrqInfo ServedFunction::Irq(std::uint32_t index) const {
  if (index != kMsixIrq || msix_.capability == 0) return {};
  return {.count = parts_.function->msix()->size(), .eventfd = true};
}

// --- regions ---

void ServedFunction::ReadConfig(std::uint32_t offset, std::span<std::byte> data) {
  function().ReadConfig(offset, data);
  const std::uint32_t control = msix_.capability + pci::kMsixControl + 1;
  if (msix_.capability != 0 && offset <= control && control - offset < data.size()) {
    std::byte& byte = data[control - offset];
    byte = (byte & ~kControlBits) | shadow_control_;
  }
}

void ServedFunction::WriteConfig(std::uint32_t offset, std::span<const std::byte> data) {
  std::array<std::byte, 4> bytes{};
  std::ranges::copy(data, bytes.begin());
  const std::uint32_t control = msix_.capability + pci::kMsixControl + 1;
  if (msix_.capability != 0 && offset <= control && control - offset < data.size()) {
    std::byte& byte = bytes[control - offset];
    shadow_control_ = byte & kControlBits;
    byte = (byte & ~kControlBits) | kControlEnabled;
  }
  // It may be a reset, which drops what is pending.
  interrupts_.Detach();
  function().WriteConfig(offset, std::span(bytes).first(data.size()));
  if (msix_.capability != 0 && !function().msix()->enabled()) {
    interrupts_.Forget();
    Arm();
  }
  interrupts_.Attach();
}

bool ServedFunction::InTable(std::uint32_t bar, std::uint64_t offset) const {
  return msix_.capability != 0 && bar == msix_.bar && offset >= msix_.begin && offset < msix_.end;
}

Unexpected ServedFunction::RefusePages(std::uint32_t bar) {
  page_accesses_.Add();
  GUEST_LOG("vfio-user", "{}: the client reaches mapped pages of BAR {} by message: refused",
            function().name(), bar);
  return SysError("access to mapped pages by message", EIO);
}

Result<void> ServedFunction::ReadBar(std::uint32_t bar, std::uint64_t offset,
                                     std::span<std::byte> data) {
  for (std::size_t done = 0; done < data.size();) {
    const std::uint64_t at = offset + done;
    const auto piece = data.subspan(done, Piece(at, data.size() - done, 8));
    if (InTable(bar, at)) {
      table_accesses_.Add();
      std::ranges::fill(piece, std::byte{0xff});
    } else if (!function().bars()[bar]->Read(at, piece)) {
      return RefusePages(bar);
    }
    done += piece.size();
  }
  return {};
}

Result<void> ServedFunction::WriteBar(std::uint32_t bar, std::uint64_t offset,
                                      std::span<const std::byte> data) {
  if (data.size() == 64 && offset % 64 == 0 && parts_.hooks.store_64 &&
      parts_.hooks.store_64(bar, offset, data.first<64>())) {
    stores_64_.Add();
    return {};
  }
  for (std::size_t done = 0; done < data.size();) {
    const std::uint64_t at = offset + done;
    const auto piece = data.subspan(done, Piece(at, data.size() - done, 8));
    if (InTable(bar, at)) {
      table_accesses_.Add();
    } else if (!function().bars()[bar]->Write(at, piece)) {
      return RefusePages(bar);
    }
    done += piece.size();
  }
  return {};
}

Result<void> ServedFunction::ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) {
  region_reads_.Add();
  const MutexLock lock(function().lock());
  if (region != kConfigRegion) return ReadBar(region, offset, data);
  for (std::size_t done = 0; done < data.size();) {
    const auto at = static_cast<std::uint32_t>(offset + done);
    const auto piece = data.subspan(done, Piece(at, data.size() - done, 4));
    ReadConfig(at, piece);
    done += piece.size();
  }
  return {};
}

Result<void> ServedFunction::WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) {
  region_writes_.Add();
  const MutexLock lock(function().lock());
  if (region != kConfigRegion) return WriteBar(region, offset, data);
  for (std::size_t done = 0; done < data.size();) {
    const auto at = static_cast<std::uint32_t>(offset + done);
    const auto piece = data.subspan(done, Piece(at, data.size() - done, 4));
    WriteConfig(at, piece);
    done += piece.size();
  }
  return {};
}

// --- interrupts ---

Result<void> ServedFunction::SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::vector<Fd> events) {
  if (irq != kMsixIrq) return Err(Errc::kUnsupported, "interrupt other than MSI-X");
  for (const Fd& event : events) TRY(ClientInterrupts::Check(event));
  const MutexLock lock(function().lock());
  for (std::size_t i = 0; i < events.size(); ++i) {
    TRY(interrupts_.Assign(static_cast<std::uint16_t>(start + i), std::move(events[i])));
  }
  return {};
}

void ServedFunction::ClearVectors(std::uint32_t irq, std::uint32_t start, std::uint32_t count) {
  if (irq != kMsixIrq) return;
  const MutexLock lock(function().lock());
  for (std::uint32_t i = 0; i < count; ++i)
    interrupts_.Clear(static_cast<std::uint16_t>(start + i));
}

void ServedFunction::TriggerVectors(std::uint32_t irq, std::uint32_t start, std::uint32_t count) {
  if (irq != kMsixIrq) return;
  for (std::uint32_t i = 0; i < count; ++i)
    function().msix()->Trigger(static_cast<std::uint16_t>(start + i));
}

// --- memory ---

Result<void> ServedFunction::MapDma(const UserDmaMap& map, Fd file) {
  return memory_->Map(map, file);
}

Result<void> ServedFunction::UnmapDma(const UserDmaUnmap& unmap) {
  const MutexLock lock(function().lock());
  // Its threads are waited for.
  interrupts_.Detach();
  if (parts_.hooks.stop_dma) parts_.hooks.stop_dma();
  const Result<void> done = memory_->Unmap(unmap);
  if (parts_.hooks.resume_dma) parts_.hooks.resume_dma();
  interrupts_.Attach();
  return done;
}

void ServedFunction::Reset() {
  const MutexLock lock(function().lock());
  interrupts_.Detach();
  function().Reset();
  interrupts_.Forget();
  Arm();
  interrupts_.Attach();
}

void ServedFunction::ReportCounters(CounterSink& sink) const {
  sink.Add("region_reads", region_reads_.Get());
  sink.Add("region_writes", region_writes_.Get());
  sink.Add("msix_table_accesses", table_accesses_.Get());
  sink.Add("mapped_page_accesses", page_accesses_.Get());
  sink.Add("stores_64", stores_64_.Get());
  memory_->ReportCounters(sink);
  parts_.function->ReportCounters(sink);
}

}  // namespace postern::vfio
