"""What the engine says about itself and its machine: info and disk usage."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import Any

from deskd import __version__
from deskd.domain.filters import Filters
from deskd.domain.times import rfc3339
from deskd.errors import InvalidArgument
from deskd.kernel import apparmor
from deskd.kernel.cgroup.features import Features
from deskd.kernel.cgroup.hierarchy import detect
from deskd.record import Record
from deskd.services.containers.listing import Listing
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.events import Events
from deskd.services.images import Images
from deskd.services.limit_support import limit_flags, limit_warnings
from deskd.services.version import os_release
from deskd.services.volumes import Volumes
from deskd.settings import Settings
from deskd.store.database import Database

_ID_KEY = "engine_id"
_USAGE_KINDS = ("container", "image", "volume", "build-cache")


class Machine(Record):
    """Facts that do not change while the engine runs."""

    kernel: str
    architecture: str
    operating_system: str
    os_version: str
    cpus: int
    memory_bytes: int
    swap_bytes: int
    host_name: str
    cgroup_version: int


def look_at_machine() -> Machine:
    """Read the facts from /etc/os-release and /proc."""
    system = os.uname()
    release = os_release()
    memory = _memory_info()
    return Machine(
        kernel=system.release,
        architecture=system.machine,
        operating_system=release.get("PRETTY_NAME", "Linux"),
        os_version=release.get("VERSION_ID", ""),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=memory.get("MemTotal", 0),
        swap_bytes=memory.get("SwapTotal", 0),
        host_name=system.nodename,
        cgroup_version=detect().version,
    )


def _memory_info() -> dict[str, int]:
    values = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    return values


class System:
    """Answers for the whole engine."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        database: Database,
        registry: ContainerRegistry,
        listing: Listing,
        images: Images,
        volumes: Volumes,
        events: Events,
        features: Features,
    ) -> None:
        self._settings = settings
        self._features = features
        self._machine = machine
        self._database = database
        self._registry = registry
        self._listing = listing
        self._images = images
        self._volumes = volumes
        self._events = events

    async def info(self) -> dict[str, Any]:
        """Return ``SystemInfo``."""
        counts = self._registry.counts()
        images = await self._images.list_images(all_=True)
        machine, settings, features = self._machine, self._settings, self._features
        forwarding = _read_flag("/proc/sys/net/ipv4/ip_forward")
        warnings = limit_warnings(features)
        if not forwarding:
            warnings.append("WARNING: IPv4 forwarding is disabled")
        if self._database.reserve is not None and self._database.reserve.is_full:
            warnings.append(
                "WARNING: the disk of the data root is full, and nothing new is made on it: remove "
                "containers, images or volumes (`desk system prune`), or enlarge it "
                "(`desk machine disk --resize`)"
            )
        return {
            "ID": self.engine_id(),
            "Containers": len(self._registry),
            "ContainersRunning": counts["running"],
            "ContainersPaused": counts["paused"],
            "ContainersStopped": counts["stopped"],
            "Images": len(images),
            "Driver": "overlay2",
            "DriverStatus": [
                ["Backing Filesystem", _file_system(settings.data_root)],
                ["Supports d_type", "true"],
                ["Native Overlay Diff", "true"],
                ["userxattr", "false"],
            ],
            "DockerRootDir": settings.data_root,
            "Plugins": {
                "Volume": ["local"],
                "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
                "Authorization": None,
                "Log": ["json-file", "local"],
            },
            **limit_flags(features),
            "IPv4Forwarding": forwarding,
            "BridgeNfIptables": _read_flag("/proc/sys/net/bridge/bridge-nf-call-iptables"),
            "BridgeNfIp6tables": _read_flag("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
            "Debug": settings.debug,
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": len(asyncio.all_tasks()),
            "SystemTime": rfc3339(time.time_ns()),
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": str(machine.cgroup_version),
            "NEventsListener": self._events.listeners,
            "KernelVersion": machine.kernel,
            "OperatingSystem": machine.operating_system,
            "OSVersion": machine.os_version,
            "OSType": "linux",
            "Architecture": machine.architecture,
            "NCPU": machine.cpus,
            "MemTotal": machine.memory_bytes,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": {
                "AllowNondistributableArtifactsCIDRs": None,
                "AllowNondistributableArtifactsHostnames": None,
                **_registries(self._settings),
            },
            "GenericResources": None,
            "HttpProxy": os.environ.get("HTTP_PROXY", ""),
            "HttpsProxy": os.environ.get("HTTPS_PROXY", ""),
            "NoProxy": os.environ.get("NO_PROXY", ""),
            "Name": machine.host_name,
            "Labels": list(settings.labels),
            "ExperimentalBuild": False,
            "ServerVersion": __version__,
            "Runtimes": {"desk": {"path": "deskd"}},
            "DefaultRuntime": "desk",
            "Swarm": {
                "NodeID": "",
                "NodeAddr": "",
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "Error": "",
                "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "docker-init",
            "ContainerdCommit": {"ID": "", "Expected": ""},
            "RuncCommit": {"ID": "", "Expected": ""},
            "InitCommit": {"ID": "", "Expected": ""},
            "SecurityOptions": self._security_options(),
            "DefaultAddressPools": [
                {"Base": pool.base, "Size": pool.size} for pool in settings.default_address_pools
            ],
            "ProductLicense": "Apache-2.0",
            "CDISpecDirs": None,
            "Warnings": warnings or None,
        }

    def _security_options(self) -> list[str]:
        options = ["name=apparmor"] if apparmor.is_enabled() else []
        options.append("name=seccomp,profile=builtin")
        if self._machine.cgroup_version == 2:
            options.append("name=cgroupns")
        if self._settings.userns_remap:
            options.append("name=userns")
        return options

    def engine_id(self) -> str:
        """Return the ID that this data root keeps for ever."""
        found = self._database.get_meta(_ID_KEY)
        if found is None:
            digits = secrets.token_hex(16)
            found = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            self._database.set_meta(_ID_KEY, found)
        return found

    async def disk_usage(self, kinds: list[str]) -> dict[str, Any]:
        """Return ``SystemDataUsageResponse``; ``kinds`` (container, image, volume,
        build-cache) limits the work, none means all. Raises ``InvalidArgument`` for others."""
        for kind in kinds:
            if kind not in _USAGE_KINDS:
                raise InvalidArgument(f"unknown object type: {kind}")
        usage: dict[str, Any] = {
            "LayersSize": 0,
            "Images": None,
            "Containers": None,
            "Volumes": None,
            "BuildCache": None,
        }
        if not kinds or "image" in kinds:
            usage.update(await self._images.disk_usage())
        if not kinds or "container" in kinds:
            usage["Containers"] = await self._listing.select(Filters(), everything=True, size=True)
        if not kinds or "volume" in kinds:
            usage["Volumes"] = await self._volumes.disk_usage()
        if not kinds or "build-cache" in kinds:
            usage["BuildCache"] = []
        return usage


def _read_flag(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _file_system(path: str) -> str:
    """Return the type of the file system that holds ``path``."""
    best, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            target = fields[1]
            inside = path == target or path.startswith(target.rstrip("/") + "/")
            if inside and len(target) >= len(best):
                best, kind = target, fields[2]
    return kind


def _registries(settings: Settings) -> dict[str, Any]:
    """Return the part of ``info`` that says how registries are reached."""
    insecure = settings.insecure_registries
    hosts = [text for text in insecure if "/" not in text]
    mirrors = [f"{mirror.rstrip('/')}/" for mirror in settings.registry_mirrors]
    indexes = {
        name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False} for name in hosts
    }
    official = {"Name": "docker.io", "Mirrors": mirrors, "Secure": True, "Official": True}
    return {
        "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8", *(t for t in insecure if "/" in t)],
        "IndexConfigs": {"docker.io": official, **indexes},
        "Mirrors": mirrors or None,
    }
