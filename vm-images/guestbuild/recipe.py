"""What the guest consists of: packages, programs, kernel modules, settings. Data only.

Nothing is in the guest that is not named here or needed by something that is: programs bring the
libraries that they are linked with, modules the modules that they depend on.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
PYTHON = "3.13"
EPOCH_S = 1_735_689_600  # 2025-01-01T00:00:00Z, time stamp of every file


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between processors. ``wheel_platforms`` are pip's names, newest first."""

    debian: str
    kernel_package: str
    triplet: str
    loader: str  # in the merged /usr
    wheel_platforms: tuple[str, ...]
    console: str
    busybox_image: str


ARCHITECTURES = {
    "amd64": Architecture(
        "amd64",
        "linux-image-amd64",
        "x86_64-linux-gnu",
        "usr/lib64/ld-linux-x86-64.so.2",
        ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64"),
        "ttyS0",
        "amd64",
    ),
    "arm64": Architecture(
        "arm64",
        "linux-image-arm64",
        "aarch64-linux-gnu",
        "usr/lib/ld-linux-aarch64.so.1",
        ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64"),
        "ttyAMA0",
        "arm64",
    ),
}


def host_architecture() -> str:
    """Return this computer's architecture in Debian's words."""
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


PACKAGES = (
    "apparmor",
    "busybox-static",
    "ca-certificates",
    "docker-registry",  # not in the guest itself: registry.py
    "e2fsprogs",
    "kmod",
    "libnftables1",
    "libseccomp2",
    "netbase",
    "netcat-openbsd",
    "nftables",
    "openssh-client",
    "openssh-server",
    "python3.13",
    "sshfs",
    "tini",
    "xz-utils",
)

PROGRAMS = {
    "usr/bin/busybox": "usr/bin/busybox",
    "usr/bin/kmod": "usr/bin/kmod",
    "usr/bin/nc.openbsd": "usr/bin/nc",
    "usr/bin/python3.13": "usr/bin/python3.13",
    "usr/bin/scp": "usr/bin/scp",
    "usr/bin/ssh-keygen": "usr/bin/ssh-keygen",
    "usr/bin/sshfs": "usr/bin/sshfs",
    "usr/bin/tini-static": "usr/bin/tini-static",
    "usr/bin/xz": "usr/bin/xz",
    "usr/lib/openssh/sshd-auth": "usr/lib/openssh/sshd-auth",
    "usr/lib/openssh/sshd-session": "usr/lib/openssh/sshd-session",
    "usr/lib/openssh/sftp-server": "usr/lib/openssh/sftp-server",
    "usr/sbin/e2fsck": "usr/sbin/e2fsck",
    "usr/sbin/mke2fs": "usr/sbin/mke2fs",
    "usr/sbin/nft": "usr/sbin/nft",
    "usr/sbin/resize2fs": "usr/sbin/resize2fs",
    "usr/sbin/sshd": "usr/sbin/sshd",
}
"""Program in its package: its place in the guest."""

LOADED_LIBRARIES = ("libseccomp.so.2", "libnftables.so.1", "libgcc_s.so.1")
"""Libraries that programs load by name at run time (the engine; Python's and glibc's threads)."""

DATA_FILES = ("etc/protocols", "etc/services", "etc/mke2fs.conf", "usr/lib/ssl/openssl.cnf")

LINKS = {
    "usr/bin/python3": "python3.13",
    "usr/bin/modprobe": "kmod",
    "usr/bin/lsmod": "kmod",
    "usr/bin/insmod": "kmod",
    "usr/bin/rmmod": "kmod",
    "usr/bin/depmod": "kmod",
    "usr/bin/modinfo": "kmod",
    "usr/sbin/modprobe": "../bin/kmod",
    "usr/sbin/mkfs.ext4": "mke2fs",
    "usr/sbin/fsck.ext4": "e2fsck",
    "usr/sbin/init": "../bin/busybox",
    "usr/sbin/halt": "poweroff",
    "usr/sbin/reboot": "poweroff",
    "usr/sbin/shutdown": "poweroff",
    "usr/lib/ssl/certs": "/etc/ssl/certs",
    "usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt",
    # What a user installs by hand survives reboots and new images.
    "usr/local": "/var/lib/desk/local",
}

APPLETS_LEFT_OUT = frozenset({
    # Programs of the guest's own, or of no use without a console login, a floppy or a second init.
    "busybox", "adjtimex", "ar", "fdflush", "fdformat", "getty", "halt", "i2cdetect", "i2cdump",
    "i2cget", "i2cset", "i2ctransfer", "init", "insmod", "linuxrc", "lsmod", "modinfo", "modprobe",
    "depmod", "nc", "poweroff", "reboot", "rmmod", "rpm", "rpm2cpio", "dpkg", "dpkg-deb", "sudo",
    "shutdown", "start-stop-daemon", "syslogd", "klogd", "svc", "svok", "xz", "su", "login",
})  # fmt: skip

ROOT_DIRECTORIES = {
    "dev": 0o755, "etc": 0o755, "etc/desk": 0o755, "etc/ssl/certs": 0o755, "home": 0o755,
    "media": 0o755, "mnt": 0o755, "opt": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755,
    "run/desk-folders": 0o711,
    "run/sshd": 0o755, "run/lock": 0o1777, "srv": 0o755, "sys": 0o555, "tmp": 0o1777,
    "var/cache": 0o755, "var/lib/desk": 0o755, "var/log": 0o755, "var/spool": 0o755,
    "var/tmp": 0o1777,
}  # fmt: skip
ROOT_LINKS = {
    "bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
    "var/run": "../run", "var/lock": "../run/lock", "etc/mtab": "/proc/self/mounts",
    "etc/os-release": "../usr/lib/os-release", "run/docker.sock": "desk/engine.sock",
    "etc/ssl/certs/ca-certificates.crt": "/usr/share/desk/ca-certificates.crt",
}  # fmt: skip
"""The skeleton of "/", copied into memory at every boot; everything else is the read-only /usr."""

# --- Python ------------------------------------------------------------------------------------

STDLIB_LEFT_OUT = (
    "__phello__", "_pyrepl", "config-3.13-*", "ctypes/macholib", "curses", "dbm", "distutils",
    "ensurepip", "idlelib", "lib2to3", "pydoc.py", "pydoc_data", "test", "tkinter", "turtle.py",
    "turtledemo", "unittest", "venv", "wsgiref", "xmlrpc", "sqlite3/__main__.py", "doctest.py",
    "this.py", "antigravity.py", "_aix_support.py", "_apple_support.py", "_ios_support.py",
    "_android_support.py", "msilib", "nturl2path.py",
    # Alphabets of other systems' files, which nobody reads in the guest.
    "encodings/big5*", "encodings/cp[0-35-9]*", "encodings/euc_*", "encodings/gb*",
    "encodings/hp_*", "encodings/hz*", "encodings/iso2022*", "encodings/iso8859_[2-9]*",
    "encodings/iso8859_1[0-9]*", "encodings/johab*", "encodings/koi8*", "encodings/kz1048*",
    "encodings/mac_*", "encodings/palmos*", "encodings/ptcp154*", "encodings/shift_jis*",
    "encodings/tis_620*", "lib-dynload/_codecs_*", "lib-dynload/_multibytecodec*",
    # Debuggers, profilers, mail, sound, browsers; interpreters in interpreters.
    "bdb.py", "cProfile.py", "colorsys.py", "ftplib.py", "imaplib.py", "mailbox.py",
    "modulefinder.py", "pdb.py", "pickletools.py", "poplib.py", "profile.py", "pstats.py",
    "pyclbr.py", "rlcompleter.py", "shelve.py", "smtplib.py", "symtable.py", "tabnanny.py",
    "trace.py", "wave.py", "webbrowser.py", "lib-dynload/_interp*", "lib-dynload/_lsprof*",
    "lib-dynload/_curses*", "lib-dynload/_dbm*", "lib-dynload/_gdbm*", "lib-dynload/_test*",
    "lib-dynload/_tkinter*", "lib-dynload/_crypt*", "lib-dynload/readline*",
    "lib-dynload/_ctypes_test*", "lib-dynload/xx*", "EXTERNALLY-MANAGED", "sitecustomize.py",
)  # fmt: skip

DISTRIBUTION_LEFT_OUT = (
    "pyroute2/config/test_platform.py", "**/tests", "**/test_*.py", "bin", "**/*.pyi", "**/*.c",
    "**/*.h", "**/*.pyx", "**/*.pxd", "zstandard/backend_cffi.py", "zstandard/_cffi*",
    "wcwidth/_wcwidth_c*",  # an accelerator that its Python does without
)  # fmt: skip

# Of Desk's own commands the guest has those for its engine, see desk.cli.in_machine.
COMMANDS_NEED = ("click", "httptools", "wcwidth")
DESKTOP_LEFT_OUT = (
    "agent", "gui", "machine", "ssh", "cli/commands/machine*.py", "cli/commands/doctor.py",
    "cli/commands/env.py", "cli/commands/gui.py", "cli/commands/guest_image.py",
    "cli/commands/registry.py", "cli/commands/undo.py", "cli/commands/up.py",
    "cli/machine_flags.py", "cli/windows_*.py", "cli/shells.py",
)  # fmt: skip

# --- kernel ------------------------------------------------------------------------------------

INITRAMFS_ALONE = ("virtio_balloon",)  # while there is one processor, see the script
INITRAMFS_FIRST = ("virtio_blk", "squashfs")
INITRAMFS_LATER = ("crc32c_generic", "crc32c_intel", "crc32c_arm64", "ext4", "virtio_net")
INITRAMFS_BOX = ("ata_piix", "ahci", "virtio_scsi", "sd_mod", "mptspi", "hv_storvsc")

MODULES = (
    # disks and file systems
    "virtio_blk", "virtio_scsi", "sd_mod", "sr_mod", "ata_piix", "ahci", "erofs", "ext4", "overlay",
    "squashfs", "isofs", "vfat", "nls_iso8859_1", "nls_cp437", "nls_utf8", "loop", "fuse",
    "virtiofs", "9p", "9pnet_virtio", "nfs", "nfsv4", "nfsd", "cifs", "autofs4", "binfmt_misc",
    "dm_mod", "dm_crypt", "dm_snapshot", "nbd",
    # ciphers and checksums that file systems ask for by algorithm, not by dependency
    "crc32c_generic", "crc32c_intel", "crc32c_arm64", "crc32_pclmul", "cmac", "ccm", "gcm", "ctr",
    "ecb", "aes_generic", "md5", "md4", "sha256_generic", "sha512_generic", "hmac", "cts",
    # network cards and devices
    "virtio_net", "e1000", "e1000e", "tulip", "veth", "bridge", "br_netfilter", "macvlan",
    "macvtap", "ipvlan", "ipvtap", "vxlan", "dummy", "tun", "ifb", "wireguard", "8021q", "bonding",
    "geneve", "ip_gre", "ip6_gre", "ipip", "ip6_tunnel", "sit", "fou", "vrf", "tcp_bbr", "tls",
    # what network programs in containers load by asking for it: IPsec, dial-up and VPN tunnels,
    # load balancing, software switches and routers, buses of vehicles
    "xfrm_user", "xfrm_interface", "af_key", "esp4", "esp6", "ah4", "authenc", "echainiv", "seqiv",
    "cbc", "ppp_generic", "ppp_async", "ppp_mppe", "pppoe", "l2tp_ppp", "ip_vs", "ip_vs_rr",
    "ip_vs_wrr", "ip_vs_lc", "ip_vs_sh", "openvswitch", "mpls_router", "mpls_iptunnel", "can",
    "can_raw", "can_bcm", "can_isotp", "vcan", "vxcan",
    # memory, entropy, sockets to the host, power button
    "virtio_balloon", "virtio_mem", "virtio-rng", "virtio_console", "vsock",
    "vmw_vsock_virtio_transport", "evdev", "button", "gpio_keys",
    # other hypervisors
    "mptspi", "vboxguest", "vboxsf", "hv_vmbus", "hv_storvsc", "hv_netvsc", "hv_utils",
    "hv_balloon", "hyperv_keyboard", "vmw_pvscsi", "vmxnet3", "vmw_balloon",
    # traffic control
    "sch_netem", "sch_tbf", "sch_htb", "sch_ingress", "sch_prio", "sch_fq_codel", "sch_fq",
    "sch_cake", "sch_sfq", "sch_codel", "sch_hfsc", "sch_red", "sch_multiq", "cls_fw", "cls_basic",
    "cls_route", "cls_u32", "cls_matchall", "cls_flower", "cls_bpf", "cls_cgroup", "act_mirred",
    "act_police", "act_gact", "act_ct", "act_pedit", "act_skbedit", "act_vlan", "act_tunnel_key",
    "act_bpf",
    # diagnostics of sockets (ss), used by compose health checks and the like
    "tcp_diag", "udp_diag", "inet_diag", "unix_diag", "netlink_diag", "sctp", "sctp_diag",
)  # fmt: skip
MODULE_DIRECTORIES = (
    "kernel/net/netfilter",
    "kernel/net/ipv4/netfilter",
    "kernel/net/ipv6/netfilter",
    "kernel/net/bridge/netfilter",
)
MODULES_LEFT_OUT = ("ip_vs_*", "nf_conntrack_h323", "nf_nat_h323", "xt_*trace*")
REQUIRED_FEATURES = (
    "overlay", "veth", "bridge", "nf_tables", "nft_chain_nat", "nft_masq", "nft_ct", "nft_fib_inet",
    "sch_netem", "virtio_mem", "virtio_balloon", "virtiofs", "9p", "fuse", "macvlan", "ipvlan",
    "vxlan", "tun", "dummy", "wireguard", "loop", "dm_mod", "nfsv4", "cifs", "binfmt_misc",
    "br_netfilter", "nft_compat", "ip_tables", "ip6_tables", "xt_conntrack", "xt_MASQUERADE",
    "ip_vs",
)  # fmt: skip
"""Modules, or built into the kernel; the build fails where one is neither."""

CMDLINE = (
    "console={console} quiet panic=-1 rdinit=/init lpj=10000000 cryptomgr.notests "
    "random.trust_cpu=on "
    "lsm=landlock,yama,apparmor,bpf "
    "initcall_blacklist=cmos_init,jent_mod_init,load_system_certificate_list,crypto_kdf108_init,"
    "trace_eval_init,ftrace_check_for_weak_functions,init_ima,init_evm,init_encrypted,"
    "blake2s_mod_init,bpf_dummy_struct_ops_init,btree_module_init,damon_reclaim_init,"
    "damon_lru_sort_init"
)
"""``lpj`` saves a calibration; the blacklisted initialisers cost time under emulation and give
nothing here: the clock is read without the RTC driver, there is a virtio entropy device, and
modules are not checked for signatures. ``cryptomgr.notests`` leaves out self-tests of ciphers, of
which ``crypto_kdf108_init``, ``blake2s_mod_init`` and ``bpf_dummy_struct_ops_init`` are more.
``trace_eval_init`` writes the values of enumerations into the formats of all trace events;
``ftrace_check_for_weak_functions`` looks up the names of 45,000 functions, a sixth of the kernel's
boot, to leave some out of a list. Nothing uses the B-trees or DAMON's two policies. Of the security
modules those stay that programs in containers can use; the others (TOMOYO, IMA, EVM, lockdown) do
nothing without a policy but are asked each time."""

CMDLINE_BOX = "no_timer_check"
"""Under a real hypervisor Linux leaves this check out by itself. Emulated on a busy computer, the
timer is late for it, and the kernel goes on with fallbacks that are meant for broken hardware."""

CMDLINE_DIRECT = "maxcpus=1 noreplace-smp tsc=reliable"
CMDLINE_DIRECT_X86 = "acpi=noirq no_timer_check initcall_blacklist=i8042_init"
"""What QEMU's machines get in addition, which the recipe's kernel and initramfs belong to.

The kernel starts on one processor and the initramfs brings up the others: under emulation a waiting
second processor costs the first one time.
``acpi=noirq`` spares 0.3 s for each device: ACPI's search for its interrupt line, which no virtio
device uses (they have MSI-X). ``pci=noacpi`` would do more: without ACPI's windows the kernel moves
the devices' registers, and above 4 GiB into the place of memory that is plugged in later. Such a
machine has no keyboard to look for."""
