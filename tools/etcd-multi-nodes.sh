#!/bin/bash
# Runs an etcd of several members (three or five) for Docklet, with certificates. One machine may be lost out of three.
#
#   1. anywhere:        tools/etcd-multi-nodes.sh certificates DIR etcd1=10.0.0.1 etcd2=10.0.0.2 etcd3=10.0.0.3
#   2. copy DIR/etcdN to the machine of etcdN, over ssh; keep DIR/ca.key away from all of them
#   3. on each machine: sudo tools/etcd-multi-nodes.sh start etcdN DIR/etcdN etcd1=10.0.0.1 etcd2=10.0.0.2 etcd3=10.0.0.3
#   4. in every docklet.conf: ETCD=10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379
#
#   sudo tools/etcd-multi-nodes.sh status|stop
#
# Hosts of Docklet that are no member need ca.crt, client.crt and client.key in FS_PREFIX/local/etcd.
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
    issue_client "$dir" "$dir"
  fi
  for member in "$@"; do
    parse_member "$member"
    issue_member "$dir" "$dir/$MEMBER_NAME" "$MEMBER_NAME" "$MEMBER_IP"
    cp "$dir/client.crt" "$dir/client.key" "$dir/$MEMBER_NAME/"
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
  install_certificates "$from"
  etcd_arguments "$name" "$ip" "$initial"
  start_member
  wait_until 5 member_runs || die "etcd ended at once; see $(member_log)"
  # It answers once more than half of the members run.
  say "etcd member $name runs; it serves once most members do (etcd-multi-nodes.sh status)"
}

status() {
  local name
  member_runs || die "etcd does not run"
  name=$(client_directory)
  [[ -r $name/client.key ]] || die "no client certificate in $name"
  etcdctl_client 127.0.0.1 endpoint status --cluster --write-out table
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
