#pragma once

// VfioBackend: the back end whose queues are some of a physical DSA's: their portals are the
// device's own pages, their completions its own interrupts.
//
//   auto backend = TRY(VfioBackend::Create(*host, {.queues = 1, .size = 32}));
//   auto vdev = TRY(siov::Vdev::Create({.name = "dsa0", .portal = PortalMode::kDirect},
//                                      std::move(personality), std::move(backend), platform));
//
// What a guest does to its Vdev touches its own queues alone: commands name them by their bits, a
// reset aborts and resets them, and no reset reaches the device. Groups the guest makes are checked
// and not applied: which engines serve a queue is the host's choice (DsaHost). Vector i + 1 of the
// guest belongs to its queue i, and is signalled by the device without any thread of Postern;
// vector 0 is the Vdev's own.
//
// Handles: named (the guest has to ask) where the device's interrupts are named, or the queues are
// not the device's first ones, so that its vectors have other numbers than the guest's.
//
// Submit, of a trapped portal, is PortalPage's; how full a queue is only the device knows, and what
// it drops it reports as an error (0x53). While quiesced, descriptors submitted there wait here.
//
// State: between Quiesce and Resume the queues are drained, so that there is only what waits here;
// Save is kBadState where the device says that a queue is not empty (a mapped portal in use).
//
// Waits: Enable, Start and OpenHandle for the host's command register, Reset and Quiesce for what
// the queues hold, within the bounds DsaHost states; Submit for the answer of a device process (as
// HostDevice's calls do). On a host that is lost none waits.
//
// Ownership: borrows the host, which outlives it and gets the queues back from its destructor.
// Threads: as Backend.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/host/dsa_host.h"
#include "devices/siov/host/portal_page.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "vfio/host_device.h"

namespace postern::dsa {

class VfioBackend final : public siov::Backend, private QueueOwner {
 public:
  // As DsaHost::Reserve. `space`: where its queues' descriptors lead, and the PASID of the request;
  // null: to the device's own table.
  [[nodiscard]] static Result<std::unique_ptr<VfioBackend>> Create(
      DsaHost& host, const HostRequest& request, std::unique_ptr<GuestSpace> space = nullptr);
  ~VfioBackend() override;

  // Whether trapped portals work: kUnsupported says what is missing.
  [[nodiscard]] Result<void> CanSubmit();
  [[nodiscard]] const HostLease& lease() const { return lease_; }

  [[nodiscard]] std::string Describe() const override;
  [[nodiscard]] const siov::BackendCaps& caps() const override { return caps_; }
  void Attach(siov::BackendEvents& events) override;
  [[nodiscard]] Result<bus::HostPages> OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                  siov::PortalMode mode) override;
  void StopPolling(std::uint32_t queue) override { (void)queue; }
  [[nodiscard]] siov::SubmitResult Submit(std::uint32_t queue,
                                          const siov::Descriptor& descriptor) override;
  [[nodiscard]] Result<void> Start(const siov::DeviceConfig& config) override;
  void Stop() override;
  [[nodiscard]] Result<void> Enable(std::uint32_t queue, const siov::QueueConfig& config) override;
  void Drain(siov::QueueSet queues, siov::Done done) override;
  void Disable(siov::QueueSet queues, siov::Done done) override;
  void Abort(siov::QueueSet queues, siov::Done done) override;
  void Reset() override;
  [[nodiscard]] Result<std::uint32_t> OpenHandle(std::uint16_t vector) override;
  void CloseHandle(std::uint32_t handle) override { (void)handle; }
  void SetVector(std::uint16_t vector, const EventFd* trigger) override;
  [[nodiscard]] std::uint32_t Occupancy(std::uint32_t queue) const override;
  void Quiesce() override;
  void Resume() override;
  [[nodiscard]] Result<siov::BackendState> Save() override;
  [[nodiscard]] Result<void> Restore(const siov::BackendState& state) override;
  void ReportCounters(CounterSink& sink) const override;

 private:
  struct Queue {
    std::atomic<bool> enabled{false};
    siov::QueueConfig config;
    std::unique_ptr<PortalPage> page;  // for Submit
    std::array<std::unique_ptr<vfio::RegionMapping>, 2> mapped;
    Mutex mutex;  // held over a store to the portal
    bool held GUARDED_BY(mutex) = false;
    std::vector<siov::Descriptor> waiting GUARDED_BY(mutex);
    Counter submitted, waited, refused_disabled, refused_full, failed, errors, enables, halts;
  };

  VfioBackend(DsaHost& host, std::unique_ptr<GuestSpace> space);
  [[nodiscard]] Result<void> Init(const HostRequest& request);
  void OnQueueError(std::uint32_t queue, const std::array<std::uint64_t, 4>& words) override;
  void OnHandlesRevoked() override;
  void OnHostLost() override;
  // By the device's numbers.
  [[nodiscard]] siov::QueueSet OfHost(siov::QueueSet queues) const;
  void Halt(QueueHalt kind, siov::QueueSet queues, siov::Done done);
  void Hold(Queue& queue, bool held);
  [[nodiscard]] siov::SubmitResult StoreNow(Queue& queue, const siov::Descriptor& descriptor)
      REQUIRES(queue.mutex);
  [[nodiscard]] Result<void> CheckDevice(const siov::DeviceConfig& config) const;
  [[nodiscard]] Result<void> CheckQueue(std::uint32_t queue, const siov::QueueConfig& config) const;
  [[nodiscard]] Result<void> CheckState(const siov::BackendState& state) const;

  DsaHost& host_;
  std::unique_ptr<GuestSpace> space_;
  HostLease lease_;
  siov::BackendCaps caps_;
  std::vector<std::unique_ptr<Queue>> queues_;
  std::atomic<siov::BackendEvents*> events_{nullptr};
  // Of the function's lock.
  bool started_ = false;
  bool quiesced_ = false;
  siov::DeviceConfig device_;
  Counter vector_errors_, resets_;
};

}  // namespace postern::dsa
