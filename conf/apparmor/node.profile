# What AppArmor refuses a node's processes. Compiled into docklet-worker, which loads it where the kernel has AppArmor.
#
# liblxc's own profile refuses mounts by their options, and with that most of Debian's services: PrivateTmp=,
# ProtectSystem= and their like begin with making `/` a slave. A node is in a user namespace, which bounds what it can
# mount better than a list can; so mounts are allowed, and files of the kernel are refused that no namespace covers.
profile docklet-node flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  mount,
  remount,
  umount,
  pivot_root,
  dbus,

  # The host's processes may signal, look at and speak to a node's; a node's may do so among themselves.
  signal (receive),
  signal peer=docklet-node,
  ptrace (readby, tracedby),
  ptrace peer=docklet-node,
  unix (receive),
  unix peer=(label=docklet-node),

  deny /proc/acpi/** rwklx,
  deny /proc/bus/** wklx,
  deny /proc/kcore rwklx,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/sys/fs/** wklx,
  deny /proc/sys/kernel/** wklx,
  deny /proc/sys/vm/** wklx,
  deny /sys/firmware/** wklx,
  deny /sys/fs/bpf/** rwklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/tracing/** rwklx,
  deny /sys/module/** wklx,
  deny /sys/power/** wklx,
}
