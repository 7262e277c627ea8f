"""Commit, diff and create on an image of many files, beside dockerd, over the API itself.

usage: python -m tests.bench.bench_commit [FILES [ROUNDS]]

A container of the image changed one file. Printed are the medians of both engines and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.engines import Engine, desk_engine, docker_engine
from tests.engine_process import Api

API = "/v1.41"
FILES_IN_DIRECTORY = 100


def archive(directory: Path, files: int) -> Path:
    path = directory / "many.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            member = tarfile.TarInfo(f"d{number // FILES_IN_DIRECTORY}/f{number}")
            data = f"file {number}\n".encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def changed_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("f1")
        member.size = 8
        tar.addfile(member, io.BytesIO(b"changed\n"))
    return buffer.getvalue()


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def call(engine: Engine, method: str, path: str, document: object = None) -> Any:
    """Call an engine in the API version that both know."""
    body = None if document is None else json.dumps(document)
    headers = {"Content-Type": "application/json"}
    status, _, data = Api(str(engine.socket)).raw(method, f"{API}{path}", body, headers)
    if status >= 400:
        raise SystemExit(f"{engine.name}: {method} {path}: {data.decode()}")
    return json.loads(data)


def create(engine: Engine) -> str:
    made: str = call(engine, "POST", "/containers/create", {"Image": "many", "Cmd": ["x"]})["Id"]
    return made


def measure(engine: Engine, container: str, number: int) -> dict[str, float]:
    target = f"/commit?container={container}&repo=made{number}&pause=0"
    return {
        "commit": timed(lambda: call(engine, "POST", target, {})),
        "diff": timed(lambda: call(engine, "GET", f"/containers/{container}/changes")),
        "create": timed(lambda: create(engine)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "files", type=int, nargs="?", default=30_000, help="files in the image (30000)"
    )
    parser.add_argument("rounds", type=int, nargs="?", default=9, help="commits by each engine (9)")
    arguments = parser.parse_args()
    files, rounds = arguments.files, arguments.rounds
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-bench-c-")))
        packed = archive(directory, files)
        engines = [stack.enter_context(desk_engine()), stack.enter_context(docker_engine())]
        containers: dict[str, str] = {}
        for engine in engines:
            engine.docker("import", str(packed), "many")
            made = containers[engine.name] = create(engine)
            target = f"{API}/containers/{made}/archive?path=/d0"
            assert Api(str(engine.socket)).raw("PUT", target, changed_file())[0] == 200
        times: dict[str, dict[str, list[float]]] = {}
        for number in range(rounds):
            for engine in engines:
                for what, took_ms in measure(engine, containers[engine.name], number).items():
                    times.setdefault(what, {}).setdefault(engine.name, []).append(took_ms)
        for what, by_engine in times.items():
            ours, theirs = (statistics.median(values) for values in by_engine.values())
            names = list(by_engine)
            print(
                f"{what} with {files} files: {names[0]} {ours:.1f} ms, {names[1]} {theirs:.1f} ms, "
                f"ratio {ours / theirs:.2f}"
            )


if __name__ == "__main__":
    main()
