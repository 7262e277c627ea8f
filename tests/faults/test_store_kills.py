"""An engine that is killed at random moments of everything that changes its store: after the next
start the check finds nothing, and the same request completes.

``DESK_TEST_KILLS`` is how often each operation is killed (4 unless said), ``DESK_TEST_SEED`` the
seed of the moments; both are in the text of a failure.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from zlib import crc32

import pytest
from tests.engine_process import API, IMAGE, Api, EngineProcess, running_engine
from tests.registry_process import running_registry

KILLS = int(os.environ.get("DESK_TEST_KILLS", "4"))
SEED = int(os.environ.get("DESK_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
FILES, FILE_BYTES = 60, 8_000
GRACE = 1.1  # moments up to somewhat after the end of the operation

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(60 + 15 * KILLS)]


@dataclass(frozen=True)
class Place:
    """The engine that is killed, the registry beside it, and what the operations work on."""

    engine: EngineProcess
    registry: str
    archive: bytes
    container: str

    @property
    def api(self) -> Api:
        return self.engine.api


@dataclass(frozen=True)
class Operation:
    """``call`` makes the request for a name that is new each time; ``prepare`` what it needs;
    ``done`` says what a second try may answer if the first had completed."""

    call: Callable[[Place, str], tuple[int, bytes]]
    prepare: Callable[[Place, str], None] = lambda _place, _name: None
    also_done: int = 200


def noise_tar(seed: int) -> bytes:
    made = random.Random(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(FILES):
            member = tarfile.TarInfo(f"{seed}/{number}")
            data = made.randbytes(FILE_BYTES)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_engine() as engine:
        before = engine.inside_network()
        with running_registry(tmp_path_factory.mktemp("registry"), before=before) as address:
            bring_in(engine.api, "base", noise_tar(1))
            pushed = ok(push(engine.api, "base", f"{address}/base:1"))
            assert b"digest" in pushed
            ok(engine.api.raw("DELETE", f"{API}/images/{address}/base:1")[::2])
            archive = ok(engine.api.raw("GET", f"{API}/images/get?names=base", timeout_s=60)[::2])
            container = engine.api.create("true", name="changed")
            put = engine.api.raw("PUT", f"{API}/containers/changed/archive?path=/tmp", noise_tar(2))
            assert put[0] == 200
            yield Place(engine, address, archive, container)


def ok(answer: tuple[int, bytes]) -> bytes:
    status, said = answer
    assert status < 300, (status, said[-500:])
    assert b'"errorDetail"' not in said, said[-500:]
    return said


def bring_in(api: Api, name: str, tar: bytes) -> None:
    ok(import_(api, name, tar))


def import_(api: Api, name: str, tar: bytes) -> tuple[int, bytes]:
    return api.raw("POST", f"{API}/images/create?fromSrc=-&repo={name}", tar, timeout_s=60)[::2]


def push(api: Api, name: str, target: str) -> tuple[int, bytes]:
    repository, _, tag = target.rpartition(":")
    ok(api.raw("POST", f"{API}/images/{name}/tag?repo={quote(repository)}&tag={tag}")[::2])
    return api.raw(
        "POST", f"{API}/images/{repository}/push?tag={tag}", b"",
        {"X-Registry-Auth": "e30="}, timeout_s=60,
    )[::2]  # fmt: skip


def create(place: Place, name: str) -> tuple[int, bytes]:
    body = json.dumps({"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"AutoRemove": False}})
    headers = {"Content-Type": "application/json"}
    return place.api.raw("POST", f"{API}/containers/create?name={name}", body, headers)[::2]


def commit(place: Place, name: str) -> tuple[int, bytes]:
    target = f"{API}/commit?container={place.container}&repo={name}"
    return place.api.raw("POST", target, b"{}", {"Content-Type": "application/json"})[::2]


def remove_container(place: Place, name: str) -> tuple[int, bytes]:
    return place.api.raw("DELETE", f"{API}/containers/{name}")[::2]


def fill_volumes(place: Place, label: str, *names: str) -> None:
    """Make volumes with a few hundred files each."""
    for name in names:
        place.api.post("/volumes/create", {"Name": name, "Labels": {"kept-for": label}})
        directory = place.engine.data_root / "volumes" / name / "_data"
        for number in range(300):
            (directory / str(number)).write_bytes(bytes(100))


def prune_volumes(place: Place, label: str) -> tuple[int, bytes]:
    filters = json.dumps({"all": ["true"], "label": [f"kept-for={label}"]})
    return place.api.raw("POST", f"{API}/volumes/prune?filters={quote(filters)}", b"")[::2]


def create_with_volumes(place: Place, name: str) -> None:
    volumes: dict[str, Any] = {f"/v{number}": {} for number in range(8)}
    place.api.create("true", name=name, Volumes=volumes)
    for point in place.api.inspect(name)["Mounts"]:
        for number in range(20):
            (place.engine.data_root / "volumes" / point["Name"] / "_data" / str(number)).touch()


def put_into_registry(place: Place, name: str) -> None:
    # The fixture's registry is in the engine's network namespace, which only the engine reaches.
    bring_in(place.api, f"{name}-source", noise_tar(crc32(name.encode())))
    ok(push(place.api, f"{name}-source", f"{place.registry}/{name}:1"))
    for image in (f"{place.registry}/{name}:1", f"{name}-source"):
        ok(place.api.raw("DELETE", f"{API}/images/{image}")[::2])


OPERATIONS = {
    "pull": Operation(
        lambda place, name: place.api.raw(
            "POST", f"{API}/images/create?fromImage={place.registry}/{name}&tag=1", timeout_s=60
        )[::2],
        put_into_registry,
    ),
    "push": Operation(
        lambda place, name: push(place.api, "base", f"{place.registry}/{name}:1"),
    ),
    "load": Operation(
        lambda place, _name: place.api.raw(
            "POST", f"{API}/images/load", place.archive, timeout_s=60
        )[::2],
        lambda place, _name: forget(place, "base"),
    ),
    "commit": Operation(commit, also_done=201),
    "rmi": Operation(
        lambda place, name: place.api.raw("DELETE", f"{API}/images/{name}")[::2],
        lambda place, name: bring_in(place.api, name, noise_tar(crc32(name.encode()))),
        also_done=404,
    ),
    "import": Operation(
        lambda place, name: import_(place.api, name, noise_tar(3)),
    ),
    "create": Operation(create, also_done=409),
    "rm": Operation(
        remove_container, lambda place, name: none(ok(create(place, name))), also_done=404
    ),
    "rm with volumes": Operation(
        lambda place, name: place.api.raw("DELETE", f"{API}/containers/{name}?v=1")[::2],
        create_with_volumes,
        also_done=404,
    ),
    "volume rm": Operation(
        lambda place, name: place.api.raw("DELETE", f"{API}/volumes/{name}")[::2],
        lambda place, name: fill_volumes(place, name, name),
        also_done=404,
    ),
    "volume prune": Operation(
        prune_volumes,
        lambda place, name: fill_volumes(place, name, *(f"{name}.{n}" for n in range(5))),
    ),
}


def none(_: object) -> None:
    return


def forget(place: Place, name: str) -> None:
    place.api.raw("DELETE", f"{API}/images/{name}")


def clear_away(place: Place, name: str) -> None:
    """Remove what the operations made; what others need is brought in again."""
    place.api.raw("DELETE", f"{API}/containers/{name}")
    for image in place.api.get("/images/json"):
        for tag in image["RepoTags"]:
            if tag not in (f"{IMAGE}:latest", "base:latest"):
                ok(place.api.raw("DELETE", f"{API}/images/{tag}")[::2])
    ok(place.api.raw("POST", f"{API}/images/load", place.archive, timeout_s=60)[::2])


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


@pytest.mark.parametrize("kind", OPERATIONS)
def test_sigkill_at_random_moments(place: Place, kind: str) -> None:
    operation = OPERATIONS[kind]
    made = random.Random(f"{SEED} {kind}")
    name = f"{kind.replace(' ', '-')}-whole"
    operation.prepare(place, name)
    whole_s = timed(lambda: ok(operation.call(place, name)))
    clear_away(place, name)
    for number in range(KILLS):
        name = f"{kind.replace(' ', '-')}-{number}"
        moment_s = made.uniform(0, whole_s * GRACE)
        where = f"{kind} number {number}, killed after {moment_s:.4f} s of {whole_s:.4f}, {SEED=}"
        operation.prepare(place, name)
        caller = threading.Thread(target=call_and_be_cut, args=(operation, place, name))
        caller.start()
        time.sleep(moment_s)
        place.engine.kill()
        caller.join()
        place.engine.start()
        assert place.api.check_store() == [], where
        status, said = operation.call(place, name)
        assert status in (200, 201, 204, operation.also_done), (where, status, said[-500:])
        assert b'"errorDetail"' not in said, (where, said[-500:])
        assert place.api.check_store() == [], where
        # A container that is gone may leave volumes that had no name: pruning takes those.
        place.api.post("/volumes/prune")
        assert place.api.get("/volumes")["Volumes"] == [], where
        assert list((place.engine.data_root / "volumes").iterdir()) == [], where
        clear_away(place, name)


def call_and_be_cut(operation: Operation, place: Place, name: str) -> None:
    try:
        operation.call(place, name)
    except (OSError, http.client.HTTPException, AssertionError):
        return  # the engine was killed meanwhile
