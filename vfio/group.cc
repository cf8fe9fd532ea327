#include "vfio/group.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include <fmt/core.h>

#include "src/base/text.h"
#include "vfio/explain.h"
#include "vfio/ioctls.h"
#include "vfio/kernel_device.h"

namespace postern::vfio {
namespace {

Outcome<Fd> OpenGroupFile(KernelCalls& calls, const SysfsDevice& device,
                          const std::string& dev_root) {
  const std::string path = fmt::format("{}/vfio/{}", dev_root, *device.group);
  Result<Fd> fd = calls.Open(path, O_RDWR);
  if (fd) return std::move(*fd);
  if (fd.error().sys_errno == ENOENT && !device.vfio_bound()) return NotBound(device);
  return ExplainOpen(path, device.name, fd.error());
}

}  // namespace

Outcome<std::unique_ptr<Group>> Group::Open(KernelCalls& calls, const SysfsDevice& device,
                                            const std::string& dev_root, int given) {
  if (!device.group) return NoGroup(device);
  if (device.noiommu) return NoIommu(device);
  if (!device.vfio_bound()) return NotBound(device);
  Outcome<Fd> fd = given >= 0 ? DuplicateGiven(given) : OpenGroupFile(calls, device, dev_root);
  if (!fd) return tl::unexpected(fd.error());
  const Result<bool> viable = GroupIsViable(calls, fd->get());
  if (!viable) {
    return HostFailure(fmt::format("cannot use {}", Escaped(device.name)), viable.error());
  }
  if (!*viable) return NotViable(device);
  return std::unique_ptr<Group>(new Group(calls, *device.group, std::move(*fd)));
}

Group::~Group() {
  if (files_ != nullptr) files_->Remove(fd_.get());
  if (container_ != nullptr) container_->Detach(fd_.get());
}

Result<void> Group::Attach(iommu::Type1Container& container) {
  TRY(container.Attach(fd_.get()));
  container_ = &container;
  return {};
}

Result<void> Group::Announce(bus::VfioFiles* files) {
  if (files == nullptr || files_ != nullptr) return {};
  TRY(files->Add(fd_.get()));
  files_ = files;
  return {};
}

Result<Fd> Group::OpenDevice(const std::string& name) {
  return RetryWhileBusy([&] { return GroupGetDevice(calls_, fd_.get(), name); });
}

}  // namespace postern::vfio
