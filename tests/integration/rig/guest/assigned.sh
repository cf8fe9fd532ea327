# Devices of the host, assigned, as the arguments name them; assign.sh is the other side.
#   rig.disks=DRIVER:NODE:SUM:HALF,...    disks, see disk_both_ways
#   rig.nics=MAC:OWN-ADDRESS:HOST-ADDRESS:PORT,...
#   rig.kinds=DRIVER:msi|msix,...         what each driver's interrupts are
. /tests/lib.sh

for entry in $(argument rig.disks | tr , ' '); do
  IFS=: read -r driver node sum half << END
$entry
END
  disk_both_ways "$driver" "$node" "$sum" "$half"
done
# MAC addresses have colons; here they are written with dashes.
for entry in $(argument rig.nics | tr , ' '); do
  IFS=: read -r mac own other port << END
$entry
END
  nic_traffic "card at $own" "$(echo "$mac" | tr - :)" "$own" "$other" "$port"
done
devices
for entry in $(argument rig.kinds | tr , ' '); do
  for function in "/sys/bus/pci/drivers/${entry%:*}"/0000:*; do
    expect "${entry%:*}: interrupts" "$(cat "$function"/msi_irqs/* 2> /dev/null | sort -u)" "${entry#*:}"
  done
done
echo "RIG INTERRUPTS $(interrupts_of 'nvme|ahci|eth') of nvme, ahci, eth"
the_end "I/O error|nvme.*timeout|ata.*(timeout|failed command|exception)|Tx Unit Hang"
