"""``--userns-remap`` through the whole engine: root in a container is nobody outside."""

from __future__ import annotations

import io
import os
import shutil
import signal
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.remapped_engine import (
    COUNT,
    GID_BASE,
    UID_BASE,
    USER,
    RemappedEngine,
    remapped_engine,
)
from tests.engine_process import API, IMAGE, Api, Hijacked, busybox_tar, run_docker, until

pytestmark = pytest.mark.root

ROOT_OUTSIDE = (UID_BASE, GID_BASE)
CAP_DAC_OVERRIDE = 1
MACHINE = [f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if Path(path).exists()]


@pytest.fixture(scope="module")
def shared_remapped() -> Iterator[RemappedEngine]:
    with remapped_engine("--userns-remap", USER) as engine:
        yield engine


@pytest.fixture
def remapped(shared_remapped: RemappedEngine) -> Iterator[RemappedEngine]:
    shared_remapped.revive()
    yield shared_remapped
    shared_remapped.remove_everything()


@pytest.fixture
def api(remapped: RemappedEngine) -> Api:
    return remapped.api


@pytest.fixture
def place(remapped: RemappedEngine) -> Iterator[Path]:
    """A directory of the machine that everybody may enter."""
    path = remapped.root / "given"
    path.mkdir()
    remapped.root.chmod(0o755)
    yield path
    shutil.rmtree(path)


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def upper(engine: RemappedEngine, container: str) -> Path:
    return engine.remapped_root / "containers" / container / "upper"


def entries(archive: bytes) -> dict[str, tuple[int, int]]:
    """Return the owners in a tar."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: (member.uid, member.gid) for member in tar}


def restarted_state(api: Api, container: str, old_pid: int) -> Any:
    """Wait for a restarted container's process; return its state."""

    def look() -> Any:
        state = api.inspect(container)["State"]
        return state["Pid"] not in (0, old_pid) and state

    return until(look)


def import_image(api: Api, name: str, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Make an image of the test image's files and ``members``."""
    buffer = io.BytesIO(busybox_tar())
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    query = f"fromSrc=-&repo={name}&changes=CMD+%5B%22sh%22%5D"
    status, _, answer = api.raw("POST", f"{API}/images/create?{query}", buffer.getvalue())
    assert status == 200, answer


def file(name: str, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = mode, uid, gid
    return member


def test_the_engine_tells_of_it(remapped: RemappedEngine) -> None:
    info = remapped.api.get("/info")
    assert "name=userns" in info["SecurityOptions"]
    assert info["DockerRootDir"] == str(remapped.remapped_root)
    done = run_docker(remapped, "info")
    assert "userns" in done.stdout


def test_root_inside_is_a_subordinate_id_outside(
    remapped: RemappedEngine, api: Api, place: Path
) -> None:
    place.chmod(0o777)
    binds = {"Binds": [f"{place}:/given"]}
    container = api.run("sh", "-c", "touch /given/made /made; exec sleep 600", HostConfig=binds)
    process = Path("/proc", str(api.inspect(container)["State"]["Pid"]))
    assert (process / "uid_map").read_text().split() == ["0", str(UID_BASE), str(COUNT)]
    assert (process / "gid_map").read_text().split() == ["0", str(GID_BASE), str(COUNT)]
    until((upper(remapped, container) / "made").exists)
    assert run_docker(remapped, "exec", container, "cat", "/made").returncode == 0
    status = (process / "status").read_text()
    assert f"Uid:\t{UID_BASE}\t" in status
    assert f"Gid:\t{GID_BASE}\t" in status
    assert owner(place / "made") == ROOT_OUTSIDE
    assert owner(upper(remapped, container) / "made") == ROOT_OUTSIDE
    assert owner(upper(remapped, container)) == ROOT_OUTSIDE


def test_image_files_belong_to_root_inside_and_stay_roots_on_disk(
    remapped: RemappedEngine, api: Api
) -> None:
    text = api.output("sh", "-c", "stat -c '%u %g' / /bin/busybox; echo x >> /etc/passwd && id -u")
    assert text.split() == ["0", "0", "0", "0", "0"]
    for layer in (remapped.remapped_root / "layers").iterdir():
        for path in (layer / "diff").rglob("*"):
            assert owner(path) == (0, 0)


def test_it_cannot_touch_what_is_real_roots(api: Api, place: Path) -> None:
    (place / "secret").write_text("hidden\n")
    (place / "secret").chmod(0o600)
    (place / "open").write_text("everybody\n")
    script = (
        "exec 2>&1; cat /given/open; cat /given/secret; echo x > /given/new; chown 0 /given/open;"
        " chmod 777 /given; stat -c %u /given/secret"
    )
    text = api.output("sh", "-c", script, HostConfig={"Binds": [f"{place}:/given"]})
    assert "hidden" not in text
    assert text.startswith("everybody\n")
    assert "can't open '/given/secret': Permission denied" in text
    assert "can't create /given/new: Permission denied" in text
    assert text.count("Operation not permitted") == 2
    assert text.endswith("65534\n")
    assert sorted(path.name for path in place.iterdir()) == ["open", "secret"]


def test_an_unmapped_id_cannot_be_had(api: Api) -> None:
    text = api.output(
        "sh",
        "-c",
        f"exec 2>&1; touch /f; chown {COUNT} /f; chown {COUNT - 1} /f && stat -c %u /f",
    )
    assert "Invalid argument" in text
    assert text.endswith(f"{COUNT - 1}\n")
    error = api.error("POST", f"/containers/{api.create('true', User=str(COUNT + 5))}/start")
    assert error.status == 400


def test_set_user_id_programs_and_file_capabilities(api: Api) -> None:
    busybox = Path("/bin/busybox").read_bytes()
    capable = file("bin/capable", mode=0o755)
    value = struct.pack("<IIIII", 0x02000001, 1 << CAP_DAC_OVERRIDE, 0, 0, 0)
    capable.pax_headers = {"SCHILY.xattr.security.capability": value.decode("latin-1")}
    import_image(
        api,
        "privileged-files",
        [
            (file("bin/suid-id", mode=0o4755), Path("/usr/bin/id").read_bytes()),
            (file("bin/suid-other", mode=0o4755, uid=1234), Path("/usr/bin/id").read_bytes()),
            (file("etc/secret", mode=0o400), b"of root\n"),
            (capable, busybox),
        ],
    )
    script = (
        "exec 2>&1; suid-id -u; suid-other -u; ln -s /bin/capable /tmp/cat;"
        " cat /etc/secret; /tmp/cat /etc/secret"
    )
    wishes = {"Image": "privileged-files", "User": "nobody", "HostConfig": {"Binds": MACHINE}}
    text = api.output("sh", "-c", script, **wishes)
    assert text.startswith("0\n1234\n")
    assert "Permission denied" in text
    assert text.endswith("of root\n")
    wishes["HostConfig"] = {"Binds": MACHINE, "SecurityOpt": ["no-new-privileges"]}
    assert api.output("suid-id", "-u", **wishes) == "99\n"


def test_containers_share_the_mapping_not_the_namespace(api: Api) -> None:
    first, second = api.run("sleep", "600"), api.run("sleep", "600")
    pids = [api.inspect(container)["State"]["Pid"] for container in (first, second)]
    maps = {Path(f"/proc/{pid}/uid_map").read_text() for pid in pids}
    spaces = {namespace(pid, "user") for pid in pids}
    assert len(maps) == 1
    assert len(spaces) == 2


def test_capabilities_hold_in_the_namespace_only(api: Api) -> None:
    """CVE-2022-24769 and CVE-2022-29162: nothing is inheritable, here neither."""
    container = api.run("sleep", "600")
    pid = api.inspect(container)["State"]["Pid"]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert int(status["CapInh"], 16) == 0
    assert int(status["CapAmb"], 16) == 0
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0xA80425FB
    assert status["Seccomp"] == "2"
    created = api.post(
        f"/containers/{container}/exec",
        {"Cmd": ["grep", "-E", "Cap(Inh|Amb|Eff)", "/proc/self/status"], "AttachStdout": True},
    )
    stream = Hijacked(api.path, f"/exec/{created['Id']}/start", {"Detach": False})
    text = stream.read_all()[8:].decode()
    stream.close()
    assert [int(line.split()[1], 16) for line in text.splitlines()] == [0, 0xA80425FB, 0]
    extra = {"CapAdd": ["ALL"]}
    text = api.output(
        "sh",
        "-c",
        "hostname x && mount -t tmpfs x /tmp && date -s '2001-01-01 00:00'",
        HostConfig=extra,
    )
    assert "can't set date" in text


def test_named_and_anonymous_volumes(remapped: RemappedEngine, api: Api) -> None:
    import_image(
        api,
        "with-data",
        [(file("data/mine", uid=7, gid=8), b"content\n"), (file("data/roots"), b"")],
    )
    volume = remapped.remapped_root / "volumes"
    api.post("/volumes/create", {"Name": "empty"})
    assert owner(volume / "empty" / "_data") == ROOT_OUTSIDE
    host = {"Binds": ["filled:/data", "empty:/empty"]}
    script = (
        "stat -c '%u:%g' /data/mine /data/roots /empty; cat /data/mine; touch /data/new /empty/new"
    )
    text = api.output("sh", "-c", script, Image="with-data", HostConfig=host)
    assert text == "7:8\n0:0\n0:0\ncontent\n"
    data = volume / "filled" / "_data"
    assert owner(data / "mine") == (UID_BASE + 7, GID_BASE + 8)
    assert owner(data / "roots") == owner(data / "new") == ROOT_OUTSIDE
    again = api.output("sh", "-c", "rm /v/mine && ls /v", HostConfig={"Binds": ["filled:/v"]})
    assert again == "new\nroots\n"
    assert api.output("sh", "-c", "echo ok > /v/f; cat /v/f", Volumes={"/v": {}}) == "ok\n"


def test_tmpfs_made_binds_and_the_name_files(
    remapped: RemappedEngine, api: Api, place: Path
) -> None:
    host = {
        "Tmpfs": {"/t": "uid=5,mode=700"},
        "Binds": [f"{place}/a/b:/made"],
        "ShmSize": 1 << 20,
    }
    script = (
        "stat -c %u /t /made /dev/shm /etc/hosts /etc/hostname /etc/resolv.conf;"
        " echo 1.2.3.4 other >> /etc/hosts && touch /made/f /dev/shm/f && echo fine"
    )
    text = api.output("sh", "-c", script, HostConfig=host)
    assert text.split() == ["5", "0", "0", "0", "0", "0", "fine"]
    assert owner(place / "a") == owner(place / "a" / "b" / "f") == ROOT_OUTSIDE
    assert owner(place) == (0, 0)


def test_a_read_only_root_and_hidden_paths(api: Api) -> None:
    host = {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": ""}}
    script = (
        "exec 2>&1; "
        "touch /x; touch /tmp/x && echo made; head -c 1 /proc/keys | wc -c; umount /proc/keys;"
        " echo 1 > /proc/sys/kernel/shmmax; mount -o remount,rw / && echo again"
    )
    text = api.output("sh", "-c", script, HostConfig={**host, "CapAdd": ["SYS_ADMIN"]})
    assert "made\n0\n" in text
    assert text.count("Read-only file system") == 2
    assert "again" not in text


def test_copies_have_the_containers_ids(remapped: RemappedEngine, api: Api) -> None:
    script = "mkdir /d && touch /d/mine /d/roots && chown 7:8 /d/mine"
    running = api.run("sh", "-c", f"{script}; exec sleep 600")
    stopped = api.run("sh", "-c", script)
    api.wait(stopped)
    for container in (running, stopped):
        archive = api.get(f"/containers/{container}/archive?path=/d")
        assert entries(archive) == {"d": (0, 0), "d/mine": (7, 8), "d/roots": (0, 0)}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(file("sub/put", uid=11, gid=12))
        target = f"{API}/containers/{container}/archive?path=/d"
        assert api.raw("PUT", target, buffer.getvalue())[0] == 200
        made = upper(remapped, container) / "d" / "sub"
        assert owner(made) == ROOT_OUTSIDE
        assert owner(made / "put") == (UID_BASE + 11, GID_BASE + 12)
        exported = entries(api.get(f"/containers/{container}/export"))
        assert exported["bin/busybox"] == (0, 0)
        assert exported["d/mine"] == (7, 8)
        assert exported["d/sub/put"] == (11, 12)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(file("far", uid=COUNT))
    target = f"{API}/containers/{stopped}/archive?path=/d"
    status, _, answer = api.raw("PUT", target, buffer.getvalue())
    assert (status, b"outside of the subordinate IDs" in answer) == (400, True)


def test_changes_and_commit(remapped: RemappedEngine, api: Api) -> None:
    script = (
        "touch /new; chown 3 /new; chown 9 /etc/group; rm /etc/passwd; touch -r /etc /tmp/x;"
        " rm /tmp/x; cat /bin/busybox >> /dev/null"
    )
    container = api.run("sh", "-c", script)
    api.wait(container)
    # A file that is copied up without a difference is no change: its owner is the same inside.
    found = {item["Path"]: item["Kind"] for item in api.get(f"/containers/{container}/changes")}
    assert found["/new"] == 1
    assert found["/etc/group"] == 0
    assert found["/etc/passwd"] == 2
    assert "/bin" not in found
    assert "/bin/busybox" not in found
    made = api.post("/commit", container=container, repo="committed")["Id"]
    text = api.output("stat", "-c", "%u", "/new", "/etc/group", "/bin/busybox", Image=made)
    assert text.split() == ["3", "9", "0"]
    host = {"UsernsMode": "host"}
    text = api.output("stat", "-c", "%u", "/new", "/bin/busybox", Image=made, HostConfig=host)
    assert text.split() == ["3", "0"]


def test_users_terminals_init_and_exec(remapped: RemappedEngine, api: Api) -> None:
    script = (
        "id -u; echo out > /proc/self/fd/1; echo err > /proc/self/fd/2; exec 2>&1; ps -o pid,comm"
    )
    text = api.output("sh", "-c", script, User="nobody", HostConfig={"Init": True})
    assert {"99", "out", "err"} <= set(text.splitlines())
    assert "1 docker-init" in text
    done = run_docker(
        remapped, "run", "--rm", "-t", IMAGE, "sh", "-c", "tty; id -u; echo x > $(tty)"
    )
    assert done.stdout.split() == ["/dev/pts/0", "0", "x"], done.stderr
    container = api.run("sleep", "600", Tty=True)
    done = run_docker(remapped, "exec", "-u", "nobody", "-t", container, "sh", "-c", "id -u; tty")
    assert done.stdout.split()[0] == "99", done.stderr
    done = run_docker(remapped, "exec", "-i", container, "cat", stdin=b"through\n")
    assert done.stdout == "through\n"


def test_a_health_check(api: Api) -> None:
    check = {"Test": ["CMD-SHELL", "test $(id -u) = 0"], "Interval": 50_000_000, "Retries": 1}
    container = api.create("sleep", "600", Healthcheck=check)
    with api.events(filters={"container": [container], "event": ["health_status"]}) as events:
        api.post(f"/containers/{container}/start")
        assert next(events)["Action"] == "health_status: healthy"


def test_devices_and_sysctls(api: Api) -> None:
    host = {
        "Devices": [{"PathOnHost": "/dev/zero", "PathInContainer": "/dev/nothing"}],
        "Sysctls": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "123456"},
    }
    script = (
        "exec 2>&1; "
        "head -c 3 /dev/nothing | wc -c; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax"
        " /proc/sys/net/ipv4/ip_unprivileged_port_start; mknod /dev/x b 8 0;"
        " echo 1 > /proc/sys/kernel/shmmax"
    )
    text = api.output("sh", "-c", script, HostConfig=host)
    assert text.splitlines()[:4] == ["3", "1", "123456", "0"]
    assert "mknod: /dev/x: Operation not permitted" in text
    assert "Read-only file system" in text


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ({"Privileged": True}, "privileged mode is incompatible with user namespaces"),
        ({"NetworkMode": "host"}, "cannot share the host's network namespace when user"),
        ({"PidMode": "host"}, "cannot share the host PID namespace when user namespaces are"),
    ],
)
def test_what_needs_the_hosts_user_namespace(api: Api, host: dict[str, object], text: str) -> None:
    error = api.error("POST", "/containers/create", {"Image": IMAGE, "HostConfig": host})
    assert error.status == 400
    assert text in error.message
    modes = {**host, "UsernsMode": "host"}
    assert "0 4294967295" in " ".join(
        api.output("cat", "/proc/self/uid_map", HostConfig=modes).split()
    )


def test_a_container_in_the_hosts_user_namespace(remapped: RemappedEngine, api: Api) -> None:
    host = {"UsernsMode": "host"}
    container = api.run(
        "sh", "-c", "touch /made; stat -c %u / /bin/busybox /etc/hosts", HostConfig=host
    )
    api.wait(container)
    assert api.logs(container).split() == [b"0", b"0", b"0"]
    assert owner(upper(remapped, container) / "made") == (0, 0)
    assert entries(api.get(f"/containers/{container}/archive?path=/made")) == {"made": (0, 0)}


def test_shared_host_ipc_and_uts(api: Api) -> None:
    modes = {"IpcMode": "host", "UTSMode": "host"}
    text = api.output(
        "sh",
        "-c",
        "exec 2>&1; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; hostname x",
        HostConfig=modes,
    )
    assert text.splitlines()[:2] == [namespace("self", kind) for kind in ("ipc", "uts")]
    assert "Operation not permitted" in text


@pytest.mark.parametrize("kinds", ["Network", "Ipc", "Pid", "Network Ipc Pid"])
def test_namespaces_of_another_container(api: Api, kinds: str) -> None:
    """They belong to its user namespace, so that is shared too."""
    donor = api.run("sleep", "600", HostConfig={"IpcMode": "shareable"})
    modes = {f"{kind}Mode": f"container:{donor}" for kind in kinds.split()}
    container = api.run("sh", "-c", "touch /made; id -u; mount; exec sleep 600", HostConfig=modes)
    pids = [str(api.inspect(item)["State"]["Pid"]) for item in (donor, container)]
    names = {"Network": "net", "Ipc": "ipc", "Pid": "pid"}
    for kind, name in {**names, "User": "user", "Mount": "mnt", "Uts": "uts"}.items():
        spaces = {namespace(pid, name) for pid in pids}
        assert len(spaces) == (1 if kind in (*kinds.split(), "User") else 2), kind
    created = api.post(f"/containers/{container}/exec", {"Cmd": ["id", "-u"], "AttachStdout": True})
    stream = Hijacked(api.path, f"/exec/{created['Id']}/start", {"Detach": False})
    assert stream.read_all()[8:] == b"0\n"
    stream.close()
    until(lambda: b"sysfs on /sys" in api.logs(container))
    api.post(f"/containers/{container}/stop", t=0)
    assert api.inspect(container)["State"]["ExitCode"] in (
        137,
        143,
    )  # not process 1: SIGTERM ends it
    assert api.inspect(donor)["State"]["Running"]


def test_namespaces_that_cannot_be_shared(api: Api) -> None:
    outside = api.run("sleep", "600", HostConfig={"UsernsMode": "host"})
    donors = [api.run("sleep", "600") for _ in range(2)]
    for modes, text in (
        ({"NetworkMode": f"container:{outside}"}, "it is in the host's user namespace"),
        (
            {"NetworkMode": f"container:{donors[0]}", "PidMode": f"container:{donors[1]}"},
            "of different user namespaces",
        ),
    ):
        error = api.error("POST", f"/containers/{api.create('true', HostConfig=modes)}/start")
        assert error.status == 400
        assert text in error.message
    modes = {"NetworkMode": f"container:{donors[0]}", "UsernsMode": "host"}
    assert api.output("id", "-u", HostConfig=modes) == "0\n"


def test_the_docker_client(remapped: RemappedEngine, tmp_path: Path) -> None:
    assert run_docker(remapped, "run", "--rm", IMAGE, "id", "-u").stdout == "0\n"
    run_docker(remapped, "volume", "create", "kept")
    run_docker(
        remapped, "run", "--name", "one", "-v", "kept:/v", IMAGE, "sh", "-c", "echo a > /v/f"
    )
    source = tmp_path / "source"
    source.write_text("copied\n")
    assert run_docker(remapped, "cp", str(source), "one:/into").returncode == 0
    assert run_docker(remapped, "cp", "one:/v/f", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_text() == "a\n"
    done = run_docker(remapped, "cp", "one:/into", "-")
    assert b"copied" in done.stdout.encode()
    done = run_docker(remapped, "run", "--rm", "--privileged", IMAGE, "true")
    assert done.returncode == 125
    assert "incompatible with user namespaces" in done.stderr
    done = run_docker(remapped, "run", "--rm", "--privileged", "--userns", "host", IMAGE, "true")
    assert done.returncode == 0, done.stderr


def test_containers_outlive_a_killed_engine() -> None:
    with remapped_engine("--userns-remap", f"4242:{USER}") as engine:
        api = engine.api
        container = api.run("sleep", "600", HostConfig={"RestartPolicy": {"Name": "always"}})
        pid = api.inspect(container)["State"]["Pid"]
        engine.kill()
        engine.start()
        assert api.inspect(container)["State"]["Pid"] == pid
        assert run_docker(engine, "exec", container, "id", "-u").stdout == "0\n"
        engine.kill()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists())
        engine.start()
        state = restarted_state(api, container, pid)
        assert f"Uid:\t{UID_BASE}" in Path(f"/proc/{state['Pid']}/status").read_text()


def test_an_engine_may_change_between_remapped_and_not() -> None:
    """Each way has its own images, containers and volumes, and finds them as it left them."""
    with remapped_engine(start=False) as engine:
        engine.start()
        engine.load_image()
        api = engine.api
        plain = api.run(
            "sh", "-c", "touch /plain; exec sleep 600", HostConfig={"Binds": ["plain:/v"]}
        )
        engine.stop()
        engine.extra_flags = ("--userns-remap", USER)
        engine.start()
        assert api.get("/containers/json", all=True) == []
        assert api.get("/images/json") == []
        assert api.get("/volumes")["Volumes"] in ([], None)
        engine.load_image()
        shared = engine.root / "shared"
        shared.mkdir()
        script = "while test ! -e /shared/go; do sleep 0.1; done; exit 7"
        ended = api.run("sh", "-c", script, HostConfig={"Binds": [f"{shared}:/shared"]})
        engine.stop()
        engine.extra_flags = ()
        (shared / "go").touch()
        engine.start()
        state = api.inspect(plain)["State"]
        assert state["Running"]
        assert "Uid:\t0\t" in Path(f"/proc/{state['Pid']}/status").read_text()
        assert owner(engine.data_root / "containers" / plain / "upper" / "plain") == (0, 0)
        api.post(f"/containers/{plain}/stop", t=0)
        engine.stop()
        engine.extra_flags = ("--userns-remap", USER)
        engine.start()
        assert api.wait(ended) == 7
        engine.remove_everything()
        engine.stop()
        engine.extra_flags = ()
        engine.start()
        assert [item["Id"] for item in api.get("/containers/json", all=True)] == [plain]


def test_starts_that_are_refused() -> None:
    with remapped_engine(start=False) as engine:
        wanted = ("--userns-remap", USER)
        assert "there is no user nobody-here" in engine.fails_to_start(
            "--userns-remap", "nobody-here"
        )
        engine.write("subuid", f"{USER}:{UID_BASE}:1000\n")
        said = engine.fails_to_start(*wanted)
        assert f"/etc/subuid: the range of the user {USER} is too small" in said
        engine.write("subuid", "")
        assert f"add a line as `{USER}:100000:65536`" in engine.fails_to_start(*wanted)
        # The key of daemon.json is dockerd's; with root nothing is remapped, as there.
        config = engine.root / "daemon.json"
        config.write_text(f'{{"userns-remap": "{USER}:nothing"}}')
        assert "there is no group nothing" in engine.fails_to_start("--config-file", str(config))
        engine.extra_flags = ("--userns-remap", "root")
        engine.start()
        assert "name=userns" not in engine.api.get("/info")["SecurityOptions"]


def test_default_adds_its_user_and_ranges() -> None:
    with remapped_engine("--userns-remap", "default", start=False) as engine:
        engine.write("subuid", "someone:100000:65536\n")
        engine.start()
        engine.load_image()
        assert "dockremap:" in (engine.etc / "passwd").read_text()
        assert "dockremap:" in (engine.etc / "group").read_text()
        # Where neither file has a range.
        assert "dockremap:165536:65536\n" in (engine.etc / "subuid").read_text()
        assert "dockremap:165536:65536\n" in (engine.etc / "subgid").read_text()
        text = engine.api.output("cat", "/proc/self/uid_map")
        assert text.split() == ["0", "165536", "65536"]
        engine.remove_everything()
        engine.stop()
        before = [(engine.etc / name).read_text() for name in ("passwd", "subuid", "subgid")]
        engine.start()
        assert [
            (engine.etc / name).read_text() for name in ("passwd", "subuid", "subgid")
        ] == before


def test_names_in_a_network_of_ones_own(api: Api) -> None:
    api.post("/networks/create", {"Name": "named"})
    api.run("sleep", "600", name="server", HostConfig={"NetworkMode": "named"})
    text = api.output("ping", "-c", "1", "server", HostConfig={"NetworkMode": "named"})
    assert "1 packets received" in text
