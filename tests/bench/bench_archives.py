"""Save and load of an image of many small files, beside dockerd.

usage: python -m tests.bench.bench_archives [MEGABYTES [ROUNDS]]

The image is that of ``bench_registry``: eight layers of this system's own small files. Both engines
load the same archive; what they save goes to a file. Printed are medians, the ratio to dockerd, and
the peak of each engine's memory (VmHWM of its main process).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

from tests.bench.bench_registry import layers, peak_mb, reset_peak, show, timed
from tests.bench.engines import Engine, desk_engine, docker_engine

NAME = "bench:1"


def write_archive(path: Path, tars: list[bytes]) -> None:
    """Write an image of these layers as ``docker save`` does."""
    digests = [hashlib.sha256(data).hexdigest() for data in tars]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
    ).encode()
    names = [f"blobs/sha256/{digest}" for digest in digests]
    config_name = f"blobs/sha256/{hashlib.sha256(config).hexdigest()}"
    manifest = [{"Config": config_name, "RepoTags": [NAME], "Layers": names}]
    with tarfile.open(path, "w") as archive:
        for name, data in [*zip(names, tars, strict=True), (config_name, config)]:
            _add(archive, name, data)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "megabytes", type=float, nargs="?", default=500, help="size of the image (500)"
    )
    parser.add_argument(
        "rounds", type=int, nargs="?", default=3, help="loads and saves by each engine (3)"
    )
    arguments = parser.parse_args()
    total_bytes, rounds = int(arguments.megabytes * 1e6), arguments.rounds
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-bench-a-")))
        tars, count = layers(total_bytes)
        write_archive(place / "image.tar", tars)
        print(
            f"{count} files, {sum(map(len, tars)) / 1e6:.0f} MB in {len(tars)} layers", flush=True
        )
        del tars
        engines = [stack.enter_context(desk_engine()), stack.enter_context(docker_engine())]
        loads: dict[str, list[tuple[float, float]]] = {engine.name: [] for engine in engines}
        saves: dict[str, list[tuple[float, float]]] = {engine.name: [] for engine in engines}
        load_peaks: dict[str, float] = {}
        save_peaks: dict[str, float] = {}
        for number in range(rounds):
            for engine in engines:
                if number:
                    engine.docker("rmi", NAME)
                words = ("load", "-q", "-i", str(place / "image.tar"))
                _measure(engine, words, loads, load_peaks)
            for engine in engines:
                words = ("save", "-o", str(place / f"{engine.name}.tar"), NAME)
                _measure(engine, words, saves, save_peaks)
        show("load", loads, load_peaks)
        show("save", saves, save_peaks)


def _measure(
    engine: Engine,
    words: tuple[str, ...],
    figures: dict[str, list[tuple[float, float]]],
    peaks: dict[str, float],
) -> None:
    reset_peak(engine)
    figures[engine.name].append(timed(engine, *words))
    peaks[engine.name] = max(peaks.get(engine.name, 0), peak_mb(engine))


if __name__ == "__main__":
    main()
