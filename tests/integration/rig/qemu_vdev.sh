#!/bin/bash
# A virtual DSA served to another monitor (run by ./check --long): `postern vdev serve` here, QEMU 11 with vfio-user-pci beside it, and
# in QEMU's guest Debian's unmodified idxd, accel-config and dmatest, as in siov.sh. QEMU emulates the guest's processor itself: no
# emulated host is wanted. The processor has no MOVDIR64B: x-force-features tells the guest of it, and a module carries it out.
KERNELS="6.12 6.1"
GUEST_MODULES=(idxd)
GUEST_IMAGE=(--built-module movdir64b --built-module dmatest --package-program accel-config=usr/bin/accel-config)
OUTSIDE=1
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

FEW=${SIOV_FEW:-20}
COPIES=${SIOV_COPIES:-10000}
VM_LIMIT=${RIG_VM_LIMIT:-1500}
read -ra qemu < <("$ROOT/tests/rig/emulator.py" 11)
[ -n "${qemu[*]}" ] || { fail "$TEST" "no QEMU 11"; finish; }
echo "#   $("${qemu[@]}" --version | head -n 1)"

# guest_of_qemu NAME KERNEL PROFILE KEYS
guest_of_qemu() {
  local name=$1 profile=$3 keys=$4 server
  wanted "$name" || return
  use_kernel "$2"
  vm_console="$LOGS/$name.console"
  vm_log="$LOGS/$name.log"
  "$POSTERN" vdev serve --socket dsa.sock --type "dsa,id=dsa,profile=$profile,$keys" --metrics metrics.json > served.log 2>&1 &
  server=$!
  within 20 test -S dsa.sock || { fail "$name: served" "no socket"; detail served.log; return; }
  vm_begin=$EPOCHREALTIME
  "${qemu[@]}" -M q35,memory-backend=m0 -accel tcg -cpu max,x-force-features=on,+movdir64b -m 512M -nodefaults -no-user-config \
    -display none -no-reboot -object memory-backend-memfd,id=m0,size=512M,share=on \
    -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"dsa.sock"}}' -serial stdio \
    -kernel "$KERNEL" -initrd "$INITRD" -append "console=ttyS0 panic=-1 $QUICK rig.test=siov rig.profile=$profile rig.copies=$COPIES rig.few=$FEW" \
    < input.fifo > "$vm_console" 2> "$vm_log" &
  vm_pid=$!
  for mark in READY AFTER; do
    wait_for "$name" "RIG $mark" || { kill "$server"; detail served.log; return; }
    echo >&7
  done
  vm_ends "$name: the guest's poweroff" 0
  guest_results "$name"
  tr -d '\r' < "$vm_console" | grep -aoE 'RIG (DEVICE|DMESG|LIST|NOTE|COPIES) .*' | sed "s/^RIG DMESG/#   guest's kernel:/; s/^RIG/#   guest:/"
  kill -TERM "$server"
  wait "$server"
  expect "$name: the server's end" $? 0
  detail served.log
  figures nonzero metrics.json 'dsa.*' | sed "s/^/#   $name: /"
  rm -f metrics.json dsa.sock
}

# What the guests' consoles read.
mkfifo input.fifo
exec 7<> input.fifo

guest_of_qemu "6.12, cfg, trapped" 6.12 cfg wqs=2
guest_of_qemu "6.12, cfg, polled" 6.12 cfg wqs=2,portal=polled
guest_of_qemu "6.1, ro, trapped" 6.1 ro wqs=2,wq-size=16
finish
