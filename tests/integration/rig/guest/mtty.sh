# Serial ports that the host made up, assigned: what is written to one comes back from it. iommufd.sh is the other side.
. /tests/lib.sh

function=
for candidate in /sys/bus/pci/devices/*; do
  [ "$(cat "$candidate/vendor"):$(cat "$candidate/device")" = 0x4348:0x3253 ] && function=$candidate
done
if [ -z "$function" ]; then
  fail "mtty: the guest has the function" "no 4348:3253"
  the_end
fi
ports=
for tty in /sys/class/tty/ttyS*; do
  case "$(readlink -f "$tty/device")" in *"/${function##*/}" | *"/${function##*/}/"*) ports="$ports ${tty##*/}" ;; esac
done
expect "mtty: serial ports of its driver" "$(echo $ports | wc -w)" "$(argument rig.ports)"
expect "mtty: I/O ranges" "$(awk '$1 != 0 && $3 % 2 == 1' "$function/resource" | grep -c '^0x000000000000[1-9a-f]...')" "$(argument rig.ports)"
sed -n '1,2s/^/# resource /p' "$function/resource"

# Eight characters at a time: with sixteen in it, the kernel's port takes its buffer for empty and loses them all.
wired=0
for port in $ports; do
  stty -F "/dev/$port" raw -echo 115200 || fail "mtty: $port: stty" "exit code $?"
  exec 5<> "/dev/$port"
  rm -f /tmp/sent /tmp/got
  for round in $(seq 24); do
    printf '%07d\n' $((round * 391939)) >> /tmp/sent
    printf '%07d\n' $((round * 391939)) >&5
    timeout 20 dd bs=1 count=8 <&5 >> /tmp/got 2> /dev/null || break
  done
  expect "mtty: $port: what was written came back" "$(md5sum < /tmp/got) $(wc -c < /tmp/got)" "$(md5sum < /tmp/sent) 192"
  # The line of a port is there while it is open.
  counted=$(interrupts_of "$port")
  [ "$counted" -gt 0 ] || fail "mtty: $port: wired interrupts" "none"
  echo "RIG INTERRUPTS $counted of $port: $(grep "$port" /proc/interrupts | sed 's/^ *//; s/  */ /g')"
  wired=$((wired + counted))
  exec 5>&-
  # The watchers of `timeout` have it open for another second; a second port that is opened meanwhile counts for this one.
  for _ in $(seq 50); do
    grep -q "$port" /proc/interrupts || break
    sleep 0.2
  done
done
devices
if [ "$wired" -gt 0 ]; then pass "mtty: wired interrupts came"; else fail "mtty: wired interrupts came" "none"; fi
the_end
