# Devices of the host, assigned and in use by their drivers; then nothing until the power goes off. rig.nodes=/dev/NODE,...
. /tests/lib.sh
for node in $(argument rig.nodes | tr , ' '); do
  disk_appears "$node" "$node" || the_end
  dd if="$node" of=/dev/null bs=1M count=16 iflag=direct 2> /dev/null
done
devices
echo "RIG IDLE"
read -r _
the_end
