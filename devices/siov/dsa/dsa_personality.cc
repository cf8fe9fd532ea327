#include "devices/siov/dsa/dsa_personality.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "src/base/check.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;

siov::VdevLayout LayoutOf(const DsaShape& shape) {
  siov::VdevLayout layout;
  layout.identity = {.vendor = regs::kVendor,
                     .device = regs::kDevice,
                     .class_code = regs::kClass,
                     .subsystem_vendor = regs::kVendor};
  layout.register_bytes = regs::kRegisterBytes;
  layout.msix_table_offset = regs::kMsixTable;
  layout.msix_pba_offset = regs::kMsixPba;
  layout.vectors = shape.vectors();
  layout.queues = shape.wqs;
  // 9.2.31: unlimited and limited MSI-X portal, then those of an interrupt message storage, which
  // is not there. DPDK submits through the first, Linux through the second.
  layout.pages_per_queue = 4;
  layout.portal_pages = 0x3;
  return layout;
}

// By code, as the metrics name them.
constexpr std::array<std::string_view, 15> kCommandNames{
    "none",         "enable_device", "disable_device", "drain_all",          "abort_all",
    "reset_device", "enable_wq",     "disable_wq",     "drain_wq",           "abort_wq",
    "reset_wq",     "drain_pasid",   "abort_pasid",    "request_int_handle", "release_int_handle"};

}  // namespace

Result<std::unique_ptr<DsaPersonality>> DsaPersonality::Create(const DsaOptions& options,
                                                               const siov::BackendCaps& caps) {
  const DsaShape shape = TRY(ShapeOf(options, caps));
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the constructor is private
  return std::unique_ptr<DsaPersonality>(new DsaPersonality(shape));
}

DsaPersonality::DsaPersonality(const DsaShape& shape)
    : shape_(shape), table_(shape_), layout_(LayoutOf(shape_)), handles_(shape_.vectors()) {}

std::string DsaPersonality::name() const {
  return shape_.configurable ? "dsa-cfg" : "dsa-ro";
}

void DsaPersonality::OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
                             std::uint64_t written) {
  if (row.offset >= regs::kWqcfg) {
    OnQueueWrite(row, old);
    return;
  }
  const DsaRegisters device = registers();
  switch (row.offset) {
    case regs::kCmd:
      OnCommand(static_cast<std::uint32_t>(written));
      return;
    case regs::kIntcause:
      OnCauseWritten(static_cast<std::uint32_t>(now));
      return;
    case regs::kSwerror:
      // 9.2.15: without Valid the other fields are undefined; here they are 0 then.
      if ((now & regs::SWERROR0::Valid::kMask) != 0) return;
      device.file().Set(regs::kSwerror, now & regs::SWERROR0::Overflow::kMask);
      for (std::uint32_t word = 8; word < 32; word += 8)
        device.file().Set(regs::kSwerror + word, 0);
      return;
    default:
      // GENCFG, EVLCFG, GRPCFG. 9.2, table 9-4: read-only while the device is not disabled.
      if (device.device_state() == regs::DeviceState::kDisabled) return;
      device.file().Set(row.offset, old);
      locked_writes_.Add();
  }
}

// 9.2.24, table 9-7: the size is the device's, everything else the queue's. Linux writes all of it
// again before it enables a queue: what is locked is ignored without a word.
void DsaPersonality::OnQueueWrite(const bus::RegisterRow& row, std::uint64_t old) {
  DsaRegisters device = registers();
  const std::uint32_t from = row.offset - regs::kWqcfg;
  const std::uint32_t queue = from / shape_.wqcfg_bytes();
  const bool locked = from % shape_.wqcfg_bytes() == regs::kWqSize
                          ? device.device_state() != regs::DeviceState::kDisabled
                          : device.queue_state(queue) != regs::QueueState::kDisabled;
  if (!locked) return;
  device.file().Set(row.offset, old);
  locked_writes_.Add();
}

// WQCFG's status dword is the only row that is read through.
std::uint64_t DsaPersonality::OnRead(const bus::RegisterRow& row, std::uint64_t stored) {
  regs::WQSTATUS status{{static_cast<std::uint32_t>(stored)}};
  if (status.Get<regs::WQSTATUS::State>() == regs::QueueState::kDisabled) return stored;
  const std::uint32_t queue = (row.offset - regs::kWqcfg) / shape_.wqcfg_bytes();
  status.Set<regs::WQSTATUS::Occupancy>(
      std::min<std::uint64_t>(port_->backend().Occupancy(queue), 0xffff));
  return status.raw;
}

void DsaPersonality::OnReset() {
  ++epoch_;
  handles_.assign(handles_.size(), std::nullopt);
  handles_void_ = false;
  held_causes_ = 0;
  // No reset of ours brings the host's side back.
  if (lost_) registers().SetDeviceState(regs::DeviceState::kHalted, regs::ResetType::kCold);
}

void DsaPersonality::ReportCounters(CounterSink& sink) const {
  for (std::size_t code = 0; code < commands_.size(); ++code) {
    const std::uint64_t count = commands_[code].Get();
    if (code != 0 && code < kCommandNames.size()) {
      sink.Add(fmt::format("command_{}", kCommandNames[code]), count);
    } else if (count != 0) {
      sink.Add(fmt::format("command_code_{}", code), count);
    }
  }
  const auto by_code = [&sink](std::string_view what, const std::array<Counter, 256>& counters) {
    for (std::size_t code = 0; code < counters.size(); ++code) {
      if (const std::uint64_t count = counters[code].Get(); count != 0)
        sink.Add(fmt::format("{}_{:02x}", what, code), count);
    }
  };
  by_code("command_error", command_errors_);
  by_code("software_error", software_errors_);
  sink.Add("software_error_overflows", error_overflows_.Get());
  sink.Add("refused_full", refused_full_.Get());
  sink.Add("refused_disabled", refused_disabled_.Get());
  sink.Add("locked_writes", locked_writes_.Get());
  sink.Add("halts", halts_.Get());
}

}  // namespace postern::dsa
