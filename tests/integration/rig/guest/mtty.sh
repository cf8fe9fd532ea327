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

for port in $ports; do
  stty -F "/dev/$port" raw -echo 115200 || fail "mtty: $port: stty" "exit code $?"
  head -c 700 /dev/urandom | md5sum > /tmp/sent
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do md5sum < /tmp/sent >> /tmp/sent; done
  exec 5<> "/dev/$port"
  timeout 60 dd bs=1 count="$(wc -c < /tmp/sent)" of=/tmp/got <&5 2> /dev/null &
  reader=$!
  timeout 60 cat /tmp/sent >&5
  wait "$reader"
  exec 5>&-
  expect "mtty: $port: what was written came back" "$(md5sum < /tmp/got)" "$(md5sum < /tmp/sent)"
  expect "mtty: $port: bytes" "$(wc -c < /tmp/got)" "$(wc -c < /tmp/sent)"
done
devices
wired=$(interrupts_of ttyS)
echo "RIG INTERRUPTS $wired of$ports: $(grep ttyS /proc/interrupts | sed 's/^ *//; s/  */ /g')"
if [ "$wired" -gt 0 ]; then pass "mtty: wired interrupts came"; else fail "mtty: wired interrupts came" "none"; fi
the_end
