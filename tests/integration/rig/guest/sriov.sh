# A virtual function of a card of the host: TCP, UDP and pings with another card of the host. sriov.sh is the other side.
. /tests/lib.sh

dmesg | grep igbvf | sed 's/^/# /'
nic_traffic nic "$(argument rig.mac)" 10.80.0.2 10.80.0.1 7100 || the_end
devices
function=$(function_of igbvf)
expect "igbvf: interrupts" "$(cat "/sys/bus/pci/devices/$function"/msi_irqs/* | sort -u)" msix
count=$(interrupts_of "$nic")
echo "RIG INTERRUPTS $(grep -c "$nic" /proc/interrupts) of $nic: $count"
if [ "$count" -gt 0 ]; then pass "igbvf: interrupts came"; else fail "igbvf: interrupts came" "none"; fi
the_end "Tx Unit Hang"
