# shellcheck shell=bash
# Making a Debian tree and working in it, without anything of it showing on the machine. Sourced by build.sh and by the
# test on a stock kernel, after tools/lib.sh. $LOG is where programs write.

readonly BASEFS=$DOCKLET_ROOT/basefs
# shellcheck source=basefs/machine.sh
. "$BASEFS/machine.sh"

# debian_tree ROOTFS: the smallest Debian of this machine's release, with this machine's archives.
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
