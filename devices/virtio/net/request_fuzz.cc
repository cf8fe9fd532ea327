// The two parsers of virtio-net, fed through a real ring: whatever they accept must be within
// bounds.
#include "devices/virtio/net/request.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/support/driver_queue.h"
#include "tests/support/memory.h"

namespace {

using namespace postern;               // NOLINT(google-build-using-namespace)
using namespace postern::virtio::net;  // NOLINT(google-build-using-namespace)

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

void FuzzTransmit(const std::uint8_t* data, std::size_t size) {
  if (size < sizeof(PacketHeader) + 12) return;
  PacketHeader header{};
  std::memcpy(&header, data, sizeof(header));
  std::uint64_t features = 0;
  std::memcpy(&features, data + sizeof(header), sizeof(features));
  std::uint32_t length = 0;
  std::memcpy(&length, data + sizeof(header) + 8, sizeof(length));
  length %= kMaxPacket + 2;
  const Result<PacketHeader> out = CheckTransmitHeader(header, length, features);
  if (!out) return;
  if (out->flags != 0) {
    Require((features & kFeatureCsum) != 0);
    Require(std::uint32_t{out->csum_start.get()} + out->csum_offset.get() + 2U <= length);
  }
  if (out->gso_type != kGsoNone) Require(out->flags != 0 && out->gso_size.get() != 0);
  Require(out->hdr_len.get() <= length);
}

void FuzzControl(const std::uint8_t* data, std::size_t size) {
  if (size < 10) return;
  std::uint64_t features = 0;
  std::memcpy(&features, data, sizeof(features));
  const std::size_t cut = data[8] % 16 + 1U;
  data += 9;
  size -= 9;
  if (size > 1024) return;
  static const memory::GuestMemoryPtr memory = testing::MakeMemory(1 << 20);
  testing::DriverQueue driver(memory, {.size = 1024});
  driver.Restart();
  virtio::Queue queue = driver.MakeQueue().value();
  auto build = driver.Build();
  const auto bytes = std::as_bytes(std::span(data, size));
  for (std::size_t at = 0; at < size; at += cut)
    build.Readable(bytes.subspan(at, cut < size - at ? cut : size - at));
  build.Publish();
  virtio::Chain chain = std::move(*queue.Pop().value());
  virtio::Reader reader = chain.reader();
  const Result<Command> command = ParseCommand(reader, features, 8);
  if (command) {
    if (const auto* mode = std::get_if<SetRxMode>(&*command)) Require(mode->mode <= kRxNoBroadcast);
    if (const auto* table = std::get_if<SetMacTable>(&*command))
      Require(table->unicast.size() <= kMaxMacTable && table->multicast.size() <= kMaxMacTable);
    if (const auto* pairs = std::get_if<SetQueuePairs>(&*command))
      Require(pairs->pairs >= 1 && pairs->pairs <= 8);
    if (const auto* offloads = std::get_if<SetGuestOffloads>(&*command))
      Require((offloads->offloads & ~(features & kGuestOffloads)) == 0);
  }
  chain.Complete(0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzTransmit(data, size);
  FuzzControl(data, size);
  return 0;
}
