#!/usr/bin/python3
"""Emulators newer than Debian 12's own: QEMU 10 of bookworm-backports, for devices QEMU 7.2 has not (igb), and QEMU 11 of sid, for
devices in other processes (vfio-user-pci).

Fetched once from the machine's own mirror and unpacked into our cache: apt's sources on the machine stay as they are, and nothing
is installed. The first comes with lists, state and cache of its own, and runs on the machine's libraries; the second in a folder
made by debootstrap, with its own.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

from riglib import RigError, cache_dir, cache_lock, run

BACKPORTS = "10"  # the names for --qemu
SID = "11"
SUITE = "bookworm-backports"
PACKAGE = "qemu-system-x86"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What the package installs elsewhere but needs only with a window, or to be upgraded to.
NOT_WANTED = re.compile(r"^(qemu-system-gui|qemu-system-modules-spice|qemu-block-extra|qemu-utils)$")
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


class Emulator:
    """How to start one: arguments that come first, and what its environment needs."""

    def __init__(self, program, arguments=(), environment=None):
        self.program = program
        self.arguments = list(arguments)
        self.environment = environment or {}

    def command(self):
        return [self.program, *self.arguments]


def find(name):
    """The emulator `name`: BACKPORTS, SID, or a program."""
    if name == SID:
        return _find_sid()
    if name != BACKPORTS:
        return Emulator(name)
    tree = os.path.join(cache_dir(), "emulators", f"{PACKAGE}-{SUITE}")
    if not os.path.isdir(tree):
        with cache_lock("emulators"):
            if not os.path.isdir(tree):
                _fetch(tree)
    library = os.path.join(tree, LIBRARIES[0])
    folders = [os.path.join(tree, "usr/share/qemu"), os.path.join(tree, "usr/share/seabios"), "/usr/lib/ipxe/qemu"]
    return Emulator(os.path.join(tree, "usr/bin/qemu-system-x86_64"), [part for folder in folders for part in ("-L", folder)],
                    {"LD_LIBRARY_PATH": ":".join(os.path.join(tree, part) for part in LIBRARIES),
                     "QEMU_MODULE_DIR": os.path.join(library, "qemu")})


def _find_sid():
    tree = os.path.join(cache_dir(), "emulators", f"{PACKAGE}-sid")
    if not os.path.isdir(tree):
        with cache_lock("emulators"):
            if not os.path.isdir(tree):
                _bootstrap(tree)
    # By its own loader, so that it sees the files of this machine: in a chroot it would not.
    library = ":".join(os.path.join(tree, part) for part in LIBRARIES)
    return Emulator(os.path.join(tree, "lib64/ld-linux-x86-64.so.2"),
                    ["--library-path", library, os.path.join(tree, "usr/bin/qemu-system-x86_64"),
                     "-L", os.path.join(tree, "usr/share/qemu"), "-L", os.path.join(tree, "usr/share/seabios")],
                    {"QEMU_MODULE_DIR": os.path.join(tree, LIBRARIES[0], "qemu")})


def _bootstrap(tree):
    os.makedirs(os.path.dirname(tree), exist_ok=True)
    if shutil.which("debootstrap") is None:
        raise RigError("debootstrap is missing: scripts/setup --long")
    print(f"rig: fetching {PACKAGE} of sid (once, 400 MB)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(tree), prefix=".new-") as work:
        new = os.path.join(work, "tree")
        run(["debootstrap", "--variant=minbase", f"--include={PACKAGE}", "sid", new, _mirror()], f"fetching {PACKAGE} of sid")
        os.rename(new, tree)


def _mirror():
    """The address from which this machine gets Debian 12 itself."""
    text = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Identifier: Packages"],
               "asking apt for its sources").decode()
    for line in text.splitlines():
        codename, component, address = line.split(" ", 2)
        if (codename, component) == ("bookworm", "main"):
            return address
    raise RigError(f"apt's sources on this machine have no bookworm main: {PACKAGE} of {SUITE} is taken from the same mirror")


def _apt(work):
    """The start of an apt command that knows that mirror alone, with the backports."""
    for folder in ("lists/partial", "archives/partial", "parts"):
        os.makedirs(os.path.join(work, folder))
    signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
    with open(os.path.join(work, "sources.list"), "w", encoding="utf-8") as file:
        for suite in ("bookworm", SUITE):
            file.write(f"deb {signed}{_mirror()} {suite} main\n")
    options = {"Dir::Etc::sourcelist": f"{work}/sources.list", "Dir::Etc::sourceparts": f"{work}/parts",
               "Dir::State::lists": f"{work}/lists", "Dir::Cache": work, "Dir::Cache::archives": f"{work}/archives",
               # As root apt downloads as the user _apt, who may not write here.
               "APT::Sandbox::User": "root", "Acquire::Retries": "2"}
    return ["apt-get", "-qq", *[part for key, value in options.items() for part in ("-o", f"{key}={value}")]]


def _fetch(tree):
    os.makedirs(os.path.dirname(tree), exist_ok=True)
    print(f"rig: fetching {PACKAGE} of {SUITE} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(tree), prefix=".new-") as work:
        apt = _apt(work)
        run([*apt, "update"], f"fetching the package lists of {SUITE}")
        # What it would take to install it here is what the machine lacks.
        plan = run([*apt, "install", "--simulate", "--no-install-recommends", "-t", SUITE, PACKAGE],
                   f"asking what {PACKAGE} of {SUITE} needs").decode()
        names = [name for name in re.findall(r"^Inst (\S+)", plan, re.M) if not NOT_WANTED.match(name)]
        if PACKAGE not in names:
            raise RigError(f"apt would not take {PACKAGE} from {SUITE}; it would install: {' '.join(names) or 'nothing'}")
        # Firmware that is here in the machine's version is wanted in the emulator's.
        packages = sorted(set(names) | {"seabios", "qemu-system-common", "qemu-system-data"})
        run([*apt, "-t", SUITE, "download", *packages], f"fetching {' '.join(packages)}", cwd=work)
        unpacked = os.path.join(work, "tree")
        for package in sorted(os.listdir(work)):
            if package.endswith(".deb"):
                run(["dpkg", "-x", os.path.join(work, package), unpacked], f"unpacking {package}")
        _try(unpacked)
        os.rename(unpacked, tree)


def _try(tree):
    done = subprocess.run([os.path.join(tree, "usr/bin/qemu-system-x86_64"), "--version"], capture_output=True, check=False,
                          env={**os.environ, "LD_LIBRARY_PATH": ":".join(os.path.join(tree, part) for part in LIBRARIES)})
    if done.returncode != 0 or not re.search(rb"version 1\d\.", done.stdout):
        raise RigError(f"{PACKAGE} of {SUITE} does not start here: {(done.stderr or done.stdout).decode().strip()}")


if __name__ == "__main__":
    # For a shell: the words of the command, with its environment.
    try:
        found = find(sys.argv[1])
    except RigError as error:
        sys.exit(f"rig: {error}")
    print(shlex.join(["env", *[f"{key}={value}" for key, value in found.environment.items()], *found.command()]))
