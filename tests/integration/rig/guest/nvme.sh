# An NVMe disk of the host, assigned: read whole, its second half written, read back.
. /tests/lib.sh

disk=
for _ in $(seq 100); do
  [ -b /dev/nvme0n1 ] && disk=/dev/nvme0n1 && break
  sleep 0.1
done
if [ -z "$disk" ]; then
  fail "nvme: the driver finds the disk" "no /dev/nvme0n1; $(dmesg | grep -i nvme | tail -n 1)"
  echo "RIG END"
  poweroff -f
fi
pass "nvme: the driver finds the disk"
half=$(argument rig.half) # in MiB
expect "nvme: what the host wrote" "$(dd if=$disk bs=1M 2> /dev/null | md5sum | cut -c1-32)" "$(argument rig.sum)"
dd if=/dev/urandom of=/tmp/pattern bs=1M count="$half" 2> /dev/null
dd if=/tmp/pattern of=$disk bs=1M seek="$half" conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
sum=$(md5sum < /tmp/pattern | cut -c1-32)
expect "nvme: what the guest wrote" "$(dd if=$disk bs=1M skip="$half" count="$half" 2> /dev/null | md5sum | cut -c1-32)" "$sum"
echo "RIG WROTE $sum"
# Random reads, many at once, so that interrupts and doorbells count.
readers=
for i in 1 2 3 4; do
  (for j in $(seq 50); do dd if=$disk of=/dev/null bs=4k count=8 skip=$((i * 1000 + j * 37)) iflag=direct 2> /dev/null || exit 1; done) &
  readers="$readers $!"
done
bad=0
for pid in $readers; do wait "$pid" || bad=1; done
expect "nvme: reads at once" "$bad" 0
echo "RIG INTERRUPTS $(grep -c nvme /proc/interrupts) vectors: $(grep nvme /proc/interrupts | awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum }')"
bad=$(dmesg | grep -E 'BUG:|WARNING:|Call Trace|I/O error|nvme.*timeout|DMAR' | head -n 1)
if [ -n "$bad" ]; then fail "kernel log" "$bad"; else pass "kernel log has no complaint"; fi
echo "RIG END"
poweroff -f
