# An NVMe disk of the host, assigned: read whole, its second half written, read back.
. /tests/lib.sh

disk=/dev/nvme0n1
disk_both_ways nvme $disk "$(argument rig.sum)" "$(argument rig.half)" || the_end
# Random reads, many at once, so that interrupts and doorbells count.
readers=
for i in 1 2 3 4; do
  (for j in $(seq 50); do dd if=$disk of=/dev/null bs=4k count=8 skip=$((i * 1000 + j * 37)) iflag=direct 2> /dev/null || exit 1; done) &
  readers="$readers $!"
done
bad=0
for pid in $readers; do wait "$pid" || bad=1; done
expect "nvme: reads at once" "$bad" 0
devices
echo "RIG INTERRUPTS $(grep -c nvme /proc/interrupts) vectors: $(interrupts_of nvme)"
the_end "I/O error|nvme.*timeout"
