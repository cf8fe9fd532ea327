#!/bin/bash
# Devices of the host given to guests: what vfio.sh leaves out. MSI; two devices of one group; two groups in one guest; two
# guests; a guest's reset, reboot and kexec under I/O; too little lockable memory; what reading costs; memory for each device.
KERNELS="6.12 6.1"
GUEST_MODULES=("?nvme" "?e1000e" "?ahci" "?sd_mod")
GUEST_PROGRAMS=(guest_kexec)
HOST_NIC_MAC=52:54:00:79:00:01
PAIR_MACS=(52:54:00:79:00:02 52:54:00:79:00:03)
# shellcheck disable=SC2054 # the commas are QEMU's
RIG_ARGUMENTS=(--module vfio-pci --module virtio_net --module e1000e --module ahci --module sd_mod
  --qemu-arg=-netdev --qemu-arg=hubport,id=n0,hubid=0 --qemu-arg=-netdev --qemu-arg=hubport,id=n1,hubid=0
  --qemu-arg=-netdev --qemu-arg=hubport,id=n2,hubid=0 --device "virtio-net-pci,netdev=n0,mac=$HOST_NIC_MAC"
  --device i82801b11-bridge,id=old,addr=0x10 --device "e1000e,netdev=n1,mac=${PAIR_MACS[0]},bus=old,addr=1"
  --device "e1000e,netdev=n2,mac=${PAIR_MACS[1]},bus=old,addr=2")
DISK_MIB=8
MEMORY_MIB=160
rig_prepare() {
  local file
  for file in nvme sata; do head -c "${DISK_MIB}M" /dev/urandom > "$GUESTS/$file.img"; done
  # Padded to whole sectors: the guest that starts another kernel finds these on disks.
  # shellcheck source=/dev/null disable=SC2153
  (. "$GUESTS/6.12.env" && cp "$KERNEL" "$GUESTS/kernel.img" && cp "$INITRD" "$GUESTS/initrd.img")
  truncate -s %4096 "$GUESTS/kernel.img" "$GUESTS/initrd.img"
  # shellcheck disable=SC2054
  RIG_ARGUMENTS+=(--disk "$GUESTS/nvme.img" --device ich9-ahci,id=sata --device ide-hd,drive=sata0,bus=sata.0
    --qemu-arg=-drive --qemu-arg="if=none,id=sata0,format=raw,file=$GUESTS/sata.img")
}
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

nvme=$(bdf_of_class 0x010802)
sata=$(bdf_of_class 0x010601)
pair=(0000:01:01.0 0000:01:02.0)
for device in "$nvme" "$sata" "${pair[@]}"; do
  [ -e "/sys/bus/pci/devices/$device/driver" ] || { fail "$TEST" "the emulated host lacks a device: '$device'"; finish; }
done
within 20 has_disk "$sata" || { fail "$TEST" "the emulated host has no SATA disk"; finish; }
half=$((DISK_MIB / 2))

sum_of() { dd if="/dev/$(block_of "$1")" bs=1M iflag=direct status=none | md5sum | cut -c1-32; }
# kept CASE BDF NAME: the host finds on the disk what the guest says it wrote
kept() {
  within 20 has_disk "$2" || fail "$1: the host has its disk again" "no block device of $2"
  expect "$1: what the guest wrote, from the host's side" \
    "$(dd if="/dev/$(block_of "$2")" bs=1M skip=$half iflag=direct status=none | md5sum | cut -c1-32)" "$(guest_wrote "$3")"
}
# guest_with NAME TEST DEVICE-ARGUMENTS... -- GUEST-ARGUMENTS...: starts it; its metrics are in NAME.metrics
guest_with() {
  local name=$1 test=$2 devices=()
  shift 2
  while [ "$1" != -- ]; do
    devices+=("$1")
    shift
  done
  shift
  rm -f "$name.metrics"
  vm_start "$name" --kernel "$VMLINUX" --initrd "$INITRD" --memory "${MEMORY_MIB}M" --metrics "$name.metrics" "${devices[@]}" \
    --cmdline "$BASE $QUICK rig.test=$test $*"
}
# guest_ends NAME CODE: with its results and what the log is to say
guest_ends() {
  vm_choose "$1"
  vm_ends "$1: exit code" "$2"
  guest_results "$1"
  facts "$1.metrics"
}
# untroubled NAME: no access to a BAR, no interrupt and no error passed through Postern, of any device
untroubled() {
  expect "$1: accesses to registers and interrupts that Postern saw, its errors, losses, interrupt errors" \
    "$(figures get "$1.metrics" 'devices.device*.vfio_bar?_reads' 'devices.device*.vfio_bar?_writes' 'devices.device*.vfio_device_errors' \
      'devices.device*.vfio_losses' 'devices.device*.vfio_interrupt_errors')" "0 0 0 0 0"
}

case_msi() {
  local name=$1
  use_kernel "$2"
  sum=$(sum_of "$sata")
  bind_devices "$name" "$sata"
  guest_with "$name" assigned --device "host=$sata" -- "rig.disks=ahci:/dev/sda:$sum:$half rig.kinds=ahci:msi"
  guest_ends "$name" 0
  untroubled "$name"
  unbind_devices "$name" "$sata"
  kept "$name" "$sata" ahci
}

# Both are behind one conventional bridge: for the IOMMU they are one, and a group can only be given away whole.
case_group() {
  local name=$1 nic i nics=()
  use_kernel 6.12
  expect "$name: two cards, one group" "$(readlink "/sys/bus/pci/devices/${pair[0]}/iommu_group")" \
    "$(readlink "/sys/bus/pci/devices/${pair[1]}/iommu_group")"
  nic=$(interface_of "$HOST_NIC_MAC")
  ip link set "$nic" up
  bind_devices "$name: one of them" "${pair[0]}"
  refused "$name: the other is the host's: it is named" 1 "${pair[1]}.*e1000e" --kernel "$VMLINUX" --initrd "$INITRD" \
    --memory "${MEMORY_MIB}M" --device "host=${pair[0]}"
  bind_devices "$name: the other" "${pair[1]}"
  for i in 0 1; do
    ip addr add "10.79.$i.1/24" dev "$nic"
    nic_peer "$name: card $i" "10.79.$i.1" $((7200 + 10 * i))
    nics+=("${PAIR_MACS[$i]//:/-}:10.79.$i.2:10.79.$i.1:$((7200 + 10 * i))")
  done
  guest_with "$name" assigned --device "host=${pair[0]}" --device "host=${pair[1]}" -- "rig.nics=${nics[0]},${nics[1]} rig.kinds=e1000e:msix"
  guest_ends "$name" 0
  nic_peers_end
  unbind_devices "$name" "${pair[@]}"
}

case_two_groups() {
  local name=$1
  use_kernel 6.12
  sums=("$(sum_of "$nvme")" "$(sum_of "$sata")")
  bind_devices "$name" "$nvme" "$sata"
  # Each may reach the other's registers (a BAR mapped for DMA), which neither does.
  guest_with "$name" assigned --device "host=$nvme,p2p=on" --device "host=$sata,p2p=on" -- \
    "rig.disks=nvme:/dev/nvme0n1:${sums[0]}:$half,ahci:/dev/sda:${sums[1]}:$half rig.kinds=nvme:msix,ahci:msi"
  guest_ends "$name" 0
  untroubled "$name"
  expect "$name: peer-to-peer maps and refusals" \
    "$(figures get "$name.metrics" 'devices.device*.vfio_p2p_maps' 'devices.device*.vfio_p2p_refused')" "2 0"
  unbind_devices "$name" "$nvme" "$sata"
  kept "$name: nvme" "$nvme" nvme
  kept "$name: ahci" "$sata" ahci
}

case_two_guests() {
  local name=$1 VM_LIMIT=$((2 * VM_LIMIT)) # they share one processor
  sums=("$(sum_of "$nvme")" "$(sum_of "$sata")")
  bind_devices "$name" "$nvme" "$sata"
  use_kernel 6.12
  guest_with "$name: first" assigned --device "host=$nvme" -- "rig.disks=nvme:/dev/nvme0n1:${sums[0]}:$half rig.kinds=nvme:msix"
  refused "$name: a device that another guest has" 1 "/dev/vfio/.*busy" --kernel "$VMLINUX" --initrd "$INITRD" --memory "${MEMORY_MIB}M" --device "host=$nvme"
  use_kernel 6.1
  guest_with "$name: second" assigned --device "host=$sata" -- "rig.disks=ahci:/dev/sda:${sums[1]}:$half rig.kinds=ahci:msi"
  guest_ends "$name: first" 0
  first=$(guest_wrote nvme)
  guest_ends "$name: second" 0
  second=$(guest_wrote ahci)
  unbind_devices "$name" "$nvme" "$sata"
  within 20 has_disk "$sata"
  within 20 has_disk "$nvme"
  for disk in "$nvme:$first" "$sata:$second"; do
    expect "$name: what the guest wrote, from the host's side" \
      "$(dd if="/dev/$(block_of "${disk%:*}")" bs=1M skip=$half iflag=direct status=none | md5sum | cut -c1-32)" "${disk##*:}"
  done
}

# The machine that was reset is started again at once, with the device; the third one changes its kernel in place.
case_restart() {
  local name=$1 stage VM_LIMIT=$((2 * VM_LIMIT)) MEMORY_MIB=256 # two kernels, of which the second takes half of it unpacked
  local -A codes=([reset]=3 [reboot]=3 [kexec]=0)
  use_kernel 6.12
  sum=$(sum_of "$nvme")
  bind_devices "$name" "$nvme"
  for stage in reset reboot kexec; do
    guest_with "$name, $stage" assigned-restart --device "host=$nvme" --disk "path=$GUESTS/kernel.img,readonly,serial=kernel" \
      --disk "path=$GUESTS/initrd.img,readonly,serial=initrd" -- "rig.stage=$stage rig.sum=$sum rig.half=$half"
    guest_ends "$name, $stage" "${codes[$stage]}"
    untroubled "$name, $stage"
  done
  expect "$name: function-level resets of each guest, and failed ones" \
    "$(for stage in reset reboot kexec; do
      figures get "$name, $stage.metrics" devices.device0.vfio_resets devices.device0.vfio_reset_failures
    done | tr '\n' ' ')" "1 0 0 0 0 0 "
  unbind_devices "$name" "$nvme"
  kept "$name" "$nvme" nvme
}

# A Postern that may not lock what it likes. KIB: its limit of locked memory
limited() {
  printf '#!/bin/bash\nulimit -l %s\nexec setpriv --bounding-set=-ipc_lock %q "$@"\n' "$1" "$POSTERN" > "limited-$1"
  chmod +x "limited-$1"
  echo "$PWD/limited-$1"
}
case_memlock() {
  local name=$1
  use_kernel 6.12
  sum=$(sum_of "$nvme")
  bind_devices "$name" "$nvme"
  POSTERN=$(limited 8192) refused "$name: 8 MiB for a guest of $MEMORY_MIB: the cause" 1 "RLIMIT_MEMLOCK) is 8M" \
    --kernel "$VMLINUX" --initrd "$INITRD" --memory "${MEMORY_MIB}M" --device "host=$nvme"
  expect "$name: ... and the cures" "$(grep -oE "ulimit -l unlimited|LimitMEMLOCK=infinity|CAP_IPC_LOCK" refused.out | wc -l)" 3
  POSTERN=$(limited 200000) guest_with "$name" assigned --device "host=$nvme" -- "rig.disks=nvme:/dev/nvme0n1:$sum:$half"
  within 30 grep -q postern "/proc/$vm_pid/comm"
  expect "$name: the capability is gone" "$(($(sed -n 's/^CapEff:\t/0x/p' "/proc/$vm_pid/status") >> 14 & 1))" 0
  guest_ends "$name" 0
  unbind_devices "$name" "$nvme"
  kept "$name" "$nvme" nvme
}

# resident PID GUEST-KIB: KiB of the process in memory, the mapping of so many KiB left out; and those of them that are anonymous
resident() {
  awk -v guest="$2" '/^Size:/ { size = $2 } /^Rss:/ { if (size == guest) ++left_out; else all += $2 }
    /^Anonymous:/ { if (size != guest) own += $2 } END { if (left_out != 1) exit 1; print all, own }' "/proc/$1/smaps"
}
# resident_median: of the current machine
resident_median() {
  local samples
  samples=$(for _ in 1 2 3 4 5; do
    resident "$vm_pid" $((MEMORY_MIB * 1024))
    sleep 0.2
  done | sort -n)
  [ "$(wc -l <<< "$samples")" = 5 ] && sed -n 3p <<< "$samples"
}
# What passes through user space while the guest reads, told by KVM's counters and Postern's.
exits_of_reads() { # CASE READS
  local name=$1 path before after
  local paths=('vcpus.*.kvm.mmio_exits' 'vcpus.*.kvm.io_exits' 'vcpus.*.mmio_exits' 'vcpus.*.port_io_exits' 'vcpus.*.other_exits'
    'devices.device0.vfio_bar?_reads' 'devices.device0.vfio_bar?_writes' 'devices.device0.msix_triggers')
  local shown=('vcpus.*.exits' 'vcpus.*.interrupted' 'vcpus.*.kvm.exits' 'vcpus.*.kvm.irq_exits' 'vcpus.*.kvm.halt_exits')
  "$POSTERN" ctl ctl.sock metrics --json > before.json
  echo >&7
  wait_for "$name" "RIG AFTER" || return
  "$POSTERN" ctl ctl.sock metrics --json > after.json
  for path in "${paths[@]}"; do
    expect "$name: $path of $2 reads" $(($(figures get after.json "$path") - $(figures get before.json "$path"))) 0
  done
  read -r -a before <<< "$(figures get before.json "${shown[@]}")"
  read -r -a after <<< "$(figures get after.json "${shown[@]}")"
  for path in "${!shown[@]}"; do echo "#   ${shown[$path]} of $2 reads: $((after[path] - before[path]))"; done
}
# Guests with no, one and two devices, in use by their drivers: what a device takes in memory; what reading takes.
case_cost() {
  local name=$1 reads=2000 count median sizes=() nodes=("" "/dev/nvme0n1" "/dev/nvme0n1,/dev/sda")
  local tests=(assigned-idle assigned-reads assigned-idle) devices=(--device "host=$nvme" --device "host=$sata")
  use_kernel 6.12
  bind_devices "$name" "$nvme" "$sata"
  for count in 0 1 2; do
    vm_input=input.fifo guest_with "$name, $count devices" "${tests[count]}" --control ctl.sock "${devices[@]:0:2*count}" -- \
      "rig.nodes=${nodes[count]} rig.reads=$reads"
    wait_for "$name, $count devices" "RIG IDLE" || break
    median=$(resident_median) || fail "$name, $count devices" "not one mapping of the size of the guest's memory"
    sizes+=("${median% *}")
    echo "#   $name: $count devices: ${median% *} KiB resident beside the guest's memory, ${median#* } KiB of them anonymous"
    [ "$count" != 1 ] || exits_of_reads "$name" "$reads" || break
    echo >&7
    guest_ends "$name, $count devices" 0
    [ "$count" = 0 ] || untroubled "$name, $count devices"
    [ "$count" = 0 ] || if [ $((sizes[count] - sizes[count - 1])) -le 1024 ]; then
      pass "$name: device $count takes at most 1 MiB ($((sizes[count] - sizes[count - 1])) KiB)"
    else
      fail "$name: device $count takes at most 1 MiB" "takes $((sizes[count] - sizes[count - 1])) KiB"
    fi
  done
  unbind_devices "$name" "$nvme" "$sata"
}

# What the guests' consoles read.
mkfifo input.fifo
exec 7<> input.fifo

wanted msi && case_msi msi 6.1
wanted "one group" && case_group "one group"
wanted "two groups" && case_two_groups "two groups"
wanted "two guests" && case_two_guests "two guests"
wanted restart && case_restart restart
wanted memlock && case_memlock memlock
wanted cost && case_cost cost
finish
