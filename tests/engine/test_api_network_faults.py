"""Network faults between real containers: who reaches whom, for how long, and what is left."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from tests.engine_process import Api, ApiError, EngineProcess, until

pytestmark = pytest.mark.root

FAULTS = "/desk/faults"


def run_in(api: Api, container: str, script: str) -> tuple[int, str]:
    """Run a shell script in a container; return its exit code and what it printed."""
    made = api.post(
        f"/containers/{container}/exec",
        {"Cmd": ["sh", "-c", script], "AttachStdout": True, "AttachStderr": True, "Tty": True},
    )["Id"]
    text: bytes = api.post(f"/exec/{made}/start", {"Tty": True})
    return api.get(f"/exec/{made}/json")["ExitCode"], text.decode().replace("\r\n", "\n")


def reaches(api: Api, source: str, target: str, *, wait_s: int = 20) -> bool:
    return run_in(api, source, f"ping -c 1 -W {wait_s} {target}")[0] == 0


def misses(api: Api, source: str, target: str) -> bool:
    return not reaches(api, source, target, wait_s=1)


@pytest.fixture
def trio(api: Api) -> tuple[str, str, str]:
    """Three containers, n1 to n3, in the network net."""
    api.post("/networks/create", {"Name": "net"})
    names = ("n1", "n2", "n3")
    for name in names:
        api.run("sleep", "600", name=name, HostConfig={"NetworkMode": "net"})
    return names


def add(api: Api, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = api.post(FAULTS, {"Network": "net", **fields})
    return made


def in_kernel(engine: EngineProcess) -> list[str]:
    """Return what faults have put into the kernel: their tables, and their queues."""
    rules = subprocess.run(
        engine.inside_network("nft", "list", "tables"), check=True, capture_output=True, text=True
    ).stdout
    queues = subprocess.run(
        engine.inside_network("tc", "qdisc", "show"), check=True, capture_output=True, text=True
    ).stdout
    return [line for line in rules.splitlines() if line.endswith("_faults")] + [
        line for line in queues.splitlines() if "qdisc htb" in line
    ]


def interface_of(api: Api, container: str) -> str:
    """Return the name of the end of a container's link that is on the machine."""
    endpoint = api.inspect(container)["NetworkSettings"]["Networks"]["net"]["EndpointID"]
    return f"veth{endpoint[:7]}"


def test_groups_of_a_partition_cannot_see_each_other(
    api: Api, engine: EngineProcess, trio: tuple[str, str, str]
) -> None:
    api.run("sleep", "600", name="client", HostConfig={"NetworkMode": "net"})
    assert reaches(api, "n1", "n2")
    made = add(api, Partition=[["n1"], ["n2", "n3"]])
    assert (made["Name"], made["Kind"], made["Network"]) == ("partition1", "partition", "net")
    assert made["Partition"] == [["n1"], ["n2", "n3"]]
    assert misses(api, "n1", "n2")
    assert misses(api, "n3", "n1")
    assert reaches(api, "n2", "n3")
    # Whoever is in no group sees both sides.
    assert reaches(api, "client", "n1")
    assert reaches(api, "client", "n2")
    assert api.delete(f"{FAULTS}/partition1") == b""
    assert reaches(api, "n1", "n2")
    assert in_kernel(engine) == []
    assert api.get(FAULTS) == []


def test_one_group_is_apart_from_everyone_also_who_comes_later(
    api: Api, trio: tuple[str, str, str]
) -> None:
    add(api, Partition=[["n1", "n2"]])
    assert misses(api, "n3", "n1")
    assert reaches(api, "n1", "n2")
    api.run("sleep", "600", name="late", HostConfig={"NetworkMode": "net"})
    assert misses(api, "late", "n1")
    assert reaches(api, "late", "n3")
    api.post("/containers/n1/restart", t=0)
    assert misses(api, "n1", "n3")
    assert reaches(api, "n1", "n2")
    api.post("/networks/net/disconnect", {"Container": "n1"})
    api.post("/networks/net/connect", {"Container": "n1"})
    assert misses(api, "n1", "n3")


def test_a_partition_holds_on_the_detour_by_a_published_port(
    api: Api, engine: EngineProcess, trio: tuple[str, str, str]
) -> None:
    script = "mkdir /w; echo here >/w/page; exec httpd -f -p 80 -h /w"
    api.run(
        *("sh", "-c", script),
        name="web",
        HostConfig={"NetworkMode": "net", "PortBindings": {"80/tcp": [{}]}},
        ExposedPorts={"80/tcp": {}},
    )
    port = api.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
    gateway = api.get("/networks/net")["IPAM"]["Config"][0]["Gateway"]
    page = f"http://{gateway}:{port}/page"
    until(lambda: run_in(api, "n1", f"wget -q -O - {page}") == (0, "here\n"))
    add(api, Partition=[["web"], ["n1"]])
    assert run_in(api, "n1", f"timeout 2 wget -q -O - {page}")[0] != 0
    # The machine itself, and so the laptop, is on no side.
    fetch = engine.inside_network(
        "busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/page"
    )
    assert subprocess.run(fetch, capture_output=True, timeout=60).stdout == b"here\n"


def echoes_heard(api: Api, container: str) -> int:
    """Return how many pings a container has got, answered or not."""
    code, text = run_in(api, container, "grep ^Icmp: /proc/net/snmp")
    assert code == 0
    names, values = (line.split() for line in text.splitlines())
    return int(values[names.index("InEchos")])


@pytest.mark.parametrize("subnets", [("10.71.0.0/24", "fd00:71::/64"), ("fd00:71::/64",)])
def test_faults_hold_in_both_families(api: Api, subnets: tuple[str, ...]) -> None:
    """In a network of both, and in one of IPv6 alone: neither family is a way around."""
    wish = {"EnableIPv6": True, "EnableIPv4": len(subnets) == 2}
    config = {"Config": [{"Subnet": subnet} for subnet in subnets]}
    api.post("/networks/create", {"Name": "net", "IPAM": config, **wish})
    for name in ("n1", "n2", "n3"):
        api.run("sleep", "600", name=name, HostConfig={"NetworkMode": "net"})
    places = {
        name: api.inspect(name)["NetworkSettings"]["Networks"]["net"] for name in ("n1", "n2", "n3")
    }

    def addresses(name: str) -> list[str]:
        found = (places[name]["IPAddress"], places[name]["GlobalIPv6Address"])
        return [address for address in found if address]

    assert len(addresses("n2")) == len(subnets)
    assert all(reaches(api, "n1", address) for address in addresses("n2"))
    add(api, Partition=[["n1"], ["n2"]], Name="apart")
    assert all(misses(api, "n1", address) for address in addresses("n2"))
    assert all(misses(api, "n2", address) for address in addresses("n1"))
    assert all(reaches(api, "n1", address) for address in addresses("n3"))
    api.delete("/desk/faults/apart")
    assert all(reaches(api, "n1", address) for address in addresses("n2"))
    add(api, From=["n1"], To=["n2"], Block=True, Name="deaf")
    assert all(misses(api, "n1", address) for address in addresses("n2"))
    api.delete("/desk/faults/deaf")
    assert all(reaches(api, "n1", address) for address in addresses("n2"))


def test_one_direction_is_severed(api: Api, trio: tuple[str, str, str]) -> None:
    made = add(api, Block=True, From=["n1"], To=["n2"])
    assert (made["Kind"], made["From"], made["To"]) == ("block", ["n1"], ["n2"])
    assert misses(api, "n1", "n2")
    assert echoes_heard(api, "n2") == 0
    # The other direction goes on, though n1's answers to it do not arrive.
    assert misses(api, "n2", "n1")
    assert echoes_heard(api, "n1") == 1
    assert reaches(api, "n3", "n2")
    assert reaches(api, "n3", "n1")
    api.delete(FAULTS)
    assert reaches(api, "n1", "n2")


def test_the_bandwidth_of_a_link(
    api: Api, engine: EngineProcess, trio: tuple[str, str, str]
) -> None:
    script = "mkdir /w; head -c 1000000 /dev/zero >/w/page; exec httpd -f -p 80 -h /w"
    api.run("sh", "-c", script, name="web", HostConfig={"NetworkMode": "net"})
    fetch = "wget -q -O - http://web/page | wc -c"
    until(lambda: run_in(api, "n1", fetch) == (0, "1000000\n"))
    add(api, From=["web"], To=["n1"], Link={"BandwidthBits": 2_000_000})
    begun = time.monotonic()
    assert run_in(api, "n1", fetch) == (0, "1000000\n")
    # 8 million bits at 2 million a second; only faster than that would be wrong.
    assert time.monotonic() - begun > 3.5
    shown = subprocess.run(
        engine.inside_network("tc", "-s", "class", "show", "dev", interface_of(api, "n1")),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "rate 2Mbit ceil 2Mbit" in shown
    # n2 is not concerned: it has no queue.
    assert len([line for line in in_kernel(engine) if "qdisc" in line]) == 1
    add(api, From=["web"], Link={"BandwidthBits": 1_000_000}, Name="slower")
    assert len([line for line in in_kernel(engine) if "qdisc" in line]) == 3
    api.delete(f"{FAULTS}/slower")
    assert len([line for line in in_kernel(engine) if "qdisc" in line]) == 1
    api.delete(FAULTS)
    assert in_kernel(engine) == []


def test_a_container_is_never_without_its_fault(
    api: Api, engine: EngineProcess, trio: tuple[str, str, str]
) -> None:
    add(api, Link={"BandwidthBits": 5_000_000})

    def classes(container: str) -> int:
        command = ("tc", "class", "show", "dev", interface_of(api, container))
        shown = subprocess.run(
            engine.inside_network(*command), check=True, capture_output=True, text=True
        )
        return len([line for line in shown.stdout.splitlines() if "5Mbit" in line])

    assert [classes(name) for name in trio] == [2, 2, 2]
    api.run("sleep", "600", name="n4", HostConfig={"NetworkMode": "net"})
    assert [classes(name) for name in (*trio, "n4")] == [3, 3, 3, 3]
    api.delete("/containers/n1", force=True)
    assert [classes(name) for name in ("n2", "n3", "n4")] == [2, 2, 2]
    # Containers that start at once find each other's queues, too.
    made = [
        api.create("sleep", "600", name=f"m{number}", HostConfig={"NetworkMode": "net"})
        for number in range(4)
    ]
    start_all(api, made)
    until(lambda: [classes(name) for name in ("n2", *made)] == [6] * 5)


def start_all(api: Api, containers: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: api.post(f"/containers/{name}/start"), containers))


def test_a_fault_heals_by_itself(api: Api, trio: tuple[str, str, str]) -> None:
    with api.events(filters={"type": ["network"], "event": ["fault", "heal"]}) as events:
        made = add(api, Partition=[["n1"], ["n2"]], DurationMs=1500, Name="short")
        assert 0 < made["RemainingMs"] <= 1500
        assert made["Ends"] > made["Created"]
        begun, healed = next(events), next(events)
    assert (begun["Action"], healed["Action"]) == ("fault", "heal")
    assert healed["Actor"]["ID"] == api.get("/networks/net")["Id"]
    assert healed["Actor"]["Attributes"] == {
        "fault": "short",
        "kind": "partition",
        "name": "net",
        "type": "bridge",
        "reason": "its time is over",
    }
    assert api.get(FAULTS) == []
    assert reaches(api, "n1", "n2")


def test_faults_go_with_their_containers_and_networks(
    api: Api, engine: EngineProcess, trio: tuple[str, str, str]
) -> None:
    add(api, Partition=[["n1"], ["n2"], ["n3"]], Name="three")
    add(api, Block=True, From=["n1"], To=["n2"], Name="way")
    add(api, Link={"BandwidthBits": 1_000_000}, Name="all")
    api.post("/containers/n1/stop", t=0)
    assert len(api.get(FAULTS)) == 3  # it may start again
    with api.events(filters={"event": ["heal"]}) as events:
        api.delete("/containers/n1")
        assert next(events)["Actor"]["Attributes"]["fault"] == "way"
    assert api.get(f"{FAULTS}/three")["Partition"] == [["n2"], ["n3"]]
    api.delete("/containers/n2", force=True)
    until(lambda: [fault["Name"] for fault in api.get(FAULTS)] == ["all"])
    api.delete("/containers/n3", force=True)
    until(lambda: in_kernel(engine) == [])
    api.delete("/networks/net")
    assert api.get(FAULTS) == []


def test_dns_faults(api: Api, trio: tuple[str, str, str]) -> None:
    def asked(container: str, name: str) -> str:
        return run_in(api, container, f"nslookup -type=a {name} 127.0.0.11")[1]

    assert "Address" in asked("n1", "n2").partition("Name:")[2]
    add(api, Dns={"Answer": "servfail", "Names": ["N2"]}, From=["n1"], Name="one")
    assert "SERVFAIL" in asked("n1", "n2")
    assert "Name:" in asked("n1", "n3")
    assert "Name:" in asked("n3", "n2")
    api.delete(f"{FAULTS}/one")
    assert "Name:" in asked("n1", "n2")
    add(api, Dns={"Answer": "nxdomain", "Names": ["*.example", "n3"]})
    assert "NXDOMAIN" in asked("n1", "db.example")
    assert "NXDOMAIN" in asked("n2", "n3")
    api.delete(FAULTS)
    made = add(api, Dns={"Answer": "slow", "DelayMs": 1200, "Names": ["n3"]})
    assert made["Dns"] == {"Answer": "slow", "DelayMs": 1200, "Names": ["n3"]}
    begun = time.monotonic()
    assert "Name:" in asked("n1", "n3")
    assert time.monotonic() - begun > 1.0
    api.delete(FAULTS)
    add(api, Dns={"Answer": "none"}, From=["n1"])
    assert "timed out" in run_in(api, "n1", "timeout 60 nslookup n2 127.0.0.11")[1]
    api.delete(FAULTS)
    assert "Name:" in asked("n1", "n2")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_faults_outlive_the_engine(own_engine: EngineProcess, how: str) -> None:
    api = own_engine.api
    own_engine.load_image()
    api.post("/networks/create", {"Name": "net"})
    for name in ("n1", "n2", "n3", "gone"):
        api.run("sleep", "600", name=name, HostConfig={"NetworkMode": "net"})
    add(api, Partition=[["n1"], ["n2"]], Name="stays")
    add(api, From=["n3"], Link={"BandwidthBits": 3_000_000}, Name="slow")
    add(api, Partition=[["n2"], ["n3"]], DurationMs=1000, Name="short")
    add(api, Dns={"Answer": "servfail"}, From=["n1"], Name="names")
    getattr(own_engine, how)()
    tables = subprocess.run(
        own_engine.inside_network("nft", "list", "tables"), capture_output=True, text=True
    ).stdout
    assert "_faults" in tables  # without an engine, too
    time.sleep(1.1)  # until the time of "short" is over
    own_engine.start()
    assert [fault["Name"] for fault in api.get(FAULTS)] == ["stays", "slow", "names"]
    assert misses(api, "n1", api_address(api, "n2"))  # its names do not resolve
    until(lambda: reaches(api, "n2", "n3", wait_s=5))
    until(lambda: len([line for line in in_kernel(own_engine) if "qdisc" in line]) == 3)
    assert "SERVFAIL" in run_in(api, "n1", "nslookup -type=a n2 127.0.0.11")[1]
    api.delete(FAULTS)
    assert reaches(api, "n1", "n2")
    assert in_kernel(own_engine) == []


def api_address(api: Api, container: str) -> str:
    address: str = api.inspect(container)["NetworkSettings"]["Networks"]["net"]["IPAddress"]
    return address


def test_what_cannot_be_is_refused(api: Api, engine: EngineProcess) -> None:
    api.post("/networks/create", {"Name": "net"})
    api.post("/networks/create", {"Name": "other"})
    api.run("sleep", "600", name="n1", HostConfig={"NetworkMode": "net"})
    api.run("sleep", "600", name="n2", HostConfig={"NetworkMode": "net"})
    api.run("sleep", "600", name="lone", HostConfig={"NetworkMode": "other"})
    api.run("sleep", "600", name="guest", HostConfig={"NetworkMode": "container:n1"})
    for fields, status, text in (
        ({}, 400, "but nothing was asked for"),
        ({"Block": True, "Partition": [["n1"]]}, 400, "a partition and a block was asked for"),
        ({"Partition": [["n1"], []]}, 400, "a group of a partition is empty"),
        ({"Partition": [["n1"], ["n1"]]}, 400, "container n1 is in two groups"),
        ({"Partition": [["n1"], ["ghost"]]}, 404, "No such container: ghost"),
        ({"Partition": [["n1"], ["lone"]]}, 400, "container lone is not in the network net"),
        ({"Partition": [["n2"], ["guest"]]}, 400, "container guest shares the network of n1"),
        ({"Block": True, "Network": "ghost"}, 404, "network ghost not found"),
        ({"Block": True, "Network": "host"}, 400, "network host cannot have faults"),
        ({"Block": True, "Network": ""}, 400, "name a network"),
        ({"Block": True, "From": ["n1"], "To": ["n1"]}, 400, "there is no link from n1 to itself"),
        ({"Block": True, "Between": ["n1"]}, 400, "between n1 and nobody"),
        ({"Block": True, "Between": ["n1", "n2"], "To": ["n1"]}, 400, "cannot both be named"),
        ({"Block": True, "Name": "../x"}, 400, "invalid fault name '../x'"),
        ({"Block": True, "DurationMs": -1}, 400, "a fault cannot last -1 ms"),
        ({"Link": {"LossPercent": 101}}, 400, "a loss of 101 % cannot be"),
        ({"Link": {"LatencyMs": 5, "JitterMs": 6}}, 400, "a jitter of 6 ms needs"),
        ({"Link": {"ReorderPercent": 5}}, 400, "reordering needs latency"),
        ({"Link": {"BandwidthBits": 10}}, 400, "a bandwidth of 10 bits per second"),
        ({"Link": {"LatencyMs": "fast"}}, 400, "LatencyMs"),
        ({"Dns": {"Answer": "maybe"}}, 400, "invalid DNS answer 'maybe'"),
        ({"Dns": {"Answer": "none", "Names": ["a b"]}}, 400, "invalid DNS name 'a b'"),
        ({"Dns": {"Answer": "none"}, "To": ["n1"]}, 400, "concerns those who ask"),
        ({"Dns": {"Answer": "none"}, "Network": "bridge"}, 400, "need a network of your own"),
    ):
        error = api.error("POST", FAULTS, {"Network": "net", **fields})
        assert (error.status, text in error.message) == (status, True), (fields, error.message)
    assert api.error("DELETE", f"{FAULTS}/ghost").status == 404
    assert api.error("GET", f"{FAULTS}/ghost").status == 404
    assert api.error("GET", FAULTS, network="ghost").status == 404
    assert (api.get(FAULTS), in_kernel(engine)) == ([], [])
    # Without a network: the one that those who are named have in common.
    assert add(api, Network="", Block=True, Between=["n1", "n2"])["Network"] == "net"
    error = api.error("POST", FAULTS, {"Block": True, "Between": ["n1", "lone"]})
    assert "n1, lone are not in one bridge network" in error.message
    error = api.error("POST", FAULTS, {"Network": "net", "Block": True, "Name": "block1"})
    assert (error.status, "exists already" in error.message) == (409, True)


def test_a_kernel_without_netem_says_so(api: Api, trio: tuple[str, str, str]) -> None:
    """Where it has netem, the same request is fulfilled."""
    try:
        add(api, Link={"LatencyMs": 1})
    except ApiError as error:
        text = str(error)
        assert text.startswith("501: the kernel has no netem queues"), text
        assert "CONFIG_NET_SCH_NETEM" in text
        assert api.get(FAULTS) == []
    else:
        assert reaches(api, "n1", "n2")
    add(api, Link={"BandwidthBits": 1_000_000})
    assert reaches(api, "n1", "n2")
