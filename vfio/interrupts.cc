#include "vfio/interrupts.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "src/base/log.h"

namespace postern::vfio {
namespace {

constexpr int kNobody = -1;

}  // namespace

Interrupts::Interrupts(HostDevice& device, bus::InterruptSource& source,
                       std::optional<std::uint32_t> intx_gsi,
                       std::function<void(const Error&)> on_error)
    : device_(device), source_(source), intx_gsi_(intx_gsi), on_error_(std::move(on_error)) {}

Interrupts::~Interrupts() {
  Suspend();
  Follow(nullptr, nullptr);
}

void Interrupts::Vectors::Follow(pci::MsixTable* followed) {
  if (table != nullptr) table->SetObserver(nullptr);
  table = followed;
  events.assign(followed != nullptr ? followed->size() : 0, kNobody);
  if (followed != nullptr) followed->SetObserver(this);
}

void Interrupts::Follow(pci::MsixTable* msix, pci::MsiCapability* msi) {
  msix_.Follow(msix);
  msi_.Follow(msi != nullptr ? &msi->vectors() : nullptr);
  msi_capability_ = msi;
}

void Interrupts::Vectors::OnVectorOpened(std::uint16_t vector, const EventFd& trigger) {
  if (vector >= events.size() || events[vector] == trigger.fd()) return;
  events[vector] = trigger.fd();
  if (owner_.kind_ != kind_) return;  // handed over when the kind is entered
  const std::array<int, 1> event{trigger.fd()};
  // Tried again at the next unmasking.
  if (!owner_.Good(owner_.Hand(irq_, vector, event), "hand over a vector"))
    events[vector] = kNobody;
}

void Interrupts::Vectors::OnDisabled() {
  std::ranges::fill(events, kNobody);
  owner_.Reconcile();
}

bool Interrupts::Good(const Result<void>& result, std::string_view what) {
  if (result) return true;
  errors_.Add();
  GUEST_LOG("vfio", "{}: cannot {}: {} (errno {})", device_.info().name, what, result.error().op,
            result.error().sys_errno);
  on_error_(result.error());
  return false;
}

Result<void> Interrupts::Hand(std::uint32_t irq, std::uint32_t start, std::span<const int> events) {
  TRY(device_.SetVectors(irq, start, events));
  vectors_opened_.Add(
      static_cast<std::uint64_t>(std::ranges::count_if(events, [](int fd) { return fd >= 0; })));
  return {};
}

void Interrupts::Suspend() {
  suspended_ = true;
  Reconcile();
  std::ranges::fill(msix_.events, kNobody);
  std::ranges::fill(msi_.events, kNobody);
}

void Interrupts::Resume() {
  suspended_ = false;
  Reconcile();
}

Interrupts::Kind Interrupts::Wanted() const {
  if (suspended_) return Kind::kNone;
  if (msix_.table != nullptr && msix_.table->enabled()) return Kind::kMsix;
  if (msi_.table != nullptr && msi_.table->enabled()) return Kind::kMsi;
  return intx_gsi_ ? Kind::kIntx : Kind::kNone;
}

void Interrupts::Reconcile() {
  const Kind wanted = Wanted();
  if (wanted == kind_) return;
  switches_.Add();
  Leave();
  if (wanted == Kind::kNone) return;
  // The kind is ours only when the device has it: vectors opened meanwhile are in the lists.
  if (Good(Enter(wanted), "enable interrupts")) kind_ = wanted;
}

Result<void> Interrupts::Enter(Kind kind) {
  switch (kind) {
    case Kind::kMsix:
      return EnterMsix();
    case Kind::kMsi:
      return EnterMsi();
    case Kind::kIntx:
      return EnterIntx();
    case Kind::kNone:
      break;
  }
  return {};
}

void Interrupts::Leave() {
  switch (std::exchange(kind_, Kind::kNone)) {
    case Kind::kMsix:
      (void)Good(device_.DisableIrq(kMsixIrq), "disable MSI-X");
      return;
    case Kind::kMsi:
      (void)Good(device_.DisableIrq(kMsiIrq), "disable MSI");
      return;
    case Kind::kIntx:
      LeaveIntx();
      return;
    case Kind::kNone:
      return;
  }
}

Result<void> Interrupts::EnterMsix() {
  const std::span<const int> events = msix_.events;
  // Where the number of vectors is fixed by the first call, that call names all of them; the ones
  // not opened cost the host nothing but the vector.
  if (device_.info().irqs[kMsixIrq].noresize) return Hand(kMsixIrq, 0, events);
  // The first call enables MSI-X; vector 0 alone is in it, opened or not.
  TRY(Hand(kMsixIrq, 0, events.first(1)));
  for (std::size_t i = 1; i < events.size();) {
    if (events[i] == kNobody) {
      ++i;
      continue;
    }
    std::size_t end = i + 1;
    while (end < events.size() && events[end] != kNobody) ++end;
    if (!Good(Hand(kMsixIrq, static_cast<std::uint32_t>(i), events.subspan(i, end - i)),
              "hand over vectors")) {
      std::fill(msix_.events.begin() + static_cast<std::ptrdiff_t>(i),
                msix_.events.begin() + static_cast<std::ptrdiff_t>(end), kNobody);
    }
    i = end;
  }
  return {};
}

Result<void> Interrupts::EnterMsi() {
  const std::span<const int> events = msi_.events;
  std::size_t count = std::min<std::size_t>(msi_capability_->enabled_vectors(), events.size());
  while (true) {
    Result<void> handed = Hand(kMsiIrq, 0, events.first(count));
    // The host may have fewer vectors left than the guest enabled: those it can give are better
    // than none.
    if (handed || count <= 1) return handed;
    count /= 2;
    errors_.Add();
    GUEST_LOG("vfio", "{}: MSI with {} vectors refused (errno {}), trying {}", device_.info().name,
              count * 2, handed.error().sys_errno, count);
  }
}

// The kernel takes a mask or an unmask eventfd of INTx only while INTx is enabled, so that comes
// first; an interrupt before the unmask eventfd is attached masks itself, and the end of interrupt
// that unmasks it waits in the eventfd.
Result<void> Interrupts::AttachUnmask() {
  if (unmasking_ == Unmasking::kByHand) return {};
  TRY(device_.MaskIntx(true));
  Result<void> attached = device_.SetIntxUnmask(unmask_->fd());
  const bool untold = !attached && attached.error().sys_errno == ENOTTY;
  if (untold && unmasking_ == Unmasking::kUnknown) {
    LOG_INFO("vfio", "{}: takes no eventfd to unmask INTx: each interrupt passes through Postern",
             device_.info().name);
    unmasking_ = Unmasking::kByHand;
  } else {
    TRY(attached);
    unmasking_ = Unmasking::kByKernel;
  }
  return device_.MaskIntx(false);
}

void Interrupts::UnmaskIntx() {
  if (unmask_->Consume() == 0 || kind_ != Kind::kIntx) return;
  intx_unmasks_.Add();
  (void)Good(device_.MaskIntx(false), "unmask INTx");
}

Result<void> Interrupts::EnterIntx() {
  if (!unmask_) unmask_ = TRY(EventFd::Create());
  unmask_->Consume();
  Result<std::unique_ptr<bus::IrqLine>> line = source_.NewLine(*intx_gsi_, &*unmask_);
  if (!line) {
    intx_gsi_.reset();
    return Unexpected(line.error());
  }
  line_ = std::move(*line);
  const std::array<int, 1> event{line_->trigger().fd()};
  Result<void> done = Hand(kIntxIrq, 0, event);
  if (done) {
    done = AttachUnmask();
    if (!done) (void)device_.DisableIrq(kIntxIrq);
  }
  if (!done) {
    line_.reset();
    intx_gsi_.reset();
  }
  return done;
}

void Interrupts::LeaveIntx() {
  (void)Good(device_.MaskIntx(true), "mask INTx");
  if (unmasking_ == Unmasking::kByKernel)
    (void)Good(device_.SetIntxUnmask(kNobody), "detach the INTx unmask event");
  (void)Good(device_.DisableIrq(kIntxIrq), "disable INTx");
  line_.reset();
}

void Interrupts::ReportCounters(CounterSink& sink) const {
  sink.Add("vfio_vectors_opened", vectors_opened_.Get());
  sink.Add("vfio_interrupt_switches", switches_.Get());
  sink.Add("vfio_interrupt_errors", errors_.Get());
  sink.Add("vfio_intx_unmasks", intx_unmasks_.Get());
}

}  // namespace postern::vfio
