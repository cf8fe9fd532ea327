# A network card of the host, assigned: TCP, UDP and pings with the host, whose own card is on the same wire.
. /tests/lib.sh

nic_traffic nic "$(argument rig.mac)" 10.78.0.2 10.78.0.1 7100 || the_end
devices
wanted=$(argument rig.interrupts) # what /proc/interrupts calls them: PCI-MSIX, PCI-MSI, IO-APIC
kind=$(grep "$nic" /proc/interrupts | head -n 1)
case "$kind" in
  *"$wanted"*) pass "nic: interrupts are $wanted" ;;
  *) fail "nic: interrupts are $wanted" "$kind" ;;
esac
echo "RIG INTERRUPTS $(grep -c "$nic" /proc/interrupts) of $nic: $(interrupts_of "$nic")"
the_end "Tx Unit Hang"
