#include "devices/siov/dsa/shape.h"

#include <algorithm>
#include <bit>

namespace postern::dsa {
namespace {

constexpr std::uint32_t kMaxWqs = 8;     // of an Intel DSA; MSIXPERM and WQCFG have room for them
constexpr std::uint32_t kMaxGroups = 8;  // GRPCFG lies between 0x600 and 0x800
constexpr std::uint32_t kMaxEngines = 64;
constexpr std::uint32_t kMaxEntries = 0xffff;
constexpr std::uint32_t kPolledEntries = 63;
constexpr std::uint32_t kDefaultEntries = 128;
constexpr std::uint32_t kDefaultSize = 32;
// Fields of 5 and 4 bits.
constexpr std::uint32_t kMaxTransferShift = 31;
constexpr std::uint32_t kMaxBatchShift = 15;
constexpr std::uint32_t kBatchOperation = 1;

std::uint32_t Or(std::uint32_t asked, std::uint32_t otherwise) {
  return asked != 0 ? asked : otherwise;
}

Result<void> CheckCaps(const siov::BackendCaps& caps) {
  if (caps.queues == 0 || caps.queues > siov::kMaxQueues || caps.entries == 0 || caps.engines == 0)
    return Err(Errc::kInvalidArgument, "back end: has no queue, entry or engine");
  if (!std::has_single_bit(caps.max_transfer))
    return Err(Errc::kInvalidArgument, "back end: largest transfer is no power of two");
  if (caps.max_batch == 1 || (caps.max_batch != 0 && !std::has_single_bit(caps.max_batch)))
    return Err(Errc::kInvalidArgument, "back end: largest batch is no power of two above 1");
  return {};
}

Result<void> CheckCounts(const DsaShape& shape, const siov::BackendCaps& caps) {
  if (shape.wqs > kMaxWqs) return Err(Errc::kInvalidArgument, "wqs: must be 1 to 8");
  if (shape.wqs > caps.queues)
    return Err(Errc::kInvalidArgument, "wqs: more than the back end has queues");
  if (shape.groups > kMaxGroups) return Err(Errc::kInvalidArgument, "groups: must be 1 to 8");
  if (shape.engines > kMaxEngines) return Err(Errc::kInvalidArgument, "engines: must be 1 to 64");
  if (shape.engines > caps.engines)
    return Err(Errc::kInvalidArgument, "engines: more than the back end has");
  if (!shape.configurable && shape.groups != 1)
    return Err(Errc::kInvalidArgument, "groups: profile ro has one");
  return {};
}

Result<void> SetEntries(DsaShape& shape, const DsaOptions& options, const siov::BackendCaps& caps) {
  const std::uint32_t available = std::min(caps.entries, kMaxEntries);
  if (options.wq_size > kMaxEntries)
    return Err(Errc::kInvalidArgument, "wq-size: must be 1 to 65535");
  if (shape.configurable) {
    const std::uint32_t polled = kPolledEntries * shape.wqs;
    shape.entries = Or(options.entries, std::min({kDefaultEntries, polled, available}));
    shape.wq_size = Or(options.wq_size, std::min(kPolledEntries, shape.entries));
    if (shape.entries < shape.wqs) return Err(Errc::kInvalidArgument, "entries: fewer than queues");
    if (shape.wq_size > shape.entries)
      return Err(Errc::kInvalidArgument, "wq-size: more than all queues have together");
  } else {
    if (options.entries != 0)
      return Err(Errc::kInvalidArgument, "entries: profile ro has wqs times wq-size");
    shape.wq_size = Or(options.wq_size, std::min(kDefaultSize, available / shape.wqs));
    shape.entries = shape.wq_size * shape.wqs;
    if (shape.entries == 0)
      return Err(Errc::kInvalidArgument, "wqs: more than the back end has entries");
  }
  if (shape.entries > available) {
    return shape.configurable && options.entries != 0
               ? Err(Errc::kInvalidArgument, "entries: more than the back end has")
               : Err(Errc::kInvalidArgument, "wq-size: more entries than the back end has");
  }
  return {};
}

}  // namespace

Result<DsaShape> ShapeOf(const DsaOptions& options, const siov::BackendCaps& caps) {
  TRY(CheckCaps(caps));
  const bool configurable = options.profile == DsaProfile::kConfigurable;
  DsaShape shape;
  shape.configurable = configurable;
  shape.event_log = options.event_log;
  shape.handles = options.handles || caps.named_handles;
  shape.operations_config = options.operations_config;
  shape.mode_support = !configurable && options.mode_support;
  shape.wqs = Or(options.wqs, configurable ? std::min(kMaxWqs, caps.queues) : 1);
  shape.groups = Or(options.groups, configurable ? 4 : 1);
  shape.engines = Or(options.engines, std::min(caps.engines, configurable ? 4U : 1U));
  TRY(CheckCounts(shape, caps));
  TRY(SetEntries(shape, options, caps));
  shape.transfer_shift =
      std::min(kMaxTransferShift, static_cast<std::uint32_t>(std::countr_zero(caps.max_transfer)));
  shape.operations = caps.operations;
  if (caps.max_batch == 0) {
    shape.operations[0] &= ~(std::uint64_t{1} << kBatchOperation);
  } else {
    shape.batch_shift =
        std::min(kMaxBatchShift, static_cast<std::uint32_t>(std::countr_zero(caps.max_batch)));
  }
  return shape;
}

}  // namespace postern::dsa
