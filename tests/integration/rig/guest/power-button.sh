# Every disk the host gave, then wait for the host to press the power button.
. /tests/lib.sh
count=$(argument rig.disks)
found=0
for i in $(seq 1 "$count"); do
  name=$(disk "serial-$i")
  [ -n "$name" ] && [ "$(dd if="/dev/$name" bs=16 count=1 2> /dev/null | head -n 1)" = "disk $i" ] && found=$((found + 1))
done
expect "many disks: each has its serial number and its content" "$found" "$count"
echo "RIG READY"
if agent power-button 120; then pass "power button reaches the guest"; else fail "power button" "not seen"; fi
echo "RIG END"
poweroff -f
