"""What a container may do and see: capabilities, system calls, devices, cgroups, hidden paths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.engine_places import EnginePlace, execute, layout_of

# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
# sys_chroot, mknod, audit_write, setfcap: what Docker leaves a container's root by default.
DEFAULT_CAPABILITIES = 0xA80425FB
NET_ADMIN, CHOWN = 1 << 12, 1 << 0


def status(place: EnginePlace, **host: object) -> dict[str, str]:
    """Run a container that prints /proc/self/status; return its fields."""
    text = place.api.output("cat", "/proc/self/status", HostConfig=host)
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_the_default_confinement_is_dockers(place: EnginePlace) -> None:
    found = status(place)
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == DEFAULT_CAPABILITIES
    assert int(found["CapAmb"], 16) == int(found["CapInh"], 16) == 0
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "0")


def test_capabilities_filter_and_privileges_follow_the_wishes(place: EnginePlace) -> None:
    found = status(place, CapAdd=["NET_ADMIN"], CapDrop=["CHOWN"])
    assert int(found["CapEff"], 16) == (DEFAULT_CAPABILITIES | NET_ADMIN) & ~CHOWN
    found = status(place, CapDrop=["ALL"], SecurityOpt=["no-new-privileges", "seccomp=unconfined"])
    assert (int(found["CapEff"], 16), found["Seccomp"], found["NoNewPrivs"]) == (0, "0", "1")


def test_the_default_filter_refuses_new_namespaces(place: EnginePlace) -> None:
    refused = place.api.output("unshare", "-U", "true")
    assert "Operation not permitted" in refused
    # AppArmor's default profile, where the kernel has it, refuses the mounts that come with this.
    options = ["seccomp=unconfined", "apparmor=unconfined"]
    host = {"SecurityOpt": options, "CapAdd": ["SYS_ADMIN"]}
    assert place.api.output("unshare", "-m", "true", HostConfig=host) == ""


def test_an_own_filter_is_loaded(place: EnginePlace) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    host = {"SecurityOpt": [f"seccomp={json.dumps(profile)}"]}
    assert "Operation not supported" in place.api.output("mkdir", "/made", HostConfig=host)


def test_the_kernels_dangerous_files_are_hidden_or_read_only(place: EnginePlace) -> None:
    script = (
        "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l;"
        "(echo 1 >/proc/sys/vm/drop_caches) 2>&1;"
        "mkdir /sys/fs/cgroup/x 2>&1"
    )
    lines = place.api.output("sh", "-c", script).splitlines()
    assert lines[:2] == ["0", "0"]
    assert len(lines) == 4
    assert all("Read-only file system" in line for line in lines[2:])


def test_only_listed_devices_open(place: EnginePlace) -> None:
    script = (
        "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done;"
        "head -c 1 /dev/urandom >/dev/null && echo listed;"
        "mknod /mem c 1 1; head -c 1 /mem; mknod /disk b 7 0; head -c 1 /disk"
    )
    text = place.api.output("sh", "-c", script)
    assert text.startswith("listed\n")
    assert text.count("Operation not permitted") == 2


@pytest.fixture
def device(place: EnginePlace) -> tuple[str, str]:
    """A character device of the machine that containers may not open by default."""
    found = place.run(
        "for d in fuse loop-control net/tun; do (: <>/dev/$d) 2>/dev/null || continue;"
        " echo /dev/$d; stat -c '%t %T' /dev/$d; break; done"
    ).split()
    assert found, "the machine has none of the devices that this test knows"
    return found[0], f"{int(found[1], 16)}:{int(found[2], 16)}"


def test_devices_are_added_by_option_rule_and_privilege(
    place: EnginePlace, device: tuple[str, str]
) -> None:
    path, numbers = device
    script = (
        f"test -c /d || mknod /d c {numbers.replace(':', ' ')};"
        "(: </d) && echo read; (: <>/d) && echo write"
    )

    def opened(**host: Any) -> list[str]:
        lines = place.api.output("sh", "-c", script, HostConfig=host).splitlines()
        return ["refused" if "Operation not permitted" in line else line for line in lines]

    def mapped(access: str) -> dict[str, str]:
        return {"PathOnHost": path, "PathInContainer": "/d", "CgroupPermissions": access}

    assert opened() == ["refused", "refused"]
    assert opened(Devices=[mapped("r")]) == ["read", "refused"]
    assert opened(Devices=[mapped("rwm")]) == ["read", "write"]
    assert opened(DeviceCgroupRules=[f"c {numbers} r"]) == ["read", "refused"]
    assert opened(DeviceCgroupRules=["a *:* rwm"]) == ["read", "write"]
    assert opened(Privileged=True) == ["read", "write"]


def test_the_cgroup_namespace_is_private_in_version_2(place: EnginePlace) -> None:
    private = layout_of(place.api).version == 2
    for host in ({}, {"Privileged": True}):
        container = place.api.run("sleep", "600", HostConfig=host)
        shown = execute(place, container, "cat /proc/self/cgroup")[1]
        mode = place.api.inspect(container)["HostConfig"]["CgroupnsMode"]
        assert mode == ("private" if private else "host")
        assert (container in shown) == (not private)
        if private:
            assert "0::/\n" in shown
    asked = place.api.output("cat", "/proc/self/cgroup", HostConfig={"CgroupnsMode": "private"})
    assert {line.rpartition(":")[2] for line in asked.splitlines()} == {"/"}
    wish = {"CgroupnsMode": "host"}
    container = place.api.run("cat", "/proc/self/cgroup", HostConfig=wish)
    place.api.wait(container)
    assert container in place.api.logs(container).decode()


def test_limits_of_processes_and_kernel_settings(place: EnginePlace) -> None:
    host = {
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}],
        "Sysctls": {"net.core.somaxconn": "333", "kernel.shmmax": "4096"},
        "OomScoreAdj": 300,
        "ShmSize": 8 << 20,
        "Tmpfs": {"/x": "size=1m,mode=700"},
        "Init": True,
    }
    script = (
        "ulimit -Sn; ulimit -Hn; cd /proc/sys; cat net/core/somaxconn kernel/shmmax"
        " /proc/self/oom_score_adj; df -k /dev/shm /x | awk 'NR > 1 { print $2 }';"
        "stat -c %a /x; tr '\\0' ' ' </proc/1/cmdline"
    )
    lines = place.api.output("sh", "-c", script, HostConfig=host).splitlines()
    assert lines[:5] == ["100", "200", "333", "4096", "300"]
    assert lines[5:8] == ["8192", "1024", "700"]
    assert lines[8].startswith("/sbin/docker-init -- sh -c")


def test_a_terminal_is_the_containers_own(place: EnginePlace) -> None:
    container = place.api.run(
        "sh", "-c", "tty; stty size; test -c /dev/console && echo console",
        Tty=True, HostConfig={"ConsoleSize": [30, 90]},
    )  # fmt: skip
    place.api.wait(container)
    # What a terminal gave has no frames.
    text = place.api.get(f"/containers/{container}/logs", stdout=1)
    assert text.split() == [b"/dev/pts/0", b"30", b"90", b"console"]


@pytest.mark.parametrize("privileged", [False, True])
def test_sys_fs_cgroup_can_be_written_by_the_privileged_alone(
    place: EnginePlace, *, privileged: bool
) -> None:
    where = "/sys/fs/cgroup" if layout_of(place.api).version == 2 else "/sys/fs/cgroup/pids"
    host = {"Privileged": privileged, "CgroupnsMode": "private"}
    text = place.api.output("sh", "-c", f"mkdir {where}/inner && echo made", HostConfig=host)
    assert text.endswith("made\n" if privileged else "Read-only file system\n")
