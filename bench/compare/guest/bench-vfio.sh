# The guest's side of bench/compare --vfio: loads on an assigned NVMe disk, as bench.sh.
echo "BENCH INIT uptime=$(cut -d' ' -f1 /proc/uptime)"
seconds=
for word in $(cat /proc/cmdline); do
  case "$word" in "bench.seconds="*) seconds=${word#*=} ;; esac
done
if [ -n "$seconds" ]; then
  for _ in $(seq 100); do
    [ -b /dev/nvme0n1 ] && break
    sleep 0.1
  done
  echo "BENCH IDLE"
  sleep 1
  for load in "randread-qd1 randread /dev/nvme0n1 $seconds 1" "randread-qd32 randread /dev/nvme0n1 $seconds 32" \
    "sequential sequential /dev/nvme0n1 $seconds"; do
    name=${load%% *}
    echo "BENCH BEGIN $name"
    # shellcheck disable=SC2086
    load ${load#* }
    echo "BENCH END $name"
  done
fi
echo "BENCH DONE"
