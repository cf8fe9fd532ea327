#pragma once

// Fakes around an Engine for its tests: a runner with descriptors of its own whose every run is
// written down (Ledger), the events a Vdev would hear, and a driver's side of a polled page.
//
//   Ledger ledger(1000);
//   auto engine = Engine::Create(options, {.runner = ledger.Runners(), .polled = PolledPages()});
//   engine->Submit(0, Note(7));
//   WaitFor([&] { return ledger.runs(7) == 1; });
//
// Threads: everything here may be used from any.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/engine/descriptor_runner.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"

namespace postern::dsa {

// True when `condition` is, within a time that a loaded machine keeps.
[[nodiscard]] inline bool WaitFor(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

// Descriptors of the fake: word 0 is what to do and whom to signal, word 1 who it is.
enum class FakeOp : std::uint8_t {
  kNote = 1,    // is written down
  kLong = 2,    // asks aborted() until the ledger is released
  kDrain = 3,   // waits for earlier ones
  kBroken = 4,  // an error for the events
};

[[nodiscard]] inline siov::Descriptor FakeDescriptor(FakeOp op, std::uint64_t id,
                                                     std::uint32_t handle = 0) {
  siov::Descriptor descriptor{};
  const std::array<std::uint64_t, 8> words{
      static_cast<std::uint64_t>(op) | std::uint64_t{handle} << 32, id, ~id, id, ~id, id, ~id, id};
  std::memcpy(descriptor.data(), words.data(), sizeof(words));
  return descriptor;
}
[[nodiscard]] inline siov::Descriptor Note(std::uint64_t id, std::uint32_t handle = 0) {
  return FakeDescriptor(FakeOp::kNote, id, handle);
}

class Ledger {
 public:
  explicit Ledger(std::size_t ids)
      : ids_(ids), runs_(std::make_unique<std::atomic<std::uint8_t>[]>(ids)) {}

  [[nodiscard]] RunnerFactory Runners() {
    return [this](ExecutorEnvironment& environment) {
      return std::make_unique<Runner>(*this, environment);
    };
  }
  void KeepOrder() { keeps_order_ = true; }
  void Release(bool released = true) { released_.store(released); }

  [[nodiscard]] std::uint32_t runs(std::uint64_t id) const { return runs_[id].load(); }
  [[nodiscard]] std::uint64_t done() const { return done_.load(); }
  [[nodiscard]] std::uint64_t aborted() const { return aborted_.load(); }
  // Descriptors that are not as FakeDescriptor makes them, or of no id.
  [[nodiscard]] std::uint64_t torn() const { return torn_.load(); }
  // kLong descriptors in the middle.
  [[nodiscard]] std::uint32_t in_the_middle() const { return in_the_middle_.load(); }
  [[nodiscard]] std::uint32_t most_in_the_middle() const { return most_in_the_middle_.load(); }
  // How many of [0, ids) ran exactly once.
  [[nodiscard]] std::uint64_t once() const {
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < ids_; ++i) count += runs_[i].load() == 1 ? 1U : 0U;
    return count;
  }
  [[nodiscard]] std::vector<std::pair<std::uint32_t, std::uint64_t>> order() const {
    const MutexLock lock(mutex_);
    return order_;
  }

 private:
  class Runner final : public DescriptorRunner {
   public:
    Runner(Ledger& ledger, ExecutorEnvironment& environment)
        : ledger_(ledger), environment_(environment) {}
    Executed Run(const QueueLimits& limits, const siov::Descriptor& descriptor) override {
      return ledger_.Run(environment_, limits, descriptor);
    }

   private:
    Ledger& ledger_;
    ExecutorEnvironment& environment_;
  };

  Executed Run(ExecutorEnvironment& environment, const QueueLimits& limits,
               const siov::Descriptor& descriptor) {
    std::array<std::uint64_t, 8> words{};
    std::memcpy(words.data(), descriptor.data(), sizeof(words));
    const auto op = static_cast<FakeOp>(words[0] & 0xff);
    const auto handle = static_cast<std::uint32_t>(words[0] >> 32);
    const std::uint64_t id = words[1];
    if (id >= ids_ || descriptor != FakeDescriptor(op, id, handle)) {
      torn_.fetch_add(1);
      return {.status = 0x12};
    }
    if (op == FakeOp::kLong && !Middle(environment)) {
      aborted_.fetch_add(1);
      return {.status = 0};
    }
    if (op == FakeOp::kDrain) environment.WaitForEarlier();
    if (op == FakeOp::kDrain && environment.aborted()) return {.status = 0};
    if (op == FakeOp::kBroken) environment.OnError({.queue = limits.queue, .words = {id, 0, 0, 0}});
    if (keeps_order_) {
      const MutexLock lock(mutex_);
      order_.emplace_back(limits.queue, id);
    }
    runs_[id].fetch_add(1);
    done_.fetch_add(1);
    if (handle != 0 && environment.IsHandle(handle)) environment.SignalHandle(handle);
    return {.operation = static_cast<std::uint8_t>(op), .status = 1, .bytes = 100};
  }

  // False: aborted.
  bool Middle(ExecutorEnvironment& environment) {
    const std::uint32_t now = in_the_middle_.fetch_add(1) + 1;
    std::uint32_t most = most_in_the_middle_.load();
    while (most < now && !most_in_the_middle_.compare_exchange_weak(most, now)) {
    }
    bool aborted = environment.aborted();
    while (!released_.load() && !aborted) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      aborted = environment.aborted();
    }
    in_the_middle_.fetch_sub(1);
    return !aborted;
  }

  const std::size_t ids_;
  std::unique_ptr<std::atomic<std::uint8_t>[]> runs_;
  bool keeps_order_ = false;
  std::atomic<bool> released_{false};
  std::atomic<std::uint64_t> done_{0}, aborted_{0}, torn_{0};
  std::atomic<std::uint32_t> in_the_middle_{0}, most_in_the_middle_{0};
  mutable Mutex mutex_;
  std::vector<std::pair<std::uint32_t, std::uint64_t>> order_ GUARDED_BY(mutex_);
};

class FakeBackendEvents final : public siov::BackendEvents {
 public:
  [[nodiscard]] bool IsHandle(std::uint32_t handle) const override { return handle < 100; }
  void SignalHandle(std::uint32_t handle) override {
    last_handle.store(handle);
    signals.fetch_add(1);
  }
  void OnError(const siov::ErrorRecord& record) override {
    last_error.store(record.words[0]);
    errors.fetch_add(1);
  }
  void OnRefused(std::uint32_t queue, siov::SubmitResult why) override {
    (void)queue;
    if (why == siov::SubmitResult::kFull) refused_full.fetch_add(1);
  }
  void OnRuleBroken(std::uint32_t queue) override {
    broken_queue.store(queue);
    rules_broken.fetch_add(1);
  }
  void OnHandlesRevoked() override {}
  void OnLost() override { lost.fetch_add(1); }

  std::atomic<std::uint64_t> signals{0}, errors{0}, refused_full{0}, rules_broken{0}, lost{0};
  std::atomic<std::uint64_t> last_handle{0}, last_error{0}, broken_queue{~0ULL};
};

class CounterMap final : public CounterSink {
 public:
  explicit CounterMap(const siov::Backend& backend) { backend.ReportCounters(*this); }
  void Add(std::string_view name, std::uint64_t value) override {
    values_[std::string(name)] = value;
  }
  // 0 for a counter that is not there.
  [[nodiscard]] std::uint64_t operator[](const std::string& name) const {
    const auto it = values_.find(name);
    return it == values_.end() ? 0 : it->second;
  }

 private:
  std::map<std::string, std::uint64_t> values_;
};

// The driver's side of one polled page, as Linux idxd does it: the next slot for each descriptor.
class PageDriver {
 public:
  explicit PageDriver(const bus::HostPages& pages)
      : words_(static_cast<std::uint64_t*>(static_cast<void*>(pages.address))) {}
  void Store(const siov::Descriptor& descriptor) {
    StoreAt(next_, descriptor);
    next_ = (next_ + 1) % 64;
  }
  // Words with the first one last.
  void StoreAt(std::uint32_t slot, const siov::Descriptor& descriptor) {
    std::array<std::uint64_t, 8> words{};
    std::memcpy(words.data(), descriptor.data(), sizeof(words));
    std::uint64_t* const at = words_ + slot * words.size();
    for (std::size_t i = words.size(); i-- > 0;)
      __atomic_store_n(at + i, words[i], __ATOMIC_RELEASE);
  }

 private:
  std::uint64_t* words_;
  std::uint32_t next_ = 0;
};

}  // namespace postern::dsa
