#!/bin/bash
# A virtual function of a network card: the host makes it on an igb, which its own driver keeps, and gives it to a guest, whose
# igbvf drives it. Needs QEMU 10 (run by ./check --long). The card's cable ends at a card of the host.
KERNELS="6.12"
GUEST_MODULES=("?igbvf")
VF_MAC=52:54:00:80:00:03
HOST_NIC_MAC=52:54:00:80:00:01
# QEMU 10.0 maps a virtual function's BARs without the upper half of their address: with 36 address bits they lie below 4 GiB.
# shellcheck disable=SC2054 # the commas are QEMU's
RIG_ARGUMENTS=(--qemu 10 --qemu-arg=-global --qemu-arg=max-x86_64-cpu.phys-bits=36 --module vfio-pci --module virtio_net --module igb --module igbvf
  --qemu-arg=-netdev --qemu-arg=hubport,id=n0,hubid=0 --qemu-arg=-netdev --qemu-arg=hubport,id=n1,hubid=0
  --device "virtio-net-pci,netdev=n0,mac=$HOST_NIC_MAC" --device pcie-root-port,id=rp1,slot=1
  --device "igb,netdev=n1,mac=52:54:00:80:00:02,bus=rp1")
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

card=$(bdf_of_class 0x020000 0x8086)
[ -n "$card" ] || { fail "$TEST" "the emulated host has no igb"; finish; }
folder=/sys/bus/pci/devices/$card
host_nic=$(interface_of "$HOST_NIC_MAC")
ip addr add 10.80.0.1/24 dev "$host_nic"
ip link set "$host_nic" up
interface=$(basename "$folder"/net/*)
ip link set "$interface" up
echo "#   host: $card $(cat "$folder/vendor"):$(cat "$folder/device"), driver $(driver_of "$card"), $(cat "$folder/sriov_totalvfs") virtual functions at most"

make_function() {
  echo 1 > "$folder/sriov_numvfs" || return
  function=$(basename "$(readlink "$folder/virtfn0")")
  ip link set "$interface" vf 0 mac "$VF_MAC"
}
make_function
expect "one virtual function is made" "$? $(cat "$folder/sriov_numvfs")" "0 1"
expect "its group holds nothing else" "$(ls "/sys/bus/pci/devices/$function/iommu_group/devices")" "$function"

case_function() { # NAME
  local name=$1
  use_kernel 6.12
  "$POSTERN" doctor --device "$function" > doctor.log 2>&1
  detail doctor.log
  bind_devices "$name" "$function"
  expect "$name: the card itself stays the host's" "$(driver_of "$card")" igb
  nic_peer "$name" 10.80.0.1 7100
  vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M --device "host=$function" --metrics metrics.json \
    --cmdline "$BASE $QUICK rig.test=sriov rig.mac=$VF_MAC"
  vm_ends "$name: poweroff" 0
  nic_peers_end
  dmesg | grep -w igb | tail -n 4 | sed 's/^/#   host: /'
  tr -d '\r' < "$vm_console" | grep -a '^# .*igbvf' | sed 's/^#/#   guest:/'
  guest_results "$name"
  facts metrics.json
  expect "$name: device errors, losses, interrupt errors, accesses to registers that Postern saw" \
    "$(figures get metrics.json devices.device0.vfio_device_errors devices.device0.vfio_losses devices.device0.vfio_interrupt_errors \
      devices.device0.vfio_bar\?_reads devices.device0.vfio_bar\?_writes)" "0 0 0 0 0"
  rm -f metrics.json
  unbind_devices "$name" "$function"
}
wanted "virtual function" && case_function "virtual function"

wanted "in use" && {
  # The function is the guest's while it runs: the host takes it away with all others of the card.
  use_kernel 6.12
  bind_devices "in use" "$function"
  vm_start "in use" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M --device "host=$function" --metrics metrics.json \
    --cmdline "$BASE $QUICK rig.test=sriov-gone rig.mac=$VF_MAC"
  if wait_for "in use" "RIG READY"; then
    (echo 0 > "$folder/sriov_numvfs") &
    taker=$!
    within 60 process_gone "$taker"
    expect "in use: the host takes the function away from a running guest" "$? $(cat "$folder/sriov_numvfs")" "0 0"
    vm_ends "in use: the guest goes on without it, to its poweroff" 0
    guest_results "in use"
    unset "host_driver[$function]"
    facts metrics.json
  fi
}
finish
