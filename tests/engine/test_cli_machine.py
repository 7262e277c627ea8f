"""``desk up`` to ``desk machine rm`` with the local driver: the whole host side without a VM."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest

from tests.cli_process import DESK, Result
from tests.engine_process import busybox_tar, until
from tests.laptop import Host

pytestmark = pytest.mark.root


def test_from_nothing_to_a_container_and_back(host: Host) -> None:
    done = host("ps")
    assert (done.code, done.err) == (
        1,
        "desk: there is no machine yet\n`desk up` makes and starts one.\n",
    )
    done = host("up", "--driver", "local")
    assert done.code == 0, done
    assert "Machine default is running" in done.err
    assert 'eval "$(desk-env)"' in done.out
    again = host("up")
    assert (again.code, again.err) == (0, "Machine default is running.\n")
    other = host("up", "--memory", "1g")
    assert other.code == 1
    assert other.err.startswith("desk: machine default exists already, with memory_mib")

    assert host("import", "-", "box", stdin=busybox_tar()).code == 0
    done = host("run", "-d", "--name", "web", "box", "sleep", "600")
    assert (done.code, done.err) == (0, "")
    assert host("machine", "status").out == "Running\n"
    heading, line = host("machine", "ls").out.splitlines()
    assert heading.split() == ["NAME", "ACTIVE", "DRIVER", "STATE", "URL", "ENGINE", "ERRORS"]
    assert line.split()[:4] == ["default", "*", "local", "Running"]

    docker = shutil.which("docker")
    assert docker is not None
    eval_and_list = f'eval "$({DESK}-env)" && {docker} ps --format "{{{{.Names}}}}" && {DESK} ps -q'
    done = host.run("bash", "-c", eval_and_list)
    assert done.code == 0, done
    assert done.out.splitlines()[0] == "web"

    code = f'eval "$({DESK}-env)" && {DESK}-env | wc -c && {DESK}-env --check'
    done = host.run("bash", "-c", f'{code} && eval "$({DESK}-env -u)"; {DESK}-env --check')
    assert (done.code, done.out) == (1, "0\n"), done
    first, second, hint = done.err.splitlines()
    assert first == "Docker's clients of this shell use machine default."
    assert second.startswith("desk: Docker's clients of this shell do not use machine default: ")
    assert second.endswith("DOCKER_HOST is not set")
    assert hint.startswith("`desk-env` prints what sets them")

    assert host("stop", "-t", "0", "web").code == 0
    done = host("down")
    assert done.err.endswith("Machine default is stopped.\n")
    done = host("ps")
    assert (done.code, done.err) == (
        1,
        "desk: machine default is stopped\n`desk machine start default` starts it.\n",
    )
    # A command that makes something starts the machine; what was there is there again.
    done = host("run", "--rm", "box", "echo", "hello")
    assert (done.code, done.out) == (0, "hello\n")
    assert host("ps", "-a", "--format", "{{.Names}}").out == "web\n"
    assert host("rm", "web").code == 0
    assert host("machine", "restart").err.count("is running again") == 1
    doctor = host("doctor").out
    assert "machine default: running" in doctor
    assert host("machine", "url").out == f"unix://{host.home}/machines/default/engine.sock\n"
    assert host("machine", "inspect", "-f", "{{.driver}}").out == "local\n"
    ssh = host("machine", "ssh")
    assert ssh.code == 1
    assert "it is this computer itself" in ssh.err


def test_a_restart_gives_back_what_ran(host: Host) -> None:
    assert host("up", "--driver", "local").code == 0
    assert host("import", "-", "box", stdin=busybox_tar()).code == 0
    run = ("run", "-d", "--stop-timeout", "0")
    for name, *flags in (("plain",), ("passing", "--rm"), ("frozen",)):
        assert host(*run, *flags, "--name", name, "box", "sleep", "600").code == 0
    assert host("pause", "frozen").code == 0
    assert host("create", "--name", "new", "box", "sleep", "600").code == 0
    before = host("ps", "-a", "--format", "{{.Names}} {{.State}}").out

    done = host("machine", "restart")
    assert done.code == 0, done
    assert [line.split() for line in done.out.splitlines()] == [
        ["CONTAINER", "BEFORE", "AFTER"],
        ["plain", "running", "running"],
        ["passing", "running", "running"],
        ["frozen", "paused", "paused"],
    ]
    said = done.err.splitlines()[-1]
    assert said.startswith("Machine default is running again (")
    assert "containers' return" in said
    assert host("ps", "-a", "--format", "{{.Names}} {{.State}}").out == before

    done = host("machine", "restart", "--policy-only")
    assert (done.code, done.out) == (0, "")
    after = "new created\nfrozen exited\nplain exited\n"
    assert host("ps", "-a", "--format", "{{.Names}} {{.State}}").out == after


def test_advice_on_memory_stands_on_what_containers_held(host: Host) -> None:
    assert host("up", "--driver", "local").code == 0
    assert host("import", "-", "box", stdin=busybox_tar()).code == 0
    done = host("machine", "advise")
    assert done.code == 0, done
    heading, said = done.out.splitlines()
    assert heading.split() == ["CONTAINER", "NOW", "PEAK", "LIMIT", "OBSERVED"]
    assert said.startswith("No container of machine default was observed in the last week: ")

    fill = "dd if=/dev/zero of=/m/held bs=1M count=48 2>&-"
    run = ("run", "--tmpfs", "/m:size=64m", "--stop-timeout", "0", "-m", "128m", "--name")
    assert host(*run, "brief", "box", "sh", "-c", fill.replace("48", "24")).code == 0
    words = f"{fill}; rm /m/held; echo ready; exec sleep 600"
    assert host(*run, "web", "-d", "box", "sh", "-c", words).code == 0
    until(lambda: "ready" in host("logs", "web").out)

    done = host("machine", "advise", "default")
    assert (done.code, done.err) == (0, "")
    _, *lines, said = done.out.splitlines()
    (web,) = [line.split() for line in lines]  # the other one did not run beside it
    assert (web[0], web[3]) == ("web", "128MiB")
    assert web[1].endswith("KiB") or float(web[1].removesuffix("MiB")) < 16
    assert 48 <= float(web[2].removesuffix("MiB")) < 64
    assert said.startswith("What ran at one time (1 container) needs up to ")
    assert " This is weak advice: web was observed for " in said
    assert "desk machine set" not in said  # the driver has no memory to set

    assert host("stop", "web").code == 0
    done = host("machine", "advise", "--format", "json")
    assert done.code == 0
    assert done.err.startswith("What ran at one time (1 container) needs up to ")
    (row,) = map(json.loads, done.out.splitlines())
    assert (row["Container"], row["Now"], row["Peak"]) == ("web", "", web[2])
    assert row["AdvisedMemory"] > 48 << 20
    assert row["MachineMemory"] > 0

    assert host("down").code == 0
    done = host("machine", "advise")
    assert (done.code, done.err.splitlines()[0]) == (1, "desk: machine default is stopped")
    assert host("machine", "start").code == 0
    assert host("machine", "advise").out.splitlines()[1].split()[:2] == ["web", web[2]]


def test_removing_asks_and_removes_all(host: Host) -> None:
    assert host("machine", "create", "--driver", "local", "spare").code == 0
    assert host("machine", "use", "spare").code == 0
    assert host("machine", "active").out == "spare\n"
    refused = host("machine", "rm", "spare")
    assert refused.code == 125
    assert "Add --force" in refused.err
    words = host.command(DESK, "machine", "rm", "spare")
    for answer, left in (("n", "spare\n"), ("y", "")):
        child = pexpect.spawn(
            words[0], words[1:], env=host.environment, encoding="utf-8", timeout=60
        )
        child.expect(r"Remove spare with all images, containers and volumes\? \[y/N\] ")
        child.sendline(answer)
        child.expect(pexpect.EOF)
        child.close()
        assert host("machine", "ls", "-q").out == left
    assert not (host.home / "machines" / "spare").exists()


def test_a_folder_of_this_computer_is_there_with_the_local_driver(
    host: Host, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("here\n")
    assert host("up", "--driver", "local").code == 0
    assert host("import", "-", "box", stdin=busybox_tar()).code == 0
    done = host("run", "--rm", "-v", f"{tmp_path}:/mnt", "box", "cat", "/mnt/file")
    assert (done.code, done.out) == (0, "here\n")


def test_two_commands_at_once_make_and_start_one_machine(host: Host) -> None:
    words = host.command(DESK, "up", "--driver", "local")
    both = [
        subprocess.Popen(words, env=host.environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
        assert "Machine default is running" in text


def test_settings_are_shown_edited_and_checked_by_their_places(host: Host, tmp_path: Path) -> None:
    assert host("machine", "create", "--driver", "local", "-o", "bip=10.77.0.1/24").code == 0
    url = host("machine", "url").out.strip()
    assert host("machine", "config").out == f"-H={url}\n"
    shown = host("machine", "config", "--show").out
    assert shown.startswith("# Settings of a machine with the driver local.")
    assert '\nbip = "10.77.0.1/24"\n' in shown
    place = host("machine", "config", "--path").out.strip()
    assert Path(place).read_text() == shown

    other = tmp_path / "other.toml"
    other.write_text(shown.replace("10.77.0.1/24", "10.78.0.1/24"))
    done = host("machine", "config", "--check", "--file", str(other))
    assert (done.code, done.out) == (0, 'driver.bip = "10.78.0.1/24"\n')
    assert Path(place).read_text() == shown
    done = host("machine", "config", "--apply", "--file", "-", stdin=other.read_bytes())
    assert (done.code, done.out) == (0, 'driver.bip = "10.78.0.1/24"\n')
    assert host("machine", "inspect", "-f", "{{.options.bip}}").out == "10.78.0.1/24\n"

    def edit(script: str) -> Result:
        editor = tmp_path / "editor"
        editor.write_text(f"#!/bin/sh\n{script}\n")
        editor.chmod(0o755)
        return host.run("env", f"EDITOR={editor}", DESK, "machine", "config", "--edit")

    assert edit("true").code == 0
    done = edit("""sed -i 's/^bip = .*/bip = "10.79.0.1\\/24" # mine/' "$1" """)
    assert (done.code, done.out) == (0, 'driver.bip = "10.79.0.1/24"\n'), done
    assert "# mine" in Path(place).read_text()
    done = edit("echo 'speed = 9' >>\"$1\"")
    assert done.code == 125
    words, hint = done.err.splitlines()
    kept, line = words.removeprefix("desk: ").split(":")[:2]
    assert words.endswith(": the driver local has no option speed")
    assert Path(kept).read_text().splitlines()[int(line) - 1] == "speed = 9"
    assert f"config --apply --file {kept}" in hint
    Path(kept).unlink()
    assert "speed" not in Path(place).read_text()
    lost = host.run("env", "EDITOR=/no/such", DESK, "machine", "config", "--edit")
    assert lost.err.startswith("desk: /no/such: Editing failed")
