# An NVMe disk of the host, assigned, and what a guest does to it by starting anew while it reads; assign.sh is the other side.
#   rig.stage=reset: function-level reset, then the machine's reset    reboot: in order    kexec: another kernel    last: poweroff
. /tests/lib.sh
disk=/dev/nvme0n1
stage=$(argument rig.stage)
disk_appears "nvme, $stage" $disk || the_end
expect "nvme, $stage: what it reads" "$(dd if=$disk bs=1M iflag=direct 2> /dev/null | md5sum | cut -c1-32)" "$(argument rig.sum)"
devices

# Reads until they fail or the machine is gone.
readers() {
  for i in 1 2 3 4; do
    (while dd if=$disk of=/dev/null bs=64k skip=$((i * 64)) count=64 iflag=direct 2> /dev/null; do :; done) &
  done
  sleep 0.5
}
log_is_clean() {
  bad=$(dmesg | grep -E 'BUG:|WARNING:|Call Trace|I/O error|nvme.*timeout|DMAR' | head -n 1)
  if [ -n "$bad" ]; then fail "$stage: kernel log" "$bad"; else pass "$stage: kernel log has no complaint"; fi
}

case "$stage" in
  reset)
    readers
    must "nvme: function-level reset under reads" sh -c "echo 1 > /sys/bus/pci/devices/$(function_of nvme)/reset"
    expect "nvme: what it reads after that" "$(dd if=$disk bs=1M iflag=direct 2> /dev/null | md5sum | cut -c1-32)" "$(argument rig.sum)"
    log_is_clean
    echo "RIG END"
    sleep 1
    # No driver gets to say good-bye: the disk writes to memory of a machine that is being reset.
    echo b > /proc/sysrq-trigger
    ;;
  reboot)
    readers
    log_is_clean
    echo "RIG END"
    reboot -f
    ;;
  kexec)
    cat "/dev/$(disk kernel)" > /tmp/kernel
    cat "/dev/$(disk initrd)" > /tmp/initrd
    readers
    log_is_clean
    sed 's/rig.stage=kexec/rig.stage=last/' /proc/cmdline > /tmp/cmdline
    guest_kexec /tmp/kernel /tmp/initrd "$(cat /tmp/cmdline)"
    fail "kexec" "the other kernel did not start"
    the_end
    ;;
esac
disk_both_ways "nvme" $disk "$(argument rig.sum)" "$(argument rig.half)"
the_end "I/O error|nvme.*timeout"
