#pragma once

// FakeTarget: a ControlTarget without a machine: devices are names, and a removal ends when the
// test says so. Threads: one.

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/api/control.h"

namespace postern::api {

class FakeTarget final : public ControlTarget {
 public:
  Outcome<std::string> AddDevice(std::string_view spec) override {
    if (!spec.starts_with("disk,"))
      return ConfigFailure("a device of that kind cannot be added", "write disk,...");
    if (devices.size() >= 4) return ConfigFailure("all slots are in use", "remove a device");
    std::string id = "disk" + std::to_string(next++);
    devices[id] = nullptr;
    return id;
  }
  Outcome<void> RemoveDevice(const std::string& id, std::function<void()> done) override {
    const auto found = devices.find(id);
    if (found == devices.end()) return ConfigFailure("there is no such device", "list");
    if (found->second != nullptr) return HostFailure("it was asked already", "wait");
    found->second = std::move(done);
    return {};
  }
  Outcome<void> PullDevice(const std::string& id) override {
    const auto found = devices.find(id);
    if (found == devices.end()) return ConfigFailure("there is no such device", "list");
    const std::function<void()> done = std::move(found->second);
    devices.erase(found);
    if (done != nullptr) done();
    return {};
  }
  std::vector<DeviceInfo> Devices() override {
    std::vector<DeviceInfo> list{{.id = "rng0", .detail = {}}};
    for (const auto& [id, done] : devices)
      list.push_back({.id = id, .detail = "a\"b\xff", .slot = 1, .leaving = done != nullptr});
    return list;
  }
  std::size_t free_slots() override { return 4 - devices.size(); }
  void PowerButton() override { ++presses; }
  std::string Metrics() override { return R"({"utc_timestamp_ms":1,"a":{"b":2}})"; }

  // The guest lets go.
  void Release(const std::string& id) {
    const auto found = devices.find(id);
    if (found == devices.end() || found->second == nullptr) return;
    const std::function<void()> done = std::move(found->second);
    devices.erase(found);
    done();
  }

  std::map<std::string, std::function<void()>> devices;  // with what a removal waits for
  int next = 0;
  int presses = 0;
};

}  // namespace postern::api
