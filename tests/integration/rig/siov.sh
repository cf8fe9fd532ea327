#!/bin/bash
# A virtual DSA (--vdev) under the kernel's own driver: Debian's unmodified idxd of 6.12 and 6.1, configured by accel-config
# where the guest may, and the kernel's own test of DMA engines, dmatest, on two queues. The emulated processor lacks
# MOVDIR64B: a module of the guest carries the instruction out in eight stores; of the driver nothing is changed.
# POSTERN_LONG in the environment: 10,000 copies a queue in the measured run, as many as there is time for else.
KERNELS=${SIOV_KERNELS:-"6.12 6.1"}
GUEST_MODULES=(idxd)
GUEST_IMAGE=(--built-module movdir64b --built-module dmatest --package-program accel-config=usr/bin/accel-config)
RIG_ARGUMENTS=(--env "SIOV_COPIES=${SIOV_COPIES:-}" --env "SIOV_FEW=${SIOV_FEW:-}" --env "SIOV_APPEND=${SIOV_APPEND:-}")
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

FEW=${SIOV_FEW:-20}
COPIES=${SIOV_COPIES:-$([ -n "${POSTERN_LONG:-}" ] && echo 10000 || echo 500)}

ctl_metrics() { "$POSTERN" ctl ctl.sock metrics --json > "$1"; }
difference() { # PATH: of its two measurements
  echo $(($(figures get after.json "$1") - $(figures get before.json "$1")))
}
# measured NAME EXITS: the run between the guest's READY and AFTER; EXITS: how many one descriptor takes
measured() {
  local name=$1 submitted path
  ctl_metrics before.json
  echo >&7
  wait_for "$name" "RIG AFTER" || return
  ctl_metrics after.json
  submitted=$(difference 'devices.dsa.queue?_submitted')
  expect "$name: descriptors, and those completed with status 1, of $((2 * COPIES)) copies" \
    "$submitted $(difference 'devices.dsa.queue?_status_01')" "$((2 * COPIES)) $((2 * COPIES))"
  expect "$name: exits of the portals" "$(difference 'devices.dsa.queue?_portal_exits')" $(($2 * submitted))
  expect "$name: trapped registers in the measured run" "$(difference 'devices.dsa.register_*')" 0
  [ "$2" != 0 ] || for path in 'vcpus.*.mmio_exits' 'vcpus.*.kvm.mmio_exits'; do
    expect "$name: $path in the measured run" "$(difference "$path")" 0
  done
  figures differences before.json after.json 'devices.dsa.*' 'vcpus.*' | sed "s/^/#   $name: measured run: /"
}
# guest_with NAME KERNEL PROFILE VDEV-KEYS EXITS-PER-DESCRIPTOR [ARGUMENTS...]
guest_with() {
  local name=$1 profile=$3 keys=$4 exits=$5
  wanted "$name" || return
  use_kernel "$2"
  shift 5
  rm -f ctl.sock
  vm_input=input.fifo vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M --control ctl.sock --metrics metrics.json --movdir64b on \
    --vdev "type=dsa,id=dsa,profile=$profile,$keys" \
    --cmdline "$BASE $QUICK rig.test=siov rig.profile=$profile rig.copies=$COPIES rig.few=$FEW ${SIOV_APPEND:-}" "$@"
  wait_for "$name" "RIG READY" || return
  measured "$name" "$exits" || return
  echo >&7
  vm_ends "$name: the guest's poweroff" 0
  guest_results "$name"
  facts
  tr -d '\r' < "$vm_console" | grep -aoE 'RIG (DMESG|LIST|NOTE|COPIES) .*' | sed "s/^RIG DMESG/#   guest's kernel:/; s/^RIG/#   guest:/"
  figures nonzero metrics.json 'devices.dsa.*' | sed "s/^/#   $name: /"
  expect "$name: rules broken, failed traps, unknown handles, dropped events, software errors' overflows, halts" \
    "$(figures get metrics.json devices.dsa.portal_rules_broken devices.dsa.portal_trap_failures devices.dsa.unknown_handles \
      devices.dsa.events_dropped devices.dsa.software_error_overflows devices.dsa.halts)" "0 0 0 0 0 0"
  rm -f metrics.json
}

# What the guests' consoles read.
mkfifo input.fifo
exec 7<> input.fifo

guest_with "6.12, cfg, polled" 6.12 cfg portal=polled,wqs=2 0
guest_with "6.12, ro, polled" 6.12 ro portal=polled,wqs=2,wq-size=16 0
guest_with "6.12, cfg, trapped, two processors" 6.12 cfg portal=trapped,wqs=2 8 --cpus 2
guest_with "6.1, cfg, polled" 6.1 cfg portal=polled,wqs=2 0
guest_with "6.1, ro, polled" 6.1 ro portal=polled,wqs=2,wq-size=16 0
finish
