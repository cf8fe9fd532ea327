#include "src/kvm/vfio_files.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "src/base/log.h"

namespace postern::kvm {

Result<void> VfioFiles::Create() {
  if (device_.valid()) return {};
  kvm_create_device create{};
  create.type = KVM_DEV_TYPE_VFIO;
  if (ioctl(vm_.fd(), KVM_CREATE_DEVICE, &create) < 0) return SysError("KVM_CREATE_DEVICE VFIO");
  // KVM opens it close-on-exec.
  device_ = Fd(static_cast<int>(create.fd));
  return {};
}

Result<void> VfioFiles::Set(std::uint64_t attribute, int fd) const {
  // Since Linux 6.6 the group's name is KVM_DEV_VFIO_FILE, and it takes device files too; the
  // numbers are the same.
  const std::int32_t value = fd;
  kvm_device_attr attr{};
  attr.group = KVM_DEV_VFIO_GROUP;
  attr.attr = attribute;
  attr.addr = reinterpret_cast<std::uintptr_t>(&value);
  if (ioctl(device_.get(), KVM_SET_DEVICE_ATTR, &attr) < 0) {
    return SysError("KVM_SET_DEVICE_ATTR VFIO_FILE");
  }
  return {};
}

Result<void> VfioFiles::Add(int fd) {
  TRY(Create());
  return Set(KVM_DEV_VFIO_GROUP_ADD, fd);
}

void VfioFiles::Remove(int fd) {
  if (!device_.valid()) return;
  const Result<void> removed = Set(KVM_DEV_VFIO_GROUP_DEL, fd);
  if (!removed) {
    LOG_WARN("kvm", "KVM keeps a VFIO file: errno {}", removed.error().sys_errno);
  }
}

}  // namespace postern::kvm
