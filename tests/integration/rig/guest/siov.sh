# shellcheck shell=sh disable=SC1091,SC3043
# A virtual DSA under the kernel's own driver, idxd. siov.sh is the other side.
#   rig.profile=ro|cfg  rig.copies=N  copies a channel in the measured run  rig.few=N  in each of the others
. /tests/lib.sh
profile=$(argument rig.profile)
copies=$(argument rig.copies)
few=$(argument rig.few)
parameters=/sys/module/dmatest/parameters
devices=/sys/bus/dsa/devices
drivers=/sys/bus/dsa/drivers
queues="wq0.0 wq0.1"

# quietly COMMAND...: its output only where it failed
quietly() {
  local out
  out=$("$@" 2>&1) && return
  echo "RIG NOTE '$*': $out"
  return 1
}
put() { echo "$2" 2> /dev/null > "$1" || { echo "RIG NOTE cannot write '$2' to $1"; return 1; }; }

# In profile ro only names are the guest's to give; all else came with the device.
name_queue() {
  put "$devices/dsa0/$1/type" kernel && put "$devices/dsa0/$1/name" "$1" || return
  [ ! -e "$devices/dsa0/$1/driver_name" ] || put "$devices/dsa0/$1/driver_name" dmaengine
}
# configure_queue QUEUE [MORE...]. Linux 6.1 knows no driver_name: there the type alone says which driver.
configure_queue() {
  local queue="$1"
  shift
  local driver=
  [ ! -e "$devices/dsa0/$queue/driver_name" ] || driver="-d dmaengine"
  # shellcheck disable=SC2086
  quietly accel-config config-wq "dsa0/$queue" "$@" -p 10 -m dedicated -y kernel -n "$queue" $driver
}
enable_queue() { if [ "$profile" = cfg ]; then quietly accel-config enable-wq "dsa0/$1"; else put "$drivers/dmaengine/bind" "$1"; fi; }
disable_queue() { if [ "$profile" = cfg ]; then quietly accel-config disable-wq "dsa0/$1"; else put "$drivers/dmaengine/unbind" "$1"; fi; }
# A device that came configured was enabled when it was found.
enable_device() {
  if [ "$profile" = cfg ]; then
    quietly accel-config enable-device dsa0
  else
    [ "$(cat "$devices/dsa0/state")" = enabled ] || put "$drivers/idxd/bind" dsa0
  fi
}
disable_device() { if [ "$profile" = cfg ]; then quietly accel-config disable-device dsa0; else put "$drivers/idxd/unbind" dsa0; fi; }
start() {
  if [ "$profile" = cfg ]; then
    quietly accel-config config-engine dsa0/engine0.0 -g 0 || return
    for queue in $queues; do configure_queue "$queue" -g 0 -s 16 || return; done
  else
    for queue in $queues; do name_queue "$queue" || return; done
  fi
  enable_device || return
  for queue in $queues; do enable_queue "$queue" || return; done
}
states() { for part in dsa0 dsa0/wq0.0 dsa0/wq0.1; do cat "$devices/$part/state"; done | tr '\n' ' '; }

# copy NAME COPIES BUFFER CHANNELS: of random sizes up to BUFFER, each compared, on every channel at once
copy() {
  local mark=$(($(dmesg | wc -l) + 1))
  put $parameters/test_buf_size "$3"
  put $parameters/iterations "$2"
  for channel in /sys/class/dma/dma*; do put $parameters/channel "$(basename "$channel")"; done
  put $parameters/run 1
  cat $parameters/wait > /dev/null
  dmesg | tail -n "+$mark" | grep -E 'dmatest: .*summary' | sed "s/^.*dmatest: /RIG COPIES $1: /"
  expect "$1" "$(dmesg | tail -n "+$mark" | grep -cE "dmatest: .*summary $2 tests, 0 failures")" "$4"
  # Gives the channels back.
  put $parameters/run 0
}
bind_driver() { put /sys/bus/pci/drivers/idxd/bind "$1" && function_is "$1"; }
function_is() { [ "$(function_of idxd)" = "$1" ]; }
# Queues and device are disabled first: unbound from an enabled device, idxd of 6.1.192 and 6.12.117 clears the configurations
# of its queues after it has freed them (idxd_remove: idxd_unregister_devices, then the sub-driver's idxd_wq_disable_cleanup).
unbind_driver() {
  for queue in $queues; do [ "$(cat "$devices/dsa0/$queue/state")" = disabled ] || disable_queue "$queue" || return; done
  disable_device || return
  put /sys/bus/pci/drivers/idxd/unbind "$1"
}

must "the instruction" insmod /modules/movdir64b.ko
must "dmatest" insmod /modules/dmatest.ko
put $parameters/timeout 100000
bdf=$(function_of idxd)
if [ -z "$bdf" ]; then
  fail "idxd finds the device" "$(dmesg | grep -E 'idxd|dsa' | tail -n 1)"
  the_end
fi
pass "idxd finds the device"
devices
must "configured" start
expect "states" "$(states)" "enabled enabled enabled "
[ "$profile" != cfg ] || accel-config list | sed 's/^/RIG LIST /'
copy "copies before measuring" "$few" 16384 2

echo "RIG READY"
read -r _
copy "measured copies" "$copies" 4096 2
echo "RIG AFTER"
read -r _
copy "large copies" "$few" 65536 2
echo "RIG INTERRUPTS $(interrupts_of idxd-misc) of the device, $(interrupts_of 'idxd-portal|dsa.*wq') of its queues"

must "a queue disabled" disable_queue wq0.1
expect "states with a queue disabled" "$(states)" "enabled enabled disabled "
copy "copies on the other queue" "$few" 8192 1
if [ "$profile" = cfg ]; then
  # Disabling resets a queue: what may be told while the device is enabled is told anew. Group and size stay.
  must "the queue configured again" configure_queue wq0.1
  must "the queue enabled again" enable_queue wq0.1
  copy "copies with the queue enabled again" "$few" 8192 2
  for queue in $queues; do must "$queue disabled" disable_queue "$queue"; done
  must "the device disabled" disable_device
  expect "states with the device disabled" "$(states)" "disabled disabled disabled "
  must "configured after the device was disabled" start
  copy "copies after the device was disabled" "$few" 8192 2
fi

must "the driver unbound" unbind_driver "$bdf"
must "the driver bound again" bind_driver "$bdf"
must "configured after binding" start
copy "copies after binding" "$few" 8192 2

must "the driver unbound for a reset" unbind_driver "$bdf"
must "function-level reset" put "/sys/bus/pci/devices/$bdf/reset" 1
must "the driver bound after the reset" bind_driver "$bdf"
must "configured after the reset" start
copy "copies after the reset" "$few" 8192 2
must "the driver unbound at the end" unbind_driver "$bdf"
dmesg | grep -E 'idxd|dsa|dmatest|movdir64b' | grep -vE 'summary|(Added|Started) [0-9]' | sed 's/^\[ *[0-9.]*\] /RIG DMESG /'
the_end
