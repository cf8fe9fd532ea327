#pragma once

// Engine: the back end that does the work itself: worker threads that read a virtual device's
// queues and carry out what is in them. Needs nothing of the host; the embedded default.
//
//   auto engine = TRY(Engine::Create({.name = "dsa0", .operations = kOperations},
//                                    {.runner = ExecutorRunners(memory, caps), .polled =
//                                    PolledPages()}));
//   auto vdev = TRY(siov::Vdev::Create(options, std::move(personality), std::move(engine), host));
//
// Portals: polled (pages that the workers of the queue's group read: submission costs no exit) and
// trapped (Submit). What StopPolling ends begins again with OpenPortal, and with nothing else.
//
// Halting: Disable takes nothing from the moment it is called. Abort and Reset end what is under
// way between two pieces, without a record. Quiesce lets descriptors under way finish for
// `quiesce_grace`, then holds them between two pieces, where Resume lets them go on; such a half
// done descriptor cannot be saved (Save: kBadState; resume and try again).
//
// Ownership: owns threads and pages; borrows the events. Threads: as Backend; the threads are there
// from Create to the destructor, and sleep without a timeout while no polled queue is enabled.

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/engine/descriptor_runner.h"
#include "devices/siov/engine/polled_source.h"
#include "devices/siov/engine/work_queue.h"
#include "devices/siov/engine/worker.h"

namespace postern::dsa {

struct EngineOptions {
  // Threads are "NAME-engineN" (of which Linux keeps 15 bytes).
  std::string name = "dsa";
  std::uint32_t workers = 1;    // at most kMaxWorkers
  std::uint32_t queues = 8;     // at most siov::kMaxQueues
  std::uint32_t entries = 128;  // of all queues together, at most 65535
  siov::OperationSet operations{};
  std::uint64_t max_transfer = std::uint64_t{1} << 31;  // a power of two
  std::uint32_t max_batch = 1024;                       // a power of two, or 0
  PollPolicy poll;                                      // sleeps of 1 us to 1 s
  std::uint16_t vectors = 0;                            // of MSI-X; 0: one more than queues
  // Handles differ from vector numbers, and no two are the same soon: the guest has to ask, and to
  // ask anew after a migration.
  bool named_handles = false;
  std::chrono::milliseconds quiesce_grace{500};
};

struct EngineParts {
  RunnerFactory runner;
  PolledFactory polled;  // empty: no polled portals
};

class Engine final : public siov::Backend {
 public:
  // kInvalidArgument for options beyond their limits; kSystem when a thread cannot be made.
  [[nodiscard]] static Result<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                              EngineParts parts);
  ~Engine() override;

  [[nodiscard]] std::string Describe() const override;
  [[nodiscard]] const siov::BackendCaps& caps() const override { return caps_; }
  void Attach(siov::BackendEvents& events) override;
  [[nodiscard]] Result<bus::HostPages> OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                  siov::PortalMode mode) override;
  void StopPolling(std::uint32_t queue) override;
  [[nodiscard]] siov::SubmitResult Submit(std::uint32_t queue,
                                          const siov::Descriptor& descriptor) override;
  // kInvalidArgument for groups that share queues, have queues and no engines, or more engines
  // than there are; kBadState while started.
  [[nodiscard]] Result<void> Start(const siov::DeviceConfig& config) override;
  void Stop() override;
  // kInvalidArgument for what is beyond caps(), for a queue of no group, and for one of more than
  // 63 entries that is polled; kExhausted when entries run out; kBadState while it is not disabled.
  [[nodiscard]] Result<void> Enable(std::uint32_t queue, const siov::QueueConfig& config) override;
  void Drain(siov::QueueSet queues, siov::Done done) override;
  void Disable(siov::QueueSet queues, siov::Done done) override;
  void Abort(siov::QueueSet queues, siov::Done done) override;
  void Reset() override;
  [[nodiscard]] Result<std::uint32_t> OpenHandle(std::uint16_t vector) override;
  void CloseHandle(std::uint32_t handle) override;
  void SetVector(std::uint16_t vector, const EventFd* trigger) override;
  [[nodiscard]] std::uint32_t Occupancy(std::uint32_t queue) const override;
  void Quiesce() override;
  void Resume() override;
  [[nodiscard]] Result<siov::BackendState> Save() override;
  [[nodiscard]] Result<void> Restore(const siov::BackendState& state) override;
  void ReportCounters(CounterSink& sink) const override;

 private:
  Engine(EngineOptions options, EngineParts parts);
  [[nodiscard]] Result<void> StartThreads();
  [[nodiscard]] Result<void> CheckDevice(const siov::DeviceConfig& config) const;
  [[nodiscard]] Result<void> CheckQueue(const siov::DeviceConfig& device, std::uint32_t queue,
                                        const siov::QueueConfig& config) const;
  [[nodiscard]] Result<void> CheckState(const siov::BackendState& state) const;
  [[nodiscard]] Result<void> CheckQueueState(const siov::DeviceConfig& device, std::uint32_t queue,
                                             const siov::QueueState& state) const;
  void Halt(HaltKind kind, siov::QueueSet queues, siov::Done done);
  // With the gate shut.
  void Assign(const siov::DeviceConfig& config);
  void Unassign();
  // All queues are void and nobody is inside; the gate is left shut.
  void Clear();
  void EnableQueue(std::uint32_t queue, const siov::QueueConfig& config,
                   const std::vector<siov::Descriptor>& waiting);

  const EngineOptions options_;
  const EngineParts parts_;
  siov::BackendCaps caps_;
  WorkerShared shared_;
  std::vector<std::unique_ptr<WorkQueue>> queues_;
  // One for each group that can have a worker, and the last one for workers without a group.
  std::vector<std::unique_ptr<WorkerGroup>> groups_;
  std::vector<std::unique_ptr<Worker>> workers_;

  // Of the function's lock.
  bool started_ = false;
  bool quiesced_ = false;
  siov::DeviceConfig device_;
  std::set<std::uint32_t> handles_;
  std::uint32_t next_handle_ = 0;
};

}  // namespace postern::dsa
