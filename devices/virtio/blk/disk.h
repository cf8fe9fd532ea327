#pragma once

// Disk: the opened, locked and measured raw file or block device behind a virtio-blk device.
//
// Is not a format: bytes of the guest's disk are bytes of the file. Ownership: sole owner of the
// descriptor, and with it of the lock, which keeps other processes (and other disks of this one)
// from writing to what we write. Threads: any, once opened.

#include <cstdint>
#include <string>

#include "src/base/failure.h"
#include "src/base/fd.h"

namespace postern::virtio {

class Disk {
 public:
  // `direct`: O_DIRECT, bypassing the host's page cache.
  [[nodiscard]] static Outcome<Disk> Open(const std::string& path, bool readonly, bool direct);

  Disk(Disk&&) = default;
  Disk& operator=(Disk&&) = delete;
  ~Disk();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] bool readonly() const { return readonly_; }
  [[nodiscard]] bool direct() const { return direct_; }
  [[nodiscard]] bool block_device() const { return block_device_; }
  // Bytes the guest may use now: a multiple of block_size(). Asks the host each time.
  [[nodiscard]] Result<std::uint64_t> Size() const;

  // Geometry, in bytes. The logical block is what requests should be multiples of.
  [[nodiscard]] std::uint32_t block_size() const { return block_size_; }
  [[nodiscard]] std::uint32_t physical_block_size() const { return physical_block_size_; }
  [[nodiscard]] std::uint32_t optimal_io_size() const { return optimal_io_size_; }
  // What O_DIRECT asks of buffer addresses; 1 without.
  [[nodiscard]] std::uint32_t memory_alignment() const { return memory_alignment_; }
  [[nodiscard]] bool can_discard() const { return can_discard_; }

 private:
  Disk() = default;
  Outcome<void> Lock();
  Outcome<void> Measure();
  void MeasureDirect();
  void WarnOfFormat() const;

  Fd fd_;
  std::string path_;
  bool readonly_ = false;
  bool direct_ = false;
  bool block_device_ = false;
  bool can_discard_ = false;
  std::uint32_t block_size_ = 512;
  std::uint32_t physical_block_size_ = 512;
  std::uint32_t optimal_io_size_ = 0;
  std::uint32_t memory_alignment_ = 1;
};

}  // namespace postern::virtio
