#!/usr/bin/python3
"""Writes ELF64 kernels of a few instructions, KIND.elf each, into a folder: tiny_guest.py FOLDER

  idle          halts forever with interrupts off
  spin          jumps to itself
  triple-fault  an invalid opcode without an interrupt table
  cmpxchg16b    an instruction that a KVM without hardware virtualisation cannot emulate
  storm         writes to a port nobody has, without end
"""
import os
import struct
import sys

BASE = 0x200000
CODE = {
    "idle": bytes.fromhex("faf4ebfd"),
    "spin": bytes.fromhex("ebfe"),
    # lidt of an empty table, then ud2.
    "triple-fault": bytes.fromhex("0f011d02000000" "0f0b" + "00" * 10),
    "cmpxchg16b": bytes.fromhex("f0480fc70c2500302000" "f4"),
    "storm": bytes.fromhex("b0ff" "e6ee" "ebfc"),
}


def kernel(code: bytes) -> bytes:
    offset = 0x1000
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, BASE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, offset, BASE, BASE, len(code), 0x2000, 0x1000)
    return (header + segment).ljust(offset, b"\0") + code


def main() -> int:
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        print(__doc__, file=sys.stderr)
        return 2
    for kind, code in CODE.items():
        with open(os.path.join(sys.argv[1], kind + ".elf"), "wb") as out:
            out.write(kernel(code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
