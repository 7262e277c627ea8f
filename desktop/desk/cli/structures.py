"""What Docker's templates know of an object beyond its JSON: which fields it has.

The docker CLI runs ``--format`` on structures of Go's. A field that the engine left out of its
answer has a zero value there, a structure prints as its values in order (``{on-failure 3}``) where
a map prints as ``map[…]``, and some fields have another name than in JSON (``.ID``, ``.NanoCPUs``).
Names and order are what the docker CLI 28 prints for ``{{printf "%#v" .}}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple


class _Field(NamedTuple):
    name: str
    key: str  # its name in JSON
    kind: str
    embedded: bool  # its fields are also the outer structure's


_KINDS: Mapping[str, str] = {
    # A field is NAME[=KEY]:KIND. Kinds: s text, i number, b switch, any what JSON says, ?KIND may
    # be nil, []KIND list, {}KIND map, otherwise a structure of that name. + embeds a structure.
    "Nothing": "",
    "Container": """
        ID=Id:s Created:s Path:s Args:[]s State:?State Image:s ResolvConfPath:s HostnamePath:s
        HostsPath:s LogPath:s Name:s RestartCount:i Driver:s Platform:s MountLabel:s ProcessLabel:s
        AppArmorProfile:s ExecIDs:[]s HostConfig:?HostConfig GraphDriver:GraphDriver SizeRw:?i
        SizeRootFs:?i Mounts:[]MountPoint Config:?Config NetworkSettings:?NetworkSettings
        ImageManifestDescriptor:?any""",
    "State": """
        Status:s Running:b Paused:b Restarting:b OOMKilled:b Dead:b Pid:i ExitCode:i Error:s
        StartedAt:s FinishedAt:s Health:?Health""",
    "Health": "Status:s FailingStreak:i Log:[]HealthResult",
    "HealthResult": "Start:s End:s ExitCode:i Output:s",
    "GraphDriver": "Data:{}s Name:s",
    "MountPoint": "Type:s Name:s Source:s Destination:s Driver:s Mode:s RW:b Propagation:s",
    "Config": """
        Hostname:s Domainname:s User:s AttachStdin:b AttachStdout:b AttachStderr:b
        ExposedPorts:{}Nothing Tty:b OpenStdin:b StdinOnce:b Env:[]s Cmd:[]s
        Healthcheck:?Healthcheck ArgsEscaped:b Image:s Volumes:{}Nothing WorkingDir:s
        Entrypoint:[]s NetworkDisabled:b MacAddress:s OnBuild:[]s Labels:{}s StopSignal:s
        StopTimeout:?i Shell:[]s""",
    "Healthcheck": "Test:[]s Interval:i Timeout:i StartPeriod:i StartInterval:i Retries:i",
    "HostConfig": """
        Binds:[]s ContainerIDFile:s LogConfig:LogConfig NetworkMode:s PortBindings:{}[]PortBinding
        RestartPolicy:RestartPolicy AutoRemove:b VolumeDriver:s VolumesFrom:[]s ConsoleSize:[]i
        Annotations:{}s CapAdd:[]s CapDrop:[]s CgroupnsMode:s DNS=Dns:[]s DNSOptions=DnsOptions:[]s
        DNSSearch=DnsSearch:[]s ExtraHosts:[]s GroupAdd:[]s IpcMode:s Cgroup:s Links:[]s
        OomScoreAdj:i PidMode:s Privileged:b PublishAllPorts:b ReadonlyRootfs:b SecurityOpt:[]s
        StorageOpt:{}s Tmpfs:{}s UTSMode:s UsernsMode:s ShmSize:i Sysctls:{}s Runtime:s Isolation:s
        +Resources Mounts:[]Mount MaskedPaths:[]s ReadonlyPaths:[]s Init:?b""",
    "LogConfig": "Type:s Config:{}s",
    "PortBinding": "HostIP=HostIp:s HostPort:s",
    "RestartPolicy": "Name:s MaximumRetryCount:i",
    "Resources": """
        CPUShares=CpuShares:i Memory:i NanoCPUs=NanoCpus:i CgroupParent:s BlkioWeight:i
        BlkioWeightDevice:[]WeightDevice BlkioDeviceReadBps:[]ThrottleDevice
        BlkioDeviceWriteBps:[]ThrottleDevice BlkioDeviceReadIOps:[]ThrottleDevice
        BlkioDeviceWriteIOps:[]ThrottleDevice CPUPeriod=CpuPeriod:i CPUQuota=CpuQuota:i
        CPURealtimePeriod=CpuRealtimePeriod:i CPURealtimeRuntime=CpuRealtimeRuntime:i CpusetCpus:s
        CpusetMems:s Devices:[]Device DeviceCgroupRules:[]s DeviceRequests:[]DeviceRequest
        KernelMemory:i KernelMemoryTCP:i MemoryReservation:i MemorySwap:i MemorySwappiness:?i
        OomKillDisable:?b PidsLimit:?i Ulimits:[]Ulimit CPUCount=CpuCount:i CPUPercent=CpuPercent:i
        IOMaximumIOps:i IOMaximumBandwidth:i""",
    "WeightDevice": "Path:s Weight:i",
    "ThrottleDevice": "Path:s Rate:i",
    "Device": "PathOnHost:s PathInContainer:s CgroupPermissions:s",
    "DeviceRequest": "Driver:s Count:i DeviceIDs:[]s Capabilities:[][]s Options:{}s",
    "Ulimit": "Name:s Hard:i Soft:i",
    "Mount": """
        Type:s Source:s Target:s ReadOnly:b Consistency:s BindOptions:?any VolumeOptions:?any
        ImageOptions:?any TmpfsOptions:?any ClusterOptions:?any""",
    "NetworkSettings": "+NetworkSettingsBase +DefaultNetworkSettings Networks:{}Endpoint",
    "NetworkSettingsBase": """
        Bridge:s SandboxID:s SandboxKey:s Ports:{}[]PortBinding HairpinMode:b LinkLocalIPv6Address:s
        LinkLocalIPv6PrefixLen:i SecondaryIPAddresses:[]any SecondaryIPv6Addresses:[]any""",
    "DefaultNetworkSettings": """
        EndpointID:s Gateway:s GlobalIPv6Address:s GlobalIPv6PrefixLen:i IPAddress:s IPPrefixLen:i
        IPv6Gateway:s MacAddress:s""",
    "Endpoint": """
        IPAMConfig:?EndpointIPAM Links:[]s Aliases:[]s MacAddress:s DriverOpts:{}s GwPriority:i
        NetworkID:s EndpointID:s Gateway:s IPAddress:s IPPrefixLen:i IPv6Gateway:s
        GlobalIPv6Address:s GlobalIPv6PrefixLen:i DNSNames:[]s""",
    "EndpointIPAM": "IPv4Address:s IPv6Address:s LinkLocalIPs:[]s",
    "Image": """
        ID=Id:s RepoTags:[]s RepoDigests:[]s Parent:s Comment:s Created:s Container:s
        ContainerConfig:?Config DockerVersion:s Author:s Config:?Config Architecture:s Variant:s
        Os:s OsVersion:s Size:i VirtualSize:i GraphDriver:GraphDriver RootFS:RootFS
        Metadata:any Descriptor:?any Manifests:[]any""",
    "RootFS": "Type:s Layers:[]s",
    "Network": """
        Name:s ID=Id:s Created:s Scope:s Driver:s EnableIPv4:b EnableIPv6:b IPAM:IPAM Internal:b
        Attachable:b Ingress:b ConfigFrom:ConfigFrom ConfigOnly:b Containers:{}NetworkMember
        Options:{}s Labels:{}s Peers:[]any Services:{}any""",
    "IPAM": "Driver:s Options:{}s Config:[]IPAMConfig",
    "IPAMConfig": "Subnet:s IPRange:s Gateway:s AuxAddress=AuxiliaryAddresses:{}s",
    "ConfigFrom": "Network:s",
    "NetworkMember": "Name:s EndpointID:s MacAddress:s IPv4Address:s IPv6Address:s",
    "Volume": """
        ClusterVolume:?any CreatedAt:s Driver:s Labels:{}s Mountpoint:s Name:s Options:{}s Scope:s
        Status:{}any UsageData:?VolumeUsage""",
    "VolumeUsage": "RefCount:i Size:i",
    "Event": """
        Status=status:s ID=id:s From=from:s Type:s Action:s Actor:Actor Scope=scope:s Time=time:i
        TimeNano=timeNano:i""",
    "Actor": "ID:s Attributes:{}s",
    "Versions": "Client:ClientVersion Server:?ServerVersion",
    "ClientVersion": """
        Platform:?any Version:s APIVersion=ApiVersion:s DefaultAPIVersion:s GitCommit:s GoVersion:s
        Os:s Arch:s BuildTime:s Context:s""",
    "ServerVersion": """
        Platform:Platform Components:[]Component Version:s APIVersion=ApiVersion:s MinAPIVersion:s
        GitCommit:s GoVersion:s Os:s Arch:s KernelVersion:s Experimental:b BuildTime:s""",
    "Platform": "Name:s",
    "Component": "Name:s Version:s Details:{}s",
}


@cache
def _fields(kind: str) -> tuple[_Field, ...]:
    fields = []
    for text in _KINDS[kind].split():
        if text.startswith("+"):
            fields.append(_Field(text[1:], "", text[1:], embedded=True))
        else:
            names, _, of = text.partition(":")
            name, _, key = names.partition("=")
            fields.append(_Field(name, key or name, of, embedded=False))
    return tuple(fields)


class Structure(dict[str, Any]):
    """A JSON object with the fields that its kind has; as JSON it is what the engine sent."""

    def __init__(self, kind: str, value: Mapping[str, Any]) -> None:
        super().__init__(value)
        self._kind = kind

    def field(self, name: str, default: Any) -> Any:
        """Return a field by its name in Go or in JSON; ``default`` where there is none."""
        for field in _fields(self._kind):
            if field.name == name:
                return self._value(field)
            if field.embedded:
                found = Structure(field.kind, self).field(name, default)
                if found is not default:
                    return found
        return self.get(name, default)

    def values_in_order(self) -> Iterator[Any]:
        return map(self._value, _fields(self._kind))

    def _value(self, field: _Field) -> Any:
        if field.embedded:
            return Structure(field.kind, self)
        return structured(self.get(field.key), field.kind)


class NilList(list[Any]):
    """A list that the engine left out or sent as null: empty, but not the same as JSON."""


class NilMap(dict[str, Any]):
    """A map that the engine left out or sent as null: empty, but not the same as JSON."""


def structured(value: Any, kind: str) -> Any:
    """Return a JSON value as a template sees one of that kind; ``None`` is its zero value."""
    if kind.startswith("?"):
        return None if value is None else structured(value, kind[1:])
    if kind.startswith("[]"):
        return NilList() if value is None else [structured(item, kind[2:]) for item in value]
    if kind.startswith("{}"):
        if value is None:
            return NilMap()
        return {key: structured(item, kind[2:]) for key, item in sorted(value.items())}
    if kind in _KINDS:
        return Structure(kind, value or {})
    if value is None and kind != "any":
        return {"s": "", "i": 0, "b": False}[kind]
    return value
