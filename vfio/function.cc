#include "vfio/function.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/log.h"

namespace postern::vfio {
namespace {

// The kernel answers EAGAIN while another function of the device, or its own driver core, holds the
// device's lock: for moments.
constexpr int kResetTries = 10;

constexpr bool Touches(std::uint32_t offset, std::size_t width, std::uint32_t begin,
                       std::uint32_t end) {
  return offset < end && offset + width > begin;
}

bool Vanished(const Error& error) {
  return error.code == Errc::kSystem && error.sys_errno == ENODEV;
}

}  // namespace

void VfioFunction::Signal::OnEvent(int /*fd*/, std::uint32_t /*events*/) {
  if (event_.Consume() != 0) function_();
}

void VfioFunction::EndOfIntx::OnEvent(int /*fd*/, std::uint32_t /*events*/) {
  const MutexLock hold(owner_.lock());
  owner_.interrupts_->UnmaskIntx();
}

VfioFunction::~VfioFunction() {
  loop_.RunSync([this] {
    for (const auto* signal : {&error_signal_, &request_signal_, &loss_signal_}) {
      if (*signal != nullptr) loop_.Unwatch((*signal)->event().fd());
    }
    if (interrupts_ == nullptr) return;
    if (const EventFd* unmask = interrupts_->unmask_by_hand()) loop_.Unwatch(unmask->fd());
  });
  const MutexLock hold(lock());
  if (interrupts_ != nullptr) interrupts_.reset();
  if (loss_ == Loss::kVanished) return;
  if (error_signal_ != nullptr) (void)device_->DisableIrq(kErrorIrq);
  if (request_signal_ != nullptr) (void)device_->DisableIrq(kRequestIrq);
  // No DMA from here on, whatever closing the device does.
  config().Update<std::uint16_t>(pci::kCommand, 0);
  (void)PushCommand();
}

// --- config space ---

Result<void> VfioFunction::ReadDevice(std::uint32_t offset, std::span<std::byte> data) {
  config_reads_.Add();
  return device_->ReadRegion(kConfigRegion, offset, data);
}

Result<void> VfioFunction::WriteDevice(std::uint32_t offset, std::span<const std::byte> data) {
  config_writes_.Add();
  return device_->WriteRegion(kConfigRegion, offset, data);
}

void VfioFunction::OnConfigRead(std::uint32_t offset, std::span<std::byte> data) {
  if (lost()) {
    std::ranges::fill(data, std::byte{0xff});
    return;
  }
  if (offset >= plan_.emulated.size()) return;
  const std::span emulated = std::span(plan_.emulated).subspan(offset, data.size());
  if (std::ranges::all_of(emulated, [](std::uint8_t mask) { return mask == 0xff; })) return;
  std::array<std::byte, 8> device{};
  // Dwords: what registers of config space are made of.
  const std::uint64_t size = device_->info().regions[kConfigRegion].size;
  for (std::size_t done = 0; done < data.size() && offset + done < size; done += 4) {
    const std::size_t width = std::min<std::uint64_t>(data.size() - done, size - offset - done);
    const auto part = std::span(device).subspan(done, std::min<std::size_t>(width, 4));
    Result<void> read = ReadDevice(offset + static_cast<std::uint32_t>(done), part);
    if (read) continue;
    Note(read.error(), "read config space");
    std::ranges::fill(part, std::byte{0xff});
  }
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::byte mask{emulated[i]};
    data[i] = (device[i] & ~mask) | (data[i] & mask);
  }
  if (lost()) std::ranges::fill(data, std::byte{0xff});
}

void VfioFunction::OnConfigWrite(std::uint32_t offset, std::span<const std::byte> data) {
  if (lost()) return;
  if (AsksForReset(offset, data)) {
    FunctionLevelReset(offset, data);
    return;
  }
  BeforePowerWrite(offset, data);
  Result<void> done = Forward(offset, data, false);
  if (!done) Note(done.error(), "write config space");
  AfterPowerWrite(offset, data.size());
}

Result<void> VfioFunction::Forward(std::uint32_t offset, std::span<const std::byte> data,
                                   bool reset) {
  std::array<std::byte, 8> value{};
  std::array<bool, 8> wanted{};
  for (std::size_t i = 0; i < data.size() && offset + i < plan_.forwarded.size(); ++i) {
    const std::size_t at = offset + i;
    std::uint8_t mask = plan_.forwarded[at];
    if (reset && at == plan_.express_flr) mask |= pci::kExpressFlr >> 8;
    if (reset && at == plan_.af_flr) mask |= pci::kAfFlr;
    value[i] = data[i] & std::byte{mask};
    wanted[i] = mask != 0;
  }
  // Runs of bytes the device is to have, in naturally aligned accesses of at most a dword.
  for (std::size_t i = 0; i < data.size();) {
    if (!wanted[i]) {
      ++i;
      continue;
    }
    std::size_t width = 1;
    for (const std::size_t wider : {std::size_t{2}, std::size_t{4}}) {
      if ((offset + i) % wider != 0 || i + wider > data.size()) break;
      if (!std::all_of(&wanted[i], &wanted[i] + wider, [](bool w) { return w; })) break;
      width = wider;
    }
    TRY(WriteDevice(offset + static_cast<std::uint32_t>(i),
                    std::span<const std::byte>(value).subspan(i, width)));
    i += width;
  }
  return {};
}

void VfioFunction::OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) {
  if (lost()) return;
  if (Touches(offset, data.size(), pci::kCommand, pci::kCommand + 2)) {
    if (Result<void> pushed = PushCommand(); !pushed) Note(pushed.error(), "write COMMAND");
  }
  // The device's interrupts changed already; its own control word follows, for devices that look at
  // it (those behind a socket).
  if (plan_.msix) PushControl(plan_.msix->at + pci::kMsixControl, offset, data.size());
  if (plan_.msi) PushControl(plan_.msi->at + pci::kMsiControl, offset, data.size());
}

void VfioFunction::PushControl(std::uint32_t at, std::uint32_t offset, std::size_t width) {
  if (!Touches(offset, width, at, at + 2)) return;
  const auto control = config().Get<std::uint16_t>(at);
  std::array<std::byte, 2> bytes{};
  std::memcpy(bytes.data(), &control, sizeof(control));
  if (Result<void> written = WriteDevice(at, bytes); !written)
    Note(written.error(), "write interrupt control");
}

Result<void> VfioFunction::PushCommand() {
  const auto command = config().Get<std::uint16_t>(pci::kCommand);
  if (command_ == command) return {};
  command_.reset();  // not known, until it was told
  std::array<std::byte, 2> bytes{};
  std::memcpy(bytes.data(), &command, sizeof(command));
  TRY(WriteDevice(pci::kCommand, bytes));
  command_ = command;
  return {};
}

void VfioFunction::OnMemoryDecode(bool on) {
  if (lost()) return;
  Result<void> pushed = PushCommand();
  if (pushed) return;
  Note(pushed.error(), "write COMMAND");
  // Pages of a device that does not decode memory are not there: a guest access would be a fault in
  // the hypervisor.
  if (on) RefuseDecoding();
}

// --- power ---

// PCI PM 1.2 5.4.1: memory is not decoded but in D0, and the kernel takes the pages away.
void VfioFunction::BeforePowerWrite(std::uint32_t offset, std::span<const std::byte> data) {
  const std::uint32_t at = plan_.power + pci::kPowerControl;
  if (plan_.power == 0 || !Touches(offset, data.size(), at, at + 1)) return;
  if ((data[at - offset] & std::byte{3}) != std::byte{0}) BlockDecoding(true);
}

void VfioFunction::AfterPowerWrite(std::uint32_t offset, std::size_t width) {
  const std::uint32_t at = plan_.power + pci::kPowerControl;
  if (plan_.power == 0 || !Touches(offset, width, at, at + 1)) return;
  // What it became: a device need not know every state.
  std::array<std::byte, 1> control{};
  Result<void> read = ReadDevice(at, control);
  if (!read) {
    Note(read.error(), "read power state");
    control[0] = std::byte{3};
  }
  const auto state = static_cast<std::uint8_t>(std::to_integer<unsigned>(control[0]) & 3);
  if (power_state_ != 0 && state == 0) {
    // It may have lost its registers in D3.
    command_.reset();
    if (Result<void> pushed = PushCommand(); !pushed) Note(pushed.error(), "write COMMAND");
  }
  power_state_ = state;
  if (!lost()) BlockDecoding(state != 0);
}

// --- peer-to-peer ---

void VfioFunction::OnBarMapped(std::size_t index) {
  if (peer_ == nullptr || index >= pci::kBarCount) return;
  for (const pci::Tile& tile : bars()[index]->tiles()) {
    const auto* pages = std::get_if<pci::Pages>(&tile);
    if (pages == nullptr) continue;
    const bus::HostPages& host = pages->host;
    peer_->Offer(
        index, iommu::Iova(BarAddress(index) + pages->offset),
        {.address = host.address, .fd = host.fd, .offset = host.offset, .length = host.length},
        pages->access);
  }
}

void VfioFunction::OnBarUnmapping(std::size_t index) {
  if (peer_ != nullptr) peer_->Withdraw(index);
}

// --- reset ---

bool VfioFunction::AsksForReset(std::uint32_t offset, std::span<const std::byte> data) const {
  const auto sets = [&](std::uint32_t at, std::uint8_t bit) {
    return at != 0 && Touches(offset, data.size(), at, at + 1) &&
           (data[at - offset] & std::byte{bit}) != std::byte{0};
  };
  return sets(plan_.express_flr, pci::kExpressFlr >> 8) || sets(plan_.af_flr, pci::kAfFlr);
}

void VfioFunction::FunctionLevelReset(std::uint32_t offset, std::span<const std::byte> data) {
  ResetWrite write{.offset = offset, .data = {}, .width = data.size()};
  std::ranges::copy(data, write.data.begin());
  reset_write_ = write;
  Reset();
  reset_write_.reset();
}

void VfioFunction::OnResetBegin() {
  resets_.Add();
  interrupts_->Suspend();
}

void VfioFunction::OnReset() {
  if (loss_ == Loss::kVanished || (lost() && !revive_)) return;
  // Memory decoding went off by now; this also stops DMA.
  if (Result<void> pushed = PushCommand(); !pushed) Note(pushed.error(), "write COMMAND");
  Result<void> reset;
  if (reset_write_) {
    reset =
        Forward(reset_write_->offset,
                std::span<const std::byte>(reset_write_->data).first(reset_write_->width), true);
  } else if (LeaveLowPower(); device_->info().can_reset) {
    reset = ResetDevice();
  } else if (lost()) {
    return;
  }
  command_.reset();
  if (!reset) {
    reset_failures_.Add();
    Note(reset.error(), "reset");
    return;
  }
  power_state_ = 0;
  if (loss_ == Loss::kError) {
    loss_ = Loss::kNone;
    lost_.store(false, std::memory_order_relaxed);
  }
}

void VfioFunction::LeaveLowPower() {
  if (power_state_ == 0) return;
  const std::array<std::byte, 2> d0{};
  Result<void> written = WriteDevice(plan_.power + pci::kPowerControl, d0);
  if (written) power_state_ = 0;
}

Result<void> VfioFunction::ResetDevice() {
  for (int tries = 1;; ++tries) {
    Result<void> reset = device_->Reset();
    if (reset || reset.error().sys_errno != EAGAIN || tries == kResetTries) return reset;
    sched_yield();
  }
}

void VfioFunction::OnResetDone() {
  if (lost()) return;
  if (Result<void> pushed = PushCommand(); !pushed) Note(pushed.error(), "write COMMAND");
  BlockDecoding(power_state_ != 0);
  interrupts_->Resume();
}

// --- loss ---

void VfioFunction::OnRegionError(const Error& error) {
  Note(error, "access a BAR");
}

void VfioFunction::Note(const Error& error, const char* what) {
  device_errors_.Add();
  GUEST_LOG("vfio", "{}: cannot {}: {} (errno {})", name(), what, error.op, error.sys_errno);
  if (Vanished(error)) Lose(Loss::kVanished);
}

// From here on no access reaches the device; what takes apart mappings and interrupts runs on the
// loop, as this may be the middle of changing them.
void VfioFunction::Lose(Loss loss) {
  if (loss_ != Loss::kVanished) loss_ = loss;
  if (lost_.exchange(true, std::memory_order_relaxed)) return;
  losses_.Add();
  if (loss_signal_ != nullptr) loss_signal_->event().Signal();
}

void VfioFunction::OnLost() {
  const MutexLock hold(lock());
  if (!lost()) return;
  LOG_WARN("vfio", "{}: the device {}; the guest sees it as gone", name(),
           loss_ == Loss::kVanished ? "vanished" : "reported an error");
  revive_ = false;
  BlockDecoding(true);
  Reset();
  revive_ = true;
}

// --- state ---

VfioFunctionState VfioFunction::Save() {
  return {.version = 1, .function = SaveFunction()};
}

Result<void> VfioFunction::Restore(const VfioFunctionState& state) {
  if (state.version != 1) return Err(Errc::kBadFormat, "VFIO function state version");
  Reset();
  if (lost()) return Err(Errc::kBadState, "restore a lost device");
  Result<void> restored = RestoreFunction(state.function);
  if (!restored) {
    Reset();
    return restored;
  }
  OnConfigWritten(0, std::array<std::byte, 8>{});
  if (plan_.msix) PushControl(plan_.msix->at + pci::kMsixControl, plan_.msix->at, 4);
  if (plan_.msi) PushControl(plan_.msi->at + pci::kMsiControl, plan_.msi->at, 4);
  return {};
}

}  // namespace postern::vfio
