"""skopeo as a client of the engine itself (its transport docker-daemon), both ways."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_process import EngineProcess
from tests.registry_process import running_registry

pytestmark = pytest.mark.root


@pytest.fixture
def clean(engine: EngineProcess) -> Iterator[EngineProcess]:
    yield engine
    for image in engine.api.get("/images/json"):
        for name in image["RepoTags"] or []:
            if name != "busybox:latest":
                engine.api.delete(f"/images/{name}", force=True)
    assert engine.api.check_store() == []


def copy(engine: EngineProcess, source: str, target: str) -> None:
    """Copy an image within the engine's network namespace."""
    words = ["skopeo", "--insecure-policy", "copy", "-q"]
    for side, place in (("src", source), ("dest", target)):
        if place.startswith("docker-daemon:"):
            words.append(f"--{side}-daemon-host=unix://{engine.socket}")
        elif place.startswith("docker:"):
            words.append(f"--{side}-tls-verify=false")
    done = subprocess.run(
        engine.inside_network(*words, source, target), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_images_go_from_the_engine_and_come_back(clean: EngineProcess, tmp_path: Path) -> None:
    api = clean.api
    busybox = api.get("/images/busybox/json")
    with running_registry(tmp_path / "registry", before=clean.inside_network()) as registry:
        places = {
            "dir": f"dir:{tmp_path}/dir",
            "oci": f"oci:{tmp_path}/oci:1",
            "oci-archive": f"oci-archive:{tmp_path}/oci.tar:x:1",
            "docker-archive": f"docker-archive:{tmp_path}/docker.tar:x:1",
            "docker": f"docker://{registry}/x:1",
        }
        for kind, place in places.items():
            copy(clean, "docker-daemon:busybox:latest", place)
            copy(clean, place, f"docker-daemon:from-{kind}:1")
            made = api.get(f"/images/from-{kind}:1/json")
            assert made["RootFS"] == busybox["RootFS"], kind
            assert api.output("echo", kind, Image=f"from-{kind}:1") == f"{kind}\n"
        # What skopeo put into the registry is what the engine pulls.
        status, _, said = api.raw(
            "POST", f"/v1.47/images/create?fromImage={registry}/x&tag=1", timeout_s=60
        )
        assert (status, b"errorDetail" in said) == (200, False), said
        assert (
            api.get(f"/images/{registry}/x:1/json")["Id"]
            == api.get("/images/from-docker:1/json")["Id"]
        )
        api.delete(f"/images/{registry}/x:1")


def test_skopeo_inspects_the_engines_images(clean: EngineProcess) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "inspect", f"--daemon-host=unix://{clean.socket}",
         "docker-daemon:busybox:latest"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown, ours = json.loads(done.stdout), clean.api.get("/images/busybox/json")
    assert shown["Layers"] == ours["RootFS"]["Layers"]
    assert (shown["Os"], shown["Architecture"]) == (ours["Os"], ours["Architecture"])
