"""The flags of ``desk run`` and ``desk create``, as Docker's reference lists them, in sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import click

from desk.cli import complete
from desk.cli.framework import SectionOption

F = TypeVar("F", bound=Callable[..., Any])

Kind = Literal["switch", "number", "text", "list"]


class Flag(NamedTuple):
    """One flag: its spellings, what it takes, and what ``--help`` says of it."""

    spelling: str  # "-t/--tty"; the first long name is the parameter's
    kind: Kind
    metavar: str
    text: str
    default: Any = None


def _switch(spelling: str, text: str) -> Flag:
    return Flag(spelling, "switch", "", text, default=False)


def _number(spelling: str, text: str, default: int | None = None) -> Flag:
    return Flag(spelling, "number", "NUMBER", text, default)


def _text(spelling: str, metavar: str, text: str, default: str | None = None) -> Flag:
    return Flag(spelling, "text", metavar, text, default)


def _list(spelling: str, metavar: str, text: str) -> Flag:
    return Flag(spelling, "list", metavar, text)


_SECTIONS: Mapping[str, tuple[Flag, ...]] = {
    "Container": (
        _list("--annotation", "KEY=VALUE", "Add an annotation for the runtime."),
        _text("--cidfile", "FILE", "Write the container's ID to this file."),
        _switch("--init", "Run an init inside that forwards signals and reaps processes."),
        _list("-l/--label", "KEY=VALUE", "Set a label."),
        _list("--label-file", "FILE", "Read labels from a file."),
        _text("--name", "NAME", "Name of the container."),
        _text("--platform", "PLATFORM", "Platform of the image, such as linux/amd64."),
        _text(
            "--pull", "WHEN", "Fetch the image always, never, or if missing (missing).", "missing"
        ),
        _switch("-q/--quiet", "Do not show the progress of a pull."),
        _text("--restart", "POLICY", "no, always, unless-stopped, on-failure[:COUNT] (no).", "no"),
        _switch("--rm", "Remove the container and its anonymous volumes when it exits."),
        _text("--runtime", "RUNTIME", "Runtime to use."),
        _text("--stop-signal", "SIGNAL", "Signal that stops the container."),
        _number("--stop-timeout", "Seconds to wait before a stop becomes a kill."),
    ),
    "Process": (
        _list("-a/--attach", "STREAM", "Attach to stdin, stdout or stderr."),
        _text("--entrypoint", "PROGRAM", "Replace the image's entry point."),
        _list("-e/--env", "NAME[=VALUE]", "Set an environment variable."),
        _list("--env-file", "FILE", "Read environment variables from a file."),
        _list("--group-add", "GROUP", "Join a further group."),
        _switch("-i/--interactive", "Keep standard input open."),
        _switch("-t/--tty", "Give the process a terminal."),
        _text("-u/--user", "USER[:GROUP]", "User and group, by name or number."),
        _text("-w/--workdir", "PATH", "Working directory inside."),
    ),
    "Files and devices": (
        _list("--device", "DEVICE", "Give the container a device of the machine."),
        _list("--gpus", "GPUS", "GPUs to pass on, such as all (where the engine has them)."),
        _list("--mount", "SPEC", "Mount a volume, a folder or a tmpfs."),
        _switch("--read-only", "Mount the container's root file system read-only."),
        _text("--shm-size", "SIZE", "Size of /dev/shm."),
        _list("--storage-opt", "KEY=VALUE", "Option of the container's storage."),
        _list("--tmpfs", "PATH[:OPTIONS]", "Mount a tmpfs."),
        _list("-v/--volume", "[SOURCE:]PATH[:ro]", "Mount a volume or a folder."),
        _text("--volume-driver", "DRIVER", "Driver of the container's volumes."),
        _list("--volumes-from", "CONTAINER", "Mount the volumes of another container."),
    ),
    "Network": (
        _list("--add-host", "NAME:ADDRESS", "Add a line to the container's /etc/hosts."),
        _list("--dns", "ADDRESS", "DNS server."),
        _list("--dns-option/--dns-opt", "OPTION", "DNS option."),
        _list("--dns-search", "DOMAIN", "DNS search domain."),
        _text("--domainname", "NAME", "NIS domain name."),
        _list("--expose", "PORT", "Expose a port or a range of ports."),
        _text("-h/--hostname", "NAME", "Host name inside."),
        _text("--ip", "ADDRESS", "IPv4 address."),
        _text("--ip6", "ADDRESS", "IPv6 address."),
        _list("--link", "CONTAINER[:ALIAS]", "Link to another container."),
        _list("--link-local-ip", "ADDRESS", "Link-local address."),
        _text("--mac-address", "ADDRESS", "MAC address."),
        _list("--network/--net", "NETWORK", "Connect to a network (bridge, host, none, a name)."),
        _list("--network-alias/--net-alias", "NAME", "Further name in the network."),
        _list("-p/--publish", "[IP:][PORT:]PORT", "Publish a port on this computer."),
        _switch("-P/--publish-all", "Publish all exposed ports to random host ports."),
    ),
    "Health": (
        _text("--health-cmd", "COMMAND", "Command that checks the health."),
        _text("--health-interval", "TIME", "Time between checks, such as 30s."),
        _number("--health-retries", "Failures in a row that mean unhealthy."),
        _text("--health-start-interval", "TIME", "Time between checks while starting."),
        _text("--health-start-period", "TIME", "Time to start before failures count."),
        _text("--health-timeout", "TIME", "Time that one check may take."),
        _switch("--no-healthcheck", "Disable the image's health check."),
    ),
    "Limits": (
        _number("--blkio-weight", "Block I/O weight, 10 to 1000."),
        _list("--blkio-weight-device", "DEVICE:WEIGHT", "Block I/O weight of a device."),
        _text("--cgroup-parent", "CGROUP", "Parent cgroup."),
        _number("--cpu-period", "CPU period in microseconds."),
        _number("--cpu-quota", "CPU time per period in microseconds."),
        _number("--cpu-rt-period", "Real-time CPU period in microseconds."),
        _number("--cpu-rt-runtime", "Real-time CPU time per period in microseconds."),
        _number("-c/--cpu-shares", "CPU shares (relative weight)."),
        _text("--cpus", "NUMBER", "Number of CPUs, such as 1.5."),
        _text("--cpuset-cpus", "CPUS", "CPUs to run on, such as 0-2,4."),
        _text("--cpuset-mems", "NODES", "Memory nodes to use."),
        _list("--device-read-bps", "DEVICE:RATE", "Limit reading, in bytes a second."),
        _list("--device-read-iops", "DEVICE:RATE", "Limit reading, in operations a second."),
        _list("--device-write-bps", "DEVICE:RATE", "Limit writing, in bytes a second."),
        _list("--device-write-iops", "DEVICE:RATE", "Limit writing, in operations a second."),
        _text("-m/--memory", "SIZE", "Memory limit, such as 512m."),
        _text("--memory-reservation", "SIZE", "Soft memory limit."),
        _text("--memory-swap", "SIZE", "Limit of memory and swap together; -1 for no limit."),
        _number("--memory-swappiness", "How readily memory is swapped, 0 to 100.", -1),
        _switch("--oom-kill-disable", "Let the container wait for memory instead of killing it."),
        _number("--oom-score-adj", "Preference of the out-of-memory killer, -1000 to 1000."),
        _number("--pids-limit", "Limit of processes and threads; -1 for none."),
        _list("--ulimit", "NAME=SOFT[:HARD]", "Set a resource limit."),
    ),
    "Confinement": (
        _list("--cap-add", "CAPABILITY", "Add a capability."),
        _list("--cap-drop", "CAPABILITY", "Drop a capability."),
        _text("--cgroupns", "MODE", "Cgroup namespace: host or private."),
        _list("--device-cgroup-rule", "RULE", "Add a rule to the allowed devices."),
        _text("--ipc", "MODE", "IPC namespace: private, shareable, host, none, container:NAME."),
        _text("--pid", "MODE", "PID namespace: host or container:NAME."),
        _switch("--privileged", "Give the container all capabilities and devices."),
        _list("--security-opt", "OPTION", "Security option (seccomp=…, no-new-privileges)."),
        _list("--sysctl", "KEY=VALUE", "Set a kernel parameter of a namespace."),
        _text("--userns", "MODE", "User namespace: host or empty."),
        _text("--uts", "MODE", "UTS namespace: host or empty."),
    ),
    "Log": (
        _text("--log-driver", "DRIVER", "Log driver: json-file, local or none."),
        _list("--log-opt", "KEY=VALUE", "Option of the log driver."),
    ),
}

_WITHOUT_EFFECT: tuple[Flag, ...] = (
    _number("--cpu-count", "CPUs of a Windows container."),
    _number("--cpu-percent", "Share of the CPUs of a Windows container."),
    _text("--io-maxbandwidth", "SIZE", "Disk bandwidth of a Windows container."),
    _number("--io-maxiops", "Disk operations of a Windows container."),
    _text("--isolation", "TECHNOLOGY", "Isolation of a Windows container."),
    _text("--kernel-memory", "SIZE", "Removed from Linux."),
)
"""Taken and sent, since scripts for Docker use them; help does not show them."""


_COMPLETIONS: Mapping[str, Callable[..., Any]] = {
    "--attach": complete.one_of("stdin", "stdout", "stderr"),
    "--cgroupns": complete.one_of("host", "private"),
    "--ipc": complete.one_of("host", "none", "private", "shareable"),
    "--link": complete.containers,
    "--log-driver": complete.one_of("json-file", "local", "none"),
    "--network": complete.networks,
    "--pull": complete.one_of("always", "missing", "never"),
    "--restart": complete.one_of("always", "no", "on-failure", "unless-stopped"),
    "--stop-signal": complete.signals,
    "--volume": complete.volumes,
    "--volumes-from": complete.containers,
}


def _declarations(spelling: str) -> tuple[str, ...]:
    """Split ``-t/--tty``; the long name, or the first of two, becomes the parameter's name."""
    names = spelling.split("/")
    long = next(name for name in names if name.startswith("--"))
    return (*names, long[2:].replace("-", "_"))


def _option(flag: Flag, section: str, *, hidden: bool = False) -> Callable[[F], F]:
    names = _declarations(flag.spelling)
    long = next(name for name in names if name.startswith("--"))
    options: dict[str, Any] = {"help": flag.text, "hidden": hidden}
    options["shell_complete"] = _COMPLETIONS.get(long)
    if flag.kind == "switch":
        options["is_flag"] = True
    elif flag.kind == "number":
        options |= {"type": int, "default": flag.default, "metavar": flag.metavar}
    else:
        options |= {"multiple": flag.kind == "list", "metavar": flag.metavar}
        if flag.kind == "text":
            options["default"] = flag.default
    return click.option(*names, cls=SectionOption, section=section, **options)


def container_flags(function: F) -> F:
    """Decorate a command with all flags that say what a container is."""
    decorators: list[Callable[[F], F]] = [
        _option(flag, section) for section, flags in _SECTIONS.items() for flag in flags
    ]
    decorators += [_option(flag, "", hidden=True) for flag in _WITHOUT_EFFECT]
    decorators.append(
        click.option(
            "--disable-content-trust/--no-disable-content-trust", default=True, hidden=True
        )
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function
