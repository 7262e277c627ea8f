"""The flags of ``desk run`` and ``desk create``, turned into a ``ContainerCreate`` body."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from desk.cli import device_specs, mount_specs, specs
from desk.cli.specs import JsonObject
from desk.cli.units import parse_duration_ns
from desk.errors import UsageError
from desk.sizes import parse_size

Flags = Mapping[str, Any]
"""Flag names with underscores, as click gives them, to their values; unset ones are None or ()."""


def container_body(image: str, command: tuple[str, ...], flags: Flags) -> JsonObject:
    """Return the body that creates a container; ``UsageError`` where flags are malformed."""
    _check_conflicts(flags)
    binds, volumes = _volumes(flags)
    exposed, bindings = _ports(flags)
    networks = [specs.parse_network(text) for text in flags["network"]]
    body = _config(image, command, flags)
    body["Volumes"] = volumes or None
    body["ExposedPorts"] = exposed or None
    body["HostConfig"] = {
        **_host_config(flags),
        **_resources(flags),
        "Binds": binds or None,
        "Mounts": [mount_specs.parse_mount(text) for text in flags["mount"]] or None,
        "PortBindings": bindings or None,
        "NetworkMode": networks[0][0] if networks else "default",
    }
    body["NetworkingConfig"] = {"EndpointsConfig": _endpoints(networks, flags)}
    return body


def check_trust(*, unsigned: bool) -> None:
    """Refuse ``--disable-content-trust=false``: a check that is asked for must not be left out."""
    if not unsigned:
        raise UsageError(
            "content trust is not supported: signatures of images are not checked",
            hint="Leave --disable-content-trust=false out, or name the image by its digest.",
        )


def _check_conflicts(flags: Flags) -> None:
    if flags["rm"] and flags["restart"] not in (None, "", "no"):
        raise UsageError(
            "--rm and --restart exclude each other",
            hint="Leave one out: a container that is removed cannot be restarted.",
        )
    if flags["no_healthcheck"] and any(
        flags[name] is not None for name in flags if name.startswith("health_")
    ):
        raise UsageError("--no-healthcheck and the --health flags exclude each other")
    check_trust(unsigned=flags["disable_content_trust"])
    if flags["pull"] not in ("always", "missing", "never"):
        raise UsageError(
            f"invalid value {flags['pull']!r} for --pull", hint="It is always, missing or never."
        )


def _config(image: str, command: tuple[str, ...], flags: Flags) -> JsonObject:
    attach = {name.lower() for name in flags["attach"]}
    unknown = attach - {"stdin", "stdout", "stderr"}
    if unknown:
        raise UsageError(
            f"invalid value {min(unknown)!r} for --attach", hint="It is stdin, stdout or stderr."
        )
    foreground = not flags.get("detach")
    interactive = flags["interactive"]
    attach_stdin = "stdin" in attach or (interactive and not attach and foreground)
    env = [entry for file in flags["env_file"] for entry in specs.read_env_file(file)]
    labels = [
        entry
        for file in flags["label_file"]
        for entry in specs.read_env_file(file, what="--label-file")
    ]
    entrypoint = flags["entrypoint"]
    return {
        "Hostname": flags["hostname"] or "",
        "Domainname": flags["domainname"] or "",
        "User": flags["user"] or "",
        "AttachStdin": attach_stdin,
        "AttachStdout": foreground and ("stdout" in attach or not attach),
        "AttachStderr": foreground and ("stderr" in attach or not attach),
        "Tty": flags["tty"],
        "OpenStdin": interactive,
        "StdinOnce": interactive and attach_stdin,
        "Env": specs.parse_env([*env, *flags["env"]], os.environ),
        "Cmd": list(command) or None,
        "Image": image,
        "WorkingDir": flags["workdir"] or "",
        "Entrypoint": None if entrypoint is None else [entrypoint],
        "Labels": specs.parse_pairs([*labels, *flags["label"]], flag="--label"),
        "StopSignal": flags["stop_signal"] or "",
        "StopTimeout": flags["stop_timeout"],
        "Healthcheck": _healthcheck(flags),
    }


def _healthcheck(flags: Flags) -> JsonObject | None:
    if flags["no_healthcheck"]:
        return {"Test": ["NONE"]}
    check: JsonObject = {}
    if flags["health_cmd"]:
        check["Test"] = ["CMD-SHELL", flags["health_cmd"]]
    for flag, key in (
        ("health_interval", "Interval"),
        ("health_timeout", "Timeout"),
        ("health_start_period", "StartPeriod"),
        ("health_start_interval", "StartInterval"),
    ):
        if flags[flag] is not None:
            check[key] = parse_duration_ns(flags[flag], what=f"--{flag.replace('_', '-')}")
    if flags["health_retries"] is not None:
        check["Retries"] = flags["health_retries"]
    return check or None


def _volumes(flags: Flags) -> tuple[list[str], JsonObject]:
    binds: list[str] = []
    anonymous: JsonObject = {}
    for text in flags["volume"]:
        volume = mount_specs.parse_volume(text)
        if volume.source:
            binds.append(volume.bind())
        else:
            anonymous[volume.target] = {}
    return binds, anonymous


def _ports(flags: Flags) -> tuple[JsonObject, JsonObject]:
    exposed: JsonObject = {
        port: {} for text in flags["expose"] for port in specs.parse_expose(text)
    }
    bindings: dict[str, list[JsonObject]] = {}
    for text in flags["publish"]:
        for binding in specs.parse_publish(text):
            exposed[binding.container_port] = {}
            bindings.setdefault(binding.container_port, []).append(
                {"HostIp": binding.host_ip, "HostPort": binding.host_port}
            )
    return exposed, dict(bindings)


def _endpoints(networks: list[tuple[str, JsonObject]], flags: Flags) -> JsonObject:
    addresses = {
        key: value
        for key, value in (
            ("IPv4Address", flags["ip"]),
            ("IPv6Address", flags["ip6"]),
            ("LinkLocalIPs", list(flags["link_local_ip"]) or None),
        )
        if value
    }
    wanted: JsonObject = {}
    if addresses:
        wanted["IPAMConfig"] = addresses
    if flags["network_alias"]:
        wanted["Aliases"] = list(flags["network_alias"])
    if flags["link"] and networks:
        wanted["Links"] = list(flags["link"])
    if flags["mac_address"]:
        wanted["MacAddress"] = flags["mac_address"]
    if not networks:
        return {"default": wanted} if wanted else {}
    endpoints = {name: dict(endpoint) for name, endpoint in networks}
    first = endpoints[networks[0][0]]
    for key, value in wanted.items():
        if key in first and key != "Aliases":
            raise UsageError(f"{key} is given twice, by a flag and in --network")
        first[key] = [*first.get(key, []), *value] if key == "Aliases" else value
    return {
        name: endpoint for name, endpoint in endpoints.items() if endpoint or len(endpoints) > 1
    }


def _host_config(flags: Flags) -> JsonObject:
    tmpfs = dict(text.partition(":")[::2] for text in flags["tmpfs"])
    return {
        "ContainerIDFile": flags["cidfile"] or "",
        "AutoRemove": flags["rm"],
        "Privileged": flags["privileged"],
        "PublishAllPorts": flags["publish_all"],
        "ReadonlyRootfs": flags["read_only"],
        "Init": True if flags["init"] else None,
        "LogConfig": {
            "Type": flags["log_driver"] or "",
            "Config": specs.parse_pairs(flags["log_opt"], flag="--log-opt"),
        },
        "RestartPolicy": specs.parse_restart(flags["restart"] or "no"),
        "VolumeDriver": flags["volume_driver"] or "",
        "VolumesFrom": list(flags["volumes_from"]) or None,
        "CapAdd": list(flags["cap_add"]) or None,
        "CapDrop": list(flags["cap_drop"]) or None,
        "CgroupnsMode": flags["cgroupns"] or "",
        "Dns": list(flags["dns"]) or [],
        "DnsOptions": list(flags["dns_option"]) or [],
        "DnsSearch": list(flags["dns_search"]) or [],
        "ExtraHosts": [specs.parse_add_host(text) for text in flags["add_host"]] or None,
        "GroupAdd": list(flags["group_add"]) or None,
        "IpcMode": flags["ipc"] or "",
        "PidMode": flags["pid"] or "",
        "UTSMode": flags["uts"] or "",
        "UsernsMode": flags["userns"] or "",
        "OomScoreAdj": flags["oom_score_adj"] or 0,
        "Links": None if flags["network"] else list(flags["link"]) or None,
        "SecurityOpt": _security_options(flags["security_opt"]) or None,
        "StorageOpt": specs.parse_pairs(flags["storage_opt"], flag="--storage-opt") or None,
        "Sysctls": specs.parse_pairs(flags["sysctl"], flag="--sysctl") or None,
        "Tmpfs": tmpfs or None,
        "ShmSize": parse_size(flags["shm_size"], what="--shm-size") if flags["shm_size"] else 0,
        "Runtime": flags["runtime"] or "",
        "Annotations": specs.parse_pairs(flags["annotation"], flag="--annotation") or None,
    }


def _security_options(options: tuple[str, ...]) -> list[str]:
    """Return the options with a seccomp profile's file replaced by its content."""
    return [_security_option(option) for option in options]


def _security_option(option: str) -> str:
    separator = "=" if "=" in option else ":"
    key, found, value = option.partition(separator)
    if not found and key != "no-new-privileges":
        raise UsageError(f"invalid --security-opt {option!r}", hint="Write NAME=VALUE.")
    if key != "seccomp" or value in ("unconfined", "builtin"):
        return option
    try:
        profile = json.loads(Path(value).expanduser().read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read seccomp profile {value}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"seccomp profile {value} is no JSON: {error}") from error
    return f"seccomp={json.dumps(profile, separators=(',', ':'))}"


def size_limits(flags: Flags) -> JsonObject:
    """Return the memory limits among ``flags``, in bytes; only those that were given."""
    limits: JsonObject = {}
    for flag, key in (
        ("memory", "Memory"),
        ("memory_reservation", "MemoryReservation"),
        ("memory_swap", "MemorySwap"),
    ):
        if flags[flag] is not None:
            unlimited = flag == "memory_swap" and flags[flag] == "-1"
            name = f"--{flag.replace('_', '-')}"
            limits[key] = -1 if unlimited else parse_size(flags[flag], what=name)
    return limits


def plain_limits(flags: Flags) -> JsonObject:
    """Return the limits among ``flags`` that need no parsing; only those that were given."""
    names = {
        "blkio_weight": "BlkioWeight",
        "cpu_period": "CpuPeriod",
        "cpu_quota": "CpuQuota",
        "cpu_rt_period": "CpuRealtimePeriod",
        "cpu_rt_runtime": "CpuRealtimeRuntime",
        "cpu_shares": "CpuShares",
        "cpuset_cpus": "CpusetCpus",
        "cpuset_mems": "CpusetMems",
        "memory_swappiness": "MemorySwappiness",
        "pids_limit": "PidsLimit",
    }
    limits = {key: flags[flag] for flag, key in names.items() if flags.get(flag) is not None}
    if limits.get("MemorySwappiness") == -1:  # Docker's way to say that nothing is wanted
        del limits["MemorySwappiness"]
    if flags["cpus"] is not None:
        limits["NanoCpus"] = specs.parse_nano_cpus(flags["cpus"])
    return limits


def _foreign_limits(flags: Flags) -> JsonObject:
    """Return the limits among ``flags`` that Linux does not know; only those that were given."""
    limits: JsonObject = {}
    for flag, key in (
        ("cpu_count", "CpuCount"),
        ("cpu_percent", "CpuPercent"),
        ("io_maxiops", "IOMaximumIOps"),
        ("isolation", "Isolation"),
    ):
        if flags[flag] is not None:
            limits[key] = flags[flag]
    for flag, key in (("io_maxbandwidth", "IOMaximumBandwidth"), ("kernel_memory", "KernelMemory")):
        if flags[flag] is not None:
            limits[key] = parse_size(flags[flag], what=f"--{flag.replace('_', '-')}")
    return limits


def _resources(flags: Flags) -> JsonObject:
    resources = {**size_limits(flags), **plain_limits(flags), **_foreign_limits(flags)}
    cdi, devices = device_specs.split_devices(flags["device"])
    resources |= {
        "BlkioWeightDevice": [
            device_specs.parse_weight(text) for text in flags["blkio_weight_device"]
        ],
        "CgroupParent": flags["cgroup_parent"] or "",
        "Devices": [device_specs.parse_device(text) for text in devices],
        "DeviceRequests": [*map(device_specs.parse_gpus, flags["gpus"]), *cdi] or None,
        "DeviceCgroupRules": list(flags["device_cgroup_rule"]) or None,
        "Ulimits": [specs.parse_ulimit(text) for text in flags["ulimit"]],
    }
    if flags["oom_kill_disable"]:
        resources["OomKillDisable"] = True
    for flag, key in (
        ("device_read_bps", "BlkioDeviceReadBps"),
        ("device_write_bps", "BlkioDeviceWriteBps"),
        ("device_read_iops", "BlkioDeviceReadIOps"),
        ("device_write_iops", "BlkioDeviceWriteIOps"),
    ):
        rates = [
            device_specs.parse_throttle(text, bytes_=flag.endswith("bps")) for text in flags[flag]
        ]
        resources[key] = rates or None
    return resources
