#!/bin/bash
# Run in the tree of a minimal Debian by stock-kernel.sh: makes it a machine that boots and has what Docklet runs on.
# The packages are the arguments.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# What every boot of the virtual machine would pay for and nothing here needs.
readonly NEEDLESS=(
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
  getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service systemd-update-utmp.service
)

# The initial RAM disk needs only what leads to the disk: it is unpacked by an emulated processor.
small_initrd() {
  mkdir -p /etc/initramfs-tools/conf.d
  printf 'MODULES=list\nCOMPRESS=lz4\n' >/etc/initramfs-tools/conf.d/docklet
  printf '%s\n' virtio_pci virtio_blk ext4 >>/etc/initramfs-tools/modules
}

apt_install() {
  apt-get install -qq --yes --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io "$@"
}

apt-get update -qq
apt_install initramfs-tools lz4
small_initrd
apt_install "$@"
apt-get clean
rm -rf /var/lib/apt/lists/*
# As prepare.sh does on a machine with systemd.
systemctl disable --quiet nfs-server.service etcd.service lxc.service lxc-net.service lxc-monitord.service
systemctl mask --quiet "${NEEDLESS[@]}"
systemctl enable --quiet docklet-stock-kernel.service
printf '/dev/vda / ext4 defaults,noinit_itable 0 1\n' >/etc/fstab
printf 'stock\n' >/etc/hostname
printf '127.0.0.1\tlocalhost\n127.0.1.1\tstock\n' >/etc/hosts
: >/etc/machine-id
