#!/bin/bash
# The host's kernel with device files and iommufd, which Debian's has not (run by ./check --long): a disk by its device file;
# by descriptors that root opened and an unprivileged Postern was given; on the same host by its group; serial ports that are
# a mediated device of the kernel, with I/O BARs and a wired interrupt. Then the library alone on the disk.
KERNELS="6.12 6.1"
GUEST_MODULES=("?nvme")
RIG_ARGUMENTS=(--kernel 6.12-iommufd)
DISK_MIB=32
rig_prepare() {
  # Built here, once: the emulated host's time is not for it.
  "$ROOT/tests/rig/guest-image" 6.12-iommufd > /dev/null || return
  head -c "${DISK_MIB}M" /dev/urandom > "$GUESTS/nvme.img"
  RIG_ARGUMENTS+=(--disk "$GUESTS/nvme.img")
}
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

nvme=$(bdf_of_class 0x010802)
[ -n "$nvme" ] || { fail "$TEST" "the emulated host has no NVMe disk"; finish; }
[ -c /dev/iommu ] || { fail "$TEST" "the emulated host has no /dev/iommu"; finish; }
device_file() { # BDF
  local entry
  for entry in "/sys/bus/pci/devices/$1/vfio-dev"/*; do echo "/dev/vfio/devices/$(basename "$entry")"; done
}

# disk_guest NAME SUM DMA POSTERN-ARGUMENTS...: a whole guest; DMA is what Postern says its address space is. Metrics: $METRICS
METRICS=metrics.json
WHO= # the user it must run as, without any capability
is_powerless() { grep -qP "^Uid:\t$WHO\t" "/proc/$vm_pid/status" && grep -qP '^CapEff:\t0+$' "/proc/$vm_pid/status"; }
disk_guest() {
  local name=$1 sum=$2 dma=$3
  shift 3
  rm -f "$METRICS"
  vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M --metrics "$METRICS" --log-level debug "$@" \
    --cmdline "$BASE $QUICK rig.test=nvme rig.sum=$sum rig.half=$((DISK_MIB / 2))"
  if [ -n "$WHO" ]; then
    within 20 is_powerless
    expect "$name: Postern has user $WHO and no capability" $? 0
  fi
  vm_ends "$name: poweroff" 0
  guest_results "$name"
  facts "$METRICS"
  expect "$name: the guest's memory is mapped by" "$(grep -o 'guest memory mapped by .*' "$vm_log")" "guest memory mapped by $dma"
  expect "$name: accesses to the disk's registers that Postern saw, its errors and losses" \
    "$(figures get "$METRICS" devices.device0.vfio_bar\?_reads devices.device0.vfio_bar\?_writes devices.device0.msix_triggers \
      devices.device0.vfio_device_errors devices.device0.vfio_losses devices.device0.vfio_interrupt_errors)" "0 0 0 0 0 0"
}
disk_sum() { md5sum < "/dev/$(block_of "$nvme")" | cut -c1-32; }
kept() { # NAME: after the device is the host's again
  within 20 has_disk "$nvme" || fail "$1: the host has its disk again" "no block device"
  expect "$1: what the guest wrote, from the host's side" \
    "$(dd if="/dev/$(block_of "$nvme")" bs=1M skip=$((DISK_MIB / 2)) iflag=direct status=none | md5sum | cut -c1-32)" "$(guest_wrote nvme)"
}

case_disk() { # NAME DMA DEVICE-OPTIONS PEER-TO-PEER
  local name=$1 sum
  use_kernel 6.12
  sum=$(disk_sum)
  bind_devices "$name" "$nvme"
  disk_guest "$name" "$sum" "$2" --device "host=$nvme,p2p=on,$3"
  expect "$name: peer-to-peer maps and refusals" "$(figures get "$METRICS" devices.device0.vfio_p2p_maps devices.device0.vfio_p2p_refused)" "$4"
  unbind_devices "$name" "$nvme"
  kept "$name"
}

refused_unbind() {
  "$POSTERN" unbind "$nvme" > unbind.out 2>&1
  expect "$1: unbind without permission" "$?: $(grep -c "run as root" unbind.out)" "1: 1"
}
# Root opens what it wants to give away; Postern has no capability, no group and no way to either file.
case_descriptors() {
  local name=$1 sum own=$WORK/own file root=$POSTERN POSTERN=$POSTERN METRICS VMLINUX INITRD
  use_kernel 6.1
  sum=$(disk_sum)
  bind_devices "$name" "$nvme"
  chmod 755 "$WORK"
  mkdir -p "$own"
  for file in "$POSTERN=postern-itself" "$VMLINUX=vmlinux" "$INITRD=initrd"; do cp "${file%=*}" "$own/${file##*=}"; done
  chown -R 1000:1000 "$own"
  chmod 666 /dev/kvm
  ulimit -l unlimited
  printf '#!/bin/bash\nexec setpriv --reuid 1000 --regid 1000 --clear-groups --bounding-set=-all --inh-caps=-all %q "$@"\n' \
    "$own/postern-itself" > "$own/postern"
  chmod 755 "$own/postern"
  POSTERN=$own/postern VMLINUX=$own/vmlinux INITRD=$own/initrd METRICS=$own/metrics.json
  exec 8<> "$(device_file "$nvme")" 9<> /dev/iommu
  refused "$name: the files themselves are closed to it" 1 "permission" --kernel "$VMLINUX" --initrd "$INITRD" \
    --memory 256M --device "host=$nvme,iommufd=on"
  refused "$name: an iommufd that is none" 2 "iommufd" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M --device "fd=8,iommufd=fd=0"
  WHO=1000 disk_guest "$name" "$sum" iommufd --device fd=8,iommufd=fd=9
  exec 8>&- 9>&-
  refused_unbind "$name"
  POSTERN=$root
  unbind_devices "$name" "$nvme"
  kept "$name"
}

# The kernel's sample of a mediated device: serial ports whose every character comes back.
readonly UUID=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
case_mtty() { # NAME TYPE PORTS OPTIONS DMA
  local name=$1 ports=$3 mdev=/sys/bus/mdev/devices/$UUID accesses
  use_kernel 6.12
  echo "$UUID" > "/sys/class/mdev_bus/mtty/mdev_supported_types/$2/create" || { fail "$name" "cannot make an mdev"; return; }
  echo "#   host: Linux $(uname -r), $mdev, driver $(basename "$(readlink "$mdev/driver")"), type $(cat "$mdev/mdev_type/name")"
  rm -f metrics.json
  vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory 256M --metrics metrics.json --log-level debug \
    --device "path=$mdev$4" --cmdline "$BASE $QUICK rig.test=mtty rig.ports=$ports"
  vm_ends "$name: poweroff" 0
  guest_results "$name"
  facts metrics.json
  expect "$name: the guest's memory is mapped by" "$(grep -o 'guest memory mapped by .*' "$vm_log")" "guest memory mapped by $5"
  accesses=$(figures get metrics.json devices.device0.vfio_bar0_reads)
  if [ "$accesses" -gt 100 ]; then pass "$name: ports of the first BAR were read"; else fail "$name: ports of the first BAR were read" "$accesses times"; fi
  interrupts=$(figures get metrics.json devices.device0.vfio_intx_unmasks)
  if [ "$interrupts" -gt 0 ]; then pass "$name: INTx was unmasked at the guest's end of interrupt"; else fail "$name: INTx was unmasked" "never"; fi
  expect "$name: refused accesses, device errors, losses, interrupt errors" \
    "$(figures get metrics.json devices.device0.vfio_bar\?_refused devices.device0.vfio_device_errors devices.device0.vfio_losses \
      devices.device0.vfio_interrupt_errors)" "0 0 0 0"
  echo 1 > "$mdev/remove"
  within 10 test ! -e "$mdev"
  expect "$name: the host takes the mdev back" "$?" 0
}

# This kernel's iommufd does not map the memory of devices.
wanted "device file" && case_disk "device file" iommufd iommufd=on "0 1"
wanted "group" && case_disk "group" type1 iommufd=off "1 0"
wanted "descriptors" && case_descriptors "descriptors"
wanted "mtty, 2 ports" && case_mtty "mtty, 2 ports" mtty-2 2 "" iommufd
wanted "mtty, 1 port, by its group" && case_mtty "mtty, 1 port, by its group" mtty-1 1 ,iommufd=off type1
if wanted "library"; then
  bind_devices library "$nvme"
  "$(dirname "$POSTERN")/../../tests/integration/vfio/kernel_host_test" > library.log 2>&1
  expect "library: every operation on the device itself" $? 0
  detail library.log 6
  unbind_devices library "$nvme"
fi
finish
