"""What a container can and cannot do, seen from inside."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from deskd.domain.container import DeviceMapping, HostConfig, Ulimit
from deskd.domain.mount import MountStep
from deskd.errors import DeskdError, Forbidden, InvalidArgument, Unsupported
from deskd.kernel.capabilities import names, read_mask
from deskd.kernel.capability_names import DEFAULT_CAPABILITIES
from deskd.runtime.client import LauncherRuntime
from tests.engine.runtime_harness import Harness, with_host
from tests.engine.runtime_harness import busybox_root as busybox_root  # noqa: PLC0414
from tests.engine.runtime_harness import harness as harness  # noqa: PLC0414

pytestmark = pytest.mark.root


def own_namespace(name: str, pid: str = "self") -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def output(harness: Harness, script: str, host: HostConfig | None = None, **wishes: object) -> str:
    """Run a shell script in a container; return both its outputs."""

    async def scenario(runtime: LauncherRuntime) -> str:
        plan = harness.plan("sh", "-c", script, host=host, **wishes)  # type: ignore[arg-type]
        out, err, _ = await harness.run(runtime, plan)
        return out + err

    return harness.play(scenario)


def test_the_default_capabilities_are_the_fourteen(harness: Harness) -> None:
    text = output(harness, "grep Cap /proc/self/status")
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines()}
    wanted = set(DEFAULT_CAPABILITIES)
    assert len(wanted) == 14
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert set(names(masks[name])) == wanted
    assert masks["CapInh"] == masks["CapAmb"] == 0


@pytest.mark.parametrize(
    ("add", "drop", "wanted"),
    [
        (["NET_ADMIN"], ["chown"], {*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"} - {"CAP_CHOWN"}),
        ([], ["ALL"], set()),
        (["CAP_KILL"], ["ALL"], {"CAP_KILL"}),
    ],
)
def test_capabilities_added_and_dropped(
    harness: Harness, add: list[str], drop: list[str], wanted: set[str]
) -> None:
    host = HostConfig(cap_add=add, cap_drop=drop)
    text = output(harness, "grep CapEff /proc/self/status", host)
    assert set(names(int(text.split()[1], 16))) == wanted


def test_a_privileged_container_has_what_the_engine_has_and_no_more(harness: Harness) -> None:
    script = "grep -E 'CapEff|Seccomp:' /proc/self/status; touch /proc/sys/kernel/x; ls /dev"
    text = output(harness, script, HostConfig(privileged=True))
    assert int(text.split()[1], 16) == read_mask("CapBnd")
    assert "Seccomp:\t0" in text
    assert {path.name for path in Path("/dev").iterdir() if path.is_block_device()} <= set(
        text.split()
    )


def test_a_capability_the_engine_lacks_is_named(harness: Harness) -> None:
    from deskd.kernel.capability_names import CAPABILITIES

    lacking = [name for name in CAPABILITIES if name not in names(read_mask("CapBnd"))]
    if not lacking:
        assert output(harness, "true", HostConfig(cap_add=["ALL"])) == ""
        return
    with pytest.raises(Unsupported, match=lacking[0]):
        output(harness, "true", HostConfig(cap_add=[lacking[0]]))


def test_an_unknown_capability_is_refused(harness: Harness) -> None:
    with pytest.raises(InvalidArgument, match="FLY"):
        output(harness, "true", HostConfig(cap_add=["FLY"]))


def test_seccomp_refuses_what_dockers_default_refuses(harness: Harness) -> None:
    add = ["SYS_ADMIN"]
    assert "Operation not permitted" in output(harness, "unshare -m true")
    assert "Seccomp:\t2" in output(harness, "grep Seccomp: /proc/self/status")
    assert output(harness, "unshare -m true", HostConfig(cap_add=add)) == ""
    host = HostConfig(security_opt=["seccomp=unconfined"])
    assert "Seccomp:\t0" in output(harness, "grep Seccomp: /proc/self/status", host)


def test_an_own_seccomp_profile(harness: Harness) -> None:
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
        '[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}'
    )
    host = HostConfig(security_opt=[f"seccomp={profile}"])
    assert "Operation not supported" in output(harness, "mkdir /tmp/x", host)
    with pytest.raises(InvalidArgument, match="seccomp profile"):
        output(harness, "true", HostConfig(security_opt=["seccomp={}"]))


def test_no_new_privileges(harness: Harness) -> None:
    host = HostConfig(security_opt=["no-new-privileges"])
    text = output(harness, "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", host)
    assert text.split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]


def test_masked_and_read_only_paths(harness: Harness) -> None:
    script = (
        "cat /proc/keys; cat /proc/timer_list; ls /proc/acpi /sys/firmware;"
        " echo 1 > /proc/sys/kernel/domainname; echo h > /proc/sysrq-trigger; mkdir /sys/x"
    )
    text = output(harness, script)
    assert text.count("Read-only file system") + text.count("can't create") >= 2
    assert "can't create directory" in text or "Read-only" in text
    lines = [line for line in text.splitlines() if "sh:" not in line and "mkdir" not in line]
    assert [line for line in lines if line and not line.endswith(":")] == []


def test_devices_are_an_allow_list(harness: Harness) -> None:
    script = "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg; echo x > /dev/null && head -c1 /dev/zero"
    text = output(harness, script)
    assert "Operation not permitted" in text
    assert text.startswith("\0") or "\0" in text


def test_a_device_given_to_a_container(harness: Harness) -> None:
    device = DeviceMapping(
        path_on_host="/dev/kmsg", path_in_container="/dev/log-k", cgroup_permissions="r"
    )
    text = output(harness, "ls -l /dev/log-k; echo x > /dev/log-k", HostConfig(devices=[device]))
    assert "1,  11" in text
    assert "not permitted" in text
    with pytest.raises(InvalidArgument, match="/dev/no-such"):
        output(harness, "true", HostConfig(devices=[DeviceMapping(path_on_host="/dev/no-such")]))


def test_the_devices_every_container_has(harness: Harness) -> None:
    text = output(harness, "stat -c '%n %a %F' /dev/null /dev/tty /dev/shm; readlink /dev/fd")
    assert "/dev/null 666 character special file" in text
    assert "/dev/shm 1777 directory" in text
    assert "/proc/self/fd" in text


def test_users_groups_and_home(harness: Harness) -> None:
    script = "id -u; id -g; id -G; echo $HOME"
    assert output(harness, script, user="app").split() == [
        "1000",
        "1000",
        "1000",
        "2000",
        "/home/app",
    ]
    assert output(harness, script, user="1234:5").split() == ["1234", "5", "5", "/"]
    host = HostConfig(group_add=["extra", "77"])
    assert output(harness, "id -G", host, user="app:root").split() == ["0", "77", "2000"]
    with pytest.raises(InvalidArgument, match="unable to find user nobody-here"):
        output(harness, "true", user="nobody-here")


def test_a_user_without_privileges_can_write_its_output(harness: Harness) -> None:
    assert output(harness, "echo hello > /dev/stdout", user="app") == "hello\n"
    text = output(harness, "grep -E 'CapEff|CapPrm' /proc/self/status", user="app")
    assert [int(line.split()[1], 16) for line in text.splitlines()] == [0, 0]


def test_the_working_directory_is_made(harness: Harness) -> None:
    assert output(harness, "pwd", working_dir="/srv/new/place") == "/srv/new/place\n"
    host = HostConfig(readonly_rootfs=True)
    assert output(harness, "pwd", host, working_dir="/srv/new") == "/srv/new\n"


def test_a_read_only_root_with_writable_places(harness: Harness) -> None:
    host = HostConfig(readonly_rootfs=True, tmpfs={"/scratch": "size=1m,mode=700"})
    text = output(
        harness,
        "touch /x; touch /scratch/y && echo fine; stat -c %a /scratch;"
        " touch /dev/shm/z && echo shm",
        host,
    )
    assert "Read-only file system" in text
    assert "fine" in text
    assert "700" in text
    assert "shm" in text


def test_binds_read_only_and_writable(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("from outside\n")
    steps = [
        MountStep("bind", "/rw", source=str(tmp_path)),
        MountStep("bind", "/ro", source=str(tmp_path), read_only=True),
        MountStep("bind", "/file/inside", source=str(tmp_path / "a")),
    ]
    script = "cat /rw/a /file/inside; echo new > /rw/b; touch /ro/c"
    text = output(harness, script, mounts=steps)
    assert text.count("from outside") == 2
    assert "Read-only file system" in text
    assert (tmp_path / "b").read_text() == "new\n"
    assert not (tmp_path / "c").exists()


def test_a_mount_never_leaves_the_root(harness: Harness, tmp_path: Path) -> None:
    """The image has links that point out of it at the mount's target."""
    outside = tmp_path / "outside"
    outside.mkdir()

    async def scenario(runtime: LauncherRuntime) -> None:
        source = tmp_path / "source"
        source.mkdir()
        steps = [MountStep("bind", "/link/target", source=str(source))]
        plan = harness.plan("sh", "-c", "ls -d /link/target", mounts=steps)
        (harness.upper(plan.key) / "link").symlink_to(f"../../../../../../{outside}")
        out, _, ended = await harness.run(runtime, plan)
        assert (out, ended.code) == ("/link/target\n", 0)
        assert list(outside.iterdir()) == []

    harness.play(scenario)


def test_proc_as_a_link_is_refused(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("true")
        upper = harness.upper(plan.key)
        os.mknod(upper / "proc", 0o600, os.makedev(0, 0))
        (upper / "proc").unlink()
        (upper / "proc").symlink_to("/tmp")
        with pytest.raises(DeskdError, match="proc"):
            await runtime.create(plan)

    harness.play(scenario)


def test_host_names(harness: Harness) -> None:
    text = output(
        harness,
        "hostname; cat /proc/sys/kernel/domainname",
        hostname="box",
        domainname="example.test",
    )
    assert text.split() == ["box", "example.test"]


def test_sysctls(harness: Harness) -> None:
    host = HostConfig(sysctls={"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"})
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"
    assert output(harness, script, host).split() == ["1", "4096"]
    with pytest.raises(InvalidArgument, match=r"kernel\.panic"):
        output(harness, "true", HostConfig(sysctls={"kernel.panic": "1"}))


def test_ulimits(harness: Harness) -> None:
    host = HostConfig(ulimits=[Ulimit(name="nofile", soft=123, hard=456)])
    assert output(harness, "ulimit -Sn; ulimit -Hn", host).split() == ["123", "456"]
    if "CAP_SYS_RESOURCE" not in names(read_mask("CapEff")):
        host = HostConfig(ulimits=[Ulimit(name="nofile", soft=10**6, hard=2 * 10**6)])
        with pytest.raises(Forbidden, match="nofile"):
            output(harness, "true", host)


def test_namespaces_of_the_host_and_of_others(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = with_host(
            harness.plan("sh", "-c", "for n in net ipc uts; do readlink /proc/self/ns/$n; done"),
            net="host",
            ipc="host",
            uts="host",
        )
        out, _, _ = await harness.run(runtime, plan)
        assert out.split() == [own_namespace(n) for n in ("net", "ipc", "uts")]
        other = await runtime.create(
            harness.plan("sh", "-c", "touch /dev/shm/mark; exec sleep 600")
        )
        await other.release()
        pid = str(other.pid)
        script = (
            "until ps -o args | grep -x 'sleep 600'; do usleep 50000; done;"
            " ls /dev/shm; readlink /proc/self/ns/net"
        )
        plan = with_host(harness.plan("sh", "-c", script), net=pid, ipc=pid, pid=pid)
        out, _, _ = await harness.run(runtime, plan)
        assert "mark" in out
        assert "sleep" in out
        assert own_namespace("net", pid) in out
        await other.signal(signal.SIGKILL)
        await other.wait()

    harness.play(scenario)


def test_the_hosts_pid_namespace(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = with_host(
            harness.plan("sh", "-c", "sleep 600 & ls -d /proc/" + str(os.getpid())), pid="host"
        )
        out, _, ended = await harness.run(runtime, plan)
        assert out.strip() == f"/proc/{os.getpid()}"
        assert ended.code == 0

    harness.play(scenario)


def test_init_reaps_and_forwards(harness: Harness) -> None:
    text = output(harness, "ps -o pid,comm | grep -E '^ *1 '", HostConfig(init=True))
    assert "docker-init" in text


def test_no_descriptor_leaks_into_a_container(harness: Harness) -> None:
    text = output(harness, "for f in /proc/self/fd/*; do readlink $f; done")
    assert {line for line in text.splitlines() if "pipe:" not in line} <= {"/dev/null"}


def test_the_engines_interpreter_cannot_be_overwritten(harness: Harness) -> None:
    """The way of CVE-2019-5736: have the held process execute itself, then write to its file."""

    async def scenario(runtime: LauncherRuntime) -> None:
        interpreter = Path(f"/proc/{harness.launcher_pid}/exe").readlink()
        size = interpreter.stat().st_size
        # What the interpreter needs to run at all, as an attacker would bring it along.
        steps = [MountStep("bind", name, source=name) for name in ("/lib", "/lib64", "/usr")]
        steps = [step for step in steps if Path(step.source).exists()]
        home = str(Path(sys.base_prefix))
        if not home.startswith("/usr"):
            steps.append(MountStep("bind", home, source=home))
        container = await runtime.create(harness.plan("sleep", "600", mounts=steps))
        await container.release()
        attack = (
            "import os\n"
            # Opening it to write says "text file busy" while it runs; a change of its mode asks
            # the mount alone.
            "try:\n os.chmod('/proc/self/exe', 0o755); print('written')\n"
            "except OSError as e: print(e.errno)\n"
        )
        exec_plan = harness.exec_plan(container, "/proc/self/exe", "-c", attack)
        out, err, _ = await harness.run(runtime, exec_plan)
        assert out.strip() == str(errno.EROFS), err
        assert interpreter.stat().st_size == size
        await container.signal(signal.SIGKILL)
        await container.wait()

    harness.play(scenario)
