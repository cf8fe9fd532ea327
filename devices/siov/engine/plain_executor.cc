#include "devices/siov/engine/plain_executor.h"

#include <utility>

#include "devices/siov/engine/plain_descriptor.h"

namespace postern::dsa {

std::uint8_t* PlainMemory::Find(std::uint64_t address) {
  for (Range& range : ranges) {
    if (address >= range.base && address - range.base < range.bytes.size()) {
      return &range.bytes[address - range.base];
    }
  }
  return nullptr;
}

namespace {

bool Touch(std::uint64_t a, std::uint64_t a_size, std::uint64_t b, std::uint64_t b_size) {
  // Of the last byte of each, so that a range may end with the address space; one that goes on
  // beyond it goes on at 0.
  const auto in = [](std::uint64_t x, std::uint64_t base, std::uint64_t size) {
    const std::uint64_t last = base + size - 1;
    return last >= base ? x >= base && x <= last : x >= base || x <= last;
  };
  return in(a, b, b_size) || in(b, a, a_size);
}

enum : unsigned {
  kMayCheckResult = 1,
  kMayWrite = 2,  // cache control 1 and strict order
  kMayClass1 = 4,
  kMayClass2 = 8,
  kMayClass3 = 16,
  kMustRecord = 32,
};

// What an operation may and must have; no value: unknown.
std::optional<unsigned> Allowed(unsigned op) {
  switch (op) {
    case 0x00:
    case 0x02:
      return 0;
    case 0x01:
      return kMayClass1;
    case 0x03:
      return kMayWrite | kMayClass1 | kMayClass2;
    case 0x04:
      return kMayWrite | kMayClass2;
    case 0x05:
      return kMayCheckResult | kMayClass1 | kMayClass2 | kMustRecord;
    case 0x06:
      return kMayCheckResult | kMayClass1 | kMustRecord;
    case 0x07:
      return kMayCheckResult | kMayWrite | kMayClass1 | kMayClass2 | kMayClass3 | kMustRecord;
    case 0x08:
      return kMayWrite | kMayClass1 | kMayClass2;
    case 0x09:
      return kMayWrite | kMayClass1 | kMayClass2 | kMayClass3;
    case 0x10:
      return kMayClass1 | kMayClass3 | kMustRecord;
    case 0x11:
      return kMayWrite | kMayClass1 | kMayClass2 | kMayClass3 | kMustRecord;
    case 0x12:
      return kMayClass1 | kMustRecord;
    case 0x13:
    case 0x14:
    case 0x15:
      return kMayWrite | kMayClass1 | kMayClass2;
    case 0x20:
      return kMayWrite | kMayClass2;
    default:
      return std::nullopt;
  }
}

// Bytes 16..63 that mean something; the interrupt handle is looked at apart.
std::vector<std::pair<unsigned, unsigned>> Meaningful(unsigned op, bool seed_from_memory) {
  switch (op) {
    case 0x00:
    case 0x02:
      return {};
    case 0x01:
      return {{16, 23}, {32, 35}};
    case 0x03:
    case 0x04:
      return {{16, 35}};
    case 0x05:
    case 0x06:
      return {{16, 35}, {40, 40}};
    case 0x07:
      return {{16, 35}, {40, 51}, {56, 56}};
    case 0x08:
      return {{16, 35}, {40, 43}};
    case 0x09:
      return {{16, 35}, {40, 47}};
    case 0x10:
      if (seed_from_memory) return {{16, 23}, {32, 35}, {48, 55}};
      return {{16, 23}, {32, 35}, {40, 43}};
    case 0x11:
      if (seed_from_memory) return {{16, 35}, {48, 55}};
      return {{16, 35}, {40, 43}};
    case 0x12:
      return {{16, 23}, {32, 35}, {40, 40}, {42, 42}, {48, 55}};
    case 0x13:
      return {{16, 35}, {41, 42}, {56, 63}};
    case 0x14:
      return {{16, 35}, {40, 40}, {42, 42}, {48, 55}};
    case 0x15:
      return {{16, 35}, {40, 42}, {48, 63}};
    default:
      return {{24, 35}};
  }
}

}  // namespace

bool PlainExecutor::IsWhole(std::uint64_t address, std::uint64_t size) {
  for (std::uint64_t i = 0; i < size; ++i) {
    if (PlainByte(memory_, address, i) == nullptr) return false;
  }
  return true;
}

Executed PlainExecutor::Execute(const QueueLimits& limits, const siov::Descriptor& descriptor) {
  Raw raw{};
  for (std::size_t i = 0; i < raw.b.size(); ++i)
    raw.b[i] = static_cast<std::uint8_t>(descriptor[i]);
  return One(limits, raw, std::nullopt);
}

Executed PlainExecutor::One(const QueueLimits& limits, const Raw& raw,
                            std::optional<unsigned> index) {
  Executed executed{.operation = static_cast<std::uint8_t>(raw.op())};
  if (raw.Bit(2)) {
    std::optional<Answer> lost;
    if (raw.N(8, 8) % 32 != 0) {
      lost = Answer::Error(0x1b);
    } else if (!IsWhole(raw.N(8, 8), 32)) {
      lost = Answer::Fault(raw.N(8, 8), true, 0);
      lost->status = 0x1a;
    }
    if (lost) {
      Tell(limits, raw, index, *lost);
      executed.status = static_cast<std::uint8_t>(lost->status);
      return executed;
    }
  }
  Answer answer = Check(limits, raw, index.has_value());
  if (answer.status == 1) answer = Do(limits, raw);
  Finish(limits, raw, index, answer);
  executed.status = static_cast<std::uint8_t>(answer.status);
  executed.descriptors = answer.descriptors;
  return executed;
}

PlainExecutor::Answer PlainExecutor::Check(const QueueLimits& limits, const Raw& raw,
                                           bool in_batch) {
  const unsigned op = raw.op();
  const auto has = [op](const siov::OperationSet& set) {
    return (set[op / 64] >> op % 64 & 1) != 0;
  };
  if (!Allowed(op) || !has(caps_.operations) || !has(limits.operations)) return Answer::Error(0x10);
  if (in_batch && (op == 1 || op == 2)) return Answer::Error(0x10);
  if (const std::uint32_t wrong = WrongFlags(raw, in_batch); wrong != 0) {
    Answer answer = Answer::Error(0x11);
    answer.first = wrong;
    return answer;
  }
  std::array<bool, 64> free{};
  for (unsigned i = 0; i < 8; ++i) free[i] = true;
  for (unsigned i = 8; i < 16; ++i) free[i] = raw.Bit(2);
  for (const auto& [first, last] : Meaningful(op, raw.Bit(16))) {
    for (unsigned i = first; i <= last; ++i) free[i] = true;
  }
  free[36] = free[37] = raw.Bit(4);
  for (unsigned i = 0; i < 64; ++i) {
    if (!free[i] && raw.b[i] != 0) return Answer::Error(0x12);
  }
  if (op >= 0x12 && op <= 0x15 && ((raw.b[42] & 0xf0) != 0 || (raw.b[41] & 7) != 0)) {
    return Answer::Error(0x12);
  }
  if (raw.Bit(4) && handles.count(static_cast<std::uint32_t>(raw.N(36, 2))) == 0) {
    return Answer::Error(0x19);
  }
  return CheckNumbers(limits, raw);
}

std::uint32_t PlainExecutor::WrongFlags(const Raw& raw, bool in_batch) const {
  const unsigned op = raw.op();
  const unsigned may = *Allowed(op);
  const bool crc = op == 0x10 || op == 0x11;
  std::uint32_t wrong = 0;
  for (unsigned flag = 0; flag < 24; ++flag) {
    if (!raw.Bit(flag)) continue;
    bool good = false;
    switch (flag) {
      case 0:
        good = in_batch;
        break;
      case 2:
      case 4:
        good = true;
        break;
      case 3:
      case 12:
        good = raw.Bit(2);
        break;
      case 7:
        good = (may & kMayCheckResult) != 0;
        break;
      case 8:
        good = (may & kMayWrite) != 0 && caps_.cache_control;
        break;
      case 9:
        good = (may & kMayClass1) != 0;
        break;
      case 10:
        good = (may & kMayClass2) != 0;
        break;
      case 11:
        good = (may & kMayClass3) != 0 && (!crc || raw.Bit(16));
        break;
      case 13:
        good = (may & kMayWrite) != 0;
        break;
      case 16:
      case 17:
        good = crc;
        break;
      case 18:
        good = crc || op == 2;
        break;
      case 19:
        good = op == 2;
        break;
      default:
        break;
    }
    if (!good) wrong |= 1U << flag;
  }
  if ((may & kMustRecord) != 0 && !raw.Bit(2)) wrong |= 1U << 2;
  if ((may & kMustRecord) != 0 && !raw.Bit(3)) wrong |= 1U << 3;
  if (op == 2 && !raw.Bit(3) && !raw.Bit(4)) wrong |= 1U << 3 | 1U << 4;
  return wrong;
}

PlainExecutor::Answer PlainExecutor::CheckNumbers(const QueueLimits& limits, const Raw& raw) const {
  const unsigned op = raw.op();
  const std::uint64_t size = raw.size();
  if (op == 0 || op == 2) return {};
  if (op == 1) {
    if (size < 2 || size > limits.max_batch) return Answer::Error(0x14);
    return Answer::Error(raw.src() % 64 != 0 ? 0x18 : 1);
  }
  const bool delta = op == 7 || op == 8;
  if (size == 0 || size > limits.max_transfer) return Answer::Error(0x13);
  if (delta && size > 0x80000) return Answer::Error(0x13);
  const auto [read, written] = PlainDifSizes(op, raw.b[42]);
  if (op >= 0x12 && op <= 0x15 && size % read != 0) return Answer::Error(0x13);
  const std::uint64_t record = op == 7 ? raw.N(48, 4) : raw.N(40, 4);
  if (delta && record > limits.max_transfer) return Answer::Error(0x15);
  if (op == 7 && record < 80) return Answer::Error(0x15);
  if (op == 8 && (record < 10 || record % 10 != 0)) return Answer::Error(0x15);
  if (op == 7 && raw.src() % 8 != 0) return Answer::Error(0x1c);
  if (delta && (raw.dst() % 8 != 0 || size % 8 != 0)) return Answer::Error(0x1c);
  if ((op == 0x10 || op == 0x11) && raw.Bit(16) && raw.N(48, 8) % 4 != 0)
    return Answer::Error(0x1c);
  if (op == 9 && raw.dst() % 4096 != raw.N(40, 8) % 4096) return Answer::Error(0x17);
  bool touch = false;
  const std::uint64_t src = raw.src();
  const std::uint64_t dst = raw.dst();
  if (op == 3) touch = !caps_.overlapping_copy && Touch(src, size, dst, size);
  if (op == 0x11) touch = Touch(src, size, dst, size);
  if (op == 9) {
    const std::uint64_t dst2 = raw.N(40, 8);
    touch =
        Touch(src, size, dst, size) || Touch(src, size, dst2, size) || Touch(dst, size, dst2, size);
  }
  if (op == 7)
    touch = Touch(src, size, raw.N(40, 8), record) || Touch(dst, size, raw.N(40, 8), record);
  if (op == 8) touch = Touch(src, record, dst, size);
  if (op >= 0x13 && op <= 0x15) touch = Touch(src, size, dst, size / read * written);
  return Answer::Error(touch ? 0x16 : 1);
}

PlainExecutor::Answer PlainExecutor::Do(const QueueLimits& limits, const Raw& raw) {
  switch (raw.op()) {
    case 0x01:
      return Batch(limits, raw);
    case 0x02:
      ++drains;
      return {};
    case 0x03:
      return Move(raw);
    case 0x04:
      return Fill(raw);
    case 0x05:
    case 0x06:
      return Compare(raw);
    case 0x07:
      return CreateDelta(raw);
    case 0x08:
      return ApplyDelta(raw);
    case 0x09:
      return Dualcast(raw);
    case 0x10:
    case 0x11:
      return Crc(raw);
    case 0x12:
    case 0x13:
    case 0x14:
    case 0x15:
      return Dif(raw);
    case 0x20:
      return Flush(raw);
    default:
      return {};
  }
}

void PlainExecutor::Finish(const QueueLimits& limits, const Raw& raw, std::optional<unsigned> index,
                           const Answer& answer) {
  const bool good = answer.status == 1 || answer.status == 2 || answer.status == 5;
  if (raw.Bit(2) && (raw.Bit(3) || !good)) {
    std::array<std::uint8_t, 32> record{};
    const auto put = [&record](unsigned at, unsigned size, std::uint64_t value) {
      for (unsigned i = 0; i < size; ++i)
        record[at + i] = static_cast<std::uint8_t>(value >> 8 * i);
    };
    put(0, 1, answer.status | (answer.write ? 0x80U : 0U));
    put(1, 1, answer.result);
    put(4, 4, answer.completed);
    put(8, 8, answer.address);
    put(16, 8, answer.first);
    put(24, 8, answer.second);
    for (unsigned i = 0; i < 32; ++i) *memory_.Find(raw.N(8, 8) + i) = record[i];
  }
  if ((!raw.Bit(2) && !good) || answer.status == 0x19) Tell(limits, raw, index, answer);
  const auto handle = static_cast<std::uint32_t>(raw.N(36, 2));
  if (raw.Bit(4) && handles.count(handle) != 0) signals.push_back(handle);
}

void PlainExecutor::Tell(const QueueLimits& limits, const Raw& raw, std::optional<unsigned> index,
                         const Answer& answer) {
  std::uint64_t first = 1 | 1 << 2 | 1 << 3;
  if (index) first += 1 << 4;
  if (answer.write) first += 1 << 5;
  if (limits.privileged) first += 1 << 6;
  if (answer.status == 0x11 || answer.status == 0x19) first += 1 << 7;
  first += std::uint64_t{answer.status} * 0x100;
  first += std::uint64_t{limits.queue} * 0x10000;
  first += std::uint64_t{raw.op()} * 0x100000000;
  std::uint64_t second = index.value_or(0);
  if (answer.status == 0x11) second += answer.first * 0x100000000;
  if (answer.status == 0x19) second += raw.N(36, 2) * 0x100000000;
  errors.push_back({limits.queue, {first, second, answer.address, 0}});
}

}  // namespace postern::dsa
