# A network card of the host, assigned: TCP, UDP and pings with the host, whose own card is on the same wire.
. /tests/lib.sh

nic=
for _ in $(seq 100); do
  nic=$(interface "$(argument rig.mac)")
  [ -n "$nic" ] && break
  sleep 0.1
done
if [ -z "$nic" ]; then
  fail "nic: the driver finds the card" "no interface $(argument rig.mac)"
  echo "RIG END"
  poweroff -f
fi
pass "nic: the driver finds the card"
ip addr add 10.78.0.2/24 dev "$nic"
ip link set "$nic" up
for _ in $(seq 100); do
  [ "$(cat "/sys/class/net/$nic/carrier" 2> /dev/null)" = 1 ] && break
  sleep 0.1
done
expect "nic: link" "$(cat "/sys/class/net/$nic/carrier")" 1
must "nic: ping" ping -c 3 -W 5 -q 10.78.0.1
must "nic: tcp: guest to host" agent send tcp:10.78.0.1:7101 2000001
must "nic: tcp: both ways at once" agent duplex tcp:10.78.0.1:7103 1000003
must "nic: udp" agent udp-ping 10.78.0.1 7106 100 1400
wanted=$(argument rig.interrupts) # what /proc/interrupts calls them: PCI-MSIX, PCI-MSI, IO-APIC
kind=$(grep "$nic" /proc/interrupts | head -n 1)
case "$kind" in
  *"$wanted"*) pass "nic: interrupts are $wanted" ;;
  *) fail "nic: interrupts are $wanted" "$kind" ;;
esac
bad=$(dmesg | grep -E 'BUG:|WARNING:|Call Trace|nobody cared|Tx Unit Hang|DMAR' | head -n 1)
if [ -n "$bad" ]; then fail "kernel log" "$bad"; else pass "kernel log has no complaint"; fi
echo "RIG END"
poweroff -f
