"""From what a client asked for to a plan: the rules of defaults, privileges and sharing.

Engine's side only. The one thing read from the machine is the device nodes that were asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from deskd.domain.container import ContainerConfig, HostConfig
from deskd.domain.mount import MountStep
from deskd.errors import InvalidArgument, Unsupported
from deskd.record import Record, field
from deskd.runtime import confinement, resource_rules
from deskd.runtime.log_options import log_spec
from deskd.runtime.plan import (
    CgroupSpec,
    ExecTarget,
    NamespaceSpec,
    NetlinkMessages,
    Plan,
    ProcessSpec,
    RootSpec,
    StreamSpec,
)

DEFAULT_CGROUP_PARENT = "desk"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_PATHS = ("/usr/bin/tini-static", "/usr/bin/docker-init", "/usr/libexec/docker/docker-init")


class _Messages(Protocol):
    """What the network hands over: ``NetlinkScript`` of the services' ports has this shape."""

    @property
    def outside(self) -> tuple[bytes, ...]: ...
    @property
    def outside_pid_offsets(self) -> tuple[int | None, ...]: ...
    @property
    def inside(self) -> tuple[bytes, ...]: ...
    @property
    def sysctls(self) -> tuple[tuple[str, str], ...]: ...


class ContainerInputs(Record, kw_only=True):
    """Everything ``build_container_plan`` needs.

    ``config`` is merged: the image's entrypoint, command, environment, user and working directory
    are already in it. ``root`` builds "/". ``mounts`` are the resolved binds and volumes
    (``HostConfig.Binds``, ``Mounts`` of types bind and volume, ``Volumes``); tmpfs mounts of
    ``HostConfig.Tmpfs`` and ``Mounts`` are added here. ``*_file`` are engine-side paths bound over
    /etc/hosts, /etc/hostname and /etc/resolv.conf (``""``: none). ``networks`` are the netlink
    scripts of the joined endpoints, in order; ``name_sockets`` asks for those of the name server
    that user-defined networks have. ``namespaces`` comes from ``resolve_namespaces``.
    ``log_path`` ``""`` writes no log; ``log_options`` are those of ``log_driver``.
    """

    container_id: str
    config: ContainerConfig
    host_config: HostConfig
    root: tuple[MountStep, ...]
    mounts: tuple[MountStep, ...] = ()
    hosts_file: str = ""
    hostname_file: str = ""
    resolv_conf_file: str = ""
    networks: Sequence[_Messages] = ()
    link_environment: tuple[str, ...] = ()
    name_sockets: bool = False
    namespaces: NamespaceSpec = field(default_factory=NamespaceSpec)
    log_driver: str = "json-file"
    log_path: str = ""
    log_options: Mapping[str, str] = field(default_factory=dict)
    log_extra: tuple[tuple[str, str], ...] = ()
    cgroup_parent: str = DEFAULT_CGROUP_PARENT


class ExecInputs(Record, kw_only=True):
    """Everything ``build_exec_plan`` needs: the container as it was started (its merged
    ``config`` and ``host_config``), its first process's PID, and the exec's own wishes. Empty
    ``user`` and ``working_dir`` mean the container's. ``rows`` and ``columns`` 0: unknown."""

    exec_id: str
    container_id: str
    container_pid: int
    config: ContainerConfig
    host_config: HostConfig
    command: Sequence[str]
    link_environment: tuple[str, ...] = ()
    env: Sequence[str] = ()
    user: str = ""
    working_dir: str = ""
    tty: bool = False
    open_stdin: bool = False
    privileged: bool = False
    rows: int = 0
    columns: int = 0
    cgroup_parent: str = DEFAULT_CGROUP_PARENT


def build_container_plan(inputs: ContainerInputs) -> Plan:
    """Work out the plan of a container's first process.

    Raises ``InvalidArgument`` for a wish that cannot be and ``Unsupported`` where the machine
    lacks something that was asked for by name.
    """
    config, host = inputs.config, inputs.host_config
    argv = _words(config.entrypoint) + _words(config.cmd)
    if not argv:
        raise InvalidArgument("no command specified: give one, or use an image that has one")
    for request in host.device_requests or ():
        words = ["[" + " ".join(names) + "]" for names in request.capabilities or ()]
        raise Unsupported(
            f'could not select device driver "{request.driver}" with capabilities: '
            f"[{' '.join(words)}]; this engine passes no GPUs on, leave --gpus out"
        )
    hostname = config.hostname or inputs.container_id[:12]
    rows, columns = host.console_size
    init = _init_path() if host.init else ""
    return Plan(
        key=inputs.container_id,
        process=_process(
            argv=("/sbin/docker-init", "--", *argv) if init else argv,
            env=environment(config, hostname, tty=config.tty, links=inputs.link_environment),
            cwd=config.working_dir or "/",
            user=config.user,
            host=host,
            privileged=host.privileged,
        ),
        streams=StreamSpec(
            tty=config.tty,
            open_stdin=config.open_stdin,
            stdin_once=config.stdin_once,
            rows=rows,
            columns=columns,
        ),
        cgroup=CgroupSpec(
            parent=_cgroup_parent(host, inputs.cgroup_parent),
            name=inputs.container_id,
            limits=resource_rules.limits(host),
        ),
        namespaces=inputs.namespaces,
        root=_root(inputs, hostname, init),
        networks=tuple(
            NetlinkMessages(
                tuple(script.outside),
                tuple(script.outside_pid_offsets),
                tuple(script.inside),
                tuple(script.sysctls),
            )
            for script in inputs.networks
        ),
        name_sockets=inputs.name_sockets,
        log=log_spec(inputs.log_driver, inputs.log_path, inputs.log_options, inputs.log_extra),
    )


def build_exec_plan(inputs: ExecInputs) -> Plan:
    """Work out the plan of one more process in a running container."""
    if not inputs.command:
        raise InvalidArgument("no exec command specified")
    config, host = inputs.config, inputs.host_config
    hostname = config.hostname or inputs.container_id[:12]
    env = environment(
        config, hostname, tty=inputs.tty, links=inputs.link_environment, extra=inputs.env
    )
    return Plan(
        key=inputs.exec_id,
        process=_process(
            argv=tuple(inputs.command),
            env=env,
            cwd=inputs.working_dir or config.working_dir or "/",
            user=inputs.user or config.user,
            host=host,
            privileged=host.privileged or inputs.privileged,
        ),
        streams=StreamSpec(
            tty=inputs.tty,
            open_stdin=inputs.open_stdin,
            stdin_once=True,
            rows=inputs.rows,
            columns=inputs.columns,
        ),
        cgroup=CgroupSpec(
            parent=_cgroup_parent(host, inputs.cgroup_parent),
            name=inputs.container_id,
            create=False,
        ),
        target=ExecTarget(pid=inputs.container_pid, container_id=inputs.container_id),
    )


def resolve_namespaces(
    host_config: HostConfig,
    pid_of: Callable[[str], int],
    *,
    uid_map: tuple[tuple[int, int, int], ...] = (),
    gid_map: tuple[tuple[int, int, int], ...] = (),
) -> NamespaceSpec:
    """Turn Docker's sharing modes into namespaces; ``pid_of`` finds the first process of the
    running container that ``container:NAME`` names, or raises. With ``uid_map`` the container
    gets a user namespace, unless ``--userns=host`` asks for none."""

    def mode(text: str) -> str:
        if text == "host":
            return "host"
        if text.startswith("container:"):
            return str(pid_of(text.removeprefix("container:")))
        return "private"

    remapped = bool(uid_map) and host_config.userns_mode != "host"
    net, ipc, pid = (
        mode(text)
        for text in (host_config.network_mode, host_config.ipc_mode, host_config.pid_mode)
    )
    user = "host"
    if remapped:
        # As with Docker: who shares a namespace shares the user namespace that it belongs to.
        user = next((where for where in (net, ipc, pid) if where.isdecimal()), "private")
    return NamespaceSpec(
        net=net,
        ipc=ipc,
        pid=pid,
        uts=mode(host_config.uts_mode),
        cgroup="host" if host_config.cgroupns_mode == "host" else "private",
        user=user,
        uid_map=uid_map if remapped else (),
        gid_map=gid_map if remapped else (),
    )


def environment(
    config: ContainerConfig,
    hostname: str,
    *,
    tty: bool,
    links: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> tuple[str, ...]:
    """Order a container's environment as Docker does: defaults, what ``links`` tell, then the
    configuration's, then ``extra``; a later value replaces an earlier one, and a name without
    ``=`` removes it."""
    values: dict[str, str] = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if tty:
        values["TERM"] = "xterm"
    for item in (*links, *(config.env or ()), *extra):
        name, separator, value = item.partition("=")
        if separator:
            values[name] = value
        else:
            values.pop(name, None)
    return tuple(f"{name}={value}" for name, value in values.items())


def _cgroup_parent(host: HostConfig, default: str) -> str:
    parent = host.cgroup_parent or default
    if ".." in parent.split("/"):
        raise InvalidArgument(f"invalid cgroup parent {parent!r}: it must not contain '..'")
    return parent


def _words(value: list[str] | str | None) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _init_path() -> str:
    for path in INIT_PATHS:
        if os.path.exists(path):
            return path
    raise Unsupported("--init needs an init program on the engine's machine: install tini")


def _process(
    *,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    cwd: str,
    user: str,
    host: HostConfig,
    privileged: bool,
) -> ProcessSpec:
    if not cwd.startswith("/"):
        raise InvalidArgument(f"the working directory {cwd!r} is invalid, it needs to be absolute")
    # A privileged exec gets capabilities; the filter stays the container's, as with Docker.
    options = confinement.security_options(host.security_opt or (), privileged=host.privileged)
    add, drop = host.cap_add or (), host.cap_drop or ()
    own, _ = confinement.capability_set(add, drop, privileged=host.privileged)
    capabilities, required = confinement.capability_set(add, drop, privileged=privileged)
    return ProcessSpec(
        argv=argv,
        env=env,
        cwd=cwd,
        user=user,
        extra_groups=tuple(host.group_add or ()),
        capabilities=capabilities,
        required_capabilities=required,
        no_new_privileges=options.no_new_privileges,
        seccomp=options.seccomp,
        apparmor=options.apparmor,
        filter_capabilities=own,
        rlimits=resource_rules.rlimits(host),
        oom_score_adj=resource_rules.oom_score_adj(host),
    )


def _root(inputs: ContainerInputs, hostname: str, init: str) -> RootSpec:
    config, host = inputs.config, inputs.host_config
    own = [*inputs.mounts, *tmpfs_steps(host)]
    targets = {os.path.normpath(step.target) for step in own}
    files = [
        MountStep("bind", target, source=source, recursive=False, read_only=host.readonly_rootfs)
        for target, source in (
            ("/etc/resolv.conf", inputs.resolv_conf_file),
            ("/etc/hostname", inputs.hostname_file),
            ("/etc/hosts", inputs.hosts_file),
        )
        if source and target not in targets
    ]
    mounts = sorted((*files, *own), key=lambda step: os.path.normpath(step.target).count("/"))
    masked, read_only = confinement.hidden_paths(host)
    private_uts = inputs.namespaces.uts == "private"
    return RootSpec(
        steps=inputs.root,
        mounts=tuple(mounts),
        read_only=host.readonly_rootfs,
        writable_system=host.privileged,
        masked_paths=masked,
        read_only_paths=read_only,
        devices=confinement.device_nodes(host),
        shm_size_bytes=0 if host.ipc_mode == "none" else host.shm_size or 64 * 1024 * 1024,
        sysctls=_sysctls(host, inputs.namespaces),
        hostname=hostname if private_uts else "",
        domainname=config.domainname if private_uts else "",
        init=init,
        propagation=_root_propagation(own),
    )


def _root_propagation(mounts: Sequence[MountStep]) -> str:
    """Keep the container a slave of the engine's mounts where a bind asked for propagation."""
    wanted = {step.propagation.removeprefix("r") for step in mounts}
    if "shared" in wanted:
        return "rshared"
    return "rslave" if "slave" in wanted else "rprivate"


def tmpfs_steps(host: HostConfig) -> list[MountStep]:
    """Return the mounts of ``HostConfig.Tmpfs`` and of ``Mounts`` of that type. Raises
    ``InvalidArgument`` for an option that tmpfs does not have."""
    steps = [
        _tmpfs(target, [word for word in options.split(",") if word])
        for target, options in (host.tmpfs or {}).items()
    ]
    for mount in host.mounts or ():
        if mount.type != "tmpfs":
            continue
        own = mount.tmpfs_options
        words = ["=".join(option) for option in (own.options if own else None) or ()]
        if own and own.size_bytes:
            words.append(f"size={own.size_bytes}")
        if own and own.mode:
            words.append(f"mode={own.mode:o}")
        steps.append(_tmpfs(mount.target, [*words, "ro"] if mount.read_only else words))
    return steps


_TMPFS_FLAGS = frozenset(
    ("nosuid", "nodev", "noexec", "noatime", "relatime", "strictatime", "nodiratime", "sync",
     "dirsync")
)  # fmt: skip
_TMPFS_OPPOSITES = {
    "exec": "noexec", "suid": "nosuid", "dev": "nodev", "atime": "noatime",
    "norelatime": "relatime", "nostrictatime": "strictatime", "diratime": "nodiratime",
    "async": "sync",
}  # fmt: skip

_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge")


def _tmpfs(target: str, words: Sequence[str]) -> MountStep:
    """Sort a tmpfs's options into flags of the mount and those of the file system."""
    if not target.startswith("/"):
        raise InvalidArgument(f"invalid mount path {target!r}: it must be absolute")
    flags, data, read_only = ["nosuid", "nodev", "noexec"], [], False
    for word in words:
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word in _TMPFS_FLAGS:
            flags.append(word)
        elif word in _TMPFS_OPPOSITES:
            flags = [flag for flag in flags if flag != _TMPFS_OPPOSITES[word]]
        elif word.partition("=")[0] in _TMPFS_VALUES and "=" in word:
            data.append(word)
        elif word != "defaults":
            raise InvalidArgument(f'invalid tmpfs option ["{word[:100]}"]')
    if not any(word.startswith("mode=") for word in data):
        data.append("mode=1777")
    return MountStep(
        "tmpfs",
        target,
        source="tmpfs",
        data=",".join(data),
        read_only=read_only,
        flags=tuple(dict.fromkeys(flags)),
    )


_IPC_SYSCTLS = frozenset(
    ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
     "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced")
)  # fmt: skip


def check_sysctls(host: HostConfig) -> None:
    """Raise ``InvalidArgument`` for a sysctl that is not the container's own."""
    for given in host.sysctls or {}:
        name = given.replace("/", ".")
        if name.startswith("net."):
            if host.network_mode == "host":
                raise InvalidArgument(f"sysctl {name!r} not allowed in host network namespace")
        elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            if host.ipc_mode == "host":
                raise InvalidArgument(f"sysctl {name!r} not allowed in host ipc namespace")
        elif name == "kernel.domainname":
            if host.uts_mode == "host":
                raise InvalidArgument(f"sysctl {name!r} not allowed in host UTS namespace")
        else:
            hint = "use --hostname" if name == "kernel.hostname" else "set it on the machine"
            raise InvalidArgument(f"sysctl {name!r} is not in a separate kernel namespace; {hint}")


def _sysctls(host: HostConfig, namespaces: NamespaceSpec) -> tuple[tuple[str, str], ...]:
    check_sysctls(host)
    values = {name.replace("/", "."): value for name, value in (host.sysctls or {}).items()}
    if namespaces.net == "private":
        # Docker's defaults since 20.10: no privilege for low ports and for ping. The latter's
        # groups must all exist in the user namespace, so a remapped container goes without.
        values.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        if namespaces.user == "host":
            values.setdefault("net.ipv4.ping_group_range", "0 2147483647")
    return tuple(values.items())
