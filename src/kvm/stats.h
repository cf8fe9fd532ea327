#pragma once

// OpenStats, ReportStats: the binary statistics KVM offers on a VM or vCPU (KVM_GET_STATS_FD), as
// counters. Reports nothing where the host has none. Source: Linux
// Documentation/virt/kvm/api.rst 4.133.
//
// A vCPU's are opened before it runs: like nearly every ioctl of a vCPU, KVM_GET_STATS_FD waits
// until the vCPU is out of KVM_RUN, which an idle guest is only after its next interrupt that needs
// us. Reading the descriptor waits for nobody.

#include "src/base/counters.h"
#include "src/base/fd.h"

namespace postern::kvm {

// Invalid where there are none.
[[nodiscard]] Fd OpenStats(int kvm_object_fd);
void ReportStats(const Fd& stats, CounterSink& sink);

}  // namespace postern::kvm
