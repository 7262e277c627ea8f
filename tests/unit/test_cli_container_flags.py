"""Flags of ``desk run`` and what they become in the Engine API's create request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from desk.cli import mount_specs, specs
from desk.cli.commands.run import create
from desk.cli.container_spec import container_body
from desk.errors import UsageError


def body(*arguments: str, detach: bool = False) -> dict[str, Any]:
    """Parse arguments as ``desk create`` does and return the request."""
    with create.make_context("create", [*arguments, "image", "cmd", "-x"]) as context:
        parameters = dict(context.params)
    image, command = parameters.pop("image"), parameters.pop("command")
    return container_body(image, command, {**parameters, "detach": detach})


# --- ports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [("80/tcp", "", "")]),
        ("8080:80", [("80/tcp", "", "8080")]),
        ("127.0.0.1:8080:80/udp", [("80/udp", "127.0.0.1", "8080")]),
        ("127.0.0.1::80", [("80/tcp", "127.0.0.1", "")]),
        ("[::1]:8080:80", [("80/tcp", "::1", "8080")]),
        ("8000-8001:80-81", [("80/tcp", "", "8000"), ("81/tcp", "", "8001")]),
        ("8000-8010:80", [("80/tcp", "", "8000-8010")]),
    ],
)
def test_published_ports(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [tuple(binding) for binding in specs.parse_publish(text)] == expected


@pytest.mark.parametrize("text", ["", "abc", "80:", "70000", "80/foo", "9-8:1-2", "1-3:1-2", "0"])
def test_wrong_ports_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        specs.parse_publish(text)


# --- volumes and mounts -------------------------------------------------------------------------


def test_relative_and_home_sources_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert mount_specs.parse_volume("./src/../x:/src:ro").bind() == f"{tmp_path}/x:/src:ro"
    assert mount_specs.parse_volume("~/src:/src").source == "/home/someone/src"
    assert mount_specs.parse_volume(".:/src").source == str(tmp_path)
    volume = mount_specs.parse_volume("data:/var/lib:rw")
    assert (volume.source, volume.is_path) == ("data", False)
    assert mount_specs.parse_volume("/anonymous").source == ""
    assert mount_specs.parse_volume("relative").target == "relative"
    assert mount_specs.parse_volume(r"C:\src:/src").target == "/src"


@pytest.mark.parametrize("text", ["", "a:b", "a:/b:c:d", ":/x", "/x:"])
def test_wrong_volumes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid volume"):
        mount_specs.parse_volume(text)


def test_mounts() -> None:
    assert mount_specs.parse_mount(
        "type=volume,src=d,dst=/d,readonly,volume-nocopy,volume-opt=a=b"
    ) == {
        "Type": "volume",
        "Source": "d",
        "Target": "/d",
        "ReadOnly": True,
        "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Options": {"a": "b"}}},
    }
    assert mount_specs.parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777") == {
        "Type": "tmpfs",
        "Target": "/t",
        "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777},
    }
    mount = mount_specs.parse_mount('type=bind,"source=/a,b",target=/t,bind-propagation=rslave')
    assert mount["Source"] == "/a,b"
    assert mount["BindOptions"] == {"Propagation": "rslave"}


@pytest.mark.parametrize(
    "text",
    [
        "type=bind,target=/t",
        "type=foo,target=/t",
        "source=x",
        "target=/t,colour=red",
        "type=bind,source=/x,target=/t,tmpfs-size=1m",
        "type=tmpfs,target=/t,tmpfs-mode=9",
        "target",
    ],
)
def test_wrong_mounts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"mount|mode"):
        mount_specs.parse_mount(text)


# --- the request --------------------------------------------------------------------------------


def test_a_plain_request_attaches_output_only() -> None:
    request = body()
    assert (request["Image"], request["Cmd"]) == ("image", ["cmd", "-x"])
    assert (request["AttachStdin"], request["AttachStdout"], request["OpenStdin"]) == (
        False,
        True,
        False,
    )
    assert request["HostConfig"]["NetworkMode"] == "default"
    assert request["NetworkingConfig"] == {"EndpointsConfig": {}}
    json.dumps(request)  # all of it is JSON


def test_interactive_and_detached() -> None:
    request = body("-it")
    assert request["Tty"]
    assert request["StdinOnce"]
    assert request["AttachStdin"]
    request = body("-i", detach=True)
    assert request["OpenStdin"]
    assert not request["StdinOnce"]
    assert not request["AttachStdout"]


def test_limits_and_names() -> None:
    request = body(
        *("--name", "n", "-m", "512m", "--cpus", "1.5", "-c", "10", "--pids-limit", "7"),
        *("--memory-swap", "-1", "--restart", "on-failure:3", "-h", "host", "-w", "/w"),
        *("-u", "1:2", "--ulimit", "nofile=10:20", "--device", "/dev/null:/dev/x:r"),
        *("--tmpfs", "/t:size=1m", "--add-host", "a:1.2.3.4", "--sysctl", "net.x=1"),
        *("--log-opt", "max-size=1m", "--stop-timeout", "3", "--init", "--shm-size", "1m"),
    )
    host = request["HostConfig"]
    assert host["Memory"] == 512 << 20
    assert host["NanoCpus"] == 1_500_000_000
    assert (host["CpuShares"], host["PidsLimit"], host["MemorySwap"]) == (10, 7, -1)
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert host["Devices"] == [
        {"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}
    ]
    assert host["Tmpfs"] == {"/t": "size=1m"}
    assert host["ExtraHosts"] == ["a:1.2.3.4"]
    assert host["LogConfig"] == {"Type": "", "Config": {"max-size": "1m"}}
    assert (host["Init"], host["ShmSize"]) == (True, 1 << 20)
    assert (request["Hostname"], request["User"], request["StopTimeout"]) == ("host", "1:2", 3)


def test_ports_volumes_and_networks() -> None:
    request = body(
        *("-p", "8080:80", "--expose", "90", "-v", "data:/d", "-v", "/anon", "-v", "/src:/s"),
        *("--mount", "type=bind,src=/b,dst=/b", "--network", "back", "--network-alias", "db"),
        *("--ip", "10.0.0.9"),
    )
    host = request["HostConfig"]
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert request["ExposedPorts"] == {"80/tcp": {}, "90/tcp": {}}
    assert host["Binds"] == ["data:/d", "/src:/s"]
    assert request["Volumes"] == {"/anon": {}}
    assert host["NetworkMode"] == "back"
    assert request["NetworkingConfig"]["EndpointsConfig"] == {
        "back": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "Aliases": ["db"]}
    }


def test_environment_comes_from_files_flags_and_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\nINHERITED\n  B=x y\n")
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.delenv("MISSING", raising=False)
    request = body("--env-file", str(file), "-e", "C=", "-e", "INHERITED", "-e", "MISSING")
    assert request["Env"] == ["A=1", "INHERITED=yes", "B=x y", "C=", "INHERITED=yes"]


def test_entrypoint_can_be_emptied() -> None:
    assert body("--entrypoint", "")["Entrypoint"] == [""]
    assert body()["Entrypoint"] is None


def test_a_seccomp_profile_is_read_here(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{ "defaultAction": "SCMP_ACT_ALLOW" }')
    request = body("--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges")
    assert request["HostConfig"]["SecurityOpt"] == [
        'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}',
        "no-new-privileges",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rm", "--restart", "always"), "exclude each other"),
        (("-m", "lots"), "invalid --memory 'lots'"),
        (("--cpus", "many"), "invalid --cpus"),
        (("--restart", "sometimes"), "invalid restart policy"),
        (("--ulimit", "nofile"), "invalid ulimit"),
        (("--ulimit", "nofile=3:2"), "above the hard"),
        (("--device", "null"), "invalid device"),
        (("--gpus", "all,0"), "invalid field '0'"),
        (("--gpus", "some"), "invalid number of GPUs"),
        (("--gpus", "colour=red"), "unknown field 'colour'"),
        (("--pull", "sometimes"), "invalid value 'sometimes' for --pull"),
        (("--disable-content-trust=false",), "content trust is not supported"),
        (("-p", "target=80,colour=red"), "invalid field 'colour=red'"),
        (("--env-file", "/nonexistent"), "cannot read --env-file"),
        (("--security-opt", "seccomp=/nonexistent"), "cannot read seccomp profile"),
        (("--security-opt", "what"), "invalid --security-opt"),
        (("-e", "=x"), "invalid environment variable"),
        (("--no-healthcheck", "--health-cmd", "x"), "exclude each other"),
        (("-a", "stdfoo"), "invalid value 'stdfoo' for --attach"),
        (("--add-host", "x"), "invalid --add-host"),
        (("--device-read-bps", "sda:1m"), "invalid device rate"),
        (("--network", "name=n,colour=red"), "unknown field 'colour'"),
    ],
)
def test_wrong_flags_are_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        body(*arguments)
    assert caught.value.exit_code == 125


def test_boolean_flags_take_true_and_false() -> None:
    assert body("--privileged=true")["HostConfig"]["Privileged"] is True
    assert body("--rm=false")["HostConfig"]["AutoRemove"] is False
    with pytest.raises(click.BadParameter, match="neither true nor false"):
        body("--rm=perhaps")


def test_a_short_flag_takes_its_value_after_an_equals_sign() -> None:
    request = body("-m=1g", "-e=A=b=c", "-p=8080:80", "-t=false")
    assert request["HostConfig"]["Memory"] == 1 << 30
    assert request["Env"] == ["A=b=c"]
    assert list(request["HostConfig"]["PortBindings"]) == ["80/tcp"]
    assert request["Tty"] is False


@pytest.mark.parametrize(
    ("text", "count", "devices", "capabilities"),
    [
        ("all", -1, None, ["gpu"]),
        ("2", 2, None, ["gpu"]),
        ("device=0", 0, ["0"], ["gpu"]),
        (
            '"device=0,1","capabilities=compute,utility"',
            0,
            ["0", "1"],
            ["compute", "utility", "gpu"],
        ),
        ("driver=nvidia", 1, None, ["gpu"]),
    ],
)
def test_gpus(text: str, count: int, devices: list[str] | None, capabilities: list[str]) -> None:
    (request,) = body("--gpus", text)["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["DeviceIDs"]) == (count, devices)
    assert request["Capabilities"] == [capabilities]


def test_devices_by_their_interface_names_are_requests() -> None:
    host = body("--device", "/dev/null", "--device", "vendor.example/gpu=0")["HostConfig"]
    assert [device["PathOnHost"] for device in host["Devices"]] == ["/dev/null"]
    assert host["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["vendor.example/gpu=0"]}]


def test_flags_of_windows_containers_are_passed_on() -> None:
    host = body("--isolation", "default", "--cpu-count", "2", "--kernel-memory", "4m")["HostConfig"]
    assert (host["Isolation"], host["CpuCount"], host["KernelMemory"]) == ("default", 2, 4 << 20)
    assert not {"Isolation", "CpuCount", "KernelMemory"} & body()["HostConfig"].keys()


def test_flags_end_at_the_image() -> None:
    with create.make_context("create", ["image", "--rm=true", "-m"]) as context:
        assert context.params["command"] == ("--rm=true", "-m")
        assert context.params["rm"] is False
