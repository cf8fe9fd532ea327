# The host's file behind the disk runs out of space: the guest sees an error, and goes on. Then it reboots.
. /tests/lib.sh
disk=/dev/$(disk small)
if dd if=/dev/zero of="$disk" bs=64k seek=1 count=511 conv=fsync 2> /dev/null; then
  fail "a full host disk" "the write was reported as done"
else
  pass "a full host disk is an I/O error in the guest"
fi
echo 3 > /proc/sys/vm/drop_caches
expect "the disk still reads afterwards" "$(dd if="$disk" bs=16 count=1 2> /dev/null | head -n 1)" "first line"
echo "RIG END"
reboot -f
