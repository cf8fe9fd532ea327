#pragma once

// SingleLoopDevice: what every virtio device whose queues all run on one loop thread does alike:
// holds the resources, watches the kicks, runs the pop-complete-notify loop, turns a driver's
// protocol error into DEVICE_NEEDS_RESET, and gives all back on reset.
//
//   class Rng final : public SingleLoopDevice {
//     void OnChain(std::uint16_t queue, Chain chain) override {
//     chain.Complete(Fill(chain.writer())); }
//   };
//
// Threads: loop thread.

#include "devices/virtio/device.h"

namespace postern::virtio {

class SingleLoopDevice : public Device, private EventHandler {
 public:
  SingleLoopDevice(EventLoop& loop, std::string_view name) : loop_(loop), name_(name) {}
  ~SingleLoopDevice() override;

  void Activate(Resources resources) final;
  Resources Reset() final;
  std::unique_ptr<ActiveQueue> ResetQueue(std::uint16_t index) final;
  void ResumeQueue(std::unique_ptr<ActiveQueue> queue) final;
  [[nodiscard]] EventLoop& loop() final { return loop_; }
  // Adds the common ones (kicks, chains, protocol errors); a device adds its own and calls this.
  void ReportCounters(CounterSink& sink) const override;

 protected:
  // A driver's request on `queue`. Complete it now, or keep it and complete it later on this thread
  // followed by Notify(queue).
  virtual void OnChain(std::uint16_t queue, Chain chain) = 0;
  // Whether the device wants to pop from `queue` now. A device that must wait for its back end (a
  // console without input) says false and calls Pump(queue) when that changes; the ring is then
  // left alone.
  virtual bool WantsChain(std::uint16_t queue) {
    (void)queue;
    return true;
  }
  // After resources were taken, before any kick is served; and before they are given back: all
  // chains must be completed or dropped by OnDeactivate / OnQueueReset (in-flight host I/O is
  // waited for or cancelled there: nothing may touch guest memory afterwards).
  virtual void OnActivate() {}
  virtual void OnDeactivate() {}
  virtual void OnQueueReset(std::uint16_t queue) { (void)queue; }

  // At the end of every Pump: where answers on another queue are sent for a whole batch of
  // requests.
  virtual void OnPumped(std::uint16_t queue) { (void)queue; }

  // Pops until the ring is empty or WantsChain is false, then notifies and re-arms kicks.
  void Pump(std::uint16_t queue);
  void Notify(std::uint16_t queue);
  // Counts, logs at a limited rate, sets DEVICE_NEEDS_RESET, and leaves the rings alone until the
  // reset.
  void Broken(const Error& error);

  [[nodiscard]] bool active() const { return active_; }
  [[nodiscard]] bool queue_enabled(std::uint16_t index) const;
  [[nodiscard]] Queue& queue(std::uint16_t index);
  [[nodiscard]] std::uint64_t negotiated() const { return resources_.features; }
  [[nodiscard]] Interrupt& interrupt() { return *resources_.interrupt; }
  [[nodiscard]] const memory::GuestMemoryPtr& memory() const { return resources_.memory; }

 private:
  void OnEvent(int fd, std::uint32_t events) override;
  void Start(ActiveQueue& queue);
  void PopAll(std::uint16_t index);
  EventLoop& loop_;
  std::string_view name_;
  Resources resources_;
  bool active_ = false;
  bool broken_ = false;
  Counter kicks_, chains_, protocol_errors_;
};

}  // namespace postern::virtio
