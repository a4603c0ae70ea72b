# shellcheck shell=bash
# What the set-up scripts share. Sourced, never run.

DOCKLET_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly DOCKLET_ROOT

say() { printf '%s\n' "$*"; }

warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  warn "$@"
  exit 1
}

require_root() {
  [[ $EUID -eq 0 ]] || die "must run as root (sudo $0)"
}

has_systemd() { [[ -d /run/systemd/system ]]; }

# The configuration file that Docklet's programs would read, or nothing. The same order as theirs.
conf_file() {
  local path
  for path in "${DOCKLET_CONF:-}" "$DOCKLET_ROOT/conf/docklet.conf" /etc/docklet/docklet.conf; do
    if [[ -n $path && -r $path ]]; then
      printf '%s\n' "$path"
      return
    fi
  done
}

# conf_value KEY DEFAULT: the environment wins over the file, as in the programs.
conf_value() {
  local key=$1 default=$2 from_environment="DOCKLET_$1" file value=
  if [[ -n ${!from_environment-} ]]; then
    printf '%s\n' "${!from_environment}"
    return
  fi
  file=$(conf_file)
  if [[ -n $file ]]; then
    value=$(sed -n -e "s/^[[:space:]]*${key}[[:space:]]*=[[:space:]]*\(.*[^[:space:]]\)[[:space:]]*$/\1/p" "$file" | tail -n 1)
    value=${value#[\"\']}
    value=${value%[\"\']}
  fi
  printf '%s\n' "${value:-$default}"
}

fs_prefix() { conf_value FS_PREFIX /opt/docklet; }

# seconds_since START: with one decimal, START from $EPOCHREALTIME.
seconds_since() {
  local microseconds=$((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}))
  printf '%d.%d s' $((microseconds / 1000000)) $((microseconds % 1000000 / 100000))
}

# timed LABEL COMMAND…: says what is being done, and how long it took.
timed() {
  local label=$1 start=$EPOCHREALTIME
  shift
  say "  $label …"
  "$@"
  say "  $label: done in $(seconds_since "$start")"
}

# wait_until SECONDS COMMAND…
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}
