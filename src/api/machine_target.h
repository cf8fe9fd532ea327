#pragma once

// MachineTarget: the control socket's commands on a Machine; devices are read from the words of the
// command line's flags. Threads: the machine's control thread. Ownership: borrows the machine.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/api/control.h"
#include "src/machine/machine.h"

namespace postern::api {

class MachineTarget final : public ControlTarget {
 public:
  explicit MachineTarget(Machine& machine) : machine_(machine) {}

  [[nodiscard]] Outcome<std::string> AddDevice(std::string_view spec) override;
  [[nodiscard]] Outcome<void> RemoveDevice(const std::string& id,
                                           std::function<void()> done) override;
  [[nodiscard]] Outcome<void> PullDevice(const std::string& id) override {
    return machine_.PullDevice(id);
  }
  [[nodiscard]] std::vector<DeviceInfo> Devices() override { return machine_.Devices(); }
  [[nodiscard]] std::size_t free_slots() override { return machine_.free_slots(); }
  void PowerButton() override { machine_.PowerButton(); }
  [[nodiscard]] std::string Metrics() override { return machine_.Metrics(); }

 private:
  Machine& machine_;
};

}  // namespace postern::api
