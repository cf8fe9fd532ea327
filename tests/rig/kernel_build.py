"""A host kernel with iommufd and VFIO device files, which no kernel of Debian's has: built once from Debian's source.

Everything is built in, so the kernel needs no modules, and serves as a guest's kernel too.
"""

import glob
import os
import shutil
import sys
import tempfile

from riglib import RigError, digest, download_packages, run

PACKAGE = "linux-source-6.12"
TOOLS = {"make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc"}
ON = """
    KVM KVM_AMD KVM_INTEL VIRTIO_PCI VIRTIO_MMIO VIRTIO_CONSOLE VIRTIO_BLK VIRTIO_NET HW_RANDOM_VIRTIO VSOCKETS VIRTIO_VSOCKETS
    NET_9P NET_9P_VIRTIO 9P_FS OVERLAY_FS TUN TMPFS DEVTMPFS BLK_DEV_NVME E1000E IGB IGBVF EXT4_FS PCIEPORTBUS HOTPLUG_PCI
    HOTPLUG_PCI_PCIE PCI_IOV PCIEAER INTEL_IOMMU INTEL_IOMMU_DEFAULT_ON AMD_IOMMU IRQ_REMAP VIRTIO_IOMMU IOMMUFD VFIO VFIO_GROUP
    VFIO_CONTAINER VFIO_IOMMU_TYPE1 VFIO_DEVICE_CDEV VFIO_NOIOMMU VFIO_PCI VFIO_MDEV SAMPLES SAMPLE_VFIO_MDEV_MTTY DEBUG_KERNEL
    RUNTIME_TESTING_MENU FAULT_INJECTION IOMMUFD_TEST DMADEVICES INTEL_IDXD_BUS INTEL_IDXD INTEL_IDXD_SVM DMATEST IO_URING
    PVH DEBUG_FS UIO UIO_PCI_GENERIC BLK_DEV_INITRD SERIAL_8250 SERIAL_8250_CONSOLE HUGETLBFS USERFAULTFD SYN_COOKIES INPUT_EVDEV ACPI_BUTTON
""".split()
OFF = """
    MODULES SYSTEM_TRUSTED_KEYRING SECURITY FTRACE DRM SOUND USB_SUPPORT WLAN WIRELESS RFKILL HID_SUPPORT DEBUG_INFO_BTF
    NFS_FS NFSD NETFILTER IPV6 MEDIA_SUPPORT HIBERNATION DEBUG_STACK_USAGE PROVE_LOCKING
""".split()
MUST = ("IOMMUFD", "VFIO_DEVICE_CDEV", "VFIO_GROUP", "VFIO_PCI", "KVM_AMD", "SAMPLE_VFIO_MDEV_MTTY", "HOTPLUG_PCI_PCIE")


def _source(work):
    download_packages([PACKAGE], work)
    package = glob.glob(os.path.join(work, "*.deb"))[0]
    run(["dpkg", "-x", package, work], f"unpacking {PACKAGE}")
    archive = glob.glob(os.path.join(work, "usr/src/*.tar.xz"))[0]
    run(["tar", "-xf", archive, "-C", work], f"unpacking {archive}")
    return glob.glob(os.path.join(work, "linux-source-*/"))[0]


def _configure(source):
    run(["make", "x86_64_defconfig", "kvm_guest.config"], "configuring the kernel", cwd=source)
    flags = [part for name in ON for part in ("-e", name)] + [part for name in OFF for part in ("-d", name)]
    run(["scripts/config", *flags], "configuring the kernel", cwd=source)
    run(["make", "olddefconfig"], "configuring the kernel", cwd=source)
    with open(os.path.join(source, ".config"), encoding="utf-8") as file:
        config = file.read().splitlines()
    for name in MUST:
        if f"CONFIG_{name}=y" not in config:
            raise RigError(f"the kernel cannot be configured with {name}")


def key():
    """Changes with what the kernel is made of."""
    return digest(ON, OFF)


def build(target):
    """Makes the folder `target` as an unpacked kernel package; minutes of work."""
    missing = sorted(package for tool, package in TOOLS.items() if shutil.which(tool) is None)
    if not os.path.exists("/usr/include/gelf.h"):
        missing.append("libelf-dev")
    if missing:
        raise RigError(f"building a kernel needs {' '.join(missing)}: apt-get install {' '.join(missing)}")
    parent = os.path.dirname(target)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".build-") as work:
        source = _source(work)
        _configure(source)
        version = run(["make", "-s", "kernelrelease"], "asking for the version", cwd=source).decode().strip().splitlines()[-1]
        print(f"rig: building Linux {version} with iommufd (once; some minutes)", file=sys.stderr)
        run(["make", f"-j{os.cpu_count()}", "bzImage"], "building the kernel", cwd=source)
        tree = os.path.join(work, "tree")
        modules = os.path.join(tree, "lib", "modules", version)
        os.makedirs(os.path.join(tree, "boot"))
        os.makedirs(modules)
        shutil.copy(os.path.join(source, "arch/x86/boot/bzImage"), os.path.join(tree, "boot", f"vmlinuz-{version}"))
        shutil.copy(os.path.join(source, ".config"), os.path.join(tree, "boot", f"config-{version}"))
        for name in ("modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(os.path.join(source, name), modules)
        # So that modprobe knows what is built in.
        run(["depmod", "-b", tree, version], "listing modules", env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
        os.rename(tree, target)
