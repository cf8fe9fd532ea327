// VFIO_USER_VERSION: the one message with text in it, apart from the others because of what it
// includes.

#include <algorithm>
#include <cstring>
#include <string_view>

#include <nlohmann/json.hpp>

#include "vfio/user/protocol.h"
#include "vfio/user/wire.h"

namespace postern::vfio {
namespace {

using Json = nlohmann::json;

Result<void> ReadNumber(const Json& from, const char* name, std::uint64_t& to) {
  const auto found = from.find(name);
  if (found == from.end()) return {};
  if (!found->is_number_unsigned()) return Err(Errc::kPeerProtocol, "capability that is no number");
  to = found->get<std::uint64_t>();
  return {};
}

Result<UserCapabilities> ReadCapabilities(const Json& json) {
  UserCapabilities out;
  if (!json.is_object()) return Err(Errc::kPeerProtocol, "version data that is no object");
  const auto found = json.find("capabilities");
  if (found == json.end()) return out;
  if (!found->is_object()) return Err(Errc::kPeerProtocol, "capabilities that are no object");
  TRY(ReadNumber(*found, "max_msg_fds", out.max_msg_fds));
  TRY(ReadNumber(*found, "max_data_xfer_size", out.max_data_xfer_size));
  TRY(ReadNumber(*found, "max_dma_maps", out.max_dma_maps));
  TRY(ReadNumber(*found, "pgsizes", out.pgsizes));
  // Nothing can be read from such a device, or mapped for it.
  if (out.max_data_xfer_size == 0 || out.pgsizes == 0) {
    return Err(Errc::kPeerProtocol, "capability that is zero");
  }
  out.max_msg_fds = std::min<std::uint64_t>(out.max_msg_fds, kUserMaxFds);
  out.max_data_xfer_size = std::min<std::uint64_t>(out.max_data_xfer_size, kUserMaxTransfer);
  out.max_dma_maps = std::min<std::uint64_t>(out.max_dma_maps, UserCapabilities{}.max_dma_maps);
  out.pgsizes &= ~std::uint64_t{0xfff};
  // All it told were smaller than ours, which are multiples of them.
  if (out.pgsizes == 0) out.pgsizes = 4096;
  return out;
}

}  // namespace

Result<UserVersion> ParseVersion(std::span<const std::byte> payload) {
  WireVersion raw{};
  if (payload.size() < sizeof(raw)) return Err(Errc::kPeerProtocol, "VERSION");
  std::memcpy(&raw, payload.data(), sizeof(raw));
  UserVersion version{raw.major.get(), raw.minor.get(), {}};
  const auto data = payload.subspan(sizeof(raw));
  if (data.empty()) return version;
  const std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
  if (text.size() > kUserMaxVersionText) return Err(Errc::kPeerProtocol, "length of version data");
  if (text.find('\0') != text.size() - 1) return Err(Errc::kPeerProtocol, "end of version data");
  const Json json = Json::parse(text.substr(0, text.size() - 1), nullptr, false);
  if (json.is_discarded()) return Err(Errc::kPeerProtocol, "version data that is no JSON");
  version.capabilities = TRY(ReadCapabilities(json));
  return version;
}

std::vector<std::byte> BuildVersion(const UserVersion& version) {
  const UserCapabilities& from = version.capabilities;
  const Json json{{"capabilities",
                   {{"max_msg_fds", from.max_msg_fds},
                    {"max_data_xfer_size", from.max_data_xfer_size},
                    {"max_dma_maps", from.max_dma_maps},
                    {"pgsizes", from.pgsizes}}}};
  const std::string text = json.dump();
  WireVersion raw{};
  raw.major = version.major;
  raw.minor = version.minor;
  std::vector<std::byte> bytes(sizeof(raw) + text.size() + 1);
  std::memcpy(bytes.data(), &raw, sizeof(raw));
  std::memcpy(bytes.data() + sizeof(raw), text.data(), text.size());
  return bytes;
}

}  // namespace postern::vfio
