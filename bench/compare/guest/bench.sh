# The guest's side of bench/compare under Linux. The host reads the BENCH lines from the console and takes its times there.
argument() {
  for word in $(cat /proc/cmdline); do
    case "$word" in "$1="*) echo "${word#*=}" ;; esac
  done
}
echo "BENCH INIT uptime=$(cut -d' ' -f1 /proc/uptime)"
seconds=$(argument bench.seconds)
if [ -n "$seconds" ]; then
  interface=$(ls /sys/class/net | grep -v -E '^(lo|sit0)$' | head -n 1)
  ip addr add 10.78.0.2/24 dev "$interface" && ip link set "$interface" up
  sleep 1
  echo "BENCH IDLE"
  sleep 1
  for depth in 1 32; do
    echo "BENCH BEGIN randread-qd$depth"
    load randread /dev/vda "$seconds" "$depth"
    echo "BENCH END randread-qd$depth"
  done
  echo "BENCH BEGIN net-send"
  load send 10.78.0.1 7001 "$seconds"
  echo "BENCH END net-send"
  echo "BENCH BEGIN net-receive"
  load receive 10.78.0.1 7002
  echo "BENCH END net-receive"
fi
echo "BENCH DONE"
