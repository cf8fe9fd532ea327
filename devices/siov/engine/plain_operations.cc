// The operations of PlainExecutor.

#include "devices/siov/engine/plain_descriptor.h"
#include "devices/siov/engine/plain_executor.h"

namespace postern::dsa {
namespace {

unsigned Crc16Bits(unsigned crc, const std::vector<std::uint8_t>& data, unsigned size) {
  for (unsigned i = 0; i < size; ++i) {
    for (int bit = 7; bit >= 0; --bit) {
      const unsigned out = (crc >> 15 ^ (data[i] >> bit)) & 1;
      crc = (crc << 1 & 0xffff) ^ (out != 0 ? 0x8bb7 : 0);
    }
  }
  return crc;
}

// One bit of a message into a remainder whose bit 31 is x^31.
std::uint32_t Crc32Bit(std::uint32_t crc, unsigned bit) {
  const bool out = ((crc >> 31 ^ bit) & 1) != 0;
  return crc << 1 ^ (out ? 0x1edc6f41 : 0);
}

std::uint32_t Mirror(std::uint32_t value) {
  std::uint32_t mirrored = 0;
  for (int i = 0; i < 32; ++i) mirrored = mirrored << 1 | (value >> i & 1);
  return mirrored;
}

PlainTags TagsAt(const std::vector<std::uint8_t>& data, unsigned block) {
  PlainTags tags{data[block] * 256U + data[block + 1], data[block + 2] * 256U + data[block + 3], 0};
  for (unsigned i = 4; i < 8; ++i) tags.ref = tags.ref * 256 + data[block + i];
  return tags;
}

}  // namespace

PlainExecutor::Answer PlainExecutor::Batch(const QueueLimits& limits, const Raw& raw) {
  Answer answer;
  bool all_good = true;
  for (unsigned i = 0; i < raw.size(); ++i) {
    Raw inner{};
    for (unsigned j = 0; j < 64; ++j) {
      const std::uint8_t* byte = PlainByte(memory_, raw.src(), std::uint64_t{i} * 64 + j);
      if (byte == nullptr) {
        Answer fault = Answer::Fault(raw.src() + std::uint64_t{i} * 64, false, i);
        fault.status = 6;
        fault.descriptors = answer.descriptors;
        return fault;
      }
      inner.b[j] = *byte;
    }
    if (inner.Bit(0) && !all_good) break;
    if (One(limits, inner, i).status != 1) all_good = false;
    ++answer.completed;
    ++answer.descriptors;
  }
  if (!all_good) answer.status = 5;
  return answer;
}

PlainExecutor::Answer PlainExecutor::Move(const Raw& raw) {
  const std::uint64_t size = raw.size();
  // Whether the destination begins in the source, behind its first byte.
  bool down = false;
  for (std::uint64_t i = 1; i < size && !down; ++i) down = raw.src() + i == raw.dst();
  for (std::uint64_t done = 0; done < size; ++done) {
    const std::uint64_t i = down ? size - 1 - done : done;
    const std::uint8_t* from = PlainByte(memory_, raw.src(), i);
    std::uint8_t* to = PlainByte(memory_, raw.dst(), i);
    if (from == nullptr || to == nullptr) {
      Answer fault =
          Answer::Fault((from == nullptr ? raw.src() : raw.dst()) + i, from != nullptr, done);
      fault.result = down ? 1 : 0;
      return fault;
    }
    *to = *from;
  }
  return {};
}

PlainExecutor::Answer PlainExecutor::Fill(const Raw& raw) {
  for (std::uint64_t i = 0; i < raw.size(); ++i) {
    std::uint8_t* to = PlainByte(memory_, raw.dst(), i);
    if (to == nullptr) return Answer::Fault(raw.dst() + i, true, i);
    *to = raw.b[16 + i % 8];
  }
  return {};
}

PlainExecutor::Answer PlainExecutor::Compare(const Raw& raw) {
  Answer answer;
  for (std::uint64_t i = 0; i < raw.size() && answer.result == 0; ++i) {
    const std::uint8_t* a = PlainByte(memory_, raw.src(), i);
    if (a == nullptr) return Answer::Fault(raw.src() + i, false, i);
    const std::uint8_t* b = raw.op() == 6 ? &raw.b[24 + i % 8] : PlainByte(memory_, raw.dst(), i);
    if (b == nullptr) return Answer::Fault(raw.dst() + i, false, i);
    if (*a != *b) {
      answer.result = 1;
      answer.completed = i;
    }
  }
  if (raw.Bit(7) && answer.result != (raw.b[40] & 1U)) answer.status = 2;
  return answer;
}

PlainExecutor::Answer PlainExecutor::CreateDelta(const Raw& raw) {
  Answer answer;
  for (std::uint64_t at = 0; at < raw.size(); at += 8) {
    bool same = true;
    // Eight bytes, aligned: all there or none.
    for (const std::uint64_t base : {raw.src(), raw.dst()}) {
      if (PlainByte(memory_, base, at) != nullptr) continue;
      Answer fault = Answer::Fault(base + at, false, at);
      fault.result = answer.first > 0 ? 1 : 0;
      fault.first = answer.first;
      return fault;
    }
    for (unsigned i = 0; i < 8; ++i) {
      if (*memory_.Find(raw.src() + at + i) != *memory_.Find(raw.dst() + at + i)) same = false;
    }
    if (same) continue;
    if (answer.first + 10 > raw.N(48, 4)) {
      answer.result = 2;
      answer.completed = at;
      break;
    }
    for (unsigned i = 0; i < 10; ++i) {
      if (PlainByte(memory_, raw.N(40, 8), answer.first + i) != nullptr) continue;
      Answer fault = Answer::Fault(raw.N(40, 8) + answer.first + i, true, at);
      fault.result = answer.first > 0 ? 1 : 0;
      fault.first = answer.first;
      return fault;
    }
    const std::uint64_t unit = at / 8;
    *PlainByte(memory_, raw.N(40, 8), answer.first) = static_cast<std::uint8_t>(unit);
    *PlainByte(memory_, raw.N(40, 8), answer.first + 1) = static_cast<std::uint8_t>(unit >> 8);
    for (unsigned i = 0; i < 8; ++i) {
      *PlainByte(memory_, raw.N(40, 8), answer.first + 2 + i) = *memory_.Find(raw.dst() + at + i);
    }
    answer.first += 10;
    answer.result = 1;
  }
  if (raw.Bit(7) && (raw.b[56] >> answer.result & 1) == 0) answer.status = 2;
  return answer;
}

PlainExecutor::Answer PlainExecutor::ApplyDelta(const Raw& raw) {
  std::optional<std::uint64_t> before;
  for (std::uint64_t done = 0; done < raw.N(40, 4); done += 10) {
    std::array<std::uint8_t, 10> delta{};
    for (unsigned i = 0; i < 10; ++i) {
      const std::uint8_t* from = PlainByte(memory_, raw.src(), done + i);
      if (from == nullptr) return Answer::Fault(raw.src() + done + i, false, done);
      delta[i] = *from;
    }
    const std::uint64_t offset = (delta[0] + delta[1] * 256ULL) * 8;
    Answer error = Answer::Error(offset >= raw.size() ? 8 : 1);
    if (before && offset <= *before) error.status = 7;
    error.completed = done;
    if (error.status != 1) return error;
    for (unsigned i = 0; i < 8; ++i) {
      std::uint8_t* to = PlainByte(memory_, raw.dst(), offset + i);
      if (to == nullptr) return Answer::Fault(raw.dst() + offset + i, true, done);
      *to = delta[2 + i];
    }
    before = offset;
  }
  return {};
}

PlainExecutor::Answer PlainExecutor::Dualcast(const Raw& raw) {
  for (std::uint64_t i = 0; i < raw.size(); ++i) {
    const std::uint8_t* from = PlainByte(memory_, raw.src(), i);
    if (from == nullptr) return Answer::Fault(raw.src() + i, false, i);
    for (const std::uint64_t base : {raw.dst(), raw.N(40, 8)}) {
      if (PlainByte(memory_, base, i) == nullptr) return Answer::Fault(base + i, true, i);
    }
    *PlainByte(memory_, raw.dst(), i) = *PlainByte(memory_, raw.N(40, 8), i) = *from;
  }
  return {};
}

PlainExecutor::Answer PlainExecutor::Crc(const Raw& raw) {
  auto seed = static_cast<std::uint32_t>(raw.N(40, 4));
  if (raw.Bit(16)) {
    seed = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const std::uint8_t* byte = PlainByte(memory_, raw.N(48, 8), i);
      if (byte == nullptr) return Answer::Fault(raw.N(48, 8), false, 0);
      seed |= std::uint32_t{*byte} << 8 * i;
    }
  }
  std::uint32_t crc = raw.Bit(17) ? seed : Mirror(~seed);
  Answer answer;
  for (std::uint64_t i = 0; i < raw.size(); ++i) {
    const std::uint8_t* from = PlainByte(memory_, raw.src(), i);
    std::uint8_t* to = raw.op() == 0x11 ? PlainByte(memory_, raw.dst(), i) : nullptr;
    if (from == nullptr) answer = Answer::Fault(raw.src() + i, false, i);
    if (from != nullptr && raw.op() == 0x11 && to == nullptr) {
      answer = Answer::Fault(raw.dst() + i, true, i);
    }
    if (answer.status != 1) break;
    if (to != nullptr) *to = *from;
    for (unsigned bit = 0; bit < 8; ++bit) {
      crc = Crc32Bit(crc, *from >> (raw.Bit(18) ? 7 - bit : bit) & 1U);
    }
  }
  answer.first = raw.Bit(17) ? crc : std::uint32_t{~Mirror(crc)};
  return answer;
}

struct PlainExecutor::DifState {
  unsigned op = 0;
  unsigned block = 0;
  unsigned read = 0;
  unsigned written = 0;
  unsigned src_flags = 0;
  unsigned dst_flags = 0;
  std::uint64_t src_ref = 0;
  std::uint64_t src_app = 0;
  std::uint64_t src_mask = 0;
  std::uint64_t dst_ref = 0;
  std::uint64_t dst_app = 0;
  std::uint64_t dst_mask = 0;
  std::uint64_t n = 0;  // blocks done
};

PlainExecutor::Answer PlainExecutor::Dif(const Raw& raw) {
  const auto [read, written] = PlainDifSizes(raw.op(), raw.b[42]);
  DifState state{.op = raw.op(),
                 .block = PlainBlock(raw.b[42]),
                 .read = read,
                 .written = written,
                 .src_flags = raw.b[40],
                 .dst_flags = raw.b[41],
                 .src_ref = raw.N(48, 4),
                 .src_app = raw.N(54, 2),
                 .src_mask = raw.N(52, 2),
                 .dst_ref = raw.N(56, 4),
                 .dst_app = raw.N(62, 2),
                 .dst_mask = raw.N(60, 2)};
  Answer answer;
  while (state.n < raw.size() / read && answer.status == 1) {
    answer = DifBlock(raw, state);
    if (answer.status != 1) break;
    ++state.n;
    if ((state.src_flags & 0x80) == 0) state.src_ref = (state.src_ref + 1) & 0xffffffff;
    if ((state.src_flags & 0x10) != 0) state.src_app = (state.src_app + 1) & 0xffff;
    if ((state.dst_flags & 0x80) == 0) state.dst_ref = (state.dst_ref + 1) & 0xffffffff;
    if ((state.dst_flags & 0x10) != 0) state.dst_app = (state.dst_app + 1) & 0xffff;
  }
  if (state.op != 0x13) answer.first = state.src_ref | state.src_mask << 32 | state.src_app << 48;
  if (state.op == 0x13 || state.op == 0x15) {
    answer.second = state.dst_ref | state.dst_mask << 32 | state.dst_app << 48;
  }
  return answer;
}

PlainExecutor::Answer PlainExecutor::DifBlock(const Raw& raw, const DifState& state) {
  std::vector<std::uint8_t> data;
  for (unsigned i = 0; i < state.read; ++i) {
    const std::uint8_t* from = PlainByte(memory_, raw.src(), state.n * state.read + i);
    if (from == nullptr) {
      return Answer::Fault(raw.src() + state.n * state.read + i, false, state.n * state.read);
    }
    data.push_back(*from);
  }
  unsigned guard = Crc16Bits((raw.b[42] & 4) != 0 ? 0xffff : 0, data, state.block);
  if ((raw.b[42] & 8) != 0) guard ^= 0xffff;
  PlainTags out{guard, static_cast<unsigned>(state.dst_app & ~state.dst_mask), state.dst_ref};
  if (state.op != 0x13) {
    const PlainTags got = TagsAt(data, state.block);
    if (const unsigned bad = DifMismatch(got, guard, state); bad != 0) {
      Answer answer = Answer::Error(9);
      answer.result = bad;
      answer.completed = state.n * state.read;
      return answer;
    }
    if (state.op == 0x15 && (state.dst_flags & 32) != 0) out.guard = got.guard;
    if (state.op == 0x15 && (state.dst_flags & 8) != 0) out.app = got.app;
    if (state.op == 0x15 && (state.dst_flags & 64) != 0) out.ref = got.ref;
  }
  if (state.op == 0x12) return {};
  data.resize(state.block);
  for (const int shift : {8, 0}) data.push_back(static_cast<std::uint8_t>(out.guard >> shift));
  for (const int shift : {8, 0}) data.push_back(static_cast<std::uint8_t>(out.app >> shift));
  for (const int shift : {24, 16, 8, 0})
    data.push_back(static_cast<std::uint8_t>(out.ref >> shift));
  for (unsigned i = 0; i < state.written; ++i) {
    if (PlainByte(memory_, raw.dst(), state.n * state.written + i) != nullptr) continue;
    return Answer::Fault(raw.dst() + state.n * state.written + i, true, state.n * state.read);
  }
  for (unsigned i = 0; i < state.written; ++i) {
    *PlainByte(memory_, raw.dst(), state.n * state.written + i) = data[i];
  }
  return {};
}

unsigned PlainExecutor::DifMismatch(const PlainTags& got, unsigned guard, const DifState& state) {
  const bool app_f = got.app == 0xffff;
  const bool tags_f = app_f && got.ref == 0xffffffff;
  const bool all_f = tags_f && got.guard == 0xffff;
  const bool detected = ((state.src_flags & 2) != 0 && all_f) ||
                        ((state.src_flags & 4) != 0 && app_f) ||
                        ((state.src_flags & 8) != 0 && tags_f);
  if ((state.src_flags & 3) == 3 && all_f) return 8;
  if (detected) return 0;
  unsigned bad = 0;
  if ((state.src_flags & 32) == 0 && got.guard != guard) bad += 1;
  if (state.src_mask != 0xffff && got.app != (state.src_app & ~state.src_mask)) bad += 2;
  if ((state.src_flags & 64) == 0 && got.ref != state.src_ref) bad += 4;
  return bad;
}

PlainExecutor::Answer PlainExecutor::Flush(const Raw& raw) {
  for (std::uint64_t i = 0; i < raw.size(); ++i) {
    if (PlainByte(memory_, raw.dst(), i) == nullptr) return Answer::Fault(raw.dst() + i, false, i);
  }
  return {};
}

}  // namespace postern::dsa
