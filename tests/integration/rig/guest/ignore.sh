# Uses disk, network and entropy for as long as it is let, and does not listen to the power button.
. /tests/lib.sh
nic=$(interface "$(argument rig.mac)")
ip addr add 10.77.0.2/24 dev "$nic"
ip link set "$nic" up
(while :; do dd if=/dev/urandom of="/dev/$(disk data)" bs=64k count=64 2> /dev/null; done) &
(while :; do ping -q -c 1 10.77.0.1 > /dev/null; done) &
(while :; do agent recv vsock:any:8002 > /dev/null; done) &
sleep 1
echo "RIG READY"
while :; do dd if=/dev/hwrng of=/dev/null bs=512 count=64 2> /dev/null; done
