// Any sequence of a Backend's calls, with the states and configurations they carry, and stores to a
// polled page. Each step takes four bytes: what, and three values. A call that must finish does so
// once; one that a reset forgot does not.

#include "devices/siov/engine/engine.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"
#include "src/base/check.h"

namespace postern::dsa {
namespace {

constexpr std::uint32_t kQueues = 3;
constexpr std::size_t kIds = 256;

struct Step {
  std::uint8_t what, a, b, c;
};

// Finished since a reset, of the calls made since.
struct Calls {
  std::uint32_t made = 0;
  std::shared_ptr<std::atomic<std::uint32_t>> finished =
      std::make_shared<std::atomic<std::uint32_t>>(0);
};

siov::DeviceConfig DeviceOf(const Step& step) {
  siov::DeviceConfig config;
  if (step.a != 0) config.groups.push_back({.queues = step.a & 0xfU, .engines = step.b % 3U});
  if (step.c != 0) config.groups.push_back({.queues = step.c & 0xfU, .engines = step.c / 64U});
  return config;
}

siov::QueueConfig QueueOf(const Step& step) {
  return {.size = step.b,
          .priority = static_cast<std::uint8_t>(step.c & 15U),
          .max_transfer = (step.c & 0x20U) != 0 ? 0 : std::uint64_t{1} << (step.c >> 3),
          .max_batch = step.c,
          .operations = {std::uint64_t{step.c} >> 6}};
}

class BackendCalls {
 public:
  BackendCalls()
      : ledger_(kIds),
        engine_(Engine::Create({.name = "fuzz",
                                .workers = 2,
                                .queues = kQueues,
                                .entries = 128,
                                .operations = {1},
                                .named_handles = true},
                               {.runner = ledger_.Runners(), .polled = PolledPages()})
                    .value()) {
    ledger_.Release();
    engine_->Attach(events_);
  }

  void Run(const std::uint8_t* data, std::size_t size) {
    Forget();
    engine_->Resume();
    engine_->Reset();
    if ((size & 3U) != 0) (void)engine_->Start({.groups = {{.queues = 7, .engines = 2}}});
    // Longer inputs reach nothing that this many steps do not.
    for (std::size_t i = 0; i + 4 <= size && i < 512; i += 4)
      Do({data[i], data[i + 1], data[i + 2], data[i + 3]});
    Settle();
  }

 private:
  void Do(const Step& step) {
    switch (step.what & 15U) {
      case 0:
      case 1:
      case 2:
        (void)engine_->Submit(step.a & 3U, DescriptorOf(step));
        break;
      case 3:
        (void)engine_->Enable(step.a & 3U, QueueOf(step));
        break;
      case 4:
        engine_->Drain(step.a, NewDone());
        break;
      case 5:
        engine_->Disable(step.a, NewDone());
        break;
      case 6:
        engine_->Abort(step.a, NewDone());
        break;
      case 7:
        (void)engine_->Start(DeviceOf(step));
        break;
      case 8:
        (step.a & 1U) != 0 ? engine_->Reset() : engine_->Stop();
        Forget();
        break;
      case 9:
        (step.a & 1U) != 0 ? engine_->Quiesce() : engine_->Resume();
        break;
      case 10:
        SaveAndRestore();
        break;
      case 11:
        RestoreOther(step);
        break;
      default:
        DoWithPages(step);
        break;
    }
  }

  void DoWithPages(const Step& step) {
    switch (step.what & 3U) {
      case 0: {
        const auto pages = engine_->OpenPortal(step.a & 3U, step.b & 3U,
                                               static_cast<siov::PortalMode>(step.c % 3U));
        if (pages) page_.emplace(*pages);
        break;
      }
      case 1:
        engine_->StopPolling(step.a & 3U);
        break;
      case 2:
        if (!page_) break;
        if ((step.a & 0x80U) == 0) {
          page_->Store(DescriptorOf(step));
        } else {
          page_->StoreAt(step.a & 63U, DescriptorOf(step));
        }
        break;
      default: {
        const auto handle = engine_->OpenHandle(step.a);
        if (handle && (step.b & 1U) != 0) engine_->CloseHandle(*handle);
        break;
      }
    }
  }

  static siov::Descriptor DescriptorOf(const Step& step) {
    return FakeDescriptor(static_cast<FakeOp>(1U + step.c % 4U), step.b);
  }

  siov::Done NewDone() {
    ++calls_.made;
    return [finished = calls_.finished](siov::HaltResult result) {
      CHECK(result == siov::HaltResult::kDone);
      finished->fetch_add(1);
    };
  }

  // The calls that have not finished never will.
  void Forget() {
    if (old_.finished) CHECK(old_.finished->load() == old_.made);
    old_ = {.made = calls_.finished->load(), .finished = calls_.finished};
    calls_ = {};
  }

  void SaveAndRestore() {
    const auto state = engine_->Save();
    if (!state) return;
    // What it says of itself it takes back.
    CHECK(engine_->Restore(*state).has_value());
    Forget();
    const auto again = engine_->Save();
    CHECK(again.has_value());
    for (std::uint32_t i = 0; i < kQueues; ++i) {
      CHECK(again->queues[i].enabled == state->queues[i].enabled);
      CHECK(again->queues[i].waiting == state->queues[i].waiting);
    }
  }

  void RestoreOther(const Step& step) {
    siov::BackendState state{.version = step.what < 0xe0 ? 1U : step.a, .started = step.c != 0};
    if (state.started) state.device = DeviceOf({0, 7, 1, 0});
    state.queues.resize(step.a < 0xf0 ? kQueues : step.a & 7U);
    for (siov::QueueState& queue : state.queues) {
      queue.enabled = (step.b & 1U) != 0;
      queue.config = QueueOf(step);
      queue.waiting.assign(step.b, DescriptorOf(step));
    }
    if (engine_->Restore(state)) Forget();
  }

  // All that may finish does.
  void Settle() {
    engine_->Resume();
    engine_->Drain(~siov::QueueSet{0}, NewDone());
    CHECK(WaitFor([&] { return calls_.finished->load() == calls_.made; }));
    // Pages of a queue that held more than its size may have had more to give.
    for (std::uint32_t i = 0; i < kQueues; ++i)
      CHECK(WaitFor([&] { return engine_->Occupancy(i) == 0; }));
    CHECK(ledger_.torn() == 0);
    CHECK(events_.lost.load() == 0);
  }

  Ledger ledger_;
  FakeBackendEvents events_;
  std::unique_ptr<Engine> engine_;
  std::optional<PageDriver> page_;  // of the queue opened last; its pages stay with the engine
  Calls calls_;
  Calls old_;
};

}  // namespace
}  // namespace postern::dsa

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // One engine for all: each input begins with a reset of whatever the one before left.
  static postern::dsa::BackendCalls sequence;
  sequence.Run(data, size);
  return 0;
}
