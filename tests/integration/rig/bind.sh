#!/bin/bash
# postern doctor --device, bind and unbind on a real kernel's drivers: an NVMe disk, and two network interfaces that share an
# IOMMU group.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
TEST=bind
need "$TEST" "$POSTERN"

if [ -z "${RIG:-}" ]; then
  disk=$(mktemp /tmp/postern-rig.XXXXXX) || exit 1
  trap 'rm -f "$disk"' EXIT
  truncate -s 16M "$disk"
  run_in_rig --module e1000e --disk "$disk" --qemu-arg=-netdev --qemu-arg=user,id=n0 --qemu-arg=-netdev --qemu-arg=user,id=n1 \
    --device i82801b11-bridge,id=old,addr=0x10 --device e1000e,netdev=n0,bus=old,addr=1 --device e1000e,netdev=n1,bus=old,addr=2
fi

WORK=$(mktemp -d /tmp/rigtest.XXXXXX)
cd "$WORK" || exit 1
disk_path=$(readlink -f /sys/block/nvme0n1)
DISK=$(grep -oE '[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]' <<< "$disk_path" | tail -n 1)
NET0=0000:01:01.0
NET1=0000:01:02.0
driver_of() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }
override_of() { cat "/sys/bus/pci/devices/$1/driver_override"; }
# says FILE TEXT NAME: a case
says() { if grep -qF -- "$2" "$1"; then pass "$3"; else fail "$3" "'$2' was not said" && detail "$1"; fi; }

"$POSTERN" doctor --device "$DISK" > before.txt 2>&1
expect "doctor: exit code for a disk on the host's driver" $? 1
says before.txt "$DISK cannot be assigned yet: postern bind $DISK" "doctor: the verdict says what to run"
says before.txt "vfio-pci (module vfio_pci" "doctor: the driver that fits, from this kernel's modules.alias"
grep -qE '^interrupt remapping +on$' before.txt
expect "doctor: interrupt remapping is seen" $? 0

"$POSTERN" bind --dry-run "$DISK" > dry.txt
expect "bind --dry-run: leaves the driver" "$(driver_of "$DISK")" nvme
mkswap /dev/nvme0n1 > /dev/null && swapon /dev/nvme0n1
"$POSTERN" bind "$DISK" > swap.txt 2>&1
expect "bind: exit code for a disk in use" $? 1
says swap.txt "the host swaps to nvme0n1" "bind: the use is named"
expect "bind: a disk in use keeps its driver" "$(driver_of "$DISK")" nvme
swapoff /dev/nvme0n1

"$POSTERN" bind "$DISK" > bind.txt 2>&1
expect "bind: exit code" $? 0
expect "bind: the driver" "$(driver_of "$DISK")" vfio-pci
"$POSTERN" doctor --device "$DISK" > after.txt 2>&1
expect "doctor: exit code for a bound device" $? 0
says after.txt "$DISK can be assigned" "doctor: the verdict for a bound device"
"$POSTERN" doctor > host.txt
says host.txt "bound: $DISK (vfio-pci)" "doctor: lists what is bound"
"$POSTERN" bind "$DISK" > again.txt 2>&1
expect "bind: exit code of a second time" $? 0
"$POSTERN" unbind "$DISK" > unbind.txt 2>&1
expect "unbind: exit code" $? 0
expect "unbind: the driver" "$(driver_of "$DISK")" nvme
expect "unbind: the override" "$(override_of "$DISK")" "(null)"
within 20 test -b /dev/nvme0n1
expect "unbind: the disk is back" $? 0

# The commands of the dry run do the same.
bash dry.txt
expect "bind --dry-run: its commands bind" "$(driver_of "$DISK")" vfio-pci
"$POSTERN" unbind "$DISK" > foreign.txt 2>&1
expect "unbind: exit code for a device that others bound" $? 1
sed -n 2p foreign.txt | sed 's/ gives it to.*//' > cure.sh
bash cure.sh
expect "unbind: the commands it names give the device back" "$(driver_of "$DISK")" nvme

# One group, two devices; the kernel would refuse the group while one of them has a driver of the host.
expect "the interfaces share a group" "$(readlink /sys/bus/pci/devices/$NET0/iommu_group)" \
  "$(readlink /sys/bus/pci/devices/$NET1/iommu_group)"
"$POSTERN" bind 01:01.0 > one.txt 2>&1
expect "bind: exit code for one of a group" $? 0
says one.txt "$NET1 (e1000e)" "bind: names the member that is still in the way"
"$POSTERN" doctor --device "$NET0" > group.txt 2>&1
expect "doctor: exit code for a group that is not free" $? 1
says group.txt "postern bind $NET1" "doctor: says how to free the group"
"$POSTERN" bind "$NET1" > /dev/null 2>&1
"$POSTERN" doctor --device "$NET0" --device "$NET1" > free.txt 2>&1
expect "doctor: exit code for a free group" $? 0
"$POSTERN" unbind "$NET0" "$NET1" > /dev/null 2>&1
expect "unbind: both are back" "$(driver_of $NET0) $(driver_of $NET1)" "e1000e e1000e"
interface=$(basename /sys/bus/pci/devices/$NET0/net/*)
ip link set "$interface" up
within 20 grep -q up "/sys/class/net/$interface/operstate"
"$POSTERN" bind "$NET0" > up.txt 2>&1
expect "bind: exit code for an interface that is up" $? 1
says up.txt "network interface $interface is up" "bind: the interface is named"
"$POSTERN" bind --force "$NET0" > /dev/null 2>&1
expect "bind --force: takes it" "$(driver_of $NET0)" vfio-pci
"$POSTERN" bind --force 00:00.0 > bridge.txt 2>&1
expect "bind: exit code for a bridge, forced" $? 1
finish
