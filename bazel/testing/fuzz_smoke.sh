#!/bin/bash
# Runs a fuzz target a fixed number of times from a fixed seed: fuzz_smoke.sh TARGET RUNS [CORPUS-FILE...]
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
"$target" -seed=1 -runs="$runs" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
  -artifact_prefix="${TEST_UNDECLARED_OUTPUTS_DIR:-$scratch}/" "$scratch/new" "$scratch/seed"
