# An NVMe disk of the host, assigned, read in two halves of a conversation: the other side, assign.sh, takes the counters while
# this one waits for a line on the console.
. /tests/lib.sh
disk=/dev/nvme0n1
disk_appears nvme $disk || the_end
count=$(argument rig.reads)
# Once for all that is set up at the first read.
dd if=$disk of=/dev/null bs=4k count=64 iflag=direct 2> /dev/null
sleep 1
echo "RIG INTERRUPTS before: $(interrupts_of nvme)"
echo "RIG BEFORE"
read -r _
before=$(interrupts_of nvme)
dd if=$disk of=/dev/null bs=4k count="$count" iflag=direct 2> /tmp/dd
taken=$(($(interrupts_of nvme) - before))
echo "RIG AFTER"
read -r _
expect "reads" "$(sed -n 's/+0 records in//p' /tmp/dd)" "$count"
# Each read is a command of its own that the driver waits for.
if [ "$taken" -ge "$count" ]; then pass "an interrupt for each read"; else fail "an interrupt for each read" "$taken for $count"; fi
echo "RIG INTERRUPTS $taken for $count reads"
devices
the_end "I/O error|nvme.*timeout"
