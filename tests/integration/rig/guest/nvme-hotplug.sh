# An NVMe disk of the host that comes and goes while it is read: vfio.sh is the other side.
. /tests/lib.sh
rounds=$(argument rig.rounds)
echo "RIG READY"
for round in $(seq 1 "$rounds"); do
  for _ in $(seq 300); do
    # The node is there a moment before the disk can be read.
    dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 2> /dev/null && break
    sleep 0.1
  done
  [ "$round" = 1 ] && devices
  echo "RIG FOUND $round $(dd if=/dev/nvme0n1 bs=1M iflag=direct 2> /dev/null | md5sum | cut -c1-32)"
  # Reads until it goes: the driver is asked to let go in the midst of them.
  while dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2> /dev/null; do :; done
  for _ in $(seq 300); do
    [ -b /dev/nvme0n1 ] || break
    sleep 0.1
  done
  [ -b /dev/nvme0n1 ] && break
  echo "RIG GONE $round"
done
expect "rounds" "$round" "$rounds"
the_end
