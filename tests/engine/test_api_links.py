"""Links: another container's address in /etc/hosts and in the environment."""

from __future__ import annotations

import pytest

from tests.engine_process import IMAGE, Api, running_engine, until

pytestmark = pytest.mark.root


def address_of(api: Api, container: str) -> str:
    address: str = api.inspect(container)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    return address


def database(api: Api) -> str:
    return api.run(
        *("sleep", "600"),
        name="database",
        Hostname="store",
        Env=["SECRET=s=1", "PATH=/bin"],
        ExposedPorts={"5432/tcp": {}, "53/udp": {}},
    )


def test_a_link_is_a_line_and_variables(api: Api) -> None:
    database(api)
    address = address_of(api, "database")
    client = api.run("sleep", "600", name="client", HostConfig={"Links": ["database:my-db"]})
    assert exec_output(api, client, "tail", "-n", "1", "/etc/hosts") == (
        f"{address}\tmy-db store database\n"
    )
    wanted = {
        f"MY_DB_PORT=udp://{address}:53",
        f"MY_DB_PORT_5432_TCP=tcp://{address}:5432",
        f"MY_DB_PORT_5432_TCP_ADDR={address}",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_NAME=/client/my-db",
        "MY_DB_ENV_SECRET=s=1",
    }
    found = set(exec_output(api, client, "env").splitlines())
    assert wanted <= found
    assert not any(line.startswith("MY_DB_ENV_PATH") for line in found)
    assert api.inspect(client)["HostConfig"]["Links"] == ["/database:/client/my-db"]
    names = {name for item in api.get("/containers/json") for name in item["Names"]}
    assert names == {"/database", "/client", "/client/my-db"}
    api.post("/containers/database/rename", name="renamed")
    assert api.inspect(client)["HostConfig"]["Links"] == ["/renamed:/client/my-db"]


def exec_output(api: Api, container: str, *command: str) -> str:
    wish = {"Cmd": list(command), "AttachStdout": True, "Tty": True}
    made = api.post(f"/containers/{container}/exec", wish)["Id"]
    text: bytes = api.post(f"/exec/{made}/start", {"Tty": True})
    return text.decode().replace("\r\n", "\n")


def test_ports_in_a_row_are_told_as_a_range(api: Api) -> None:
    ports = ["8000/tcp", "8001/tcp", "8002/tcp", "9000/tcp", "9001/tcp"]
    api.run("sleep", "600", name="many", ExposedPorts={port: {} for port in ports})
    address = address_of(api, "many")
    text = api.output("env", HostConfig={"Links": ["many:m"]})
    found = {line for line in text.splitlines() if "_START" in line or "_END" in line}
    assert found == {
        f"M_PORT_8000_TCP_START=tcp://{address}:8000",
        "M_PORT_8000_TCP_PORT_START=8000",
        f"M_PORT_8000_TCP_END=tcp://{address}:8002",
        "M_PORT_8000_TCP_PORT_END=8002",
    }
    assert "M_PORT_9001_TCP_PORT=9001" in text.splitlines()


def test_a_link_follows_a_new_address(api: Api) -> None:
    database(api)
    client = api.run("sleep", "600", HostConfig={"Links": ["database:db"]})
    exec_output(api, client, "sh", "-c", "echo '192.0.2.1 own' >> /etc/hosts")
    before = address_of(api, "database")
    api.post("/containers/database/stop", t=0)
    api.run("sleep", "600", name="squatter")  # takes the address
    assert address_of(api, "squatter") == before
    api.post("/containers/database/start")
    now = address_of(api, "database")
    assert now != before
    hosts = exec_output(api, client, "cat", "/etc/hosts")
    assert f"{now}\tdb store database\n" in hosts
    assert f"{before}\tdb" not in hosts
    assert "192.0.2.1 own\n" in hosts


def test_links_that_cannot_be(api: Api) -> None:
    api.create("true", name="stopped")
    api.create("true", name="wide", HostConfig={"NetworkMode": "host"})
    for links, mode, text in (
        (["ghost:x"], "", "could not get container for ghost: No such container: ghost"),
        (["a:b:c"], "", "bad format for links: a:b:c"),
        ([""], "", "empty string specified for links"),
        (["wide:x"], "", "host type networking can't be used with links"),
        (["stopped:x"], "host", "host type networking can't be used with links"),
        (["stopped:x"], "container:stopped", "container type networking can't be used with links"),
    ):
        wish = {"Image": IMAGE, "HostConfig": {"Links": links, "NetworkMode": mode}}
        error = api.error("POST", "/containers/create", wish)
        assert error.status == 400
        assert text in error.message
    client = api.create("true", name="client", HostConfig={"Links": ["stopped"]})
    error = api.error("POST", f"/containers/{client}/start")
    assert error.status == 409
    assert "Cannot link to a non running container: /stopped AS /client/stopped" in error.message


def test_links_are_taken_away(api: Api) -> None:
    database(api)
    api.create("true", name="client", HostConfig={"Links": ["database:db", "database:other"]})
    api.delete("/containers/client/db", link=True)
    assert api.inspect("client")["HostConfig"]["Links"] == ["/database:/client/other"]
    assert api.error("DELETE", "/containers/client/db", link=True).status == 404
    assert api.error("DELETE", "/containers/client/db").message == "page not found"
    assert api.error("DELETE", "/containers/client", link=True).status == 400
    api.delete("/containers/database", force=True)
    assert api.inspect("client")["HostConfig"]["Links"] is None
    api.post("/containers/client/start")


def test_links_in_a_network_of_ones_own(api: Api) -> None:
    api.post("/networks/create", {"Name": "own-network"})
    api.run("sleep", "600", name="database", HostConfig={"NetworkMode": "own-network"})
    endpoint = {"EndpointsConfig": {"own-network": {"Links": ["database:db"]}}}
    text = api.output(
        *("nslookup", "-type=a", "db"),
        HostConfig={"NetworkMode": "own-network"},
        NetworkingConfig=endpoint,
    )
    networks = api.inspect("database")["NetworkSettings"]["Networks"]
    assert f"Address: {networks['own-network']['IPAddress']}\n" in text
    # The docker CLI sends them in both places, and those of the default network do not count here.
    wish = {"NetworkMode": "own-network", "Links": ["database:db"]}
    api.output("true", HostConfig=wish, NetworkingConfig=endpoint)


def serving(api: Api, name: str) -> str:
    """Run a container with a server at port 80, which it exposes, and one at 81."""
    script = "nc -ll -p 81 -e echo hello & exec nc -ll -p 80 -e echo hello"
    return api.run("sh", "-c", script, name=name, ExposedPorts={"80/tcp": {}})


def reaches(api: Api, container: str, address: str, port: int) -> bool:
    """Ask a server once, and give it a second."""
    script = f"nc -w 1 {address} {port} < /dev/null"
    return "hello" in exec_output(api, container, "sh", "-c", script)


def test_without_icc_a_link_opens_what_the_other_exposes() -> None:
    with running_engine("--icc=false") as engine:
        api = engine.api
        serving(api, "web")
        address = address_of(api, "web")
        api.run("sleep", "600", name="stranger")
        api.run("sleep", "600", name="client", HostConfig={"Links": ["web:w"]})
        until(lambda: reaches(api, "client", address, 80))
        assert not reaches(api, "client", address, 81)
        assert not reaches(api, "stranger", address, 80)
        # Another engine knows it as well, and a restarted container has it at its new address.
        engine.kill()
        engine.start()
        until(lambda: reaches(api, "client", address, 80))
        api.post("/containers/web/stop", t=0)
        api.run("sleep", "600", name="squatter")
        assert address_of(api, "squatter") == address
        api.post("/containers/web/start")
        moved = address_of(api, "web")
        assert moved != address
        until(lambda: reaches(api, "client", moved, 80))
        api.delete("/containers/client/w", link=True)
        assert not reaches(api, "client", moved, 80)
        options = api.get("/networks/bridge")["Options"]
        assert options["com.docker.network.bridge.enable_icc"] == "false"
