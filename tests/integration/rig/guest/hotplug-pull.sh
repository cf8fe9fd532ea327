# A disk that vanishes: the kernel notices and the machine goes on. Linux 6.12's virtio-pci then waits for ever for a device
# that is not there to say that it was reset, and with it every orderly shutdown; so this guest ends without one.
. /tests/lib.sh
echo "RIG READY"
appears one && appears two && pass "two disks"
two=$name
echo "RIG BOTH"
vanishes one && pass "a disk that was pulled is gone"
dd if=/dev/urandom of=/tmp/pattern bs=64k count=4 2> /dev/null
dd if=/tmp/pattern of="/dev/$two" bs=64k conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
expect "the other disk works" "$(dd if="/dev/$two" bs=64k count=4 2> /dev/null | md5sum)" "$(md5sum < /tmp/pattern)"
sleep 1
for folder in /proc/[0-9]*; do
  case "$(cat "$folder/comm")" in irq/*pciehp*) sed "s|^|# |" "$folder/stack" ;; esac
done
echo "RIG END"
sleep 1
echo b > /proc/sysrq-trigger
