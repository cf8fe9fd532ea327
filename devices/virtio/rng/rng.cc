#include "devices/virtio/rng/rng.h"

#include <algorithm>

#include "src/base/random.h"

namespace postern::virtio {

void Rng::ReadConfig(std::uint64_t /*offset*/, std::span<std::byte> data) {
  std::fill(data.begin(), data.end(), std::byte{0});
}

void Rng::OnChain(std::uint16_t /*queue*/, Chain chain) {
  // 5.4.6.1: the driver must not give readable buffers; they are left unread.
  std::array<std::byte, 4096> chunk{};
  Writer writer = chain.writer();
  const std::uint64_t wanted = std::min(writer.remaining(), kMaxBytesPerRequest);
  while (writer.written() < wanted) {
    const std::span<std::byte> part =
        std::span(chunk).first(std::min<std::uint64_t>(chunk.size(), wanted - writer.written()));
    // 5.4.6.2: at least one byte is owed; where the host refuses, an empty answer is all there is.
    if (!FillRandom(part) || !writer.Copy(part)) {
      errors_.Add();
      break;
    }
  }
  bytes_.Add(writer.written());
  chain.Complete(static_cast<std::uint32_t>(writer.written()));
}

void Rng::ReportCounters(CounterSink& sink) const {
  SingleLoopDevice::ReportCounters(sink);
  sink.Add("bytes", bytes_.Get());
  sink.Add("errors", errors_.Get());
}

Result<void> Rng::Restore(const RngState& state) {
  if (state.version != RngState{}.version) return Err(Errc::kBadFormat, "rng state: version");
  return {};
}

}  // namespace postern::virtio
