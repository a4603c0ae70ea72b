# shellcheck shell=bash
# Run inside the image while it is built. Sourced by the scripts of the profiles.

export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
readonly BUILD=/run/docklet-build

# The package names in a profile's list, without comments.
packages_of() {
  sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$BUILD/profiles/$1.packages"
}

install_profile() {
  local -a packages
  mapfile -t packages < <(packages_of "$1")
  apt-get update -qq
  apt-get install -qq --yes --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io "${packages[@]}"
}

# Puts programs of /opt/jupyter on every PATH. Not as links: Python would not find its environment, Spark not its files.
wrap_jupyter_programs() {
  local name
  for name in "$@"; do
    printf '#!/bin/sh\nexec /opt/jupyter/bin/%s "$@"\n' "$name" >"/usr/local/bin/$name"
    chmod 0755 "/usr/local/bin/$name"
  done
}

# What an image needs nobody to download: caches, lists, manuals, translations, logs, and what is one machine's alone.
clean() {
  apt-get clean
  rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
  rm -rf /usr/share/man/* /usr/share/info/* /usr/share/lintian/* /usr/share/bug/* /var/cache/man
  find /usr/share/doc -mindepth 2 ! -name copyright ! -type d -delete
  find /usr/share/doc -mindepth 1 -type d -empty -delete
  find /usr/share/locale -mindepth 1 -maxdepth 1 ! -name 'en*' ! -name locale.alias -exec rm -rf {} +
  find /var/log -type f -delete
  rm -rf /tmp/* /var/tmp/* /root/.cache /root/.npm /root/.config
  rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/systemd/random-seed /etc/hostname /root/.wget-hsts
  # Empty and not absent: systemd then makes a new one on each node without taking the start for a first one.
  : >/etc/machine-id
  ln -sf /etc/machine-id /var/lib/dbus/machine-id
  # The worker mounts over these two.
  : >/etc/resolv.conf
  printf '127.0.0.1\tlocalhost\n' >/etc/hosts
}
