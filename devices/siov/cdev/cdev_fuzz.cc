// Descriptors of any content, and all an owner can do, on a queue that keeps the driver's rules:
// what reaches it names the guest's memory alone.

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "devices/siov/cdev/cdev_rig.h"
#include "src/base/check.h"
#include "src/base/log.h"
#include "tests/support/fuzz_input.h"

namespace postern::dsa {
namespace {

siov::Descriptor Any(testing::FuzzInput& input) {
  RigDescriptor some;
  some.opcode = static_cast<Opcode>(input.Take(1) % 0x22);
  some.flags = static_cast<std::uint32_t>(input.Take(1)) | Flag::kRecordValid;
  some.place = static_cast<std::uint32_t>(input.Take(1) % 16);
  some.size = static_cast<std::uint32_t>(input.Take(2));
  siov::Descriptor descriptor = Make(some);
  // Up to four words of any value.
  for (std::uint64_t n = input.Take(1) % 5; n > 0; --n) {
    const std::size_t at = input.Take(1) % 8 * 8;
    const std::uint64_t value = input.Take(8);
    std::memcpy(descriptor.data() + at, &value, sizeof(value));
  }
  return descriptor;
}

void Step(testing::FuzzInput& input, CdevRig& rig) {
  const siov::QueueSet queues = input.Take(1);
  switch (input.Take(1) % 12) {
    case 0:
      (void)rig.Enable(static_cast<std::uint32_t>(input.Take(1)));
      break;
    case 1:
      rig.backend->Drain(queues, [](siov::HaltResult) {});
      break;
    case 2:
      rig.backend->Disable(queues, [](siov::HaltResult) {});
      break;
    case 3:
      rig.backend->Abort(queues, [](siov::HaltResult) {});
      break;
    case 4:
      rig.queue->Fail(input.Take(1) % 2 == 0 ? EAGAIN : EINVAL, 3);
      break;
    case 5: {
      CompletionRecord record;
      record.status = static_cast<std::uint8_t>(input.Take(1) | 1);
      record.fault_address = le64(input.Take(8));
      rig.queue->Script(record);
      break;
    }
    case 6:
      rig.backend->Reset();
      break;
    case 7: {
      rig.backend->Quiesce();
      const auto state = rig.backend->Save();
      if (state) (void)rig.backend->Restore(*state);
      rig.backend->Resume();
      break;
    }
    default:
      (void)rig.Submit(Any(input));
      break;
  }
}

void Run(const std::uint8_t* data, std::size_t size) {
  log::SetLevel(LogLevel::kOff);
  testing::FuzzInput input(data, size);
  CdevRig rig;
  CHECK(rig.Enable().empty());
  for (int steps = 0; input.left() && steps < 64; ++steps) Step(input, rig);
  rig.queue->Fail(0, 0);
  rig.backend->Quiesce();
  CHECK(rig.events.lost.load() == 0);
  CHECK(rig.queue->dropped() == 0);
  CHECK(rig.queue->refused() == 0);
}

}  // namespace
}  // namespace postern::dsa

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::dsa::Run(data, size);
  return 0;
}
