// Any sequence of descriptors, batches and guest memory: Executor against PlainExecutor.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "devices/siov/engine/executor_pair.h"
#include "src/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::dsa;
  if (size == 0 || size > 4096) return 0;
  // The first byte: what the device cannot do.
  const ExecutorCaps caps{.operations = kAllOperations,
                          .overlapping_copy = (data[0] & 1) == 0,
                          .cache_control = (data[0] & 2) == 0};
  ExecutorPair pair(Sequence::Regions(), caps, Sequence::Handles());
  Sequence sequence(std::span(data, size).subspan(1), pair);
  while (!sequence.empty()) {
    sequence.Scribble();
    const std::string difference = pair.Run(Sequence::Limits(), sequence.Next());
    if (!difference.empty()) (void)std::fprintf(stderr, "%s\n", difference.c_str());
    const bool executors_agree = difference.empty();
    CHECK(executors_agree);
  }
  return 0;
}
