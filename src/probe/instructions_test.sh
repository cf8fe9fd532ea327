#!/bin/bash
# The built-in guest has no instruction that KVM's instruction emulator refuses: instructions_test.sh PROBE.ELF
set -euo pipefail
listing=$(objdump -d --no-show-raw-insn "$1")
[ "$(wc -l <<<"$listing")" -gt 1000 ] || { echo "objdump found no code in $1"; exit 1; }
# SSE, MMX, x87 and VEX registers; int3; fences; the 16-byte compare-exchange; extended state; popcnt, bit and byte-order extensions.
refused='%[xyz]mm|%mm[0-7]|%st|\b(int3|[lsm]fence|cmpxchg16b|xsave\w*|xrstor\w*|popcnt|[lt]zcnt|andn|bextr|bl[sz]\w+|pdep|pext|mulx|rorx|s[ah][lr]x|movbe|movdiri|rdrand|rdseed|endbr\w*)\b'
# In one place, which is reached only where CPUID names it and where it works (dsa.cc).
whole=$(grep -cw movdir64b <<<"$listing" || true)
[ "$whole" = 1 ] || { echo "movdir64b is in $whole places of $1, and may be in one"; exit 1; }
if found=$(grep -nE "$refused" <<<"$listing"); then
  echo "refused instructions in $1:"
  head -20 <<<"$found"
  exit 1
fi
