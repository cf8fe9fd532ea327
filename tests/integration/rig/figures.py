#!/usr/bin/python3
"""figures - reads a metrics file of Postern (its last line).

  figures.py show FILE           what the log says of assigned devices and processors: counters that are not 0
  figures.py nonzero FILE PATH...   names and values of what is not 0, e.g. of devices.dsa.*, a line a path
  figures.py differences BEFORE AFTER PATH...   names and differences of what changed, a line a path
  figures.py get FILE PATH...    values, e.g. devices.device0.vfio_resets; "*" in a name: the sum of all that match
"""

import fnmatch
import json
import sys


def load(path):
    with open(path, encoding="ascii") as file:
        last = json.loads(file.read().splitlines()[-1])
    return last.get("metrics", last)  # as `postern ctl SOCKET metrics --json` prints it


def get(tree, path):
    """The sum of the numbers that the path names; a path that names none is an error."""
    found = [tree]
    for part in path.split("."):
        found = [value for node in found if isinstance(node, dict) for name, value in node.items() if fnmatch.fnmatchcase(name, part)]
    numbers = [value for value in found if isinstance(value, int)]
    if not numbers:
        raise SystemExit(f"figures: no counter {path}")
    return sum(numbers)


def leaves(tree, path):
    """{name: number} of all that the path matches, and of all below what it matches."""
    found = {"": tree}
    for part in path.split("."):
        found = {f"{above}.{name}": value for above, node in found.items() if isinstance(node, dict)
                 for name, value in node.items() if fnmatch.fnmatchcase(name, part)}
    numbers = {name.lstrip("."): value for name, value in found.items() if isinstance(value, int)}
    for above, node in found.items():
        if isinstance(node, dict):
            numbers.update({f"{above}.{name}".lstrip("."): value for name, value in leaves(node, "*").items()})
    return numbers


def print_numbers(numbers):
    print(", ".join(f"{name} {value}" for name, value in numbers.items() if value) or "none")


def differences(before, after, paths):
    for path in paths:
        old = leaves(before, path)
        print_numbers({name: value - old.get(name, 0) for name, value in leaves(after, path).items()})


def show(tree):
    for name, device in tree["devices"].items():
        if "vfio_resets" in device:
            print(f"#   counters of {name}:", ", ".join(f"{key} {value}" for key, value in device.items() if value))
    for name, vcpu in tree["vcpus"].items():
        to_user = ", ".join(f"{key} {value}" for key, value in vcpu.items() if key != "kvm")
        kernel = ", ".join(f"{key} {vcpu['kvm'].get(key, '-')}" for key in ("exits", "mmio_exits", "io_exits", "irq_exits", "halt_exits"))
        print(f"#   counters of {name}: to user space: {to_user}; KVM's own: {kernel}")


def main(argv):
    if len(argv) == 2 and argv[0] == "show":
        show(load(argv[1]))
    elif len(argv) > 2 and argv[0] == "nonzero":
        tree = load(argv[1])
        for path in argv[2:]:
            print_numbers(leaves(tree, path))
    elif len(argv) > 3 and argv[0] == "differences":
        differences(load(argv[1]), load(argv[2]), argv[3:])
    elif len(argv) > 2 and argv[0] == "get":
        tree = load(argv[1])
        print(*[get(tree, path) for path in argv[2:]])
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
