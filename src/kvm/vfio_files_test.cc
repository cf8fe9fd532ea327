// KVM's VFIO device on this machine's real /dev/kvm. Whether KVM takes a real VFIO file is seen
// where there is a VFIO device (tests/rig); here, that it exists, once, and refuses other files.

#include "src/kvm/vfio_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iterator>

#include "bazel/testing/skip.h"
#include "src/kvm/kvm.h"

#include <doctest/doctest.h>

namespace postern::kvm {
namespace {

std::size_t OpenFiles() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

TEST_CASE("vfio files: KVM's device is made with the first file, once") {
  const Result<Kvm> kvm = Kvm::Open();
  if (!kvm) SKIP_TEST("/dev/kvm cannot be used");
  const auto vm = Vm::Create(*kvm);
  REQUIRE(vm);
  VfioFiles files(**vm);
  const Fd other(open("/dev/null", O_RDWR | O_CLOEXEC));
  REQUIRE(other.valid());

  files.Remove(other.get());  // nothing there yet
  CHECK_FALSE(files.created());
  const std::size_t before = OpenFiles();
  const Result<void> refused = files.Add(other.get());
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::kSystem);
  if (refused.error().sys_errno == ENODEV) SKIP_TEST("this KVM has no VFIO device");
  CHECK(refused.error().sys_errno == EINVAL);
  CHECK(files.created());
  CHECK(OpenFiles() == before + 1);
  CHECK_FALSE(files.Add(-1));
  CHECK_FALSE(files.Add(other.get()));
  CHECK(OpenFiles() == before + 1);
  files.Remove(other.get());  // KVM does not have it: logged, no more
}

TEST_CASE("vfio files: the device goes with its owner, 1000 times") {
  const Result<Kvm> kvm = Kvm::Open();
  if (!kvm) SKIP_TEST("/dev/kvm cannot be used");
  const Fd other(open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto vm = Vm::Create(*kvm);
  REQUIRE(vm);
  const std::size_t before = OpenFiles();
  for (int i = 0; i < 1000; ++i) {
    VfioFiles files(**vm);
    CHECK_FALSE(files.Add(other.get()));
  }
  CHECK(OpenFiles() == before);
}

}  // namespace
}  // namespace postern::kvm
