"""What `rig` and `guest-image` share: the cache, Debian kernels, and initial RAM file systems.

Nothing is installed and nothing is written outside the cache folder.
"""

import contextlib
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
KERNEL_NAMES = {
    "6.12": "linux-image-6.12-amd64",
    "6.12-cloud": "linux-image-6.12-cloud-amd64",
    "6.1": "linux-image-amd64",
    "6.1-cloud": "linux-image-cloud-amd64",
}
BUILT_KERNEL = "6.12-iommufd"  # not Debian's: made from its source, see kernel_build.py
SIGNATURE_MARKER = b"~Module signature appended~\n"


class RigError(Exception):
    """A cause the user can act on, in one line."""


def run(command, what, **options):
    """Runs a command whose failure ends the tool with the command's own words."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options)
    except FileNotFoundError as error:
        raise RigError(f"{what}: {command[0]} is missing; scripts/packages.txt names the package") from error
    if done.returncode != 0:
        text = done.stdout.decode(errors="replace").strip().splitlines()
        raise RigError(f"{what}: {command[0]} failed: {' | '.join(text[-3:]) or done.returncode}")
    return done.stdout


def cache_dir():
    path = os.environ.get("POSTERN_CACHE") or os.path.expanduser("~/.cache/postern")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise RigError(f"cannot create the cache folder {path}: {error.strerror}; set POSTERN_CACHE") from error
    return os.path.realpath(path)


@contextlib.contextmanager
def cache_lock(name):
    """One maker at a time; readers never wait, as finished things appear by rename."""
    folder = os.path.join(cache_dir(), "locks")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_atomically(path, data, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def digest(*parts):
    state = hashlib.sha256()
    for part in parts:
        state.update(part if isinstance(part, bytes) else str(part).encode())
        state.update(b"\0")
    return state.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- kernels


class Kernel:
    """An unpacked kernel package: vmlinuz, config, modules with their dependency list; perhaps vmlinux."""

    def __init__(self, folder):
        self.folder = folder
        boot = os.path.join(folder, "boot")
        self.version = next(n[len("vmlinuz-"):] for n in os.listdir(boot) if n.startswith("vmlinuz-"))
        self.vmlinuz = os.path.join(boot, f"vmlinuz-{self.version}")
        self.vmlinux = os.path.join(boot, f"vmlinux-{self.version}")  # may be absent, see has_vmlinux
        self.modules = os.path.join(folder, "lib", "modules", self.version)

    @property
    def has_vmlinux(self):
        return os.path.exists(self.vmlinux)

    def load_order(self, wanted):
        """Paths of the module files that loading `wanted` takes, dependencies first.

        What the kernel has built in is left out; what it does not have at all is an error.
        """
        depends, by_name = {}, {}
        with open(os.path.join(self.modules, "modules.dep"), encoding="utf-8") as file:
            for line in file:
                path, _, rest = line.partition(":")
                depends[path] = rest.split()
                by_name[_module_name(path)] = path
        with open(os.path.join(self.modules, "modules.builtin"), encoding="utf-8") as file:
            builtin = {_module_name(line.strip()) for line in file}
        order = []

        def visit(path):
            if path in order:
                return
            for dependency in reversed(depends[path]):
                visit(dependency)
            order.append(path)

        for name in wanted:
            optional, name = name.startswith("?"), name.lstrip("?").replace("-", "_")
            if name in by_name:
                visit(by_name[name])
            elif name not in builtin and not optional:
                raise RigError(f"kernel {self.version} has no module {name}")
        return [os.path.join(self.modules, path) for path in order]


def _module_name(path):
    return re.sub(r"\.ko(\.xz|\.zst|\.gz)?$", "", os.path.basename(path)).replace("-", "_")


def read_module(path):
    """A module, decompressed, without its signature: checking it takes long in an emulator, and proves nothing there."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        data = lzma.decompress(data)
    elif path.endswith(".zst"):
        data = run(["zstd", "-dc", path], f"decompressing {path}")
    # Linux include/linux/module_signature.h: ..., signature, 12 bytes whose last 4 are its length (big endian), marker.
    if data.endswith(SIGNATURE_MARKER):
        end = len(data) - len(SIGNATURE_MARKER)
        length = struct.unpack_from(">I", data, end - 4)[0]
        data = data[:end - 12 - length]
    return data


def kernel(name):
    """The kernel of a Debian package (or of a short name in KERNEL_NAMES), from the cache or from apt."""
    if os.path.isdir(name):
        return Kernel(os.path.realpath(name))
    if name == BUILT_KERNEL:
        return _built_kernel()
    package = KERNEL_NAMES.get(name, name)
    if not re.fullmatch(r"linux-image-[a-z0-9.+~-]+", package):
        raise RigError(f"unknown kernel {name!r}: one of {', '.join(KERNEL_NAMES)}, {BUILT_KERNEL}, a linux-image-* package, or a folder")
    kernels = os.path.join(cache_dir(), "kernels")
    link = os.path.join(kernels, package)
    if not os.path.isdir(link):
        with cache_lock("kernels"):
            if not os.path.isdir(link):
                _fetch(package, kernels, link)
    return Kernel(os.path.realpath(link))


def _built_kernel():
    import kernel_build  # pylint: disable=import-outside-toplevel  # which imports this file
    folder = os.path.join(cache_dir(), "kernels", f"{BUILT_KERNEL}-{kernel_build.key()}")
    if not os.path.isdir(folder):
        with cache_lock("built-kernel"):
            if not os.path.isdir(folder):
                kernel_build.build(folder)
    return Kernel(folder)


def _depends_of(package):
    done = subprocess.run(["apt-cache", "show", "--no-all-versions", package], capture_output=True, check=False)
    if done.returncode != 0:
        return None
    match = re.search(rb"^Depends: (.*)$", done.stdout, re.M)
    return match.group(1).decode() if match else ""


def _fetch(package, kernels, link):
    if shutil.which("apt-get") is None:
        raise RigError(f"{package} is fetched with apt-get, and this machine has none")
    os.makedirs(kernels, exist_ok=True)
    if _depends_of(package) is None:
        _update_lists(package)
    with tempfile.TemporaryDirectory(dir=kernels, prefix=".new-") as work:
        try:
            real = _download(package, work)
        except RigError:
            # The lists may name a version the mirror no longer has.
            _update_lists(package)
            real = _download(package, work)
        tree = os.path.join(work, "tree")
        run(["dpkg", "-x", os.path.join(work, real[1]), tree], f"unpacking {real[0]}")
        shutil.rmtree(os.path.join(tree, "usr"), ignore_errors=True)
        unpacked = Kernel(tree)
        run(["depmod", "-b", tree, unpacked.version], "listing module dependencies",
            env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
        image = extract_vmlinux(unpacked.vmlinuz)
        if image is not None:
            with open(unpacked.vmlinux, "wb") as file:
                file.write(image)
        home = os.path.join(kernels, real[0])
        if not os.path.isdir(home):
            os.rename(tree, home)
        if home != link:
            temporary = os.path.join(work, "link")
            os.symlink(real[0], temporary)
            os.rename(temporary, link)


def _update_lists(package):
    print(f"rig: apt does not know or cannot fetch {package}: updating its lists", file=sys.stderr)
    run(["apt-get", "update", "-qq"], f"looking for {package}")


def _download(package, work):
    """(real package, file name): a meta package is followed to the one it depends on."""
    depends = _depends_of(package)
    if depends is None:
        raise RigError(f"apt knows no package {package}; the sources must have bookworm-security")
    match = re.match(r"(linux-image-[0-9][^ ,]*)", depends)
    real = match.group(1) if match else package
    download_packages([real], work)
    files = [name for name in os.listdir(work) if name.endswith(".deb")]
    if len(files) != 1:
        raise RigError(f"fetching {real}: apt-get left no package")
    return real, files[0]


def download_packages(packages, folder):
    """Puts the .deb files of these packages into a folder."""
    print(f"rig: fetching {', '.join(packages)} (once)", file=sys.stderr)
    # As root apt downloads as the user _apt, who may not write here.
    run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages], f"fetching {packages[0]}", cwd=folder)


def extract_vmlinux(bzimage):
    """The ELF image inside a bzImage, or None if it is packed by a method there is no tool for."""
    with open(bzimage, "rb") as file:
        data = file.read()
    # Linux Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset at 0x248, payload_length at 0x24c.
    start = (data[0x1F1] + 1) * 512 + struct.unpack_from("<I", data, 0x248)[0]
    length = struct.unpack_from("<I", data, 0x24C)[0]
    packed = data[start:start + length]
    image = None
    if packed.startswith(b"\xfd7zXZ\0"):
        image = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x1f\x8b"):
        image = gzip.decompress(packed[:-4])
    else:
        tool = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(packed[:4])
        if tool is not None and shutil.which(tool) is not None:
            # The kernel's build appends four bytes of size; the tools call them garbage after having done their work.
            image = subprocess.run([tool, "-dc"], input=packed[:-4], capture_output=True, check=False).stdout
    return image if image is not None and image.startswith(b"\x7fELF") else None


# ------------------------------------------------------------------------------ initial RAM file systems


class Cpio:
    """Writes a cpio archive in "newc" format (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

    Made here rather than with cpio(1), as it needs device nodes and its maker may not be root.
    """

    def __init__(self):
        self._parts = []
        self._inode = 0
        self._folders = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [header, encoded, b"\0" * (-(len(header) + len(encoded)) % 4), data, b"\0" * (-len(data) % 4)]

    def folder(self, name):
        parent = os.path.dirname(name)
        if parent:
            self.folder(parent)
        if name not in self._folders:
            self._folders.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        if os.path.dirname(name):
            self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        if os.path.dirname(name):
            self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name, major, minor):
        if os.path.dirname(name):
            self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def finish(self):
        self._entry("TRAILER!!!", 0)
        data = b"".join(self._parts)
        return data + b"\0" * (-len(data) % 512)  # archives may be appended to one another


def add_modules(archive, paths, list_name):
    """Puts module files, decompressed, and their list into an archive; returns nothing."""
    for path in paths:
        archive.file(f"modules/{_module_name(path)}.ko", read_module(path))
    archive.file(f"modules/{list_name}", "".join(f"{_module_name(path)}.ko\n" for path in paths).encode())


def static_program(source):
    """Compiles one C++ file into a static program, once; returns its path."""
    with open(source, "rb") as file:
        text = file.read()
    compiler = os.environ.get("CXX", "g++")
    name = os.path.splitext(os.path.basename(source))[0]
    path = os.path.join(cache_dir(), "programs", f"{name}-{digest(text, compiler)}")
    if not os.path.exists(path):
        with cache_lock("programs"), tempfile.TemporaryDirectory(dir=cache_dir()) as work:
            made = os.path.join(work, name)
            run([compiler, "-std=c++20", "-O2", "-s", "-static", "-o", made, source], f"compiling {source}")
            with open(made, "rb") as file:
                write_atomically(path, file.read(), 0o755)
    return path


def cached_file(path, make):
    """`path` in the cache, made by make() -> bytes if it is not there yet."""
    if not os.path.exists(path):
        with cache_lock("images"):
            if not os.path.exists(path):
                write_atomically(path, make())
    return path


def load_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)
