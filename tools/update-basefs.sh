#!/bin/bash
# Builds an image anew, with today's packages, as a new version beside the one there is.
#
#   sudo tools/update-basefs.sh [small|base|full]     base where none is named
#
# Nodes that are there keep the version they were made from, whether they run or not; vclusters that are made from now
# on get the new one.
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

current() {
  jq -r '.manifests[0].digest // empty' "$(fs_prefix)/global/images/$1/index.json" 2>/dev/null || true
}

main() {
  local profile=${1:-base} before after start=$EPOCHREALTIME
  require_root
  before=$(current "$profile")
  "$DOCKLET_ROOT/basefs/build.sh" "$profile" --fresh
  after=$(current "$profile")
  if [[ $before == "$after" ]]; then
    say "image $profile is what it was: $after"
  else
    say "image $profile is now $after${before:+ (was $before)}"
    # The next node of this host need not wait for it. Other hosts unpack it when they need it.
    timed "unpack" docklet-worker --config "$(conf_file)" image-unpack "$profile"
  fi
  say "done in $(seconds_since "$start")"
}

main "$@"
