#!/bin/bash
# Devices of the host given to the guest by VFIO, on a real IOMMU: an NVMe disk, whose data is checked from both sides; a
# network card with MSI-X and with a wired interrupt, whose cable ends at a card that the host keeps. (Its MSI fails the
# driver's own test on the emulated host itself.) Then the library alone on the same devices.
KERNELS="6.12 6.1"
GUEST_MODULES=("?nvme" "?e1000e")
NIC_MAC=52:54:00:78:00:02
HOST_NIC_MAC=52:54:00:78:00:01
RIG_ARGUMENTS=(--module vfio-pci --module virtio_net --module e1000e
  --qemu-arg=-netdev --qemu-arg=hubport,id=n0,hubid=0 --qemu-arg=-netdev --qemu-arg=hubport,id=n1,hubid=0
  --device "virtio-net-pci,netdev=n0,mac=$HOST_NIC_MAC" --device "e1000e,netdev=n1,mac=$NIC_MAC")
rig_prepare() {
  head -c "${NVME_MIB}M" /dev/urandom > "$GUESTS/nvme.img"
  RIG_ARGUMENTS+=(--disk "$GUESTS/nvme.img")
}
NVME_MIB=32
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

nvme=$(bdf_of_class 0x010802)
[ -n "$nvme" ] || { fail "$TEST" "the emulated host has no NVMe disk"; finish; }

guest_with_nvme() { # NAME KERNEL [ARGUMENTS-FOR-POSTERN...]
  local name=$1 kernel=$2 sum half=$((NVME_MIB / 2))
  wanted "$name" || return
  shift 2
  use_kernel "$kernel"
  sum=$(md5sum < /dev/nvme0n1 | cut -c1-32)
  bind_devices "$name" "$nvme"
  vm_start "$name" --kernel "$KERNEL" --initrd "$INITRD" --memory 256M --device "host=$nvme" --metrics metrics.json \
    --cmdline "$BASE $QUICK rig.test=nvme rig.sum=$sum rig.half=$half" "$@"
  vm_ends "$name: poweroff" 0
  guest_results "$name"
  facts metrics.json
  # Registers are mapped pages: not one access came to Postern, and no interrupt passed through a thread of it.
  expect "$name: accesses to the disk's registers that Postern saw, its errors and losses" \
    "$(figures get metrics.json devices.device0.vfio_bar\?_reads devices.device0.vfio_bar\?_writes devices.device0.msix_triggers \
      devices.device0.vfio_device_errors devices.device0.vfio_losses devices.device0.vfio_interrupt_errors)" "0 0 0 0 0 0"
  rm -f metrics.json
  unbind_devices "$name" "$nvme"
  within 10 has_disk "$nvme" || fail "$name: the host has its disk again" "no block device"
  expect "$name: what the guest wrote, from the host's side" \
    "$(dd if=/dev/nvme0n1 bs=1M skip=$half status=none | md5sum | cut -c1-32)" "$(guest_wrote nvme)"
}

guest_with_nic() { # NAME KERNEL IntMode KIND-IN-/proc/interrupts [ARGUMENTS-FOR-POSTERN...]
  local name=$1 kernel=$2 mode=$3 kind=$4
  wanted "$name" || return
  shift 4
  use_kernel "$kernel"
  bind_devices "$name" "$nic"
  nic_peer "$name" 10.78.0.1 7100
  vm_start "$name" --kernel "$KERNEL" --initrd "$INITRD" --memory 256M --device "host=$nic" --metrics metrics.json \
    --cmdline "$BASE $QUICK rig.test=nic rig.mac=$NIC_MAC rig.e1000e=IntMode=$mode rig.interrupts=$kind" "$@"
  vm_ends "$name: poweroff" 0
  nic_peers_end
  guest_results "$name"
  facts metrics.json
  rm -f metrics.json
  unbind_devices "$name" "$nic"
}

nic=$(bdf_of_class 0x020000 0x8086)
[ -n "$nic" ] || { fail "$TEST" "the emulated host has no e1000e"; finish; }
host_nic=$(interface_of "$HOST_NIC_MAC")
ip addr add 10.78.0.1/24 dev "$host_nic"
ip link set "$host_nic" up

guest_with_nvme "6.12, nvme" 6.12
guest_with_nvme "6.1, nvme, 2 CPUs" 6.1 --cpus 2
guest_with_nic "6.12, e1000e, MSI-X" 6.12 2 PCI-MSIX
guest_with_nic "6.1, e1000e, INTx" 6.1 0 IO-APIC

# The disk comes and goes under reads; at last the host takes it back by force while the guest uses it.
comes_and_goes() { # NAME ROUNDS
  local name=$1 rounds=$2 round sum unbinder control=$WORK/ctl.sock
  use_kernel 6.12
  sum=$(md5sum < /dev/nvme0n1 | cut -c1-32)
  bind_devices "$name" "$nvme"
  vm_start "$name" --kernel "$KERNEL" --initrd "$INITRD" --memory 256M --metrics metrics.json --hotplug-ports 1 --control "$control" \
    --cmdline "$BASE $QUICK rig.test=nvme-hotplug rig.rounds=$((rounds + 1))"
  wait_for "$name" "RIG READY" || return
  for round in $(seq 1 "$rounds"); do
    "$POSTERN" ctl "$control" add-device "device,host=$nvme,id=nvme" > ctl.out 2>&1 || {
      fail "$name: add, round $round" "$(cat ctl.out)"
      break
    }
    wait_for "$name: round $round" "RIG FOUND $round $sum" || return
    "$POSTERN" ctl "$control" --timeout 120 remove-device nvme > ctl.out 2>&1 || {
      fail "$name: remove, round $round" "$(cat ctl.out)"
      break
    }
    wait_for "$name: round $round" "RIG GONE $round" || return
  done
  pass "$name: $rounds rounds of add, read, remove"
  "$POSTERN" ctl "$control" add-device "device,host=$nvme,id=nvme" > ctl.out 2>&1
  wait_for "$name: the last round" "RIG FOUND $((rounds + 1)) $sum" || return
  # The kernel waits until Postern has let go.
  facts
  (echo "$nvme" > /sys/bus/pci/drivers/vfio-pci/unbind) &
  unbinder=$!
  within 60 process_gone "$unbinder"
  expect "$name: the host takes the disk back while it is in use" "$? $(driver_of "$nvme")" "0 "
  vm_ends "$name: the guest goes on without it, to its poweroff" 0
  guest_results "$name"
  figures show metrics.json
  "$POSTERN" unbind "$nvme" > bind.log 2>&1
  [ "$(driver_of "$nvme")" = nvme ] || { echo > "/sys/bus/pci/devices/$nvme/driver_override"; echo "$nvme" > /sys/bus/pci/drivers/nvme/bind; }
}
# Minutes under emulation: ./check --long.
[ -z "${POSTERN_LONG:-}" ] || { wanted "hot plug" && comes_and_goes "hot plug" 10; }

if wanted "kill -9"; then
  use_kernel 6.12
  bind_devices "kill -9" "$nvme"
  for round in 1 2; do
    vm_start "kill -9, $round" --kernel "$KERNEL" --initrd "$INITRD" --memory 256M --device "host=$nvme" \
      --cmdline "$BASE $QUICK rig.test=nvme-hotplug rig.rounds=1"
    wait_for "kill -9: a guest on the disk, $round" "RIG FOUND 1" && pass "kill -9: a guest on the disk, $round"
    facts
    kill -9 "$vm_pid"
    vm_wait 10
  done
  unbind_devices "kill -9" "$nvme"
fi

if wanted "bad input"; then
  use_kernel 6.12
  guest=(--kernel "$KERNEL" --initrd "$INITRD" --memory 256M)
  refused "bad input: not bound to a VFIO driver" 1 "postern bind" "${guest[@]}" --device "host=$nvme"
  refused "bad input: no such device" 2 "0000:7f:00.0" "${guest[@]}" --device host=0000:7f:00.0
  refused "bad input: a path that is no device" 2 "/etc" "${guest[@]}" --device path=/etc
  refused "bad input: a descriptor of another kind" 2 "descriptor\|fd" "${guest[@]}" --device fd=0
  refused "bad input: no socket" 1 "nowhere.sock" "${guest[@]}" --device socket=nowhere.sock
  refused "bad input: the same device twice" 2 "twice" "${guest[@]}" --device "host=$nvme" --device "host=$nvme"
  "$POSTERN" bind "$nvme" > bind.log 2>&1
  refused "bad input: an iommufd this kernel has not" 1 "iommu" "${guest[@]}" --device "host=$nvme,iommufd=on"
  "$POSTERN" unbind "$nvme" > bind.log 2>&1
fi

if wanted "library"; then
  "$POSTERN" bind "$nvme" "$nic" > bind.log 2>&1
  "$(dirname "$POSTERN")/../../tests/integration/vfio/kernel_host_test" > library.log 2>&1
  expect "library: every operation on the devices themselves" $? 0
  detail library.log 6
  "$POSTERN" unbind "$nvme" "$nic" > bind.log 2>&1
fi
finish
