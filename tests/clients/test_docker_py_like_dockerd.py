"""What docker-py meets in dockerd and in few other places: seen side by side, kept here."""

from __future__ import annotations

from typing import Any

import docker
import pytest
from docker.errors import APIError
from tests.clients.docker_py_marks import DOCKER_PY
from tests.engine_process import EngineProcess, Hijacked, frames

pytestmark = DOCKER_PY


@pytest.fixture
def box(client: docker.DockerClient) -> Any:
    """A container that stays."""
    return client.containers.run("busybox", ["sleep", "600"], detach=True, name="box")


def networks_of(client: docker.DockerClient, **options: Any) -> list[str]:
    found = client.api.create_container("busybox", "true", **options)
    return sorted(client.api.inspect_container(found["Id"])["NetworkSettings"]["Networks"])


def test_who_names_networks_gets_no_other(client: docker.DockerClient) -> None:
    api = client.api
    for name in ("one", "two"):
        client.networks.create(name)
    one = api.create_networking_config({"one": api.create_endpoint_config(aliases=["db"])})
    both = api.create_networking_config(
        {name: api.create_endpoint_config() for name in ("one", "two")}
    )
    host = api.create_host_config
    assert networks_of(client) == ["bridge"]
    assert networks_of(client, networking_config=one) == ["one"]
    assert networks_of(client, networking_config=both) == ["one", "two"]
    for mode in ("none", "bridge", "two"):
        options = {"networking_config": one, "host_config": host(network_mode=mode)}
        assert networks_of(client, **options) == ["one"], mode
    assert networks_of(client, host_config=host(network_mode="two")) == ["two"]
    assert networks_of(client, network_disabled=True) == []
    started = client.containers.run(
        "busybox", ["sleep", "600"], detach=True, networking_config={"two": {}}, network="two"
    )
    assert list(started.attrs["NetworkSettings"]["Networks"]) == ["two"]


def test_the_start_says_how_an_execs_output_is_read(engine: EngineProcess, box: Any) -> None:
    """The exec says whether it has a terminal; the client's reading depends on the start alone.

    Read here without docker-py, which now and then loses what comes along with the answer's head.
    """
    script = ["sh", "-c", "test -t 1 && echo terminal; echo out"]
    for tty, expected in ((True, b"terminal\r\nout\r\n"), (False, b"out\n")):
        for read_as_terminal in (True, False):
            wish = {"Cmd": script, "Tty": tty, "AttachStdout": True}
            exec_id = engine.api.post(f"/containers/{box.id}/exec", wish)["Id"]
            start = {"Tty": read_as_terminal}
            stream = Hijacked(engine.socket, f"/exec/{exec_id}/start", start)
            output = stream.read_all()
            stream.close()
            if not read_as_terminal:
                pieces = frames(output)
                assert {kind for kind, _ in pieces} == {1}
                output = b"".join(part for _, part in pieces)
            assert output == expected, (tty, read_as_terminal)
            found = engine.api.get(f"/exec/{exec_id}/json")
            assert (found["ExitCode"], found["CanRemove"]) == (0, False)


def test_namespaces_of_another_are_kept_by_its_id(client: docker.DockerClient, box: Any) -> None:
    friend = client.containers.create(
        "busybox", "true", network_mode="container:box", pid_mode="container:box"
    )
    box.rename("crate")
    host = friend.attrs["HostConfig"]
    wanted = f"container:{box.id}"
    assert (host["NetworkMode"], host["PidMode"]) == (wanted, wanted)
    friend.start()
    assert friend.wait()["StatusCode"] == 0


def test_small_print_of_requests_and_answers(client: docker.DockerClient, box: Any) -> None:
    found = client.containers.create("busybox", "id", cap_add="SYS_PTRACE", entrypoint=[]).attrs
    assert found["HostConfig"]["CapAdd"] == ["SYS_PTRACE"]
    assert found["HostConfig"]["PortBindings"] is None
    with pytest.raises(APIError, match=r"400 Client Error for .*: Bad Request \("):
        client.containers.create("", "true")
    with pytest.raises(APIError) as caught:
        client.containers.create("busybox", "true", cap_drop=["foo"])
    assert caught.value.explanation == 'invalid CapDrop: unknown capability: "CAP_FOO"'
    client.containers.create("busybox", name="taken")
    for name, text in (
        ("taken", 'Error when allocating new name: Conflict. The container name "/taken" is'),
        ("a b", "Error when allocating new name: Invalid container name (a b), only"),
        ("box", "Renaming a container with the same name as its current name"),
    ):
        with pytest.raises(APIError) as caught:
            box.rename(name)
        assert text in caught.value.explanation
