# What the tests in the emulated host share. Sourcing it on the machine runs the calling test again inside the rig; from
# there on the code below runs as root on a host of its own, with a real KVM, and may do to it what it likes.
#
# Set before sourcing: KERNELS="6.12-cloud ..." (names for tests/rig/guest-image); where wanted GUEST_MODULES=(nvme ...),
# GUEST_PROGRAMS=(NAME ...) (NAME.cc in this folder becomes a command of the guest, and PROGRAM_NAME here),
# GUEST_IMAGE=(...) (more arguments for guest-image),
# RIG_ARGUMENTS=(--device ...) for the emulated host, and a function rig_prepare, which runs on the machine, makes files in
# $GUESTS and may add to RIG_ARGUMENTS.
# OUTSIDE=1, set before sourcing: no emulated host at all, for a test that brings an emulator of its own.
# RIG_ONLY=PATTERN in the environment runs only the cases whose name matches (a shell pattern).
# RIG_VM_LIMIT=SECONDS is how long one guest may take. RIG_KEEP=DIR keeps the consoles and logs of all guests there.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

TEST=$(basename "$0" .sh)
[ -n "${GUEST_MODULES+set}" ] || GUEST_MODULES=()
[ -n "${GUEST_PROGRAMS+set}" ] || GUEST_PROGRAMS=()
[ -n "${GUEST_IMAGE+set}" ] || GUEST_IMAGE=()
[ -n "${RIG_ARGUMENTS+set}" ] || RIG_ARGUMENTS=()
need "$TEST" "$POSTERN"

# Makes all guests on the machine: neither compiler nor network nor cache are wanted in the emulator.
make_guests() {
  local kernel program sources=$ROOT/tests/integration/rig programs=()
  GUESTS=$(mktemp -d /tmp/postern-rig.XXXXXX) || exit 1
  trap 'rm -rf "$GUESTS"' EXIT
  for program in "${GUEST_PROGRAMS[@]}"; do programs+=(--program "$sources/$program.cc=$program"); done
  for kernel in $KERNELS; do
    "$ROOT/tests/rig/guest-image" "$kernel" "${GUEST_MODULES[@]/#/--module=}" --add "$sources/guest=tests" --program "$sources/guest_agent.cc=agent" \
      "${programs[@]}" "${GUEST_IMAGE[@]}" --root-image "$GUESTS/root.img" --root-size 24M > "$GUESTS/$kernel.env" || {
      fail "$TEST" "no guest image for $kernel"
      finish
    }
  done
  if declare -F rig_prepare > /dev/null; then rig_prepare || { fail "$TEST" "its files cannot be made"; finish; }; fi
}
enter_rig() {
  make_guests
  run_in_rig "${RIG_ARGUMENTS[@]}" --env "GUESTS=$GUESTS" --env "RIG_ONLY=${RIG_ONLY:-}" --env RIG_VM_LIMIT \
    ${RIG_KEEP:+--env "RIG_KEEP=$(realpath "$RIG_KEEP")" --out "$RIG_KEEP"}
}
if [ -n "${OUTSIDE:-}" ]; then make_guests; elif [ -z "${RIG:-}" ]; then enter_rig; fi

# Time limits are for a loaded machine of two cores; an idle one needs a quarter.
VM_LIMIT=${RIG_VM_LIMIT:-150}
# What lets a guest's kernel start faster: self-tests and key rings are not what is tested. Cases without it exist too.
QUICK="quiet rcupdate.rcu_expedited=1 lsm=capability audit=0 rodata=off mitigations=off initcall_blacklist=\
load_system_certificate_list,jent_mod_init,init_encrypted,crypto_kdf108_init"
BASE="console=hvc0 panic=-1"
WORK=$(mktemp -d /tmp/rigtest.XXXXXX)
LOGS=${RIG_KEEP:-$WORK}
cd "$WORK" || exit 1

wanted() { # NAME
  # shellcheck disable=SC2254
  case "$1" in ${RIG_ONLY:-*}) return 0 ;; *) return 1 ;; esac
}

use_kernel() { # NAME: sets KERNEL, VMLINUX, INITRD, VERSION, AGENT
  eval "$(cat "$GUESTS/$1.env")"
  AGENT=$PROGRAM_agent
}

# vm_start NAME ARGS...: Postern in the background; NAME.console and NAME.log are its standard output and error. Its standard
# input is the file vm_input, where that is set. It is the current machine until another starts or is chosen.
vm_start() {
  local name=$1
  vm_console="$LOGS/$1.console"
  vm_log="$LOGS/$1.log"
  shift
  "$POSTERN" run "$@" < "${vm_input:-/dev/null}" > "$vm_console" 2> "$vm_log" &
  vm_pid=$!
  vm_begin=$EPOCHREALTIME
  vm_pids[$name]=$vm_pid
  vm_begins[$name]=$vm_begin
}
declare -A vm_pids vm_begins
vm_choose() { # NAME
  vm_console="$LOGS/$1.console"
  vm_log="$LOGS/$1.log"
  vm_pid=${vm_pids[$1]}
  vm_begin=${vm_begins[$1]}
}

process_gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status" 2> /dev/null; }

# thread_states PID: for the log, what a machine that does not end is at, twice
thread_states() {
  local task _
  for _ in 1 2; do
    for task in "/proc/$1/task"/*; do
      echo "#   $(cat "$task/comm"): $(cut -d' ' -f3,14,15 "$task/stat"), $(head -n 1 "$task/stack")"
    done
    sleep 2
  done
}
# vm_wait [SECONDS]: sets vm_code (the exit code, or "none in time") and vm_seconds
vm_wait() {
  if within "${1:-$VM_LIMIT}" process_gone "$vm_pid"; then
    wait "$vm_pid" 2> /dev/null
    vm_code=$?
  else
    vm_code="none in time"
    thread_states "$vm_pid"
    kill -9 "$vm_pid" 2> /dev/null
    wait "$vm_pid" 2> /dev/null
  fi
  vm_seconds=$(awk -v a="$vm_begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
}

# vm_ends NAME CODE: waits, and is a case by itself
vm_ends() {
  vm_wait
  if [ "$vm_code" = "$2" ]; then
    pass "$1 (${vm_seconds} s)"
  else
    fail "$1" "exit code is $vm_code, must be $2"
    vm_details
  fi
}

vm_details() {
  detail "$vm_log"
  detail "$vm_console"
}

# guest_said TEXT: the console of the current guest has it
guest_said() { grep -qaF -- "$1" "$vm_console"; }
# For `within`: it says so, or never will.
said_or_gone() { guest_said "$1" || process_gone "$vm_pid"; }
# wait_for CASE TEXT: until the guest says it; if it never does, CASE has failed and the machine is ended
wait_for() {
  within "$VM_LIMIT" said_or_gone "$2"
  guest_said "$2" && return
  process_gone "$vm_pid" || kill -9 "$vm_pid" 2> /dev/null
  vm_wait 10
  fail "$1" "the guest did not say '$2'; exit code $vm_code after $vm_seconds s"
  vm_details
  return 1
}
# refused NAME CODE TEXT ARGUMENTS...: Postern ends with this exit code and at most three lines, one with the cause
refused() {
  local name=$1 code=$2 text=$3 got
  shift 3
  timeout 60 "$POSTERN" run --console off "$@" > refused.out 2>&1 < /dev/null
  got=$?
  if [ "$got" = "$code" ] && grep -qi -- "$text" refused.out && [ "$(wc -l < refused.out)" -le 3 ]; then
    pass "$name"
  else
    fail "$name" "exit code $got (must be $code), or the cause is not told"
    detail refused.out
  fi
}

# guest_results PREFIX: turns the guest's own "RIG PASS ..." lines into cases
guest_results() {
  local line count=0
  while IFS= read -r line; do
    count=$((count + 1))
    case "$line" in
      "RIG PASS "*) pass "$1: ${line#RIG PASS }" ;;
      "RIG FAIL "*)
        line=${line#RIG FAIL }
        fail "$1: ${line%%: *}" "${line#*: }"
        ;;
    esac
  done < <(tr -d '\r' < "$vm_console" | grep -aoE 'RIG (PASS|FAIL) .*')
  guest_said "RIG END" || fail "$1: the guest's test" "did not come to its end"
  [ "$count" -gt 0 ] || fail "$1: the guest's test" "reported nothing"
}

# -- devices of the host

bdf_of_class() { # CLASS [VENDOR]: the first PCI device of this class
  local device
  for device in /sys/bus/pci/devices/*; do
    [[ $(cat "$device/class") == "$1" && $(cat "$device/vendor") == "${2:-0x}"* ]] && { basename "$device"; return; }
  done
}
driver_of() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }
block_of() { # BDF: the name of its disk
  local disk
  for disk in /sys/block/*; do
    [[ $(readlink -f "$disk") != */"$1"/* ]] || { basename "$disk"; return; }
  done
}
has_disk() { [ -b "/dev/$(block_of "$1")" ]; }
interface_of() { # MAC
  local folder
  for folder in /sys/class/net/*; do
    [[ $(cat "$folder/address") != "$1" ]] || { basename "$folder"; return; }
  done
}

declare -A host_driver # BDF: the driver it has while it is the host's
bind_devices() { # CASE BDF...: to VFIO
  local name=$1 device
  shift
  for device in "$@"; do host_driver[$device]=$(driver_of "$device"); done
  "$POSTERN" bind "$@" > bind.log 2>&1
  expect "$name: bind" "$?: $(for device in "$@"; do driver_of "$device"; done | sort -u)" "0: vfio-pci"
  detail bind.log
}
unbind_devices() { # CASE BDF...: back to the host
  local name=$1 device
  shift
  "$POSTERN" unbind "$@" > bind.log 2>&1
  expect "$name: unbind" $? 0
  detail bind.log
  for device in "$@"; do
    expect "$name: the host's driver again, of $device" "$(driver_of "$device")" "${host_driver[$device]}"
  done
}

figures() { /usr/bin/python3 "$ROOT/tests/integration/rig/figures.py" "$@"; }
# facts [METRICS]: what the log is to say of the current guest and the devices given to it (by bind_devices)
facts() {
  local device
  echo "#   host: Linux $(uname -r)"
  for device in "${!host_driver[@]}"; do
    [ "$(driver_of "$device")" = "${host_driver[$device]}" ] && continue
    echo "#   host: $device $(cat "/sys/bus/pci/devices/$device/vendor"):$(cat "/sys/bus/pci/devices/$device/device")," \
      "driver ${host_driver[$device]}, now $(driver_of "$device")"
  done
  tr -d '\r' < "$vm_console" | grep -aoE 'RIG (DEVICE|INTERRUPTS) .*' | sed 's/^RIG DEVICE/#   guest:/; s/^RIG INTERRUPTS/#   guest: interrupts/'
  [ -z "${1:-}" ] || figures show "$1"
}

# guest_wrote NAME: the checksum the guest reported of what it wrote
guest_wrote() { tr -d '\r' < "$vm_console" | grep -ao "RIG WROTE $1 [0-9a-f]*" | cut -d' ' -f4; }
# nic_peer CASE ADDRESS PORT: the host's end of the guest's nic_traffic, until nic_peers_end
nic_peer() {
  job "$1: tcp: guest to host, the host's end" "$AGENT" recv "tcp:$2:$(($3 + 1))"
  job "$1: tcp: both ways, the host's end" "$AGENT" echo "tcp:$2:$(($3 + 3))"
  "$AGENT" udp-echo "$(($3 + 6))" &
  nic_echoes+=($!)
}
nic_echoes=()
nic_peers_end() {
  jobs_end
  kill "${nic_echoes[@]}" 2> /dev/null
  nic_echoes=()
}

# tap_new NAME ADDRESS/BITS
tap_new() { ip tuntap add "$1" mode tap && ip addr add "$2" dev "$1" && ip link set "$1" up; }

# Background jobs that are cases: job NAME COMMAND..., and at the end jobs_end
job_names=()
job_pids=()
job() {
  local name=$1
  shift
  "$@" > "job-${#job_pids[@]}.log" 2>&1 &
  job_names+=("$name")
  job_pids+=($!)
}
jobs_end() {
  local i
  for i in "${!job_pids[@]}"; do
    if within 30 process_gone "${job_pids[$i]}" && wait "${job_pids[$i]}"; then
      pass "${job_names[$i]}"
    else
      kill "${job_pids[$i]}" 2> /dev/null
      fail "${job_names[$i]}" "$(tail -n 1 "job-$i.log" | tr -d '\r')"
    fi
  done
  job_names=()
  job_pids=()
}
