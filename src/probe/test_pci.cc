// PCI: config space, BARs, MSI-X.
#include <span>

#include "src/probe/acpi.h"
#include "src/probe/interrupts.h"
#include "src/probe/paging.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {

namespace {

// All widths of the same bytes agree, what is read-only stays, and what is not there reads as ones.
bool CheckConfigAccess(const PciFunction& function, Row& row) {
  for (uint64_t offset = 0; offset < 0x40; offset += 4) {
    const uint64_t at = function.config + offset;
    const uint32_t whole = Read32(at);
    const uint32_t halves = Read16(at) | uint32_t{Read16(at + 2)} << 16;
    uint32_t bytes = 0;
    for (unsigned i = 0; i < 4; ++i) bytes |= uint32_t{Read8(at + i)} << (8 * i);
    if (whole != halves || whole != bytes)
      return row.Fail("config widths disagree at offset", offset);
  }
  // Vendor and device ID: read-only, whatever the width.
  const uint32_t id = Read32(function.config);
  Write8(function.config, 0x55);
  Write16(function.config + 2, 0x5555);
  Write32(function.config, 0x55555555);
  if (Read32(function.config) != id) return row.Fail("a write changed the vendor or device ID");
  // The interrupt line is scratch space for software (PCI 3.0 6.2.4) and a byte write may not touch
  // its neighbours.
  const uint32_t line = Read32(function.config + 0x3c);
  Write8(function.config + 0x3c, 0xa5);
  const uint32_t changed = Read32(function.config + 0x3c);
  Write8(function.config + 0x3c, static_cast<uint8_t>(line));
  if (changed != ((line & 0xffffff00) | 0xa5))
    return row.Fail("interrupt line: byte write gave", changed);
  // Accesses across a register's end must be survived; what they read is not defined.
  static_cast<void>(Read32(function.config + 0x0e + 1));
  static_cast<void>(Read16(function.config + 0x03));
  static_cast<void>(Read64(function.config));
  return true;
}

bool CheckAbsentFunction(Row& row) {
  // The last slot of the first bus that nothing uses.
  const Acpi& acpi = AcpiInfo();
  for (uint64_t slot = 31; slot > 0; --slot) {
    const uint64_t config = acpi.ecam + (slot << 15);
    if (Read32(config) != 0xffffffff) continue;
    Write32(config + 4, 0xffffffff);
    if (Read16(config) != 0xffff || Read8(config + 0x0e) != 0xff ||
        Read32(config + 0x10) != 0xffffffff) {
      return row.Fail("an absent function does not read as ones, slot", slot);
    }
    return true;
  }
  return true;
}

// The BAR of a virtio function that holds its common configuration, whose registers tell one device
// from another.
struct CommonPlace {
  unsigned bar = 6;
  uint64_t offset = 0;
};
CommonPlace FindCommon(const PciFunction& function) {
  constexpr uint8_t kCommonConfig = 1;
  for (uint8_t at = FindCapability(function, kCapabilityVendor); at != 0;
       at = FindCapability(function, kCapabilityVendor, at)) {
    const uint64_t cap = function.config + at;
    if (Read8(cap + 3) == kCommonConfig) return {Read8(cap + 4), Read32(cap + 8)};
  }
  return {};
}

void SetDecoding(const PciFunction& function, bool on) {
  const uint64_t command = function.config + kPciCommand;
  const uint16_t value = Read16(command);
  Write16(command,
          static_cast<uint16_t>(on ? value | kPciCommandMemory : value & ~kPciCommandMemory));
}

// What a virtio device says at this address of its common configuration (VIRTIO 1.2 4.1.4.3): its
// features and queue count.
struct Identity {
  uint64_t features;
  uint16_t queues;
  bool operator==(const Identity&) const = default;
};
Identity IdentifyAt(uint64_t common) {
  Write32(common, 0);
  const uint64_t low = Read32(common + 4);
  Write32(common, 1);
  return {low | uint64_t{Read32(common + 4)} << 32, Read16(common + 0x12)};
}

struct Movable {
  PciFunction* function = nullptr;
  CommonPlace place{};
  [[nodiscard]] PciBar& bar() const { return function->bars[place.bar]; }
};

// Two functions exchange the places of their BARs with decoding off: whatever window holds both
// still does.
bool Exchange(const Movable& a, const Movable& b, Row& row) {
  const uint64_t address_a = a.bar().address;
  const uint64_t address_b = b.bar().address;
  SetDecoding(*a.function, false);
  SetDecoding(*b.function, false);
  // All ones on PCI, but monitors differ: anything, only not the device's feature word.
  const uint32_t silence = Read32(address_a + a.place.offset + 4);
  SetBarAddress(*a.function, a.place.bar, address_b);
  SetBarAddress(*b.function, b.place.bar, address_a);
  const bool moved = BarAddress(*a.function, a.place.bar) == address_b &&
                     BarAddress(*b.function, b.place.bar) == address_a;
  SetDecoding(*a.function, true);
  SetDecoding(*b.function, true);
  if (silence != 0xffffffff && silence != 0)
    row.Fail("a BAR answers with decoding off, address", address_a);
  return moved || row.Fail("a BAR did not take the address", address_b);
}

void MoveThereAndBack(const Movable& a, const Movable& b, Row& row) {
  const uint64_t at_a = a.bar().address;
  const uint64_t at_b = b.bar().address;
  MapPhysical(at_a, a.bar().size, Caching::kDevice);
  MapPhysical(at_b, b.bar().size, Caching::kDevice);
  const Identity identity_a = IdentifyAt(at_a + a.place.offset);
  const Identity identity_b = IdentifyAt(at_b + b.place.offset);
  if (!Exchange(a, b, row)) return;
  if (!(IdentifyAt(at_b + a.place.offset) == identity_a) ||
      !(IdentifyAt(at_a + b.place.offset) == identity_b)) {
    row.Fail("a moved BAR does not answer as its device at", at_b);
  }
  if (!Exchange(a, b, row)) return;
  if (!(IdentifyAt(at_a + a.place.offset) == identity_a) ||
      !(IdentifyAt(at_b + b.place.offset) == identity_b)) {
    row.Fail("a BAR moved back does not answer as its device at", at_a);
  }
}

// Finds two functions that can exchange BARs, other than the one behind the output. False if there
// are none.
bool MoveBars(Row& row) {
  const Transport* const output = FindVirtio(kVirtioConsole);
  Movable candidates[32];
  size_t count = 0;
  for (size_t i = 0; i < VirtioCount(); ++i) {
    Transport& transport = VirtioAt(i);
    if (&transport == output || transport.msix() == nullptr) continue;
    for (size_t f = 0; f < PciFunctionCount() && count < 32; ++f) {
      PciFunction& function = PciFunctionAt(f);
      if (function.config != transport.WindowAt(0).address) continue;
      const CommonPlace place = FindCommon(function);
      if (place.bar < 6 && function.bars[place.bar].address != 0)
        candidates[count++] = {&function, place};
    }
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t k = i + 1; k < count; ++k) {
      const PciBar& a = candidates[i].bar();
      const PciBar& b = candidates[k].bar();
      if (a.size != b.size || a.is_64 != b.is_64) continue;
      MoveThereAndBack(candidates[i], candidates[k], row);
      return true;
    }
  }
  return false;
}

}  // namespace

bool TestPci(Row& row) {
  if (PciFunctionCount() == 0) return false;
  row.address().Hex(AcpiInfo().ecam, 8);
  unsigned bars = 0;
  unsigned capabilities = 0;
  for (size_t i = 0; i < PciFunctionCount() && !row.failed(); ++i) {
    const PciFunction& function = PciFunctionAt(i);
    if (function.header_type != 0) continue;
    CheckConfigAccess(function, row);
    for (unsigned b = 0; b < 6; ++b) {
      const PciBar& bar = function.bars[b];
      if (bar.size == 0) continue;
      ++bars;
      if ((bar.size & (bar.size - 1)) != 0) row.Fail("BAR size", bar.size);
      if ((bar.address & (bar.size - 1)) != 0)
        row.Fail("BAR not aligned to its size:", bar.address);
    }
    for (unsigned id = 1; id < 0x20; ++id) {
      if (FindCapability(function, static_cast<uint8_t>(id)) != 0) ++capabilities;
    }
  }
  CheckAbsentFunction(row);
  const bool moved = !row.failed() && MoveBars(row);
  row.tested().Put("config widths, BAR sizing", moved ? ", BAR moved and back" : "",
                   ", capabilities");
  row.figures().Put(PciFunctionCount(), " functions, ", bars, " BARs, ", capabilities,
                    " capabilities");
  return true;
}

namespace {

// A request any device of the kind answers at once, without changing anything.
struct Poke {
  uint16_t queue;
  Segment readable[1];
  Segment writable[2];
  size_t readable_count;
  size_t writable_count;
};

bool MakePoke(uint16_t device_id, Poke& poke) {
  auto* memory = static_cast<uint8_t*>(Allocate(256));
  for (int i = 0; i < 64; ++i) memory[i] = 0;
  switch (device_id) {
    case kVirtioRng:
      poke = {0, {}, {{memory, 8}}, 0, 1};
      return true;
    case kVirtioBlk:
      memory[0] = 8;  // VIRTIO_BLK_T_GET_ID
      poke = {0, {{memory, 16}}, {{memory + 64, 20}, {memory + 128, 1}}, 1, 2};
      return true;
    default:
      return false;
  }
}

struct MsixTest {
  VirtioDevice& device;
  Queue& queue;
  Poke& poke;
  Row& row;

  [[nodiscard]] bool Submit() const {
    const std::span<const Segment> readable(poke.readable, poke.readable_count);
    const std::span<const Segment> writable(poke.writable, poke.writable_count);
    uint32_t length = 0;
    return queue.Run(readable, writable, length) || row.Fail("a request was not completed");
  }

  // A request while the vector is masked in one way or the other: pending, and delivered by
  // unmasking.
  template <typename SetMasked>
  bool CheckMask(const char* what, SetMasked set_masked) {
    Msix& msix = *device.transport().msix();
    const unsigned entry = device.transport().QueueMsixEntry(queue.index());
    const uint32_t before = device.Interrupts(queue);
    Line reason;
    reason.Add(what);
    set_masked(true);
    if (!Submit()) return false;
    const bool pending = WaitFor(kInterruptMicros, [&] { return msix.Pending(entry); });
    if (device.Interrupts(queue) != before)
      return row.Fail(reason.Add(": an interrupt came through").view());
    if (!pending) return row.Fail(reason.Add(": the pending bit is not set").view());
    set_masked(false);
    if (!device.InterruptsExceed(queue, before)) {
      return row.Fail(reason.Add(": unmasking did not deliver the pending interrupt").view());
    }
    return !msix.Pending(entry) || row.Fail(reason.Add(": still pending after delivery").view());
  }

  bool Run() {
    Msix& msix = *device.transport().msix();
    const unsigned entry = device.transport().QueueMsixEntry(queue.index());
    const uint8_t vector = device.transport().QueueVector(queue.index());
    if (!Submit()) return false;
    if (!device.InterruptsExceed(queue, 0)) return row.Fail("no interrupt arrived");

    // The entry rewritten to another vector: that one and no other.
    const uint8_t other = AllocateVector();
    const uint32_t before = InterruptCount(vector);
    const uint32_t other_before = InterruptCount(other);
    msix.Set(entry, other);
    if (!Submit()) return false;
    const bool arrived =
        WaitFor(kInterruptMicros, [&] { return InterruptCount(other) != other_before; });
    if (!arrived || InterruptCount(vector) != before)
      return row.Fail("a rewritten entry is not used");
    msix.Set(entry, vector);

    return CheckMask("vector mask", [&](bool masked) { msix.Mask(entry, masked); }) &&
           CheckMask("function mask", [&](bool masked) { msix.MaskAll(masked); });
  }
};

}  // namespace

bool TestMsix(Row& row) {
  for (uint16_t id : {kVirtioRng, kVirtioBlk}) {
    Transport* transport = nullptr;
    for (size_t n = 0; (transport = FindVirtio(id, n)) != nullptr && transport->msix() == nullptr;
         ++n) {
    }
    if (transport == nullptr) continue;
    transport->AddAddress(row.address());
    VirtioDevice device(*transport);
    if (!device.Begin(0, 1, row)) return true;
    Poke poke{};
    Queue* queue = device.AddQueue(0, 8, row);
    if (queue == nullptr || !MakePoke(id, poke) || !device.DriverOk(row)) return true;
    MsixTest{device, *queue, poke, row}.Run();
    row.tested().Add("delivery, entry rewritten, masks, pending bit, unmask");
    row.figures().Put(transport->msix()->size(), " vectors, ", device.Interrupts(*queue),
                      " interrupts");
    device.End(row);
    return true;
  }
  return false;
}

}  // namespace postern::probe
