#!/bin/bash
# Builds an image that nodes are made from, and stores it under FS_PREFIX/global/images. See README.md.
#
#   basefs/build.sh PROFILE           small, base or full; images it stands on are built first where there are none
#   basefs/build.sh PROFILE --fresh   build those it stands on anew, too
#
# $DOCKLET_WORKER names the docklet-worker that packs the image.
# shellcheck disable=SC2317 # functions are called by name
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"
# shellcheck source=basefs/debian.sh
. "$DOCKLET_ROOT/basefs/debian.sh"

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
