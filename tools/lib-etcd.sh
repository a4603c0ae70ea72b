# shellcheck shell=bash
# Members of an etcd cluster of its own: certificates, starting, stopping. Sourced by etcd-one-node.sh and
# etcd-multi-nodes.sh.
#
# One authority makes the certificates of the members here and those of Docklet's masters and workers later, which is why
# masters need its key. Nobody without a certificate gets in; members take each other by their name in it, so that no
# other certificate of the authority makes a member.

CLIENT_PORT=2379
PEER_PORT=2380
readonly UNIT=docklet-etcd.service
readonly VALID_DAYS=3650
# The name in members' certificates, as in those that a master makes for an etcd of its own.
readonly MEMBER=docklet-etcd
readonly MASTER=docklet-master

member_data() { printf '%s/local/etcd-member\n' "$(fs_prefix)"; }
member_log() { printf '%s/local/log/etcd-member.log\n' "$(fs_prefix)"; }
# Where Docklet's own programs look for their certificates.
identity_directory() { printf '%s/local/identity\n' "$(fs_prefix)"; }

require_programs() {
  local name
  for name in "$@"; do
    command -v "$name" >/dev/null || die "$name is missing; ./prepare.sh --deps installs what is needed"
  done
}

valid_ip() { [[ $1 =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]]; }

# parse_member NAME=IP: sets MEMBER_NAME and MEMBER_IP.
parse_member() {
  MEMBER_NAME=${1%%=*}
  MEMBER_IP=${1#*=}
  if [[ $1 != *=* || ! $MEMBER_NAME =~ ^[a-z][a-z0-9-]*$ ]] || ! valid_ip "$MEMBER_IP"; then
    die "'$1' is not NAME=IP such as etcd1=10.0.0.1"
  fi
}

new_key() {
  openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null
}

make_authority() {
  local dir=$1
  new_key "$dir/ca.key"
  openssl req -x509 -new -key "$dir/ca.key" -out "$dir/ca.crt" -days "$VALID_DAYS" -subj '/CN=Docklet'
}

# issue AUTHORITY-DIR TARGET-PREFIX COMMON-NAME EXTENSIONS
issue() {
  local authority=$1 target=$2 name=$3 extensions=$4
  new_key "$target.key"
  openssl req -new -key "$target.key" -subj "/CN=$name" |
    openssl x509 -req -CA "$authority/ca.crt" -CAkey "$authority/ca.key" -CAcreateserial -days "$VALID_DAYS" \
      -extfile <(printf '%s\n' "$extensions") -out "$target.crt" 2>/dev/null
}

# A member speaks to other members as server and as client.
issue_member() {
  local authority=$1 dir=$2 name=$3 ip=$4
  mkdir -p "$dir"
  [[ $authority -ef $dir ]] || cp "$authority/ca.crt" "$dir/ca.crt"
  issue "$authority" "$dir/server" "$MEMBER" "extendedKeyUsage=serverAuth,clientAuth
subjectAltName=IP:$ip,IP:127.0.0.1,DNS:localhost,DNS:$name"
}

# The master's own certificate; it makes itself another before this one ends.
issue_master() {
  local authority=$1 dir=$2
  issue "$authority" "$dir/master" "$MASTER" "extendedKeyUsage=serverAuth,clientAuth
subjectAltName=DNS:$MASTER"
}

# install_member FROM: a member's certificate.
install_member() {
  local from=$1 data name
  data=$(member_data)
  mkdir -p "$data/certificates"
  chmod 0700 "$data"
  for name in ca.crt server.crt server.key; do
    install -m 0600 "$from/$name" "$data/certificates/$name"
  done
}

# install_master FROM: the authority with its key, and a master's certificate.
install_master() {
  local from=$1 identity name
  identity=$(identity_directory)
  mkdir -p "$identity"
  chmod 0700 "$identity"
  for name in ca.key master.crt master.key ca.crt; do
    install -m 0600 "$from/$name" "$identity/$name"
  done
}

# How large a member's file may grow before the cluster takes no more writes (docs/how-to/several-hosts.md).
quota_bytes() {
  local bytes=${DOCKLET_ETCD_QUOTA_BYTES:-8589934592}
  [[ $bytes =~ ^[0-9]+$ ]] || die "DOCKLET_ETCD_QUOTA_BYTES=$bytes is not a number of bytes"
  printf '%s\n' "$bytes"
}

# etcd_arguments NAME IP INITIAL-CLUSTER new|existing: sets ARGUMENTS. The state counts only where there is no data yet.
etcd_arguments() {
  local name=$1 ip=$2 initial=$3 state=$4 data quota
  data=$(member_data)
  quota=$(quota_bytes)
  ARGUMENTS=(
    --name "$name" --data-dir "$data/data"
    --listen-client-urls "https://$ip:$CLIENT_PORT,https://127.0.0.1:$CLIENT_PORT"
    --advertise-client-urls "https://$ip:$CLIENT_PORT"
    --listen-peer-urls "https://$ip:$PEER_PORT" --initial-advertise-peer-urls "https://$ip:$PEER_PORT"
    --initial-cluster "$initial" --initial-cluster-token docklet --initial-cluster-state "$state"
    --client-cert-auth --trusted-ca-file "$data/certificates/ca.crt"
    --cert-file "$data/certificates/server.crt" --key-file "$data/certificates/server.key"
    --peer-client-cert-auth --peer-cert-allowed-cn "$MEMBER" --peer-trusted-ca-file "$data/certificates/ca.crt"
    --peer-cert-file "$data/certificates/server.crt" --peer-key-file "$data/certificates/server.key"
    --max-txn-ops 4096 --max-request-bytes 8388608 --auto-compaction-retention 10m --quota-backend-bytes "$quota"
    --snapshot-count 5000
    --logger zap
  )
}

# etcdctl_client IP COMMAND…: as a master.
etcdctl_client() {
  local ip=$1 identity
  identity=$(identity_directory)
  shift
  ETCDCTL_API=3 etcdctl --endpoints "https://$ip:$CLIENT_PORT" --cacert "$identity/ca.crt" \
    --cert "$identity/master.crt" --key "$identity/master.key" --command-timeout 3s "$@"
}

member_pid() {
  local pid
  pid=$(cat "$(member_data)/pid" 2>/dev/null) || return 1
  # A number that was given to another program since then is not ours.
  [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$(readlink -f "$(command -v etcd)")" ]] && printf '%s\n' "$pid"
}

member_runs() {
  if has_systemd; then
    # A member that waits for the others is not active yet, and one that ends is started again and again.
    [[ $(systemctl show --property SubState --value "$UNIT") =~ ^(start|running)$ ]]
  else
    member_pid >/dev/null
  fi
}

start_member() {
  mkdir -p "$(dirname "$(member_log)")"
  if has_systemd; then
    write_unit
    systemctl enable --quiet "$UNIT"
    systemctl restart --no-block "$UNIT"
  else
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid --fork bash -c 'echo $$ >"$1"; shift; exec "$@"' bash "$(member_data)/pid" \
      "$(command -v etcd)" "${ARGUMENTS[@]}" >>"$(member_log)" 2>&1 </dev/null
  fi
}

write_unit() {
  {
    printf '[Unit]\nDescription=etcd member for Docklet\nAfter=network-online.target\nWants=network-online.target\n\n'
    printf '[Service]\nType=notify\nRestart=always\nRestartSec=2\nTimeoutStartSec=infinity\nLimitNOFILE=65536\nExecStart=%s' "$(command -v etcd)"
    printf ' "%s"' "${ARGUMENTS[@]}"
    printf '\n\n[Install]\nWantedBy=multi-user.target\n'
  } >"/etc/systemd/system/$UNIT"
  systemctl daemon-reload
}

stop_member() {
  local pid
  if has_systemd; then
    systemctl disable --quiet --now "$UNIT"
  elif pid=$(member_pid); then
    kill "$pid"
    wait_until 15 eval '! member_pid >/dev/null' || die "etcd (process $pid) did not stop within 15 s"
  fi
}
