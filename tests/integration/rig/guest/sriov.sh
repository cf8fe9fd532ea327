# A virtual function of a card of the host: TCP, UDP and pings with another card of the host. sriov.sh is the other side.
. /tests/lib.sh

nic_traffic nic "$(argument rig.mac)" 10.80.0.2 10.80.0.1 7100
devices
function=$(function_of igbvf)
expect "igbvf: interrupts" "$(cat "/sys/bus/pci/devices/$function"/msi_irqs/* | sort -u)" msix
wired=$(interrupts_of "$(interface "$(argument rig.mac)")")
echo "RIG INTERRUPTS $wired of igbvf"
if [ "$wired" -gt 0 ]; then pass "igbvf: interrupts came"; else fail "igbvf: interrupts came" "none"; fi
the_end "Tx Unit Hang"
