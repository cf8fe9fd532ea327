// A hostile driver: what a guest may do to a monitor that must survive it. Reproducible by its
// seed. The monitor is told wrong things in every way there is; the probe only keeps it from being
// pointed at the probe's own memory (a device that does as it is told would then overwrite the
// program) and from sending itself INIT, SMI or NMI by MSI.
#include "src/probe/acpi.h"
#include "src/probe/main.h"
#include "src/probe/paging.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint16_t kRingEntries = 16;
constexpr uint64_t kScratchSize = 0x10000;
constexpr uint64_t kImageLimit = 0x400000;  // probe.lds

// xorshift64*, Vigna 2016.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1d;
  }
  // 0 .. limit - 1; 0 if there is nothing to choose from.
  uint32_t Below(uint64_t limit) {
    return limit == 0 ? 0 : static_cast<uint32_t>((Next() >> 33) % limit);
  }
  bool OneIn(uint32_t n) { return Below(n) == 0; }

 private:
  uint64_t state_;
};

struct Attack {
  explicit Attack(uint64_t seed) : random(seed) {}

  Random random;
  uint64_t scratch = 0;  // RAM above the image
  uint64_t ram_end = 0;  // the end of the RAM that `scratch` lies in
  uint64_t accesses = 0;
  uint64_t rings = 0;

  // ---------------------------------------------------------------- registers

  // Bits that, taken as an address or a part of one, do not lead into the image.
  uint64_t HarmlessValue(unsigned width) {
    uint64_t value = 0;
    switch (random.Below(6)) {
      case 0:
        value = 0;
        break;
      case 1:
        value = ~uint64_t{0};
        break;
      case 2:
        value = random.Below(64);
        break;
      case 3:
        value = scratch + random.Below(kScratchSize);
        break;
      case 4:
        value = uint64_t{1} << random.Below(64);
        break;
      default:
        value = random.Next();
        break;
    }
    if (width >= 4) {
      if ((value & 0xffffffff) < kImageLimit) value |= scratch;
    } else if (width == 2) {
      if ((value & 0xffff) < kImageLimit >> 16) value |= scratch >> 16;
    } else if ((value & 0xff) < kImageLimit >> 16) {
      value |= 0x80;
    }
    return value;
  }

  void WriteWidth(uint64_t address, unsigned width, uint64_t value) {
    switch (width) {
      case 1:
        Write8(address, static_cast<uint8_t>(value));
        break;
      case 2:
        Write16(address, static_cast<uint16_t>(value));
        break;
      case 4:
        Write32(address, static_cast<uint32_t>(value));
        break;
      default:
        Write64(address, value);
        break;
    }
    ++accesses;
  }

  void ReadWidth(uint64_t address, unsigned width) {
    switch (width) {
      case 1:
        static_cast<void>(Read8(address));
        break;
      case 2:
        static_cast<void>(Read16(address));
        break;
      case 4:
        static_cast<void>(Read32(address));
        break;
      default:
        static_cast<void>(Read64(address));
        break;
    }
    ++accesses;
  }

  // Every byte a legal part of fixed delivery to one of our open vectors; no other byte may reach
  // the table.
  uint64_t MessageValue(uint64_t table_offset, unsigned width) {
    if (width == 4 && table_offset % 16 == 0) return 0xfee00000 | random.Below(256) << 12;
    if (width == 4 && table_offset % 16 == 12) return random.Below(2);
    return (random.Next() & 0xf8f8f8f8f8f8f8f8) | 0x8080808080808080;
  }

  void Poke(const Transport::Window& window, const PciFunction* function, uint64_t table,
            uint64_t table_size) {
    const unsigned width = 1U << random.Below(4);
    // The first bytes are where the registers are.
    const uint64_t reach = random.OneIn(3) || window.size < 0x200 ? window.size : 0x200;
    if (reach < 8) return;
    uint64_t offset = random.Below(reach - 7);
    if (!random.OneIn(4)) offset &= ~uint64_t{width - 1};
    const uint64_t address = window.address + offset;
    if (random.OneIn(3)) {
      ReadWidth(address, width);
      return;
    }
    const bool in_table = address + width > table && address < table + table_size;
    const bool in_config = function != nullptr && window.address == function->config;
    uint64_t value = in_table ? MessageValue(address - table, width) : HarmlessValue(width);
    // Something a BAR can take, so that it really moves.
    if (in_config && offset >= 0x10 && offset < 0x28) value &= ~uint64_t{0xf};
    WriteWidth(address, width, value);
  }

  // ---------------------------------------------------------------- rings

  uint64_t RingAddress() {
    switch (random.Below(8)) {
      case 0:
        return ~uint64_t{0} - random.Below(64);
      case 1:
        return uint64_t{1} << 63;
      case 2:
        return ram_end - random.Below(64);
      case 3:
        return ram_end;
      case 4:
        return 0xfee00000;
      case 5:
        return AcpiInfo().ecam != 0 ? AcpiInfo().ecam : 0xfec00000;
      default:
        return scratch + random.Below(kScratchSize);
    }
  }

  uint32_t Length() {
    switch (random.Below(6)) {
      case 0:
        return 0;
      case 1:
        return 0xffffffff;
      case 2:
        return 0x7fffffff;
      case 3:
        return 16 * random.Below(64);
      default:
        return random.Below(8192);
    }
  }

  void MakeDescriptors(uint64_t where, uint16_t entries) {
    auto* descriptor = reinterpret_cast<Descriptor*>(where);
    for (uint16_t i = 0; i < entries; ++i) {
      auto next = static_cast<uint16_t>(random.Below(entries));
      if (random.OneIn(4)) next = i;
      if (random.OneIn(16)) next = static_cast<uint16_t>(random.Next());
      const auto flags = static_cast<uint16_t>(random.OneIn(8) ? random.Next() : random.Below(8));
      descriptor[i] = {RingAddress(), Length(), flags, next};
      // An indirect table that is really there, once in a while: it holds the same kind of thing.
      if ((flags & kDescriptorIndirect) != 0 && random.OneIn(2)) {
        descriptor[i].address = scratch + uint64_t{16} * random.Below(kScratchSize / 32);
        descriptor[i].length = 16 * (1 + random.Below(32));
      }
    }
  }

  // A queue with addresses, entries and an index that may all be wrong.
  void RingRound(Transport& transport) {
    uint64_t descriptors = scratch;
    uint64_t driver = scratch + 0x4000;
    uint64_t device = scratch + 0x6000;
    MakeDescriptors(descriptors, kRingEntries * 8);
    if (random.OneIn(4)) driver = RingAddress() & ~uint64_t{1};
    if (random.OneIn(4)) device = RingAddress() & ~uint64_t{3};
    if (random.OneIn(8)) descriptors = RingAddress() & ~uint64_t{15};
    if (random.OneIn(8)) device = driver;  // overlapping: the device overwrites what it reads
    if (random.OneIn(8)) driver = descriptors + 8;
    auto* avail = reinterpret_cast<volatile uint16_t*>(scratch + 0x4000);
    auto* used = reinterpret_cast<volatile uint16_t*>(scratch + 0x6000);
    avail[0] = static_cast<uint16_t>(random.Below(4));
    used[0] = 0;
    used[1] = 0;
    uint16_t index = random.OneIn(4) ? static_cast<uint16_t>(random.Next()) : 0;

    transport.SetStatus(0);
    static_cast<void>(WaitFor(100'000, [&] { return transport.Status() == 0; }));
    transport.SetStatus(kStatusAcknowledge | kStatusDriver);
    uint64_t features = transport.DeviceFeatures();
    if (random.OneIn(3)) features &= random.Next() | kFeatureVersion1;
    if (random.OneIn(8)) features = random.Next();
    transport.SetDriverFeatures(features);
    transport.SetStatus(kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
    const uint8_t vectors = VectorMark();
    static_cast<void>(transport.ConnectInterrupts(2));
    const uint16_t queues = static_cast<uint16_t>(1 + random.Below(3));
    for (uint16_t q = 0; q < queues; ++q) {
      const uint16_t maximum = transport.QueueMaxSize(q);
      uint16_t size = QueueSize(kRingEntries, maximum);
      if (random.OneIn(4))
        size = static_cast<uint16_t>(random.OneIn(2) ? random.Next() : random.Below(40));
      static_cast<void>(transport.EnableQueue(q, size, descriptors, driver, device));
    }
    transport.SetStatus(kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk);
    ++rings;

    for (unsigned step = 0; step < 6; ++step) {
      for (unsigned i = 0; i < kRingEntries; ++i) {
        avail[2 + i] =
            static_cast<uint16_t>(random.OneIn(8) ? random.Next() : random.Below(kRingEntries));
      }
      // By a few, by more than the queue holds, or back.
      index = static_cast<uint16_t>(index +
                                    (random.OneIn(4) ? random.Next() : random.Below(kRingEntries)));
      CompilerBarrier();
      avail[1] = index;
      FullBarrier();
      transport.Notify(static_cast<uint16_t>(random.Below(queues)));
      switch (random.Below(8)) {
        case 0:
          MakeDescriptors(scratch, kRingEntries);
          break;  // while the device reads them
        case 1:   // what is frozen once the driver is OK
          static_cast<void>(transport.EnableQueue(
              static_cast<uint16_t>(random.Below(queues)), static_cast<uint16_t>(random.Next()),
              RingAddress() & ~uint64_t{15}, scratch + 0x4000, scratch + 0x6000));
          break;
        case 2:
          static_cast<void>(transport.QueueMaxSize(static_cast<uint16_t>(random.Next())));
          break;
        case 3:
          transport.SetDriverFeatures(random.Next());
          break;
        case 4:
          transport.SetStatus(static_cast<uint8_t>(random.Next()));
          break;
        default:
          break;
      }
      accesses += 4;
    }
    // Sometimes the requests are left under way: the reset must then see to them.
    if (random.OneIn(2)) SpinMicros(200);
    transport.SetStatus(0);
    transport.DisconnectInterrupts();
    ReleaseVectors(vectors);
  }

  // ---------------------------------------------------------------- storms

  void ResetStorm(Transport& transport) {
    for (unsigned i = 0; i < 24; ++i) {
      transport.SetStatus(i % 2 == 0 ? 0 : static_cast<uint8_t>(random.Next()));
      if (random.OneIn(2)) static_cast<void>(transport.QueueMaxSize(0));
    }
    transport.SetStatus(0);
    accesses += 24;
  }

  void MaskStorm(Transport& transport) {
    Msix* msix = transport.msix();
    const uint8_t vectors = VectorMark();
    if (msix != nullptr && transport.ConnectInterrupts(2)) {
      for (unsigned i = 0; i < 24; ++i) {
        msix->Mask(random.Below(msix->size()), random.OneIn(2));
        if (random.OneIn(4)) msix->MaskAll(random.OneIn(2));
      }
      accesses += 30;
    }
    transport.DisconnectInterrupts();
    ReleaseVectors(vectors);
  }

  void NotifyStorm(Transport& transport) {
    // Where a queue's doorbell is, is known only once it was enabled; a device that is not ready
    // must not mind.
    static_cast<void>(transport.EnableQueue(0, QueueSize(kRingEntries, transport.QueueMaxSize(0)),
                                            scratch, scratch + 0x4000, scratch + 0x6000));
    for (unsigned i = 0; i < 48; ++i) {
      if (transport.QueueEnabled(0)) transport.Notify(0);
    }
    transport.SetStatus(0);
    accesses += 96;
  }

  // Ports are only read: among the unknown ones a write may well be an honest reset.
  void PortRound() {
    for (unsigned i = 0; i < 8; ++i) {
      const auto port = static_cast<uint16_t>(random.Next());
      switch (random.Below(3)) {
        case 0:
          static_cast<void>(In8(port));
          break;
        case 1:
          static_cast<void>(In16(port));
          break;
        default:
          static_cast<void>(In32(port));
          break;
      }
    }
    accesses += 8;
  }
};

// The registers by which a function can be lost: command, BARs, MSI-X control.
struct SavedFunction {
  PciFunction* function;
  uint32_t command;
  uint32_t bars[6];
  uint16_t msix_control;
};

void Save(PciFunction& function, SavedFunction& saved) {
  saved.function = &function;
  saved.command = Read16(function.config + kPciCommand);
  for (unsigned i = 0; i < 6; ++i) saved.bars[i] = Read32(function.config + 0x10 + uint64_t{4} * i);
  saved.msix_control = function.msix != 0 ? Read16(function.config + function.msix + 2) : 0;
}

void Restore(const SavedFunction& saved) {
  const PciFunction& function = *saved.function;
  Write16(function.config + kPciCommand, 0);
  for (unsigned i = 0; i < 6; ++i) Write32(function.config + 0x10 + uint64_t{4} * i, saved.bars[i]);
  if (function.msix != 0) Write16(function.config + function.msix + 2, saved.msix_control);
  Write16(function.config + kPciCommand, static_cast<uint16_t>(saved.command));
}

// The function behind a transport, if it is a PCI one.
PciFunction* FunctionOf(Transport& transport) {
  for (size_t i = 0; i < PciFunctionCount(); ++i) {
    if (PciFunctionAt(i).config == transport.WindowAt(0).address) return &PciFunctionAt(i);
  }
  return nullptr;
}

// Whether the device still comes up as if nothing had been.
bool ComesUp(Transport& transport, Row& row) {
  VirtioDevice device(transport);
  bool good =
      device.Begin(0, 1, row) && device.AddQueue(0, 8, row) != nullptr && device.DriverOk(row);
  good = device.End(row) && good;
  return good;
}

bool FindScratch(Attack& attack) {
  const BootInfo& boot = Boot();
  for (uint64_t base : {uint64_t{16} << 20, kImageLimit}) {
    for (size_t i = 0; i < boot.range_count; ++i) {
      const MemoryRange& range = boot.ranges[i];
      if (range.type != 1 || base < range.address ||
          range.size < base - range.address + 2 * kScratchSize)
        continue;
      attack.scratch = base;
      attack.ram_end = range.address + range.size;
      MapPhysical(base, kScratchSize, Caching::kNormal);
      return true;
    }
  }
  return false;
}

}  // namespace

bool Hostile() {
  const Options& options = ProbeOptions();
  Line start;
  Print(start.Put("hostile: seed ", options.seed, ", ", options.ops, " actions"));
  Attack attack(options.seed);
  if (VirtioCount() == 0 || !FindScratch(attack)) {
    Print("hostile: no virtio device, or no RAM beyond the image");
    return false;
  }
  OpenAllVectors();
  CloseConsole();

  SavedFunction saved[32]{};
  size_t saved_count = 0;
  for (size_t i = 0; i < VirtioCount() && saved_count < 32; ++i) {
    if (PciFunction* function = FunctionOf(VirtioAt(i))) Save(*function, saved[saved_count++]);
  }
  for (uint64_t action = 0; action < options.ops; ++action) {
    const size_t which = attack.random.Below(VirtioCount());
    Transport& transport = VirtioAt(which);
    PciFunction* const function = FunctionOf(transport);
    switch (attack.random.Below(8)) {
      case 0:
      case 1:
      case 2: {
        uint64_t table = 0;
        uint64_t table_size = 0;
        if (Msix msix; function != nullptr && msix.Open(*function)) {
          table = msix.table();
          table_size = uint64_t{msix.size()} * 16;
        }
        size_t windows = 0;
        while (windows < 8 && transport.WindowAt(windows).size != 0) ++windows;
        for (unsigned i = 0; i < 16; ++i) {
          const Transport::Window window = transport.WindowAt(attack.random.Below(windows));
          MapPhysical(window.address, window.size, Caching::kDevice);
          attack.Poke(window, function, table, table_size);
        }
        break;
      }
      case 3:
        attack.ResetStorm(transport);
        break;
      case 4:
        attack.MaskStorm(transport);
        break;
      case 5:
        attack.NotifyStorm(transport);
        break;
      case 6:
        attack.PortRound();
        break;
      default:
        attack.RingRound(transport);
        break;
    }
    if (function != nullptr) {
      for (size_t i = 0; i < saved_count; ++i) {
        if (saved[i].function == function) Restore(saved[i]);
      }
    }
  }

  Row row("hostile");
  for (size_t i = 0; i < VirtioCount(); ++i) {
    VirtioAt(i).SetStatus(0);
    if (!ComesUp(VirtioAt(i), row)) break;
  }
  OpenOutput(OpenConsole());
  row.tested().Add("registers, rings, storms; all devices come up again");
  row.figures().Put(options.ops, " actions, ", attack.accesses, " accesses, ", attack.rings,
                    " ring rounds");
  row.Finish();
  return !row.failed();
}

}  // namespace postern::probe
