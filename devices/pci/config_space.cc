#include "devices/pci/config_space.h"

#include <algorithm>
#include <utility>

#include "src/base/check.h"

namespace postern::pci {
namespace {

constexpr std::size_t kDword = 4;

constexpr std::uint32_t AlignDword(std::uint32_t offset) {
  return (offset + 3) & ~std::uint32_t{3};
}

}  // namespace

ConfigSpace::ConfigSpace(const Identity& identity)
    : values_(kConventionalEnd),
      reset_(kConventionalEnd),
      writable_(kConventionalEnd),
      w1c_(kConventionalEnd) {
  Set<std::uint16_t>(kVendorId, identity.vendor);
  Set<std::uint16_t>(kDeviceId, identity.device);
  Set<std::uint8_t>(kRevisionId, identity.revision);
  Set<std::uint8_t>(kClassCode, static_cast<std::uint8_t>(identity.class_code));
  Set<std::uint16_t>(kClassCode + 1, static_cast<std::uint16_t>(identity.class_code >> 8));
  Set<std::uint16_t>(kSubsystemVendorId, identity.subsystem_vendor);
  Set<std::uint16_t>(kSubsystemId, identity.subsystem);
  // The decoding bits of COMMAND become writable with the first BAR of their kind.
  COMMAND command;
  command.Set<COMMAND::InterruptDisable>(true);
  command.Set<COMMAND::Serr>(true);
  command.Set<COMMAND::ParityError>(true);
  command.Set<COMMAND::BusMaster>(true);
  Allow<std::uint16_t>(kCommand, command.raw);
  Allow<std::uint16_t>(kStatus, 0, kStatusErrorBits);
  Allow<std::uint8_t>(kCacheLineSize, 0xff);
  Allow<std::uint8_t>(kInterruptLine, 0xff);
}

void ConfigSpace::Load(ConfigImage image) {
  const std::size_t size = image.values.size();
  CHECK(size == kConventionalEnd || size == kConfigEnd);
  CHECK(image.writable.size() == size && image.write_one_to_clear.size() == size);
  for (std::size_t i = 0; i < size; ++i) {
    CHECK((image.writable[i] & image.write_one_to_clear[i]) == 0);
  }
  reset_ = image.values;
  values_ = std::move(image.values);
  writable_ = std::move(image.writable);
  w1c_ = std::move(image.write_one_to_clear);
  next_capability_ = kConventionalEnd;
  next_extended_ = kConfigEnd;
}

bool ConfigSpace::Accepts(std::uint32_t offset, std::size_t width) {
  if (offset >= kConfigEnd || width > kConfigEnd - offset) return false;
  switch (width) {
    case 1:
    case 2:
    case 4:
      return offset % kDword + width <= kDword;
    case 8:
      return offset % 8 == 0;
    default:
      return false;
  }
}

bool ConfigSpace::Read(std::uint32_t offset, std::span<std::byte> data) const {
  if (!Accepts(offset, data.size())) {
    std::ranges::fill(data, std::byte{0xff});
    return false;
  }
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::size_t at = offset + i;
    data[i] = at < values_.size() ? std::byte{values_[at]} : std::byte{0};
  }
  return true;
}

bool ConfigSpace::Write(std::uint32_t offset, std::span<const std::byte> data) {
  if (!Accepts(offset, data.size())) return false;
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::size_t at = offset + i;
    if (at >= values_.size()) break;
    const auto written = std::to_integer<std::uint8_t>(data[i]);
    const auto kept =
        static_cast<std::uint8_t>(values_[at] & ~writable_[at] & ~(w1c_[at] & written));
    values_[at] = static_cast<std::uint8_t>(kept | (written & writable_[at]));
  }
  return true;
}

std::uint64_t ConfigSpace::Load(std::uint32_t offset, std::size_t width) const {
  CHECK(offset < values_.size() && width <= values_.size() - offset);
  std::uint64_t value = 0;
  for (std::size_t i = width; i-- > 0;) value = (value << 8) | values_[offset + i];
  return value;
}

void ConfigSpace::Store(std::uint32_t offset, std::size_t width, std::uint64_t value,
                        bool also_reset) {
  CHECK(offset < values_.size() && width <= values_.size() - offset);
  for (std::size_t i = 0; i < width; ++i) {
    values_[offset + i] = static_cast<std::uint8_t>(value >> (8 * i));
    if (also_reset) reset_[offset + i] = values_[offset + i];
  }
}

void ConfigSpace::SetMasks(std::uint32_t offset, std::size_t width, std::uint64_t writable,
                           std::uint64_t w1c) {
  CHECK(offset < values_.size() && width <= values_.size() - offset);
  CHECK((writable & w1c) == 0);
  for (std::size_t i = 0; i < width; ++i) {
    writable_[offset + i] = static_cast<std::uint8_t>(writable >> (8 * i));
    w1c_[offset + i] = static_cast<std::uint8_t>(w1c >> (8 * i));
  }
}

void ConfigSpace::AddWritable(std::uint32_t offset, std::size_t width, std::uint64_t writable) {
  CHECK(offset < values_.size() && width <= values_.size() - offset);
  for (std::size_t i = 0; i < width; ++i) {
    writable_[offset + i] = static_cast<std::uint8_t>(writable_[offset + i] | writable >> (8 * i));
  }
}

void ConfigSpace::Grow() {
  for (auto* bytes : {&values_, &reset_, &writable_, &w1c_}) bytes->resize(kConfigEnd);
}

Result<std::uint8_t> ConfigSpace::AddCapability(std::uint8_t id, std::span<const std::uint8_t> body,
                                                std::span<const std::uint8_t> writable) {
  CHECK(writable.empty() || writable.size() == body.size());
  const std::uint32_t at = next_capability_;
  if (at + 2 + body.size() > kConventionalEnd) return Err(Errc::kExhausted, "add PCI capability");
  Set<std::uint8_t>(at, id);
  for (std::size_t i = 0; i < body.size(); ++i) {
    const auto byte_at = static_cast<std::uint32_t>(at + 2 + i);
    Set<std::uint8_t>(byte_at, body[i]);
    if (!writable.empty()) Allow<std::uint8_t>(byte_at, writable[i]);
  }
  // PCI 3.0 6.7: the list starts at 0x34 and Status says that there is one.
  Set<std::uint8_t>(last_capability_ == 0 ? kCapabilitiesPointer : last_capability_ + 1,
                    static_cast<std::uint8_t>(at));
  STATUS status{{Get<std::uint16_t>(kStatus)}};
  status.Set<STATUS::CapabilitiesList>(true);
  Set<std::uint16_t>(kStatus, status.raw);
  last_capability_ = at;
  next_capability_ = AlignDword(static_cast<std::uint32_t>(at + 2 + body.size()));
  return static_cast<std::uint8_t>(at);
}

Result<std::uint16_t> ConfigSpace::AddExtendedCapability(std::uint16_t id, std::uint8_t version,
                                                         std::span<const std::uint8_t> body,
                                                         std::span<const std::uint8_t> writable) {
  CHECK(writable.empty() || writable.size() == body.size());
  const std::uint32_t at = next_extended_;
  if (at + 4 + body.size() > kConfigEnd)
    return Err(Errc::kExhausted, "add PCI extended capability");
  Grow();
  // PCI Express 3.0 7.9.3: ID 15:0, version 19:16, offset of the next one 31:20.
  Set<std::uint32_t>(at, id | (std::uint32_t{version} & 0xf) << 16);
  for (std::size_t i = 0; i < body.size(); ++i) {
    const auto byte_at = static_cast<std::uint32_t>(at + 4 + i);
    Set<std::uint8_t>(byte_at, body[i]);
    if (!writable.empty()) Allow<std::uint8_t>(byte_at, writable[i]);
  }
  if (last_extended_ != 0) {
    Set<std::uint32_t>(last_extended_, (Get<std::uint32_t>(last_extended_) & 0xfffff) | at << 20);
  }
  last_extended_ = at;
  next_extended_ = AlignDword(static_cast<std::uint32_t>(at + 4 + body.size()));
  return static_cast<std::uint16_t>(at);
}

ConfigState ConfigSpace::Save() const {
  ConfigState state;
  state.registers.resize(values_.size() / kDword);
  for (std::uint32_t i = 0; i < state.registers.size(); ++i)
    state.registers[i] = Get<std::uint32_t>(i * 4);
  return state;
}

Result<void> ConfigSpace::Restore(const ConfigState& state) {
  if (state.registers.size() != values_.size() / kDword)
    return Err(Errc::kBadFormat, "PCI config state size");
  std::vector<std::uint8_t> values(values_.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<std::uint8_t>(state.registers[i / kDword] >> (8 * (i % kDword)));
    const auto fixed = static_cast<std::uint8_t>(~(writable_[i] | w1c_[i]));
    if (((values[i] ^ values_[i]) & fixed) != 0)
      return Err(Errc::kBadFormat, "PCI config state of another function");
  }
  values_ = std::move(values);
  return {};
}

}  // namespace postern::pci
