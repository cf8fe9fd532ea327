#pragma once

// What the loaders of the several formats share; not for others.

#include <cstdint>
#include <string>

#include "src/base/failure.h"
#include "src/boot/image.h"
#include "src/boot/loader.h"
#include "src/memory/guest_memory.h"

namespace postern::boot::internal {

[[nodiscard]] Outcome<LoadedKernel> LoadElf(const Image& image, const memory::GuestMemory& memory,
                                            const LoadOptions& options);
[[nodiscard]] Outcome<LoadedKernel> LoadBzImage(const Image& image,
                                                const memory::GuestMemory& memory);

// End of the RAM region that starts at 0.
[[nodiscard]] std::uint64_t LowRamEnd(const memory::GuestMemory& memory);
// True if [address, address + size) is RAM a kernel may occupy.
[[nodiscard]] bool IsKernelRam(const memory::GuestMemory& memory, std::uint64_t address,
                               std::uint64_t size);

// "<label> is damaged: <how>" with the advice to fetch it again.
[[nodiscard]] tl::unexpected<Failure> Damaged(const Image& image, const std::string& how);
// "<label> needs RAM from 0x.. to 0x..; the machine has N MiB".
[[nodiscard]] tl::unexpected<Failure> NeedsMemory(const Image& image,
                                                  const memory::GuestMemory& memory,
                                                  std::uint64_t address, std::uint64_t size);
// An error while reading the image: damage if the image is to blame, a host failure if the host is.
[[nodiscard]] tl::unexpected<Failure> ReadFailure(const Image& image, const Error& error);
[[nodiscard]] std::string Hex(std::uint64_t value);

}  // namespace postern::boot::internal
