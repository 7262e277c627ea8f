# What containers may do where the kernel has AppArmor and no other profile was asked for: the rules
# of Docker's default profile, under its name. Without includes, so that it compiles the same everywhere.
@{PROC}=/proc/

profile docker-default flags=(attach_disconnected,mediate_deleted) {
  # Namespaces, capabilities and the device list do the rest.
  capability,
  file,
  network,
  umount,
  deny mount,

  # The engine and its monitors are not confined; containers reach each other only.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=docker-default,
  ptrace (trace, read, tracedby, readby) peer=docker-default,

  # /proc: the processes' own directories and the sysctls of shared memory may be written to.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  # /sys: control groups, where they are mounted writable, and nothing else.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
