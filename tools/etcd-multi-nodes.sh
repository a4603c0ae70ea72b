#!/bin/bash
# Runs an etcd of several members (three or five) for Docklet, with certificates. One machine may be lost out of three.
#
#   1. anywhere:        tools/etcd-multi-nodes.sh certificates DIR etcd1=10.0.0.1 etcd2=10.0.0.2 etcd3=10.0.0.3
#   2. copy DIR/etcdN to the machine of etcdN and DIR/master to each master's machine, over ssh; then keep DIR closed
#   3. on each member:  sudo tools/etcd-multi-nodes.sh start etcdN DIR/etcdN etcd1=10.0.0.1 etcd2=10.0.0.2 etcd3=10.0.0.3
#   4. on each master:  sudo tools/etcd-multi-nodes.sh master DIR/master
#      and in its docklet.conf: ETCD=10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379
#
#   sudo tools/etcd-multi-nodes.sh status|stop     status: on a master's machine
#
# Hosts get certificates of their own when they join (docklet-master token).
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tools/lib-etcd.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib-etcd.sh"

usage() {
  sed -n -e '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

certificates() {
  local dir=$1 member
  shift
  for member in "$@"; do parse_member "$member"; done
  umask 077
  mkdir -p "$dir"
  if [[ ! -e $dir/ca.crt ]]; then
    make_authority "$dir"
    mkdir -p "$dir/master"
    issue_master "$dir" "$dir/master"
    cp "$dir/ca.crt" "$dir/ca.key" "$dir/master/"
    say "$dir/master: for each master"
  fi
  for member in "$@"; do
    parse_member "$member"
    issue_member "$dir" "$dir/$MEMBER_NAME" "$MEMBER_NAME" "$MEMBER_IP"
    say "$dir/$MEMBER_NAME: for the machine $MEMBER_IP"
  done
}

# Prints the list of members as etcd wants it.
initial_cluster() {
  local member list=
  for member in "$@"; do
    parse_member "$member"
    list+=,$MEMBER_NAME=https://$MEMBER_IP:$PEER_PORT
  done
  printf '%s\n' "${list#,}"
}

start() {
  local name=$1 from=$2 member ip='' initial
  shift 2
  for member in "$@"; do
    parse_member "$member"
    if [[ $MEMBER_NAME == "$name" ]]; then ip=$MEMBER_IP; fi
  done
  [[ -n $ip ]] || die "$name is not among the members"
  [[ -r $from/server.key ]] || die "$from has no server.key; make it with: etcd-multi-nodes.sh certificates"
  if member_runs; then
    say "etcd runs already"
    return
  fi
  mkdir -p "$(fs_prefix)/local"
  umask 077
  initial=$(initial_cluster "$@")
  install_member "$from"
  etcd_arguments "$name" "$ip" "$initial"
  start_member
  wait_until 5 member_runs || die "etcd ended at once; see $(member_log)"
  # It answers once more than half of the members run.
  say "etcd member $name runs; it serves once most members do (etcd-multi-nodes.sh status)"
}

status() {
  local name
  name=$(identity_directory)
  [[ -r $name/master.key ]] || die "no master's certificate in $name"
  ETCDCTL_API=3 etcdctl --endpoints "$(conf_value ETCD localhost:2379 | sed 's|[^,]*|https://&|g')" \
    --cacert "$name/ca.crt" --cert "$name/master.crt" --key "$name/master.key" --command-timeout 3s \
    endpoint status --cluster --write-out table
}

main() {
  local command=${1-}
  [[ $# -eq 0 ]] || shift
  require_programs openssl
  case $command in
    certificates)
      [[ $# -ge 2 ]] || usage
      certificates "$@"
      ;;
    start)
      [[ $# -ge 3 ]] || usage
      require_root
      require_programs etcd
      start "$@"
      ;;
    master)
      [[ $# -eq 1 ]] || usage
      require_root
      umask 077
      install_master "$1"
      say "$(identity_directory) has the authority and a certificate; ETCD in docklet.conf names the members"
      ;;
    status)
      require_root
      require_programs etcdctl
      status
      ;;
    stop)
      require_root
      stop_member
      ;;
    *) usage ;;
  esac
}

main "$@"
