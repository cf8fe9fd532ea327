#include "src/probe/dsa.h"

#include "src/probe/clock.h"
#include "src/probe/interrupts.h"
#include "src/probe/main.h"
#include "src/probe/paging.h"
#include "src/probe/virtio.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint32_t kVersion = 0x00;
constexpr uint32_t kGencap = 0x10;
constexpr uint32_t kWqcap = 0x20;
constexpr uint32_t kGrpcap = 0x30;
constexpr uint32_t kEngcap = 0x38;
constexpr uint32_t kOpcap = 0x40;
constexpr uint32_t kOffsets = 0x60;
constexpr uint32_t kGenctrl = 0x88;
constexpr uint32_t kGensts = 0x90;
constexpr uint32_t kIntcause = 0x98;
constexpr uint32_t kCmd = 0xa0;
constexpr uint32_t kCmdstatus = 0xa8;
constexpr uint32_t kCmdcap = 0xb0;
constexpr uint32_t kSwerror = 0xc0;

constexpr uint64_t kCommandCapabilities = 1U << 4;  // of GENCAP
constexpr uint32_t kCommandInterrupt = 1U << 31;
constexpr uint32_t kCommandActive = 1U << 31;  // of CMDSTATUS
constexpr unsigned kCommandShift = 20;
constexpr uint32_t kErrorInterrupts = 0x3;  // of GENCTRL: software errors, halts
constexpr uint64_t kErrorsLost = 0x3;       // of SWERROR: valid, overflow
constexpr uint64_t kOverflowTickMicros = 500;
constexpr uint32_t kCauseError = 1U << 0;
constexpr uint32_t kCauseCommand = 1U << 1;

// Words of WQCFG and GRPCFG.
constexpr unsigned kQueueSize = 0;
constexpr unsigned kQueueMode = 2;
constexpr unsigned kQueueLimits = 3;
constexpr unsigned kQueueStatus = 6;
constexpr unsigned kGroupQueues = 0;
constexpr unsigned kGroupEngines = 8;

// What this guest configures. Small limits, so that they can be reached.
constexpr unsigned kOurQueueSize = 32;
constexpr unsigned kOurTransferShift = 16;
constexpr unsigned kOurBatchShift = 4;
constexpr uint32_t kDedicatedPriority10 = 0xa1;

constexpr uint64_t kRegisterBytes = 0x10000;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kPagesPerQueue = 4;
constexpr uint64_t kSlotMask = 0xfff;

constexpr uint8_t kCapabilityExpress = 0x10;
constexpr uint64_t kExpressDeviceControl = 8;
constexpr uint16_t kFunctionReset = 0x8000;

constexpr uint64_t kWholeStore = 64;

DsaTotals g_totals;
bool g_looked_for_movdir64b;
bool g_has_movdir64b;

// The one instruction here that KVM's own emulator refuses (instructions_test.sh): only called
// where CPUID names it.
[[gnu::noinline]] void StoreWhole(uint64_t to, const void* from) {
  asm volatile("movdir64b (%0), %1" ::"r"(from), "r"(to) : "memory");
}

// CPUID's word is tried on RAM first: where KVM has no hardware virtualisation and interprets the
// guest, the instruction ends up with the monitor, which carries it out on portals that it traps,
// not on memory.
bool FindMovdir64b() {
  if (ProbeOptions().stores != kWholeStore || Cpuid(0).eax < 7 || (Cpuid(7).ecx >> 28 & 1) == 0)
    return false;
  alignas(64) uint64_t from[8];
  alignas(64) uint64_t to[8];
  for (unsigned i = 0; i < 8; ++i) {
    from[i] = ~uint64_t{i};
    to[i] = 0;
  }
  StoreWhole(reinterpret_cast<uint64_t>(to), from);
  FullBarrier();
  for (unsigned i = 0; i < 8; ++i) {
    if (Read64(reinterpret_cast<uint64_t>(&to[i])) != ~uint64_t{i}) return false;
  }
  return true;
}

}  // namespace

const DsaTotals& DsaUsed() {
  return g_totals;
}

bool DsaStoresWhole() {
  if (!g_looked_for_movdir64b) g_has_movdir64b = FindMovdir64b();
  g_looked_for_movdir64b = true;
  return g_has_movdir64b;
}

bool DsaFinished(const DsaRecord& record) {
  return Read8(reinterpret_cast<uint64_t>(&record.status)) != 0;
}

// Looks for a while, then sleeps between looks: where one processor is all there is for this guest
// and for who does the work, looking on would only keep the work from being done.
bool DsaAwait(const DsaRecord& record) {
  constexpr unsigned kLooks = 256;
  constexpr uint64_t kTickMicros = 500;
  for (unsigned i = 0; i < kLooks; ++i) {
    if (DsaFinished(record)) return true;
    Pause();
  }
  return WaitFor(
      kRequestMicros, [&] { return DsaFinished(record); }, kTickMicros);
}

// ---- a queue ----

void DsaQueue::Open(uint64_t portal, unsigned size, uint16_t handle, uint8_t vector) {
  portal_ = portal;
  size_ = size;
  handle_ = handle;
  vector_ = vector;
}

void DsaQueue::Submit(const DsaDescriptor& descriptor) {
  ++g_totals.submitted;
  Store(portal_, slot_, descriptor);
}
void DsaQueue::SubmitDisabled(const DsaDescriptor& descriptor) {
  ++g_totals.ignored;
  Store(portal_, slot_, descriptor);
}

void DsaQueue::Store(uint64_t portal, uint64_t& slot, const DsaDescriptor& descriptor) {
  const uint64_t at = portal + slot;
  slot = (slot + sizeof(descriptor)) & kSlotMask;
  FullBarrier();  // what the descriptor names is there before it is
  if (g_has_movdir64b) {
    StoreWhole(at, &descriptor);
    return;
  }
  // The word with the operation last: whoever watches the slot sees a whole descriptor.
  const auto* words = reinterpret_cast<const uint64_t*>(&descriptor);
  for (unsigned i = 1; i < sizeof(descriptor) / 8; ++i) Write64(at + uint64_t{8} * i, words[i]);
  Write64(at, words[0]);
}

void DsaQueue::Prepare(DsaDescriptor& descriptor) {
  record_ = {};
  descriptor.flags_and_opcode |= kDsaWithRecord;
  descriptor.record = DsaAt(&record_);
}

bool DsaQueue::Run(DsaDescriptor& descriptor) {
  Prepare(descriptor);
  Submit(descriptor);
  return DsaAwait(record_);
}

bool DsaQueue::RunUnlimited(DsaDescriptor& descriptor) {
  Prepare(descriptor);
  ++g_totals.submitted;
  Store(portal_ - kPage, unlimited_slot_, descriptor);
  return DsaAwait(record_);
}

uint32_t DsaQueue::interrupts() const {
  return InterruptCount(vector_);
}

// ---- registers ----

uint32_t DsaDevice::Get32(uint32_t offset) {
  ++g_totals.register_uses;
  return Read32(registers_ + offset);
}
uint64_t DsaDevice::Get64(uint32_t offset) {
  ++g_totals.register_uses;
  return Read64(registers_ + offset);
}
void DsaDevice::Set32(uint32_t offset, uint32_t value) {
  ++g_totals.register_uses;
  Write32(registers_ + offset, value);
}
void DsaDevice::Set64(uint32_t offset, uint64_t value) {
  ++g_totals.register_uses;
  Write64(registers_ + offset, value);
}

uint32_t DsaDevice::State() {
  return Get32(kGensts) & 3;
}
uint32_t DsaDevice::QueueState(unsigned index) {
  return Get32(QueueWord(index, kQueueStatus)) >> 30;
}

// ---- the device ----

bool DsaDevice::Open(PciFunction& function, Row& row) {
  function_ = &function;
  const PciBar& registers = function.bars[0];
  const PciBar& portals = function.bars[2];
  if (registers.size < kRegisterBytes || registers.address == 0 || portals.address == 0)
    return row.Fail("BAR 0 or BAR 2 is not there");
  MapPhysical(registers.address, registers.size, Caching::kDevice);
  MapPhysical(portals.address, portals.size, Caching::kDevice);
  registers_ = registers.address;
  portals_ = portals.address;
  static_cast<void>(DsaStoresWhole());
  EnablePci(function);
  // As Linux does at first, without an interrupt.
  Set32(kCmd, uint32_t{static_cast<uint8_t>(DsaCommand::kResetDevice)} << kCommandShift);
  const bool reset =
      WaitFor(kRequestMicros, [this] { return (Get32(kCmdstatus) & kCommandActive) == 0; });
  if (!reset) return row.Fail("the reset does not end");
  if (State() != 0) return row.Fail("the device is not disabled after a reset");
  vector_mark_ = VectorMark();
  for (uint8_t& vector : vectors_) vector = AllocateVector();
  return ReadCapabilities(row) && ConnectInterrupts(row);
}

bool DsaDevice::ReadCapabilities(Row& row) {
  const uint32_t version = Get32(kVersion);
  if (version < 0x100 || version >= 0x400) return row.Fail("version", version);
  gencap_ = Get64(kGencap);
  // Accesses of 4 bytes see the same register.
  const uint64_t halves = Get32(kGencap) | uint64_t{Get32(kGencap + 4)} << 32;
  if (halves != gencap_) return row.Fail("GENCAP in halves is", halves);
  wqcap_ = Get64(kWqcap);
  opcap_ = Get64(kOpcap);
  commands_ = (gencap_ & kCommandCapabilities) != 0 ? Get64(kCmdcap) : 0x1ffe;
  groups_ = Get64(kGrpcap) & 0xff;
  engines_ = Get64(kEngcap) & 0xff;
  const uint64_t offsets = Get64(kOffsets);
  grpcfg_ = static_cast<uint32_t>(offsets & 0xffff) << 8;
  wqcfg_ = static_cast<uint32_t>(offsets >> 16 & 0xffff) << 8;
  wqcfg_stride_ = 32U << (wqcap_ >> 24 & 0xf);
  transfer_shift_ = gencap_ >> 16 & 0x1f;
  batch_shift_ = gencap_ >> 21 & 0xf;
  queue_count_ = wqcap_ >> 16 & 0xff;
  if (queue_count_ == 0 || queue_count_ > kMaxQueues || groups_ == 0 || engines_ == 0)
    return row.Fail("WQCAP", wqcap_);
  const uint64_t last = QueueWord(queue_count_, 0);
  if (last > kRegisterBytes || function_->bars[2].size < queue_count_ * kPagesPerQueue * kPage)
    return row.Fail("a table or a portal lies outside its BAR");
  return true;
}

bool DsaDevice::ConnectInterrupts(Row& row) {
  if (!msix_.Open(*function_) || msix_.size() < queue_count_ + 1)
    return row.Fail("too few MSI-X vectors");
  for (unsigned i = 0; i <= queue_count_; ++i) msix_.Set(i, vectors_[i]);
  Set32(kGenctrl, kErrorInterrupts);
  return true;
}

// All queues and engines, dealt out to as many groups as can have some of both.
bool DsaDevice::Configure(Row& row) {
  if (!configurable()) return true;
  unsigned groups = groups_ < queue_count_ ? groups_ : queue_count_;
  if (engines_ < groups) groups = engines_;
  for (unsigned group = 0; group < groups; ++group) {
    uint64_t queues = 0;
    uint64_t engines = 0;
    for (unsigned i = group; i < queue_count_; i += groups) queues |= uint64_t{1} << i;
    for (unsigned i = group; i < engines_; i += groups) engines |= uint64_t{1} << i;
    Set64(GroupWord(group, kGroupQueues), queues);
    Set64(GroupWord(group, kGroupEngines), engines);
    if (Get64(GroupWord(group, kGroupQueues)) != queues)
      return row.Fail("a group does not take its queues, group", group);
  }
  if (kOurTransferShift < transfer_shift_) transfer_shift_ = kOurTransferShift;
  if (kOurBatchShift < batch_shift_) batch_shift_ = kOurBatchShift;
  const auto total = static_cast<unsigned>(wqcap_ & 0xffff);
  if (queue_count_ == 0) return row.Fail("there is no queue");
  const unsigned share = total / queue_count_;
  for (unsigned i = 0; i < queue_count_; ++i) {
    Set32(QueueWord(i, kQueueSize), share < kOurQueueSize ? share : kOurQueueSize);
    Set32(QueueWord(i, kQueueMode), kDedicatedPriority10);
    Set32(QueueWord(i, kQueueLimits), transfer_shift_ | batch_shift_ << 5);
  }
  return true;
}

bool DsaDevice::OpenQueue(unsigned index, Row& row) {
  uint32_t handle = index + 1;
  if ((commands_ >> static_cast<uint8_t>(DsaCommand::kRequestHandle) & 1) != 0) {
    if (!Expect("request of an interrupt handle: error", DsaCommand::kRequestHandle, index + 1, 0,
                row)) {
      return false;
    }
    handle = Get32(kCmdstatus) >> 8 & 0xffff;
  }
  const uint32_t limits = Get32(QueueWord(index, kQueueLimits));
  transfer_shift_ = limits & 0x1f;
  batch_shift_ = limits >> 5 & 0xf;
  const unsigned size = Get32(QueueWord(index, kQueueSize)) & 0xffff;
  // The limited portal, as Linux.
  queues_[index].Open(portals_ + (index * kPagesPerQueue + 1) * kPage, size,
                      static_cast<uint16_t>(handle), vectors_[index + 1]);
  return true;
}

bool DsaDevice::EnableQueues(Row& row) {
  for (unsigned i = 0; i < queue_count_; ++i) {
    if (!Expect("enabling a queue: error", DsaCommand::kEnableQueue, i, 0, row)) return false;
    if (QueueState(i) != 1) return row.Fail("an enabled queue does not say so, queue", i);
    if (!OpenQueue(i, row)) return false;
  }
  return true;
}

bool DsaDevice::Start(Row& row) {
  return Configure(row) &&
         Expect("enabling the device: error", DsaCommand::kEnableDevice, 0, 0, row) &&
         EnableQueues(row);
}

void DsaDevice::CollectCauses() {
  const uint32_t causes = Get32(kIntcause);
  if (causes == 0) return;
  Set32(kIntcause, causes);
  causes_ |= causes;
}

uint32_t DsaDevice::Command(DsaCommand command, uint32_t operand) {
  uint32_t seen = InterruptCount(vectors_[0]);
  causes_ &= ~kCauseCommand;
  Set32(kCmd,
        kCommandInterrupt | uint32_t{static_cast<uint8_t>(command)} << kCommandShift | operand);
  const bool ended = WaitFor(kRequestMicros, [&] {
    const uint32_t now = InterruptCount(vectors_[0]);
    if (now == seen) return false;
    seen = now;
    CollectCauses();
    return (causes_ & kCauseCommand) != 0;
  });
  if (!ended) return kNoAnswer;
  const uint32_t status = Get32(kCmdstatus);
  return (status & kCommandActive) != 0 ? kNoAnswer : status & 0xff;
}

bool DsaDevice::Expect(std::string_view what, DsaCommand command, uint32_t operand, uint32_t error,
                       Row& row) {
  const uint32_t got = Command(command, operand);
  if (got == kNoAnswer) return row.Fail("no interrupt tells the end of command", operand);
  return got == error || row.Fail(what, got);
}

bool DsaDevice::TakeError(uint64_t (&words)[4]) {
  uint32_t seen = 0;
  const bool told = WaitFor(kRequestMicros, [&] {
    const uint32_t now = InterruptCount(vectors_[0]);
    if (now != seen && (causes_ & kCauseError) == 0) CollectCauses();
    seen = now;
    return (causes_ & kCauseError) != 0;
  });
  ReadError(words);
  return told;
}

bool DsaDevice::TakeOverflow(uint64_t (&words)[4]) {
  const bool told = WaitFor(
      kRequestMicros, [this] { return (Get64(kSwerror) & kErrorsLost) == kErrorsLost; },
      kOverflowTickMicros);
  CollectCauses();
  ReadError(words);
  return told;
}

void DsaDevice::ReadError(uint64_t (&words)[4]) {
  causes_ &= ~kCauseError;
  for (uint32_t i = 0; i < 4; ++i) words[i] = Get64(kSwerror + 8 * i);
  Set64(kSwerror, words[0] & kErrorsLost);
}

bool DsaDevice::ResetFunction(Row& row) {
  const uint8_t express = FindCapability(*function_, kCapabilityExpress);
  if (express == 0) return row.Fail("no PCI Express capability");
  const uint64_t control = function_->config + express + kExpressDeviceControl;
  Write16(control, Read16(control) | kFunctionReset);
  // PCIe 3.0 6.6.2: it is given 100 ms.
  static_cast<void>(WaitFor(100'000, [] { return false; }));
  SetBarAddress(*function_, 0, registers_);
  SetBarAddress(*function_, 2, portals_);
  EnablePci(*function_);
  return ConnectInterrupts(row);
}

void DsaDevice::Close() {
  if (registers_ == 0) return;
  static_cast<void>(Command(DsaCommand::kResetDevice));
  msix_.Close();
  ReleaseVectors(vector_mark_);
}

bool DsaFailAt(std::string_view what, std::string_view how, uint64_t number, Row& row) {
  Line reason;
  return row.Fail(reason.Put(what, ": ", how).view(), number);
}

bool DsaNoop(std::string_view when, DsaDevice& device, Row& row) {
  for (unsigned i = 0; i < device.queues(); ++i) {
    DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop)};
    DsaQueue& queue = device.queue(i);
    if (!queue.Run(noop)) return DsaFailAt(when, "no completion in queue", i, row);
    if (!queue.record().Is(DsaStatus::kSuccess))
      return DsaFailAt(when, "status", queue.record().status, row);
  }
  return true;
}

}  // namespace postern::probe
