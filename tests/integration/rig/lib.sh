# What the tests in the emulated host share. Sourcing it on the machine runs the calling test again inside the rig; from
# there on the code below runs as root on a host of its own, with a real KVM, and may do to it what it likes.
#
# Set before sourcing: KERNELS="6.12-cloud ..." (names for tests/rig/guest-image); where wanted GUEST_MODULES=(nvme ...),
# RIG_ARGUMENTS=(--device ...) for the emulated host, and a function rig_prepare, which runs on the machine, makes files in
# $GUESTS and may add to RIG_ARGUMENTS.
# RIG_ONLY=PATTERN in the environment runs only the cases whose name matches (a shell pattern).
# RIG_VM_LIMIT=SECONDS is how long one guest may take. RIG_KEEP=DIR keeps the consoles and logs of all guests there.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

TEST=$(basename "$0" .sh)
[ -n "${GUEST_MODULES+set}" ] || GUEST_MODULES=()
[ -n "${RIG_ARGUMENTS+set}" ] || RIG_ARGUMENTS=()
need "$TEST" "$POSTERN"

# Makes all guests on the machine: neither compiler nor network nor cache are wanted in the emulator.
enter_rig() {
  local kernel sources=$ROOT/tests/integration/rig
  GUESTS=$(mktemp -d /tmp/postern-rig.XXXXXX) || exit 1
  trap 'rm -rf "$GUESTS"' EXIT
  for kernel in $KERNELS; do
    "$ROOT/tests/rig/guest-image" "$kernel" "${GUEST_MODULES[@]/#/--module=}" --add "$sources/guest=tests" --program "$sources/guest_agent.cc=agent" \
      --root-image "$GUESTS/root.img" --root-size 24M > "$GUESTS/$kernel.env" || {
      fail "$TEST" "no guest image for $kernel"
      finish
    }
  done
  if declare -F rig_prepare > /dev/null; then rig_prepare || { fail "$TEST" "its files cannot be made"; finish; }; fi
  run_in_rig "${RIG_ARGUMENTS[@]}" --env "GUESTS=$GUESTS" --env "RIG_ONLY=${RIG_ONLY:-}" --env RIG_VM_LIMIT \
    ${RIG_KEEP:+--env "RIG_KEEP=$(realpath "$RIG_KEEP")" --out "$RIG_KEEP"}
}
[ -n "${RIG:-}" ] || enter_rig

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

# vm_start NAME ARGS...: Postern in the background; NAME.console and NAME.log are its standard output and error
vm_start() {
  vm_console="$LOGS/$1.console"
  vm_log="$LOGS/$1.log"
  shift
  "$POSTERN" run "$@" < /dev/null > "$vm_console" 2> "$vm_log" &
  vm_pid=$!
  vm_begin=$EPOCHREALTIME
}

process_gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status" 2> /dev/null; }

# vm_wait [SECONDS]: sets vm_code (the exit code, or "none in time") and vm_seconds
vm_wait() {
  if within "${1:-$VM_LIMIT}" process_gone "$vm_pid"; then
    wait "$vm_pid" 2> /dev/null
    vm_code=$?
  else
    vm_code="none in time"
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
