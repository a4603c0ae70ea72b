# shellcheck shell=bash
# Finding Rust and Node.js, and who builds. Sourced after lib.sh by prepare.sh and test.sh.

# The oldest Node.js that bundles the portal's front end.
readonly NODE_MAJOR=18

node_major() {
  local version
  version=$(node --version 2>/dev/null) || return 1
  version=${version#v}
  printf '%s\n' "${version%%.*}"
}

wanted_rust() {
  sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$DOCKLET_ROOT/Cargo.toml"
}

# Who builds: the owner of the checkout where that is who called sudo, so that target/ stays theirs; else root. Also
# root where only root can reach the Rust there is.
builder() {
  local user=${SUDO_USER-} found
  found=$(find_cargo) || found=
  if [[ -n $user && $user != root && $(stat -c %U "$DOCKLET_ROOT") == "$user" ]] &&
    { [[ -z $found ]] || runuser -u "$user" -- test -x "${found%%|*}/cargo"; }; then
    printf '%s\n' "$user"
  else
    printf 'root\n'
  fi
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# Directories that may hold cargo: sudo takes a user's own out of PATH.
cargo_homes() {
  if [[ -n ${SUDO_USER-} ]]; then printf '%s/.cargo\n' "$(home_of "$SUDO_USER")"; fi
  printf '%s\n' "${CARGO_HOME:-$HOME/.cargo}" /root/.cargo /usr/local/cargo
}

# Prints `DIRECTORY HOME-OF-TOOLCHAINS` of the first cargo there is; the second is empty where it is not rustup's.
find_cargo() {
  local home
  if command -v cargo >/dev/null; then
    home=$(dirname "$(command -v cargo)")
    printf '%s|%s\n' "$home" "$(toolchains_beside "${home%/bin}")"
    return
  fi
  while read -r home; do
    if [[ -x $home/bin/cargo ]]; then
      printf '%s|%s\n' "$home/bin" "$(toolchains_beside "$home")"
      return
    fi
  done < <(cargo_homes)
  return 1
}

toolchains_beside() {
  local candidate
  for candidate in "${RUSTUP_HOME-}" "${1%/.cargo}/.rustup" "${1%/cargo}/rustup"; do
    if [[ -n $candidate && -d $candidate/toolchains ]]; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

# Sets ENVIRONMENT to what cargo and npm need when USER calls them.
build_environment() {
  local user=$1 found
  found=$(find_cargo) || found='|'
  ENVIRONMENT=("PATH=${found%%|*}:/usr/local/bin:/usr/bin:/bin:$PATH" "HOME=$(home_of "$user")")
  if [[ -n ${found#*|} ]]; then ENVIRONMENT+=("RUSTUP_HOME=${found#*|}"); fi
}

# as_builder COMMAND…
as_builder() {
  local user
  user=$(builder)
  build_environment "$user"
  if [[ $user == root ]]; then
    env "${ENVIRONMENT[@]}" "$@"
  else
    runuser -u "$user" -- env "${ENVIRONMENT[@]}" "$@"
  fi
}

# as_root_with_rust COMMAND…: as root with all that the builder has, so that nothing is built twice. What it leaves in
# the builder's directories is given to the builder.
as_root_with_rust() {
  local user status=0
  user=$(builder)
  build_environment "$user"
  env "${ENVIRONMENT[@]}" "$@" || status=$?
  if [[ $user != root ]]; then
    find "$DOCKLET_ROOT" "$(home_of "$user")/.cargo" -xdev -user root -exec chown -h "$user:" {} +
  fi
  return "$status"
}

rust_version() {
  find_cargo >/dev/null || return 1
  as_builder rustc --version 2>/dev/null | awk '{ print $2 }'
}

# version_at_least HAVE WANT
version_at_least() {
  [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

rust_problem() {
  local have want
  want=$(wanted_rust)
  have=$(rust_version) || have=
  if [[ -z $have ]]; then
    say "Rust is missing: install $want or newer with rustup (https://rustup.rs), as this user or as root, then run this again"
  elif ! version_at_least "$have" "$want"; then
    say "Rust $have is too old: Docklet needs $want or newer; with rustup: rustup update stable"
  fi
}

node_problem() {
  local have
  have=$(node_major) || have=
  if [[ -z $have ]]; then
    say "Node.js is missing: ./prepare.sh --deps installs it"
  elif ((have < NODE_MAJOR)); then
    say "Node.js $have is too old: the portal's front end is built with $NODE_MAJOR or newer"
  fi
}
