#!/bin/bash
# Sets this machine up for Docklet. Run it again at any time: it does only what is not done yet.
#
#   sudo ./prepare.sh                packages, build, programs, configuration, image
#   sudo ./prepare.sh --start        the same, then starts master and worker and waits until they are ready
#   sudo ./prepare.sh --deps         only the packages that building, running and testing need
#   sudo ./prepare.sh --check        changes nothing, says what is missing
#   ./prepare.sh --run-packages      prints the packages that a host needs which only runs Docklet
#   --image small|base|full|none     which image to have (default: base); see basefs/README.md
# shellcheck disable=SC2317 # many functions are called by name
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools/lib.sh"
# shellcheck source=tools/lib-build.sh
. "$DOCKLET_ROOT/tools/lib-build.sh"

readonly BIN=/usr/local/bin
readonly PROGRAMS=(docklet docklet-master docklet-worker docklet-bench docklet-testbed)
readonly SERVICES=(docklet-master docklet-worker)

# Grouped by what they are for; all are Debian's.
readonly RUN_PACKAGES=(
  apparmor btrfs-progs ca-certificates curl e2fsprogs etcd-client etcd-server iproute2 jq kmod liblxc1 lxc lxcfs
  nftables openssh-client procps uidmap util-linux zstd
)
readonly IMAGE_PACKAGES=(debootstrap debian-archive-keyring)
readonly BUILD_PACKAGES=(
  build-essential libclang-common-14-dev libclang1-14 libprotobuf-dev libseccomp-dev lxc-dev pkg-config
  protobuf-compiler
)
readonly TEST_PACKAGES=(
  chromium glusterfs-server iputils-ping libfaketime lxd nginx postgresql python3 qemu-system-x86 shellcheck sqlite3
)

MODE=prepare
START=no
IMAGE=base
CHANGED_PROGRAMS=()
MISSING=0

usage() {
  sed -n -e '2,/^set /{/shellcheck/d;/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

parse() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --deps) MODE=deps ;;
      --check) MODE=check ;;
      --run-packages)
        printf '%s\n' "${RUN_PACKAGES[@]}"
        exit 0
        ;;
      --start) START=yes ;;
      --image)
        IMAGE=${2-}
        shift
        ;;
      --image=*) IMAGE=${1#*=} ;;
      -h | --help)
        usage
        exit 0
        ;;
      *)
        usage >&2
        exit 2
        ;;
    esac
    shift
  done
  case $IMAGE in
    small | base | full | none) ;;
    *) die "--image is small, base, full or none, not '$IMAGE'" ;;
  esac
}

# ---- What is there --------------------------------------------------------------------------------------------------

wanted_packages() {
  printf '%s\n' "${RUN_PACKAGES[@]}" "${IMAGE_PACKAGES[@]}" "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
  # Somebody's newer Node.js is left alone.
  node_major >/dev/null || printf '%s\n' nodejs npm
}

missing_packages() {
  comm -23 <(wanted_packages | sort -u) <(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u)
}

image_layout() { printf '%s/global/images/%s\n' "$(fs_prefix)" "$1"; }

has_image() { [[ -e $(image_layout "$1")/index.json ]]; }

lxcfs_runs() { [[ -r /var/lib/lxcfs/proc/meminfo ]]; }

is_ready() {
  local ip
  ip=$(conf_value PROXY_IP 0.0.0.0)
  curl --silent --fail --max-time 2 --output /dev/null "http://${ip/#0.0.0.0/127.0.0.1}:$(conf_value PROXY_PORT 8000)/readyz" &&
    runs docklet-worker
}

# ---- Packages -------------------------------------------------------------------------------------------------------

# Installing etcd, lxc, postgresql and their like would start an etcd on our port, a bridge and servers nobody needs. While this file says so, packages
# start nothing; a machine that has such a policy already is left as it is.
readonly POLICY=/usr/sbin/policy-rc.d

forbid_service_starts() {
  [[ ! -e $POLICY ]] || return 0
  trap 'rm -f "$POLICY"' EXIT
  printf '#!/bin/sh\n# Made by prepare.sh of Docklet while it installs packages.\nexit 101\n' >"$POLICY"
  chmod 0755 "$POLICY"
}

allow_service_starts() {
  if grep -qs 'prepare.sh of Docklet' "$POLICY"; then
    rm -f "$POLICY"
    trap - EXIT
  fi
}

# What came with the packages and would start at the next boot. Only on the first installation: later it is the operator's.
disable_unneeded_services() {
  local package
  local -a services
  has_systemd || return 0
  for package in "$@"; do
    case $package in
      etcd-server) services=(etcd.service) ;;
      # The first of them asks for the others: a bridge, a name server, and containers of others at boot.
      lxc) services=(lxc.service lxc-net.service lxc-monitord.service) ;;
      nginx) services=(nginx.service) ;;
      postgresql) services=(postgresql.service) ;;
      # docklet-bench starts one of its own, in namespaces.
      lxd) services=(lxd.service lxd.socket lxd-containers.service) ;;
      glusterfs-server) services=(glusterd.service glustereventsd.service) ;;
      *) continue ;;
    esac
    systemctl disable --quiet "${services[@]}" 2>/dev/null || true
  done
}

apt_install() {
  # Lists may be there already, and the network slow: refresh them only where they do not do.
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >>"$LOG" 2>&1 && return
  apt-get update -qq >>"$LOG" 2>&1 || die "apt-get update failed; see $LOG"
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >>"$LOG" 2>&1 ||
    die "apt-get install failed; the end of $LOG: $(tail -n 3 "$LOG")"
}

install_packages() {
  local -a missing
  mapfile -t missing < <(missing_packages)
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "  packages: all there"
    return
  fi
  say "  packages to install: ${missing[*]}"
  forbid_service_starts
  timed "packages" apt_install "${missing[@]}"
  allow_service_starts
  disable_unneeded_services "${missing[@]}"
}

# Nodes see their own memory and CPUs in /proc through lxcfs.
start_lxcfs() {
  if lxcfs_runs; then
    return
  fi
  if has_systemd; then
    systemctl enable --quiet --now lxcfs.service
  else
    # One that was killed leaves its mount, on which everything fails.
    umount --lazy /var/lib/lxcfs 2>/dev/null || true
    mkdir -p /var/lib/lxcfs
    setsid --fork lxcfs /var/lib/lxcfs >>"$LOG" 2>&1 </dev/null
  fi
  wait_until 5 lxcfs_runs || die "lxcfs did not start; see $LOG"
  say "  lxcfs: started"
}

# ---- Build and install ----------------------------------------------------------------------------------------------

require_toolchains() {
  local problem
  problem=$(rust_problem)
  [[ -z $problem ]] || die "$problem"
  problem=$(node_problem)
  [[ -z $problem ]] || die "$problem"
}

# npm notes what it installed; it is done when that is what the lock file says, and not older.
install_node_modules() {
  local web=$DOCKLET_ROOT/web
  if [[ $web/node_modules/.package-lock.json -nt $web/package-lock.json ]]; then
    return
  fi
  timed "front end: npm ci" as_builder npm --prefix "$web" ci --omit=dev --no-audit --no-fund --loglevel=error
}

front_end_is_current() {
  local manifest=$DOCKLET_ROOT/web/dist/manifest.json
  [[ -e $manifest ]] &&
    [[ -z $(find "$DOCKLET_ROOT"/web/{assets-src,templates,src,build.mjs,package-lock.json} -newer "$manifest" -type f -print -quit) ]]
}

build_front_end() {
  if front_end_is_current; then
    say "  front end: current"
    return
  fi
  install_node_modules
  timed "front end: bundle" as_builder npm --prefix "$DOCKLET_ROOT/web" run --silent build
}

cargo_build() {
  as_builder cargo build --manifest-path "$DOCKLET_ROOT/Cargo.toml" --release --workspace --locked
}

build_programs() {
  timed "programs: cargo build" cargo_build
}

install_programs() {
  local name built=${CARGO_TARGET_DIR:-$DOCKLET_ROOT/target}/release
  for name in "${PROGRAMS[@]}"; do
    [[ -x $built/$name ]] || die "the build made no $built/$name"
    if ! cmp --quiet "$built/$name" "$BIN/$name"; then
      # A running program keeps its old file.
      install -m 0755 "$built/$name" "$BIN/.$name.new"
      mv -f "$BIN/.$name.new" "$BIN/$name"
      CHANGED_PROGRAMS+=("$name")
    fi
  done
  if [[ ${#CHANGED_PROGRAMS[@]} -eq 0 ]]; then
    say "  programs in $BIN: current"
  else
    say "  programs put into $BIN: ${CHANGED_PROGRAMS[*]}"
  fi
}

# The program completes by itself; the shells only have to be told to ask it.
install_completions() {
  local bash=/usr/share/bash-completion/completions/docklet
  local zsh=/usr/local/share/zsh/site-functions/_docklet
  local fish=/usr/share/fish/vendor_completions.d/docklet.fish
  install_text "$bash" 'source <(COMPLETE=bash docklet)'
  install_text "$zsh" $'#compdef docklet\nsource <(COMPLETE=zsh docklet)'
  install_text "$fish" 'COMPLETE=fish docklet | source'
}

install_manuals() {
  local name directory=/usr/local/share/man/man1
  mkdir -p "$directory"
  for name in docklet docklet-master docklet-worker; do "$BIN/$name" man "$directory"; done
}

install_text() {
  local path=$1 text=$2
  if [[ ! -e $path || $(<"$path") != "$text" ]]; then
    mkdir -p "${path%/*}"
    printf '%s\n' "$text" >"$path"
  fi
}

# ---- Configuration, image -------------------------------------------------------------------------------------------

write_configuration() {
  local file=$DOCKLET_ROOT/conf/docklet.conf link=/etc/docklet/docklet.conf
  if [[ ! -e $file ]]; then
    cp "$DOCKLET_ROOT/conf/docklet.conf.template" "$file"
    say "  configuration: $file made from the template"
  else
    say "  configuration: $file is there"
  fi
  mkdir -p /etc/docklet
  # A link that leads nowhere is of a checkout that is gone.
  if [[ ! -e $link ]]; then
    ln -sfn "$file" "$link"
  elif [[ $(readlink -f "$link") != "$(readlink -f "$file")" ]]; then
    say "  note: $link is another configuration than $file; it is left as it is"
  fi
}

build_image() {
  if [[ $IMAGE == none ]]; then
    return
  fi
  if has_image "$IMAGE"; then
    say "  image $IMAGE: there"
    return
  fi
  timed "image $IMAGE" env DOCKLET_WORKER="$BIN/docklet-worker" "$DOCKLET_ROOT/basefs/build.sh" "$IMAGE"
}

# The first node of this host would otherwise wait for it.
unpack_image() {
  [[ $IMAGE == none ]] || timed "image $IMAGE: unpack" program docklet-worker image-unpack "$IMAGE"
}

# ---- Start ----------------------------------------------------------------------------------------------------------

install_units() {
  local service unit changed=no
  for service in "${SERVICES[@]}"; do
    unit=$DOCKLET_ROOT/conf/$service.service
    [[ -e $unit ]] || continue
    if ! cmp --quiet "$unit" "/etc/systemd/system/$service.service"; then
      install -m 0644 "$unit" "/etc/systemd/system/$service.service"
      changed=yes
    fi
  done
  [[ $changed == no ]] || systemctl daemon-reload
}

# An etcd of the machine's own on our port is used as it is; the master starts its own only where nothing answers.
note_foreign_etcd() {
  if has_systemd && systemctl is-active --quiet etcd.service; then
    say "  note: etcd.service runs already; ETCD=$(conf_value ETCD localhost:2379) in the configuration decides whether it is used"
  fi
}

program() {
  local name=$1
  shift
  "$BIN/$name" --config "$(conf_file)" "$@"
}

runs() { program "$1" status >/dev/null 2>&1; }

# changed NAME: whether this run replaced the program.
changed() {
  [[ ${#CHANGED_PROGRAMS[@]} -gt 0 ]] && printf '%s\n' "${CHANGED_PROGRAMS[@]}" | grep -qx "$1"
}

# The master itself knows whether there is a system, here or in a database shared with other masters.
init_system() {
  local told
  if told=$(program docklet-master init 2>&1); then
    say "  docklet-master: a new system"
  elif [[ $told == *"there is already a system"* ]]; then
    return 1
  else
    die "$told"
  fi
}

has_unit() { has_systemd && [[ -e /etc/systemd/system/$1.service ]]; }

start_service() {
  local name=$1 verb=start
  if runs "$name"; then
    if ! changed "$name"; then
      say "  $name: runs"
      return
    fi
    verb=restart
  elif [[ $name == docklet-master ]] && init_system; then
    has_unit "$name" || return 0
    # From here on systemd looks after it.
    program "$name" stop >/dev/null
  fi
  if has_unit "$name"; then
    timed "$name: $verb" systemctl "$verb" "$name.service"
  else
    timed "$name: $verb" program "$name" "$verb"
  fi
}

enable_services() {
  has_systemd || return 0
  local service
  for service in "${SERVICES[@]}"; do
    ! has_unit "$service" || systemctl enable --quiet "$service.service"
  done
}

start_all() {
  note_foreign_etcd
  if has_systemd; then install_units; fi
  start_service docklet-master
  start_service docklet-worker
  enable_services
  local start=$EPOCHREALTIME password
  wait_until 60 is_ready || die "master and worker run, but are not ready after 60 s; see $(fs_prefix)/local/log/"
  say "  ready after $(seconds_since "$start")"
  say
  say "Docklet is at $(conf_value PORTAL_URL http://localhost:8000)"
  password=$(fs_prefix)/local/generated_password.txt
  [[ ! -e $password ]] || say "Sign in as root; the password is in $password"
}

# ---- Check ----------------------------------------------------------------------------------------------------------

# report LABEL PROBLEM: nothing wrong where PROBLEM is empty.
report() {
  if [[ -z $2 ]]; then
    printf '  ok       %s\n' "$1"
  else
    printf '  missing  %s: %s\n' "$1" "$2"
    MISSING=$((MISSING + 1))
  fi
}

unless() {
  local problem=$1
  shift
  "$@" >/dev/null 2>&1 || printf '%s' "$problem"
}

check_kernel() {
  local name
  for name in overlay btrfs; do
    report "kernel: $name" "$(unless "no file system $name in /proc/filesystems and no module" kernel_has_filesystem "$name")"
  done
  report "kernel: user namespaces" "$(unless 'unshare --user fails' unshare --user true)"
  report "kernel: network namespaces" "$(unless 'unshare --user --net fails' unshare --user --net true)"
}

kernel_has_filesystem() { grep -qw "$1" /proc/filesystems || modinfo "$1"; }

check_programs() {
  local name
  for name in "${PROGRAMS[@]}"; do
    report "$BIN/$name" "$(unless 'not installed' test -x "$BIN/$name")"
  done
}

check() {
  local missing file name
  missing=$(missing_packages | tr '\n' ' ')
  report "packages" "${missing% }"
  report "Rust $(wanted_rust)" "$(rust_problem)"
  report "Node.js $NODE_MAJOR" "$(node_problem)"
  check_kernel
  report "lxcfs" "$(unless 'does not run' lxcfs_runs)"
  check_programs
  file=$(conf_file)
  report "configuration${file:+ $file}" "$(unless 'no docklet.conf' test -n "$file")"
  [[ $IMAGE == none ]] || report "image $IMAGE" "$(unless "not in $(image_layout "$IMAGE")" has_image "$IMAGE")"
  for name in "${SERVICES[@]}"; do
    report "$name" "$(unless 'does not run' runs "$name")"
  done
  if [[ $MISSING -gt 0 ]]; then
    say "$MISSING missing; sudo ./prepare.sh --start sets up what is"
    exit 1
  fi
  say "all is there"
}

# ---------------------------------------------------------------------------------------------------------------------

main() {
  parse "$@"
  if [[ $MODE == check ]]; then
    check
    return
  fi
  require_root
  local started=$EPOCHREALTIME
  mkdir -p /var/log
  LOG=/var/log/docklet-prepare.log
  : >"$LOG"
  say "Docklet: preparing this machine (details in $LOG)"
  install_packages
  start_lxcfs
  if [[ $MODE == prepare ]]; then
    write_configuration
    require_toolchains
    build_front_end
    build_programs
    install_programs
    install_completions
    install_manuals
    build_image
    unpack_image
    if [[ $START == yes ]]; then start_all; fi
  fi
  say "done in $(seconds_since "$started")"
}

main "$@"
