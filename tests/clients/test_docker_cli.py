"""The docker CLI (26 or newer, the one on PATH) against a real engine: commands of daily use."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pexpect
import pytest
from tests.clients.docker_commands import ok, terminal, until
from tests.engine_process import EngineProcess, busybox_tar, docker_cli, run_docker

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("every_docker_cli")]


def test_version_and_info(engine: EngineProcess) -> None:
    version = json.loads(ok(engine, "version", "--format", "{{json .}}"))
    assert int(version["Client"]["Version"].split(".")[0]) >= 26
    assert version["Server"]["ApiVersion"] == "1.47"
    text = ok(engine, "info")
    assert "Storage Driver: overlay2" in text
    assert "Swarm: inactive" in text
    assert "Live Restore Enabled: true" in text


def test_run_keeps_output_apart_and_the_exit_code(engine: EngineProcess) -> None:
    done = run_docker(engine, "run", "--rm", "busybox", "sh", "-c", "echo a; echo b >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "a\n", "b\n")
    assert ok(engine, "run", "--rm", "-i", "busybox", "cat", stdin=b"x" * 100_000) == "x" * 100_000
    assert ok(engine, "ps", "-aq") == ""


def test_run_reports_programs_that_cannot_start(engine: EngineProcess) -> None:
    done = run_docker(engine, "run", "--rm", "busybox", "nosuchprogram")
    assert done.returncode == 127
    assert 'exec: "nosuchprogram": executable file not found in $PATH' in done.stderr
    done = run_docker(engine, "run", "--rm", "busybox", "/etc")
    assert done.returncode == 126
    done = run_docker(engine, "run", "--rm", "nosuchimage", "true")
    assert done.returncode == 125
    assert "nosuchimage" in done.stderr
    assert ok(engine, "ps", "-aq") == ""


def test_busy_port_is_told_and_leaves_nothing_running(engine: EngineProcess) -> None:
    ok(engine, "run", "-d", "-p", "8181:80", "--name", "first", "busybox", "sleep", "60")
    done = run_docker(engine, "run", "-d", "-p", "8181:80", "busybox", "sleep", "60")
    assert done.returncode == 125
    assert "8181" in done.stderr
    assert ok(engine, "ps", "-q").count("\n") == 1
    assert ok(engine, "port", "first") == "80/tcp -> 0.0.0.0:8181\n80/tcp -> [::]:8181\n"


def test_run_interactively_on_a_terminal(engine: EngineProcess) -> None:
    shell = terminal(engine, "run", "-it", "--rm", "--name", "tty", "busybox", "sh")
    shell.expect("/ # ")
    shell.sendline("hostname; stty size; tty")
    shell.expect(r"[0-9a-f]{12}\r\n30 100\r\n/dev/pts/0")
    shell.expect("/ # ")
    shell.setwinsize(20, 60)
    until(lambda: _size(shell) == "20 60")
    shell.sendline("exit 5")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5
    assert ok(engine, "ps", "-aq") == ""


def _size(shell: pexpect.spawn) -> str:
    shell.sendline("stty size")
    shell.expect(r"stty size\r\n(\d+ \d+)\r\n")
    found: str = shell.match.group(1)
    shell.expect("/ # ")
    return found


def test_control_c_ends_a_foreground_run(engine: EngineProcess) -> None:
    script = "trap 'exit 130' INT; echo up; while :; do sleep 0.1; done"
    shell = terminal(engine, "run", "-it", "--rm", "busybox", "sh", "-c", script)
    shell.expect("up")
    shell.sendcontrol("c")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 130


def test_detach_and_attach_again(engine: EngineProcess) -> None:
    shell = terminal(engine, "run", "-it", "--name", "back", "busybox", "sh")
    shell.expect("/ # ")
    shell.send("\x10\x11")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
    again = terminal(engine, "attach", "back")
    again.sendline("echo re''joined")
    again.expect("rejoined")
    again.sendline("exit 3")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 3
    assert ok(engine, "start", "back") == "back\n"


def test_exec_with_and_without_terminal(engine: EngineProcess) -> None:
    ok(engine, "run", "-d", "--name", "box", "busybox", "sleep", "60")
    assert ok(engine, "exec", "box", "echo", "hello") == "hello\n"
    assert ok(engine, "exec", "-i", "box", "cat", stdin=b"typed") == "typed"
    assert ok(engine, "exec", "-e", "A=b", "-w", "/tmp", "box", "sh", "-c", "echo $A; pwd") == (
        "b\n/tmp\n"
    )
    assert ok(engine, "exec", "-u", "99", "box", "id", "-u") == "99\n"
    assert run_docker(engine, "exec", "box", "sh", "-c", "exit 9").returncode == 9
    missing = run_docker(engine, "exec", "box", "nosuchprogram")
    assert missing.returncode == 127
    shell = terminal(engine, "exec", "-it", "box", "sh")
    shell.expect("/ # ")
    shell.sendline("stty size; exit 4")
    shell.expect("30 100")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 4
    ok(engine, "exec", "-d", "box", "touch", "/tmp/made")
    until(lambda: run_docker(engine, "exec", "box", "ls", "/tmp/made").returncode == 0)


def test_detached_run_with_ps_logs_stop_and_rm(engine: EngineProcess) -> None:
    script = "echo one; echo two >&2; sleep 60"
    identifier = ok(engine, "run", "-d", "--name", "job", "busybox", "sh", "-c", script).strip()
    assert re.fullmatch(r"[0-9a-f]{64}", identifier)
    row = ok(engine, "ps", "--format", "{{.Names}} {{.Image}} {{.State}} {{.Status}}")
    assert re.fullmatch(r"job busybox running Up .*\n", row)
    streams = ("one\n", "two\n")
    until(lambda: (d := run_docker(engine, "logs", "job")) and (d.stdout, d.stderr) == streams)
    assert ok(engine, "stop", "-t", "0", "job") == "job\n"
    assert "Exited (137)" in ok(engine, "ps", "-a")
    assert ok(engine, "ps", "-q") == ""
    assert run_docker(engine, "rm", "nosuch").returncode == 1
    assert ok(engine, "rm", "job") == "job\n"


def test_logs_follow_until_the_end(engine: EngineProcess) -> None:
    script = "for i in 1 2 3 4; do echo line $i; sleep 0.2; done"
    ok(engine, "run", "-d", "--name", "talks", "busybox", "sh", "-c", script)
    followed = ok(engine, "logs", "-f", "talks")
    assert followed == "line 1\nline 2\nline 3\nline 4\n"
    assert ok(engine, "logs", "-n", "1", "talks") == "line 4\n"
    assert re.match(r"\d{4}-\d\d-\d\dT", ok(engine, "logs", "-t", "talks"))


def test_kill_wait_restart_pause_rename(engine: EngineProcess) -> None:
    ok(engine, "run", "-d", "--name", "life", "busybox", "sleep", "60")
    ok(engine, "pause", "life")
    assert "(Paused)" in ok(engine, "ps")
    ok(engine, "unpause", "life")
    ok(engine, "restart", "-t", "0", "life")
    waiting = subprocess.Popen(
        [docker_cli(), "wait", "life"], env=engine.environment, stdout=subprocess.PIPE
    )
    time.sleep(0.2)
    ok(engine, "kill", "life")
    assert waiting.communicate(timeout=60)[0] == b"137\n"
    ok(engine, "rename", "life", "after")
    assert ok(engine, "inspect", "-f", "{{.State.ExitCode}} {{.Name}}", "after") == "137 /after\n"
    ok(engine, "start", "after")
    ok(engine, "update", "--memory", "64m", "--memory-swap", "64m", "after")
    assert ok(engine, "inspect", "-f", "{{.HostConfig.Memory}}", "after") == "67108864\n"
    ok(engine, "rm", "-f", "after")


def test_images_import_tag_and_remove(engine: EngineProcess, tmp_path: Path) -> None:
    tar = busybox_tar()
    digest = ok(engine, "import", "-c", 'CMD ["echo", "hi"]', "-", "made:1", stdin=tar).strip()
    assert digest.startswith("sha256:")
    assert "made" in ok(engine, "images")
    assert ok(engine, "run", "--rm", "made:1") == "hi\n"
    ok(engine, "tag", "made:1", "made:2")
    archive = tmp_path / "made.tar"
    ok(engine, "save", "-o", str(archive), "made:2")
    assert "Untagged: made:2" in ok(engine, "rmi", "made:2")
    ok(engine, "rmi", "made:1")
    assert "made:2" in ok(engine, "load", "-i", str(archive))
    assert json.loads(ok(engine, "inspect", "made:2"))[0]["Config"]["Cmd"] == ["echo", "hi"]
    assert len(ok(engine, "history", "-q", "made:2").split()) == 1
    ok(engine, "rmi", "made:2")
    assert run_docker(engine, "rmi", "made:2").returncode == 1


def test_copy_in_both_directions(engine: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("content")
    ok(engine, "run", "-d", "--name", "cp", "busybox", "sleep", "60")
    ok(engine, "cp", str(tmp_path / "tree"), "cp:/tmp/")
    assert ok(engine, "exec", "cp", "cat", "/tmp/tree/sub/file") == "content"
    ok(engine, "cp", "cp:/tmp/tree/sub", str(tmp_path / "back"))
    assert (tmp_path / "back" / "file").read_text() == "content"
    ok(engine, "stop", "-t", "0", "cp")
    ok(engine, "cp", str(tmp_path / "tree" / "sub" / "file"), "cp:/root/single")
    ok(engine, "cp", "cp:/root/single", str(tmp_path / "single"))
    assert (tmp_path / "single").read_text() == "content"
    done = run_docker(engine, "cp", "cp:/no/such", str(tmp_path))
    assert done.returncode == 1
    assert "Could not find the file /no/such" in done.stderr
    assert "A /tmp/tree/sub/file" in ok(engine, "diff", "cp")


def test_events_top_stats_and_df(engine: EngineProcess) -> None:
    # One that an earlier test's client left behind a moment ago is not ours.
    until(lambda: engine.api.get("/info")["NEventsListener"] == 0)
    listening = subprocess.Popen(
        [docker_cli(), "events", "--format", "{{.Action}} {{.Actor.Attributes.name}}"],
        env=engine.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: engine.api.get("/info")["NEventsListener"] > 0)
    ok(engine, "run", "--rm", "--name", "seen", "busybox", "true")
    assert listening.stdout is not None
    lines: list[str] = []
    while not lines or "destroy" not in lines[-1]:
        lines.append(listening.stdout.readline().strip())
    listening.terminate()
    listening.wait(60)
    listening.stdout.close()
    actions = [line for line in lines if line.endswith(" seen")]
    expected = ["create seen", "attach seen", "start seen", "die seen", "destroy seen"]
    assert sorted(actions) == sorted(expected)
    ok(engine, "run", "-d", "--name", "busy", "busybox", "sleep", "60")
    assert "sleep 60" in ok(engine, "top", "busy")
    assert "busy" in ok(engine, "stats", "--no-stream", "busy")
    assert "Images" in ok(engine, "system", "df")


def test_volumes_and_networks(engine: EngineProcess) -> None:
    assert ok(engine, "volume", "create", "store") == "store\n"
    ok(engine, "run", "--rm", "-v", "store:/d", "busybox", "sh", "-c", "echo kept > /d/f")
    assert ok(engine, "run", "--rm", "-v", "store:/d", "busybox", "cat", "/d/f") == "kept\n"
    mount = "type=volume,source=store,target=/d,readonly"
    done = run_docker(engine, "run", "--rm", "--mount", mount, "busybox", "touch", "/d/g")
    assert "Read-only file system" in done.stderr
    assert "store" in ok(engine, "volume", "ls", "-q")
    ok(engine, "volume", "rm", "store")
    ok(engine, "network", "create", "--subnet", "10.77.0.0/24", "lan")
    text = ok(engine, "run", "--rm", "--network", "lan", "busybox", "ip", "addr", "show", "eth0")
    assert "10.77.0." in text
    ok(engine, "network", "rm", "lan")


def test_run_options_reach_the_container(engine: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FROM_FILE=1\n")
    script = (
        "hostname; id -u; pwd; echo $A $FROM_FILE; grep extra /etc/hosts; "
        "grep 9.9 /etc/resolv.conf; df /scratch | tail -1; ulimit -n; "
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
    )
    text = ok(
        engine,
        *("run", "--rm", "--hostname", "named", "--user", "99:99", "-w", "/tmp", "-e", "A=b"),
        *("--env-file", str(tmp_path / "env"), "--add-host", "extra:10.1.2.3", "--dns", "9.9.9.9"),
        *("--tmpfs", "/scratch:size=1m", "--ulimit", "nofile=99:99", "--read-only", "--init"),
        *("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cap-drop", "ALL"),
        *("--label", "x=y", "busybox", "sh", "-c", script),
    )
    lines = text.splitlines()
    assert lines[:4] == ["named", "99", "/tmp", "b 1"]
    assert lines[4].split() == ["10.1.2.3", "extra"]
    assert lines[5] == "nameserver 9.9.9.9"
    assert lines[6].split()[1] == "1024"
    assert lines[7] == "99"


def test_container_prune_and_restart_policy(engine: EngineProcess) -> None:
    ok(engine, "run", "--name", "gone", "busybox", "true")
    assert "Deleted Containers:" in ok(engine, "container", "prune", "-f")
    ok(engine, "run", "-d", "--restart", "on-failure:1", "--name", "again", "busybox", "false")
    until(
        lambda: (
            ok(engine, "inspect", "-f", "{{.RestartCount}}{{.State.Status}}", "again")
            == "1exited\n"
        )
    )
    done = run_docker(engine, "run", "--rm", "--restart", "always", "busybox", "true")
    assert done.returncode == 125


def test_unknown_things_are_named(engine: EngineProcess) -> None:
    for arguments in (("start", "ghost"), ("logs", "ghost"), ("exec", "ghost", "true")):
        done = run_docker(engine, *arguments)
        assert done.returncode == 1
        assert "No such container: ghost" in done.stderr
