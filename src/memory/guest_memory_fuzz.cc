// Any sequence of guest addresses, lengths and accesses against a model that keeps each region as a
// plain vector.

#include "src/memory/guest_memory.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "src/base/check.h"
#include "src/base/endian.h"

namespace postern::memory {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();

struct ModelRegion {
  std::uint64_t base;
  std::vector<std::byte> bytes;
  std::uint64_t written = 0;  // pages, one bit each
};

struct World {
  GuestMemoryPtr memory;
  std::vector<ModelRegion> model;
};

// Two adjacent regions, a hole, and one that ends with the address space.
World NewWorld() {
  World world;
  std::vector<RegionPtr> regions;
  for (const auto& [base, pages] : {std::pair<std::uint64_t, std::uint64_t>{0, 1},
                                    {kPage, 2},
                                    {8 * kPage, 1},
                                    {kTop - 2 * kPage + 1, 2}}) {
    auto region = Region::Create(Gpa(base), pages * kPage, {.track_dirty = true});
    CHECK(region.has_value());
    regions.push_back(std::move(*region));
    world.model.push_back({base, std::vector<std::byte>(pages * kPage), 0});
  }
  auto memory = GuestMemory::Create(std::move(regions));
  CHECK(memory.has_value());
  world.memory = std::move(*memory);
  return world;
}

class Input {
 public:
  explicit Input(std::span<const std::uint8_t> data) : data_(data) {}
  [[nodiscard]] bool empty() const { return data_.empty(); }
  std::uint8_t Byte() {
    if (data_.empty()) return 0;
    const std::uint8_t byte = data_.front();
    data_ = data_.subspan(1);
    return byte;
  }
  // Mostly near the borders of regions, now and then anything.
  std::uint64_t Address() {
    constexpr std::array<std::uint64_t, 8> kBorders{
        0, kPage, 3 * kPage, 8 * kPage, 9 * kPage, kTop - 2 * kPage + 1, kTop, 2 * kPage};
    const std::uint8_t choice = Byte();
    if (choice < 240)
      return kBorders[choice % 8] + static_cast<std::uint64_t>(static_cast<std::int8_t>(Byte()));
    return Any();
  }
  std::uint64_t Length() {
    const std::uint8_t choice = Byte();
    if (choice < 200) return choice;
    if (choice < 240) return std::uint64_t{Byte()} << 6;
    return Any();
  }
  std::uint64_t Any() {
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | Byte();
    return value;
  }

 private:
  std::span<const std::uint8_t> data_;
};

// The model's region that `gpa` lies in, or null.
ModelRegion* In(World& world, std::uint64_t gpa) {
  for (ModelRegion& region : world.model) {
    if (gpa >= region.base && gpa - region.base < region.bytes.size()) return &region;
  }
  return nullptr;
}

// Bytes of RAM from `gpa` on, at most `length`; within one region, or across adjacent ones.
std::uint64_t Run(World& world, std::uint64_t gpa, std::uint64_t length, bool across) {
  std::uint64_t n = 0;
  while (n < length) {
    const ModelRegion* region = In(world, gpa);
    if (region == nullptr) break;
    const std::uint64_t step = std::min(length - n, region->bytes.size() - (gpa - region->base));
    n += step;
    if (!across || gpa > kTop - step) break;
    gpa += step;
  }
  return n;
}

// The model's copies; the whole range is in RAM.
void Store(World& world, std::uint64_t gpa, const void* from, std::uint64_t length) {
  const auto* source = static_cast<const std::byte*>(from);
  while (length > 0) {
    ModelRegion& region = *In(world, gpa);
    const std::uint64_t offset = gpa - region.base;
    const std::uint64_t step = std::min(length, region.bytes.size() - offset);
    std::memcpy(region.bytes.data() + offset, source, step);
    for (std::uint64_t page = offset / kPage; page <= (offset + step - 1) / kPage; ++page) {
      region.written |= std::uint64_t{1} << page;
    }
    source += step;
    gpa += step;
    length -= step;
  }
}
bool Equals(World& world, std::uint64_t gpa, const void* to, std::uint64_t length) {
  const auto* target = static_cast<const std::byte*>(to);
  while (length > 0) {
    const ModelRegion& region = *In(world, gpa);
    const std::uint64_t step = std::min(length, region.bytes.size() - (gpa - region.base));
    if (std::memcmp(region.bytes.data() + (gpa - region.base), target, step) != 0) return false;
    target += step;
    gpa += step;
    length -= step;
  }
  return true;
}

template <typename T>
void Typed(World& world, std::uint64_t gpa, std::uint64_t value, bool write) {
  const bool fits = Run(world, gpa, sizeof(T), false) == sizeof(T);
  if (write) {
    const T object(static_cast<decltype(T().get())>(value));
    CHECK(world.memory->Write(Gpa(gpa), object).has_value() == fits);
    if (fits) Store(world, gpa, &object, sizeof(T));
  } else {
    const Result<T> read = world.memory->Read<T>(Gpa(gpa));
    CHECK(read.has_value() == fits);
    if (fits) CHECK(Equals(world, gpa, &*read, sizeof(T)));
  }
}

void Copy(World& world, std::uint64_t gpa, std::uint64_t length, std::uint8_t seed, bool in) {
  length %= 4 * kPage;
  const bool fits = Run(world, gpa, length, true) == length;
  std::vector<std::byte> buffer(length, static_cast<std::byte>(seed));
  if (in) {
    CHECK(world.memory->CopyIn(Gpa(gpa), buffer).has_value() == fits);
    if (fits) Store(world, gpa, buffer.data(), length);
  } else {
    CHECK(world.memory->CopyOut(Gpa(gpa), buffer).has_value() == fits);
    if (fits) {
      CHECK(Equals(world, gpa, buffer.data(), length));
    } else {
      CHECK(buffer == std::vector<std::byte>(length, static_cast<std::byte>(seed)));
    }
  }
}

void Views(World& world, std::uint64_t gpa, std::uint64_t length, std::uint64_t offset,
           std::uint64_t part) {
  const bool in_ram = In(world, gpa) != nullptr;
  const std::uint64_t run = Run(world, gpa, length, false);
  const Result<GuestView> view = world.memory->View(Gpa(gpa), length, Access::kReadWrite);
  CHECK(view.has_value() == (in_ram && run == length));
  const Result<GuestView> longest = world.memory->ViewRun(Gpa(gpa), length, Access::kReadWrite);
  CHECK(longest.has_value() == in_ram);
  if (!in_ram) return;
  CHECK(longest->size() == run);
  const Result<GuestView> sub = longest->Sub(offset, part);
  CHECK(sub.has_value() == (offset <= run && part <= run - offset));
  if (!sub || part == 0) return;
  CHECK(sub->Fill(0, part, std::byte{0x5c}).has_value());
  CHECK(!sub->Fill(1, part, std::byte{0x5c}).has_value());
  const std::vector<std::byte> filled(part, std::byte{0x5c});
  Store(world, gpa + offset, filled.data(), part);
}

// From one place to another, and the comparison of the two.
void Move(World& world, std::uint64_t from, std::uint64_t to, std::uint64_t length,
          std::uint8_t how) {
  length %= 2 * kPage;
  const Result<GuestView> source = world.memory->View(Gpa(from), length, Access::kRead);
  const Result<GuestView> target = world.memory->View(Gpa(to), length, Access::kWrite);
  if (!source || !target) return;
  std::vector<std::byte> before(length);
  CHECK(source->CopyOut(0, before).has_value());
  std::vector<std::byte> other(length);
  CHECK(target->CopyOut(0, other).has_value());
  const auto same = static_cast<std::size_t>(
      std::mismatch(before.begin(), before.end(), other.begin()).first - before.begin());
  CHECK(source->SameAs(0, *target, 0, length).value() == same);
  CHECK(!source->CopyTo(1, *target, 0, length).has_value());
  const Stores stores = (how & 16) != 0 ? Stores::kStreamed : Stores::kCached;
  CHECK(source->CopyTo(0, *target, 0, length, stores).has_value());
  if (length > 0) Store(world, to, before.data(), length);
}

void Pattern(World& world, std::uint64_t gpa, std::uint64_t length, std::uint64_t pattern) {
  length %= 2 * kPage;
  const Result<GuestView> view = world.memory->View(Gpa(gpa), length, Access::kWrite);
  if (!view || length == 0) return;
  std::vector<std::byte> bytes(length);
  for (std::size_t i = 0; i < length; ++i)
    bytes[i] = static_cast<std::byte>(pattern >> (i % 8 * 8));
  CHECK(view->FillPattern(0, length, pattern).has_value());
  Store(world, gpa, bytes.data(), length);
  CHECK(view->SameAsPattern(0, length, pattern).value() == length);
}

// What lies before a byte, against what lies after it.
void RunUpTo(World& world, std::uint64_t last, std::uint64_t length) {
  const Result<GuestView> run = world.memory->ViewRunUpTo(Gpa(last), length, Access::kRead);
  const ModelRegion* region = In(world, last);
  CHECK(run.has_value() == (region != nullptr));
  if (!run) return;
  const std::uint64_t before = last - region->base + 1;
  CHECK(run->size() == std::min(length, before));
  if (length > 0) CHECK(run->gpa().value + (run->size() - 1) == last);
}

// The bytes are the model's, and the dirty pages are those that were written and no others.
void Compare(World& world) {
  for (std::size_t r = 0; r < world.model.size(); ++r) {
    ModelRegion& region = world.model[r];
    std::vector<std::byte> now(region.bytes.size());
    CHECK(world.memory->CopyOut(Gpa(region.base), now).has_value());
    CHECK(std::memcmp(now.data(), region.bytes.data(), now.size()) == 0);
    CHECK(world.memory->regions()[r]->dirty()->Take() ==
          std::vector<std::uint64_t>{region.written});
    region.written = 0;
  }
}

}  // namespace
}  // namespace postern::memory

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::memory;
  static World world = NewWorld();
  Input input(std::span(data, size));
  while (!input.empty()) {
    const std::uint8_t what = input.Byte();
    const std::uint64_t gpa = input.Address();
    switch (what % 8) {
      case 0:
        Typed<postern::le16>(world, gpa, input.Any(), (what & 8) != 0);
        break;
      case 1:
        Typed<postern::le32>(world, gpa, input.Any(), (what & 8) != 0);
        break;
      case 2:
        Typed<postern::le64>(world, gpa, input.Any(), (what & 8) != 0);
        break;
      case 3:
      case 4:
        Copy(world, gpa, input.Length(), what, (what & 8) != 0);
        break;
      case 5:
        Move(world, gpa, input.Address(), input.Length(), what);
        break;
      case 6:
        if ((what & 8) != 0) {
          Pattern(world, gpa, input.Length(), input.Any());
        } else {
          RunUpTo(world, gpa, input.Length());
        }
        break;
      default: {
        const std::uint64_t length = input.Length();
        const std::uint64_t offset = input.Length();
        Views(world, gpa, length, offset, input.Length());
      }
    }
  }
  Compare(world);
  return 0;
}
