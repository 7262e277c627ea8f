"""Two engines side by side for benchmarks: Desk's and Debian's dockerd, on the same images.

Each runs in a network namespace of its own below a temporary directory, and everything it made is
gone afterwards. Times on a busy machine mean little; the benchmarks therefore interleave the two
engines and print ratios.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

START_DEADLINE_S = 30.0
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: its name in reports, its socket, and the PID of its main process."""

    name: str
    socket: Path
    pid: int

    def docker(self, *arguments: str, stdin: Path | None = None) -> str:
        """Run the docker CLI against this engine; return its standard output."""
        with (stdin or Path(os.devnull)).open("rb") as source:
            done = subprocess.run(
                [docker_cli(), "-H", f"unix://{self.socket}", *arguments],
                stdin=source,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        if done.returncode != 0:
            raise SystemExit(f"{self.name}: docker {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def docker_cli() -> str:
    """Return the docker CLI that both engines are driven with."""
    found = shutil.which("docker")
    if found is None:
        raise SystemExit("no docker CLI on the PATH: install Debian's docker.io or docker-cli")
    return found


@contextlib.contextmanager
def network_namespace() -> Iterator[str]:
    """Make a named network namespace with its loopback up; yield its path."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def engine(name: str, command: Callable[[Path, Path], list[str]]) -> Iterator[Engine]:
    """Start an engine made by ``command(directory, socket)`` and end it afterwards.

    ``nsenter`` rather than ``ip netns exec``: the latter mounts a /sys without cgroups.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-bench-")))
        namespace = stack.enter_context(network_namespace())
        socket = directory / "engine.sock"
        log = stack.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            ["nsenter", f"--net={namespace}", *command(directory, socket)],
            stdout=log,
            stderr=log,
        )
        running = Engine(name, socket, process.pid)
        try:
            _await_answer(running, process, directory / "log")
            yield running
        finally:
            _remove_containers(running)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _unmount_below(directory)


def desk_engine() -> contextlib.AbstractContextManager[Engine]:
    """Start Desk's engine from this checkout."""
    return engine(
        "deskd",
        lambda directory, socket: [
            sys.executable,
            "-m",
            "deskd",
            "--data-root",
            str(directory / "data"),
            "--exec-root",
            str(directory / "exec"),
            "-H",
            f"unix://{socket}",
        ],
    )


def docker_engine() -> contextlib.AbstractContextManager[Engine]:
    """Start Debian's dockerd (package docker.io)."""
    if shutil.which("dockerd") is None:
        raise SystemExit("the peer is missing: apt-get install docker.io (it need not be started)")
    return engine(
        "dockerd",
        lambda directory, socket: [
            "dockerd",
            "--data-root",
            str(directory / "data"),
            "--exec-root",
            str(directory / "exec"),
            "--pidfile",
            str(directory / "pid"),
            "-H",
            f"unix://{socket}",
        ],
    )


def busybox_archive(directory: Path) -> Path:
    """Pack Debian's static busybox as a root file system; return the tar file."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is missing: apt-get install busybox-static")
    archive = directory / "busybox.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(busybox, "bin/busybox")
        for applet in ("sh", "true", "echo", "sleep", "cat", "dd", "yes", "head", "wc"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return archive


def interleave(
    rounds: int, subjects: Mapping[str, Callable[[], object]], *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Time each subject ``rounds`` times in turn; return the seconds by subject."""
    for _ in range(warm_up):
        for run in subjects.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, run in subjects.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    return times


def report(title: str, times: dict[str, list[float]], *, limit: float | None = None) -> float:
    """Print the medians and the ratio of the first subject to the second; return the ratio."""
    (ours, our_times), (theirs, their_times) = times.items()
    ratio = statistics.median(our_times) / statistics.median(their_times)
    wanted = "" if limit is None else f", wanted at most {limit:.2f}"
    print(
        f"{title}: {ours} {statistics.median(our_times) * 1000:.1f} ms, "
        f"{theirs} {statistics.median(their_times) * 1000:.1f} ms, ratio {ratio:.3f}{wanted}"
    )
    return ratio


def _await_answer(running: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        probe = subprocess.run(
            [docker_cli(), "-H", f"unix://{running.socket}", "version"],
            capture_output=True,
            check=False,
        )
        if probe.returncode == 0:
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise SystemExit(f"{running.name} does not answer:\n{tail}")


def _remove_containers(running: Engine) -> None:
    with contextlib.suppress(SystemExit):
        names = running.docker("ps", "-aq").split()
        if names:
            running.docker("rm", "-f", *names)


def _unmount_below(directory: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for target in sorted((m for m in mounted if m.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "-l", target], check=False)
