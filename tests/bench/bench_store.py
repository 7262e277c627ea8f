"""A store of many images: how long the list of them takes, and the engine's start on them.

usage: python -m tests.bench.bench_store [IMAGES [LAYERS]]

Every image has LAYERS layers of its own. The start lasts until the engine serves every request.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.engine_process import API, EngineProcess

LIST_LIMIT_MS = 150.0
START_LIMIT_MS = 2000.0
ROUNDS = 9
IMAGES_IN_ARCHIVE = 100


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def layer(number: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, f"f{number}", f"layer {number}\n".encode())
    return buffer.getvalue()


def write_archive(path: Path, images: range, layers: int) -> None:
    """Write images as ``docker save`` does (moby/docker-image-spec, v1.2)."""
    manifest = []
    with tarfile.open(path, "w") as tar:
        for image in images:
            names, hashes = [], []
            for position in range(layers):
                data = layer(image * layers + position)
                digest = hashlib.sha256(data).hexdigest()
                names.append(f"{digest}/layer.tar")
                hashes.append(f"sha256:{digest}")
                add(tar, names[-1], data)
            config = json.dumps({
                "architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]},
                "created": "2025-01-01T00:00:00Z",
                "history": [{"created_by": "a layer"}] * layers,
                "rootfs": {"type": "layers", "diff_ids": hashes},
            }).encode()  # fmt: skip
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            add(tar, name, config)
            manifest.append({"Config": name, "RepoTags": [f"many:{image}"], "Layers": names})
        add(tar, "manifest.json", json.dumps(manifest).encode())


def timed_ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def start_ms(engine: EngineProcess) -> float:
    def start() -> None:
        engine.start()
        engine.api.get("/containers/json")

    engine.stop()
    return timed_ms(start)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=int, nargs="?", default=1000, help="images (1000)")
    parser.add_argument("layers", type=int, nargs="?", default=5, help="layers of each image (5)")
    arguments = parser.parse_args()
    engine = EngineProcess()
    try:
        engine.start()
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="desk-bench-s-") as directory:
            for first in range(0, arguments.images, IMAGES_IN_ARCHIVE):
                path = Path(directory) / "images.tar"
                images = range(first, min(first + IMAGES_IN_ARCHIVE, arguments.images))
                write_archive(path, images, arguments.layers)
                status, _, data = engine.api.raw("POST", f"{API}/images/load", path.read_bytes())
                if status != 200 or b'"error"' in data:
                    raise SystemExit(f"the images do not load: {data[-500:].decode()}")
        print(f"loading {arguments.images} images: {time.perf_counter() - begun:.1f} s")
        listed = len(engine.api.get("/images/json"))
        if listed != arguments.images:
            raise SystemExit(f"{listed} images are listed")
        lists = [
            timed_ms(lambda: engine.api.raw("GET", f"{API}/images/json")) for _ in range(ROUNDS)
        ]
        starts = [start_ms(engine) for _ in range(ROUNDS)]
    finally:
        left = engine.close()
    if left:
        print(f"left behind: {left}", file=sys.stderr)
    late = bool(left)
    for what, values, limit in (
        ("list of images", lists, LIST_LIMIT_MS), ("start", starts, START_LIMIT_MS)
    ):  # fmt: skip
        median = statistics.median(values)
        late = late or median > limit
        print(f"{what}: {median:.0f} ms (slowest {max(values):.0f}), {limit:.0f} wanted")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
