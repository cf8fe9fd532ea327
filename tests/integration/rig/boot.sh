#!/bin/bash
# Debian's kernels boot under Postern on a real KVM, with every device in use: an ext4 root on virtio-blk under a write
# load, a network over a TAP, vsock and entropy; on both transports, with one CPU and with four.
KERNELS="6.12-cloud 6.12 6.1-cloud"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

HOST_MAC=52:54:00:77:00:01
GUEST_MAC=52:54:00:77:00:02
tap_new tap0 10.77.0.1/24 || { fail "$TEST" "no TAP"; finish; }
ip link set tap0 address $HOST_MAC

disk_holds() { # IMAGE: what the guest's write load left is whole, as seen from the host
  debugfs -R "rdump /load $PWD" "$1" > /dev/null 2>&1
  [ "$(wc -l < load/sums)" -eq 9 ] || { echo "no checksums"; return 1; }
  (cd load && md5sum --quiet -c sums)
}

# everything NAME KERNEL TRANSPORT CPUS IMAGE [ARGUMENTS-FOR-THE-KERNEL]
everything() {
  local name=$1 transport=$3 cpus=$4
  wanted "$name" || return
  use_kernel "$2"
  local image=$KERNEL
  [ "$5" = elf ] && image=$VMLINUX
  rm -rf load data.img vsock.sock*
  cp "$GUESTS/root.img" root.img
  head -c 8388608 /dev/urandom > data.img
  truncate -s 16M data.img
  truncate -s 4M fixed.img
  local sum
  sum=$(head -c 8388608 data.img | md5sum | cut -c1-32)

  job "$name: tcp: guest to host, the host's end" "$AGENT" recv tcp:10.77.0.1:7001
  job "$name: tcp: both ways, the host's end" "$AGENT" echo tcp:10.77.0.1:7003
  job "$name: vsock: guest to host, the host's end" "$AGENT" recv "unix:$WORK/vsock.sock_8001"
  job "$name: vsock: both ways, the host's end" "$AGENT" echo "unix:$WORK/vsock.sock_8003"
  "$AGENT" udp-echo 7006 &
  local echo_pid=$!
  vm_start "$name" --kernel "$image" --initrd "$INITRD" --cpus "$cpus" --memory 256M --transport "$transport" \
    --cmdline "$BASE $6 rig.root=/dev/vda rig.test=everything rig.cpus=$cpus rig.sum=$sum rig.mac=$GUEST_MAC" \
    --disk path=root.img --disk path=data.img,serial=data --disk path=fixed.img,serial=fixed,readonly \
    --net "tap=tap0,mac=$GUEST_MAC" --vsock "cid=7,socket=$WORK/vsock.sock"
  if within "$VM_LIMIT" said_or_gone "RIG READY" && guest_said "RIG READY"; then
    job "$name: ping: host to guest" ping -c 3 -W 5 -q 10.77.0.2
    job "$name: tcp: host to guest" "$AGENT" send tcp:10.77.0.2:7002 2000001
    job "$name: tcp: both ways at once, from the host" "$AGENT" duplex tcp:10.77.0.2:7004 1000003
    job "$name: udp: host to guest" "$AGENT" udp-ping 10.77.0.2 7005 100 1400
    job "$name: vsock: host to guest" "$AGENT" send "hybrid:$WORK/vsock.sock:8002" 2000001
    job "$name: vsock: both ways at once, from the host" "$AGENT" duplex "hybrid:$WORK/vsock.sock:8004" 1000003
    job "$name: vsock: nobody listens in the guest" "$AGENT" refused "hybrid:$WORK/vsock.sock:8998"
  else
    fail "$name: the guest's start" "its test was not reached"
    vm_details
    kill -9 "$vm_pid" 2> /dev/null
  fi
  vm_ends "$name: poweroff" 0
  jobs_end
  kill "$echo_pid" 2> /dev/null
  guest_results "$name"

  fsck.ext4 -fn root.img > fsck.log 2>&1
  expect "$name: fsck of the root disk" $? 0
  local bad
  if bad=$(disk_holds root.img 2>&1); then
    pass "$name: checksums of the write load from the host's side"
  else
    fail "$name: checksums of the write load from the host's side" "$bad"
  fi
  expect "$name: what the guest wrote to the data disk, from the host's side" \
    "$(dd if=data.img bs=64k skip=128 count=64 status=none | md5sum | cut -c1-32)" \
    "$(tr -d '\r' < "$vm_console" | grep -ao 'RIG WROTE [0-9a-f]*' | cut -d' ' -f3)"
  expect "$name: the data disk's first half is as it was" "$(head -c 8388608 data.img | md5sum | cut -c1-32)" "$sum"
}

everything "6.12 cloud, pci, 1 CPU, stock arguments" 6.12-cloud pci 1 bzimage ""
everything "6.12 cloud, mmio, 4 CPUs" 6.12-cloud mmio 4 elf "$QUICK"
everything "6.12 generic, pci, 4 CPUs" 6.12 pci 4 elf "$QUICK"
everything "6.12 generic, mmio, 1 CPU" 6.12 mmio 1 bzimage "$QUICK"
everything "6.1 cloud, pci, 4 CPUs" 6.1-cloud pci 4 bzimage "$QUICK"
everything "6.1 cloud, mmio, 1 CPU" 6.1-cloud mmio 1 bzimage "$QUICK"
finish
