"""``desk`` beside the docker CLI on one engine: the same words give the same output and code."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess

pytestmark = pytest.mark.root

RUNNING = "web"


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Iterator[Cli]:
    """An engine with a running and a finished container in it."""
    cli = Cli(engine.socket, tmp_path / "home")
    cli.ok("run", "-d", "--name", RUNNING, "-p", "8080:80", "-p", "9000-9002:9000-9002",
           "--label", "a=b", "-v", "data:/data", "busybox", "sleep", "600")  # fmt: skip
    cli.ok("run", "--name", "done", "busybox", "sh", "-c", "echo said; touch /new; rm /etc/group")
    yield cli
    # Removed here: the volume must not be found by the next test.
    cli.ok("rm", "-f", RUNNING, "done")
    cli.ok("volume", "rm", "data")


COMMANDS = [
    "ps",
    "ps -a",
    "ps -aq",
    "ps -a --no-trunc",
    "ps -as",
    "ps -l",
    "ps -n 1",
    "ps -a --filter status=exited",
    "ps -a --format json",
    "ps -a --format {{.ID}}:{{.Names}}:{{.Ports}}:{{.Mounts}}",
    r"ps --format table\ {{.Names}}\t{{.Label\ \"a\"}}\t{{.Networks}}",
    "images",
    "images -q --no-trunc",
    "images --digests",
    "images --format json",
    "history busybox",
    "history --no-trunc busybox",
    "inspect web",
    "inspect -f {{.State.Status}}/{{.Config.Image}}/{{json\\ .HostConfig.PortBindings}} web",
    "inspect -f {{range\\ .Mounts}}{{.Name}}->{{.Destination}}{{end}} web",
    "port web",
    "port web 80",
    "diff done",
    "logs done",
    "top web",
    "top web -o pid,comm",
    "network ls --no-trunc",
    "network inspect bridge -f {{.Driver}}",
    "volume ls",
    "volume inspect data",
    "system df",
    "system df -v",
    "wait done",
    "container ls -a",
    "image ls",
]


def normalised(text: str) -> str:
    """Leave out what changes from one second to the next."""
    text = re.sub(r"\d+ seconds?|Less than a second", "N seconds", text)
    return re.sub(r" +", " ", text)


def words(line: str) -> list[str]:
    """Split at spaces that no backslash precedes."""
    parts = re.split(r"(?<!\\) ", line)
    return [part.replace("\\ ", " ").replace('\\"', '"') for part in parts]


def test_the_same_words_give_the_same_output(desk: Cli) -> None:
    different = []
    for line in COMMANDS:
        ours, theirs = desk(*words(line)), desk.docker(*words(line))
        assert theirs.code == 0, theirs
        if (ours.code, normalised(ours.out)) != (0, normalised(theirs.out)):
            different.append(f"{line}\n{theirs.out}\n{ours.out}{ours.err}")
    assert not different, "\n".join(different)


FAILING = [
    "rm none",
    "rm",
    "ps --foo",
    "run --foo busybox",
    "run -p abc busybox",
    "run --pull never none",
    "run busybox none",
    "exec none true",
    "exec done true",
    "exec web none",
    "start none",
    "attach done",
    "inspect missing",
    "logs none",
    "kill done",
    "rmi none",
    "port web 99",
    "cp none:/x .",
    "cp web:/none .",
    "tag none x",
    "network rm missing",
    "volume rm none",
    "inspect -f {{ web",
    "inspect -f {{.Foo}} web",
    "nonsense",
    "run --rm busybox false",
    "wait none",
]


def test_the_same_mistakes_give_the_same_code(desk: Cli) -> None:
    different = []
    for line in FAILING:
        ours, theirs = desk(*words(line)), desk.docker(*words(line))
        assert theirs.code != 0, theirs
        if ours.code != theirs.code:
            different.append(f"{line}: docker {theirs}, desk {ours}")
    assert not different, "\n".join(different)


# --- cp -----------------------------------------------------------------------------------------

INTO = [
    ("src/a.txt", "/t/"),
    ("src/a.txt", "/t/renamed"),
    ("src", "/t"),
    ("src", "/t/newdir"),
    ("src", "/t/newdir"),
    ("src/.", "/t/newdir"),
    ("src/link", "/t/linkcopy"),
    ("-L src/link", "/t/linkfollowed"),
    ("-a src/a.txt", "/t/owned"),
    ("src", "/t/a.txt"),
    ("src/a.txt", "/t/none/"),
    ("src/a.txt", "/t/none/x"),
    ("none", "/t"),
    ("src/a.txt", "/t/src/sub"),
]

OUT_OF = [
    ("/t/a.txt", "."),
    ("/t/a.txt", "b.txt"),
    ("/t/newdir", "."),
    ("/t/newdir", "other"),
    ("/t/newdir", "other"),
    ("/t/newdir/.", "content"),
    ("/t/newdir/.", "content"),
    ("/t/newdir", "a.txt"),
    ("/t/a.txt", "none/"),
    ("/t/a.txt", "none/x"),
    ("/t/none", "."),
    ("/t/newdir/link", "l1"),
    ("-L /t/newdir/link", "l2"),
    ("/t/a.txt", "other"),
]

LIST = "cd /t && find . | sort | while read f; do stat -c '%n %F %a %u %s %N' \"$f\"; done"


def copied(desk: Cli, work: Path, *, ours: bool) -> list[str]:
    """Run all copies with one of the two programs; return codes and what is there afterwards."""
    run = desk if ours else desk.docker
    source, goal = work / "src", work / "goal"
    (source / "sub").mkdir(parents=True)
    goal.mkdir()
    (source / "a.txt").write_text("hello\n")
    os.utime(source / "a.txt", (1_600_000_000, 1_600_000_000))
    os.chown(source / "a.txt", 99, 99)
    (source / "sub" / "b.txt").write_text("deep\n")
    (source / "sub").chmod(0o750)
    (source / "link").symlink_to("a.txt")
    desk.ok("exec", RUNNING, "sh", "-c", "rm -rf /t; mkdir /t")
    seen: list[str] = []
    for origin, target in INTO:
        code = run("cp", *origin.split(), f"{RUNNING}:{target}", cwd=work).code
        seen.append(f"{origin} -> {target}: {code}")
    seen += desk.ok("exec", RUNNING, "sh", "-c", LIST).splitlines()
    for origin, target in OUT_OF:
        *flags, path = origin.split()
        code = run("cp", *flags, f"{RUNNING}:{path}", target, cwd=goal).code
        seen.append(f"{origin} -> {target}: {code}")
    found = subprocess.run(
        ["find", ".", "-printf", r"%p %y %m %s %l %U %TY\n"],
        cwd=goal,
        capture_output=True,
        text=True,
        check=True,
    )
    return seen + sorted(found.stdout.splitlines())


@pytest.mark.slow
def test_copies_land_where_docker_puts_them(desk: Cli, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours = copied(desk, tmp_path / "ours", ours=True)
    assert ours == copied(desk, tmp_path / "theirs", ours=False)


def test_archives_by_pipe(desk: Cli, tmp_path: Path) -> None:
    done = subprocess.run(
        desk.command("cp", f"{RUNNING}:/etc", "-"), capture_output=True, timeout=60, check=True
    )
    listing = subprocess.run(
        ["tar", "t"], input=done.stdout, capture_output=True, check=True
    ).stdout.decode()
    assert "etc/passwd" in listing.split()
    desk.ok("exec", RUNNING, "mkdir", "/copy")
    desk.ok("cp", "-", f"{RUNNING}:/copy", stdin=done.stdout)
    assert "passwd" in desk.ok("exec", RUNNING, "ls", "/copy/etc").split()
    refused = desk("cp", "-", f"{RUNNING}:/etc/passwd", stdin=done.stdout)
    assert refused.code == 1
    assert "no directory" in refused.err


def test_a_hostile_archive_writes_nothing_outside(desk: Cli, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    script = (
        f"mkdir -p /evil/d && ln -s {outside} /evil/d/way && rm -rf /evil2 && mkdir -p /evil2/way"
        " && echo bad > /evil2/way/file"
    )
    desk.ok("exec", RUNNING, "sh", "-c", script)
    goal = tmp_path / "goal"
    goal.mkdir()
    desk.ok("cp", f"{RUNNING}:/evil/d/.", str(goal))
    assert (goal / "way").is_symlink()
    done = desk("cp", f"{RUNNING}:/evil2/.", str(goal))
    assert done.code == 1
    assert list(outside.iterdir()) == []
