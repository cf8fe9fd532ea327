"""Modules for test guests that no Debian kernel has: built against the kernel's own headers, which are unpacked into the cache
and never installed.

    paths = module_build.build(kernel.version)     # [".../movdir64b.ko", ".../dmatest.ko"]

movdir64b.ko is ours (guest_modules/). dmatest.ko is the kernel's own test of DMA engines, which Debian leaves out: its one
source file is taken, unmodified, from Debian's kernel source package of the same series.
"""

import glob
import os
import re
import shutil
import subprocess
import tempfile

import riglib
from riglib import RigError, run

SOURCES = os.path.join(riglib.HERE, "guest_modules")


def _packages(version):
    """What the headers of a kernel consist of, and the package that has its source."""
    series = re.match(r"\d+\.\d+", version).group(0)
    base = re.sub(r"-(cloud-)?amd64$", "", version)
    # Since 6.12 the tools carry the whole version in their name.
    kbuild = f"linux-kbuild-{base}" if "+deb" in base else f"linux-kbuild-{series}"
    return [f"linux-headers-{version}", f"linux-headers-{base}-common", kbuild], f"linux-source-{series}"


def _fetch(packages, work):
    with tempfile.TemporaryDirectory(dir=work) as folder:
        riglib.download_packages(packages, folder)
        for package in glob.glob(os.path.join(folder, "*.deb")):
            run(["dpkg", "-x", package, work], f"unpacking {package}")


def _headers(version, packages, work):
    _fetch(packages, work)
    folder = os.path.join(work, "usr/src", f"linux-headers-{version}")
    common = os.path.join(work, "usr/src", packages[1])
    # The only absolute path in them.
    with open(os.path.join(folder, "Makefile"), "w", encoding="ascii") as file:
        file.write(f"include {common}/Makefile\n")
    return folder


def _dmatest(package, work):
    """The text of drivers/dma/dmatest.c."""
    _fetch([package], work)
    archive = glob.glob(os.path.join(work, "usr/src/linux-source-*.tar.xz"))[0]
    name = os.path.basename(archive)[:-len(".tar.xz")]
    # Nothing after the file is unpacked.
    done = subprocess.run(["tar", "-xOf", archive, "--occurrence=1", f"{name}/drivers/dma/dmatest.c"], capture_output=True, check=False)
    if not done.stdout:
        raise RigError(f"{package} has no drivers/dma/dmatest.c")
    return done.stdout


def _make(folder, source):
    # Without BTF: its tool is not among the headers' requirements.
    run(["make", "-C", folder, f"M={source}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"], f"building the modules in {source}")


def build(version):
    """The modules for this kernel, from the cache or built now."""
    with open(os.path.join(SOURCES, "movdir64b.c"), "rb") as file:
        text = file.read()
    target = os.path.join(riglib.cache_dir(), "modules", f"{version}-{riglib.digest(text)}")
    if not os.path.isdir(target):
        with riglib.cache_lock("modules"):
            if not os.path.isdir(target):
                _build(version, target)
    return sorted(glob.glob(os.path.join(target, "*.ko")))


def _build(version, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(target), prefix=".build-") as work:
        packages, source_package = _packages(version)
        headers = _headers(version, packages, work)
        source = os.path.join(work, "modules")
        shutil.copytree(SOURCES, source)
        with open(os.path.join(source, "dmatest.c"), "wb") as file:
            file.write(_dmatest(source_package, work))
        with open(os.path.join(source, "Kbuild"), "a", encoding="ascii") as file:
            file.write("obj-m += dmatest.o\n")
        _make(headers, source)
        made = os.path.join(work, "made")
        os.makedirs(made)
        for path in glob.glob(os.path.join(source, "*.ko")):
            run(["strip", "--strip-debug", "-o", os.path.join(made, os.path.basename(path)), path], f"stripping {path}")
        os.rename(made, target)
