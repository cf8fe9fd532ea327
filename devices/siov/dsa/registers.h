#pragma once

// DsaRegisters: the registers of one device by their meaning: states, queue and group settings.
//
//   DsaRegisters regs(port.registers(), shape);
//   if (regs.queue_state(3) == dsa_regs::QueueState::kEnabled) ...
//
// Is not: a rule about when something may change; those are the personality's. Queue and group
// indices are in the shape's range (CHECK in RegisterFile). Ownership: borrows both. Threads: as
// the register file.

#include <cstdint>

#include "devices/siov/core/backend.h"
#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/dsa/shape.h"
#include "src/bus/register_map.h"

namespace postern::dsa {

class DsaRegisters {
 public:
  DsaRegisters(bus::RegisterFile& file, const DsaShape& shape) : file_(file), shape_(shape) {}

  [[nodiscard]] bus::RegisterFile& file() const { return file_; }
  [[nodiscard]] const DsaShape& shape() const { return shape_; }

  // A row as its field type: Get<dsa_regs::GENSTS>(dsa_regs::kGensts).
  template <typename Reg>
  [[nodiscard]] Reg Get(std::uint32_t offset) const {
    return Reg{{static_cast<decltype(Reg::raw)>(file_.Get(offset))}};
  }

  [[nodiscard]] dsa_regs::DeviceState device_state() const {
    return Get<dsa_regs::GENSTS>(dsa_regs::kGensts).template Get<dsa_regs::GENSTS::State>();
  }
  void SetDeviceState(dsa_regs::DeviceState state,
                      dsa_regs::ResetType required = dsa_regs::ResetType::kSoftware);

  // Offset of one field row of a queue's WQCFG, as in dsa_regs.h.
  [[nodiscard]] std::uint32_t OfQueue(std::uint32_t queue, std::uint32_t row) const {
    return dsa_regs::kWqcfg + queue * shape_.wqcfg_bytes() + row;
  }
  [[nodiscard]] static std::uint32_t OfGroup(std::uint32_t group, std::uint32_t row) {
    return dsa_regs::kGrpcfg + group * dsa_regs::kGrpcfgStride + row;
  }
  [[nodiscard]] std::uint32_t queue_size(std::uint32_t queue) const {
    return static_cast<std::uint32_t>(file_.Get(OfQueue(queue, dsa_regs::kWqSize)));
  }
  [[nodiscard]] dsa_regs::WQMODE queue_mode(std::uint32_t queue) const {
    return Get<dsa_regs::WQMODE>(OfQueue(queue, dsa_regs::kWqMode));
  }
  [[nodiscard]] dsa_regs::WQLIMITS queue_limits(std::uint32_t queue) const {
    return Get<dsa_regs::WQLIMITS>(OfQueue(queue, dsa_regs::kWqLimits));
  }
  // What the queue may do: OPCAP where WQCFG does not say.
  [[nodiscard]] siov::OperationSet queue_operations(std::uint32_t queue) const;
  [[nodiscard]] dsa_regs::QueueState queue_state(std::uint32_t queue) const {
    return Get<dsa_regs::WQSTATUS>(OfQueue(queue, dsa_regs::kWqStatus))
        .template Get<dsa_regs::WQSTATUS::State>();
  }
  void SetQueueStates(siov::QueueSet queues, dsa_regs::QueueState state);
  [[nodiscard]] siov::QueueSet QueuesIn(dsa_regs::QueueState state) const;
  // Enabled or on the way out.
  [[nodiscard]] siov::QueueSet active_queues() const {
    return QueuesIn(dsa_regs::QueueState::kEnabled) | QueuesIn(dsa_regs::QueueState::kDraining);
  }

  // Queues and engines of a group; queues beyond the first 64 are reserved bits.
  [[nodiscard]] siov::QueueSet group_queues(std::uint32_t group) const {
    return file_.Get(OfGroup(group, 0));
  }
  [[nodiscard]] std::uint64_t group_engines(std::uint32_t group) const {
    return file_.Get(OfGroup(group, dsa_regs::kGrpEngines));
  }
  [[nodiscard]] dsa_regs::GRPFLAGS group_flags(std::uint32_t group) const {
    return Get<dsa_regs::GRPFLAGS>(OfGroup(group, dsa_regs::kGrpFlags));
  }

  // 9.2, table 9-3: software reset, which keeps the last command and the errors.
  void ResetDevice();
  // 3.15: a queue's settings but its size.
  void ResetQueue(std::uint32_t queue);

 private:
  bus::RegisterFile& file_;
  const DsaShape& shape_;
};

}  // namespace postern::dsa
