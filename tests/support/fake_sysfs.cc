#include "tests/support/fake_sysfs.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "src/base/check.h"

namespace postern::testing {
namespace {

namespace fs = std::filesystem;

std::string MakeFolder() {
  const char* base = std::getenv("TEST_TMPDIR");  // NOLINT(concurrency-mt-unsafe)
  std::string path = std::string(base != nullptr ? base : "/tmp") + "/sysfs.XXXXXX";
  CHECK(mkdtemp(path.data()) != nullptr);
  return path;
}

std::string Underscored(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

}  // namespace

FakeSysfs::FakeSysfs() : root_(MakeFolder()) {
  roots_ = {.sysfs = root_ + "/sys",
            .proc = root_ + "/proc",
            .dev = root_ + "/dev",
            .run = root_ + "/run",
            .modules = root_ + "/modules"};
  Put(roots_.sysfs + "/bus/pci/drivers_probe", "");
  Put(roots_.sysfs + "/class/iommu/dmar0/intel-iommu/cap", "1\n");
  Put(roots_.sysfs + "/kernel/irq/24/chip_name", "IR-PCI-MSIX-0000:3b:00.0\n");
  Put(roots_.proc + "/self/mountinfo", "22 1 0:21 / / rw - tmpfs tmpfs rw\n");
  Put(roots_.proc + "/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
  Put(roots_.modules + "/modules.alias",
      "# Aliases extracted from modules themselves.\n"
      "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n");
}

FakeSysfs::~FakeSysfs() {
  std::error_code ignored;
  fs::remove_all(root_, ignored);
}

void FakeSysfs::Put(const std::string& path, std::string_view text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  CHECK(file.good());
}

void FakeSysfs::Link(const std::string& path, const std::string& target) {
  fs::create_directories(fs::path(path).parent_path());
  fs::create_symlink(target, path);
}

void FakeSysfs::Remove(const std::string& path) {
  fs::remove_all(path);
}

void FakeSysfs::AddDriver(const std::string& name, std::string module, bool built_in) {
  if (module.empty()) module = Underscored(name);
  const std::string folder = roots_.sysfs + "/bus/pci/drivers/" + name;
  Put(folder + "/bind", "");
  Put(folder + "/unbind", "");
  if (built_in) return;
  Link(folder + "/module", "../../../../module/" + module);
  Link(roots_.sysfs + "/module/" + module + "/drivers/pci:" + name,
       "../../../bus/pci/drivers/" + name);
}

void FakeSysfs::AddLoadable(const std::string& module, const std::string& driver) {
  loadable_[module] = driver;
}

void FakeSysfs::AddDevice(const Device& device) {
  const std::string relative = "devices/pci0000:00/" + device.bdf;
  const std::string folder = roots_.sysfs + "/" + relative;
  Put(folder + "/vendor", "0x8086\n");
  Put(folder + "/device", "0x0a54\n");
  Put(folder + "/subsystem_vendor", "0x8086\n");
  Put(folder + "/subsystem_device", "0x4712\n");
  Put(folder + "/revision", "0x00\n");
  Put(folder + "/class", device.class_code + "\n");
  Put(folder + "/modalias", device.modalias + "\n");
  Put(folder + "/resource", device.resource);
  Put(folder + "/reset_method", device.reset_method + "\n");
  Put(folder + "/numa_node", "-1\n");
  Put(folder + "/driver_override", "(null)\n");
  Link(Folder(device.bdf), "../../../" + relative);
  if (!device.driver.empty()) {
    CHECK(vfio::Exists(roots_.sysfs + "/bus/pci/drivers/" + device.driver));
    Link(folder + "/driver", "../../../bus/pci/drivers/" + device.driver);
  }
  native_[device.bdf] = device.native.empty() ? device.driver : device.native;
  if (device.group < 0) return;
  const std::string group = "kernel/iommu_groups/" + std::to_string(device.group);
  Link(folder + "/iommu_group", "../../../" + group);
  Put(roots_.sysfs + "/" + group + "/type", "DMA-FQ\n");
  Link(roots_.sysfs + "/" + group + "/devices/" + device.bdf, "../../../../" + relative);
}

void FakeSysfs::AddBlock(const std::string& bdf, const std::string& name, const std::string& dev) {
  const std::string relative = "devices/pci0000:00/" + bdf + "/block/" + name;
  Put(roots_.sysfs + "/" + relative + "/dev", dev + "\n");
  fs::create_directories(roots_.sysfs + "/" + relative + "/holders");
  Link(roots_.sysfs + "/class/block/" + name, "../../" + relative);
}

void FakeSysfs::AddNet(const std::string& bdf, const std::string& name,
                       const std::string& operstate) {
  const std::string relative = "devices/pci0000:00/" + bdf + "/net/" + name;
  Put(roots_.sysfs + "/" + relative + "/operstate", operstate + "\n");
  Put(roots_.sysfs + "/" + relative + "/flags", "0x1003\n");
  Link(roots_.sysfs + "/class/net/" + name, "../../" + relative);
}

std::string FakeSysfs::Folder(const std::string& bdf) const {
  return roots_.sysfs + "/bus/pci/devices/" + bdf;
}
std::string FakeSysfs::Driver(const std::string& bdf) const {
  return vfio::LinkName(Folder(bdf) + "/driver");
}
std::string FakeSysfs::Override(const std::string& bdf) const {
  return vfio::ReadLine(Folder(bdf) + "/driver_override").value_or("");
}
std::string FakeSysfs::StateFile(const std::string& bdf) const {
  return roots_.run + "/bind/" + bdf;
}

bool FakeSysfs::Matches(const std::string& bdf, const std::string& driver) const {
  if (const std::string override = Override(bdf); override != "(null)") return override == driver;
  const auto native = native_.find(bdf);
  return native != native_.end() && native->second == driver;
}

Result<void> FakeSysfs::Probe(const std::string& bdf, const std::string& driver) {
  if (!Driver(bdf).empty()) return SysError("probe", EBUSY);
  if (!vfio::Exists(roots_.sysfs + "/bus/pci/drivers/" + driver) || !Matches(bdf, driver))
    return SysError("probe", ENODEV);
  if (refusing.contains(driver)) return SysError("probe", EIO);
  Link(Folder(bdf) + "/driver", "../../../bus/pci/drivers/" + driver);
  return {};
}

Result<void> FakeSysfs::Write(const std::string& path, std::string_view text) {
  for (const auto& [suffix, error] : faults) {
    if (path.ends_with(suffix)) return SysError("write", error);
  }
  if (!vfio::Exists(path)) return SysError("open", ENOENT);
  const std::string file = fs::path(path).filename();
  const std::string parent = fs::path(path).parent_path().filename();
  std::string word(text.substr(0, text.find('\n')));
  done.push_back((file == "bind" || file == "unbind" ? parent + "/" : "") + file + " " + word);
  if (file == "driver_override") {
    Put(path, (word.empty() ? "(null)" : word) + "\n");
    return {};
  }
  if (!vfio::Exists(Folder(word))) return SysError("write", ENODEV);
  if (file == "unbind") {
    if (Driver(word) != parent) return SysError("write", ENODEV);
    Remove(Folder(word) + "/driver");
    return {};
  }
  if (file == "bind") return Probe(word, parent);
  if (file != "drivers_probe") return SysError("write", EINVAL);
  const std::string override = Override(word);
  // The kernel does not say here whether a driver took the device.
  (void)Probe(word, override != "(null)" ? override : native_[word]);
  return {};
}

Outcome<void> FakeSysfs::LoadModule(const std::string& module) {
  done.push_back("modprobe " + module);
  const auto found = loadable_.find(module);
  if (found == loadable_.end()) return HostFailure("no module '" + module + "'", "install it");
  const std::string driver = found->second;
  if (driver.empty() || vfio::Exists(roots_.sysfs + "/bus/pci/drivers/" + driver)) return {};
  AddDriver(driver, module);
  // A driver that appears takes what has none.
  for (const auto& [bdf, native] : native_) (void)Probe(bdf, driver);
  return {};
}

}  // namespace postern::testing
