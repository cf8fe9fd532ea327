#pragma once

// The wire structures and numbers of the virtio block device (VIRTIO 1.2, 5.2). Layout alone, no
// logic.

#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace postern::virtio {

// 5.2.3: feature bits.
constexpr std::uint64_t kBlkFeatureSegMax = std::uint64_t{1} << 2;
constexpr std::uint64_t kBlkFeatureRo = std::uint64_t{1} << 5;
constexpr std::uint64_t kBlkFeatureBlkSize = std::uint64_t{1} << 6;
constexpr std::uint64_t kBlkFeatureFlush = std::uint64_t{1} << 9;
constexpr std::uint64_t kBlkFeatureTopology = std::uint64_t{1} << 10;
constexpr std::uint64_t kBlkFeatureConfigWce = std::uint64_t{1} << 11;
constexpr std::uint64_t kBlkFeatureMq = std::uint64_t{1} << 12;
constexpr std::uint64_t kBlkFeatureDiscard = std::uint64_t{1} << 13;
constexpr std::uint64_t kBlkFeatureWriteZeroes = std::uint64_t{1} << 14;

// 5.2.4: struct virtio_blk_config, up to where our features reach.
struct BlkConfig {
  le64 capacity;  // in sectors of 512 bytes, whatever blk_size says
  le32 size_max;
  le32 seg_max;
  le16 cylinders;
  std::uint8_t heads;
  std::uint8_t sectors;
  le32 blk_size;
  std::uint8_t physical_block_exp;
  std::uint8_t alignment_offset;
  le16 min_io_size;
  le32 opt_io_size;
  std::uint8_t writeback;
  std::uint8_t unused0;
  le16 num_queues;
  le32 max_discard_sectors;
  le32 max_discard_seg;
  le32 discard_sector_alignment;
  le32 max_write_zeroes_sectors;
  le32 max_write_zeroes_seg;
  std::uint8_t write_zeroes_may_unmap;
  std::uint8_t unused1[3];
};
static_assert(offsetof(BlkConfig, blk_size) == 20);
static_assert(offsetof(BlkConfig, writeback) == 32);
static_assert(offsetof(BlkConfig, num_queues) == 34);
static_assert(offsetof(BlkConfig, max_discard_sectors) == 36);
static_assert(offsetof(BlkConfig, write_zeroes_may_unmap) == 56);
constexpr std::uint32_t kBlkConfigSize = 60;

// 5.2.6: request types.
constexpr std::uint32_t kBlkTypeIn = 0;
constexpr std::uint32_t kBlkTypeOut = 1;
constexpr std::uint32_t kBlkTypeFlush = 4;
constexpr std::uint32_t kBlkTypeGetId = 8;
constexpr std::uint32_t kBlkTypeDiscard = 11;
constexpr std::uint32_t kBlkTypeWriteZeroes = 13;

struct BlkHeader {
  le32 type;
  le32 reserved;
  le64 sector;
};
static_assert(sizeof(BlkHeader) == 16);

// One range of a discard or write-zeroes request.
struct BlkRange {
  le64 sector;
  le32 num_sectors;
  le32 flags;
};
static_assert(sizeof(BlkRange) == 16);
constexpr std::uint32_t kBlkRangeUnmap = 1;

enum class BlkStatus : std::uint8_t { kOk = 0, kIoErr = 1, kUnsupported = 2 };

constexpr std::uint64_t kSectorSize = 512;
constexpr std::size_t kBlkIdSize = 20;

}  // namespace postern::virtio
