#pragma once

// Machine: a virtual machine made from a Config: memory, vCPUs, buses, devices, kernel. The
// composition root: nothing below src/machine knows it.
//
//   Config config;
//   config.kernel = "vmlinuz";
//   auto machine = Machine::Create(config);                  // Outcome: a Failure names cause and
//   next step if (!machine) return Report(machine.error()); if (auto started = (*machine)->Start();
//   !started) return Report(started.error()); ExitReport end = (*machine)->Wait();
//
// Ownership: owns everything it makes; the destructor stops the guest and waits for I/O in flight.
// Threads: Create, Start, Pause, Resume, Wait, AddDevice, RemoveDevice, Devices and destruction on
// one thread, the control thread;
// PowerButton and Stop from any thread (not from a signal handler: watch a signalfd on control()).

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/machine/config.h"
#include "src/machine/device_info.h"
#include "src/machine/exit_report.h"

namespace postern {

class Machine {
 public:
  // Opens every file and device the configuration names and loads the kernel; runs no guest
  // instruction.
  [[nodiscard]] static Outcome<std::unique_ptr<Machine>> Create(const Config& config);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Lets the vCPUs go. Once.
  [[nodiscard]] Outcome<void> Start();
  // Until the guest ends or Stop; runs control() meanwhile. The vCPUs are at rest afterwards.
  [[nodiscard]] ExitReport Wait();

  // No vCPU executes between Pause and Resume; devices finish what they were asked before.
  void Pause();
  void Resume();
  // Presses the ACPI power button: a guest with a driver for it shuts down.
  void PowerButton();
  // Ends the machine now: Wait returns kStopped.
  void Stop();

  // Adds a device to the machine, before Start or while the guest runs: it is plugged into a free
  // hot-plug slot (Config::hotplug_ports). Answers its id.
  [[nodiscard]] Outcome<std::string> AddDevice(const DeviceConfig& device);
  // Asks the guest to release a device that was added; `done` runs on the control thread when it is
  // gone, which may be never. Not for devices that were there from the start.
  [[nodiscard]] Outcome<void> RemoveDevice(const std::string& id, std::function<void()> done);
  // Takes it out without asking: to the guest it vanished, and what it had not written yet is lost.
  // Linux 6.12's virtio-pci then waits for ever for the reset of what is not there, so that such a
  // guest can no longer shut down in order.
  // Ends a RemoveDevice that waits (its `done` runs in here).
  [[nodiscard]] Outcome<void> PullDevice(const std::string& id);
  [[nodiscard]] std::vector<DeviceInfo> Devices() const;
  [[nodiscard]] std::size_t free_slots() const;

  // The loop Wait runs: for an embedder's own descriptors, timers and posted functions on the
  // control thread.
  [[nodiscard]] EventLoop& control();
  // One JSON object: counters of the machine, each vCPU, KVM and each device.
  [[nodiscard]] std::string Metrics() const;
  // For people: memory, processors, devices and where they are, a line each.
  [[nodiscard]] std::string Describe() const;

 private:
  Machine();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace postern
