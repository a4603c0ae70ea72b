#!/bin/bash
# Runs every test there is. What fails does not keep the rest from running; the last lines say how each part went, and the
# very last is `N passed, M failed`.
#
#   sudo tools/test.sh                 everything but `scale` and `kernel`
#   sudo tools/test.sh PART…           only these: shell lint rust scale front-end docs end-to-end booted-ahead hosts faults portal kernel
#
# The machine is set up first where it is not (prepare.sh). Tests make what they need under names of their own and leave
# a Docklet that runs here alone; the end-to-end tests bring up a second one.
# shellcheck disable=SC2317 # the parts are called by name
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tools/lib-build.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib-build.sh"
cd "$DOCKLET_ROOT"

readonly PARTS=(shell lint rust front-end docs end-to-end booted-ahead hosts faults portal)
# Thousands of simulated hosts and an emulated machine: run where they are named, and before a release.
readonly NAMED_PARTS=(scale kernel)

RESULTS=()
FAILURES=()
PASSED=0
FAILED=0

# Scripts that git knows or would take, by their first line.
scripts() {
  git -c safe.directory='*' ls-files --cached --others --exclude-standard |
    while read -r file; do
      if [[ -f $file ]] && head -n 1 "$file" | grep -qE '^#!/bin/(ba)?sh|^# shellcheck shell='; then printf '%s\n' "$file"; fi
    done
}

test_shell() {
  local -a files
  mapfile -t files < <(scripts)
  say "${#files[@]} scripts"
  shellcheck --external-sources "${files[@]}"
}

test_lint() {
  as_builder cargo fmt --all --check
  as_builder cargo clippy --release --workspace --all-targets --locked -- --deny warnings
}

test_rust() {
  # As root: what touches the kernel is tested against the kernel.
  if as_builder cargo nextest --version >/dev/null 2>&1; then
    as_root_with_rust cargo nextest run --release --workspace --locked --no-fail-fast
  else
    as_root_with_rust cargo test --release --workspace --locked --no-fail-fast
  fi
}

# Whether the planner at a small scale is slower by a factor, not by a percentage. With the installed programs.
test_scale() { docklet-bench planner --short; }

# Every page, as the crate's example writes it, in a browser.
test_front_end() {
  node_modules web
  as_root_with_rust npm --prefix web run --silent test
}

test_docs() { tools/check-docs.sh; }

test_end_to_end() {
  node_modules tools/e2e
  (cd tools/e2e && node run.mjs ten-nodes tenants bad-input two-masters restore speed)
}

# The main job once more, with nodes that were booted before they were asked for.
test_booted_ahead() {
  node_modules tools/e2e
  (cd tools/e2e && DOCKLET_PREBOOT_NODES=10 DOCKLET_DEFAULT_IMAGE=small DOCKLET_NODE_DISK_MIB=4096 node run.mjs ten-nodes)
}

# What happens between hosts, each in a network namespace of its own.
test_hosts() {
  node_modules tools/e2e
  (cd tools/e2e && node run.mjs two-hosts shared-files move etcd-members upgrade)
}

# The quick ones of the faults; `node tools/e2e/faults/run.mjs` does all of them, for an hour or more.
test_faults() {
  node --test tools/e2e/faults/lib/
  node tools/e2e/faults/run.mjs --short --retries 1
}

# The main job in a browser, Jupyter included.
test_portal() {
  node_modules tools/e2e
  (cd tools/e2e && node run.mjs portal)
}

# A vcluster on Debian's own kernel, with systemd and cgroup version 2.
test_kernel() { tools/e2e/stock-kernel.sh; }

# With what only tests need, which prepare.sh leaves out.
node_modules() {
  local dir=$1
  if [[ ! $dir/node_modules/.package-lock.json -nt $dir/package-lock.json || ! -e $dir/node_modules/playwright-core ]]; then
    as_builder npm --prefix "$dir" ci --no-audit --no-fund --loglevel=error
  fi
}

# count PART passed|failed: how many tests the part's runner says did, in the last line that tells (nextest's, node's or
# our own), or nothing where it counts none.
count() {
  local log=$LOGS/$1 word=$2 short=${2%ed}
  sed -n -e 's/\x1b\[[0-9;]*m//g' -e "s/.*\b\([0-9]\+\) $word\b.*/\1/p" -e "s/^ℹ $short \([0-9]\+\)$/\1/p" "$log" |
    tail -n 1
}

# What a part that failed said last of it, once more at the end, where it is looked for.
told_of() {
  say
  say "== $1 failed:"
  # The runner of end-to-end tests repeats what failed after this line.
  if grep -q '^✖ failing tests:' "$LOGS/$1"; then
    awk '/^✖ failing tests:/ { told = 1 } /^✔|^▶/ { told = 0 } told && n++ < 120' "$LOGS/$1"
  else
    tail -n 40 "$LOGS/$1"
  fi
}

run_part() {
  local part=$1 start=$EPOCHREALTIME outcome=passed passed failed
  say
  say "== $part"
  # In a shell of its own, so that its `set -e` holds within it.
  "$BASH" "${BASH_SOURCE[0]}" --inside "$part" 2>&1 | tee "$LOGS/$part" || outcome=FAILED
  passed=$(count "$part" passed)
  failed=$(count "$part" failed)
  if [[ $outcome == passed ]]; then
    PASSED=$((PASSED + ${passed:-1}))
  else
    FAILURES+=("$part")
    PASSED=$((PASSED + ${passed:-0}))
    # A part can fail without a test that does: it did not compile, say.
    FAILED=$((FAILED + (${failed:-0} > 0 ? failed : 1)))
  fi
  RESULTS+=("$(printf '%-12s %-7s %5s tests %10s' "$part" "$outcome" "${passed:-1}" "$(seconds_since "$start")")")
}

known_part() { printf '%s\n' "${PARTS[@]}" "${NAMED_PARTS[@]}" | grep -qxF -- "$1"; }

main() {
  local part
  if [[ ${1-} == --inside ]]; then
    "test_${2//-/_}"
    return
  fi
  for part in "$@"; do
    known_part "$part" || die "there is no part '$part'; there are ${PARTS[*]} ${NAMED_PARTS[*]}"
  done
  require_root
  LOGS=$(mktemp -d)
  trap 'rm -rf "$LOGS"' EXIT
  ./prepare.sh
  [[ $# -gt 0 ]] || set -- "${PARTS[@]}"
  for part in "$@"; do run_part "$part"; done
  for part in ${FAILURES[@]+"${FAILURES[@]}"}; do told_of "$part"; done
  say
  printf '%s\n' "${RESULTS[@]}"
  say "$PASSED passed, $FAILED failed"
  [[ $FAILED -eq 0 ]]
}

main "$@"
