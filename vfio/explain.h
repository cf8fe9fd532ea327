#pragma once

// The kernel's refusals to open, attach or hand out a device, as a user reads them: cause and next
// step. Is not: what sysfs alone can tell (sysfs_device.h). Threads: no state.

#include <string>

#include "src/base/failure.h"
#include "src/base/fd.h"
#include "src/base/result.h"

namespace postern::vfio {

// `path` (under /dev) did not open; `device` wanted it.
[[nodiscard]] tl::unexpected<Failure> ExplainOpen(const std::string& path,
                                                  const std::string& device, const Error& error);
// The device or its group was refused by its address space, or the other way round.
[[nodiscard]] tl::unexpected<Failure> ExplainAttach(const std::string& device, const Error& error);
// VFIO_GROUP_GET_DEVICE_FD or VFIO_DEVICE_BIND_IOMMUFD failed.
[[nodiscard]] tl::unexpected<Failure> ExplainDevice(const std::string& device, const Error& error);

// A second descriptor of what the user passed in.
[[nodiscard]] Outcome<Fd> DuplicateGiven(int fd);

}  // namespace postern::vfio
