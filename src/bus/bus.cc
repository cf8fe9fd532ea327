#include "src/bus/bus.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <utility>

#include "src/base/check.h"
#include "src/base/log.h"
#include "src/base/strong.h"

namespace postern::bus {
namespace {

bool IsWidth(std::size_t size) {
  return size == 1 || size == 2 || size == 4 || size == 8;
}

std::uint64_t ToInteger(std::span<const std::byte> data) {
  std::uint64_t value = 0;
  std::memcpy(&value, data.data(), std::min(data.size(), sizeof(value)));
  return value;
}

}  // namespace

struct Registration::Entry {
  Entry(std::uint64_t b, std::uint64_t s, MmioHandler& h, Mutex& l, std::string n)
      : base(b), size(s), handler(h), lock(l), name(std::move(n)) {}
  const std::uint64_t base;
  const std::uint64_t size;
  MmioHandler& handler;
  Mutex& lock;
  const std::string name;
  // Cleared under `lock`, and read again under it by a dispatch that found this entry in a table
  // since replaced.
  std::atomic<bool> registered{true};
  Counter reads;
  Counter writes;
};

// Dispatch copies a reference to the table under `mutex` and then works on what it holds: a device
// may change the bus from inside its handler, and no vCPU waits for another's device.
struct Bus::Impl {
  using Entry = Registration::Entry;

  // How long a replaced table is still in use, for Drain.
  struct Gate {
    Mutex mutex;
    std::condition_variable_any changed;
    std::uint64_t retired GUARDED_BY(mutex) = 0;  // replaced, and not yet out of use
  };

  struct Table {
    explicit Table(std::shared_ptr<Gate> g) : gate(std::move(g)) {}
    Table(const Table&) = delete;
    Table& operator=(const Table&) = delete;
    ~Table() {
      if (!replaced) return;
      {
        const MutexLock lock(gate->mutex);
        --gate->retired;
      }
      gate->changed.notify_all();
    }
    std::vector<std::shared_ptr<Entry>> entries;  // sorted by base
    std::shared_ptr<Gate> gate;
    bool replaced = false;  // written before the last reference of the bus is dropped
  };

  std::shared_ptr<Gate> gate = std::make_shared<Gate>();
  mutable Mutex mutex;
  std::shared_ptr<Table> table GUARDED_BY(mutex) = std::make_shared<Table>(gate);

  // Of ranges that were given up since.
  Counter past_reads, past_writes;
  Counter unmatched_reads, unmatched_writes;  // no range
  Counter straddles;                          // begins in a range and ends outside it
  Counter odd_widths;                         // not 1, 2, 4 or 8 bytes

  [[nodiscard]] std::shared_ptr<const Table> Snapshot() const {
    const MutexLock lock(mutex);
    return table;
  }

  // Returns the old table, to be dropped after `mutex`.
  [[nodiscard]] std::shared_ptr<Table> Replace(std::shared_ptr<Table> next) REQUIRES(mutex) {
    {
      const MutexLock lock(gate->mutex);
      ++gate->retired;
    }
    table->replaced = true;
    table.swap(next);
    return next;
  }

  // The entry that `address` lies in, or null.
  static Entry* Find(const Table& in, std::uint64_t address) {
    const auto after = std::upper_bound(
        in.entries.begin(), in.entries.end(), address,
        [](std::uint64_t a, const std::shared_ptr<Entry>& entry) { return a < entry->base; });
    if (after == in.entries.begin()) return nullptr;
    Entry* entry = std::prev(after)->get();
    return address - entry->base < entry->size ? entry : nullptr;
  }

  bool CountWidth(std::size_t size) {
    if (IsWidth(size)) return true;
    odd_widths.Add();
    return false;
  }

  // The entry that takes the whole access, or null after counting why there is none.
  Entry* Match(const Table& in, std::uint64_t address, std::size_t size, Counter& unmatched) {
    Entry* entry = Find(in, address);
    if (entry == nullptr) {
      unmatched.Add();
      return nullptr;
    }
    if (entry->size - (address - entry->base) < size) {
      straddles.Add();
      return nullptr;
    }
    return entry;
  }

  // `store` is called with the handler that takes it, and the offset there.
  template <typename F>
  void Store(std::uint64_t address, std::span<const std::byte> data, const F& store) {
    const std::shared_ptr<const Table> in = Snapshot();
    if (Entry* entry = Match(*in, address, data.size(), unmatched_writes); entry != nullptr) {
      const MutexLock lock(entry->lock);
      if (entry->registered.load(std::memory_order_relaxed)) {
        entry->writes.Add();
        LOG_TRACE("bus", "{} +{:#x} write{} {:#x}", entry->name, address - entry->base,
                  data.size() * 8, ToInteger(data));
        store(entry->handler, address - entry->base);
        return;
      }
      unmatched_writes.Add();
    }
    LOG_TRACE("bus", "{:#x} write of {} bytes is nobody's", address, data.size());
  }
};

Registration::Registration(Registration&& other) noexcept
    : bus_(std::exchange(other.bus_, nullptr)), entry_(std::move(other.entry_)) {}

Registration& Registration::operator=(Registration&& other) noexcept {
  if (this != &other) {
    Reset();
    bus_ = std::exchange(other.bus_, nullptr);
    entry_ = std::move(other.entry_);
  }
  return *this;
}

void Registration::Reset() {
  if (entry_ == nullptr) return;
  entry_->registered.store(false, std::memory_order_relaxed);  // the caller holds entry_->lock
  Bus::Impl& bus = *bus_->impl_;
  std::shared_ptr<Bus::Impl::Table> old;
  {
    auto next = std::make_shared<Bus::Impl::Table>(bus.gate);
    const MutexLock lock(bus.mutex);
    next->entries.reserve(bus.table->entries.size());
    for (const auto& entry : bus.table->entries) {
      if (entry != entry_) next->entries.push_back(entry);
    }
    bus.past_reads.Add(entry_->reads.Get());
    bus.past_writes.Add(entry_->writes.Get());
    old = bus.Replace(std::move(next));
  }
  entry_.reset();
  bus_ = nullptr;
}

Bus::Bus() : impl_(std::make_unique<Impl>()) {}
Bus::~Bus() = default;

Result<Registration> Bus::Add(std::uint64_t base, std::uint64_t size, MmioHandler& handler,
                              Mutex& lock, std::string name) {
  if (size == 0 || !postern::CheckedAdd(base, size - 1))
    return Err(Errc::kInvalidArgument, "bus range");
  auto entry = std::make_shared<Registration::Entry>(base, size, handler, lock, std::move(name));
  auto next = std::make_shared<Impl::Table>(impl_->gate);
  std::shared_ptr<Impl::Table> old;
  {
    const MutexLock table_lock(impl_->mutex);
    const auto& entries = impl_->table->entries;
    const auto after =
        std::upper_bound(entries.begin(), entries.end(), base,
                         [](std::uint64_t b, const auto& other) { return b < other->base; });
    if (after != entries.end() && (*after)->base - base < size)
      return Err(Errc::kOverlap, "bus range");
    if (after != entries.begin()) {
      const auto& before = *std::prev(after);
      if (base - before->base < before->size) return Err(Errc::kOverlap, "bus range");
    }
    next->entries.reserve(entries.size() + 1);
    next->entries.assign(entries.begin(), after);
    next->entries.push_back(entry);
    next->entries.insert(next->entries.end(), after, entries.end());
    old = impl_->Replace(std::move(next));
  }
  return Registration(this, std::move(entry));
}

void Bus::Read(std::uint64_t address, std::span<std::byte> data) {
  const std::shared_ptr<const Impl::Table> table = impl_->Snapshot();
  Impl::Entry* const entry =
      impl_->CountWidth(data.size())
          ? impl_->Match(*table, address, data.size(), impl_->unmatched_reads)
          : nullptr;
  if (entry != nullptr) {
    const MutexLock lock(entry->lock);
    if (entry->registered.load(std::memory_order_relaxed)) {
      entry->reads.Add();
      entry->handler.Read(address - entry->base, data);
      LOG_TRACE("bus", "{} +{:#x} read{} {:#x}", entry->name, address - entry->base,
                data.size() * 8, ToInteger(data));
      return;
    }
    impl_->unmatched_reads.Add();
  }
  std::fill(data.begin(), data.end(), std::byte{0xff});
  LOG_TRACE("bus", "{:#x} read of {} bytes is nobody's", address, data.size());
}

void Bus::Write(std::uint64_t address, std::span<const std::byte> data) {
  if (!impl_->CountWidth(data.size())) return;
  impl_->Store(address, data,
               [data](MmioHandler& handler, std::uint64_t offset) { handler.Write(offset, data); });
}

void Bus::WriteBlock(std::uint64_t address, Block data) {
  CHECK(address % kBlockSize == 0);
  impl_->Store(address, data, [data](MmioHandler& handler, std::uint64_t offset) {
    handler.WriteBlock(offset, data);
  });
}

void Bus::Drain() const {
  const MutexLock lock(impl_->gate->mutex);
  while (impl_->gate->retired != 0) impl_->gate->changed.wait(impl_->gate->mutex);
}

std::vector<RangeInfo> Bus::Ranges() const {
  const std::shared_ptr<const Impl::Table> table = impl_->Snapshot();
  std::vector<RangeInfo> ranges;
  ranges.reserve(table->entries.size());
  for (const auto& entry : table->entries) {
    ranges.push_back(
        {entry->base, entry->size, entry->name, entry->reads.Get(), entry->writes.Get()});
  }
  return ranges;
}

void Bus::ReportCounters(CounterSink& sink) const {
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
  {
    // Under the lock, so that a range given up meanwhile is counted once: here or among the past
    // ones.
    const MutexLock lock(impl_->mutex);
    reads = impl_->past_reads.Get();
    writes = impl_->past_writes.Get();
    for (const auto& entry : impl_->table->entries) {
      reads += entry->reads.Get();
      writes += entry->writes.Get();
    }
  }
  sink.Add("reads", reads);
  sink.Add("writes", writes);
  sink.Add("unmatched_reads", impl_->unmatched_reads.Get());
  sink.Add("unmatched_writes", impl_->unmatched_writes.Get());
  sink.Add("straddles", impl_->straddles.Get());
  sink.Add("odd_widths", impl_->odd_widths.Get());
}

}  // namespace postern::bus
