#!/bin/bash
# Runs an etcd of one member beside Docklet, with certificates, so that it goes on while the master is stopped. Most
# sites need none of this: a master starts an etcd by itself, and with MASTER_IP set it serves other hosts, too.
#
#   sudo tools/etcd-one-node.sh start IP     on the master's machine, which has IP
#   sudo tools/etcd-one-node.sh status|stop
set -euo pipefail

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tools/lib-etcd.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib-etcd.sh"

# Kept beside the member: a restart must not make an authority that other hosts do not know.
make_certificates() {
  local ip=$1 made
  made=$(member_data)/authority
  if [[ ! -e $made/master.crt ]]; then
    mkdir -p "$made"
    chmod 0700 "$made"
    make_authority "$made"
    issue_master "$made" "$made"
  fi
  issue_member "$made" "$made" etcd1 "$ip"
  install_member "$made"
  install_master "$made"
}

start() {
  local ip=$1
  if member_runs; then
    say "etcd runs already"
    return
  fi
  mkdir -p "$(fs_prefix)/local"
  umask 077
  make_certificates "$ip"
  etcd_arguments etcd1 "$ip" "etcd1=https://$ip:$PEER_PORT" new
  start_member
  wait_until 20 eval "etcdctl_client '$ip' endpoint health >/dev/null 2>&1" || die "etcd did not answer within 20 s; see $(member_log)"
  say "etcd answers at $ip:$CLIENT_PORT: put ETCD=$ip:$CLIENT_PORT into docklet.conf"
}

main() {
  local command=${1-}
  require_root
  require_programs etcd etcdctl openssl
  case $command in
    start)
      valid_ip "${2-}" || die "usage: etcd-one-node.sh start IP"
      start "$2"
      ;;
    stop) stop_member ;;
    status)
      member_runs || die "etcd does not run"
      say "etcd runs"
      ;;
    *) die "usage: etcd-one-node.sh start IP | status | stop" ;;
  esac
}

main "$@"
