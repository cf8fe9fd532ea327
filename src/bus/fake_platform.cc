#include "src/bus/fake_platform.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/check.h"
#include "src/base/strong.h"

namespace postern::bus {

using memory::Access;
using memory::Gpa;

// --- interrupts ---

namespace {

struct Route {
  explicit Route(EventFd event) : trigger(std::move(event)) {}
  EventFd trigger;
  FakeInterruptSource::MsiState state;
};

struct Wire {
  explicit Wire(EventFd event) : trigger(std::move(event)) {}
  EventFd trigger;
  const EventFd* resample = nullptr;
  FakeInterruptSource::LineState state;
};

}  // namespace

struct FakeInterruptSource::Impl {
  mutable Mutex mutex;
  std::vector<std::shared_ptr<Route>> routes GUARDED_BY(mutex);
  std::map<std::uint32_t, std::shared_ptr<Wire>> wires GUARDED_BY(mutex);
  std::vector<MsiMessage> delivered GUARDED_BY(mutex);
  std::size_t limit GUARDED_BY(mutex) = 4096;
  bool fail GUARDED_BY(mutex) = false;

  void Deliver(Route& route, std::uint64_t count) REQUIRES(mutex) {
    route.state.delivered += count;
    for (std::uint64_t i = 0; i < count; ++i) delivered.push_back(*route.state.message);
  }

  // What irqfd does as soon as the eventfd is signalled.
  void Poll(Route& route) REQUIRES(mutex) {
    if (route.state.exists && !route.state.masked && route.state.message)
      Deliver(route, route.trigger.Consume());
    route.state.pending = route.state.exists && route.trigger.Pending();
  }

  [[nodiscard]] std::size_t Alive() const REQUIRES(mutex) {
    std::size_t n = 0;
    for (const auto& route : routes) n += route->state.exists ? 1U : 0U;
    return n;
  }
};

namespace {

class FakeMsiRoute final : public MsiRoute {
 public:
  FakeMsiRoute(std::shared_ptr<FakeInterruptSource::Impl> impl, std::shared_ptr<Route> route)
      : impl_(std::move(impl)), route_(std::move(route)) {}
  FakeMsiRoute(const FakeMsiRoute&) = delete;
  FakeMsiRoute& operator=(const FakeMsiRoute&) = delete;
  ~FakeMsiRoute() override {
    const MutexLock lock(impl_->mutex);
    impl_->Poll(*route_);
    route_->state.exists = false;
    route_->state.pending = false;
  }

  Result<void> Set(const MsiMessage& message) override {
    const MutexLock lock(impl_->mutex);
    if (impl_->fail) return SysError("set MSI route", EINVAL);
    impl_->Poll(*route_);  // signals so far go where they were aimed
    ++route_->state.sets;
    route_->state.message = message;
    return {};
  }

  Result<void> Mask(bool masked) override {
    const MutexLock lock(impl_->mutex);
    if (impl_->fail) return SysError("mask MSI route", EINVAL);
    impl_->Poll(*route_);
    ++route_->state.masks;
    const bool unmasks = route_->state.masked && !masked;
    route_->state.masked = masked;
    // Signals that collected are one interrupt: the pending bit has no count.
    if (unmasks && route_->state.message && route_->trigger.Consume() != 0)
      impl_->Deliver(*route_, 1);
    return {};
  }

  [[nodiscard]] const EventFd& trigger() const override { return route_->trigger; }

 private:
  std::shared_ptr<FakeInterruptSource::Impl> impl_;
  std::shared_ptr<Route> route_;
};

class FakeIrqLine final : public IrqLine {
 public:
  FakeIrqLine(std::shared_ptr<FakeInterruptSource::Impl> impl, std::shared_ptr<Wire> wire)
      : impl_(std::move(impl)), wire_(std::move(wire)) {}
  FakeIrqLine(const FakeIrqLine&) = delete;
  FakeIrqLine& operator=(const FakeIrqLine&) = delete;
  ~FakeIrqLine() override {
    const MutexLock lock(impl_->mutex);
    wire_->state.exists = false;
    wire_->resample = nullptr;
  }
  [[nodiscard]] const EventFd& trigger() const override { return wire_->trigger; }
  void SetLevel(bool high) override {
    const MutexLock lock(impl_->mutex);
    if (high && !wire_->state.high) ++wire_->state.rises;
    wire_->state.high = high;
  }

 private:
  std::shared_ptr<FakeInterruptSource::Impl> impl_;
  std::shared_ptr<Wire> wire_;
};

}  // namespace

FakeInterruptSource::FakeInterruptSource() : impl_(std::make_shared<Impl>()) {}
FakeInterruptSource::~FakeInterruptSource() = default;

Result<std::unique_ptr<MsiRoute>> FakeInterruptSource::NewMsi() {
  auto route = std::make_shared<Route>(TRY(EventFd::Create()));
  {
    const MutexLock lock(impl_->mutex);
    if (impl_->Alive() >= impl_->limit) return Err(Errc::kExhausted, "MSI route");
    impl_->routes.push_back(route);
  }
  return std::unique_ptr<MsiRoute>(std::make_unique<FakeMsiRoute>(impl_, std::move(route)));
}

Result<std::unique_ptr<IrqLine>> FakeInterruptSource::NewLine(std::uint32_t gsi,
                                                              const EventFd* resample) {
  auto wire = std::make_shared<Wire>(TRY(EventFd::Create()));
  wire->resample = resample;
  wire->state.exists = true;
  {
    const MutexLock lock(impl_->mutex);
    auto& slot = impl_->wires[gsi];
    if (slot != nullptr && slot->state.exists) return Err(Errc::kOverlap, "interrupt line");
    slot = wire;
  }
  return std::unique_ptr<IrqLine>(std::make_unique<FakeIrqLine>(impl_, std::move(wire)));
}

void FakeInterruptSource::LimitRoutes(std::size_t limit) {
  const MutexLock lock(impl_->mutex);
  impl_->limit = limit;
}

void FakeInterruptSource::FailUpdates(bool fail) {
  const MutexLock lock(impl_->mutex);
  impl_->fail = fail;
}

std::size_t FakeInterruptSource::routes() const {
  const MutexLock lock(impl_->mutex);
  return impl_->Alive();
}

std::vector<MsiMessage> FakeInterruptSource::TakeDelivered() {
  const MutexLock lock(impl_->mutex);
  for (const auto& route : impl_->routes) impl_->Poll(*route);
  return std::exchange(impl_->delivered, {});
}

FakeInterruptSource::MsiState FakeInterruptSource::Msi(std::size_t index) {
  const MutexLock lock(impl_->mutex);
  CHECK(index < impl_->routes.size());
  impl_->Poll(*impl_->routes[index]);
  return impl_->routes[index]->state;
}

FakeInterruptSource::LineState FakeInterruptSource::Line(std::uint32_t gsi) {
  const MutexLock lock(impl_->mutex);
  const auto it = impl_->wires.find(gsi);
  if (it == impl_->wires.end()) return {};
  it->second->state.pulses += it->second->trigger.Consume();
  return it->second->state;
}

void FakeInterruptSource::EndOfInterrupt(std::uint32_t gsi) {
  const MutexLock lock(impl_->mutex);
  const auto it = impl_->wires.find(gsi);
  if (it != impl_->wires.end() && it->second->resample != nullptr) it->second->resample->Signal();
}

// --- pages ---

struct FakePageMapper::Impl {
  mutable Mutex mutex;
  std::map<std::uint64_t, MappingState> mappings GUARDED_BY(mutex);   // by address
  std::map<std::uint64_t, std::uint64_t> occupied GUARDED_BY(mutex);  // base to size

  [[nodiscard]] bool Taken(std::uint64_t base, std::uint64_t size) const REQUIRES(mutex) {
    const auto overlaps = [&](std::uint64_t other, std::uint64_t length) {
      return base <= other ? other - base < size : base - other < length;
    };
    for (const auto& [other, length] : occupied) {
      if (overlaps(other, length)) return true;
    }
    for (const auto& [other, mapping] : mappings) {
      if (overlaps(other, mapping.pages.length)) return true;
    }
    return false;
  }

  // The mapped bytes of a guest access, or null where it exits.
  [[nodiscard]] std::byte* Locate(Gpa gpa, std::size_t length, bool writes) const REQUIRES(mutex) {
    const auto after = mappings.upper_bound(gpa.value);
    if (after == mappings.begin()) return nullptr;
    const MappingState& mapping = std::prev(after)->second;
    const std::uint64_t offset = gpa.value - mapping.gpa.value;
    if (offset >= mapping.pages.length || mapping.pages.length - offset < length) return nullptr;
    if (mapping.pages.address == nullptr || (writes && mapping.access == Access::kRead))
      return nullptr;
    return mapping.pages.address + offset;
  }
};

namespace {

class FakeMapping final : public Mapping {
 public:
  FakeMapping(std::shared_ptr<FakePageMapper::Impl> impl, std::uint64_t base)
      : impl_(std::move(impl)), base_(base) {}
  FakeMapping(const FakeMapping&) = delete;
  FakeMapping& operator=(const FakeMapping&) = delete;
  ~FakeMapping() override {
    const MutexLock lock(impl_->mutex);
    impl_->mappings.erase(base_);
  }

 private:
  std::shared_ptr<FakePageMapper::Impl> impl_;
  std::uint64_t base_;
};

}  // namespace

FakePageMapper::FakePageMapper() : impl_(std::make_shared<Impl>()) {}
FakePageMapper::~FakePageMapper() = default;

Result<std::unique_ptr<Mapping>> FakePageMapper::Map(Gpa gpa, const HostPages& pages,
                                                     Access access) {
  if (pages.length == 0 || pages.length % 4096 != 0 || gpa.value % 4096 != 0 ||
      !gpa.CheckedAdd(pages.length - 1) || (pages.address == nullptr && pages.fd < 0)) {
    return Err(Errc::kInvalidArgument, "map pages");
  }
  {
    const MutexLock lock(impl_->mutex);
    if (impl_->Taken(gpa.value, pages.length)) return Err(Errc::kOverlap, "map pages");
    impl_->mappings.emplace(gpa.value, MappingState{gpa, pages, access});
  }
  return std::unique_ptr<Mapping>(std::make_unique<FakeMapping>(impl_, gpa.value));
}

void FakePageMapper::Occupy(Gpa base, std::uint64_t size) {
  const MutexLock lock(impl_->mutex);
  impl_->occupied[base.value] = size;
}

std::vector<FakePageMapper::MappingState> FakePageMapper::Mappings() const {
  const MutexLock lock(impl_->mutex);
  std::vector<MappingState> list;
  list.reserve(impl_->mappings.size());
  for (const auto& [base, mapping] : impl_->mappings) list.push_back(mapping);
  return list;
}

namespace {

// A guest's access: the page's owner may be at it on another thread, and sees aligned words whole.
constexpr std::size_t kWord = sizeof(std::uint64_t);
bool IsWords(const std::byte* at, std::size_t size) {
  return reinterpret_cast<std::uintptr_t>(at) % kWord == 0 && size % kWord == 0;
}
void StoreShared(std::byte* to, std::span<const std::byte> data) {
  if (!IsWords(to, data.size())) {
    auto* bytes = reinterpret_cast<unsigned char*>(to);
    for (std::size_t i = 0; i < data.size(); ++i)
      __atomic_store_n(bytes + i, std::to_integer<unsigned char>(data[i]), __ATOMIC_RELEASE);
    return;
  }
  auto* words = static_cast<std::uint64_t*>(static_cast<void*>(to));
  for (std::size_t i = 0; i < data.size() / kWord; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, data.data() + i * kWord, kWord);
    __atomic_store_n(words + i, word, __ATOMIC_RELEASE);
  }
}
void LoadShared(const std::byte* from, std::span<std::byte> data) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < data.size(); ++i)
    data[i] = std::byte{__atomic_load_n(bytes + i, __ATOMIC_ACQUIRE)};
}

}  // namespace

bool FakePageMapper::GuestWrite(Gpa gpa, std::span<const std::byte> data) {
  const MutexLock lock(impl_->mutex);
  std::byte* at = impl_->Locate(gpa, data.size(), true);
  if (at == nullptr) return false;
  StoreShared(at, data);
  return true;
}

bool FakePageMapper::GuestRead(Gpa gpa, std::span<std::byte> data) {
  const MutexLock lock(impl_->mutex);
  const std::byte* at = impl_->Locate(gpa, data.size(), false);
  if (at == nullptr) return false;
  LoadShared(at, data);
  return true;
}

// --- doorbells ---

struct FakeDoorbells::Impl {
  struct Bell {
    std::uint64_t id;
    std::uint64_t gpa;
    std::uint32_t width;
    std::optional<std::uint64_t> match;
    const EventFd* event;
  };
  mutable Mutex mutex;
  std::vector<Bell> bells GUARDED_BY(mutex);
  std::uint64_t next_id GUARDED_BY(mutex) = 0;
};

namespace {

class FakeDoorbell final : public Doorbell {
 public:
  FakeDoorbell(std::shared_ptr<FakeDoorbells::Impl> impl, std::uint64_t id)
      : impl_(std::move(impl)), id_(id) {}
  FakeDoorbell(const FakeDoorbell&) = delete;
  FakeDoorbell& operator=(const FakeDoorbell&) = delete;
  ~FakeDoorbell() override {
    const MutexLock lock(impl_->mutex);
    std::erase_if(impl_->bells, [this](const auto& bell) { return bell.id == id_; });
  }

 private:
  std::shared_ptr<FakeDoorbells::Impl> impl_;
  std::uint64_t id_;
};

}  // namespace

FakeDoorbells::FakeDoorbells() : impl_(std::make_shared<Impl>()) {}
FakeDoorbells::~FakeDoorbells() = default;

Result<std::unique_ptr<Doorbell>> FakeDoorbells::Register(Gpa gpa, std::uint32_t width,
                                                          std::optional<std::uint64_t> match,
                                                          const EventFd& event) {
  if (width != 0 && width != 1 && width != 2 && width != 4 && width != 8) {
    return Err(Errc::kInvalidArgument, "doorbell width");
  }
  if (width == 0 && match) return Err(Errc::kInvalidArgument, "doorbell of any width with a match");
  std::uint64_t id = 0;
  {
    const MutexLock lock(impl_->mutex);
    for (const Impl::Bell& bell : impl_->bells) {
      if (bell.gpa == gpa.value && (bell.width == 0 || width == 0 || bell.width == width) &&
          (!bell.match || !match || *bell.match == *match)) {
        return Err(Errc::kOverlap, "doorbell");
      }
    }
    id = impl_->next_id++;
    impl_->bells.push_back({id, gpa.value, width, match, &event});
  }
  return std::unique_ptr<Doorbell>(std::make_unique<FakeDoorbell>(impl_, id));
}

bool FakeDoorbells::Write(Gpa gpa, std::uint32_t width, std::uint64_t value) {
  const MutexLock lock(impl_->mutex);
  for (const Impl::Bell& bell : impl_->bells) {
    if (bell.gpa != gpa.value || (bell.width != 0 && bell.width != width)) continue;
    if (bell.match && *bell.match != value) continue;
    bell.event->Signal();
    return true;
  }
  return false;
}

std::size_t FakeDoorbells::size() const {
  const MutexLock lock(impl_->mutex);
  return impl_->bells.size();
}

}  // namespace postern::bus
