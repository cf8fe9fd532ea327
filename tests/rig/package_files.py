"""Programs of Debian packages for test guests, with the shared libraries they load: unpacked into the cache, never installed.

    for name, data, mode in package_files.program("accel-config", "usr/bin/accel-config"): ...

Names are what the guest is to have: the program in /bin, its libraries and its loader where the loader looks for them.
"""

import glob
import os
import re
import shutil
import tempfile

import riglib
from riglib import RigError, run

LOADER = "lib64/ld-linux-x86-64.so.2"
FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def _closure(package):
    """The package and all that it depends on."""
    text = run(["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks",
                "--no-replaces", "--no-enhances", package], f"looking for what {package} needs").decode()
    names = [line for line in text.splitlines() if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", line)]
    if package not in names:
        raise RigError(f"apt knows no package {package}")
    return names


def _unpacked(package):
    """The folder with the package and its dependencies, from the cache or fetched now."""
    home = os.path.join(riglib.cache_dir(), "packages", package)
    if not os.path.isdir(home):
        with riglib.cache_lock("packages"):
            if not os.path.isdir(home):
                _fetch(package, home)
    return home


def _fetch(package, home):
    os.makedirs(os.path.dirname(home), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(home), prefix=".new-") as work:
        riglib.download_packages(_closure(package), work)
        tree = os.path.join(work, "tree")
        for path in glob.glob(os.path.join(work, "*.deb")):
            run(["dpkg", "-x", path, tree], f"unpacking {path}")
        shutil.rmtree(os.path.join(tree, "usr/share"), ignore_errors=True)
        os.rename(tree, home)


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _needed(path):
    text = run(["readelf", "-d", path], f"reading {path}").decode()
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text)


def _library(home, name):
    for folder in FOLDERS:
        path = os.path.join(home, folder, name)
        if os.path.exists(path):
            return path
    raise RigError(f"no library {name} in {home}")


def program(package, path):
    """(path in the guest, bytes, mode) of the program, the loader and every library."""
    home = _unpacked(package)
    source = os.path.join(home, path)
    if not os.path.exists(source):
        raise RigError(f"package {package} has no {path}")
    files = [(f"bin/{os.path.basename(path)}", _read(source), 0o755),
             (LOADER, _read(os.path.join(home, "lib/x86_64-linux-gnu", os.path.basename(LOADER))), 0o755)]
    seen, todo = {os.path.basename(LOADER)}, _needed(source)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        found = _library(home, name)
        files.append((f"lib/x86_64-linux-gnu/{name}", _read(found), 0o755))
        todo += _needed(found)
    return files
