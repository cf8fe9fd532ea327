#include "vfio/explain.h"

#include <fcntl.h>

#include <cerrno>
#include <string_view>

#include <fmt/core.h>

#include "src/base/text.h"

namespace postern::vfio {
namespace {

constexpr std::string_view kInUse =
    "end whatever uses it (another virtual machine? fuser -v on the files under /dev/vfio tells)";
constexpr std::string_view kInterruptRemapping =
    "switch interrupt remapping on in the firmware; where the host has none and the guest is "
    "trusted: allow_unsafe_interrupts=1 of the module vfio_iommu_type1 (or iommufd)";

bool Is(const Error& error, int number) {
  return error.code == Errc::kSystem && error.sys_errno == number;
}

}  // namespace

tl::unexpected<Failure> ExplainOpen(const std::string& path, const std::string& device,
                                    const Error& error) {
  const std::string what = fmt::format("cannot open {} for {}", path, Escaped(device));
  std::string next;
  if (Is(error, EACCES) || Is(error, EPERM)) {
    next = fmt::format(
        "let this user open it (chown, or a udev rule for it), or pass it in open: fd=N; path: {}",
        path);
  } else if (Is(error, EBUSY)) {
    next = kInUse;
  } else if (Is(error, ENOENT) || Is(error, ENODEV) || Is(error, ENXIO)) {
    next = "load the kernel's VFIO modules: modprobe vfio-pci";
  }
  return HostFailure(what, error, std::move(next));
}

tl::unexpected<Failure> ExplainAttach(const std::string& device, const Error& error) {
  std::string what = fmt::format("cannot attach {} to its address space", Escaped(device));
  std::string next;
  if (Is(error, EPERM)) {
    what += ": the host does not remap its interrupts";
    next = kInterruptRemapping;
  } else if (Is(error, EBUSY)) {
    what += ": it is in use";
    next = kInUse;
  } else if (Is(error, ENODEV)) {
    next = "load the kernel's IOMMU back end: modprobe vfio_iommu_type1";
  } else if (Is(error, ENOMEM)) {
    next = "let the process lock as much memory as the guest has: ulimit -l (RLIMIT_MEMLOCK)";
  } else if (error.code == Errc::kGuestRange || Is(error, EADDRINUSE)) {
    what += ": guest memory lies where this device cannot reach";
    next = "give the guest less memory, or leave this device out";
  }
  return HostFailure(what, error, std::move(next));
}

tl::unexpected<Failure> ExplainDevice(const std::string& device, const Error& error) {
  std::string what = fmt::format("cannot take {}", Escaped(device));
  std::string next;
  if (Is(error, EBUSY) || Is(error, EINVAL)) {
    what += ": it is in use";
    next = kInUse;
  } else if (Is(error, EAGAIN)) {
    what += ": the host has been resetting it all the time";
    next = "try again";
  } else if (Is(error, EACCES)) {
    what += ": it is a virtual function whose physical function asks for a token";
    next = "bind the physical function to the host's own driver, or use another virtual function";
  } else if (Is(error, EPERM)) {
    what += ": the host does not remap its interrupts";
    next = kInterruptRemapping;
  } else if (Is(error, ENODEV)) {
    what += ": it is gone, or not in the group";
    next = "check that it is bound to a VFIO driver, and that the descriptor is of its group";
  }
  return HostFailure(what, error, std::move(next));
}

Outcome<Fd> DuplicateGiven(int fd) {
  Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) {
    return ConfigFailure(fmt::format("descriptor {} is not open", fd),
                         "pass it to Postern open and without close-on-exec");
  }
  return copy;
}

}  // namespace postern::vfio
