#include "src/arch/x86_64/cpuid.h"

#include <algorithm>
#include <bit>

#include "src/base/bits.h"
#include "src/base/check.h"

namespace postern::x86_64 {
namespace {

// SDM vol. 2A, CPUID, and APM vol. 3 appendix E.
struct Leaf1Ebx : Bits<std::uint32_t> {
  using ApicId = Field<31, 24>;
  using LogicalProcessors = Field<23, 16>;
};
struct Leaf1Ecx : Bits<std::uint32_t> {
  using Hypervisor = Bit<31>;
  using TscDeadline = Bit<24>;
  using Vmx = Bit<5>;
};
struct Leaf1Edx : Bits<std::uint32_t> {
  using Htt = Bit<28>;
};
// Leaf 4 and AMD's 0x8000001D share their form.
struct CacheEax : Bits<std::uint32_t> {
  using CoresPerPackageMinusOne = Field<31, 26>;  // reserved on AMD
  using SharedByMinusOne = Field<25, 14>;
  using Level = Field<7, 5>;
  using Type = Field<4, 0>;
};
struct ExtFeaturesEcx : Bits<std::uint32_t> {
  using Svm = Bit<2>;
  using CmpLegacy = Bit<1>;
};
struct ExtFeaturesEdx : Bits<std::uint32_t> {
  using GigabytePages = Bit<26>;
};
struct CapacityEax : Bits<std::uint32_t> {
  using PhysicalBits = Field<7, 0>;
};
struct CapacityEcx : Bits<std::uint32_t> {
  using ApicIdSize = Field<15, 12>;
  using CoresMinusOne = Field<7, 0>;
};

constexpr std::uint32_t kLeafTopology = 0xb;
constexpr std::uint32_t kLeafTopologyV2 = 0x1f;
constexpr std::uint32_t kLeafTsc = 0x15;
constexpr std::uint32_t kLeafFrequency = 0x16;
constexpr std::uint32_t kLeafHypervisor = 0x40000000;
constexpr std::uint32_t kLeafHypervisorFeatures = 0x40000001;
// VMware's "timing information" leaf, which KVM guests read as well.
constexpr std::uint32_t kLeafHypervisorTiming = 0x40000010;
constexpr std::uint32_t kLeafSvm = 0x8000000a;
constexpr std::uint32_t kLeafAmdTopology = 0x80000026;

constexpr std::uint32_t kTopologyLevelSmt = 1;
constexpr std::uint32_t kTopologyLevelCore = 2;

enum class Vendor : std::uint8_t { kIntel, kAmd, kOther };

Vendor VendorOf(std::span<const CpuidEntry> entries) {
  for (const CpuidEntry& entry : entries) {
    if (entry.function != 0) continue;
    // "GenuineIntel", "AuthenticAMD", "HygonGenuine": four letters in each of EBX, EDX, ECX.
    if (entry.ebx == 0x756e6547 && entry.edx == 0x49656e69 && entry.ecx == 0x6c65746e)
      return Vendor::kIntel;
    if (entry.ebx == 0x68747541 && entry.edx == 0x69746e65 && entry.ecx == 0x444d4163)
      return Vendor::kAmd;
    if (entry.ebx == 0x6f677948 && entry.edx == 0x6e65476e && entry.ecx == 0x656e6975)
      return Vendor::kAmd;
  }
  return Vendor::kOther;
}

CpuidEntry* Find(std::vector<CpuidEntry>& entries, std::uint32_t function,
                 std::uint32_t index = 0) {
  for (CpuidEntry& entry : entries) {
    if (entry.function == function &&
        ((entry.flags & kIndexSignificant) == 0 || entry.index == index))
      return &entry;
  }
  return nullptr;
}

CpuidEntry& FindOrAdd(std::vector<CpuidEntry>& entries, std::uint32_t function,
                      std::uint32_t index = 0) {
  if (CpuidEntry* found = Find(entries, function, index)) return *found;
  CpuidEntry entry;
  entry.function = function;
  entry.index = index;
  entry.flags = index != 0 ? kIndexSignificant : 0;
  return entries.emplace_back(entry);
}

void Remove(std::vector<CpuidEntry>& entries, std::uint32_t function) {
  std::erase_if(entries,
                [function](const CpuidEntry& entry) { return entry.function == function; });
}

// SDM vol. 2A, leaf 0BH: EAX = how far to shift the x2APIC id right to get the id of the next level
// up.
void AddTopology(std::vector<CpuidEntry>& entries, std::uint32_t function,
                 const CpuidOptions& options, std::uint32_t core_shift) {
  const auto add = [&](std::uint32_t index, std::uint32_t shift, std::uint32_t processors,
                       std::uint32_t type) {
    CpuidEntry entry;
    entry.function = function;
    entry.index = index;
    entry.flags = kIndexSignificant;
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = index | type << 8;
    entry.edx = options.index;
    entries.push_back(entry);
  };
  add(0, 0, 1, kTopologyLevelSmt);
  add(1, core_shift, options.count, kTopologyLevelCore);
  add(2, 0, 0, 0);
}

void SetCacheSharing(CpuidEntry& entry, std::uint32_t package_ids, bool has_core_count) {
  CacheEax eax{{entry.eax}};
  if (eax.Get<CacheEax::Type>() == 0) return;
  // The last level serves the package, the others one core.
  const std::uint64_t shared_by = eax.Get<CacheEax::Level>() >= 3 ? package_ids : 1;
  eax.Set<CacheEax::SharedByMinusOne>(std::min<std::uint64_t>(shared_by - 1, 0xfff));
  if (has_core_count) eax.Set<CacheEax::CoresPerPackageMinusOne>(std::min(package_ids - 1, 63U));
  entry.eax = eax.raw;
}

void SetBasicFeatures(CpuidEntry& entry, const CpuidOptions& options, std::uint32_t package_ids) {
  Leaf1Ebx ebx{{entry.ebx}};
  ebx.Set<Leaf1Ebx::ApicId>(options.index & 0xff);
  ebx.Set<Leaf1Ebx::LogicalProcessors>(std::min(package_ids, 255U));
  entry.ebx = ebx.raw;
  Leaf1Ecx ecx{{entry.ecx}};
  ecx.Set<Leaf1Ecx::Hypervisor>(true);
  if (options.tsc_deadline) ecx.Set<Leaf1Ecx::TscDeadline>(true);
  if (!options.nested) ecx.Set<Leaf1Ecx::Vmx>(false);
  entry.ecx = ecx.raw;
  Leaf1Edx edx{{entry.edx}};
  edx.Set<Leaf1Edx::Htt>(options.count > 1);
  entry.edx = edx.raw;
}

void SetAmdTopology(std::vector<CpuidEntry>& entries, const CpuidOptions& options,
                    std::uint32_t core_shift) {
  if (CpuidEntry* features = Find(entries, 0x80000001)) {
    ExtFeaturesEcx ecx{{features->ecx}};
    ecx.Set<ExtFeaturesEcx::CmpLegacy>(options.count > 1);
    features->ecx = ecx.raw;
  }
  if (CpuidEntry* capacity = Find(entries, 0x80000008)) {
    CapacityEcx ecx{{capacity->ecx}};
    ecx.Set<CapacityEcx::ApicIdSize>(core_shift);
    ecx.Set<CapacityEcx::CoresMinusOne>(std::min(options.count - 1, 255U));
    capacity->ecx = ecx.raw;
  }
  if (CpuidEntry* topology = Find(entries, 0x8000001e)) {
    topology->eax = options.index;
    topology->ebx = options.index & 0xff;  // core id; one thread per core
    topology->ecx = 0;                     // node 0 of one
    topology->edx = 0;
  }
}

// The timer of KVM's local APIC counts at apic_bus_hz whatever the host's does.
void SetFrequencies(std::vector<CpuidEntry>& entries, const CpuidOptions& options, Vendor vendor,
                    std::uint32_t max_basic) {
  Remove(entries, kLeafTsc);
  Remove(entries, kLeafFrequency);
  if (options.tsc_khz == 0) return;
  if (vendor == Vendor::kIntel && max_basic >= kLeafTsc && options.apic_bus_hz >= 1000) {
    // Linux takes the crystal (ECX) for the frequency of the APIC timer, and ECX * EBX / EAX for
    // the TSC's: so the crystal has to be the APIC bus clock. Leaf 0x16 stays empty: it would be
    // believed only where 0x15 is missing.
    CpuidEntry& tsc = FindOrAdd(entries, kLeafTsc);
    tsc.eax = options.apic_bus_hz / 1000;
    tsc.ebx = options.tsc_khz;
    tsc.ecx = options.apic_bus_hz;
    tsc.edx = 0;
  }
  CpuidEntry* const hypervisor = Find(entries, kLeafHypervisor);
  if (hypervisor == nullptr) return;
  hypervisor->eax = std::max(hypervisor->eax, kLeafHypervisorTiming);
  CpuidEntry& timing = FindOrAdd(entries, kLeafHypervisorTiming);
  timing.eax = options.tsc_khz;
  timing.ebx = options.apic_bus_hz / 1000;
  timing.ecx = 0;
  timing.edx = 0;
}

void Apply(const CpuidOverride& change, std::vector<CpuidEntry>& entries) {
  CpuidEntry& entry = FindOrAdd(entries, change.function, change.index);
  std::uint32_t* reg = nullptr;
  switch (change.reg) {
    case CpuidOverride::Register::kEax:
      reg = &entry.eax;
      break;
    case CpuidOverride::Register::kEbx:
      reg = &entry.ebx;
      break;
    case CpuidOverride::Register::kEcx:
      reg = &entry.ecx;
      break;
    case CpuidOverride::Register::kEdx:
      reg = &entry.edx;
      break;
  }
  CHECK(reg != nullptr);
  *reg = (*reg & ~change.clear) | change.set;
}

}  // namespace

std::vector<CpuidEntry> BuildCpuid(std::span<const CpuidEntry> supported,
                                   const CpuidOptions& options) {
  CHECK(options.count >= 1 && options.count <= kMaxCpus && options.index < options.count);
  std::vector<CpuidEntry> entries(supported.begin(), supported.end());
  // APIC ids are the vCPU indices, so a package takes the next power of two of them.
  const auto core_shift = static_cast<std::uint32_t>(std::bit_width(options.count - 1));
  const std::uint32_t package_ids = 1U << core_shift;
  const Vendor vendor = VendorOf(entries);

  CpuidEntry& basic = FindOrAdd(entries, 0);
  basic.eax = std::max(basic.eax, kLeafTopology);
  const std::uint32_t max_basic = basic.eax;

  const bool topology_v2 = Find(entries, kLeafTopologyV2) != nullptr;
  Remove(entries, kLeafTopology);
  Remove(entries, kLeafTopologyV2);
  AddTopology(entries, kLeafTopology, options, core_shift);
  if (topology_v2) AddTopology(entries, kLeafTopologyV2, options, core_shift);
  // Would describe the host's package, and takes precedence over the leaves below.
  Remove(entries, kLeafAmdTopology);

  for (CpuidEntry& entry : entries) {
    switch (entry.function) {
      case 1:
        SetBasicFeatures(entry, options, package_ids);
        break;
      case 4:
        SetCacheSharing(entry, package_ids, true);
        break;
      case 0x8000001d:
        SetCacheSharing(entry, package_ids, false);
        break;
      case 0x80000001:
        if (!options.nested) {
          ExtFeaturesEcx ecx{{entry.ecx}};
          ecx.Set<ExtFeaturesEcx::Svm>(false);
          entry.ecx = ecx.raw;
        }
        break;
      default:
        break;
    }
  }
  if (!options.nested) Remove(entries, kLeafSvm);
  if (vendor == Vendor::kAmd) SetAmdTopology(entries, options, core_shift);

  // Documentation/virt/kvm/x86/cpuid.rst: the signature leaf. Kernels old enough report EAX 0 and
  // mean 0x40000001.
  if (CpuidEntry* hypervisor = Find(entries, kLeafHypervisor)) {
    hypervisor->eax = std::max(hypervisor->eax, kLeafHypervisorFeatures);
  }
  SetFrequencies(entries, options, vendor, max_basic);

  for (const CpuidOverride& change : options.overrides) Apply(change, entries);
  // KVM takes the entries in any order; sorted they read well in a dump.
  std::stable_sort(entries.begin(), entries.end(), [](const CpuidEntry& a, const CpuidEntry& b) {
    return a.function != b.function ? a.function < b.function : a.index < b.index;
  });
  return entries;
}

unsigned PhysicalAddressBits(std::span<const CpuidEntry> entries) {
  for (const CpuidEntry& entry : entries) {
    if (entry.function != 0x80000008) continue;
    const auto bits =
        static_cast<unsigned>(CapacityEax{{entry.eax}}.Get<CapacityEax::PhysicalBits>());
    // SDM: 52 bits is the architectural limit.
    if (bits >= 32 && bits <= 52) return bits;
  }
  return 36;
}

bool HasGigabytePages(std::span<const CpuidEntry> entries) {
  return std::any_of(entries.begin(), entries.end(), [](const CpuidEntry& entry) {
    return entry.function == 0x80000001 &&
           ExtFeaturesEdx{{entry.edx}}.Get<ExtFeaturesEdx::GigabytePages>();
  });
}

}  // namespace postern::x86_64
