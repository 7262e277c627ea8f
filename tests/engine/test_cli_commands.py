"""``desk``'s commands against a real engine: output, exit codes, what stays behind."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess, busybox_tar

pytestmark = pytest.mark.root


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Cli:
    return Cli(engine.socket, tmp_path / "home")


# --- run ----------------------------------------------------------------------------------------


def test_run_shows_both_streams_and_ends_with_the_containers_code(desk: Cli) -> None:
    done = desk("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert desk.ok("ps", "-aq") == ""


def test_run_passes_standard_input_on_to_its_end(desk: Cli) -> None:
    data = os.urandom(300_000)
    done = subprocess.run(
        desk.command("run", "-i", "--rm", "busybox", "cat"),
        input=data,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == data


@pytest.mark.parametrize("remove", [(), ("--rm",)])
@pytest.mark.parametrize(
    ("program", "code"), [("no-such-program", 127), ("/etc", 126), ("/bin/busybox", 0)]
)
def test_run_tells_what_cannot_be_executed(
    desk: Cli, remove: tuple[str, ...], program: str, code: int
) -> None:
    done = desk("run", *remove, "busybox", program)
    assert done.code == code
    if code:
        assert done.out == ""
        assert done.err.startswith("desk: ")
        assert program in done.err


def test_run_in_the_background_prints_the_id(desk: Cli, tmp_path: Path) -> None:
    file = tmp_path / "id"
    arguments = ("run", "-d", "--name", "web", "--cidfile", str(file), "busybox", "sleep", "60")
    identifier = desk.ok(*arguments).strip()
    assert len(identifier) == 64
    assert file.read_text() == identifier
    again = desk(*arguments)
    assert again.code == 125
    assert "exists already" in again.err
    file.unlink()
    assert desk(*arguments).code == 125  # the name is taken
    assert not file.exists()


def test_run_with_flags_of_every_kind(desk: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("shared\n")
    done = desk(
        *("run", "--rm", "-h", "box", "-e", "A=1", "-w", "/tmp", "-u", "99:99"),
        *("--tmpfs", "/scratch", "-v", "./folder:/folder:ro", "--read-only", "-m", "64m"),
        *("--cap-drop", "ALL", "--network", "none", "--label", "x=y", "--init"),
        *(
            "busybox",
            "sh",
            "-c",
            "hostname; echo $A; pwd; id -u; cat /folder/file; ls /sys/class/net",
        ),
        cwd=tmp_path,
    )
    assert (done.code, done.out, done.err) == (0, "box\n1\n/tmp\n99\nshared\nlo\n", "")


def test_run_says_when_an_image_is_missing(desk: Cli) -> None:
    done = desk("run", "--pull", "never", "no-such-image")
    assert done.code == 125
    assert done.err.startswith("desk: No such image: no-such-image")


def test_signals_reach_the_process(desk: Cli) -> None:
    script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        desk.command("run", "--rm", "busybox", "sh", "-c", script),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got\n"
        assert process.wait(60) == 9


# --- looking ------------------------------------------------------------------------------------


def test_ps_logs_inspect_and_port(desk: Cli) -> None:
    desk.ok("run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "busybox", "sh", "-c",
            "echo one; echo two; sleep 60")  # fmt: skip
    heading, line = desk.ok("ps").splitlines()
    assert heading.split()[:3] == ["CONTAINER", "ID", "IMAGE"]
    assert "127.0.0.1:8080->80/tcp" in line
    assert line.endswith("web")
    assert desk.ok("ps", "--format", "{{.Names}} {{.State}}") == "web running\n"
    assert desk.ok("ps", "-q", "--filter", "name=nothing") == ""
    assert desk.ok("port", "web") == "80/tcp -> 127.0.0.1:8080\n"
    assert desk.ok("port", "web", "80") == "127.0.0.1:8080\n"
    assert desk("port", "web", "99").code == 1
    deadline = time.monotonic() + 60
    while desk.ok("logs", "web") != "one\ntwo\n" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert desk.ok("logs", "-n", "1", "web") == "two\n"
    stamped = desk.ok("logs", "-t", "--since", "1h", "web")
    assert stamped.splitlines()[0].endswith("Z one")
    assert int(desk.ok("inspect", "-f", "{{.State.Pid}}", "web")) > 1
    assert json.loads(desk.ok("inspect", "web"))[0]["Name"] == "/web"
    assert "sleep 60" in desk.ok("top", "web")


def test_logs_follow_to_the_end(desk: Cli) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.2; done"
    desk.ok("run", "-d", "--name", "count", "busybox", "sh", "-c", script)
    assert desk.ok("logs", "-f", "count") == "1\n2\n3\n"


def test_inspect_shows_what_there_is_and_names_the_rest(desk: Cli) -> None:
    desk.ok("create", "--name", "one", "busybox")
    done = desk("inspect", "-f", "{{.Name}}", "one", "missing")
    assert (done.code, done.out) == (1, "/one\n")
    assert done.err.startswith("desk: no such object: missing\n")
    assert desk("inspect", "missing").out == "[]\n"
    assert desk("inspect", "-f", "{{.Foo}}", "one").code == 1
    assert desk("inspect", "-f", "{{.Foo", "one").code == 64


def test_exec(desk: Cli) -> None:
    desk.ok("run", "-d", "--name", "web", "busybox", "sleep", "60")
    assert desk.ok("exec", "-e", "A=b", "-w", "/tmp", "web", "sh", "-c", "echo $A; pwd") == (
        "b\n/tmp\n"
    )
    assert desk("exec", "web", "sh", "-c", "exit 3").code == 3
    assert desk("exec", "web", "no-such-program").code == 127
    assert desk("exec", "none", "true").code == 1
    assert desk.ok("exec", "-i", "web", "cat", stdin=b"typed") == "typed"
    assert desk.ok("exec", "-d", "web", "touch", "/tmp/seen") == ""
    deadline = time.monotonic() + 60
    while desk("exec", "web", "test", "-f", "/tmp/seen").code and time.monotonic() < deadline:
        time.sleep(0.05)
    assert desk("exec", "web", "test", "-f", "/tmp/seen").code == 0


# --- states -------------------------------------------------------------------------------------


def test_the_life_of_a_container(desk: Cli) -> None:
    desk.ok("create", "-i", "--name", "box", "busybox", "cat")
    assert desk.ok("start", "box") == "box\n"
    assert desk.ok("pause", "box") == "box\n"
    assert "(Paused)" in desk.ok("ps", "--format", "{{.Status}}")
    assert desk.ok("unpause", "box") == "box\n"
    assert desk.ok("update", "-m", "64m", "--memory-swap", "-1", "box") == "box\n"
    assert desk.ok("inspect", "-f", "{{.HostConfig.Memory}}", "box") == "67108864\n"
    assert desk.ok("rename", "box", "crate") == ""
    assert desk.ok("restart", "-t", "0", "crate") == "crate\n"
    assert desk.ok("stop", "-t", "0", "crate") == "crate\n"
    assert desk.ok("wait", "crate") == "137\n"
    done = desk("kill", "crate")
    assert (done.code, done.out) == (1, "")
    assert "not running" in done.err
    assert desk.ok("rm", "crate") == "crate\n"


def test_start_attached_ends_with_the_containers_code(desk: Cli) -> None:
    desk.ok("create", "-i", "--name", "box", "busybox", "sh", "-c", "read a; echo =$a; exit 4")
    done = desk("start", "-ai", "box", stdin=b"word\n")
    assert (done.code, done.out) == (4, "=word\n")


def test_one_failure_does_not_stop_the_others(desk: Cli) -> None:
    desk.ok("create", "--name", "first", "busybox")
    desk.ok("create", "--name", "second", "busybox")
    done = desk("rm", "first", "none", "second")
    assert (done.code, done.out) == (1, "first\nsecond\n")
    assert done.err == "desk: No such container: none\n`desk ps -a` lists the containers.\n"


def test_prune_asks_and_reports(desk: Cli) -> None:
    identifier = desk.ok("create", "busybox").strip()
    unanswered = desk("container", "prune")
    assert unanswered.code == 0
    assert unanswered.out.endswith("Are you sure you want to continue? [y/N] \n")
    assert "Add --force" in unanswered.err
    assert desk("system", "prune", stdin=b"n\n").code == 0
    assert desk.ok("ps", "-aq", "--no-trunc").strip() == identifier
    assert identifier in desk.ok("container", "prune", stdin=b"y\n")
    assert desk.ok("ps", "-aq") == ""
    again = desk.ok("create", "busybox").strip()
    kept = desk.ok("create", "--label", "keep", "busybox").strip()
    assert again in desk.ok("system", "prune", "-f", "--filter", "label!=keep")
    assert desk.ok("ps", "-aq", "--no-trunc").strip() == kept
    refused = desk("system", "prune", "-f", "--volumes", "--filter", "until=1h")
    assert refused.code == 1
    assert "exclude each other" in refused.err


# --- images and files ---------------------------------------------------------------------------


def test_import_tag_history_save_load_and_rmi(desk: Cli, tmp_path: Path) -> None:
    identifier = desk.ok(
        "import", "-c", 'CMD ["echo","made"]', "-m", "by hand", "-", "made:1", stdin=busybox_tar()
    ).strip()
    assert identifier.startswith("sha256:")
    assert desk.ok("run", "--rm", "made:1") == "made\n"
    assert desk.ok("images", "--format", "{{.Repository}}:{{.Tag}}", "made") == "made:1\n"
    assert "by hand" in desk.ok("history", "made:1")
    file = tmp_path / "made.tar"
    desk.ok("tag", "made:1", "made:2")
    desk.ok("save", "-o", str(file), "made:1", "made:2")
    assert "Untagged: made:2" in desk.ok("rmi", "made:2")
    removed = desk.ok("rmi", "made:1")
    assert f"Deleted: {identifier}" in removed
    assert "Loaded image: made:2" in desk.ok("load", "-i", str(file))
    assert desk.ok("run", "--rm", "made:2") == "made\n"
    desk.ok("rmi", "made:1", "made:2")
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["made.tar"]


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [(".gz", b"\x1f\x8b"), (".tgz", b"\x1f\x8b"), (".xz", b"\xfd7zXZ"), (".bz2", b"BZh"),
     (".zst", b"\x28\xb5\x2f\xfd")],
)  # fmt: skip
def test_archives_are_compressed_as_their_names_say(
    desk: Cli, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    identifier = desk.ok("inspect", "-f", "{{.Id}}", "busybox")
    plain, file = tmp_path / "plain.tar", tmp_path / f"image{suffix}"
    desk.ok("save", "-o", str(plain), "busybox")
    desk.ok("save", "-o", str(file), "busybox")
    assert file.read_bytes().startswith(magic)
    assert file.stat().st_size < plain.stat().st_size
    assert "Loaded image: busybox:latest" in desk.ok("load", "-i", str(file))
    assert desk.ok("inspect", "-f", "{{.Id}}", "busybox") == identifier
    desk.ok("create", "--name", "packed", "busybox")
    desk.ok("export", "-o", str(file), "packed")
    assert file.read_bytes().startswith(magic)
    assert desk.ok("import", str(file), "unpacked").startswith("sha256:")
    desk.ok("rmi", "unpacked")
    assert {path.name for path in tmp_path.iterdir()} == {"plain.tar", file.name}


def test_a_corrupt_archive_is_refused_and_leaves_nothing(desk: Cli) -> None:
    before = desk.ok("images", "-aq")
    done = desk("import", "-", "broken", stdin=b"\x1f\x8b this is no archive" * 100)
    assert done.code == 1
    assert done.err.startswith("desk: ")
    assert desk.ok("images", "-aq") == before


def test_commit_and_export(desk: Cli) -> None:
    desk.ok("run", "--name", "box", "busybox", "sh", "-c", "echo kept > /kept")
    desk.ok("commit", "-m", "kept", "box", "kept:1")
    assert desk.ok("run", "--rm", "kept:1", "cat", "/kept") == "kept\n"
    assert "A /kept" in desk.ok("diff", "box").splitlines()
    desk.ok("rmi", "kept:1")
    done = subprocess.run(
        desk.command("export", "box"), capture_output=True, timeout=60, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.extractfile("kept").read() == b"kept\n"  # type: ignore[union-attr]


def test_networks_and_volumes(desk: Cli) -> None:
    assert len(desk.ok("network", "create", "--subnet", "10.9.8.0/24", "back").strip()) == 64
    assert desk.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "back") == (
        "10.9.8.0/24\n"
    )
    address = desk.ok("run", "--rm", "--network", "back", "busybox", "ip", "-4", "-o", "addr")
    assert "10.9.8." in address
    assert "back" in desk.ok("network", "ls", "--format", "{{.Name}}").split()
    assert desk.ok("network", "rm", "back") == "back\n"
    assert desk.ok("volume", "create", "data") == "data\n"
    desk.ok("run", "--rm", "-v", "data:/d", "busybox", "sh", "-c", "echo x > /d/f")
    assert desk.ok("run", "--rm", "-v", "data:/d", "busybox", "cat", "/d/f") == "x\n"
    assert desk.ok("volume", "ls", "-q") == "data\n"
    assert desk.ok("volume", "rm", "data") == "data\n"


def test_events_between_two_times(desk: Cli) -> None:
    before = time.time()
    desk.ok("run", "--rm", "--name", "seen", "busybox", "true")
    done = desk.ok(
        *("events", "--since", f"{before:.6f}", "--until", f"{time.time():.6f}"),
        *("--filter", "type=container", "--format", "{{.Action}}"),
    )
    actions = done.split()
    assert [action for action in actions if action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_version_and_info(desk: Cli) -> None:
    assert "API version:      1.47 (minimum version 1.24)" in desk.ok("version")
    assert desk.ok("version", "-f", "{{.Server.ApiVersion}}") == "1.47\n"
    assert " Server Version: " in desk.ok("info")
    assert int(desk.ok("info", "-f", "{{.NCPU}}")) > 0
    unreachable = Cli("/nonexistent.sock", desk.home)("version")
    assert unreachable.code == 1
    assert unreachable.out.startswith("Client: Desk\n")
    assert "cannot reach the engine" in unreachable.err


def test_stats_of_one_moment(desk: Cli) -> None:
    desk.ok("run", "-d", "--name", "web", "busybox", "sleep", "60")
    heading, line = desk.ok("stats", "--no-stream", "web").splitlines()
    assert heading.startswith("CONTAINER ID   NAME      CPU %")
    assert line.split()[1] == "web"
    assert int(line.split()[-1]) >= 1


def test_the_shell_completes_names_and_values(desk: Cli) -> None:
    def offered(words: str) -> set[str]:
        line = shlex.join(desk.command()) + " " + words
        done = subprocess.run(
            [desk.command()[0]],
            env={
                **desk.environment,
                "_DESK_COMPLETE": "bash_complete",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return {item.partition(",")[2] for item in done.stdout.split()}

    desk.ok("run", "-d", "--name", "web", "-v", "data:/d", "busybox", "sleep", "600")
    desk.ok("create", "--name", "idle", "busybox")
    desk.ok("network", "create", "back")
    assert offered("rm ") == {"web", "idle"}
    assert offered("exec ") == {"web"}
    assert offered("inspect ") >= {"web", "idle", "busybox", "back", "bridge", "data"}
    assert offered("run --network b") == {"back", "bridge"}
    assert offered("run -v ") == {"data"}
    assert offered("run --volumes-from w") == {"web"}
    assert offered("cp w") == {"w", "web:"}  # a file of that name, or the container
    assert offered("network rm b") == {"back", "bridge"}
    assert offered("volume rm ") == {"data"}
    assert offered("kill -s K") == {"KILL"}
    assert offered("run --pull ") == {"always", "missing", "never"}
