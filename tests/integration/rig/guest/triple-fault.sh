echo "RIG READY"
reboot -f
