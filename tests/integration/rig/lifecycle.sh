#!/bin/bash
# How a machine ends, and what it leaves behind, on a real KVM: power button, reboot, panic, triple fault, signals, kill -9;
# a terminal on the console; bad input on the command line.
KERNELS="6.12-cloud"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
use_kernel 6.12-cloud
GUEST_MAC=52:54:00:77:00:02
tap_new tap0 10.77.0.1/24 || { fail "$TEST" "no TAP"; finish; }

guest() { # NAME GUEST-TEST ARGS...: starts it and waits until it says RIG READY
  local name=$1 test=$2
  shift 2
  vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory 192M "$@"
  within "$VM_LIMIT" said_or_gone "RIG READY"
  guest_said "RIG READY" && return
  fail "$name" "the guest's test $test was not reached"
  vm_details
  kill -9 "$vm_pid" 2> /dev/null
  return 1
}
arguments() { echo "$BASE $QUICK rig.test=$1 rig.mac=$GUEST_MAC ${2:-}"; }

if wanted doctor; then
  "$POSTERN" doctor > doctor.txt 2>&1
  expect "doctor: exit code where KVM can run guest kernels" $? 0
fi

if wanted "power button"; then
  many=20
  disks=()
  for i in $(seq 1 $many); do
    echo "disk $i" > "many-$i.img"
    truncate -s 1M "many-$i.img"
    disks+=(--disk "path=many-$i.img,serial=serial-$i")
  done
  if guest "power button" power-button "${disks[@]}" --cmdline "$(arguments power-button "rig.disks=$many")"; then
    kill -TERM "$vm_pid"
    vm_ends "power button: exit code after SIGTERM and the guest's own poweroff" 0
    guest_results "power button"
  fi
fi

if wanted reboot; then
  mkdir small
  mount -t tmpfs -o size=1m small small
  echo "first line" > small/disk.img
  truncate -s 32M small/disk.img
  vm_start reboot --kernel "$KERNEL" --initrd "$INITRD" --memory 192M --transport mmio --disk path=small/disk.img,serial=small \
    --cmdline "$(arguments reboot pci=off)"
  vm_ends "reboot: exit code" 3
  guest_results "reboot, and a full host disk"
fi

if wanted panic && guest panic panic --cmdline "$(arguments panic)" --cpus 2; then
  vm_ends "panic: exit code, as panic=-1 reboots" 3
fi

if wanted "triple fault" && guest "triple fault" triple-fault --cmdline "$(arguments triple-fault reboot=triple)"; then
  vm_ends "triple fault: exit code" 4
  if grep -qi "triple fault" "$vm_log"; then
    pass "triple fault: is told"
  else
    fail "triple fault: is told" "standard error does not say so"
    vm_details
  fi
fi

busy_guest() { # NAME
  truncate -s 16M data.img
  guest "$1" ignore --cmdline "$(arguments ignore)" --disk path=data.img,serial=data --net "tap=tap0,mac=$GUEST_MAC" \
    --vsock "cid=9,socket=$WORK/v.sock"
}

# A command line that must fail: refused NAME CODE ARGS...
refused() {
  local name=$1 code=$2 got
  shift 2
  timeout 60 "$POSTERN" run "$@" < /dev/null > refused.out 2> refused.log
  got=$?
  if [ "$got" = "$code" ] && [ "$(wc -l < refused.log)" -le 2 ] && [ -s refused.log ]; then
    pass "$name"
  else
    fail "$name" "exit code $got (must be $code), $(wc -l < refused.log) lines on standard error"
    detail refused.log
  fi
}

if wanted "kill" && busy_guest "kill -9"; then
  refused "a TAP in use by another machine" 1 --kernel "$VMLINUX" --initrd "$INITRD" --net tap=tap0
  refused "a vsock path in use by another machine" 1 --kernel "$VMLINUX" --initrd "$INITRD" \
    --vsock "cid=10,socket=$WORK/v.sock"
  "$AGENT" send "hybrid:$WORK/v.sock:8002" 300000 2> send.log
  expect "a refused second machine does not disturb the first" $? 0
  threads=("/proc/$vm_pid/task"/*)
  kill -9 "$vm_pid"
  vm_wait 10
  expect "kill -9: the process" "$vm_code" 137
  expect "kill -9: processes left" "$(pgrep -c postern)" 0
  [ "${#threads[@]}" -gt 1 ] || fail "kill -9: threads before" "only ${#threads[@]}"
  expect "kill -9: the TAP has no user" "$(cat /sys/class/net/tap0/carrier)" 0
  # The same disk, TAP and socket path (whose file a killed process cannot remove) serve the next machine.
  if busy_guest "after kill -9"; then
    pass "kill -9: disk, TAP and socket path serve the next machine"
    "$AGENT" send "hybrid:$WORK/v.sock:8002" 300000 2> send.log
    expect "kill -9: vsock of the next machine" $? 0
    kill -TERM "$vm_pid"
    sleep 1
    kill -TERM "$vm_pid"
    vm_ends "two SIGTERMs end a guest that does not listen: exit code" 143
    if [ -e v.sock ]; then fail "the vsock path afterwards" "still there"; else pass "the vsock path is removed"; fi
  fi
fi

if wanted terminal; then
  for scene in shell leave; do
    /usr/bin/python3 "$ROOT/tests/integration/rig/terminal.py" $scene "$POSTERN" run --kernel "$VMLINUX" --initrd "$INITRD" \
      --memory 192M --cmdline "$BASE $QUICK" || failures=$((failures + 1))
  done
fi

if wanted "bad input"; then
  head -c 100000 /dev/urandom > random
  head -c 100000 "$KERNEL" > truncated
  : > empty
  refused "bad input: no such kernel" 2 --kernel nowhere
  refused "bad input: a kernel of random bytes" 2 --kernel random
  refused "bad input: a truncated bzImage" 2 --kernel truncated
  head -c 100000 "$VMLINUX" > truncated
  refused "bad input: a truncated ELF file" 2 --kernel truncated
  refused "bad input: an empty kernel" 2 --kernel empty
  refused "bad input: a folder as kernel" 2 --kernel /
  refused "bad input: no such initrd" 2 --kernel "$VMLINUX" --initrd nowhere
  truncate -s 512M huge
  refused "bad input: an initrd larger than memory" 2 --kernel "$VMLINUX" --initrd huge --memory 128M
  refused "bad input: no such disk" 2 --kernel "$VMLINUX" --disk path=nowhere
  refused "bad input: an empty disk" 2 --kernel "$VMLINUX" --disk path=empty
  refused "bad input: no CPU" 2 --kernel "$VMLINUX" --cpus 0
  refused "bad input: unknown flag" 2 --kernel "$VMLINUX" --bogus
  refused "bad input: unknown key" 2 --kernel "$VMLINUX" --disk path=random,bogus=1
  expect "bad input: no TAP is left" "$(ls /sys/class/net | tr '\n' ' ')" "lo tap0 "
fi
finish
