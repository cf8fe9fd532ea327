# Every device at once, on a root file system that is a virtio disk. The other end of each connection is boot.sh.
. /tests/lib.sh

expect "cpus" "$(nproc)" "$(argument rig.cpus)"
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
case "$clock" in kvm-clock | tsc) pass "clock source" ;; *) fail "clock source" "is $clock" ;; esac

# -- entropy
case "$(cat /sys/class/misc/hw_random/rng_current)" in
  virtio_rng*) pass "entropy source" ;;
  *) fail "entropy source" "is $(cat /sys/class/misc/hw_random/rng_current)" ;;
esac
first=$(dd if=/dev/hwrng bs=512 count=16 2> /dev/null | md5sum)
second=$(dd if=/dev/hwrng bs=512 count=16 2> /dev/null | md5sum)
size=$(dd if=/dev/hwrng bs=512 count=16 iflag=fullblock 2> /dev/null | wc -c)
expect "entropy: bytes read" "$size" 8192
if [ "$first" = "$second" ]; then fail "entropy: two reads differ" "$first"; else pass "entropy: two reads differ"; fi

# -- disks: root is ext4 on the first; "data" has a known first half, its second is for us; "fixed" is read-only
data=/dev/$(disk data)
fixed=/dev/$(disk fixed)
expect "disk: size in sectors" "$(cat "/sys/block/${data#/dev/}/size")" 32768
expect "disk: what the host wrote" "$(dd if="$data" bs=1M count=8 2> /dev/null | md5sum | cut -c1-32)" "$(argument rig.sum)"
dd if=/dev/urandom of=/tmp/pattern bs=64k count=64 2> /dev/null
dd if=/tmp/pattern of="$data" bs=64k seek=128 conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
sum=$(md5sum < /tmp/pattern | cut -c1-32)
expect "disk: what the guest wrote" "$(dd if="$data" bs=64k skip=128 count=64 2> /dev/null | md5sum | cut -c1-32)" "$sum"
echo "RIG WROTE $sum"
expect "disk: read-only flag" "$(cat "/sys/block/${fixed#/dev/}/ro")" 1
if dd if=/dev/zero of="$fixed" bs=512 count=1 conv=fsync 2> /dev/null; then
  fail "disk: read-only write" "was accepted"
else
  pass "disk: read-only write is refused"
fi

# -- network and vsock, both ways, all at once with the write load below
nic=$(interface "$(argument rig.mac)")
ip addr add 10.77.0.2/24 dev "$nic"
ip link set "$nic" up
agent udp-echo 7005 &
echoes=$!
agent recv tcp:0.0.0.0:7002 > /dev/null &
serving="$!"
agent echo tcp:0.0.0.0:7004 &
serving="$serving $!"
agent recv vsock:any:8002 > /dev/null &
serving="$serving $!"
agent echo vsock:any:8004 &
serving="$serving $!"
echo "RIG READY"

( # the write load: many files, rewritten, deleted, synced; its checksums are read by the host afterwards
  mkdir /load
  for round in 1 2 3; do
    for i in 1 2 3 4 5 6 7 8 9 10; do
      dd if=/dev/urandom of="/load/$i" bs=4k count=$((i * 8)) 2> /dev/null
    done
    sync
    rm "/load/$round"
  done
  cd /load && md5sum [0-9]* > sums
) &
load=$!

must "ping" ping -c 3 -W 5 -q 10.77.0.1
must "ping: 1400 bytes" ping -c 2 -W 5 -s 1400 -q 10.77.0.1
must "tcp: guest to host" agent send tcp:10.77.0.1:7001 2000001
must "tcp: both ways at once, from the guest" agent duplex tcp:10.77.0.1:7003 1000003
must "udp: guest to host" agent udp-ping 10.77.0.1 7006 100 1400
must "vsock: guest to host" agent send vsock:2:8001 2000001
must "vsock: both ways at once, from the guest" agent duplex vsock:2:8003 1000003
must "vsock: nobody listens on the host" agent refused vsock:2:8999

for pid in $serving; do
  wait "$pid" || fail "guest's end of a connection" "exit code $?"
done
wait "$load"
kill "$echoes" 2> /dev/null

sync
must "root: back to read-only" mount -o remount,ro /
bad=$(dmesg | grep -E 'BUG:|WARNING:|Call Trace|I/O error|EXT4-fs error|soft lockup|rcu.*stall' | head -n 1)
if [ -n "$bad" ]; then fail "kernel log" "$bad"; else pass "kernel log has no complaint"; fi
echo "RIG END"
poweroff -f
