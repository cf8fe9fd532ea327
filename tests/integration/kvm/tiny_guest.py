#!/usr/bin/env python3
"""Writes an ELF64 kernel of a few instructions: tiny_guest.py KIND FILE

  idle          halts forever with interrupts off
  spin          jumps to itself
  triple-fault  an invalid opcode without an interrupt table
  cmpxchg16b    an instruction that a KVM without hardware virtualisation cannot emulate
  storm         writes to a port nobody has, without end
"""
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


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in CODE:
        print(__doc__, file=sys.stderr)
        return 2
    code = CODE[sys.argv[1]]
    offset = 0x1000
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, BASE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, offset, BASE, BASE, len(code), 0x2000, 0x1000)
    with open(sys.argv[2], "wb") as out:
        out.write((header + segment).ljust(offset, b"\0") + code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
