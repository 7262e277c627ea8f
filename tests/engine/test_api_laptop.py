"""The laptop as containers see it where the engine runs on it: its names, and a web server there.

The way through an agent is in ``tests/faults/test_agent_with_engine.py``, QEMU's in
``tests/vm/test_whole_path.py``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.engine.test_api_names import Asker
from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

PORT = 8087


@pytest.fixture
def page(engine: EngineProcess) -> Iterator[str]:
    """What a web server in the engine's own network says to everybody."""
    directory = engine.root / "page"
    directory.mkdir()
    (directory / "index.html").write_text("from the laptop\n")
    server = subprocess.Popen(
        engine.inside_network(
            *("busybox", "httpd", "-f", "-p", f"0.0.0.0:{PORT}", "-h", str(directory))
        )
    )
    listening = engine.inside_network("ss", "-Hltn", f"sport = :{PORT}")
    try:
        until(lambda: subprocess.run(listening, capture_output=True).stdout)
        yield "from the laptop\n"
    finally:
        server.kill()
        server.wait(60)
        (directory / "index.html").unlink()
        directory.rmdir()


def fetch(api: Api, host: str, **wishes: object) -> str:
    return api.output("wget", "-q", "-O", "-", f"http://{host}:{PORT}/", HostConfig=wishes)


@pytest.mark.parametrize("network", ["bridge", "lan", "host"])
def test_names_lead_to_this_computer(api: Api, page: str, network: str) -> None:
    api.post("/networks/create", {"Name": "lan"})
    for name in ("host.docker.internal", "host.desk.internal"):
        assert fetch(api, name, NetworkMode=network) == page, name
    extra = ["mine:host-gateway"]
    assert fetch(api, "mine", NetworkMode=network, ExtraHosts=extra) == page


def test_a_name_that_was_given_another_meaning_keeps_it(api: Api) -> None:
    hosts = ["host.docker.internal:192.0.2.1"]
    found = api.output("cat", "/etc/hosts", HostConfig={"ExtraHosts": hosts})
    gateway = api.get("/networks/bridge")["IPAM"]["Config"][0]["Gateway"]
    assert "192.0.2.1\thost.docker.internal\n" in found
    assert f"{gateway}\thost.desk.internal\n" in found
    assert found.count("host.docker.internal") == 1


def test_the_name_server_knows_the_names_where_there_is_a_way_out(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    api.post("/networks/create", {"Name": "closed", "Internal": True})
    gateway = api.get("/networks/bridge")["IPAM"]["Config"][0]["Gateway"]
    asker = Asker(api, "lan")
    assert asker.addresses("Host.Docker.Internal") == [gateway]
    assert asker.ask("host.desk.internal", "AAAA").header.rcode == 0
    assert asker.ask("host.desk.internal", "AAAA").rr == []
    assert "internal" not in asker.execute("cat", "/etc/hosts")
    assert Asker(api, "closed").addresses("host.docker.internal") == []


def test_a_container_without_network_has_no_such_names(api: Api) -> None:
    found = api.output("cat", "/etc/hosts", HostConfig={"NetworkMode": "none"})
    assert "internal" not in found
