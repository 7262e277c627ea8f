"""What networks refuse: each refusal has its own words, and leaves no interface, rule or namespace
behind that was not there before."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord

from deskd.domain.network import NetworkCreateRequest
from deskd.errors import Unsupported
from deskd.kernel import netlink
from deskd.network.service import NetworkService
from deskd.settings import Settings
from tests.engine.network_machine import ROOT, shell
from tests.engine_process import Api, ApiError, EngineProcess
from tests.network_namespaces import link_names, run_in_namespace
from tests.network_records import MemoryRecords

pytestmark = pytest.mark.root


def shown(engine: EngineProcess, *command: str) -> str:
    done = subprocess.run(engine.inside_network(*command), check=True, capture_output=True)
    return done.stdout.decode()


def namespaces(engine: EngineProcess) -> set[str]:
    """Return the network namespaces that the engine's containers and monitors are in."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if engine.cgroup_parent in (entry / "cgroup").read_text():
                found.add(str((entry / "ns/net").readlink()))
    return found


def count(engine: EngineProcess) -> dict[str, Any]:
    return {
        "interfaces": shown(engine, "ip", "-o", "link").count("\n"),
        "rules": shown(engine, "nft", "list", "ruleset"),
        "namespaces": namespaces(engine),
        "networks": len(engine.api.get("/networks")),
        "listening": shown(engine, "ss", "-Htuln").count("\n"),
    }


@pytest.fixture
def nothing_stray(engine: EngineProcess) -> Iterator[None]:
    """Two networks and a container, whose network has all that a test may be refused; counted
    before and after."""
    for name, subnet in (("lan", "10.61.0.0/24"), ("other", "10.62.0.0/24")):
        wish = {"Name": name, "IPAM": {"Config": [{"Subnet": subnet}]}}
        engine.api.post("/networks/create", wish)
    ports = {"80/tcp": [{"HostPort": "18061"}]}
    engine.api.run(
        "sleep", "600", name="box", HostConfig={"NetworkMode": "lan", "PortBindings": ports}
    )
    before = count(engine)
    yield
    assert count(engine) == before


def refused(api: Api, path: str, body: dict[str, Any]) -> tuple[int, str]:
    error = api.error("POST", path, body)
    assert "\n" not in error.message
    return error.status, error.message


def create(api: Api, name: str, *configs: dict[str, Any], **fields: Any) -> tuple[int, str]:
    body = {"Name": name, "IPAM": {"Config": list(configs)}, **fields}
    return refused(api, "/networks/create", body)


def start(api: Api, **fields: Any) -> ApiError:
    """Make a container that cannot start, try, and remove it."""
    container = api.create("sleep", "600", **fields)
    try:
        return api.error("POST", f"/containers/{container}/start")
    finally:
        api.delete(f"/containers/{container}", force=True)


@pytest.mark.usefixtures("nothing_stray")
def test_overlapping_subnets(api: Api) -> None:
    for subnet in ("10.61.0.0/24", "10.61.0.64/26", "10.60.0.0/14", "0.0.0.0/0"):
        status, message = create(api, "new", {"Subnet": subnet})
        assert status == 403
        assert "Pool overlaps with other one on this address space" in message


@pytest.mark.usefixtures("nothing_stray")
def test_taken_port_of_another_container(api: Api) -> None:
    ports = {"81/tcp": [{"HostPort": "18062"}], "80/tcp": [{"HostPort": "18061"}]}
    error = start(api, HostConfig={"NetworkMode": "lan", "PortBindings": ports})
    assert error.status == 500
    assert "18061" in error.message
    assert "port is already allocated" in error.message


@pytest.mark.usefixtures("nothing_stray")
def test_taken_port_of_a_program(api: Api, engine: EngineProcess) -> None:
    program = "import socket, sys; s = socket.create_server(('', 18063)); print(); sys.stdin.read()"
    with subprocess.Popen(
        engine.inside_network("python3", "-c", program),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as taker:
        assert taker.stdout is not None
        taker.stdout.readline()
        ports = {"80/tcp": [{"HostPort": "18063"}]}
        error = start(api, HostConfig={"NetworkMode": "lan", "PortBindings": ports})
        taker.communicate()
    assert error.status == 500
    assert "Bind for 0.0.0.0:18063 failed" in error.message


@pytest.mark.usefixtures("nothing_stray")
def test_taken_addresses(api: Api) -> None:
    """Another container's, the gateway's, and the broadcast address."""
    for address in ("10.61.0.2", "10.61.0.1", "10.61.0.255"):
        wish = {"EndpointsConfig": {"lan": {"IPAMConfig": {"IPv4Address": address}}}}
        error = start(api, HostConfig={"NetworkMode": "lan"}, NetworkingConfig=wish)
        assert error.status == 403
        assert f"Address already in use: {address}" in error.message


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("lan", {"MacAddress": "nonsense"}, "invalid MAC address 'nonsense'"),
    ("lan", {"MacAddress": "01:00:5e:00:00:01"}, "write a unicast one"),
    ("lan", {"IPAMConfig": {"IPv4Address": "nonsense"}}, "invalid IPv4 address: nonsense"),
    ("lan", {"IPAMConfig": {"IPv4Address": "fd00::1"}}, "invalid IPv4 address: fd00::1"),
    ("lan", {"IPAMConfig": {"IPv6Address": "fd00::1"}}, "network lan has no IPv6"),
    ("lan", {"IPAMConfig": {"LinkLocalIPs": ["10.1.1.1"]}}, "invalid link-local IP address"),
    ("lan", {"IPAMConfig": {"IPv4Address": "10.64.0.9"}}, "contains the IP address 10.64.0.9"),
    ("bridge", {"IPAMConfig": {"IPv4Address": "172.17.0.9"}}, "on user defined networks only"),
    ("bridge", {"Aliases": ["other"]}, "network-scoped alias is supported only for containers"),
]


@pytest.mark.usefixtures("nothing_stray")
def test_wishes_that_no_network_grants(api: Api) -> None:
    """Refused before there is a container, and where one is to be connected."""
    waiting = api.create("sleep", "600", HostConfig={"NetworkMode": "none"})
    api.post("/networks/none/disconnect", {"Container": waiting})
    listed = api.get("/containers/json", all=True)
    for network, wish, text in IMPOSSIBLE:
        body = {
            "Image": "busybox",
            "HostConfig": {"NetworkMode": network},
            "NetworkingConfig": {"EndpointsConfig": {network: wish}},
        }
        status, message = refused(api, "/containers/create", body)
        assert (status, text in message) == (400, True), message
        assert message.startswith(f"invalid config for network {network}: ")
        body = {"Container": waiting, "EndpointConfig": wish}
        status, message = refused(api, f"/networks/{network}/connect", body)
        assert (status, text in message) == (400, True), message
    assert api.get("/containers/json", all=True) == listed
    api.delete(f"/containers/{waiting}")


@pytest.mark.usefixtures("nothing_stray")
def test_removal_of_a_network_in_use(api: Api) -> None:
    error = api.error("DELETE", "/networks/lan")
    assert error.status == 403
    assert "network lan id" in error.message
    assert "has active endpoints" in error.message
    assert (
        api.post("/networks/prune", filters={"label": ["none-has-it"]})["NetworksDeleted"] is None
    )


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"Subnet": "10.300.0.0/24"}, "invalid subnet 10.300.0.0/24: invalid CIDR block notation"),
    ({"Subnet": "10.63.0.0/33"}, "invalid subnet 10.63.0.0/33: invalid CIDR block notation"),
    ({"Subnet": "10.63.0.0"}, "invalid subnet 10.63.0.0: invalid CIDR block notation"),
    ({"Subnet": "10.63.0.9/24"}, "invalid subnet 10.63.0.9/24: it should be 10.63.0.0/24"),
    ({"Subnet": "fd00::g/64"}, "invalid subnet fd00::g/64: invalid CIDR block notation"),
    ({"Subnet": "x" * 300 + "/24"}, "invalid CIDR block notation"),
    ({"Subnet": "10.63.0.0/32"}, "leaves no address for containers"),
    ({"Subnet": "224.0.0.0/24"}, "is reserved"),
    ({"Gateway": "10.63.0.1"}, "need a subnet"),
    ({"Subnet": "10.63.0.0/24", "Gateway": "10.64.0.1"}, "gateway 10.64.0.1 is no usable"),
    ({"Subnet": "10.63.0.0/24", "Gateway": "nonsense"}, "gateway nonsense is not an IP"),
    ({"Subnet": "10.63.0.0/24", "IPRange": "10.64.0.0/25"}, "does not lie in the subnet"),
    ({"Subnet": "10.63.0.0/24", "IPRange": "10.63.0.0/2"}, "invalid subnet 10.63.0.0/2"),
    (
        {"Subnet": "10.63.0.0/24", "AuxiliaryAddresses": {"a": "10.64.0.1"}},
        "auxiliary address a 10.64.0.1 is no usable",
    ),
]


@pytest.mark.usefixtures("nothing_stray")
def test_nonsense_cidrs(api: Api) -> None:
    for config, text in NONSENSE:
        status, message = create(api, "new", config)
        assert (status, text in message) == (400, True), message


@pytest.mark.usefixtures("nothing_stray")
def test_names_with_escapes(api: Api) -> None:
    for name in ("a\x1b[2Jb", "a\nb", "../../etc", "a b", "", "-a", '"; drop', "é", "a/b", "\r"):
        status, message = create(api, name, {"Subnet": "10.63.0.0/24"})
        assert status == 400
        assert "invalid network name" in message
        assert message.isprintable(), "an error quotes nothing that moves somebody's cursor"
    assert create(api, "a\0b")[0] == 400


@pytest.mark.usefixtures("nothing_stray")
def test_interface_names_of_more_than_15_characters(api: Api) -> None:
    options = (("bridge", "com.docker.network.bridge.name"), ("macvlan", "parent"))
    for name in ("sixteen-letters!", "b" * 16, "a\x1b[2J"):
        for driver, option in options:
            config = {"Subnet": "10.63.0.0/24"}
            status, message = create(api, "new", config, Driver=driver, Options={option: name})
            assert status == 400
            assert "at most 15" in message
            assert repr(name) in message
            assert message.isprintable()


@pytest.mark.usefixtures("nothing_stray")
def test_fuzzed_dns_packets(api: Api, engine: EngineProcess) -> None:
    """Damaged, cut and random ones at a container's name server, by UDP and TCP."""
    chance = random.Random(7)
    good = bytes(DNSRecord.question("box").pack())
    packets = [chance.randbytes(chance.randrange(600)) for _ in range(200)]
    for _ in range(300):
        packet = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        packets.append(bytes(packet[: chance.randrange(len(packet) + 1)]))
    lines = "".join(packet.hex() + "\n" for packet in packets)
    script = """
import socket, sys
sent = [bytes.fromhex(line) for line in sys.stdin]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect(("127.0.0.11", 53))
    for packet in sent:
        try:
            one.send(packet)
        except ConnectionRefusedError:
            sys.exit("nobody listens")
for packet in sent[::10]:
    with socket.create_connection(("127.0.0.11", 53), 60) as one:
        one.sendall(len(packet).to_bytes(2, "big") + packet)
print("sent")
"""
    pid = api.inspect("box")["State"]["Pid"]
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "python3", "-c", script],
        input=lines.encode(), capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"sent\n"), done.stderr
    ask = ["nsenter", f"--net=/proc/{pid}/ns/net", "/bin/busybox", "nslookup", "box", "127.0.0.11"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=120).stdout
    assert "10.61.0.2" in answer
    assert engine.process is not None
    assert engine.process.poll() is None


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_a_kernel_without_veth_or_bridges(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked for a kind that no kernel has, and gives the answer of one without."""
    real = netlink.probe_kind

    def without(asked: str) -> bytes:
        return real("no-such-kind" if asked == kind else asked)

    async def body() -> None:
        monkeypatch.setattr(netlink, "probe_kind", without)
        service = NetworkService(Settings(data_root=ROOT), MemoryRecords())
        before = link_names(), shell("nft list ruleset"), shell("ls /run/netns | sort")
        for _ in range(2):
            with pytest.raises(Unsupported, match=f"no {kind} links.*CONFIG_{kind.upper()}"):
                await service.ready()
            with pytest.raises(Unsupported, match=f"CONFIG_{kind.upper()}"):
                await service.create(NetworkCreateRequest(name="new"))
        assert {network.name for network in await service.list_networks()} == {
            "bridge",
            "host",
            "none",
        }, "they are listed all the same"
        await service.close()
        assert (link_names(), shell("nft list ruleset")) == before[:2]

    run_in_namespace(body)
