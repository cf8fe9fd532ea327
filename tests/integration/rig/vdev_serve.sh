#!/bin/bash
# A virtual DSA in a process of its own (postern vdev serve), attached to a guest by vfio-user (--device socket=): Debian's
# unmodified idxd and dmatest on it, with portals whose stores are messages and with portals that are mapped memory; and that
# one client after the other is served. The guest's side is that of siov.sh.
KERNELS="6.12"
GUEST_MODULES=(idxd)
GUEST_IMAGE=(--built-module movdir64b --built-module dmatest --package-program accel-config=usr/bin/accel-config)
RIG_ARGUMENTS=(--env "SIOV_COPIES=${SIOV_COPIES:-}" --env "SIOV_FEW=${SIOV_FEW:-}")
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

FEW=${SIOV_FEW:-10}
COPIES=${SIOV_COPIES:-200}

serve() { # NAME TYPE: sets server
  "$POSTERN" vdev serve --socket dsa.sock --type "$2" --metrics serve.json > "$LOGS/$1.server" 2>&1 &
  server=$!
  within 30 grep -q '^serving' "$LOGS/$1.server" || { fail "$1: the server" "does not serve"; detail "$LOGS/$1.server"; finish; }
}
# served FILE: the counters of now
served() {
  : > serve.json # the server has it open, to append to it
  kill -USR1 "$server"
  within 10 test -s serve.json
  cp serve.json "$1"
}
difference() { echo $(($(figures get after.json "$1") - $(figures get before.json "$1"))); }

# guest_with NAME PROFILE KEYS MESSAGES: how many stores come as messages for one descriptor
guest_with() {
  local name=$1 profile=$2 messages=$4 submitted
  wanted "$name" || return
  use_kernel 6.12
  serve "$name" "dsa,id=dsa,profile=$profile,$3"
  vm_input=input.fifo vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M,shared --movdir64b on \
    --device socket=dsa.sock,id=served --metrics metrics.json \
    --cmdline "$BASE $QUICK rig.test=siov rig.profile=$profile rig.copies=$COPIES rig.few=$FEW"
  wait_for "$name" "RIG READY" || { detail "$LOGS/$name.server"; kill "$server"; return; }
  served before.json
  echo >&7
  wait_for "$name" "RIG AFTER" || { detail "$LOGS/$name.server"; kill "$server"; return; }
  served after.json
  submitted=$(difference 'dsa.queue?_submitted')
  expect "$name: descriptors, and those completed with status 1, of $((2 * COPIES)) copies" \
    "$submitted $(difference 'dsa.queue?_status_01')" "$((2 * COPIES)) $((2 * COPIES))"
  expect "$name: stores that came as messages" "$(difference 'dsa.queue?_portal_stores')" $((messages * submitted))
  expect "$name: messages for anything else in the measured run" \
    "$(($(difference dsa.region_reads) + $(difference dsa.region_writes)))" $((messages * submitted))
  echo >&7
  vm_ends "$name: the guest's poweroff" 0
  guest_results "$name"
  facts
  tr -d '\r' < "$vm_console" | grep -aoE 'RIG (DMESG|LIST|NOTE|COPIES) .*' | sed "s/^RIG DMESG/#   guest's kernel:/; s/^RIG/#   guest:/"
  # The next client finds a device as new; then the server is told to end.
  within 20 grep -q 'client 1 has gone' "$LOGS/$name.server"
  expect "$name: the server says that its client has gone" $? 0
  served end.json
  figures nonzero end.json 'dsa.*' | sed "s/^/#   $name: /"
  expect "$name: rules broken, losses, clients turned out, commands refused" \
    "$(figures get end.json dsa.portal_rules_broken dsa.losses dsa.clients_dropped dsa.commands_refused)" "0 0 0 0"
  kill "$server"
  within 10 process_gone "$server"
  expect "$name: the server ends when it is told, and its socket is gone" "$? $([ -e dsa.sock ]; echo $?)" "0 1"
  wait "$server"
  expect "$name: the server's exit code" $? 0
  sed 's/^/#   server: /' "$LOGS/$name.server"
}

mkfifo input.fifo
exec 7<> input.fifo

guest_with "6.12, cfg, trapped" cfg portal=trapped,wqs=2 8
guest_with "6.12, ro, polled" ro portal=polled,wqs=2,wq-size=16 0
finish
