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

# -- devices of the host

# devices: what the log on the other side is to say of each function that is neither virtio nor a bridge
devices() {
  for function in /sys/bus/pci/devices/*; do
    case "$(cat "$function/vendor") $(cat "$function/class")" in 0x1af4* | *0x06*) continue ;; esac
    driver=none
    [ -e "$function/driver" ] && driver=$(basename "$(readlink "$function/driver")")
    kinds=$(cat "$function"/msi_irqs/* 2> /dev/null | sort -u | tr '\n' ' ')
    echo "RIG DEVICE Linux $(uname -r), $(basename "$function") $(cat "$function/vendor"):$(cat "$function/device"), driver $driver, interrupts ${kinds:-wired or none}"
  done
}
# function_of DRIVER: the address of its first function
function_of() { basename "$(ls -d "/sys/bus/pci/drivers/$1"/0000:* 2> /dev/null | head -n 1)"; }
# interrupts_of PATTERN: how many /proc/interrupts has counted in lines with it
interrupts_of() {
  grep -E -- "$1" /proc/interrupts | awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }'
}
# disk_appears NAME NODE
disk_appears() {
  for _ in $(seq 200); do
    # The node is there a moment before the disk can be read.
    dd if="$2" of=/dev/null bs=4k count=1 2> /dev/null && pass "$1: the driver finds the disk" && return
    sleep 0.1
  done
  fail "$1: the driver finds the disk" "no $2; $(dmesg | tail -n 1)"
  return 1
}
# disk_both_ways NAME NODE SUM HALF: all of it is read, its second half (from HALF MiB on) written and read back
disk_both_ways() {
  disk_appears "$1" "$2" || return
  expect "$1: what the host wrote" "$(dd if="$2" bs=1M 2> /dev/null | md5sum | cut -c1-32)" "$3"
  dd if=/dev/urandom of=/tmp/pattern bs=1M count="$4" 2> /dev/null
  dd if=/tmp/pattern of="$2" bs=1M seek="$4" conv=fsync 2> /dev/null
  echo 3 > /proc/sys/vm/drop_caches
  sum=$(md5sum < /tmp/pattern | cut -c1-32)
  expect "$1: what the guest wrote" "$(dd if="$2" bs=1M skip="$4" count="$4" 2> /dev/null | md5sum | cut -c1-32)" "$sum"
  rm /tmp/pattern
  echo "RIG WROTE $1 $sum"
}
# nic_traffic NAME MAC OWN-ADDRESS HOST-ADDRESS PORT: the host's end are the agents of nic_peer
nic_traffic() {
  nic=
  for _ in $(seq 100); do
    nic=$(interface "$2")
    [ -n "$nic" ] && break
    sleep 0.1
  done
  if [ -z "$nic" ]; then
    fail "$1: the driver finds the card" "no interface $2"
    return 1
  fi
  pass "$1: the driver finds the card"
  ip addr add "$3/24" dev "$nic"
  ip link set "$nic" up
  for _ in $(seq 100); do
    [ "$(cat "/sys/class/net/$nic/carrier" 2> /dev/null)" = 1 ] && break
    sleep 0.1
  done
  expect "$1: link" "$(cat "/sys/class/net/$nic/carrier")" 1
  must "$1: ping" ping -c 3 -W 5 -q "$4"
  must "$1: tcp: guest to host" agent send "tcp:$4:$(($5 + 1))" 2000001
  must "$1: tcp: both ways at once" agent duplex "tcp:$4:$(($5 + 3))" 1000003
  must "$1: udp" agent udp-ping "$4" "$(($5 + 6))" 100 1400
}
# the_end [PATTERN]: nothing like it, and nothing bad, is in the kernel's log; then the power goes off
the_end() {
  bad=$(dmesg | grep -E "BUG:|WARNING:|Call Trace|nobody cared|DMAR${1:+|$1}" | head -n 1)
  if [ -n "$bad" ]; then fail "kernel log" "$bad"; else pass "kernel log has no complaint"; fi
  echo "RIG END"
  poweroff -f
}
