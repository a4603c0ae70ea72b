#!/bin/bash
# Makes a minimal Debian into a node: packages, and a systemd that starts only what a container needs.
set -euo pipefail
# shellcheck source=basefs/inside/common.sh
. /run/docklet-build/inside/common.sh

# Units that a container has no use for, or that cost a node's start more than they give.
masked_units() {
  cat <<'UNITS'
apt-daily.service
apt-daily.timer
apt-daily-upgrade.service
apt-daily-upgrade.timer
console-getty.service
dev-hugepages.mount
dev-mqueue.mount
dpkg-db-backup.timer
e2scrub_all.timer
e2scrub_reap.service
fstrim.timer
getty.target
getty-static.service
kmod-static-nodes.service
modprobe@.service
proc-sys-fs-binfmt_misc.automount
sys-fs-fuse-connections.mount
sys-kernel-config.mount
sys-kernel-debug.mount
sys-kernel-tracing.mount
systemd-ask-password-console.path
systemd-ask-password-wall.path
systemd-binfmt.service
systemd-boot-system-token.service
systemd-firstboot.service
systemd-hwdb-update.service
systemd-initctl.socket
systemd-journal-catalog-update.service
systemd-journal-flush.service
systemd-journald-audit.socket
systemd-logind.service
systemd-machine-id-commit.service
systemd-modules-load.service
systemd-networkd.service
systemd-networkd-wait-online.service
systemd-pcrphase.service
systemd-pcrphase-initrd.service
systemd-pcrphase-sysinit.service
systemd-pstore.service
systemd-random-seed.service
systemd-remount-fs.service
systemd-repart.service
systemd-sysctl.service
systemd-sysext.service
systemd-sysusers.service
systemd-timesyncd.service
systemd-tmpfiles-clean.timer
systemd-tmpfiles-setup-dev.service
systemd-udevd.service
systemd-udevd-control.socket
systemd-udevd-kernel.socket
systemd-udev-trigger.service
systemd-update-done.service
systemd-update-utmp.service
systemd-update-utmp-runlevel.service
systemd-user-sessions.service
UNITS
}

# Targets that have nothing to reach in a node, but whose units each start would read.
unwanted_targets() {
  printf '%s\n' cryptsetup.target integritysetup.target veritysetup.target remote-cryptsetup.target remote-veritysetup.target
}

# Masking keeps a unit from starting even after an upgrade of systemd; without the link that asks for it, systemd does
# not even read it. Together that is a fifth of a node's start.
mask_units() {
  local name
  while read -r name; do
    ln -sf /dev/null "/etc/systemd/system/$name"
  done < <(masked_units)
  while read -r name; do
    rm -f /usr/lib/systemd/system/*.wants/"$name" /etc/systemd/system/*.wants/"$name"
  done < <(masked_units && unwanted_targets)
  rm -rf /etc/systemd/system/{getty,timers}.target.wants /usr/lib/systemd/system/initrd*.wants
  # dbus starts when someone speaks to its socket.
  rm -f /usr/lib/systemd/system/multi-user.target.wants/dbus.service
}

# Each generator is a program that every start would run, and with none at all systemd saves the process that runs them.
# after-packages brings back the one for init scripts where it is needed.
mask_generators() {
  local path
  mkdir -p /etc/systemd/system-generators
  for path in /usr/lib/systemd/system-generators/*; do
    ln -sf /dev/null "/etc/systemd/system-generators/${path##*/}"
  done
}

trim_systemd() {
  mask_units
  mask_generators
  systemctl set-default multi-user.target
  systemctl enable docklet-fstab.service
  # Would make pam_nologin wait for a unit that is masked.
  dpkg-divert --quiet --local --rename --divert /usr/lib/docklet/systemd-nologin.conf --add /usr/lib/tmpfiles.d/systemd-nologin.conf
  ls /usr/lib/tmpfiles.d >/usr/lib/docklet/tmpfiles.known
}

settle_ssh() {
  systemctl enable ssh.service
  install -d -m 0700 /root/.ssh
  # The motd is a file; the scripts that would add to it cost each sign-in a few processes.
  rm -f /etc/update-motd.d/*
}

settle_ping() {
  # File capabilities do not survive every archive; set-user-id does.
  local ping
  ping=$(command -v ping)
  setcap -r "$ping" 2>/dev/null || true
  chmod u+s "$ping"
}

install_profile small
cp -r --no-preserve=ownership "$BUILD/files/." /
trim_systemd
settle_ssh
settle_ping
install -m 0755 "$BUILD/start_jupyter.sh" /usr/local/bin/start_jupyter.sh
: >/etc/fstab
passwd --lock root >/dev/null
clean
