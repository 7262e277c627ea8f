"""Known escapes from containers, tried for real: each must fail and leave the machine as it was."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import secrets
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import API, REPOSITORY, Api, ApiError, EngineProcess, Hijacked
from tests.security.conftest import MakeImage, directory, link, pipe

pytestmark = pytest.mark.root


def exec_output(engine: EngineProcess, container: str, *command: str, **fields: Any) -> str:
    """Run a command in a container with a terminal; return what it printed."""
    wishes = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True, "Tty": True}
    made = engine.api.post(f"/containers/{container}/exec", {**wishes, **fields})["Id"]
    stream = Hijacked(engine.socket, f"/exec/{made}/start", {"Tty": True})
    try:
        return stream.read_all().decode(errors="replace")
    finally:
        stream.close()


def refused_start(api: Api, image: str, *command: str, **fields: Any) -> ApiError:
    """Create a container whose start must fail; return the error."""
    container = api.create(*(command or ("true",)), Image=image, **fields)
    error = api.error("POST", f"/containers/{container}/start")
    assert not api.inspect(container)["State"]["Running"]
    return error


def monitor_of(api: Api, container: str) -> int:
    pid = api.inspect(container)["State"]["Pid"]
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


# --- CVE-2019-5736: the runtime's own program overwritten through /proc/self/exe -----------------


def test_cve_2019_5736_proc_self_exe_overwrite(
    engine: EngineProcess, api: Api, hostile_image: MakeImage
) -> None:
    interpreter = Path("/proc/self/exe").resolve()
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()
    image = hostile_image(
        link("bin/evil", "/proc/self/exe"), ("bin/shebang", "#!/proc/self/exe\necho pwned\n")
    )
    # The container's own root looks for programs that are not the container's, takes hold of
    # them while they enter it, and tries to write through what it holds.
    hunt = """
        while :; do for exe in /proc/[0-9]*/exe; do
            case "$(readlink $exe)" in /bin/busybox) continue;; esac
            (exec 3<$exe; echo held; sleep 0.1; echo pwned >/proc/self/fd/3 && echo overwritten) &
        done 2>/tmp/said; sleep 0.01; done
    """
    container = api.run("sh", "-c", hunt, Image=image)
    for command in (["/bin/evil"], ["/proc/self/exe"], ["/bin/shebang"], ["true"]) * 3:
        exec_output(engine, container, *command)
    monitor = monitor_of(api, container)
    # Even with every privilege the running program is on a mount that nobody can write to.
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its number is looked at)
        os.close(os.open(f"/proc/{monitor}/exe", os.O_WRONLY))
    assert caught.value.errno in (errno.EROFS, errno.ETXTBSY)
    with open(f"/proc/{monitor}/exe", "rb") as held:  # noqa: PTH123
        flags = os.statvfs(held.fileno()).f_flag
    assert flags & os.ST_RDONLY
    assert b"overwritten" not in api.logs(container)
    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


# --- CVE-2024-21626: working directory and program through descriptors left open -----------------


def planted(engine: EngineProcess, name: str) -> list[Path]:
    """Find what an attack would have made outside of containers' own files."""
    places = [Path("/"), REPOSITORY, engine.root, engine.root / "run", engine.data_root]
    found = [place / name for place in places if (place / name).exists()]
    return found + [
        path
        for path in engine.root.rglob(name)
        if "upper" not in path.relative_to(engine.root).parts
    ]


@pytest.mark.parametrize("read_only", [False, True])
def test_cve_2024_21626_leaked_descriptor_as_working_directory(
    engine: EngineProcess, api: Api, read_only: bool
) -> None:
    name = f"pwned-{secrets.token_hex(4)}"
    for number in range(3, 16):
        for path in (f"/proc/self/fd/{number}/{name}", f"/proc/self/fd/{number}/../{name}"):
            host = {"ReadonlyRootfs": read_only}
            error = refused_start(api, "busybox", WorkingDir=path, HostConfig=host)
            assert error.status in (400, 403), error
    assert planted(engine, name) == []


def test_cve_2024_21626_leaked_descriptor_in_exec(engine: EngineProcess, api: Api) -> None:
    name = f"pwned-{secrets.token_hex(4)}"
    container = api.run("sleep", "60")
    for number in range(3, 16):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../{name}"):
            wishes = {"Cmd": ["ls", "-a"], "WorkingDir": path, "AttachStdout": True}
            made = api.post(f"/containers/{container}/exec", wishes)["Id"]
            error = api.error("POST", f"/exec/{made}/start", {"Detach": True})
            assert error.status in (400, 403), (path, error)
    assert planted(engine, name) == []


def test_cve_2024_21626_program_reached_through_a_descriptor(api: Api) -> None:
    for number in range(3, 16):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../../bin/busybox"):
            assert refused_start(api, "busybox", path, "ls").status in (400, 403)


def test_cve_2024_21626_programs_inherit_three_descriptors(engine: EngineProcess, api: Api) -> None:
    assert api.output("ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]  # 3: ls reads it
    container = api.run("sleep", "60")
    assert exec_output(engine, container, "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]


# --- CVE-2018-15664: cp while the container swaps a directory for a link -------------------------


def copied(api: Api, container: str, path: str) -> bytes:
    """Get a path's tar, or what came of it before the container took the file away."""
    try:
        return api.raw("GET", f"{API}/containers/{container}/archive?path={path}")[2]
    except http.client.IncompleteRead as broken:
        return broken.partial


def test_cve_2018_15664_symlink_race_in_cp(api: Api, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "secret").write_text("the machine's secret")
    swap = f"""
        mkdir -p /w {victim}
        while :; do
            rm -rf /w/x; ln -s {victim} /w/x; rm /w/x; mkdir /w/x; echo inside >/w/x/secret
        done
    """
    container = api.run("sh", "-c", swap)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("secret")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"pwned"))
    for _ in range(8):
        for path in ("/w/x/secret", "/w/x", "/w"):
            assert b"the machine's secret" not in copied(api, container, path)
        status, _, answer = api.raw(
            "PUT", f"{API}/containers/{container}/archive?path=/w/x", buffer.getvalue()
        )
        assert status in (200, 400, 404, 409), answer
    assert [path.name for path in victim.iterdir()] == ["secret"]
    assert (victim / "secret").read_text() == "the machine's secret"


# --- malicious archive entries: cp and import ---------------------------------------------------


def archive_of(*entries: tarfile.TarInfo) -> bytes:
    """Return a tar; regular entries have the text ``pwned``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            entry.size = 5 if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(b"pwned") if entry.isreg() else None)
    return buffer.getvalue()


def hard_link(name: str, goal: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.LNKTYPE, goal
    return entry


def malicious_archives(victim: Path) -> dict[str, bytes]:
    """Return archives that would write to, or read from, a directory of the machine."""
    up, file = "../" * 12, tarfile.TarInfo
    return {
        "a name that goes up": archive_of(file(f"{up}{victim}/planted")),
        "a name that goes down and up": archive_of(directory("d"), file(f"d/{up}{victim}/planted")),
        "an absolute name": archive_of(file(f"{victim}/planted")),
        "through a link": archive_of(link("way", str(victim)), file("way/planted")),
        "through a link that goes up": archive_of(
            link("way", f"{up}{victim}"), file("way/planted")
        ),
        "through two links": archive_of(
            link("first", str(victim)), link("second", "first"), file("second/planted")
        ),
        "over a link": archive_of(link("way", f"{victim}/secret"), file("way")),
        "a hard link": archive_of(hard_link("secret", f"{victim}/secret"), file("secret")),
        "a hard link that goes up": archive_of(
            hard_link("secret", f"{up}{victim}/secret"), file("secret")
        ),
        "a hard link through a link": archive_of(
            link("way", str(victim)), hard_link("secret", "way/secret")
        ),
    }


@pytest.mark.parametrize("running", [True, False])
def test_malicious_archive_entries(api: Api, tmp_path: Path, *, running: bool) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "secret").write_text("the machine's secret")
    container = (api.run if running else api.create)("sleep", "600")
    base = f"{API}/containers/{container}"
    for what, archive in malicious_archives(victim).items():
        status, _, answer = api.raw("PUT", f"{base}/archive?path=/tmp", archive)
        assert status in (200, 400), (what, status, answer)
        status, _, answer = api.raw("POST", f"{API}/images/create?fromSrc=-", archive)
        assert status in (200, 400), (what, status, answer)
        if status == 200 and b"errorDetail" not in answer:
            image = json.loads(answer.splitlines()[-1])["status"]
            saved = api.raw("GET", f"{API}/images/{image}/get")[2]
            assert b"the machine's secret" not in saved, what
            api.delete(f"/images/{image}", force=True)
        assert [path.name for path in victim.iterdir()] == ["secret"], what
        assert (victim / "secret").read_text() == "the machine's secret", what
    assert b"the machine's secret" not in api.raw("GET", f"{base}/archive?path=/tmp")[2]


# --- /proc and /sys: CVE-2019-16884, CVE-2023-27561, CVE-2023-28642 ------------------------------

FAKE_STATUS = "CapBnd:\t0000000000000000\nCapPrm:\t0000000000000000\n"


def test_cve_2019_16884_image_volume_over_proc(api: Api, hostile_image: MakeImage) -> None:
    image = hostile_image(
        directory("proc"),
        directory("proc/self"),
        ("proc/self/status", FAKE_STATUS),
        changes="VOLUME+%2Fproc",
    )
    error = refused_start(api, image, "grep", "Cap", "/proc/self/status")
    assert (error.status, "may not cover /proc" in error.message) == (400, True), error


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/proc/sys/kernel", "/way/status"])
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_cve_2019_16884_mounts_in_proc(
    api: Api, hostile_image: MakeImage, tmp_path: Path, target: str, kind: str
) -> None:
    (tmp_path / "file").write_text(FAKE_STATUS)
    image = hostile_image(directory("proc"), link("way", "/proc/self"))
    if kind == "tmpfs":
        goal = "/way/task" if target.startswith("/way") else target
        host: dict[str, Any] = {"Tmpfs": {goal: ""}}
    else:
        source = tmp_path / "file" if target.endswith("status") else tmp_path
        host = {"Binds": [f"{source}:{target}"]}
    error = refused_start(api, image, HostConfig=host)
    assert (error.status, "may not cover /proc" in error.message) == (400, True), error


def test_cve_2019_16884_reports_of_the_kernel_may_be_covered(api: Api, tmp_path: Path) -> None:
    report = tmp_path / "meminfo"
    report.write_text("MemTotal: 1 kB\n")
    host = {"Binds": [f"{report}:/proc/meminfo:ro"]}
    assert api.output("cat", "/proc/meminfo", HostConfig=host) == "MemTotal: 1 kB\n"


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_cve_2023_27561_and_cve_2023_28642_system_directory_as_a_link(
    api: Api, hostile_image: MakeImage, name: str
) -> None:
    image = hostile_image(
        directory("fake"), directory("fake/self"), ("fake/self/status", FAKE_STATUS),
        link(name, "/fake"),
    )  # fmt: skip
    error = refused_start(api, image)
    assert (error.status, "symbolic link" in error.message) == (400, True), error


# --- masked paths: CVE-2025-31133, CVE-2025-52565, CVE-2025-52881 --------------------------------

LOOK = """test -c /dev/null && echo null is a device
    cat /proc/kcore 2>/tmp/said | wc -c; cat /proc/keys 2>/tmp/said | wc -c
    ls /sys/firmware | wc -l
    (echo pwned >/proc/sys/kernel/core_pattern) 2>/tmp/said && echo written
    (echo h >/proc/sysrq-trigger) 2>/tmp/said && echo triggered
"""
CONFINED = ["0", "0", "0"]
TRAPS = ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/self/attr/exec")


@pytest.mark.parametrize("goal", TRAPS)
def test_cve_2025_31133_dev_null_is_a_link(api: Api, hostile_image: MakeImage, goal: str) -> None:
    image = hostile_image(directory("dev"), link("dev/null", goal))
    text = api.output("sh", "-c", LOOK, Image=image)
    assert text.splitlines() == ["null is a device", *CONFINED]


def test_cve_2025_31133_dev_null_of_a_volume_is_a_link(api: Api) -> None:
    plant = "for n in null zero console ptmx; do ln -s /proc/sys/kernel/core_pattern /v/$n; done"
    assert api.output("sh", "-c", plant, HostConfig={"Binds": ["planted:/v"]}) == ""
    text = api.output(
        "sh", "-c", LOOK.replace("-c /dev", "-L /dev"), HostConfig={"Binds": ["planted:/dev"]}
    )
    assert text.splitlines() == ["null is a device", *CONFINED]


@pytest.mark.parametrize("goal", ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"])
def test_cve_2025_52565_dev_console_is_a_link(
    api: Api, hostile_image: MakeImage, goal: str
) -> None:
    for entries in (
        [directory("dev"), link("dev/console", goal)],
        [link("dev", "/proc/self")],
        [directory("x"), link("x/console", goal), link("x/pts", "/proc"), link("dev", "/x")],
    ):
        image = hostile_image(*entries)
        container = api.create("sh", "-c", LOOK, Image=image, Tty=True)
        status, _, answer = api.raw("POST", f"{API}/containers/{container}/start")
        assert status in (204, 400), answer
        if status == 400:
            continue
        api.wait(container)
        seen = api.get(f"/containers/{container}/logs", stdout=True).decode().split("\r\n")
        assert "written" not in seen
        assert "triggered" not in seen
        assert seen[-4:-1] == CONFINED


def test_cve_2025_52565_terminal_of_an_exec(engine: EngineProcess, api: Api) -> None:
    """A volume over /dev has a ptmx that is none: an exec with a terminal must not use it."""
    plant = "mkdir /v/pts; ln -s /proc/sys/kernel/core_pattern /v/pts/ptmx; mkfifo /v/null"
    assert api.output("sh", "-c", plant, HostConfig={"Binds": ["ptmx:/v"]}) == ""
    container = api.run("sleep", "60", HostConfig={"Binds": ["ptmx:/dev"]})
    made = api.post(f"/containers/{container}/exec", {"Cmd": ["true"], "Tty": True})["Id"]
    assert "ptmx" in api.error("POST", f"/exec/{made}/start", {"Detach": True}).message


@pytest.mark.parametrize("target", ["/proc/sys/net", "/proc/sys/net/ipv4", "/link/net"])
def test_cve_2025_52881_writes_of_the_start_are_not_redirected(
    api: Api, hostile_image: MakeImage, tmp_path: Path, target: str
) -> None:
    """A volume with links in the place of sysctl files: the engine's write must not follow."""
    (tmp_path / "ipv4").mkdir()
    for path in (tmp_path, tmp_path / "ipv4"):
        (path / "ip_forward").symlink_to("/proc/sys/kernel/core_pattern")
    image = hostile_image(link("link", "/proc/sys"))
    host = {"Binds": [f"{tmp_path}:{target}"], "Sysctls": {"net.ipv4.ip_forward": "1"}}
    error = refused_start(api, image, HostConfig=host)
    assert (error.status, "may not cover /proc" in error.message) == (400, True), error


# --- capabilities and groups ---------------------------------------------------------------------


@pytest.mark.parametrize("user", ["", "99", "99:99"])
@pytest.mark.parametrize("privileged", [False, True])
def test_cve_2022_29162_and_cve_2022_24769_inheritable_capabilities(
    engine: EngineProcess, api: Api, user: str, privileged: bool
) -> None:
    host = {"CapAdd": ["NET_ADMIN"]}
    look = "sh", "-c", "grep -E 'CapInh|CapAmb' /proc/self/status"
    empty = ["CapInh:", "0" * 16, "CapAmb:", "0" * 16]
    assert api.output(*look, User=user, HostConfig=host).split() == empty
    container = api.run("sleep", "60", User=user, HostConfig=host)
    assert exec_output(engine, container, *look, Privileged=privileged).split() == empty
    look = "grep", "CapEff", "/proc/self/status"
    effective = exec_output(engine, container, *look).split()[1]
    assert (int(effective, 16) == 0) == bool(user)


@pytest.mark.parametrize(
    ("user", "groups"),
    [("99", {"99"}), ("99:5", {"5"}), ("nobody", {"99", "7"}), ("1234", {"0"}), ("", {"0"})],
)
def test_cve_2022_36109_primary_group_is_supplementary_too(
    engine: EngineProcess, api: Api, hostile_image: MakeImage, user: str, groups: set[str]
) -> None:
    """A set-group-ID program changes the first group only: who denies a group something (mode
    0707) must find it among the others as well."""
    image = hostile_image(("etc/group", "root:x:0:\nnobody:x:99:\nmore:x:7:nobody\n"))
    look = "grep", "Groups", "/proc/self/status"
    host = {"GroupAdd": ["42"]}
    wanted = groups | {"42"} | ({"7"} if user == "99" else set())
    assert set(api.output(*look, Image=image, User=user, HostConfig=host).split()[1:]) == wanted
    container = api.run("sleep", "60", Image=image, User=user, HostConfig=host)
    assert set(exec_output(engine, container, *look).split()[1:]) == wanted


# --- files of the image that the start reads -----------------------------------------------------


@pytest.mark.parametrize("goal", ["", "/dev/zero", "/proc/kmsg", "/proc/self/mem"])
def test_user_files_that_never_end(api: Api, hostile_image: MakeImage, goal: str) -> None:
    """A pipe, an endless device or a file of the kernel as /etc/passwd does not hold up a start."""
    names = ("etc/passwd", "etc/group")
    entries = [link(name, goal) if goal else pipe(name) for name in names]
    image = hostile_image(*entries)
    text = api.output("grep", "Uid", "/proc/self/status", Image=image, User="7:8")
    assert text.split()[1] == "7"
    error = refused_start(api, image, User="nobody")
    assert (error.status, "unable to find user nobody" in error.message) == (400, True)


def test_the_answer_to_an_attack_is_one_sentence(api: Api, hostile_image: MakeImage) -> None:
    error = refused_start(api, hostile_image(link("proc", "/tmp")))
    assert "\n" not in error.message
    assert json.dumps(error.message).count("Traceback") == 0
