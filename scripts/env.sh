# Sourced by our shell scripts: how Bazel is called. Not for use by hand.
# shellcheck shell=bash
#
#   POSTERN_CACHE               caches that outlive a checkout (default ~/.cache/postern); may be deleted at any time
#   POSTERN_BAZEL_OUTPUT_BASE   Bazel's output base, where its default does not suit

ROOT=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
POSTERN_CACHE=${POSTERN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/postern}
export POSTERN_CACHE

postern_bazel() {
  local startup=()
  if [[ -n ${POSTERN_BAZEL_OUTPUT_BASE:-} ]]; then
    startup+=("--output_base=$POSTERN_BAZEL_OUTPUT_BASE")
  fi
  local command=$1
  shift
  local flags=()
  case $command in
    build | test | run) flags=("--disk_cache=$POSTERN_CACHE/bazel" --experimental_convenience_symlinks=ignore) ;;
  esac
  (cd "$ROOT" && bazel "${startup[@]}" "$command" "${flags[@]}" "$@")
}
