# Two functions of device processes, which no driver of Linux knows: guest_engine is their driver. vfio_user.sh is the other side.
. /tests/lib.sh
functions=
for function in /sys/bus/pci/devices/*; do
  [ "$(cat "$function/vendor")" = 0x1209 ] && functions="$functions $(basename "$function")"
done
# shellcheck disable=SC2086
set -- $functions
expect "functions" $# 2
for function in "$@"; do
  folder=/sys/bus/pci/devices/$function
  expect "$function: identity" "$(cat "$folder/vendor" "$folder/device" "$folder/class" "$folder/revision" | tr '\n' ' ')" "0x1209 0x0001 0x088000 0x01 "
  # shellcheck disable=SC2046
  expect "$function: sizes of its BARs" "$(head -n 6 "$folder/resource" | while read -r first last _; do
    [ $(($last)) = 0 ] || echo $(($last - $first + 1))
  done | tr '\n' ' ')" "4096 65536 8192 "
done

must "by mapped memory: BAR 2" guest_engine "$1" memory
must "by mapped memory: DMA" guest_engine "$1" copies 100
must "by mapped memory: MSI-X" guest_engine "$1" msix 99
must "by messages: DMA" guest_engine "$2" copies 100
must "by messages: MSI-X" guest_engine "$2" msix 99
must "function-level reset" sh -c "echo 1 > /sys/bus/pci/devices/$1/reset"
must "DMA after the reset" guest_engine "$1" copies 20
must "MSI-X after the reset" guest_engine "$1" msix 9
echo uio_pci_generic > "/sys/bus/pci/devices/$1/driver_override"
echo "$1" > /sys/bus/pci/drivers_probe
for _ in $(seq 50); do
  [ -c /dev/uio0 ] && break
  sleep 0.1
done
must "INTx" guest_engine "$1" intx 40
echo "RIG INTERRUPTS $(interrupts_of 'PIN|NPI|PIW') counted by MSI-X, $(interrupts_of uio) by INTx"
devices
# The device process is killed in the midst of them.
if guest_engine "$2" until-gone; then pass "a device whose process is killed"; else fail "a device whose process is killed" "exit code $?"; fi
must "the other device goes on" guest_engine "$1" intx 8
must "the processor goes on" sleep 1
the_end
