#include "devices/siov/engine/descriptor_runner.h"

namespace postern::dsa {
namespace {

class ExecutorRunner final : public DescriptorRunner {
 public:
  ExecutorRunner(const memory::MemoryMap& memory, const ExecutorCaps& caps,
                 ExecutorEnvironment& environment)
      : executor_(memory, caps, environment) {}
  Executed Run(const QueueLimits& limits, const siov::Descriptor& descriptor) override {
    return executor_.Execute(limits, descriptor);
  }
  void Rest() override { executor_.Rest(); }

 private:
  Executor executor_;
};

}  // namespace

RunnerFactory ExecutorRunners(const memory::MemoryMap& memory, const ExecutorCaps& caps) {
  return [&memory, caps](ExecutorEnvironment& environment) {
    return std::make_unique<ExecutorRunner>(memory, caps, environment);
  };
}

}  // namespace postern::dsa
