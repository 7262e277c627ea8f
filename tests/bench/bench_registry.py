"""Pull and push of an image of many small files, beside dockerd, from and to a local registry.

usage: python -m tests.bench.bench_registry [MEGABYTES [ROUNDS]]

The image has eight layers, made of this system's own files below /usr that are at most 256 KiB
large. Each engine has a registry of its own in its network namespace, over the same blobs. Printed
are medians, the ratio to dockerd, and the peak of each engine's memory (VmHWM of its main process).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.engines import Engine, desk_engine, docker_engine
from tests.registry_process import DOCKER, Pusher, running_registry

LAYERS = 8
SMALL_BYTES = 256 * 1024
PORT = 5055
NAME = f"127.0.0.1:{PORT}/bench:1"


def small_files(total_bytes: int) -> Iterator[tuple[Path, int]]:
    """Yield small files below /usr until they have ``total_bytes`` together."""
    left = total_bytes
    for directory, subdirectories, names in os.walk("/usr"):
        subdirectories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
            if size <= SMALL_BYTES:
                yield path, size
                left -= size
                if left <= 0:
                    return


def layers(total_bytes: int) -> tuple[list[bytes], int]:
    """Return the layers' tars and the number of files."""
    parts: list[list[Path]] = [[] for _ in range(LAYERS)]
    passed = 0
    for path, size in small_files(total_bytes):
        parts[min(passed * LAYERS // total_bytes, LAYERS - 1)].append(path)
        passed += size
    return [_pack(part) for part in parts], sum(map(len, parts))


def _pack(paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in paths:
            archive.add(path, str(path).lstrip("/"), recursive=False, filter=_whole_seconds)
    return buffer.getvalue()


def _whole_seconds(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Docker's builders write no fractions of a second, which would cost a header each."""
    member.mtime = int(member.mtime)
    return member


def reset_peak(engine: Engine) -> None:
    Path(f"/proc/{engine.pid}/clear_refs").write_text("5")


def peak_mb(engine: Engine) -> float:
    for line in Path(f"/proc/{engine.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"{engine.name} has no VmHWM")


def processor_s(engine: Engine) -> float:
    fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def timed(engine: Engine, *words: str) -> tuple[float, float]:
    subprocess.run(["sync"], check=True)
    used = processor_s(engine)
    begun = time.perf_counter()
    engine.docker(*words)
    return time.perf_counter() - begun, processor_s(engine) - used


def show(what: str, figures: dict[str, list[tuple[float, float]]], peaks: dict[str, float]) -> None:
    ours, theirs = (statistics.median(wall for wall, _ in rounds) for rounds in figures.values())
    for name, rounds in figures.items():
        wall = statistics.median(wall for wall, _ in rounds)
        cpu = statistics.median(cpu for _, cpu in rounds)
        print(f"{what}: {name} {wall:.2f} s wall, {cpu:.2f} s processor, peak {peaks[name]:.0f} MB")
    print(f"{what}: ratio {ours / theirs:.2f}")


def measure(
    engine: Engine,
    words: tuple[str, ...],
    figures: dict[str, list[tuple[float, float]]],
    peaks: dict[str, float],
) -> None:
    """Time one command of the docker CLI, and note the engine's peak of memory in it."""
    reset_peak(engine)
    figures[engine.name].append(timed(engine, *words))
    peaks[engine.name] = max(peaks.get(engine.name, 0), peak_mb(engine))


def asked_for(description: str, what: str) -> tuple[int, int]:
    """Read the command line: the image's bytes and the rounds, which are of ``what``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "megabytes", type=float, nargs="?", default=500, help="size of the image (500)"
    )
    parser.add_argument("rounds", type=int, nargs="?", default=3, help=f"{what} by each engine (3)")
    arguments = parser.parse_args()
    return int(arguments.megabytes * 1e6), arguments.rounds


def main() -> None:
    total_bytes, rounds = asked_for(__doc__, "pulls and pushes")
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-bench-r-")))
        tars, count = layers(total_bytes)
        with running_registry(place / "registry") as address:
            Pusher(address).image("bench", "1", tars, family=DOCKER)
        blobs = sum(p.stat().st_size for p in place.rglob("data") if p.is_file())
        print(f"{count} files, {sum(map(len, tars)) / 1e6:.0f} MB, {blobs / 1e6:.0f} MB compressed")
        del tars
        engines = [stack.enter_context(desk_engine()), stack.enter_context(docker_engine())]
        pulls: dict[str, list[tuple[float, float]]] = {engine.name: [] for engine in engines}
        peaks: dict[str, float] = {}
        for engine in engines:
            network = ("nsenter", f"--net=/proc/{engine.pid}/ns/net")
            stack.enter_context(running_registry(place / "registry", port=PORT, before=network))
        for number in range(rounds):
            for engine in engines:
                if number:
                    engine.docker("rmi", NAME)
                measure(engine, ("pull", "-q", NAME), pulls, peaks)
        show("pull", pulls, peaks)
        pushes: dict[str, list[tuple[float, float]]] = {engine.name: [] for engine in engines}
        peaks = {}
        for number in range(rounds):
            for engine in engines:
                network = ("nsenter", f"--net=/proc/{engine.pid}/ns/net")
                target = f"127.0.0.1:{PORT + 1}/bench:{number}"
                empty = place / f"empty-{engine.name}-{number}"
                with running_registry(empty, port=PORT + 1, before=network):
                    engine.docker("tag", NAME, target)
                    measure(engine, ("push", "-q", target), pushes, peaks)
        show("push", pushes, peaks)


if __name__ == "__main__":
    main()
