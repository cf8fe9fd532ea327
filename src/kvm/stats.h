#pragma once

// ReportStats: the binary statistics KVM offers on a VM or vCPU descriptor (KVM_GET_STATS_FD), as
// counters. Reports nothing where the host has none. Source: Linux
// Documentation/virt/kvm/api.rst 4.133.

#include "src/base/counters.h"

namespace postern::kvm {

void ReportStats(int kvm_object_fd, CounterSink& sink);

}  // namespace postern::kvm
