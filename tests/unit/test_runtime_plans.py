"""From a client's wishes to a plan, and a plan's way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deskd.domain.container import ContainerConfig, HostConfig, Mount, TmpfsOptions, Ulimit
from deskd.domain.mount import MountStep
from deskd.errors import InvalidArgument
from deskd.runtime.confinement import capability_set, security_options
from deskd.runtime.log_options import log_spec
from deskd.runtime.plan import NetlinkMessages, Plan, decode, encode
from deskd.runtime.resource_rules import parse_size
from deskd.runtime.spec import (
    ContainerInputs,
    ExecInputs,
    build_container_plan,
    build_exec_plan,
    environment,
    resolve_namespaces,
)

ID = "ab" * 32


def plan_of(host: HostConfig | None = None, **config: Any) -> Plan:
    config.setdefault("cmd", ["true"])
    return build_container_plan(
        ContainerInputs(
            container_id=ID,
            config=ContainerConfig(**config),
            host_config=host or HostConfig(),
            root=(MountStep("overlay", "/", data="lowerdir=/l"),),
            mounts=(MountStep("bind", "/a/b/c", source="/x"), MountStep("bind", "/a", source="/y")),
            hosts_file="/h/hosts",
            resolv_conf_file="/h/resolv.conf",
            networks=(NetlinkMessages((b"\x01\x02",), (None,), (b"\x03",)),),
            log_path="/log",
        )
    )


def test_a_plan_survives_json() -> None:
    host = HostConfig(
        memory=64 << 20,
        ulimits=[Ulimit(name="nofile", soft=1, hard=2)],
        sysctls={"net.ipv4.ip_forward": "1"},
        device_cgroup_rules=["c 10:* rw"],
    )
    plan = plan_of(host, user="app:extra", env=["A=b"])
    assert decode(json.loads(encode(plan))) == plan


def test_an_exec_plan_survives_json() -> None:
    plan = build_exec_plan(
        ExecInputs(
            exec_id="ef" * 32,
            container_id=ID,
            container_pid=42,
            config=ContainerConfig(user="app", working_dir="/srv"),
            host_config=HostConfig(),
            command=["ls"],
        )
    )
    assert plan.process.user == "app"
    assert plan.process.cwd == "/srv"
    assert decode(json.loads(encode(plan))) == plan


def test_entrypoint_comes_before_the_command() -> None:
    assert plan_of(entrypoint=["/e", "1"], cmd=["2"]).process.argv == ("/e", "1", "2")
    assert plan_of(entrypoint="/e", cmd=None).process.argv == ("/e",)
    with pytest.raises(InvalidArgument, match="no command"):
        plan_of(cmd=[])


def test_mounts_are_ordered_by_depth_and_keep_a_users_own_hosts_file() -> None:
    root = plan_of().root
    assert root is not None
    assert [step.target for step in root.mounts] == [
        "/a",
        "/etc/resolv.conf",
        "/etc/hosts",
        "/a/b/c",
    ]


def test_tmpfs_from_both_kinds_of_wishes() -> None:
    mount = Mount(target="/m", type="tmpfs", tmpfs_options=TmpfsOptions(size_bytes=9, mode=0o700))
    root = plan_of(HostConfig(tmpfs={"/t": "size=1m,exec,ro"}, mounts=[mount])).root
    assert root is not None
    steps = {step.target: step for step in root.mounts}
    assert steps["/t"].data == "size=1m,mode=1777"
    assert steps["/t"].flags == ("nosuid", "nodev")
    assert steps["/t"].read_only
    assert steps["/m"].data == "size=9,mode=700"


def test_the_environment_is_dockers() -> None:
    config = ContainerConfig(env=["A=1", "PATH=/mine", "B=2", "B"])
    assert environment(config, "box", tty=True, extra=["A=3"]) == (
        "PATH=/mine",
        "HOSTNAME=box",
        "TERM=xterm",
        "A=3",
    )


def test_sharing_modes() -> None:
    host = HostConfig(network_mode="container:web", ipc_mode="host", pid_mode="", uts_mode="host")
    spaces = resolve_namespaces(host, {"web": 77}.__getitem__)
    assert (spaces.net, spaces.ipc, spaces.pid, spaces.uts) == ("77", "host", "private", "host")
    remap = ((0, 100000, 65536),)
    assert resolve_namespaces(HostConfig(), int, uid_map=remap, gid_map=remap).user == "private"
    host = HostConfig(userns_mode="host")
    assert resolve_namespaces(host, int, uid_map=remap, gid_map=remap).user == "host"
    host = HostConfig(pid_mode="container:78", ipc_mode="host")
    spaces = resolve_namespaces(host, int, uid_map=remap, gid_map=remap)
    assert (spaces.user, spaces.pid, spaces.uid_map) == ("78", "78", remap)


def test_privileged_means_no_filter_no_masks_no_device_list() -> None:
    plan = plan_of(HostConfig(privileged=True))
    assert plan.root is not None
    assert plan.process.seccomp == ""
    assert plan.root.masked_paths == plan.root.read_only_paths == ()
    assert plan.root.writable_system
    assert plan.cgroup.limits.devices is None


def test_an_empty_list_of_masked_paths_means_none() -> None:
    root = plan_of(HostConfig(masked_paths=[], readonly_paths=["/proc/bus"])).root
    assert root is not None
    assert (root.masked_paths, root.read_only_paths) == ((), ("/proc/bus",))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["seccomp=unconfined"], ("", False)),
        (["seccomp:unconfined", "no-new-privileges:true"], ("", True)),
        (["no-new-privileges", "label=disable", "apparmor=unconfined"], ("default", True)),
        (["no-new-privileges=false"], ("default", False)),
    ],
)
def test_security_options(options: list[str], wanted: tuple[str, bool]) -> None:
    found = security_options(options, privileged=False)
    assert (found.seccomp, found.no_new_privileges) == wanted


def test_security_options_that_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match="magic"):
        security_options(["magic=1"], privileged=False)
    with pytest.raises(InvalidArgument, match="profile"):
        security_options(["apparmor=two words"], privileged=False)


@pytest.mark.parametrize(
    ("options", "privileged", "wanted"),
    [
        ([], False, "docker-default"),
        (["apparmor="], False, "docker-default"),
        (["apparmor=own"], False, "own"),
        (["apparmor:own"], False, "own"),
        (["apparmor=unconfined"], False, "unconfined"),
        (["apparmor=own"], True, "unconfined"),
    ],
)
def test_apparmor_profiles(options: list[str], privileged: bool, wanted: str) -> None:
    assert security_options(options, privileged=privileged).apparmor == wanted


def test_all_capabilities_but_one() -> None:
    wanted, required = capability_set(["ALL"], ["SYS_ADMIN"], privileged=False)
    assert "CAP_SYS_ADMIN" not in wanted
    assert len(wanted) == 40
    assert required == ()


def test_log_options() -> None:
    spec = log_spec("json-file", "/log", {"max-size": "10k", "max-file": "3"})
    assert spec is not None
    assert (spec.max_size_bytes, spec.max_files) == (10240, 3)
    assert log_spec("json-file", "", {}) is None
    for options in ({"max-size": "ten"}, {"max-file": "0"}, {"max-file": "x"}):
        with pytest.raises(InvalidArgument):
            log_spec("json-file", "/log", options)


def test_sizes() -> None:
    assert [parse_size(text, "x") for text in ("5", "1k", "1.5m", "2gb", "-1")] == [
        5,
        1024,
        1572864,
        2 << 30,
        -1,
    ]
