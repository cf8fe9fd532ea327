// virtio-blk (VIRTIO 1.2 section 5.2). The test puts back what was on the disk; only a run that is
// cut short leaves its pattern.
#include <cstring>

#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint64_t kFeatureReadOnly = uint64_t{1} << 5;
constexpr uint64_t kFeatureBlockSize = uint64_t{1} << 6;
constexpr uint64_t kFeatureFlush = uint64_t{1} << 9;
constexpr uint64_t kFeatureMultiQueue = uint64_t{1} << 12;
constexpr uint64_t kFeatureDiscard = uint64_t{1} << 13;
constexpr uint64_t kFeatureWriteZeroes = uint64_t{1} << 14;

// struct virtio_blk_config.
constexpr uint32_t kConfigCapacity = 0;
constexpr uint32_t kConfigQueues = 34;

constexpr uint32_t kTypeIn = 0;
constexpr uint32_t kTypeOut = 1;
constexpr uint32_t kTypeFlush = 4;
constexpr uint32_t kTypeGetId = 8;
constexpr uint32_t kTypeDiscard = 11;
constexpr uint32_t kTypeWriteZeroes = 13;
constexpr uint32_t kTypeUnknown = 0x7f;
constexpr uint8_t kStatusOk = 0;
constexpr uint8_t kStatusIoError = 1;
constexpr uint8_t kStatusUnsupported = 2;
constexpr uint8_t kStatusUnset = 0xaa;

constexpr uint32_t kSector = 512;
constexpr uint32_t kIdSize = 20;
constexpr uint16_t kMaxQueuesUsed = 4;
constexpr uint16_t kDepth = 16;

struct Header {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
};
static_assert(sizeof(Header) == 16);

// struct virtio_blk_discard_write_zeroes.
struct Range {
  uint64_t sector;
  uint32_t sectors;
  uint32_t flags;
};
static_assert(sizeof(Range) == 16);

// What belongs to a request that is under way, besides its data.
struct Slot {
  Header header;
  volatile uint8_t status;
};

class Blk {
 public:
  explicit Blk(Transport& transport) : device_(transport) {}

  bool Open(Row& row, uint16_t depth, uint16_t queues_wanted) {
    constexpr uint64_t kWanted = kFeatureReadOnly | kFeatureBlockSize | kFeatureFlush |
                                 kFeatureMultiQueue | kFeatureDiscard | kFeatureWriteZeroes;
    if (!device_.Begin(kWanted, kMaxQueuesUsed, row)) return false;
    uint16_t queues =
        device_.Has(kFeatureMultiQueue) ? device_.transport().ReadConfig16(kConfigQueues) : 1;
    if (queues == 0) return row.Fail("multi-queue, yet no queue");
    if (queues > queues_wanted) queues = queues_wanted;
    if (queues > kMaxQueuesUsed) queues = kMaxQueuesUsed;
    const bool indirect = (device_.features() & kFeatureIndirect) != 0;
    // 2.7.5.3.1: no chain, indirect ones included, may be longer than the queue.
    const uint16_t least = depth < Queue::kMaxSegments ? Queue::kMaxSegments : depth;
    const auto entries = static_cast<uint16_t>(indirect ? least : depth * Queue::kMaxSegments);
    for (uint16_t i = 0; i < queues; ++i) {
      queues_[i] = device_.AddQueue(i, entries, row);
      if (queues_[i] == nullptr) return false;
    }
    queue_count_ = queues;
    slots_ = static_cast<Slot*>(Allocate(sizeof(Slot) * depth, alignof(Slot)));
    if (slots_ == nullptr) return row.Fail("no memory");
    depth_ = indirect ? queues_[0]->size() : queues_[0]->size() / Queue::kMaxSegments;
    if (depth_ > depth) depth_ = depth;
    if (depth_ == 0) return row.Fail("queue too small:", queues_[0]->size());
    if (!device_.DriverOk(row)) return false;
    capacity_ = device_.transport().ReadConfig64(kConfigCapacity);
    return true;
  }

  // One request in `slot` on `queue`. The data goes as one or two pieces.
  bool Submit(uint16_t queue, uint16_t slot, uint32_t type, uint64_t sector,
              const volatile void* data, uint32_t size) {
    Slot& s = slots_[slot];
    s.header = {type, 0, sector};
    s.status = kStatusUnset;
    const auto* bytes = static_cast<const volatile uint8_t*>(data);
    const bool to_driver = type == kTypeIn || type == kTypeGetId;
    const uint32_t first = size > kSector ? kSector : size;
    Segment readable[3] = {{&s.header, sizeof(Header)}};
    Segment writable[3] = {};
    size_t r = 1;
    size_t w = 0;
    for (const Segment& piece : {Segment{bytes, first}, Segment{bytes + first, size - first}}) {
      if (piece.length == 0) continue;
      if (to_driver) {
        writable[w++] = piece;
      } else {
        readable[r++] = piece;
      }
    }
    writable[w++] = {&s.status, 1};
    return queues_[queue]->Add({readable, r}, {writable, w}, slot);
  }

  // The request of `slot` once more, elsewhere.
  void Retarget(uint16_t slot, uint64_t sector) {
    slots_[slot].header.sector = sector;
    slots_[slot].status = kStatusUnset;
  }

  void Kick() {
    for (uint16_t q = 0; q < queue_count_; ++q) queues_[q]->Kick();
  }

  void AskForInterrupts(bool wanted) {
    for (uint16_t q = 0; q < queue_count_; ++q) queues_[q]->AskForInterrupt(wanted);
  }

  // The slot of the next completion on any queue.
  bool Next(uint16_t& slot, uint32_t& length) {
    AskForInterrupts(true);
    const bool any = WaitFor(kRequestMicros, [this] {
      for (uint16_t q = 0; q < queue_count_; ++q) {
        if (queues_[q]->HasUsed()) return true;
      }
      return false;
    });
    if (!any) return false;
    for (uint16_t q = 0; q < queue_count_; ++q) {
      slot = queues_[q]->Pop(length);
      if (slot != Queue::kNoToken) return true;
    }
    return false;
  }

  // A single request; its status, or kStatusUnset if there was no answer.
  uint8_t Run(uint32_t type, uint64_t sector, const volatile void* data, uint32_t size) {
    uint16_t slot = 0;
    uint32_t length = 0;
    AskForInterrupts(true);
    if (!Submit(0, 0, type, sector, data, size)) return kStatusUnset;
    Kick();
    return Next(slot, length) ? slots_[slot].status : kStatusUnset;
  }

  // `size` bytes from `sector` on in requests of `piece` bytes, as many at once as fit, over all
  // queues in turn. Every `wrap` requests the data starts again.
  bool Transfer(uint32_t type, uint64_t sector, uint8_t* data, uint64_t size, uint32_t piece,
                Row& row, uint32_t wrap = 0xffffffff) {
    const uint64_t requests = size / piece;
    uint64_t submitted = 0;
    uint64_t finished = 0;
    uint16_t free[kDepth];
    uint16_t free_count = 0;
    const uint16_t depth = depth_ < kDepth ? depth_ : kDepth;
    for (uint16_t i = 0; i < depth; ++i) free[free_count++] = i;
    while (finished < requests) {
      AskForInterrupts(true);
      while (submitted < requests && free_count != 0) {
        const auto queue = static_cast<uint16_t>(submitted % queue_count_);
        const uint16_t slot = free[free_count - 1];
        if (!Submit(queue, slot, type, sector + submitted * (piece / kSector),
                    data + submitted % wrap * piece, piece))
          break;
        --free_count;
        ++submitted;
      }
      Kick();
      uint16_t slot = 0;
      uint32_t length = 0;
      if (!Next(slot, length)) return row.Fail("no answer to request", finished);
      if (slots_[slot].status != kStatusOk)
        return row.Fail(type == kTypeIn ? "read: status" : "write: status", slots_[slot].status);
      if (type == kTypeIn && length != piece + 1) return row.Fail("read: used length", length);
      free[free_count++] = slot;
      ++finished;
    }
    return true;
  }

  VirtioDevice& device() { return device_; }
  Queue& queue(uint16_t index) { return *queues_[index]; }
  [[nodiscard]] uint16_t queue_count() const { return queue_count_; }
  [[nodiscard]] uint64_t capacity() const { return capacity_; }
  [[nodiscard]] uint16_t depth() const { return depth_; }
  [[nodiscard]] uint8_t status(uint16_t slot) const { return slots_[slot].status; }

 private:
  VirtioDevice device_;
  Queue* queues_[kMaxQueuesUsed]{};
  uint16_t queue_count_ = 0;
  uint16_t depth_ = 0;
  Slot* slots_ = nullptr;
  uint64_t capacity_ = 0;
};

// Every sector gets words of its own, so that a sector in the wrong place shows.
void FillPattern(uint64_t* words, uint64_t sector, uint64_t sectors, uint64_t salt) {
  for (uint64_t s = 0; s < sectors; ++s) {
    uint64_t value = (sector + s) * 0x9e3779b97f4a7c15 + salt;
    for (unsigned i = 0; i < kSector / 8; ++i) {
      *words++ = value;
      value += 0x0101010101010101;
    }
  }
}

bool IsZero(const uint64_t* words, uint64_t sectors) {
  for (uint64_t i = 0; i < sectors * (kSector / 8); ++i) {
    if (words[i] != 0) return false;
  }
  return true;
}

constexpr uint32_t kAreaSectors = 64;
constexpr uint32_t kPiece = 4096;

struct Buffers {
  uint8_t* original;
  uint8_t* pattern;
  uint8_t* readback;
};

// The refusals the specification asks for: past the end, and a type that does not exist.
bool CheckRefusals(Blk& blk, const Buffers& buffers, Row& row) {
  const uint8_t beyond = blk.Run(kTypeIn, blk.capacity(), buffers.readback, kSector);
  if (beyond != kStatusIoError) return row.Fail("read past the end: status", beyond);
  const uint8_t wrapped = blk.Run(kTypeIn, ~uint64_t{0}, buffers.readback, kSector);
  if (wrapped != kStatusIoError) return row.Fail("read at sector 2^64-1: status", wrapped);
  const uint8_t unknown = blk.Run(kTypeUnknown, 0, buffers.pattern, kSector);
  // 5.2.6.2: an unsupported request gets UNSUPP.
  if (unknown != kStatusUnsupported) return row.Fail("unknown request: status", unknown);
  row.tested().Add(" refusals");
  return true;
}

bool WriteAndVerify(Blk& blk, const Buffers& buffers, uint64_t first, uint32_t sectors, Row& row) {
  const uint32_t size = sectors * kSector;
  const uint32_t piece = size < kPiece ? size : kPiece;
  const uint64_t salt = ReadTsc();
  FillPattern(reinterpret_cast<uint64_t*>(buffers.pattern), first, sectors, salt);
  if (!blk.Transfer(kTypeOut, first, buffers.pattern, size, piece, row)) return false;
  row.tested().Add(" write");
  if (blk.device().Has(kFeatureFlush)) {
    const uint8_t status = blk.Run(kTypeFlush, 0, nullptr, 0);
    if (status != kStatusOk) return row.Fail("flush: status", status);
    row.tested().Add(" flush");
  }
  if (!blk.Transfer(kTypeIn, first, buffers.readback, size, piece, row)) return false;
  if (std::memcmp(buffers.readback, buffers.pattern, size) != 0)
    return row.Fail("what was read is not what was written");
  row.tested().Add(" verify");
  if (blk.device().Has(kFeatureWriteZeroes)) {
    const Range range{first, sectors / 2, 0};
    const uint8_t status = blk.Run(kTypeWriteZeroes, 0, &range, sizeof(range));
    if (status != kStatusOk) return row.Fail("write zeroes: status", status);
    if (!blk.Transfer(kTypeIn, first, buffers.readback, size, piece, row)) return false;
    if (!IsZero(reinterpret_cast<const uint64_t*>(buffers.readback), sectors / 2))
      return row.Fail("write zeroes: not zero");
    const uint32_t kept = sectors / 2 * kSector;
    if (std::memcmp(buffers.readback + kept, buffers.pattern + kept, size - kept) != 0)
      return row.Fail("write zeroes: went too far");
    row.tested().Add(" write-zeroes");
  }
  if (blk.device().Has(kFeatureDiscard)) {
    const Range range{first, sectors / 2, 0};
    const uint8_t status = blk.Run(kTypeDiscard, 0, &range, sizeof(range));
    if (status != kStatusOk) return row.Fail("discard: status", status);
    row.tested().Add(" discard");
  }
  return true;
}

bool CheckRingReset(Blk& blk, const Buffers& buffers, Row& row) {
  if (!blk.device().Has(kFeatureRingReset)) return true;
  Queue& queue = blk.queue(0);
  if (!blk.device().transport().ResetQueue(queue.index()))
    return row.Fail("the queue reset did not finish");
  if (!queue.Restart()) return row.Fail("the queue does not start again after its reset");
  const uint8_t status = blk.Run(kTypeIn, 0, buffers.readback, kSector);
  if (status != kStatusOk) return row.Fail("read after queue reset: status", status);
  row.tested().Add(" ring-reset");
  return true;
}

// Sequential reads that nobody looks at.
bool MeasureReads(Blk& blk, Row& row) {
  constexpr uint32_t kBig = 65536;
  constexpr uint32_t kWrap = 8;
  constexpr uint64_t kTotal = 4U << 20;
  auto* buffer = static_cast<uint8_t*>(Allocate(size_t{kBig} * kWrap, 4096));
  if (buffer == nullptr) return row.Fail("no memory");
  uint64_t size = blk.capacity() * kSector;
  if (size > kTotal) size = kTotal;
  size &= ~uint64_t{kBig - 1};
  if (size == 0) return true;
  const uint64_t begin = ReadTsc();
  if (!blk.Transfer(kTypeIn, 0, buffer, size, kBig, row, kWrap)) return false;
  row.figures().Add(", read ");
  AddRate(row.figures(), size, ReadTsc() - begin);
  return true;
}

void AddId(Blk& blk, Row& row) {
  char id[kIdSize];
  for (char& c : id) c = 0;
  const uint8_t status = blk.Run(kTypeGetId, 0, id, kIdSize);
  if (status != kStatusOk) {
    row.Fail("get ID: status", status);
    return;
  }
  row.figures().Add(", id '");
  for (char c : id) {
    if (c == 0) break;
    row.figures().Add(c >= ' ' && c <= '~' ? c : '?');
  }
  row.figures().Add("'");
}

bool Exercise(Blk& blk, Row& row) {
  if (blk.capacity() == 0) return row.Fail("the capacity is 0");
  row.figures().Put(blk.capacity() / 2, " KiB");
  Buffers buffers{};
  for (uint8_t** buffer : {&buffers.original, &buffers.pattern, &buffers.readback}) {
    *buffer = static_cast<uint8_t*>(Allocate(size_t{kAreaSectors} * kSector, 4096));
  }
  if (buffers.original == nullptr || buffers.pattern == nullptr || buffers.readback == nullptr) {
    return row.Fail("no memory");
  }
  // The last sectors of the disk, at a 4 KiB boundary and in whole 4 KiB pieces where it is large
  // enough for that.
  uint64_t first = 0;
  auto sectors = static_cast<uint32_t>(blk.capacity() < 8 ? blk.capacity() : 8);
  if (blk.capacity() >= kAreaSectors + 8) {
    sectors = kAreaSectors;
    first = (blk.capacity() - sectors) & ~uint64_t{7};
  }
  const uint32_t size = sectors * kSector;
  const uint32_t piece = size < kPiece ? size : kPiece;
  row.tested().Add("read");
  if (!blk.Transfer(kTypeIn, first, buffers.original, size, piece, row)) return false;
  AddId(blk, row);
  if (!CheckRefusals(blk, buffers, row)) return false;
  if (blk.device().Has(kFeatureReadOnly)) {
    // 5.2.6.2: a write to a read-only device fails and changes nothing.
    const uint8_t status = blk.Run(kTypeOut, first, buffers.pattern, kSector);
    if (status != kStatusIoError) return row.Fail("write to a read-only disk: status", status);
    row.tested().Add(" read-only");
  } else {
    WriteAndVerify(blk, buffers, first, sectors, row);
    if (!blk.Transfer(kTypeOut, first, buffers.original, size, piece, row)) return false;
    if (row.failed()) return false;
  }
  if (!CheckRingReset(blk, buffers, row) || !MeasureReads(blk, row)) return false;

  uint32_t completions = 0;
  for (uint16_t q = 0; q < blk.queue_count(); ++q) {
    completions += blk.queue(q).completions();
    if (!blk.device().InterruptsExceed(blk.queue(q), 0))
      return row.Fail("no interrupt arrived for queue", q);
  }
  row.figures().Put(", ", completions, " requests");
  if (blk.queue_count() > 1) row.figures().Put(" on ", blk.queue_count(), " queues");
  row.figures().Put(", ", blk.device().TotalInterrupts(), " interrupts");
  return true;
}

}  // namespace

void TestBlk(Transport& transport, Row& row) {
  Blk blk(transport);
  if (blk.Open(row, kDepth, kMaxQueuesUsed)) Exercise(blk, row);
  blk.device().End(row);
}

bool BlkBench() {
  Row row("blkbench");
  Transport* transport = FindVirtio(kVirtioBlk);
  if (transport == nullptr) {
    Print("blkbench: no disk");
    return false;
  }
  const Options& options = ProbeOptions();
  const auto wanted = static_cast<uint16_t>(
      options.queue_depth < Queue::kMaxSize ? options.queue_depth : Queue::kMaxSize);
  Blk blk(*transport);
  bool good = blk.Open(row, wanted, 1);
  auto* buffer =
      static_cast<uint8_t*>(good ? Allocate(size_t{kPiece} * blk.depth(), 4096) : nullptr);
  const uint64_t places = blk.capacity() / (kPiece / kSector);
  if (good && (buffer == nullptr || places == 0)) good = row.Fail("disk or memory too small");
  uint64_t finished = 0;
  uint64_t errors = 0;
  uint64_t submitted = 0;
  uint64_t random = options.seed * 2 + 1;
  const auto next_sector = [&] {
    random = random * 6364136223846793005 + 1442695040888963407;
    return places == 0 ? 0 : (random >> 32) % places * (kPiece / kSector);
  };
  const uint64_t begin = ReadTsc();
  if (good) {
    Queue& queue = blk.queue(0);
    for (uint16_t slot = 0; slot < blk.depth() && submitted < options.ops; ++slot) {
      if (blk.Submit(0, slot, kTypeIn, next_sector(), buffer + size_t{kPiece} * slot, kPiece))
        ++submitted;
    }
    queue.AskForInterrupt(true);
    queue.Kick();
    while (finished < submitted) {
      const uint16_t head = queue.PopKept();
      if (head == Queue::kNoToken) {
        // Everything that has arrived is answered before the device hears of it: one notification
        // for many requests.
        queue.Kick();
        if (queue.broken() || !queue.Wait()) {
          good = row.Fail("no answer");
          break;
        }
        continue;
      }
      ++finished;
      const uint16_t slot = queue.TokenOf(head);
      if (slot >= blk.depth() || blk.status(slot) != kStatusOk) {
        ++errors;
        continue;
      }
      if (submitted < options.ops) {
        blk.Retarget(slot, next_sector());
        queue.Repeat(head);
        ++submitted;
      }
    }
  }
  const uint64_t cycles = ReadTsc() - begin;
  if (good && errors != 0) good = row.Fail("errors:", errors);
  if (good) {
    const uint64_t micros = MicrosOf(cycles);
    Line line;
    line.Put("blkbench ops=", finished, " qd=", blk.depth(), " bytes=", kPiece, " cycles=", cycles);
    line.Put(" us=", micros, " ops_per_s=", micros == 0 ? 0 : finished * 1000000 / micros);
    line.Put(" interrupts=", blk.device().TotalInterrupts(),
             " notifications=", blk.queue(0).notifications());
    Print(line);
  }
  blk.device().End(row);
  if (row.failed()) row.Finish();
  return !row.failed();
}

}  // namespace postern::probe
