#include "src/api/machine_target.h"

#include <utility>

#include "src/api/config_json.h"

namespace postern::api {

Outcome<std::string> MachineTarget::AddDevice(std::string_view spec) {
  Outcome<DeviceConfig> device = ParseDevice(spec);
  if (!device) return tl::unexpected(device.error());
  return machine_.AddDevice(*device);
}

Outcome<void> MachineTarget::RemoveDevice(const std::string& id, std::function<void()> done) {
  return machine_.RemoveDevice(id, std::move(done));
}

}  // namespace postern::api
