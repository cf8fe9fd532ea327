#!/bin/bash
# Runs a fuzz target a fixed number of times from a fixed seed: fuzz_smoke.sh TARGET RUNS [CORPUS-FILE...]
# With POSTERN_FUZZ_SECONDS in the environment: for that long, from a random seed, instead.
# New inputs libFuzzer finds go to a scratch folder, never into the source tree.
set -euo pipefail
target=$1 runs=$2
shift 2
scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/fuzz.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/seed" "$scratch/new"
for file in "$@"; do
  cp -L "$file" "$scratch/seed/"
done
amount=(-seed=1 "-runs=$runs")
if [[ -n ${POSTERN_FUZZ_SECONDS:-} ]]; then
  amount=("-seed=$((RANDOM * 32768 + RANDOM + 1))" "-max_total_time=$POSTERN_FUZZ_SECONDS")
fi
# A crashing input is kept with the test's outputs (bazel-testlogs/.../test.outputs).
"$target" "${amount[@]}" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
  -artifact_prefix="${TEST_UNDECLARED_OUTPUTS_DIR:-$scratch}/" "$scratch/new" "$scratch/seed"
