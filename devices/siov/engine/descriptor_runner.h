#pragma once

// DescriptorRunner: the one thing a worker needs of an Executor, so that an Engine runs with
// another in tests. ExecutorRunners makes them of Executors.
//
//   auto engine = TRY(Engine::Create(options, {.runner = ExecutorRunners(machine.memory(),
//   caps)}));
//
// Threads: each worker has one of its own. Ownership: the worker owns it; it borrows the
// environment.

#include <functional>
#include <memory>

#include "devices/siov/core/backend.h"
#include "devices/siov/engine/executor.h"

namespace postern::dsa {

class DescriptorRunner {
 public:
  virtual ~DescriptorRunner() = default;
  // As Executor::Execute.
  virtual Executed Run(const QueueLimits& limits, const siov::Descriptor& descriptor) = 0;
  // The worker is about to sleep: what is kept from one descriptor to the next is given up.
  virtual void Rest() {}
};

using RunnerFactory =
    std::function<std::unique_ptr<DescriptorRunner>(ExecutorEnvironment& environment)>;

// `memory` outlives every runner.
[[nodiscard]] RunnerFactory ExecutorRunners(const memory::MemoryMap& memory,
                                            const ExecutorCaps& caps);

}  // namespace postern::dsa
