#!/bin/bash
# Disks put into a running guest and taken out again, on a real KVM: Linux's own PCIe hot-plug driver, through `postern ctl`.
KERNELS="6.12-cloud"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
use_kernel 6.12-cloud
ROUNDS=10
CTL=$WORK/ctl.sock
ctl() { "$POSTERN" ctl "$CTL" "$@"; }

# ctl_expect NAME CODE ARGS...
ctl_expect() {
  local name=$1 code=$2
  shift 2
  ctl "$@" > ctl.out 2>&1
  expect "$name" $? "$code"
}
counter() { ctl metrics | sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p" | head -n 1; }
now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }

hotplug_scene() {
  vm_start hotplug --kernel "$VMLINUX" --initrd "$INITRD" --memory 192M --cpus 2 --hotplug-ports 2 --control "$CTL" \
    --cmdline "$BASE $QUICK rig.test=hotplug rig.rounds=$ROUNDS"
  wait_for "hot plug" "RIG READY" || return
  ctl_expect "list: exit code" 0 list
  expect "list: two free slots" "$(tail -n 1 ctl.out)" "free slots: 2"

  slowest_in=0
  slowest_out=0
  for round in $(seq 1 $ROUNDS); do
    { echo "hot disk $round" && head -c 1048000 /dev/urandom; } > "hot-$round.img"
    truncate -s 2M "hot-$round.img"
    md5sum < "hot-$round.img" | cut -c1-32 > "hot-$round.sum"
    begin=$(now_ms)
    ctl add-device "disk,path=$WORK/hot-$round.img,id=hot$round,serial=hot-$round" > ctl.out 2>&1 || {
      fail "round $round: add" "$(cat ctl.out)"
      break
    }
    wait_for "hot plug" "RIG FOUND $round " || return
    took=$(($(now_ms) - begin))
    [ "$took" -gt "$slowest_in" ] && slowest_in=$took
    wait_for "hot plug" "RIG USED $round " || return
    read -r _ _ _ sum < <(tr -d '\r' < "$vm_console" | grep -a "RIG FOUND $round ")
    [ "$sum" = "$(cat "hot-$round.sum")" ] || fail "round $round: what the guest read" "$sum"
    begin=$(now_ms)
    ctl --timeout 120 remove-device "hot$round" > ctl.out 2>&1 || {
      fail "round $round: remove" "$(cat ctl.out)"
      break
    }
    took=$(($(now_ms) - begin))
    [ "$took" -gt "$slowest_out" ] && slowest_out=$took
    wait_for "hot plug" "RIG GONE $round" || return
    # The guest's last write was neither synced nor waited for: releasing the driver did that.
    read -r _ _ _ sum < <(tr -d '\r' < "$vm_console" | grep -a "RIG USED $round ")
    [ "$(tail -c 1048576 "hot-$round.img" | md5sum | cut -c1-32)" = "$sum" ] ||
      fail "round $round: what the guest wrote" "is not in the image"
  done
  pass "hot plug: $ROUNDS rounds of add, use, remove (found within $slowest_in ms, released within $slowest_out ms)"

  expect "counters: devices added" "$(counter devices_added)" $ROUNDS
  expect "counters: devices removed" "$(counter devices_removed)" $ROUNDS
  expect "counters: plugs of the first port" "$(counter port_plugs)" $ROUNDS
  expect "counters: button presses of the first port" "$(counter port_button_presses)" $ROUNDS

  truncate -s 1M spare.img
  ctl_expect "add: first of two" 0 add-device disk,path=spare.img,id=one,readonly
  ctl_expect "add: second of two" 0 add-device disk,path=spare.img,id=two,readonly
  ctl_expect "add: no slot is left" 2 add-device disk,path=spare.img,id=three
  ctl_expect "add: no such file" 2 add-device disk,path=nowhere
  ctl_expect "add: unknown kind" 2 add-device toaster
  ctl_expect "remove: no such device" 2 remove-device nobody
  ctl_expect "remove: a device from the start" 2 remove-device rng0
  wait_for "hot plug" "RIG BOTH" || return
  # Until it hangs up on us, as it does on a line without an end.
  head -c 1000000 /dev/urandom | tr -d '\n' | timeout 60 /usr/bin/python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(sys.stdin.buffer.read())
except (BrokenPipeError, ConnectionResetError):
    print("hung up")' "$CTL" > garbage.out
  expect "garbage on the socket is hung up on" "$(cat garbage.out)" "hung up"
  ctl_expect "garbage on the socket stops nobody" 0 list
  ctl_expect "power button: exit code" 0 power-button
  vm_ends "hot plug: exit code after the power button" 0
  guest_results "hot plug"
  if [ -e "$CTL" ]; then fail "the control socket afterwards" "still there"; else pass "the control socket is removed"; fi
}
wanted "hot plug" && hotplug_scene

pull_scene() {
  truncate -s 1M one.img two.img
  vm_start pull --kernel "$VMLINUX" --initrd "$INITRD" --memory 192M --hotplug-ports 2 --control "$CTL" \
    --cmdline "$BASE $QUICK rig.test=hotplug-pull"
  wait_for pull "RIG READY" || return
  ctl_expect "pull: add a disk" 0 add-device disk,path=one.img,id=one
  ctl_expect "pull: add another" 0 add-device disk,path=two.img,id=two
  wait_for pull "RIG BOTH" || return
  ctl_expect "pull: a disk is taken out without asking" 0 remove-device one --force
  vm_ends "pull: exit code of the guest's reset" 3
  guest_results "pull"
}
wanted pull && pull_scene
finish
