#!/bin/bash
# Run as root in the virtual machine of stock-kernel.sh, whose second disk is at /mnt. Installs Docklet as prepare.sh
# does and puts it through what differs between machines: systemd, cgroup version 2, this kernel. Writes TAP.
# shellcheck disable=SC2317 # the tests are called by name
set -uo pipefail

readonly CONF=/etc/docklet/docklet.conf CGROUP=/sys/fs/cgroup
export HOME=/root
TESTS=0

# check NAME COMMAND…: one test. What a failing one printed is told.
check() {
  local name=$1 start=$EPOCHREALTIME output verdict=ok
  shift
  output=$("$@" 2>&1) || verdict='not ok'
  TESTS=$((TESTS + 1))
  printf '%s %d - %s # %s ms\n' "$verdict" "$TESTS" "$name" "$(((${EPOCHREALTIME/./} - ${start/./}) / 1000))"
  [[ $verdict == ok ]] || printf '  # %s\n' "${output//$'\n'/$'\n  # '}"
}

# eventually SECONDS COMMAND…
eventually() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

same() { [[ $1 == "$2" ]] || { printf 'expected %s\ngot      %s\n' "$2" "$1"; return 1; }; }

worker() { docklet-worker --config "$CONF" "$@"; }

# in_node N COMMAND…
in_node() {
  local node=$1
  shift
  docklet exec "demo/node$node" --no-stdin -- "$@"
}

# ---- Installation ---------------------------------------------------------------------------------------------------

is_stock() {
  uname -a
  [[ $(uname -r) == 6.1.*-cloud-amd64 ]] && same "$(stat -fc %T "$CGROUP")" cgroup2fs && [[ -d /run/systemd/system ]]
}

# After a restart the server opens files only once all clients had the time to claim theirs: seconds here, 90 as it comes.
share_by_nfs() {
  mkdir -p /srv/global /opt/docklet/global &&
    printf '[nfsd]\ngrace-time=5\nlease-time=5\n' >/etc/nfs.conf.d/test.conf &&
    printf '/srv/global 127.0.0.1(rw,sync,no_subtree_check,no_root_squash)\n' >/etc/exports &&
    printf '127.0.0.1:/srv/global /opt/docklet/global nfs hard,_netdev,x-systemd.after=nfs-server.service 0 0\n' \
      >>/etc/fstab &&
    systemctl daemon-reload && systemctl enable --quiet --now nfs-server && mount /opt/docklet/global &&
    same "$(stat -fc %T /opt/docklet/global)" nfs
}

install_docklet() {
  install -m 0755 /mnt/bin/* /usr/local/bin/ &&
    install -D -m 0644 /mnt/docklet.conf "$CONF" &&
    mkdir -p /opt/docklet/global/images && cp -r /mnt/images/small /opt/docklet/global/images/ &&
    install -m 0644 /mnt/units/* /etc/systemd/system/ && systemctl daemon-reload
}

# It serves once another one does, and is not given up before.
first_of_three() {
  local tool=/mnt/tools/etcd-multi-nodes.sh
  local -a members=(etcd1=127.0.0.2 etcd2=127.0.0.3 etcd3=127.0.0.4)
  bash "$tool" certificates /root/etcd "${members[@]}" &&
    timeout 60 bash "$tool" start etcd1 /root/etcd/etcd1 "${members[@]}" &&
    same "$(systemctl show --property SubState --value docklet-etcd)" start &&
    bash "$tool" stop && rm -r /root/etcd /opt/docklet/local/etcd-member
}

init() { docklet-master --config "$CONF" init && docklet-master --config "$CONF" stop; }

start_services() {
  systemctl start docklet-master docklet-worker &&
    systemctl enable --quiet docklet-master docklet-worker &&
    systemctl is-active docklet-master docklet-worker
}

no_check_fails() { worker check; }

is_ready() { curl --silent --fail --max-time 5 --output /dev/null http://localhost:8000/readyz; }

sign_in() { docklet login root </opt/docklet/local/generated_password.txt; }

# How many nodes are booted ahead, and how many others there are.
ahead() { docklet host show stock -o json | jq --raw-output '"\(.nodes_warm) \(.nodes)"'; }
are_ahead() { [[ $(ahead) == "$1 "* ]]; }
stand_still() { same "$(grep -lx 'frozen 1' "$CGROUP"/lxc.payload.dk-*/cgroup.events | wc -l)" 2; }

# ---- A vcluster -----------------------------------------------------------------------------------------------------

create() {
  docklet create demo -n 2 --image small --cpu 0.5 --memory 256m --disk 128m && return
  docklet logs demo
  return 1
}

was_thawed() {
  same "$(docklet status demo --timing -o json | jq --raw-output '[.operations[0].steps[].step] | contains(["thaw"])')" true
}

knows_its_name() { same "$(in_node 1 hostname)" node1; }
is_root_inside() { same "$(in_node 2 id -u)" 0; }
reaches_by_name() { same "$(in_node 1 ssh -o BatchMode=yes node2 hostname)" node2; }
no_unit_failed() { same "$(in_node 1 systemctl --failed --plain --no-legend)" ""; }

is_confined() {
  same "$(in_node 1 cat /proc/1/attr/current /proc/self/attr/current | uniq)" "docklet-node (enforce)"
}

# What many of Debian's own units ask for.
runs_sandboxed_units() {
  in_node 1 systemd-run --quiet --wait -p PrivateTmp=yes -p PrivateDevices=yes -p ProtectSystem=strict \
    -p ProtectHome=yes -p ProtectControlGroups=yes -p ProtectKernelTunables=yes true
}

nothing_was_denied() { same "$(journalctl --dmesg --no-pager --grep 'apparmor="DENIED".*docklet-node')" "-- No entries --"; }

# The worker is, and a node must not inherit it or get it for itself.
is_not_spared() {
  same "$(in_node 1 cat /proc/1/oom_score_adj /proc/self/oom_score_adj | uniq)" 0 &&
    ! in_node 1 bash -c 'echo -1 >/proc/self/oom_score_adj'
}

# ---- Users' files ----------------------------------------------------------------------------------------------------

shares_files() {
  in_node 1 sh -c 'echo hello >nfs/file && mkdir nfs/sub' &&
    same "$(in_node 2 sh -c 'cat nfs/file && stat -c "%u %g" nfs nfs/file nfs/sub')" $'hello\n0 0\n0 0\n0 0'
}

same_file_again() { same "$(in_node 2 cat nfs/file)" hello; }

loses_no_line() {
  # shellcheck disable=SC2016 # expanded in the node
  local node script='for i in $(seq 100); do echo "$(hostname) $i" >>nfs/log; done'
  for node in 1 2; do in_node "$node" sh -c "$script" & done
  wait
  same "$(in_node 1 sh -c 'sort -u nfs/log | wc -l')" 200
}

nobody_else_looks() {
  same "$(stat -c %a /opt/docklet/global/users/root/data)" 700 &&
    ! setpriv --reuid 4242 --regid 4242 --clear-groups ls /opt/docklet/global/users/root/data
}

# shared_directory_is ok|failed: the outcome of the host's check.
shared_directory_is() {
  docklet host show stock -o json |
    jq --exit-status --arg outcome "$1" 'any(.checks[]; .name == "shared_directory" and .outcome == $outcome)'
}

# What needs no file of it goes on while its server is away.
survives_the_server() {
  systemctl stop nfs-server && eventually 90 shared_directory_is failed && node_1_lives &&
    systemctl start nfs-server && eventually 120 shared_directory_is ok &&
    same "$(in_node 2 cat nfs/file)" hello
}

# ---- Limits ---------------------------------------------------------------------------------------------------------

limits() {
  local node
  for node in "$CGROUP"/lxc.payload.dk-*; do
    (cd "$node" && grep --with-filename . cpu.max cpu.weight memory.max memory.swap.max pids.max)
  done
}

limits_are_set() {
  local one=$'cpu.max:50000 100000\ncpu.weight:50\nmemory.max:268435456\nmemory.swap.max:0\npids.max:1024'
  same "$(limits)" "$one"$'\n'"$one"
}

node_1_lives() { same "$(in_node 1 echo alive)" alive; }

too_much_memory_is_killed() {
  same "$(in_node 1 python3 -c 'bytearray(400 << 20)' >/dev/null 2>&1; printf '%s' $?)" 137 &&
    grep -qx 'oom_kill 1' "$CGROUP"/lxc.payload.dk-*/memory.events && node_1_lives
}

# By every limit, so that a person reads why something was ended.
limits_are_told() {
  local status
  status=$(docklet status demo) || return 1
  grep -q 'ran out of memory: a process was ended' <<<"$status" && grep -q 'no more could be started' <<<"$status"
}

too_many_processes_are_refused() {
  local script='
import os, threading
threading.stack_size(65536)
wait, count = threading.Event(), 0
try:
    while count < 2000:
        threading.Thread(target=wait.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count, flush=True)
os._exit(0)'
  local count
  count=$(in_node 1 python3 -c "$script") && printf '%s threads\n' "$count" &&
    ((count > 900 && count < 1024)) && node_1_lives
}

too_large_files_are_refused() {
  ! in_node 1 dd if=/dev/zero of=/large bs=1M count=160 && in_node 1 rm /large
}

# A batch system in a node can confine its jobs.
confines_its_own_jobs() {
  ! in_node 2 systemd-run --quiet --wait -p MemoryMax=32M python3 -c 'bytearray(100 << 20)' &&
    in_node 2 systemd-run --quiet --wait -p MemoryMax=32M true
}

# ---- Restarts -------------------------------------------------------------------------------------------------------

main_pid() { systemctl show --property MainPID --value "$1"; }
inits() { jq --raw-output '.init | "\(.pid) \(.start)"' /opt/docklet/local/nodes/*/run.json; }
init_lives() {
  local pid
  while read -r pid _; do [[ -d /proc/$pid ]] || return 1; done <<<"$1"
}

has_another_pid() { [[ $(main_pid "$1") != 0 && $(main_pid "$1") != "$2" ]] && systemctl is-active --quiet "$1"; }
is_running() { [[ $(docklet status demo -o json | jq --raw-output .status) == running ]]; }

# keeps_nodes COMMAND…: after it the worker is back, and finds the same inits with the same limits.
keeps_nodes() {
  local before old
  before=$(inits) old=$(main_pid docklet-worker)
  "$@" && eventually 60 has_another_pid docklet-worker "$old" && eventually 60 is_running && node_1_lives &&
    same "$(inits)" "$before" && init_lives "$before" && limits_are_set
}

restart_worker() { systemctl restart docklet-worker; }
kill_worker() { kill -KILL "$(main_pid docklet-worker)"; }

# systemd takes controllers away that no unit asks for any more.
stop_worker() {
  systemctl disable --quiet --now docklet-worker && systemctl daemon-reload &&
    systemd-run --quiet --wait -p CPUWeight=50 true && limits_are_set && init_lives "$(inits)"
}

start_worker() { stop_worker && systemctl enable --quiet --now docklet-worker; }

kill_master() {
  local etcd old
  etcd=$(pgrep -x etcd) old=$(main_pid docklet-master)
  kill -KILL "$old" && eventually 60 has_another_pid docklet-master "$old" && eventually 60 is_ready && is_running &&
    same "$(pgrep -x etcd)" "$etcd"
}

only_the_right_process_notifies() {
  ! journalctl --unit docklet-master --unit docklet-worker | grep 'reception only permitted'
}

# ---- The end --------------------------------------------------------------------------------------------------------

delete() { docklet delete demo --yes; }
only_its_own_are_there() { [[ $(find "$CGROUP" -maxdepth 1 -name 'lxc.payload.dk-*' | wc -l) == 2 ]]; }
close_host() { docklet host cordon stock && eventually 60 only_its_own_are_there; }
is_clean() { worker audit; }
no_cgroup_is_left() { same "$(find "$CGROUP" -maxdepth 1 -name 'lxc.*dk-*')" ""; }

stop_all() {
  systemctl stop docklet-worker docklet-master && same "$(systemctl --failed --plain --no-legend)" "" &&
    ! pgrep -x 'etcd|docklet-master|docklet-worker'
}

# ---------------------------------------------------------------------------------------------------------------------

before_the_reset() {
  check "Debian's kernel with systemd and cgroup version 2" is_stock
  check "FS_PREFIX/global is on NFS" share_by_nfs
  check "the programs, units and configuration are installed" install_docklet
  check "the first of three members of etcd waits for the others, and nobody for it" first_of_three
  check "docklet-master init makes a system" init
  check "systemctl starts master and worker, which say that they are ready" start_services
  check "docklet-worker check finds nothing that fails" no_check_fails
  check "the portal is ready" eventually 60 is_ready
  check "root signs in" sign_in
  check "two nodes are booted ahead for root" eventually 60 are_ahead 2
  check "they stand still" stand_still
  check "docklet create returns with two nodes" create
  check "they are those that were booted ahead" was_thawed
  check "a node knows its name" knows_its_name
  check "a node's user is root" is_root_inside
  check "one node reaches the other over ssh by its name" reaches_by_name
  check "a file written in one node is read in the other, and root owns it" shares_files
  check "two nodes append to one file, and no line is lost" loses_no_line
  check "nobody else reaches a user's files" nobody_else_looks
  check "a server of files that is away is reported, and all goes on when it is back" survives_the_server
  check "no unit failed in a node" no_unit_failed
  check "AppArmor confines a node by our profile" is_confined
  check "a node runs units that systemd puts into a sandbox" runs_sandboxed_units
  check "AppArmor denied a node nothing" nothing_was_denied
  check "a node is not kept from the kernel's choice when memory runs out" is_not_spared
  check "the limits of processor, memory and processes are set" limits_are_set
  check "a process over the memory limit is killed, and nothing else" too_much_memory_is_killed
  check "processes over the limit are refused" too_many_processes_are_refused
  check "the limits that a node ran into are told" eventually 60 limits_are_told
  check "a file over the disk limit is refused" too_large_files_are_refused
  check "a node confines its own jobs" confines_its_own_jobs
  check "nodes run on when the worker is restarted" keeps_nodes restart_worker
  check "nodes run on when the worker is killed" keeps_nodes kill_worker
  check "nodes keep their limits while the worker is stopped" keeps_nodes start_worker
  check "the master comes back when it is killed, and finds its etcd" kill_master
  check "nobody speaks to systemd in the services' names" only_the_right_process_notifies
}

after_the_reset() {
  check "master and worker start with the machine" eventually 120 is_ready
  check "root signs in after the reset" sign_in
  check "the nodes are started again by themselves" eventually 120 is_running
  check "they reach each other again" reaches_by_name
  check "users' files are there again" same_file_again
  check "nodes that were booted ahead go when their host is closed" close_host
  check "their limits are set again" limits_are_set
  check "docklet delete removes the vcluster" delete
  check "the audit finds nothing left over" is_clean
  check "no control group is left" no_cgroup_is_left
  check "systemctl stops all of it" stop_all
}

readonly MARK=/var/lib/docklet-stock-kernel
if [[ ! -e $MARK ]]; then
  before_the_reset
  printf '%s\n' "$TESTS" >"$MARK"
  sync "$MARK"
  # As if the power had failed: nothing is written that was not yet.
  printf b >/proc/sysrq-trigger
  sleep infinity
fi
TESTS=$(<"$MARK")
after_the_reset
printf '1..%d\n' "$TESTS"
