# Disks that come and go: hotplug.sh is the other side.
. /tests/lib.sh
rounds=$(argument rig.rounds)
must "pciehp has both slots" test -d /sys/bus/pci/slots/1 -a -d /sys/bus/pci/slots/2
dmesg | grep -q "OS now controls.*PCIeHotplug" && pass "the OS was granted native hot plug" ||
  fail "the OS was granted native hot plug" "$(dmesg | grep _OSC | tail -n 1)"

echo "RIG READY"
for round in $(seq 1 "$rounds"); do
  appears "hot-$round" || break
  echo "RIG FOUND $round $(md5sum < "/dev/$name" | cut -c1-32)"
  dd if=/dev/urandom of=/tmp/pattern bs=64k count=16 2> /dev/null
  dd if=/tmp/pattern of="/dev/$name" bs=64k seek=16 2> /dev/null
  echo "RIG USED $round $(md5sum < /tmp/pattern | cut -c1-32)"
  vanishes "hot-$round" || break
  echo "RIG GONE $round"
done
expect "rounds" "$round" "$rounds"
appears one && appears two && pass "two disks at once"
expect "errors of the port driver" "$(dmesg | grep -c 'pciehp.*\(Cannot\|Failed\|failed\|No link\|Power fault\)')" 0
echo "RIG BOTH"
if agent power-button 120; then pass "power button reaches the guest"; else fail "power button" "not seen"; fi
dmesg | grep -i "pciehp" | tail -n 8 | sed 's/^/# /'
echo "RIG END"
poweroff -f
