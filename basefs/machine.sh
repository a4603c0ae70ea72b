# shellcheck shell=bash
# What an image takes from the machine that builds it: where packages come from. Sourced by build.sh.
#
# Nothing here names a server: sources and package indexes are whatever this machine is set up to use.

# One line per archive this machine installs its own distribution from: `suite|component|uri`.
machine_targets() {
  # shellcheck disable=SC2016 # apt's own variables
  apt-get indextargets --format '$(CREATED_BY)|$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)' |
    awk -F'|' '$1 == "Packages" && $2 == "Debian" && $5 ~ /^https?:/ && $5 !~ /@/ { print $3 "|" $4 "|" $5 }' | sort -u
}

# Fails where apt has no lists, which is how containers come.
require_targets() {
  if [[ -z $(machine_targets) ]]; then
    apt-get update -qq
  fi
  if [[ -z $(machine_targets) ]]; then
    die "apt on this machine knows no Debian archive over http or https (apt-get indextargets shows none)"
  fi
}

# The release that images are made of, and the archive that has it.
machine_suite() {
  (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:?}")
}

machine_mirror() {
  machine_targets | awk -F'|' -v suite="$1" '$1 == suite && $2 == "main" { print $3; exit }'
}

# A sources file for the image: the same archives, one stanza per archive and suite.
write_sources() {
  local target=$1
  machine_targets | awk -F'|' '
    { key = $1 "|" $3; components[key] = components[key] " " $2 }
    END {
      for (key in components) {
        split(key, part, "|")
        printf "Types: deb\nURIs: %s\nSuites: %s\nComponents:%s\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n", part[2], part[1], components[key]
      }
    }' >"$target"
}

# Where this machine does not check dates of archives (they are snapshots), its images must not either.
write_date_checks() {
  apt-config dump | grep -E '^Acquire::Check-(Valid-Until|Date) "(false|0|no)";$' >"$1" || rm -f "$1"
}

# Proxy and package index settings that the build may use and the image must not keep.
# shellcheck disable=SC2034
build_environment() {
  local -n into=$1
  local name
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY $(compgen -e | grep '^PIP_' || true); do
    [[ -n ${!name-} ]] && into+=("$name=${!name}")
  done
  return 0
}

# Copies pip's files and the certificates it uses to DIR, which is the image's /run while it is built.
copy_pip_configuration() {
  local dir=$1 file
  mkdir -p "$dir/home/.config/pip"
  for file in "$HOME/.pip/pip.conf" "$HOME/.config/pip/pip.conf"; do
    if [[ -r $file ]]; then cat "$file" >>"$dir/home/.config/pip/pip.conf"; fi
  done
  if [[ -r ${PIP_CONFIG_FILE:-/etc/pip.conf} ]]; then
    cp "${PIP_CONFIG_FILE:-/etc/pip.conf}" "$dir/pip.conf"
  fi
  if [[ -r /etc/ssl/certs/ca-certificates.crt ]]; then
    cp /etc/ssl/certs/ca-certificates.crt "$dir/ca.crt"
  fi
}
