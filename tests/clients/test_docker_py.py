"""docker-py against a real engine: the calls that programs make most."""

from __future__ import annotations

import io
import tarfile

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from tests.clients.docker_py_marks import DOCKER_PY

pytestmark = DOCKER_PY


def test_run_and_errors(client: docker.DockerClient) -> None:
    assert client.ping() is True
    assert client.version()["ApiVersion"] == "1.47"
    assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    with pytest.raises(ContainerError) as caught:
        client.containers.run("busybox", ["sh", "-c", "exit 3"], remove=True)
    assert caught.value.exit_status == 3
    with pytest.raises((ImageNotFound, APIError)):
        client.containers.create("nosuchimage")
    with pytest.raises(NotFound):
        client.containers.get("ghost")


def test_container_object(client: docker.DockerClient) -> None:
    box = client.containers.run(
        "busybox",
        ["sleep", "60"],
        detach=True,
        name="py",
        environment={"A": "b"},
        labels={"l": "v"},
        ports={"80/tcp": None},
        mem_limit="64m",
    )
    assert [found.id for found in client.containers.list(filters={"label": "l=v"})] == [box.id]
    code, output = box.exec_run(["sh", "-c", "echo $A; exit 4"])
    assert (code, output) == (4, b"b\n")
    _, (out, err) = box.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
    assert (out, err) == (b"o\n", b"e\n")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("f")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    assert box.put_archive("/tmp", buffer.getvalue())
    stream, stat = box.get_archive("/tmp/f")
    assert stat["size"] == 3
    assert b"abc" in b"".join(stream)
    assert box.stats(stream=False)["memory_stats"]["limit"] == 64 * 1024 * 1024
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    box.stop(timeout=0)
    assert box.wait()["StatusCode"] == 137
    box.remove()


def test_logs_attach_and_events(client: docker.DockerClient) -> None:
    box = client.containers.create("busybox", ["sh", "-c", "echo one; sleep 0.2; echo two"])
    attached = box.attach(stream=True, logs=True)
    box.start()
    assert b"".join(attached) == b"one\ntwo\n"
    assert list(box.logs(stream=True, follow=True)) == [b"one\n", b"two\n"]
    box.remove()
    events = client.events(since=1, until=2, decode=True)
    assert list(events) == []


def test_volumes_and_networks(client: docker.DockerClient) -> None:
    volume = client.volumes.create("pyvolume", labels={"a": "b"})
    assert client.volumes.get("pyvolume").attrs["Labels"] == {"a": "b"}
    network = client.networks.create("pynet", driver="bridge")
    output = client.containers.run(
        "busybox",
        ["ls", "/data"],
        remove=True,
        network="pynet",
        volumes={"pyvolume": {"bind": "/data", "mode": "rw"}},
    )
    assert output == b""
    network.remove()
    volume.remove()
