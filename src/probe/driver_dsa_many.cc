// Many descriptors of a DSA at once, in all its queues, of which none may be lost.
#include "src/probe/clock.h"
#include "src/probe/dsa.h"
#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/virtio.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint32_t kBuffer = 1024;
// What is asked to be told by interrupts, of all.
constexpr uint64_t kShareWithInterrupts = 16;

// One descriptor under way and its buffers.
struct Flight {
  DsaRecord record{};
  uint8_t* from = nullptr;
  uint8_t* to = nullptr;
  uint64_t number = 0;
  uint32_t size = 0;
  bool under_way = false;
};

// Moves of many sizes, each with its number at both ends, in all queues in turn.
class Many {
 public:
  Many(DsaDevice& device, Row& row) : device_(device), row_(row) {}

  bool Prepare() {
    depth_ = device_.queue(0).size();
    // Linux has no more under way than the queue has entries; a polled portal has 64 slots.
    if (depth_ > 63) depth_ = 63;
    // What the heap has room for.
    while (depth_ * device_.queues() > 128) depth_ /= 2;
    total_ = depth_ * device_.queues();
    if (total_ == 0) {
      row_.Fail("no queue has an entry");
      return false;
    }
    flights_ = static_cast<Flight*>(Allocate(sizeof(Flight) * total_, 32));
    auto* buffers = static_cast<uint8_t*>(Allocate(size_t{2} * kBuffer * total_, 64));
    if (flights_ == nullptr || buffers == nullptr) return row_.Fail("no memory");
    for (size_t i = 0; i < total_; ++i) {
      flights_[i] = {.from = buffers + size_t{2} * kBuffer * i,
                     .to = buffers + size_t{2} * kBuffer * i + kBuffer};
    }
    return true;
  }

  // Each waits for the one that used its place before.
  bool RunPolled(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      Flight& flight = flights_[next_ % total_];
      if (!Land(flight)) return false;
      Launch(flight, 0);
    }
    return LandAll();
  }

  // As many as fit, each with an interrupt; asleep meanwhile.
  bool RunWithInterrupts(uint64_t count) {
    while (count != 0) {
      const uint64_t round = count < total_ ? count : total_;
      const uint64_t first = next_;
      for (uint64_t i = 0; i < round; ++i)
        Launch(flights_[next_ % total_], DsaFlag::kRequestInterrupt);
      uint64_t seen = first;
      const bool complete = WaitFor(kRequestMicros, [&] {
        while (seen != next_ && DsaFinished(flights_[seen % total_].record)) ++seen;
        return seen == next_;
      });
      if (!complete) return row_.Fail("lost: no completion of descriptor", seen);
      if (!LandAll()) return false;
      count -= round;
    }
    return true;
  }

  [[nodiscard]] uint64_t completed() const { return completed_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  void Launch(Flight& flight, uint32_t flags) {
    // 16 to 1024 bytes.
    flight.number = next_++;
    flight.size = static_cast<uint32_t>(8 * (2 + flight.number * 37 % 127));
    flight.under_way = true;
    flight.record = {};
    Write64(DsaAt(flight.from), flight.number);
    Write64(DsaAt(flight.from) + flight.size - 8, ~flight.number);
    Write64(DsaAt(flight.to), 0);
    Write64(DsaAt(flight.to) + flight.size - 8, 0);
    DsaQueue& queue =
        device_.queue(static_cast<unsigned>(flight.number % total_) % device_.queues());
    const DsaDescriptor move{
        .flags_and_opcode = DsaOp(DsaOpcode::kMove, kDsaWithRecord | flags),
        .record = DsaAt(&flight.record),
        .source = DsaAt(flight.from),
        .destination = DsaAt(flight.to),
        .size = flight.size,
        .handle = (flags & DsaFlag::kRequestInterrupt) != 0 ? queue.handle() : uint16_t{0}};
    queue.Submit(move);
  }

  bool Land(Flight& flight) {
    if (!flight.under_way) return true;
    flight.under_way = false;
    if (!DsaAwait(flight.record))
      return row_.Fail("lost: no completion of descriptor", flight.number);
    if (!flight.record.Is(DsaStatus::kSuccess))
      return row_.Fail("a descriptor of many: status", flight.record.status);
    if (Read64(DsaAt(flight.to)) != flight.number ||
        Read64(DsaAt(flight.to) + flight.size - 8) != ~flight.number) {
      return row_.Fail("wrong bytes of descriptor", flight.number);
    }
    ++completed_;
    bytes_ += flight.size;
    return true;
  }
  bool LandAll() {
    for (size_t i = 0; i < total_; ++i) {
      if (!Land(flights_[i])) return false;
    }
    return true;
  }

  DsaDevice& device_;
  Row& row_;
  Flight* flights_ = nullptr;
  size_t depth_ = 0;  // of a queue
  size_t total_ = 0;  // of all
  uint64_t next_ = 0;
  uint64_t completed_ = 0;
  uint64_t bytes_ = 0;
};

uint32_t AllInterrupts(DsaDevice& device) {
  uint32_t sum = 0;
  for (unsigned i = 0; i < device.queues(); ++i) sum += device.queue(i).interrupts();
  return sum;
}

}  // namespace

void TestDsaMany(PciFunction& function, Row& row) {
  const size_t mark = AllocationMark();
  DsaDevice device;
  const uint64_t count = ProbeOptions().descriptors;
  const uint64_t with_interrupts = count / kShareWithInterrupts;
  if (device.Open(function, row) && device.Start(row)) {
    Many many(device, row);
    const uint32_t before = AllInterrupts(device);
    const uint64_t begin = ReadTsc();
    const bool good = many.Prepare() && many.RunPolled(count - with_interrupts) &&
                      many.RunWithInterrupts(with_interrupts);
    const uint64_t cycles = ReadTsc() - begin;
    const uint32_t interrupts = AllInterrupts(device) - before;
    if (good && with_interrupts != 0 && interrupts == 0) row.Fail("no interrupt came");
    device.Close();
    row.tested().Add("moves, each result checked; none lost");
    // What a monitor that counts the same has to find, apart from these descriptors.
    row.figures().Put(many.completed(), " descriptors, ", many.bytes(), " bytes, ");
    AddRate(row.figures(), many.bytes(), cycles);
    row.figures().Put(", ", interrupts, " interrupts; else ",
                      DsaUsed().submitted - many.completed(), '+', DsaUsed().ignored,
                      " descriptors, ", DsaUsed().register_uses, " register uses");
  } else {
    device.Close();
  }
  ReleaseAllocations(mark);
}

}  // namespace postern::probe
