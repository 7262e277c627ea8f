"""Save and load of an image of many small files, beside dockerd.

usage: python -m tests.bench.bench_archives [MEGABYTES [ROUNDS]]

The image is that of ``bench_registry``: eight layers of this system's own small files. Both engines
load the same archive; what they save goes to a file. Printed are medians, the ratio to dockerd, and
the peak of each engine's memory (VmHWM of its main process).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

from tests.bench.bench_registry import asked_for, layers, measure, show
from tests.bench.engines import desk_engine, docker_engine

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
    total_bytes, rounds = asked_for(__doc__, "loads and saves")
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
                measure(engine, words, loads, load_peaks)
            for engine in engines:
                words = ("save", "-o", str(place / f"{engine.name}.tar"), NAME)
                measure(engine, words, saves, save_peaks)
        show("load", loads, load_peaks)
        show("save", saves, save_peaks)


if __name__ == "__main__":
    main()
