#!/bin/bash
# Boots Debian's own kernel with systemd and cgroup version 2 in a virtual machine, installs the built programs and
# units there, and has them run a vcluster. The machine of the other tests may have neither; production has. FS_PREFIX/global
# is on NFS, served by the same machine: not every kernel of those that run the other tests has it.
#
#   sudo tools/e2e/stock-kernel.sh             ends with `N passed, M failed`
#   sudo tools/e2e/stock-kernel.sh --fresh     makes the virtual machine's disk anew, with today's packages
#
# The disk is kept in /var/cache/docklet until the recipe changes. Programs are taken from target/release, else from
# PATH; the image `small` from FS_PREFIX/global/images or $DOCKLET_E2E_IMAGES. What the machine says is left in
# FS_PREFIX/local/log/stock-kernel*.log. No packet leaves it: it has no network device.
# shellcheck disable=SC2317 # functions are called by name
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=basefs/debian.sh
. "$DOCKLET_ROOT/basefs/debian.sh"

readonly HERE=$DOCKLET_ROOT/tools/e2e/kernel
readonly CACHE=/var/cache/docklet/stock-kernel
readonly DISK_MIB=6144
# An emulated processor is some ten times slower than a real one; a machine that hangs must still end.
readonly LIMIT=1800

require_commands() {
  local name
  for name in debootstrap mkfs.ext4 qemu-system-x86_64 strip unshare; do
    command -v "$name" >/dev/null || die "$name is missing; ./prepare.sh --deps installs what is needed"
  done
}

# What a machine has that runs Docklet: what prepare.sh installs, on what Debian's installer does.
packages() {
  "$DOCKLET_ROOT/prepare.sh" --run-packages
  printf '%s\n' dbus iputils-ping kmod linux-image-cloud-amd64 nfs-common nfs-kernel-server systemd-sysv udev
}

# The name of the disk that this recipe makes.
recipe() {
  {
    packages
    machine_suite
    cat "$HERE/setup.sh" "$HERE/docklet-stock-kernel.service" "$DOCKLET_ROOT/basefs/debian.sh"
  } | sha256sum | cut -c 1-16
}

# ---- The machine ----------------------------------------------------------------------------------------------------

# boot MACHINE SNAPSHOT [DISK…]: until it powers itself off. With SNAPSHOT=on nothing is written to its disks.
boot() {
  local machine=$1 disk
  local -a drives=()
  for disk in "$machine/disk" "${@:3}"; do
    drives+=(-drive "file=$disk,format=raw,if=virtio,cache=unsafe,snapshot=$2")
  done
  # Under emulation the mitigations cost much and hide nothing.
  timeout --kill-after 5 "$LIMIT" qemu-system-x86_64 \
    -accel tcg,thread=multi -machine q35 -cpu max,la57=off -smp 2 -m 2048 -nodefaults -no-user-config \
    -display none -monitor none -nic none \
    -kernel "$machine/vmlinuz" -initrd "$machine/initrd" \
    -append "root=/dev/vda ro console=ttyS0 quiet mitigations=off random.trust_cpu=on systemd.show_status=no" \
    "${drives[@]}" -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
    -serial "file:$CONSOLE" -serial "file:$RESULTS" </dev/null
}

# ---- Its disk -------------------------------------------------------------------------------------------------------

set_up() {
  local tree=$1 list
  mapfile -t list < <(packages)
  enter "$tree" bash -s -- "${list[@]}" <"$HERE/setup.sh"
}

set_up_isolated() {
  isolated "$BASH" "${BASH_SOURCE[0]}" --inside "$1" >>"$LOG" 2>&1 ||
    die "the virtual machine's packages could not be installed; the end of $LOG: $(tail -n 5 "$LOG")"
}

# ext4_of TREE FILE MIB
ext4_of() { mkfs.ext4 -q -F -E lazy_itable_init=1,root_owner=0:0 -d "$1" "$2" "${3}m" >>"$LOG"; }

make_disk() {
  local target=$1 tree=$WORK/tree
  timed "Debian" debian_tree "$tree"
  install -m 0644 "$HERE/docklet-stock-kernel.service" "$tree/etc/systemd/system/"
  timed "kernel and packages" set_up_isolated "$tree"
  # Debian's tool left this machine's there.
  : >"$tree/etc/resolv.conf"
  mkdir "$WORK/machine"
  cp "$tree"/boot/vmlinuz-* "$WORK/machine/vmlinuz"
  cp "$tree"/boot/initrd.img-* "$WORK/machine/initrd"
  timed "disk" ext4_of "$tree" "$WORK/machine/disk" "$DISK_MIB"
  # Makes what first boots make, AppArmor's compiled profiles above all.
  timed "first boot" boot "$WORK/machine" off
  rm -rf "$CACHE"
  mkdir -p "$CACHE"
  mv "$WORK/machine" "$target"
}

# ---- What is tested -------------------------------------------------------------------------------------------------

program_path() {
  local built=${CARGO_TARGET_DIR:-$DOCKLET_ROOT/target}/release/$1
  if [[ -x $built ]]; then
    printf '%s\n' "$built"
  else
    command -v "$1" || die "$1 is not built; cargo build --release"
  fi
}

make_payload() {
  local tree=$WORK/payload images name
  images=${DOCKLET_E2E_IMAGES:-$(fs_prefix)/global/images}
  [[ -e $images/small/index.json ]] || die "there is no image small in $images; basefs/build.sh small builds it"
  mkdir -p "$tree/bin" "$tree/units" "$tree/images"
  for name in docklet docklet-master docklet-worker; do
    # What debuggers read is half of it.
    strip --strip-debug -o "$tree/bin/$name" "$(program_path "$name")"
  done
  cp "$DOCKLET_ROOT"/conf/*.service "$tree/units/"
  cp "$HERE/docklet.conf" "$HERE/test.sh" "$tree/"
  cp -r "$images/small" "$tree/images/"
  mkdir "$tree/tools"
  cp "$DOCKLET_ROOT"/tools/{lib.sh,lib-etcd.sh,etcd-multi-nodes.sh} "$tree/tools/"
  ext4_of "$tree" "$WORK/payload.disk" 1024
}

# ---- The run --------------------------------------------------------------------------------------------------------

# Tells what the machine wrote, and counts.
tell() {
  local passed failed planned
  tr -d '\r' <"$RESULTS" | tee "$WORK/results"
  passed=$(grep -c '^ok ' "$WORK/results" || true)
  failed=$(grep -c '^not ok ' "$WORK/results" || true)
  planned=$(sed -n 's/^1\.\.\([0-9]*\)$/\1/p' "$WORK/results")
  if [[ $planned != "$((passed + failed))" ]]; then
    warn "the machine did not end its tests; the end of $CONSOLE:"
    tail -n 20 "$CONSOLE" >&2
    failed=$((failed + 1))
  fi
  say "$passed passed, $failed failed"
  [[ $failed -eq 0 ]]
}

main() {
  if [[ ${1-} == --inside ]]; then
    set_up "$2"
    return
  fi
  local fresh=${1-} machine
  [[ -z $fresh || $fresh == --fresh ]] || die "usage: stock-kernel.sh [--fresh]"
  require_root
  require_commands
  umask 022
  local logs
  logs=$(fs_prefix)/local/log
  mkdir -p "$logs" /var/cache/docklet
  LOG=$logs/stock-kernel.log CONSOLE=$logs/stock-kernel-console.log RESULTS=$logs/stock-kernel-results.log
  truncate --size 0 "$LOG" "$CONSOLE" "$RESULTS"
  WORK=$(mktemp -d /var/cache/docklet/work.XXXXXX)
  trap 'rm -rf --one-file-system "$WORK"' EXIT
  machine=$CACHE/$(recipe)
  [[ -e $machine && -z $fresh ]] || make_disk "$machine"
  timed "programs and image" make_payload
  timed "virtual machine" boot "$machine" on "$WORK/payload.disk" ||
    warn "qemu did not end well, or the machine was still running after $LIMIT s"
  tell
}

main "$@"
