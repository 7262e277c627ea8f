"""The plan of a process: everything the launcher's side needs, as plain immutable data.

The engine builds a plan (``deskd.runtime.spec``), the launcher reads it. Standard library only:
the launcher imports this module and must stay small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deskd.domain.mount import MountStep
from deskd.kernel.cgroup.limits import Limits
from deskd.record import Record, field

PRIVATE = "private"
HOST = "host"


class NetlinkMessages(Record):
    """Encoded rtnetlink requests, each asking for an acknowledgement.

    ``outside`` run in the engine's network namespace; where ``outside_pid_offsets`` has a number,
    the 4 bytes there receive the PID that names the container's namespace. Afterwards ``sysctls``
    are set and ``inside`` run in the container's namespace.
    """

    outside: tuple[bytes, ...] = ()
    outside_pid_offsets: tuple[int | None, ...] = ()
    inside: tuple[bytes, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


class Rlimit(Record):
    """A resource limit by its number (``resource.RLIMIT_*``); -1 is unlimited. ``explicit`` ones
    fail the start where they cannot be had, others are clamped to what is allowed."""

    resource: int
    soft: int
    hard: int
    name: str = ""
    explicit: bool = True


class ProcessSpec(Record):
    """The program and its identity. ``user`` is Docker's ``user[:group]``, looked up in the
    container's own files. ``required_capabilities`` fail the start where the machine lacks them.
    ``seccomp`` is ``""`` (unconfined), ``"default"``, a JSON profile, or after compilation the
    path of the filter file; a profile is read for ``filter_capabilities``, the container's.
    ``apparmor`` is the profile to run under, ``""`` for none."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    extra_groups: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    required_capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str = ""
    filter_capabilities: tuple[str, ...] = ()
    apparmor: str = ""
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int = 0
    umask: int = 0o022


class StreamSpec(Record):
    """Stdio. Without ``open_stdin`` the program reads ``/dev/null``; with ``stdin_once`` its
    input ends when the first client that attached with stdin leaves."""

    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    rows: int = 0
    columns: int = 0


class LogSpec(Record):
    """A log. ``max_size_bytes`` 0 never rotates; ``max_files`` counts the current one; ``compress``
    packs the others; ``buffer_bytes`` above 0 lets the program run ahead of the log by so much.
    ``extra`` goes into each line as ``attrs`` (labels and environment asked for by options)."""

    path: str
    max_size_bytes: int = 0
    max_files: int = 1
    extra: tuple[tuple[str, str], ...] = ()
    driver: str = "json-file"
    compress: bool = False
    buffer_bytes: int = 0


class CgroupSpec(Record):
    """The cgroup ``parent/name``; an exec joins it, a container creates it with ``limits``."""

    parent: str
    name: str
    create: bool = True
    limits: Limits = field(default_factory=Limits)


class NamespaceSpec(Record):
    """Each namespace: ``"private"``, ``"host"`` or the PID (as text) of a process to share with.
    A ``user`` namespace that is not the host's has ID mappings (inside, outside, count); it is
    shared with who shares another one, since that belongs to it.
    """

    mnt: str = PRIVATE
    uts: str = PRIVATE
    ipc: str = PRIVATE
    net: str = PRIVATE
    pid: str = PRIVATE
    cgroup: str = PRIVATE
    user: str = HOST
    uid_map: tuple[tuple[int, int, int], ...] = ()
    gid_map: tuple[tuple[int, int, int], ...] = ()


class DeviceNode(Record):
    """A node to make below the container's ``/dev``. ``kind`` is ``c``, ``b`` or ``p``; ``source``
    is the machine's node where that has another path."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    source: str = ""


class RootSpec(Record):
    """The container's file system: ``steps`` build "/", ``mounts`` come after the system's own
    mounts (/proc, /sys, /dev …). ``shm_size_bytes`` 0: no /dev/shm. ``init`` is the path of an init
    to bind at /sbin/docker-init."""

    steps: tuple[MountStep, ...]
    mounts: tuple[MountStep, ...] = ()
    read_only: bool = False
    writable_system: bool = False
    masked_paths: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    shm_size_bytes: int = 67108864
    sysctls: tuple[tuple[str, str], ...] = ()
    hostname: str = ""
    domainname: str = ""
    init: str = ""
    propagation: str = "rprivate"


class ExecTarget(Record):
    """The container an exec enters: the PID of its first process and its ID (checked against
    the process's cgroup, so that a recycled PID is never entered)."""

    pid: int
    container_id: str


class AtOnce(Record):
    """The process is not held: it executes as soon as it is ready. With ``attached`` a second
    connection comes with the order, the stdio of the first client."""

    attached: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


class Plan(Record):
    """All of one container or exec. Exactly one of ``root`` and ``target`` is set. With
    ``name_sockets`` the network namespace gets the sockets of a name server, which the monitor
    keeps (``deskd.kernel.name_sockets``)."""

    key: str
    process: ProcessSpec
    streams: StreamSpec
    cgroup: CgroupSpec
    namespaces: NamespaceSpec = field(default_factory=NamespaceSpec)
    root: RootSpec | None = None
    target: ExecTarget | None = None
    networks: tuple[NetlinkMessages, ...] = ()
    name_sockets: bool = False
    log: LogSpec | None = None
    at_once: AtOnce | None = None

    def describe(self) -> list[str]:
        """Say what the plan does, one line a step, for logs and tests."""
        lines = [f"process {' '.join(self.process.argv)}"]
        if self.root is not None:
            lines += [step.describe() for step in (*self.root.steps, *self.root.mounts)]
        return lines


def encode(value: Any) -> bytes:
    """Write a plan (or any structure of plan parts, ``bytes`` included) as JSON."""
    return json.dumps(value, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return {name: getattr(value, name) for name in value.__slots__}


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in data.items()}


def decode_mount_step(data: Mapping[str, Any]) -> MountStep:
    """Rebuild a ``MountStep`` from its JSON object."""
    return MountStep(**_fields(data))


def decode_netlink(data: Mapping[str, Any]) -> NetlinkMessages:
    """Rebuild ``NetlinkMessages`` from its JSON object."""
    return NetlinkMessages(
        outside=tuple(bytes.fromhex(item) for item in data["outside"]),
        outside_pid_offsets=tuple(data["outside_pid_offsets"]),
        inside=tuple(bytes.fromhex(item) for item in data["inside"]),
        sysctls=tuple((name, value) for name, value in data["sysctls"]),
    )


def _decode_root(data: Mapping[str, Any]) -> RootSpec:
    values = _fields(data)
    for name in ("steps", "mounts"):
        values[name] = tuple(decode_mount_step(item) for item in values[name])
    values["devices"] = tuple(DeviceNode(**item) for item in values["devices"])
    return RootSpec(**values)


def decode(data: Mapping[str, Any]) -> Plan:
    """Rebuild a plan from the parsed JSON that ``encode`` wrote."""
    process = _fields(data["process"])
    process["rlimits"] = tuple(Rlimit(**item) for item in process["rlimits"])
    cgroup = dict(data["cgroup"])
    cgroup["limits"] = Limits.from_json(cgroup["limits"])
    return Plan(
        key=data["key"],
        process=ProcessSpec(**process),
        streams=StreamSpec(**data["streams"]),
        cgroup=CgroupSpec(**cgroup),
        namespaces=NamespaceSpec(**_fields(data["namespaces"])),
        root=None if data["root"] is None else _decode_root(data["root"]),
        target=None if data["target"] is None else ExecTarget(**data["target"]),
        networks=tuple(decode_netlink(item) for item in data["networks"]),
        name_sockets=data["name_sockets"],
        log=None if data["log"] is None else LogSpec(**_fields(data["log"])),
        at_once=None if data["at_once"] is None else AtOnce(**data["at_once"]),
    )
