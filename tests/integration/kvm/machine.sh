#!/bin/bash
# The monitor on a KVM: the built-in guest on every device and both transports, hostile drivers, the ways a machine ends, the
# command line. The guests are our own, so any KVM will do, one that emulates too. Where this machine has none, all of it runs in
# the emulated host, and with it the unit tests that need a KVM: KVM_TESTS, paths of built programs.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"
TEST=machine
BIN=${POSTERN_BIN_DIR:-$ROOT/bazel-bin}
EMBED=$BIN/examples/embed/embed
KVM_TESTS=${KVM_TESTS:-src/kvm/kvm_test}
need $TEST "$POSTERN"
need $TEST "$EMBED"
if [ -z "${RIG:-}" ] && ! missing=$("$ROOT/scripts/kvm-here"); then
  for program in $KVM_TESTS; do need $TEST "$BIN/$program"; done
  echo "# not on this machine: ${missing//$'\n'/; }: in the emulated host"
  run_in_rig --env "KVM_TESTS=$KVM_TESTS"
fi
POSTERN=$(realpath "$POSTERN")
if [ -n "${RIG:-}" ]; then
  for program in $KVM_TESTS; do doctest_cases "$program" "$BIN/$program"; done
fi

# Seconds that a machine, or a step of it, may take: for the emulated host, on a loaded machine.
LIMIT=200
WORK=$(mktemp -d /tmp/postern-kvm.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 1
"$ROOT/tests/integration/kvm/tiny_guest.py" .

# ends NAME CODE COMMAND...: runs it and compares the exit code; output in out and log
ends() {
  local name=$1 code=$2 got
  shift 2
  timeout $LIMIT "$@" < /dev/null > out 2> log
  got=$?
  if [ "$got" = "$code" ]; then
    pass "$name"
  else
    fail "$name" "exit code $got, must be $code"
    detail out
    detail log
    return 1
  fi
}
says() { # NAME FILE TEXT
  if grep -qF -- "$3" "$2"; then pass "$1"; else fail "$1" "does not say '$3'"; detail "$2"; fi
}
is_json() { mkdir -p json && cp "$2" "json/$1"; } # NAME FILE: one process looks at all of them, at the end
gone() { ! kill -0 "$1" 2> /dev/null; }

# --- the built-in guest ---
for transport in pci mmio; do
  ends "probe: every device by $transport" 0 "$ROOT/scripts/demo-guest" "$POSTERN" --transport $transport --metrics metrics.$transport
  says "probe: nothing failed by $transport" out " 0 failed"
  is_json "metrics by $transport are JSON" metrics.$transport
done
ends "probe: 32 vCPUs" 0 "$POSTERN" run --cpus 32 --memory 128M
ends "probe: queues spread over two I/O threads" 0 "$ROOT/scripts/demo-guest" "$POSTERN" --io-threads 2
truncate -s 8M disk.img
ends "probe: RAM above 4 GiB" 0 "$POSTERN" run --memory 5G --disk path=disk.img
ends "probe: shared memory" 0 "$POSTERN" run --memory 64M,shared --disk path=disk.img,engine=sync
ends "probe: a read-only disk" 0 "$POSTERN" run --memory 64M --disk path=disk.img,readonly
ends "probe: failing rows end in a reset" 3 "$POSTERN" run --memory 64M --cmdline probe.require=blk
ends "embed: the library's example runs the built-in guest" 0 "$EMBED"

cat > vm.json << 'JSON'
{"memory": {"size": "64M"}, "cpus": 1, "disks": [{"path": "disk.img", "id": "root"}], "console": {"mode": "file", "path": "console.log"}}
JSON
ends "config file: a machine from it, flags winning" 0 "$POSTERN" run --config vm.json --cpus 2
says "config file: its console was used, and the flag's vCPUs" console.log "2 vCPUs"
ends "dry run: runs nothing" 0 "$POSTERN" run --config vm.json --dry-run
says "dry run: prints the machine" out "1af4:1042"

# --- hostile drivers: the monitor neither ends nor stalls, whatever they do ---
for transport in pci mmio; do
  for seed in 1 2; do
    truncate -s 8M disk.img
    POSTERN_DEMO_CMDLINE="probe.mode=hostile probe.seed=$seed probe.ops=150" \
      ends "hostile driver $seed by $transport" 0 "$ROOT/scripts/demo-guest" "$POSTERN" --transport $transport
  done
done

# --- ends ---
ends "triple fault: exit code" 4 "$POSTERN" run --kernel triple-fault.elf --memory 64M
where="at rip 0x2000"
# KVM on AMD processors has reset the vCPU by then.
[ ! -d /sys/module/kvm_amd ] || where="where is not known"
says "triple fault: is told, and where" log "$where"
"$POSTERN" doctor --json > doctor.json
is_json "doctor --json is JSON" doctor.json
kernels=$("$POSTERN" doctor | sed -n 's/^guest kernels *\([a-z]*\) .*/\1/p')
expect "doctor: says whether guest kernels run" "${kernels/missing/ok}" ok
if [ "$kernels" = missing ]; then
  ends "a KVM that only emulates: exit code" 4 "$POSTERN" run --kernel cmpxchg16b.elf --memory 64M
  says "a KVM that only emulates: the instruction is shown" log "f0 48 0f c7 0c 25"
  says "a KVM that only emulates: is told in plain words" log "cannot run guest kernels at all"
fi

# The threads that are there change from try to try, so the pattern must be expanded in each.
has_vcpu() { grep -qs vcpu0 "/proc/$vm/task/"*/comm; }
# background ARGS...: sets vm
background() {
  "$POSTERN" run --memory 64M "$@" < /dev/null > out 2> log &
  vm=$!
  within $LIMIT has_vcpu || fail "a machine in the background: $*" "starts no vCPU"
}
background --kernel spin.elf --shutdown-timeout 1
kill -TERM $vm
within $LIMIT gone $vm
wait $vm
expect "SIGTERM: a guest that does not listen is ended after the timeout" $? 143
background --kernel idle.elf
kill -TERM $vm
sleep 0.3
kill -0 $vm 2> /dev/null
expect "SIGTERM: the first one waits for the guest" $? 0
kill -TERM $vm
within $LIMIT gone $vm
wait $vm
expect "SIGTERM: the second one ends it" $? 143
background --kernel storm.elf --metrics storm.json
sleep 0.5
kill -USR1 $vm
within $LIMIT test -s storm.json
expect "SIGUSR1: writes the metrics of a busy machine" $? 0
kill -HUP $vm
within $LIMIT gone $vm
wait $vm
expect "SIGHUP: ends it" $? 129

# --- hot-plug slots and the control socket, with guests that have no hot-plug driver ---
ends "probe: with hot-plug slots" 0 "$POSTERN" run --memory 64M --hotplug-ports 3 --disk path=disk.img
says "probe: sees the root ports" out "7 functions"
background --kernel spin.elf --hotplug-ports 1 --control ctl.sock
ctl() { "$POSTERN" ctl ctl.sock "$@" > ctl.out 2> ctl.log; }
within $LIMIT test -S ctl.sock
truncate -s 1M hot.img
ctl list
expect "ctl list: exit code" $? 0
says "ctl list: free slots" ctl.out "free slots: 1"
ctl add-device disk,path=hot.img,id=hot
expect "ctl add-device: exit code" $? 0
ctl list
says "ctl list: the added disk" ctl.out "slot 1"
ctl add-device disk,path=hot.img
expect "ctl add-device: no slot is left" $? 2
ctl remove-device hot --timeout 1
expect "ctl remove-device: a guest that does not answer" $? 1
says "ctl remove-device: says so" ctl.log "has not released 'hot' within 1 s"
ctl list
says "ctl list: a disk that is asked to go" ctl.out "slot 1, leaving"
ctl metrics --json
is_json "ctl metrics --json is JSON" ctl.out
says "ctl metrics: the press of the button" ctl.out '"port_button_presses":1'
ctl remove-device hot --force
expect "ctl remove-device --force: needs no guest" $? 0
ctl add-device disk,path=hot.img,id=hot
expect "ctl add-device: into the slot that was pulled" $? 0
ctl remove-device hot --timeout 1
ctl dance
expect "ctl: an unknown command" $? 2
ctl list --bogus
expect "ctl: an unknown flag" $? 2
kill -HUP $vm
within $LIMIT gone $vm
wait $vm
expect "a machine with a disk that is asked to go ends" $? 129
ctl list
expect "ctl: no machine there" $? 1
expect "the control socket is removed" "$(ls ctl.sock 2> /dev/null)" ""

# --- kill -9 leaves nothing ---
ip link show postern-k9 > /dev/null 2>&1 && ip link del postern-k9
unshare --net bash -c '
  truncate -s 4M k9.img
  for round in 1 2; do
    "$0" run --memory 64M --kernel spin.elf --disk path=k9.img --net tap=k9 --vsock cid=3,socket=k9.sock < /dev/null &
    vm=$!
    for _ in $(seq 1000); do [ -S k9.sock ] && grep -qs vcpu0 /proc/$vm/task/*/comm && break; sleep 0.1; done
    [ -S k9.sock ] || exit 10
    kill -9 $vm
    wait $vm
    [ ! -e /sys/class/net/k9 ] || exit 11
  done' "$POSTERN" > k9.log 2>&1
expect "kill -9: no TAP left, disk lock and socket path taken over by the next" $? 0

# --- bad input: one cause, one next step, the documented code ---
refused() { # NAME CODE ARGS...
  local name="bad input: $1" code=$2 got
  shift 2
  timeout $LIMIT "$POSTERN" run "$@" < /dev/null > out 2> log
  got=$?
  if [ "$got" = "$code" ] && [ "$(wc -l < log)" -le 2 ] && grep -q "^postern: " log; then
    pass "$name"
  else
    fail "$name" "exit code $got (must be $code), or not one cause and one next step"
    detail log
  fi
}
head -c 100000 /dev/urandom > random
: > empty
echo '{"cpus": ' > broken.json
refused "an unknown flag" 2 --kernle x
refused "a flag without its value" 2 --kernel
refused "a missing kernel" 2 --kernel nowhere
refused "a random kernel" 2 --kernel random
refused "an empty kernel" 2 --kernel empty
refused "a folder as kernel" 2 --kernel /
refused "an initrd for the built-in guest" 2 --initrd random
refused "a missing initrd" 2 --kernel idle.elf --initrd nowhere
refused "a missing configuration" 2 --config nowhere
refused "a broken configuration" 2 --config broken.json
refused "a missing disk" 2 --disk path=nowhere
refused "a folder as disk" 2 --disk path=/
refused "an empty disk" 2 --disk path=empty
refused "a disk in use" 2 --disk path=disk.img --disk path=disk.img
refused "no vCPU" 2 --cpus 0
refused "too many vCPUs" 2 --cpus 5000
refused "no memory" 2 --memory 0
refused "memory that is no size" 2 --memory lots
refused "memory beyond the layout" 2 --memory 64T
refused "too many devices" 2 --transport mmio $(for i in $(seq 20); do echo --disk path=d$i; done)
refused "hot-plug slots without PCI" 2 --transport mmio --hotplug-ports 1
refused "more slots than the bus has" 2 --hotplug-ports 30
refused "a control socket in no folder" 1 --control nowhere/ctl
refused "a reserved CID" 2 --vsock cid=2,socket=s
refused "a vsock path that is too long" 2 --vsock "cid=3,socket=$(head -c 200 /dev/zero | tr '\0' x)"
refused "a MAC address that is none" 2 --net tap=t0,mac=hello
refused "two users of standard output" 2 --serial stdio
refused "a log file in no folder" 2 --log-file nowhere/log
refused "a metrics file in no folder" 2 --metrics nowhere/m
refused "huge pages that are not reserved" 1 --memory 1G,hugepages=1G
expect "bad input: nothing half-made is left" "$(ls | grep -c -E '^(s|nowhere)$')" 0

cp "$POSTERN" postern-copy && chmod 755 postern-copy "$WORK"
ends "no permission for /dev/kvm: exit code" 1 setpriv --reuid 65534 --regid 65534 --clear-groups ./postern-copy run --memory 64M
says "no permission for /dev/kvm: is told" log "no permission to use /dev/kvm"
ends "no /dev/kvm: exit code" 1 unshare --mount sh -c 'mount -t tmpfs none /dev && exec "$0" run --memory 64M' "$POSTERN"
says "no /dev/kvm: is told" log "no /dev/kvm"

# A full host file system: the guest sees an I/O error in its row, the monitor lives to tell.
if unshare --mount bash -c 'mkdir full && mount -t tmpfs -o size=8k none full && truncate -s 16M full/disk.img &&
    exec timeout "$1" "$0" run --memory 64M --disk path=full/disk.img' "$POSTERN" $LIMIT < /dev/null > out 2> log; then
  fail "a full disk: the guest hears of it" "its table passed"
else
  expect "a full disk: the guest hears of it, and the monitor goes on" "$? $(grep -c '^blk.*FAILED' out)" "3 1"
fi
/usr/bin/python3 - json << 'PYTHON' || failures=$((failures + 1))
import json, os, sys
code = 0
for name in sorted(os.listdir(sys.argv[1])):
    try:
        with open(os.path.join(sys.argv[1], name), encoding="utf-8") as file:
            json.load(file)
        print(f"PASS {name}")
    except ValueError as error:
        print(f"FAIL {name}: {error}")
        code = 1
sys.exit(code)
PYTHON
finish
