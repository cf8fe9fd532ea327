#pragma once

// Prefault: guest memory made present by several threads before it is pinned. Pinning absent pages
// clears them one by one on one thread, and that is four fifths of the time a device takes to
// attach.
//
//   TRY(Prefault(region.host_address(), region.size(),
//                {.threads = HostPrefaultThreads(), .page = 4096}));
//
// Is not: the prefault of RAM at start (src/memory, an option of a region): this one must not write
// to memory a guest already uses, and leaves alone what the kernel will not populate. Threads: any;
// starts its own and joins them.

#include <cstddef>
#include <cstdint>

#include "src/base/result.h"

namespace postern::iommu {

struct PrefaultOptions {
  unsigned threads = 1;                                // at most, this one included
  std::uint64_t page = 4096;                           // bytes; parts are multiples of it
  std::uint64_t per_thread = std::uint64_t{64} << 20;  // bytes that are worth a thread
};

// What this host has to offer for PrefaultOptions::threads: one for each processor that is online,
// at most 16; at least 1.
[[nodiscard]] unsigned HostPrefaultThreads();
// How many of options.threads Prefault uses for `size` bytes, the calling one included: at least 1.
[[nodiscard]] unsigned UsefulPrefaultThreads(std::uint64_t size, const PrefaultOptions& options);

// Contents stay. kSystem: ENOMEM, EHWPOISON and so on of MADV_POPULATE_WRITE; a kernel that does
// not know it (before 5.14) is no error: pinning populates as well.
[[nodiscard]] Result<void> Prefault(std::byte* base, std::uint64_t size,
                                    const PrefaultOptions& options);

}  // namespace postern::iommu
