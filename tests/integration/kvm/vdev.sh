#!/bin/bash
# A virtual DSA (--vdev) under the built-in guest's own driver: commands, every operation, errors, interrupts, resets, and thousands
# of descriptors of which none is lost; beside it what Postern counted: exits of the portals, trapped registers. Any KVM will do.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"
TEST=vdev
need $TEST "$POSTERN"
if [ -z "${RIG:-}" ] && ! missing=$("$ROOT/scripts/kvm-here"); then
  echo "# not on this machine: ${missing//$'\n'/; }: in the emulated host"
  run_in_rig
fi
POSTERN=$(realpath "$POSTERN")
LIMIT=300
WORK=$(mktemp -d /tmp/postern-vdev.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 1

# drives NAME ROWS KEYS DESCRIPTORS ARGUMENTS...: the guest's rows and Postern's are all there and right
drives() {
  local name=$1 rows=$2 keys=$3 descriptors=$4 got
  shift 4
  timeout $LIMIT "$ROOT/scripts/demo-vdev" "$POSTERN" --keys "$keys" --descriptors "$descriptors" "$@" < /dev/null > out 2> log
  got=$?
  expect "$name: exit code" $got 0
  expect "$name: rows that are right" "$(grep -cE '^(dsa|dsa-ops|dsa-err|dsa-run|vdev) .* ok ' out)" "$rows"
  if [ $got != 0 ]; then detail out; fi
  detail log
  grep -E '^(dsa-run|vdev) ' out | sed "s/^/#   $name: /"
}

drives "profile ro, polled" 6 portal=polled 20000
# By stores of 8 bytes no KVM has an exit for a mapped portal.
drives "profile ro, polled, plain stores" 6 portal=polled 20000 --stores 8
expect "profile ro, polled, plain stores: stores that KVM left to Postern" "$(grep -c 'left to Postern' out)" 0
drives "profile cfg, polled, two queues" 6 portal=polled,profile=cfg,wqs=2 4000
drives "profile ro, trapped" 6 portal=trapped 400
# portal=auto is trapped then.
drives "profile cfg, two processors" 6 profile=cfg,wqs=2 400 --cpus 2
drives "profile cfg, polled, four queues, two engines" 6 portal=polled,profile=cfg,wqs=4,engines=2 1000

# hosted NAME SERVED-KEYS KEYS: Postern as the driver of a whole DSA, which is another Postern's virtual one, on a socket
hosted() {
  local name=$1 server
  "$POSTERN" vdev serve --socket dsa.sock --type "dsa,profile=cfg,$2" > served.log 2>&1 &
  server=$!
  within 20 test -S dsa.sock || { fail "$name" "it is not served"; detail served.log; return; }
  drives "$name" 6 "backend=vfio,socket=dsa.sock,$3" 400
  kill -TERM $server
  wait $server
  expect "$name: the server's end" $? 0
}
hosted "on a served DSA, trapped" wqs=2 portal=trapped
hosted "on a served DSA, configured by the guest, two queues" wqs=4 portal=trapped,profile=cfg,wqs=2
hosted "on a served DSA, direct" wqs=2,portal=polled portal=direct

# refused NAME CODE CAUSE ARGUMENTS...: `vdev serve` ends at once with that code and says why; there is no socket
refused() {
  local name=$1 code=$2 cause=$3 got
  shift 3
  timeout 20 "$POSTERN" vdev serve "$@" < /dev/null > out 2> log
  got=$?
  expect "serve: $name: exit code" $got "$code"
  grep -qF -- "$cause" log
  expect "serve: $name: says why" $? 0
  [ "$got" = "$code" ] || detail log
}
touch file
refused "no socket" 2 "give --socket PATH"
refused "a file in the socket's place" 2 "exists and is not a socket" --socket file
refused "a folder that is not there" 1 "check that the directory exists" --socket missing/dsa.sock
refused "a path too long for a socket" 2 "choose a shorter path" --socket "$(printf 'a%.0s' {1..108})"
refused "another type" 2 "--type.type: \"sdxi\" is none of: dsa" --socket dsa.sock --type sdxi
refused "a key that is none" 2 "no such field" --socket dsa.sock --type dsa,colour=red
refused "no queues" 2 "--type.wqs: \"0\" is not a whole number from 1 to 8" --socket dsa.sock --type dsa,wqs=0
refused "too many queues" 2 "from 1 to 8" --socket dsa.sock --type dsa,wqs=9
refused "a polled queue that could lose descriptors" 2 "use wq-size=63" --socket dsa.sock --type dsa,portal=polled,wq-size=64
refused "pages of a device there is none of" 2 "portal=auto" --socket dsa.sock --type dsa,portal=direct
refused "a back end of a machine's own guest" 2 "backend=engine" --socket dsa.sock --type dsa,backend=cdev,path=/dev/dsa/wq0.0
refused "metrics that cannot be written" 2 "cannot write metrics" --socket dsa.sock --metrics missing/metrics.json
[ ! -e dsa.sock ]
expect "serve: what was refused leaves no socket" $? 0

# One server a socket; what a killed one left is replaced; each ends in order by either signal, with its last counters.
serve_until() { # SIGNAL
  rm -f metrics.json
  "$POSTERN" vdev serve --socket dsa.sock --metrics metrics.json > served.log 2>&1 &
  server=$!
  within 20 grep -q '^serving' served.log || detail served.log
  [ "$1" != TERM ] || refused "a socket another one listens on" 1 "another process listens there" --socket dsa.sock
  kill -"$1" $server
  wait $server 2> /dev/null
  ended=$?
}
serve_until KILL
expect "serve: a killed server leaves its socket" "$ended $([ -S dsa.sock ]; echo $?)" "137 0"
for signal in TERM INT; do
  serve_until $signal
  expect "serve: SIG$signal: exit code, and its socket is gone" "$ended $([ -e dsa.sock ]; echo $?)" "0 1"
  expect "serve: SIG$signal: the last counters are written" "$(grep -c '^{"vdev0":{.*}$' metrics.json)" 1
done

# Two CPUs and a polled portal: refused, not lost.
"$POSTERN" run --memory 64M --cpus 2 --vdev type=dsa,portal=polled < /dev/null > out 2> log
expect "two processors, polled: is refused" $? 2
# The guest says so when there is no such device, and the machine's exit code does.
timeout $LIMIT "$POSTERN" run --memory 64M --cmdline "probe.only=dsa probe.require=dsa" < /dev/null > out 2> log
expect "no virtual device: exit code" $? 3
expect "no virtual device: the guest's row" "$(grep -c '^dsa .*FAILED' out)" 1
finish
