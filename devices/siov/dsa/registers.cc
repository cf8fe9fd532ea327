#include "devices/siov/dsa/registers.h"

namespace postern::dsa {

namespace regs = dsa_regs;

void DsaRegisters::SetDeviceState(regs::DeviceState state, regs::ResetType required) {
  regs::GENSTS value;
  value.Set<regs::GENSTS::State>(state);
  value.Set<regs::GENSTS::ResetRequired>(required);
  file_.Set(regs::kGensts, value.raw);
}

siov::OperationSet DsaRegisters::queue_operations(std::uint32_t queue) const {
  if (!shape_.operations_config) return shape_.operations;
  siov::OperationSet operations{};
  for (std::uint32_t i = 0; i < operations.size(); ++i)
    operations[i] = file_.Get(OfQueue(queue, regs::kWqOperations + 8 * i));
  return operations;
}

void DsaRegisters::SetQueueStates(siov::QueueSet queues, regs::QueueState state) {
  for (std::uint32_t queue = 0; queue < shape_.wqs; ++queue) {
    if ((queues >> queue & 1) == 0) continue;
    const std::uint32_t offset = OfQueue(queue, regs::kWqStatus);
    auto status = Get<regs::WQSTATUS>(offset);
    status.Set<regs::WQSTATUS::State>(state);
    file_.Set(offset, status.raw);
  }
}

siov::QueueSet DsaRegisters::QueuesIn(regs::QueueState state) const {
  siov::QueueSet queues = 0;
  for (std::uint32_t queue = 0; queue < shape_.wqs; ++queue) {
    if (queue_state(queue) == state) queues |= siov::QueueSet{1} << queue;
  }
  return queues;
}

void DsaRegisters::ResetDevice() {
  for (const bus::RegisterRow& row : file_.rows()) {
    const bool kept = row.offset == regs::kCmd || row.offset == regs::kCmdstatus ||
                      (row.offset >= regs::kSwerror && row.offset < regs::kSwerror + 32) ||
                      row.offset == regs::kEvlstatus;
    if (!kept) file_.Set(row.offset, row.reset);
  }
}

void DsaRegisters::ResetQueue(std::uint32_t queue) {
  const std::uint32_t first = OfQueue(queue, 0);
  for (const bus::RegisterRow& row : file_.rows()) {
    if (row.offset > first && row.offset < first + shape_.wqcfg_bytes())
      file_.Set(row.offset, row.reset);
  }
}

}  // namespace postern::dsa
