#!/bin/bash
# Builds an image that nodes are made from, and stores it under FS_PREFIX/global/images. See README.md.
#
#   basefs/build.sh PROFILE           small, base or full; images it stands on are built first where there are none
#   basefs/build.sh PROFILE --fresh   build those it stands on anew, too
#
# $DOCKLET_WORKER names the docklet-worker that packs the image.
# shellcheck disable=SC2317 # functions are called by name
set -euo pipefail

BASEFS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly BASEFS
# shellcheck source=tools/lib.sh
. "$BASEFS/../tools/lib.sh"
# shellcheck source=basefs/machine.sh
. "$BASEFS/machine.sh"

# Runs a command in mount and process namespaces of its own: whatever it mounts or starts ends with it.
isolated() {
  unshare --mount --propagation private --pid --fork --kill-child --mount-proc -- "$@"
}

# Inside `isolated`: gives ROOTFS the few file systems that package scripts expect and runs COMMAND in it.
enter() {
  local rootfs=$1 device
  shift
  mount -t tmpfs -o mode=755 docklet-dev "$rootfs/dev"
  for device in null zero full random urandom tty; do
    : >"$rootfs/dev/$device"
    mount --bind "/dev/$device" "$rootfs/dev/$device"
  done
  ln -s /proc/self/fd "$rootfs/dev/fd"
  mkdir "$rootfs/dev/pts" "$rootfs/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 docklet-pts "$rootfs/dev/pts"
  mount -t tmpfs docklet-shm "$rootfs/dev/shm"
  mount -t proc proc "$rootfs/proc"
  mount -t tmpfs -o mode=755 docklet-run "$rootfs/run"
  mkdir -p "$rootfs/run/docklet-build" "$rootfs/run/lock"
  cp -r "$BASEFS/." "$rootfs/run/docklet-build/"
  cp "$BASEFS/../tools/start_jupyter.sh" "$rootfs/run/docklet-build/"
  copy_pip_configuration "$rootfs/run/docklet-build"
  cat /etc/resolv.conf >"$rootfs/run/docklet-build/resolv.conf"
  mount --bind "$rootfs/run/docklet-build/resolv.conf" "$rootfs/etc/resolv.conf"
  # Keeps packages from starting services here: the bind is gone with the namespace, so nothing stays in the image.
  printf '#!/bin/sh\nexit 101\n' >"$rootfs/usr/sbin/policy-rc.d"
  chmod 0755 "$rootfs/usr/sbin/policy-rc.d"
  local -a environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "HOME=/run/docklet-build/home" TERM=dumb)
  build_environment environment
  # This machine's certificates, under the names that pip and its like look for.
  environment+=(PIP_CERT=/run/docklet-build/ca.crt SSL_CERT_FILE=/run/docklet-build/ca.crt)
  local status=0
  env -i "${environment[@]}" chroot "$rootfs" "$@" || status=$?
  rm -f "$rootfs/usr/sbin/policy-rc.d"
  return "$status"
}

# Entered again inside the namespaces of `isolated`. With LOWER, DIR is the upper of an overlay over it.
run_profile_script() {
  local profile=$1 dir=$2 lower=${3-}
  if [[ -z $lower ]]; then
    enter "$dir" "/run/docklet-build/inside/$profile.sh"
    return
  fi
  mkdir -p "$dir.work" "$dir.merged"
  mount -t overlay docklet -o "lowerdir=$lower,upperdir=$dir,workdir=$dir.work" "$dir.merged"
  enter "$dir.merged" "/run/docklet-build/inside/$profile.sh"
}

run_inside() {
  isolated "$BASH" "$BASEFS/build.sh" --inside "$@" >>"$LOG" 2>&1 ||
    die "building $1 failed; the end of $LOG: $(tail -n 5 "$LOG")"
}

debian_tree() {
  local rootfs=$1 suite mirror
  require_targets
  suite=$(machine_suite)
  mirror=$(machine_mirror "$suite")
  [[ -n $mirror ]] || die "apt on this machine has no archive for $suite"
  # dpkg would wait for the disk after every package of a tree that is thrown away when anything fails.
  mkdir -p "$rootfs/etc/dpkg/dpkg.cfg.d"
  printf 'force-unsafe-io\n' >"$rootfs/etc/dpkg/dpkg.cfg.d/docklet-build"
  isolated debootstrap --variant=minbase --merged-usr --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
    "$suite" "$rootfs" "$mirror" >>"$LOG" 2>&1 ||
    die "debootstrap failed; the end of $LOG: $(tail -n 5 "$LOG")"
  rm -f "$rootfs/etc/apt/sources.list" "$rootfs/etc/dpkg/dpkg.cfg.d/docklet-build"
  write_sources "$rootfs/etc/apt/sources.list.d/debian.sources"
  write_date_checks "$rootfs/etc/apt/apt.conf.d/91dates"
}

parent_of() {
  case $1 in
    small) ;;
    base) say small ;;
    full) say base ;;
    *) die "there is no profile $1; there are small, base and full" ;;
  esac
}

description_of() {
  case $1 in
    small) say "Debian with systemd, ssh and Python" ;;
    base) say "small, with JupyterLab, NumPy, pandas and Matplotlib" ;;
    full) say "base, with compilers, Java, R, MPI, Scala, Ruby, PHP, Node.js, TeX and Spark" ;;
  esac
}

layout_of() { printf '%s/global/images/%s\n' "$PREFIX" "$1"; }

# Unpacks all layers of a stored image into one tree. A layer says `.wh.NAME` where it removes NAME.
unpack() {
  local layout=$1 tree=$2 blob whiteout name
  mkdir -p "$tree"
  while read -r blob; do
    tar --extract --zstd --numeric-owner --xattrs --xattrs-include='*' --file "$layout/blobs/sha256/$blob" --directory "$tree"
    while IFS= read -r -d '' whiteout; do
      name=${whiteout##*/}
      # shellcheck disable=SC2115
      [[ $name == .wh..wh..opq ]] || rm -rf "${whiteout%/*}/${name#.wh.}"
      rm -f "$whiteout"
    done < <(find "$tree" -name '.wh.*' -print0)
  done < <(layers_of "$layout")
}

# The digests of the layers of a layout's current version, lowest first.
layers_of() {
  local layout=$1 manifest
  manifest=$(jq -r '.manifests[0].digest | sub("^sha256:"; "")' "$layout/index.json")
  jq -r '.layers[].digest | sub("^sha256:"; "")' "$layout/blobs/sha256/$manifest"
}

pack() {
  local profile=$1 tree=$2 parent
  local -a arguments=(image-pack "$tree" "$(layout_of "$profile")" --name "$profile" --description "$(description_of "$profile")")
  parent=$(parent_of "$profile")
  [[ -z $parent ]] || arguments+=(--base "$(layout_of "$parent")")
  "$WORKER" "${arguments[@]}"
}

# Builds PROFILE in $BUILD and stores it. Leaves in $LOWER the directories that make up its tree, topmost first.
build() {
  local profile=$1 parent
  parent=$(parent_of "$profile")
  if [[ -z $parent ]]; then
    timed "$profile: Debian" debian_tree "$BUILD/$profile"
    timed "$profile: packages and units" run_inside "$profile" "$BUILD/$profile"
    find "$BUILD/$profile"/{dev,run,proc,sys} -xdev -mindepth 1 -delete
    LOWER=$BUILD/$profile
  else
    provide "$parent"
    mkdir "$BUILD/$profile"
    timed "$profile: packages" run_inside "$profile" "$BUILD/$profile" "$LOWER"
    LOWER=$BUILD/$profile:$LOWER
  fi
  timed "$profile: pack" pack "$profile" "$BUILD/$profile"
}

# Puts the tree of an image that another stands on into $LOWER: unpacked where it is stored, else built.
provide() {
  local profile=$1
  if [[ $FRESH == no && -e $(layout_of "$profile")/index.json ]]; then
    timed "$profile: unpack" unpack "$(layout_of "$profile")" "$BUILD/$profile"
    LOWER=$BUILD/$profile
  else
    build "$profile"
  fi
}

require_commands() {
  local name
  for name in debootstrap jq unshare tar zstd "$WORKER"; do
    command -v "$name" >/dev/null || die "$name is missing; ./prepare.sh --deps installs what is needed"
  done
}

# Files of a build belong to root of the image alone, and a foreign umask must not show in it.
prepare_directories() {
  umask 022
  mkdir -p "$PREFIX/local/log" "$PREFIX/global/images"
  BUILD=$(mktemp -d "$PREFIX/local/build.XXXXXX")
  chmod 0755 "$BUILD"
  trap 'rm -rf --one-file-system "$BUILD"' EXIT
}

main() {
  if [[ ${1-} == --inside ]]; then
    shift
    run_profile_script "$@"
    return
  fi
  [[ $# -ge 1 && $# -le 2 ]] || die "usage: build.sh small|base|full [--fresh]"
  [[ ${2---fresh} == --fresh ]] || die "unknown option $2"
  local profile=$1
  parent_of "$profile" >/dev/null
  FRESH=no
  [[ $# -eq 1 ]] || FRESH=yes
  require_root
  PREFIX=$(fs_prefix)
  WORKER=${DOCKLET_WORKER:-docklet-worker}
  LOG=$PREFIX/local/log/image-$profile.log
  require_commands
  prepare_directories
  : >"$LOG"
  build "$profile"
  say "image $profile is in $(layout_of "$profile")"
}

main "$@"
