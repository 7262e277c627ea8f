"""The flags that ``desk run`` and ``desk create`` share, as Docker's reference lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS: tuple[tuple[str, str], ...] = (
    ("--init", "Run an init inside that forwards signals and reaps processes."),
    ("-i/--interactive", "Keep standard input open."),
    ("--no-healthcheck", "Disable the image's health check."),
    ("--oom-kill-disable", "Let the container wait for memory instead of killing it."),
    ("--privileged", "Give the container all capabilities and devices."),
    ("-P/--publish-all", "Publish all exposed ports to random host ports."),
    ("-q/--quiet", "Do not show the progress of a pull."),
    ("--read-only", "Mount the container's root file system read-only."),
    ("--rm", "Remove the container and its anonymous volumes when it exits."),
    ("-t/--tty", "Give the process a terminal."),
)

_INTEGERS: tuple[tuple[str, str], ...] = (
    ("--blkio-weight", "Block I/O weight, 10 to 1000."),
    ("--cpu-period", "CPU period in microseconds."),
    ("--cpu-quota", "CPU time per period in microseconds."),
    ("--cpu-rt-period", "Real-time CPU period in microseconds."),
    ("--cpu-rt-runtime", "Real-time CPU time per period in microseconds."),
    ("-c/--cpu-shares", "CPU shares (relative weight)."),
    ("--health-retries", "Failures in a row that mean unhealthy."),
    ("--memory-swappiness", "How readily memory is swapped, 0 to 100."),
    ("--oom-score-adj", "Preference of the out-of-memory killer, -1000 to 1000."),
    ("--pids-limit", "Limit of processes and threads; -1 for none."),
    ("--stop-timeout", "Seconds to wait before a stop becomes a kill."),
)

_TEXTS: tuple[tuple[str, str, str], ...] = (
    ("--cgroup-parent", "CGROUP", "Parent cgroup."),
    ("--cgroupns", "MODE", "Cgroup namespace: host or private."),
    ("--cidfile", "FILE", "Write the container's ID to this file."),
    ("--cpus", "NUMBER", "Number of CPUs, such as 1.5."),
    ("--cpuset-cpus", "CPUS", "CPUs to run on, such as 0-2,4."),
    ("--cpuset-mems", "NODES", "Memory nodes to use."),
    ("--detach-keys", "KEYS", "Keys that detach this terminal (ctrl-p,ctrl-q)."),
    ("--domainname", "NAME", "NIS domain name."),
    ("--entrypoint", "PROGRAM", "Replace the image's entry point."),
    ("--gpus", "GPUS", "Not supported."),
    ("--health-cmd", "COMMAND", "Command that checks the health."),
    ("--health-interval", "TIME", "Time between checks, such as 30s."),
    ("--health-start-interval", "TIME", "Time between checks while starting."),
    ("--health-start-period", "TIME", "Time to start before failures count."),
    ("--health-timeout", "TIME", "Time that one check may take."),
    ("-h/--hostname", "NAME", "Host name inside."),
    ("--ip", "ADDRESS", "IPv4 address."),
    ("--ip6", "ADDRESS", "IPv6 address."),
    ("--ipc", "MODE", "IPC namespace: private, shareable, host, none, container:NAME."),
    ("--log-driver", "DRIVER", "Log driver: json-file, local or none."),
    ("--mac-address", "ADDRESS", "MAC address."),
    ("-m/--memory", "SIZE", "Memory limit, such as 512m."),
    ("--memory-reservation", "SIZE", "Soft memory limit."),
    ("--memory-swap", "SIZE", "Limit of memory and swap together; -1 for no limit."),
    ("--name", "NAME", "Name of the container."),
    ("--pid", "MODE", "PID namespace: host or container:NAME."),
    ("--platform", "PLATFORM", "Platform of the image, such as linux/amd64."),
    ("--restart", "POLICY", "no, always, unless-stopped or on-failure[:COUNT]."),
    ("--runtime", "RUNTIME", "Runtime to use."),
    ("--shm-size", "SIZE", "Size of /dev/shm."),
    ("--stop-signal", "SIGNAL", "Signal that stops the container."),
    ("-u/--user", "USER[:GROUP]", "User and group, by name or number."),
    ("--userns", "MODE", "User namespace: host or empty."),
    ("--uts", "MODE", "UTS namespace: host or empty."),
    ("--volume-driver", "DRIVER", "Driver of the container's volumes."),
    ("-w/--workdir", "PATH", "Working directory inside."),
)

_LISTS: tuple[tuple[str, str, str], ...] = (
    ("--add-host", "NAME:ADDRESS", "Add a line to the container's /etc/hosts."),
    ("--annotation", "KEY=VALUE", "Add an annotation for the runtime."),
    ("-a/--attach", "STREAM", "Attach to stdin, stdout or stderr."),
    ("--blkio-weight-device", "DEVICE:WEIGHT", "Block I/O weight of a device."),
    ("--cap-add", "CAPABILITY", "Add a capability."),
    ("--cap-drop", "CAPABILITY", "Drop a capability."),
    ("--device", "DEVICE", "Give the container a device of the machine."),
    ("--device-cgroup-rule", "RULE", "Add a rule to the allowed devices."),
    ("--device-read-bps", "DEVICE:RATE", "Limit reading, in bytes a second."),
    ("--device-read-iops", "DEVICE:RATE", "Limit reading, in operations a second."),
    ("--device-write-bps", "DEVICE:RATE", "Limit writing, in bytes a second."),
    ("--device-write-iops", "DEVICE:RATE", "Limit writing, in operations a second."),
    ("--dns", "ADDRESS", "DNS server."),
    ("--dns-option", "OPTION", "DNS option."),
    ("--dns-search", "DOMAIN", "DNS search domain."),
    ("-e/--env", "NAME[=VALUE]", "Set an environment variable."),
    ("--env-file", "FILE", "Read environment variables from a file."),
    ("--expose", "PORT", "Expose a port or a range of ports."),
    ("--group-add", "GROUP", "Join a further group."),
    ("-l/--label", "KEY=VALUE", "Set a label."),
    ("--label-file", "FILE", "Read labels from a file."),
    ("--link", "CONTAINER[:ALIAS]", "Link to another container."),
    ("--link-local-ip", "ADDRESS", "Link-local address."),
    ("--log-opt", "KEY=VALUE", "Option of the log driver."),
    ("--mount", "SPEC", "Mount a volume, a folder or a tmpfs."),
    ("--network/--net", "NETWORK", "Connect to a network (bridge, host, none, a name)."),
    ("--network-alias/--net-alias", "NAME", "Further name in the network."),
    ("-p/--publish", "[IP:][PORT:]PORT", "Publish a port on this computer."),
    ("--security-opt", "OPTION", "Security option (seccomp=…, no-new-privileges)."),
    ("--storage-opt", "KEY=VALUE", "Option of the container's storage."),
    ("--sysctl", "KEY=VALUE", "Set a kernel parameter of a namespace."),
    ("--tmpfs", "PATH[:OPTIONS]", "Mount a tmpfs."),
    ("--ulimit", "NAME=SOFT[:HARD]", "Set a resource limit."),
    ("-v/--volume", "[SOURCE:]PATH[:ro]", "Mount a volume or a folder."),
    ("--volumes-from", "CONTAINER", "Mount the volumes of another container."),
)


def _declarations(spelling: str) -> tuple[str, ...]:
    """Split ``-t/--tty``; the long name, or the first of two, becomes the parameter's name."""
    names = spelling.split("/")
    long = next(name for name in names if name.startswith("--"))
    return (*names, long[2:].replace("-", "_"))


def container_flags(function: F) -> F:
    """Decorate a command with all flags that say what a container is."""
    options: list[tuple[str, Callable[[F], F]]] = []
    for spelling, text in _FLAGS:
        options.append((spelling, click.option(*_declarations(spelling), is_flag=True, help=text)))
    for spelling, text in _INTEGERS:
        options.append((spelling, click.option(*_declarations(spelling), type=int, help=text)))
    for spelling, metavar, text in _TEXTS:
        options.append(
            (spelling, click.option(*_declarations(spelling), metavar=metavar, help=text))
        )
    for spelling, metavar, text in _LISTS:
        options.append(
            (
                spelling,
                click.option(*_declarations(spelling), metavar=metavar, multiple=True, help=text),
            )
        )
    options.append(
        (
            "--pull",
            click.option(
                "--pull",
                type=click.Choice(["always", "missing", "never"]),
                default="missing",
                help="When to fetch the image (missing).",
            ),
        )
    )
    for _, decorate in sorted(options, key=lambda item: item[0].rpartition("--")[2], reverse=True):
        function = decorate(function)
    return function
