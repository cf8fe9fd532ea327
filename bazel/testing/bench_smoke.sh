#!/bin/bash
# Runs every benchmark of a binary just long enough to show that it still works: bench_smoke.sh TARGET
set -euo pipefail
exec "$1" --benchmark_min_time=0.001
