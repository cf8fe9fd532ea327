# A virtual function that its host takes away while it is in use: sriov.sh is the other side.
. /tests/lib.sh

mac=$(argument rig.mac)
nic=
for _ in $(seq 100); do
  nic=$(interface "$mac")
  [ -n "$nic" ] && break
  sleep 0.1
done
[ -n "$nic" ] || { fail "nic: the driver finds the card" "no interface $mac"; the_end; }
vf=$(function_of igbvf)
ip addr add 10.80.0.2/24 dev "$nic"
ip link set "$nic" up
must "nic: ping" ping -c 3 -W 5 -q 10.80.0.1
devices
echo "RIG READY"
for _ in $(seq 600); do
  ping -c 1 -W 1 -q 10.80.0.1 > /dev/null || break
  sleep 0.1
done
if ping -c 1 -W 2 -q 10.80.0.1 > /dev/null; then fail "nic: it is gone" "it still answers"; else pass "nic: it is gone"; fi
expect "config space of what is gone" "$(hexdump -n 4 -e '1/4 "%08x"' "/sys/bus/pci/devices/$vf/config")" ffffffff
echo "RIG END"
poweroff -f
