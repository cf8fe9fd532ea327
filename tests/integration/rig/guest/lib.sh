# Sourced by the tests that run in a guest. Results go to the console as "RIG PASS name" and "RIG FAIL name: reason".
argument() {
  for word in $(cat /proc/cmdline); do
    case "$word" in "$1="*) echo "${word#*=}" ;; esac
  done
}
pass() { echo "RIG PASS $1"; }
fail() { echo "RIG FAIL $1: $2"; }
# expect NAME ACTUAL EXPECTED
expect() { if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "is '$2', must be '$3'"; fi; }
# must NAME COMMAND...: succeeds
must() {
  local name=$1 out
  shift
  if out=$("$@" 2>&1); then pass "$name"; else fail "$name" "$(echo "$out" | tail -n 1)"; fi
}
# disk SERIAL: the name (vda, ...) of the virtio disk with this serial number
disk() {
  for folder in /sys/block/vd*; do
    [ "$(cat "$folder/serial" 2>/dev/null)" = "$1" ] && basename "$folder"
  done
}
# appears SERIAL: waits for the disk and sets name
appears() {
  for _ in $(seq 1 600); do
    name=$(disk "$1")
    [ -n "$name" ] && [ -b "/dev/$name" ] && return
    sleep 0.1
  done
  fail "disk $1" "did not appear"
  return 1
}
# vanishes SERIAL
vanishes() {
  for _ in $(seq 1 600); do
    [ -z "$(disk "$1")" ] && return
    sleep 0.1
  done
  fail "disk $1" "did not vanish"
  return 1
}
# interface MAC: the name of the interface with this address
interface() {
  for folder in /sys/class/net/*; do
    [ "$(cat "$folder/address")" = "$1" ] && basename "$folder"
  done
}
