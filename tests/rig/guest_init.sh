#!/bin/busybox sh
# Process 1 of a nested guest, both in the initial RAM file system and on the root image.
#   rig.MODULE=PARAMETER  a parameter for a module of the initial RAM file system
#   rig.root=DEVICE  continue from this ext4 file system       rig.test=NAME  run /tests/NAME.sh, then power off
# Without a test: a shell on the console; leaving it powers off.
export PATH=/sbin:/bin HOME=/root TERM=linux
mount -t devtmpfs dev /dev 2>/dev/null
mount -t proc proc /proc 2>/dev/null
mount -t sysfs sys /sys 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t tmpfs tmp /tmp 2>/dev/null
argument() { # the value of a kernel argument, or nothing
  for word in $(cat /proc/cmdline); do
    case "$word" in "$1="*) echo "${word#*=}" ;; esac
  done | tail -n 1
}

if [ -e /modules/list ]; then
  # shellcheck disable=SC2046
  while read -r module; do insmod "/modules/$module" $(argument "rig.${module%.ko}"); done < /modules/list
fi

# The console driver may have been among the modules: until here there was nowhere to write to.
terminal=$(sed 's/.* //' /sys/class/tty/console/active 2>/dev/null)
[ -c "/dev/$terminal" ] && exec < "/dev/$terminal" > "/dev/$terminal" 2>&1

root=$(argument rig.root)
if [ -n "$root" ] && [ ! -e /is-root ]; then
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -b "$root" ] && break
    sleep 0.1
  done
  mkdir -p /newroot
  mount -t ext4 "$root" /newroot || { echo "rig: cannot mount $root"; poweroff -f; }
  for mounted in /dev/pts /tmp /sys /proc /dev; do umount "$mounted" 2>/dev/null; done
  exec switch_root /newroot /sbin/init
fi

ip link set lo up
hostname guest
test=$(argument rig.test)
if [ -n "$test" ]; then
  sh "/tests/$test.sh"
else
  echo "$(uname -sr) on $(nproc) CPU(s), $(sed -n 's/MemTotal: *//p' /proc/meminfo) of memory. 'exit' powers off."
  setsid cttyhack sh
fi
poweroff -f
