#include "src/kvm/stats.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "src/kvm/fam.h"

namespace postern::kvm {

Fd OpenStats(int kvm_object_fd) {
  return Fd(ioctl(kvm_object_fd, KVM_GET_STATS_FD, 0));
}

void ReportStats(const Fd& fd, CounterSink& sink) {
  if (!fd.valid()) return;
  kvm_stats_header header{};
  if (pread(fd.get(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) return;
  // What the kernel offers today is a few hundred descriptors; the bound keeps a surprising answer
  // from becoming a large allocation.
  if (header.num_desc > 4096 || header.name_size > 256) return;
  const std::size_t entry_size = sizeof(StatsDescriptor) + header.name_size;
  std::vector<char> descriptors(entry_size * header.num_desc);
  if (pread(fd.get(), descriptors.data(), descriptors.size(), header.desc_offset) !=
      static_cast<ssize_t>(descriptors.size())) {
    return;
  }
  for (std::uint32_t i = 0; i < header.num_desc; ++i) {
    const char* at = descriptors.data() + i * entry_size;
    StatsDescriptor descriptor;
    std::memcpy(&descriptor, at, sizeof(descriptor));
    const char* name = at + sizeof(StatsDescriptor);
    const std::size_t length = strnlen(name, header.name_size);
    // Histograms have several values; the plain counters, which these are for, have one.
    if (descriptor.size != 1) continue;
    std::uint64_t value = 0;
    if (pread(fd.get(), &value, sizeof(value),
              static_cast<off_t>(header.data_offset) + descriptor.offset) !=
        static_cast<ssize_t>(sizeof(value))) {
      continue;
    }
    sink.Add({name, length}, value);
  }
}

}  // namespace postern::kvm
