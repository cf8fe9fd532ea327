// The probe's parameters and the virtio-mmio devices, from the kernel command line. Pure; tested on
// the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace postern::probe {

enum class Mode : uint8_t { kTable, kBlkBench, kNetBench, kExit, kPio, kMmio, kHostile };

// virtio_mmio.device=SIZE@ADDRESS:IRQ[:ID], as Linux defines it (drivers/virtio/virtio_mmio.c) and
// QEMU's microvm passes it.
struct MmioDeviceArgument {
  uint64_t address;
  uint64_t size;
  uint32_t irq;
};

struct Options {
  static constexpr size_t kMaxMmioDevices = 32;

  Mode mode = Mode::kTable;
  uint64_t ops = 1000;
  uint64_t queue_depth = 32;
  uint64_t size = 1400;  // payload bytes of a benchmark packet
  uint64_t seed = 1;
  uint64_t descriptors = 20000;  // of row dsa-run
  uint64_t stores = 64;          // bytes by which descriptors are stored: 64 (if the CPU can) or 8
  uint32_t ip = 0x0a000202;      // 10.0.2.2
  uint32_t peer = 0x0a000201;    // 10.0.2.1
  bool has_peer = true;          // probe.peer=none: only transmit
  uint64_t vsock_port = 1234;
  bool has_vsock_peer = true;  // probe.vsock=none: nobody listens, being refused is right
  std::string_view require{};  // comma-separated device names whose absence is a failure
  std::string_view only{};     // comma-separated rows to which the table is limited
  std::string_view unknown{};  // the first probe.* word that makes no sense; the run fails with it
  MmioDeviceArgument mmio[kMaxMmioDevices]{};
  size_t mmio_count = 0;

  [[nodiscard]] bool Requires(std::string_view name) const;
  [[nodiscard]] bool Wants(std::string_view name) const;  // in the table
};

// Words that are not the probe's are ignored, as a kernel would. `text` must outlive the result.
void ParseCommandLine(std::string_view text, Options& options);

}  // namespace postern::probe
