echo "RIG READY"
echo c > /proc/sysrq-trigger
sleep 60
