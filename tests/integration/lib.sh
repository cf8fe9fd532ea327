# What every integration test shares. Each prints one line a case: "PASS name", "FAIL name: reason", "SKIP name: reason";
# details of a failure follow as "# ..." lines. Source it, then call `finish` at the end.
set -u

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
POSTERN=${POSTERN:-$ROOT/bazel-bin/src/cli/postern}
failures=0

pass() { echo "PASS $1"; }
skip() { echo "SKIP $1: $2"; }
fail() {
  echo "FAIL $1: $2"
  failures=$((failures + 1))
}

# detail FILE [LINES]: the end of a log, marked so that no line of it can be taken for a result
detail() { [ -f "$1" ] && tail -n "${2:-25}" "$1" | tr -d '\r' | sed 's/^/#   /'; }

# expect NAME ACTUAL EXPECTED: one case by comparison
expect() {
  if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "is '$2', must be '$3'"; fi
}

# within SECONDS COMMAND...: polls until the command succeeds
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -ge "$end" ] && return 1
    sleep 0.1
  done
}

# need NAME PROGRAM: ends the test as a failure, not in silence, if what it tests is not there
need() {
  [ -x "$2" ] && return
  fail "$1" "$2 is missing: build it first"
  finish
}

# doctest_cases PREFIX PROGRAM: each case of a unit test's program is a case here
doctest_cases() { "$ROOT/tests/integration/doctest_cases" "$@" || failures=$((failures + 1)); }

# run_in_rig ARGUMENTS-FOR-THE-RIG...: runs the calling test, $TEST, again in the emulated host (as root, RIG is set there), and
# ends as it ended (75: the emulated host stood still, which says nothing of what is tested)
run_in_rig() {
  local code
  "$ROOT/tests/rig/rig" --timeout "${RIG_TIMEOUT:-$((1100 + ${POSTERN_LONG:+2400 +} 0))}" "$@" --env "POSTERN=$(realpath "$POSTERN")" --env POSTERN_BIN_DIR \
    --env POSTERN_LONG -- bash "$(realpath "$0")"
  code=$?
  [ "$code" -le 1 ] || [ "$code" -eq 75 ] || fail "$TEST" "the emulated host ended with exit code $code"
  exit "$code"
}

finish() { exit $((failures > 0)); }
