"""Several networks of one container: addresses asked for, and changes while it runs."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess

pytestmark = pytest.mark.root


def network(api: Api, name: str, subnet: str, **fields: Any) -> None:
    ipam = {"Config": [{"Subnet": subnet}]}
    api.post("/networks/create", {"Name": name, "IPAM": ipam, **fields})


def output(api: Api, container: str, *command: str) -> str:
    made = api.post(
        f"/containers/{container}/exec", {"Cmd": list(command), "AttachStdout": True, "Tty": True}
    )["Id"]
    text: bytes = api.post(f"/exec/{made}/start", {"Tty": True})
    return text.decode().replace("\r\n", "\n")


def default_route(api: Api, container: str) -> str:
    """Return where a container sends what goes out, empty for nowhere."""
    lines = output(api, container, "ip", "route").splitlines()
    found = [line.split()[2] for line in lines if line.startswith("default ")]
    assert len(found) <= 1
    return found[0] if found else ""


def connect(api: Api, name: str, container: str, **settings: Any) -> None:
    api.post(f"/networks/{name}/connect", {"Container": container, "EndpointConfig": settings})


def disconnect(api: Api, name: str, container: str) -> None:
    api.post(f"/networks/{name}/disconnect", {"Container": container})


def test_several_networks_with_addresses_from_the_start(api: Api) -> None:
    network(api, "alpha", "10.71.0.0/24")
    network(api, "beta", "10.72.0.0/24")
    endpoints = {
        "alpha": {"IPAMConfig": {"IPv4Address": "10.71.0.50"}, "MacAddress": "02:00:00:00:00:50"},
        "beta": {"IPAMConfig": {"IPv4Address": "10.72.0.60"}, "MacAddress": "02:00:00:00:00:60"},
    }
    container = api.run(
        *("sleep", "600"),
        name="both",
        HostConfig={"NetworkMode": "beta"},
        NetworkingConfig={"EndpointsConfig": endpoints},
    )
    text = output(api, container, "ip", "addr")
    assert text.index("10.72.0.60/24") < text.index("10.71.0.50/24")  # eth0: the network mode's
    assert {"02:00:00:00:00:50", "02:00:00:00:00:60"} <= set(text.split())
    assert default_route(api, container) == "10.71.0.1"  # the first by its name
    shown = api.inspect(container)["NetworkSettings"]["Networks"]
    assert shown["alpha"]["IPAddress"] == "10.71.0.50"
    assert shown["beta"]["MacAddress"] == "02:00:00:00:00:60"
    assert shown["beta"]["DNSNames"] == ["both", container[:12]]
    api.post(f"/containers/{container}/stop", t=0)
    stopped = api.inspect(container)["NetworkSettings"]["Networks"]["beta"]
    assert (stopped["DNSNames"], stopped["IPAddress"]) == (shown["beta"]["DNSNames"], "")
    api.post(f"/containers/{container}/start")
    error = api.error(
        "POST",
        "/networks/alpha/connect",
        {
            "Container": api.run("sleep", "600"),
            "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.71.0.50"}},
        },
    )
    assert "Address already in use" in error.message


def test_an_address_needs_a_subnet_that_somebody_gave(api: Api) -> None:
    api.post("/networks/create", {"Name": "any"})
    subnet = api.get("/networks/any")["IPAM"]["Config"][0]["Subnet"]
    address = subnet.replace(".0/", ".9/").partition("/")[0]
    settings = {"IPAMConfig": {"IPv4Address": address}}
    body = {
        "Image": "busybox",
        "HostConfig": {"NetworkMode": "any"},
        "NetworkingConfig": {"EndpointsConfig": {"any": settings}},
    }
    error = api.error("POST", "/containers/create", body)
    assert error.status == 400
    assert (
        "user specified IP address is supported only when connecting to networks with user "
        "configured subnets"
    ) in error.message


def test_the_default_route_follows_the_networks(api: Api) -> None:
    network(api, "alpha", "10.71.0.0/24")
    network(api, "beta", "10.72.0.0/24", Internal=True)
    network(api, "gamma", "10.73.0.0/24")
    container = api.run("sleep", "600", HostConfig={"NetworkMode": "beta"})
    assert default_route(api, container) == ""
    connect(api, "gamma", container)
    assert default_route(api, container) == "10.73.0.1"
    connect(api, "alpha", container)
    assert default_route(api, container) == "10.71.0.1"
    disconnect(api, "beta", container)
    assert default_route(api, container) == "10.71.0.1"
    disconnect(api, "alpha", container)
    assert default_route(api, container) == "10.73.0.1"
    disconnect(api, "gamma", container)
    assert default_route(api, container) == ""
    connect(api, "alpha", container, IPAMConfig={"IPv4Address": "10.71.0.9"})
    assert default_route(api, container) == "10.71.0.1"
    assert "10.71.0.9/24" in output(api, container, "ip", "addr")


def fetched(engine: EngineProcess, port: str) -> str:
    done = subprocess.run(
        engine.inside_network("busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/page"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout or done.stderr


def published(api: Api, container: str) -> str:
    bindings = api.inspect(container)["NetworkSettings"]["Ports"].get("80/tcp")
    return bindings[0]["HostPort"] if bindings else ""


def test_published_ports_move_to_the_network_that_leads_out(
    api: Api, engine: EngineProcess
) -> None:
    network(api, "alpha", "10.71.0.0/24")
    network(api, "inner", "10.72.0.0/24", Internal=True)
    network(api, "omega", "10.73.0.0/24")
    script = "mkdir /tmp/www; echo here > /tmp/www/page; exec httpd -f -p 80 -h /tmp/www"
    container = api.run(
        *("sh", "-c", script),
        HostConfig={"NetworkMode": "inner", "PortBindings": {"80/tcp": [{}]}},
        ExposedPorts={"80/tcp": {}},
    )
    assert published(api, container) == ""
    connect(api, "omega", container)
    port = published(api, container)
    assert fetched(engine, port) == "here\n"
    connect(api, "alpha", container)
    assert fetched(engine, port) == "here\n"
    disconnect(api, "omega", container)
    assert published(api, container) == port
    assert fetched(engine, port) == "here\n"
    disconnect(api, "alpha", container)
    assert published(api, container) == ""
    assert "refused" in fetched(engine, port)


def test_networks_that_allow_no_other(api: Api) -> None:
    network(api, "alpha", "10.71.0.0/24")
    for name, mode, target, text in (
        ("wide", "host", "alpha", "sharing network namespace with another container or host"),
        ("lone", "none", "alpha", "networks in private (none) mode"),
        ("guest", "container:lone", "alpha", "sharing network namespace with another"),
        ("usual", "bridge", "host", "cannot be disconnected from host network or connected to"),
        ("other", "bridge", "none", "networks in private (none) mode"),
    ):
        api.run("sleep", "600", name=name, HostConfig={"NetworkMode": mode})
        error = api.error("POST", f"/networks/{target}/connect", {"Container": name})
        assert (error.status, text in error.message) == (400, True), error.message
    error = api.error("POST", "/networks/host/disconnect", {"Container": "wide"})
    assert error.status == 400
    error = api.error("POST", "/networks/alpha/disconnect", {"Container": "ghost", "Force": True})
    assert (error.status, error.message) == (404, "endpoint ghost not found")


def test_ipv6_of_a_container_follows_its_networks(api: Api) -> None:
    for name, number in (("six", 1), ("sixth", 2)):
        configs = [{"Subnet": f"10.8{number}.0.0/24"}, {"Subnet": f"fd00:8{number}::/64"}]
        wish = {"Name": name, "EnableIPv6": True, "IPAM": {"Config": configs}}
        api.post("/networks/create", wish)
    api.run("sleep", "600", name="target", HostConfig={"NetworkMode": "six"})
    wanted = {"six": {"IPAMConfig": {"IPv6Address": "fd00:81::50"}}}
    container = api.run(
        *("sleep", "600"),
        HostConfig={"NetworkMode": "six"},
        NetworkingConfig={"EndpointsConfig": wanted},
    )
    shown = api.inspect(container)["NetworkSettings"]["Networks"]["six"]
    assert shown["GlobalIPv6Address"] == "fd00:81::50"
    assert (shown["GlobalIPv6PrefixLen"], shown["IPv6Gateway"]) == (64, "fd00:81::1")
    assert "fd00:81::50\t" in output(api, container, "cat", "/etc/hosts")
    assert "fd00:81::2" in output(api, container, "nslookup", "-type=AAAA", "target")
    answer = output(api, container, "nslookup", "fd00:81::2")
    assert "target.six" in answer
    assert "via fd00:81::1 " in output(api, container, "ip", "-6", "route")
    connect(api, "sixth", container)
    assert "via fd00:81::1 " in output(api, container, "ip", "-6", "route")
    disconnect(api, "six", container)
    routes = output(api, container, "ip", "-6", "route")
    assert "via fd00:82::1 " in routes
    assert "fd00:81:" not in routes
    disconnect(api, "sixth", container)
    assert "default" not in output(api, container, "ip", "-6", "route")


def test_a_network_that_is_gone_can_be_left(api: Api) -> None:
    """Else a stopped container that was in it could never start again."""
    network(api, "alpha", "10.71.0.0/24")
    network(api, "beta", "10.72.0.0/24")
    container = api.create("sleep", "600", HostConfig={"NetworkMode": "alpha"})
    connect(api, "beta", container)
    api.delete("/networks/beta")
    error = api.error("POST", f"/containers/{container}/start")
    assert (error.status, error.message) == (404, "network beta not found")
    assert api.get("/networks/alpha")["Containers"] == {}, "a start that fails leaves nothing"
    disconnect(api, "beta", container)
    assert api.error("POST", "/networks/beta/disconnect", {"Container": container}).status == 404
    api.post(f"/containers/{container}/start")
    assert api.inspect(container)["NetworkSettings"]["Networks"].keys() == {"alpha"}


def test_link_local_addresses_beside_the_networks_own(api: Api) -> None:
    network(api, "alpha", "10.71.0.0/24")
    container = api.run("sleep", "600")
    for wrong in ("nonsense", "10.9.9.9"):
        body = {"Container": container, "EndpointConfig": {"IPAMConfig": {"LinkLocalIPs": [wrong]}}}
        error = api.error("POST", "/networks/alpha/connect", body)
        assert (error.status, "invalid link-local IP address" in error.message) == (400, True)
    connect(api, "alpha", container, IPAMConfig={"LinkLocalIPs": ["169.254.9.9"]})
    text = output(api, container, "ip", "addr", "show", "eth1")
    assert "169.254.9.9/16" in text
    assert "10.71.0.2/24" in text, "the refused ones took no address"


def test_macvlan_of_a_running_container_comes_and_goes(api: Api, engine: EngineProcess) -> None:
    """Its interface has no end on the machine: it is taken out of the namespace itself."""
    make = "ip link add mv0 type veth peer name mv1 && ip link set mv0 up && ip link set mv1 up"
    subprocess.run(engine.inside_network("sh", "-c", make), check=True)
    try:
        config = {"Subnet": "10.73.0.0/24", "Gateway": "10.73.0.254"}
        body = {"Driver": "macvlan", "Options": {"parent": "mv0"}, "IPAM": {"Config": [config]}}
        api.post("/networks/create", {"Name": "lan", **body})
        first = api.run("sleep", "600", name="first", HostConfig={"NetworkMode": "lan"})
        second = api.run("sleep", "600", name="second")
        assert default_route(api, first) == "10.73.0.254"
        assert default_route(api, second) == "172.17.0.1"
        connect(api, "lan", second, Aliases=["later"], IPAMConfig={"IPv4Address": "10.73.0.9"})
        assert "64 bytes from 10.73.0.9" in output(api, first, "ping", "-c", "1", "later")
        disconnect(api, "lan", second)
        assert "eth1" not in output(api, second, "ip", "addr")
        connect(api, "lan", second, IPAMConfig={"IPv4Address": "10.73.0.9"})
        assert "10.73.0.9/24" in output(api, second, "ip", "addr")

        sharer = api.run("sleep", "600", HostConfig={"NetworkMode": f"container:{first}"})
        assert "10.73.0.1/24" in output(api, sharer, "ip", "addr")
        api.post(f"/containers/{first}/kill")
        api.wait(first)
        assert "eth0" not in output(api, sharer, "ip", "addr"), "its address may be given again"
        assert api.get("/networks/lan")["Containers"].keys() == {second}
        api.delete(f"/containers/{second}", force=True)
        api.delete("/networks/lan")
    finally:
        subprocess.run(engine.inside_network("ip", "link", "delete", "mv0"), check=True)
