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
# A member whose data is lost does not come back by `start`. While most of the others serve:
#
#   1. on a master:      sudo tools/etcd-multi-nodes.sh replace etcdN etcd1=10.0.0.1 etcd2=10.0.0.2 etcd3=10.0.0.3
#   2. on its machine:   sudo tools/etcd-multi-nodes.sh start --existing etcdN DIR/etcdN etcd1=10.0.0.1 …
#
# With another address for etcdN where its machine is another one: make a certificate for it first (certificates), and
# change ETCD in each master's docklet.conf. Where most are lost, a snapshot is restored: docs/how-to/back-up.md.
#
# DOCKLET_ETCD_QUOTA_BYTES says how large a member's file may grow (8 GiB): the same at the start of each.
#
# Hosts get certificates of their own when they join (docklet-master token). Where hosts have joined already, copy ca.crt
# and ca.key of the master's FS_PREFIX/local/identity into DIR before the first step, so that they are known on.
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
  [[ -e $dir/ca.crt ]] || make_authority "$dir"
  if [[ ! -e $dir/master/master.crt ]]; then
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

# find_member NAME MEMBER…: sets IP, and OTHERS to the addresses of the rest.
find_member() {
  local name=$1 member
  shift
  IP='' OTHERS=()
  for member in "$@"; do
    parse_member "$member"
    if [[ $MEMBER_NAME == "$name" ]]; then IP=$MEMBER_IP; else OTHERS+=("$MEMBER_IP"); fi
  done
  [[ -n $IP ]] || die "$name is not among the members"
}

# as_member FROM CURL-ARGUMENTS…: with a member's certificate, which opens nothing but what members tell each other.
as_member() {
  local from=$1
  shift
  # At the port for members etcd offers HTTP/2 and then closes it.
  curl --http1.1 --silent --fail --max-time 3 --cacert "$from/ca.crt" --cert "$from/server.crt" --key "$from/server.key" "$@"
}

# Whether this member serves, which it does once most members do. Anybody with a certificate may ask.
member_serves() { as_member "$1" --output /dev/null "https://127.0.0.1:$CLIENT_PORT/health"; }

# A member with an empty disk must be a new one to the others: as the one it was it would have forgotten its votes.
check_expected() {
  local name=$1 from=$2 other members
  for other in "${OTHERS[@]}"; do
    members=$(as_member "$from" "https://$other:$PEER_PORT/members") || continue
    if jq --exit-status --arg url "https://$IP:$PEER_PORT" \
      'any(.[]; (.peerURLs | index($url)) and (.name // "") == "")' <<<"$members" >/dev/null; then
      return
    fi
    die "the others do not wait for a new $name at $IP; first, on a master: etcd-multi-nodes.sh replace $name …"
  done
  die "no other member answers at port $PEER_PORT: ${OTHERS[*]}"
}

# start new|existing NAME FROM MEMBER…
start() {
  local state=$1 name=$2 from=$3 initial data why
  shift 3
  find_member "$name" "$@"
  [[ -r $from/server.key ]] || die "$from has no server.key; make it with: etcd-multi-nodes.sh certificates"
  if member_runs; then
    say "etcd runs already"
    return
  fi
  data=$(member_data)/data
  if [[ $state == existing ]]; then
    [[ ! -e $data ]] || die "$data is there: start it without --existing; or, where $name was replaced, move it away"
    check_expected "$name" "$from"
  fi
  mkdir -p "$(fs_prefix)/local"
  umask 077
  initial=$(initial_cluster "$@")
  install_member "$from"
  etcd_arguments "$name" "$IP" "$initial" "$state"
  start_member
  # What is wrong with its data it notices within a second or two; the first one of new members waits for others.
  wait_until 5 member_runs || true
  wait_until 5 eval "member_serves '$from' || ! member_runs" || true
  if ! member_runs; then
    why=$(why_it_ended "$name")
    # systemd would try it again and again.
    stop_member
    die "$why"
  fi
  # It answers once more than half of the members run.
  say "etcd member $name runs; it serves once most members do (etcd-multi-nodes.sh status)"
}

why_it_ended() {
  local name=$1 said
  said=$(tail -n 20 "$(member_log)" 2>/dev/null || true)
  if has_systemd; then said=$(journalctl --unit "$UNIT" --lines 20 --no-pager); fi
  case $said in
    *'has already been bootstrapped'*)
      printf '%s has no data, but the others know it: replace it (etcd-multi-nodes.sh replace, on a master)\n' "$name"
      ;;
    *'permanently removed'* | *'removed from the cluster'*)
      printf '%s was replaced; move %s away and start it with --existing\n' "$name" "$(member_data)/data"
      ;;
    *) printf 'etcd ended at once; see %s\n' "$(if has_systemd; then printf 'journalctl -u %s' "$UNIT"; else member_log; fi)" ;;
  esac
}

# Takes a lost member out of the cluster and lets a new one of its name in. May be run again.
replace() {
  local name=$1 other serving='' found id started url
  shift
  find_member "$name" "$@"
  [[ -r $(identity_directory)/master.key ]] || die "no master's certificate in $(identity_directory)"
  for other in "${OTHERS[@]}"; do
    if etcdctl_client "$other" endpoint health >/dev/null 2>&1; then
      serving=$other
      break
    fi
  done
  [[ -n $serving ]] || die "no other member serves (${OTHERS[*]}): more than half of all must run to replace one. Start \
those that have their data; where most are lost for good, restore a snapshot (docs/how-to/back-up.md)"
  # Lines such as: 8211f1d0f64f3269, started, etcd2, https://10.0.0.2:2380, https://10.0.0.2:2379, false
  found=$(etcdctl_client "$serving" member list |
    awk -F ', ' -v name="$name" -v url="https://$IP:$PEER_PORT" '$3 == name || $4 == url { print $1, $2, $4 }')
  [[ $(wc -l <<<"$found") -eq 1 ]] || die "more than one member is called $name or is at $IP: etcd-multi-nodes.sh status"
  read -r id started url <<<"$found"
  if [[ ${started-} == started ]] && etcdctl_client "$(host_of "$url")" endpoint health >/dev/null 2>&1; then
    die "$name serves at $(host_of "$url"); only one that is lost is replaced. To replace it all the same, stop it first"
  fi
  if [[ ${started-} == unstarted && $url == "https://$IP:$PEER_PORT" ]]; then
    say "a new $name is waited for already"
  else
    [[ -z $id ]] || etcdctl_client "$serving" member remove "$id"
    # Members let no other in before all have been connected for some seconds.
    wait_until 20 add_member "$serving" "$name" 2>/dev/null || add_member "$serving" "$name" ||
      die "$name was taken out, but no new one let in; run this again"
  fi
  say "now on $IP, without $name's old data:"
  say "  sudo tools/etcd-multi-nodes.sh start --existing $name DIR/$name $*"
}

add_member() { etcdctl_client "$1" member add "$2" --peer-urls "https://$IP:$PEER_PORT" >/dev/null; }

# host_of https://10.0.0.2:2380
host_of() {
  local rest=${1#*://}
  printf '%s\n' "${rest%:*}"
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
      local state=new
      if [[ ${1-} == --existing ]]; then
        state=existing
        shift
      fi
      [[ $# -ge 3 ]] || usage
      require_root
      require_programs etcd curl jq
      start "$state" "$@"
      ;;
    replace)
      [[ $# -ge 3 ]] || usage
      require_root
      require_programs etcdctl
      replace "$@"
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
