"""docker-py and a real registry: pull, push, login, what the registry says of an image."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
from docker.errors import APIError, NotFound
from tests.clients.docker_py_marks import DOCKER_PY
from tests.engine_process import EngineProcess
from tests.registry_process import PASSWORD, USER, running_registry

pytestmark = DOCKER_PY


@pytest.fixture(autouse=True)
def _no_image_stays(client: docker.DockerClient) -> Iterator[None]:
    yield
    for image in client.images.list():
        for name in image.tags:
            if name != "busybox:latest":
                client.images.remove(name, force=True)


@pytest.fixture(scope="module")
def registry(
    shared_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    place = tmp_path_factory.mktemp("registry")
    before = shared_engine.inside_network()
    with running_registry(place, before=before, passwords=True) as address:
        yield address


def test_login_push_pull_and_run(client: docker.DockerClient, registry: str) -> None:
    account = {"username": USER, "password": PASSWORD}
    with pytest.raises(APIError, match="unauthorized"):
        client.login(username=USER, password="wrong", registry=registry)
    assert client.login(**account, registry=registry)["Status"] == "Login Succeeded"
    name = f"{registry}/py/box"
    client.images.get("busybox").tag(name, "1")
    told = list(client.images.push(name, tag="1", auth_config=account, stream=True, decode=True))
    digest = next(item["aux"]["Digest"] for item in told if "aux" in item)
    said = client.images.get_registry_data(f"{name}:1", auth_config=account)
    assert said.id == digest
    assert said.has_platform("linux/amd64") or said.has_platform("linux/arm64")
    client.images.remove(f"{name}:1")
    pulled = client.images.pull(name, tag="1", auth_config=account)
    assert f"{name}@{digest}" in pulled.attrs["RepoDigests"]
    assert client.containers.run(f"{name}:1", ["echo", "hi"], remove=True) == b"hi\n"
    (all_tags,) = client.images.pull(name, all_tags=True, auth_config=account)
    assert all_tags.id == pulled.id


def test_what_is_not_there(client: docker.DockerClient, registry: str) -> None:
    account = {"username": USER, "password": PASSWORD}
    with pytest.raises(NotFound, match="manifest unknown"):
        client.images.pull(f"{registry}/none", tag="1", auth_config=account)
    told = list(
        client.images.push(f"{registry}/none", auth_config=account, stream=True, decode=True)
    )
    assert "does not exist locally" in told[-1]["error"]
