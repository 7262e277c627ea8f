"""The docker CLI's container commands beyond daily use, against a real engine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pexpect
import pytest
from tests.clients.docker_commands import ok, terminal, until
from tests.engine_process import EngineProcess, docker_cli, run_docker

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("every_docker_cli")]


def started(engine: EngineProcess, *arguments: str) -> subprocess.Popen[str]:
    """Start a docker command whose output is read while it runs."""
    return subprocess.Popen(
        [docker_cli(), *arguments],
        env=engine.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_detach_keys_of_ones_own(engine: EngineProcess) -> None:
    shell = terminal(
        engine, "run", "-it", "--detach-keys", "ctrl-x,x", "--name", "t1", "busybox", "sh"
    )
    shell.expect("/ # ")
    shell.send("\x18x")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
    again = terminal(engine, "attach", "--detach-keys", "a", "t1")
    again.sendline("echo re''joined")
    again.expect("rejoined")
    again.send("a")
    again.expect(pexpect.EOF)
    again.close()
    inside = terminal(engine, "exec", "-it", "--detach-keys", "ctrl-e", "t1", "sh")
    inside.expect("/ # ")
    inside.send("\x05")
    inside.expect(pexpect.EOF)
    inside.close()
    assert ok(engine, "ps", "-q", "-f", "name=t1") != ""
    done = run_docker(engine, "run", "--rm", "--detach-keys", "nonsense", "busybox", "true")
    assert done.returncode != 0
    assert "400" in done.stderr


TRAP = "trap 'echo got it; exit 9' TERM; echo up; while :; do sleep 0.05; done"


def test_signals_go_to_the_container_unless_forbidden(engine: EngineProcess) -> None:
    running = started(engine, "run", "--name", "proxied", "busybox", "sh", "-c", TRAP)
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=60)[0] == "got it\n"
    assert running.returncode == 9
    kept = started(
        engine, "run", "--sig-proxy=false", "--name", "kept", "busybox", "sh", "-c", TRAP
    )
    assert kept.stdout is not None
    assert kept.stdout.readline() == "up\n"
    kept.send_signal(signal.SIGTERM)  # the client neither forwards it nor ends, as with dockerd
    kept.kill()
    kept.communicate(timeout=60)
    assert ok(engine, "ps", "-f", "name=kept", "--format", "{{.State}}") == "running\n"


def test_events_by_filter_and_time(engine: EngineProcess) -> None:
    begun = str(engine.api.get("/info")["SystemTime"])
    run_docker(engine, "run", "--name", "one", "-l", "kind=test", "busybox", "false")
    now = f"{time.time():.9f}"
    actions = ("--since", begun, "--until", now, "--format", "{{.Action}}")
    ended = ok(engine, "events", *actions, "-f", "container=one", "-f", "event=die")
    assert ended == "die\n"
    assert ok(engine, "events", *actions, "-f", "container=other") == ""
    by_label = ok(engine, "events", *actions, "-f", "label=kind=test", "-f", "type=container")
    assert by_label.split() == ["create", "attach", "start", "die"]
    text = ok(engine, "events", "--since", begun, "--until", now, "-f", "event=die")
    assert re.search(r"container die [0-9a-f]{64} \(.*exitCode=1, .*name=one\)", text)


def test_stats_once_and_as_a_stream(engine: EngineProcess) -> None:
    ok(engine, "run", "-d", "--name", "busy", "-m", "32m", "busybox", "sleep", "600")
    once = json.loads(ok(engine, "stats", "--no-stream", "--format", "json", "busy"))
    assert (once["Name"], once["PIDs"]) == ("busy", "1")
    assert once["MemUsage"].endswith(" / 32MiB")
    stream = started(engine, "stats", "--format", "{{.Name}}:{{.CPUPerc}}", "busy")
    assert stream.stdout is not None
    seen = 0
    while seen < 3:
        line = stream.stdout.readline()
        assert line, "the stream ended"
        seen += "busy:" in line
    stream.kill()
    stream.communicate(timeout=60)
    ok(engine, "stop", "-t", "0", "busy")
    assert ok(engine, "stats", "--no-stream", "--format", "{{.MemUsage}}", "busy") == "0B / 0B\n"


def test_ps_filters_sizes_and_formats(engine: EngineProcess) -> None:
    ok(engine, "volume", "create", "place")
    ok(engine, "network", "create", "lan")
    ok(
        engine,
        *("run", "-d", "--name", "full", "-l", "k=v", "-p", "80", "--expose", "99"),
        *("-v", "place:/p", "--network", "lan", "busybox", "sh", "-c", "echo x > /f; sleep 600"),
    )
    ok(engine, "create", "--name", "idle", "busybox", "true")
    port = ok(engine, "port", "full", "80").splitlines()[0].rpartition(":")[2]
    for wanted in (
        *("name=full", "label=k", "label=k=v", "status=running", "volume=place", "volume=/p"),
        *("network=lan", f"publish={port}", "expose=99", "since=nothing", "ancestor=busybox"),
    ):
        if wanted == "since=nothing":
            assert run_docker(engine, "ps", "-f", wanted).returncode == 1
            continue
        assert ok(engine, "ps", "-f", wanted, "--format", "{{.Names}}") == "full\n", wanted
    assert ok(engine, "ps", "-a", "-f", "since=full", "--format", "{{.Names}}") == "idle\n"
    assert ok(engine, "ps", "-a", "-f", "before=idle", "--format", "{{.Names}}") == "full\n"
    assert ok(engine, "ps", "-n", "1", "--format", "{{.Names}}") == "idle\n"
    row = ok(engine, "ps", "--format", "{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.Labels}}")
    assert row == "place|lan|1|k=v\n"
    until(lambda: ok(engine, "ps", "-s", "--format", "{{.Size}}").startswith("2B (virtual "))
    sizes = ok(engine, "inspect", "--size", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "full").split()
    assert sizes[0] == "2"
    assert int(sizes[1]) > 100_000
    table = ok(engine, "ps", "-a", "--no-trunc", "--format", "table {{.Names}}\t{{.Command}}")
    assert table.splitlines()[0].split() == ["NAMES", "COMMAND"]
    assert "\"sh -c 'echo x > /f; sleep 600'\"" in table
    assert "full" in ok(engine, "system", "df", "-v")


def test_files_of_a_container_leave_in_every_way(engine: EngineProcess, tmp_path: Path) -> None:
    ok(engine, "run", "--name", "made", "busybox", "sh", "-c", "echo new > /tmp/f; rm /etc/group")
    assert ok(engine, "diff", "made").splitlines() == [
        "C /etc",
        "D /etc/group",
        "C /tmp",
        "A /tmp/f",
    ]
    archive = tmp_path / "root.tar"
    ok(engine, "export", "-o", str(archive), "made")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        assert "tmp/f" in names
        assert "etc/group" not in names
        assert "etc/passwd" in names
    done = subprocess.run(
        [docker_cli(), "cp", "made:/tmp/f", "-"], env=engine.environment, capture_output=True
    )
    assert done.returncode == 0
    (tmp_path / "one.tar").write_bytes(done.stdout)
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert tar.getnames() == ["f"]


def test_run_options_of_the_client(engine: EngineProcess, tmp_path: Path) -> None:
    cid = tmp_path / "cid"
    ok(engine, "run", "--cidfile", str(cid), "--name", "noted", "busybox", "true")
    assert ok(engine, "inspect", "-f", "{{.Id}}", "noted").strip() == cid.read_text()
    done = run_docker(engine, "run", "--cidfile", str(cid), "busybox", "true")
    assert done.returncode == 125
    done = run_docker(engine, "run", "--pull", "never", "nosuch", "true")
    assert (done.returncode, "No such image: nosuch:latest" in done.stderr) == (125, True)
    assert (
        ok(engine, "run", "--rm", "--quiet", "--pull", "missing", "busybox", "echo", "q") == "q\n"
    )
    first = ok(engine, "run", "-d", "busybox", "sh", "-c", "exit 3").strip()
    second = ok(engine, "run", "-d", "busybox", "sh", "-c", "exit 4").strip()
    assert ok(engine, "wait", first, second) == "3\n4\n"
    assert ok(engine, "start", "-a", "noted") == ""
    assert ok(engine, "create", "--name", "later", "-i", "busybox", "cat").strip()
    assert ok(engine, "start", "-ai", "later", stdin=b"typed\n") == "typed\n"
    pruned = ok(engine, "container", "prune", "-f", "--filter", "label=nothing")
    assert pruned == "Total reclaimed space: 0B\n"
    pruned = ok(engine, "container", "prune", "-f", "--filter", "until=1h")
    assert pruned == "Total reclaimed space: 0B\n"
    assert first in ok(engine, "container", "prune", "-f")


def test_what_cannot_be_done_is_told_as_by_docker(engine: EngineProcess) -> None:
    ok(engine, "run", "-d", "--name", "paused", "busybox", "sleep", "600")
    identifier = ok(engine, "inspect", "-f", "{{.Id}}", "paused").strip()
    ok(engine, "pause", "paused")
    for arguments, text in (
        (("pause", "paused"), f"Container {identifier} is already paused"),
        (
            ("exec", "paused", "true"),
            "Container paused is paused, unpause the container before exec",
        ),
        (("start", "paused"), "cannot start a paused container, try unpause instead"),
        (("kill", "nosuch"), "cannot kill container: nosuch: No such container: nosuch"),
        (("kill", "-s", "BOGUS", "paused"), "cannot kill container: paused: invalid signal: BOGUS"),
        (("rm", "paused"), 'cannot remove container "/paused": container is paused and must be'),
        (("port", "paused", "80"), "No public port '80' published for paused"),
        (("update", "--memory", "1m", "paused"), "Minimum memory limit allowed is 6MB"),
        (("rename", "paused", "paused"), "Renaming a container with the same name"),
        (("rm", "--link", "paused"), "Conflict, cannot remove the default link name"),
        (("rm", "--link", "nosuch"), "No such container: nosuch"),
    ):
        done = run_docker(engine, *arguments)
        assert done.returncode == 1, arguments
        assert text in done.stderr, (arguments, done.stderr)
    ok(engine, "unpause", "paused")
    done = run_docker(engine, "unpause", "paused")
    assert f"Container {identifier} is not paused" in done.stderr
