#!/bin/bash
# Devices in processes of their own (vfio-user) in a Linux guest: registers, mapped memory, DMA, MSI-X, INTx, reset; and what
# the guest sees when such a process is killed.
KERNELS="6.12"
GUEST_MODULES=("?uio_pci_generic")
GUEST_PROGRAMS=(guest_engine)
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
use_kernel 6.12
device=$(dirname "$POSTERN")/../../tests/support/vfio_user_device
need "$TEST" "$device"

serve() { # NAME ARGUMENTS...: sets server
  "$device" "${@:2}" "$1.sock" > "$1.server" 2>&1 &
  server=$!
  disown "$server" # its end by a signal is no news
  within 30 grep -q serving "$1.server" || { fail "$TEST: the device process" "does not serve"; finish; }
}
serve first --intx --vectors 3
first=$server
serve second --vectors 3 --dma-by-message
second=$server

vm_start "$TEST" --kernel "$VMLINUX" --initrd "$INITRD" --memory 160M,shared --metrics metrics.json \
  --device socket=first.sock,id=first --device socket=second.sock,id=second --cmdline "$BASE $QUICK rig.test=vfio-user"
if wait_for "$TEST" "RIG COPYING"; then
  kill -9 "$second"
  vm_ends "$TEST: the guest's poweroff" 0
  guest_results "$TEST"
  facts metrics.json
  expect "$TEST: Postern says once that the other one is gone" "$(grep -c "device 'second' .*gone" "$vm_log")" 1
  expect "$TEST: losses of the one that goes on, its errors, function-level resets, and failed ones" \
    "$(figures get metrics.json devices.first.vfio_losses devices.first.vfio_device_errors devices.first.vfio_resets \
      devices.first.vfio_reset_failures)" "0 0 1 0"
fi
# It serves one after the other, and nothing is left of the machine that was.
process_gone "$first"
expect "$TEST: the device process outlives the machine" $? 1
kill "$first"
within 10 process_gone "$first"
expect "$TEST: the device process ends when it is told" $? 0
finish
