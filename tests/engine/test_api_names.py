"""Names in user-defined networks, asked by real resolvers in real containers: glibc (the host's
``getent`` and Python), BusyBox's ``nslookup``, and packets written by hand."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord

from tests.engine_process import REPOSITORY, Api, EngineProcess

pytestmark = pytest.mark.root

HOST_PROGRAMS = ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"]
"""Binds that give a BusyBox container the host's programs with their C library."""
UPSTREAM, SECOND_UPSTREAM, NOBODY = "192.0.2.53", "192.0.2.54", "192.0.2.99"
"""Addresses of the machine that containers do not have themselves, and one that nobody has."""

ASK = """
import json, socket, sys
socket.setdefaulttimeout(20)
for line in sys.stdin:
    packet, tcp = json.loads(line)
    packet = bytes.fromhex(packet)
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as one:
        one.connect(("127.0.0.11", 53))
        try:
            if tcp:
                one.sendall(len(packet).to_bytes(2, "big") + packet)
                answer = b""
                while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
                    block = one.recv(65536)
                    if not block:
                        break
                    answer += block
                answer = answer[2:]
            else:
                one.send(packet)
                answer = one.recv(65536)
        except OSError as error:
            answer = b""
    print(answer.hex(), flush=True)
"""


class Asker:
    """A container that asks what it is told to, packet by packet."""

    def __init__(self, api: Api, network: str, **host: Any) -> None:
        self.api = api
        self.id = api.run(
            *("sleep", "600"),
            HostConfig={"NetworkMode": network, "Binds": HOST_PROGRAMS, **host},
        )

    def execute(self, *command: str, stdin: bytes = b"") -> str:
        """Run a program in the container; return its output."""
        document = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
        return execute(self.api, self.id, document, stdin)

    def packets(self, *packets: bytes, tcp: bool = False) -> list[bytes]:
        """Send packets one after the other; return the answers, empty where none came."""
        orders = "".join(json.dumps([packet.hex(), tcp]) + "\n" for packet in packets)
        output = self.execute("/usr/bin/python3", "-c", ASK, stdin=orders.encode())
        answers = [bytes.fromhex(line) for line in output.split("\n")[:-1]]
        assert len(answers) == len(packets), output
        return answers

    def ask(self, name: str, kind: str = "A", *, tcp: bool = False) -> DNSRecord:
        """Ask one question; return the answer."""
        question = DNSRecord.question(name, kind)
        (answer,) = self.packets(bytes(question.pack()), tcp=tcp)
        assert answer, f"no answer to {name} {kind}"
        found = DNSRecord.parse(answer)
        assert found.header.id == question.header.id
        return found

    def addresses(self, name: str) -> list[str]:
        """Return the addresses that a name has; none where it has none."""
        return [str(record.rdata) for record in self.ask(name).rr]


def execute(api: Api, container: str, document: dict[str, Any], stdin: bytes) -> str:
    from tests.engine_process import Hijacked, frames

    created = api.post(f"/containers/{container}/exec", {**document, "AttachStdin": bool(stdin)})[
        "Id"
    ]
    stream = Hijacked(api.path, f"/exec/{created}/start", {"Detach": False, "Tty": False})
    stream.socket.settimeout(60)
    try:
        if stdin:
            stream.send(stdin)
            stream.end_input()
        data = stream.read_all()
    finally:
        stream.close()
    return b"".join(part for _, part in frames(data)).decode()


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.05)
    return found


def server(api: Api, network: str, name: str, *aliases: str, **fields: Any) -> str:
    """Run a container that is to be found; return its address."""
    identifier = api.run(
        *("sleep", "600"),
        name=name,
        HostConfig={"NetworkMode": network},
        NetworkingConfig={"EndpointsConfig": {network: {"Aliases": list(aliases), **fields}}},
    )
    return address_of(api, identifier, network)


def address_of(api: Api, container: str, network: str) -> str:
    address: str = api.inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"]
    return address


@pytest.fixture
def upstream(engine: EngineProcess) -> Iterator[list[str]]:
    """The machine's name server; the list grows by each question it is asked."""
    for address in (UPSTREAM, SECOND_UPSTREAM):
        command = ["ip", "-n", engine.namespace, "address", "add", f"{address}/32", "dev", "lo"]
        subprocess.run(command, check=True)
    try:
        with name_server(engine.inside_network(), UPSTREAM, SECOND_UPSTREAM) as asked:
            yield asked
    finally:
        for address in (UPSTREAM, SECOND_UPSTREAM):
            command = ["ip", "-n", engine.namespace, "address", "del", f"{address}/32", "dev", "lo"]
            subprocess.run(command, check=True)


@contextlib.contextmanager
def name_server(inside: list[str], *addresses: str) -> Iterator[list[str]]:
    """Run a name server by the command ``inside``; the list grows by each question."""
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "tests.upstream_dns", *addresses],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout
    assert output.readline() == "ready\n"
    asked: list[str] = []
    reading = threading.Thread(target=lambda: asked.extend(line.strip() for line in output))
    reading.start()
    try:
        yield asked
    finally:
        process.terminate()
        process.wait(60)
        reading.join(60)
        output.close()


def test_every_name_of_a_container(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db", "database", "store")
    identifier = api.inspect("db")["Id"]
    asker = Asker(api, "lan")
    for name in ("db", "DB", "database", "store", identifier[:12], "db.lan", "store.LAN"):
        assert asker.addresses(name) == [address], name
    # glibc, with what it reads from /etc/resolv.conf.
    assert "\nnameserver 127.0.0.11\n" in asker.execute("cat", "/etc/resolv.conf")
    assert asker.execute("/usr/bin/getent", "ahostsv4", "database").startswith(f"{address} ")
    assert asker.execute("/usr/bin/getent", "hosts", address).split() == [address, "db.lan"]
    # BusyBox, which asks for both kinds of address.
    assert f"Address: {address}\n" in asker.execute("busybox", "nslookup", "db")
    assert asker.addresses("db") == asker.addresses("db.")
    names = api.inspect("db")["NetworkSettings"]["Networks"]["lan"]["DNSNames"]
    assert names == ["db", "database", "store", identifier[:12]]


def test_other_records_of_a_known_name_do_not_exist(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    server(api, "lan", "db")
    asker = Asker(api, "lan")
    for kind in ("AAAA", "MX", "TXT", "HTTPS"):
        for tcp in (False, True):
            empty = asker.ask("db", kind, tcp=tcp)
            assert (empty.header.rcode, empty.rr, empty.header.aa) == (0, [], 1), kind
    assert [str(r.rdata) for r in asker.ask("db", tcp=True).rr] == asker.addresses("db")


def test_a_shared_name_has_all_addresses_in_turn(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    addresses = {server(api, "lan", f"web{number}", "web") for number in range(3)}
    asker = Asker(api, "lan")
    answers = [asker.addresses("web") for _ in range(3)]
    assert all(set(answer) == addresses for answer in answers)
    assert {answer[0] for answer in answers} == addresses
    api.delete("/containers/web0", force=True)
    assert len(asker.addresses("web")) == 2


def test_networks_do_not_know_each_others_names(api: Api) -> None:
    for network in ("one", "two"):
        api.post("/networks/create", {"Name": network})
        server(api, network, f"in-{network}")
    asker = Asker(api, "one")
    assert asker.addresses("in-one")
    assert asker.addresses("in-two") == []
    api.post("/networks/two/connect", {"Container": asker.id})
    assert asker.addresses("in-one")
    assert asker.addresses("in-two")
    assert asker.addresses("in-two.two")
    assert asker.addresses("in-two.one") == []
    address = address_of(api, "in-two", "two")
    assert asker.execute("/usr/bin/getent", "hosts", address).split()[1] == "in-two.two"
    api.post("/networks/one/disconnect", {"Container": asker.id})
    assert asker.addresses("in-one") == []
    assert asker.addresses("in-two")


def test_the_default_network_and_the_machines_have_no_names(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    server(api, "lan", "db")
    for network in ("bridge", "host"):
        asker = Asker(api, network)
        assert "127.0.0.11" not in asker.execute("cat", "/etc/resolv.conf")


def test_a_running_container_gets_names_with_its_first_such_network(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    asker = Asker(api, "bridge")
    api.post(
        "/networks/lan/connect", {"Container": asker.id, "EndpointConfig": {"Aliases": ["me"]}}
    )
    assert "\nnameserver 127.0.0.11\n" in asker.execute("cat", "/etc/resolv.conf")
    assert asker.addresses("db") == [address]
    assert asker.addresses("me") == [address_of(api, asker.id, "lan")]
    # Out and in again: the sockets are there already.
    api.post("/networks/lan/disconnect", {"Container": asker.id})
    assert asker.addresses("db") == []
    api.post("/networks/lan/connect", {"Container": asker.id})
    assert asker.addresses("db") == [address]


def test_names_follow_renames_restarts_and_new_containers(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    server(api, "lan", "db", "database")
    asker = Asker(api, "lan")
    api.post("/containers/db/rename", name="other")
    assert asker.addresses("db") == []
    assert asker.addresses("other") == [address_of(api, "other", "lan")]
    names = api.inspect("other")["NetworkSettings"]["Networks"]["lan"]["DNSNames"]
    assert names[0] == "other"
    api.post("/containers/other/stop", t=0)
    assert asker.addresses("database") == []
    api.post("/containers/other/start")
    assert asker.addresses("database") == [address_of(api, "other", "lan")]


def test_links_are_aliases_that_only_their_container_uses(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    linked = api.run(
        *("busybox", "nslookup", "-type=a", "store"),
        HostConfig={"NetworkMode": "lan"},
        NetworkingConfig={"EndpointsConfig": {"lan": {"Links": ["db:store"]}}},
    )
    api.wait(linked)
    assert f"Address: {address}\n" in api.logs(linked).decode()
    assert Asker(api, "lan").addresses("store") == []


def test_a_shared_network_namespace_shares_its_names(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    output = api.output("nslookup", "-type=a", "db", HostConfig={"NetworkMode": "container:db"})
    assert f"Address: {address}\n" in output


def test_a_terminal_and_names_together(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    identifier = api.run("nslookup", "-type=a", "db", Tty=True, HostConfig={"NetworkMode": "lan"})
    api.wait(identifier)
    logged = api.get(f"/containers/{identifier}/logs", stdout=1)
    assert f"Address: {address}\r\n".encode() in logged


def test_an_edited_resolv_conf_is_left_alone(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    asker = Asker(api, "bridge")
    asker.execute("sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf")
    api.post("/networks/lan/connect", {"Container": asker.id})
    assert asker.execute("cat", "/etc/resolv.conf") == "nameserver 192.0.2.1\n"


def test_a_resolv_conf_is_the_engines_own_though_others_would_be_given_now(
    own_engine: EngineProcess,
) -> None:
    api = own_engine.api
    api.post("/networks/create", {"Name": "lan"})
    identifier = api.run("sleep", "100")
    own_engine.stop()
    own_engine.start("--dns", "192.0.2.9")
    api.post("/networks/lan/connect", {"Container": identifier})
    file = own_engine.data_root / "containers" / identifier / "resolv.conf"
    assert "nameserver 127.0.0.11\n" in file.read_text()


def test_a_container_may_run_a_name_server_of_its_own(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    script = """
import socket
udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
udp.bind(("0.0.0.0", 53)); tcp.bind(("0.0.0.0", 53)); tcp.listen()
print(socket.gethostbyname("db"), flush=True)
"""
    output = api.output(
        *("/usr/bin/python3", "-c", script),
        HostConfig={"NetworkMode": "lan", "Binds": HOST_PROGRAMS},
    )
    assert output == f"{address}\n"


def test_everything_else_is_asked_outside(api: Api, upstream: list[str]) -> None:
    api.post("/networks/create", {"Name": "lan"})
    asker = Asker(api, "lan", Dns=[UPSTREAM], DnsSearch=["example"], DnsOptions=["timeout:3"])
    text = asker.execute("cat", "/etc/resolv.conf")
    assert "\nnameserver 127.0.0.11\nsearch example\noptions timeout:3 ndots:0\n" in text
    assert f"\n# ExtServers: [{UPSTREAM}]\n" in text
    for tcp in (False, True):
        found = asker.ask("outside.example", tcp=tcp)
        assert [str(record.rdata) for record in found.rr] == ["192.0.2.7"]
        assert asker.ask("outside.example", "AAAA", tcp=tcp).header.rcode == 0
        assert asker.ask("nothing.example", tcp=tcp).header.rcode == 3  # NXDOMAIN
    assert asker.execute("/usr/bin/getent", "ahostsv4", "outside").startswith("192.0.2.7 ")
    until(lambda: "outside.example A tcp" in upstream, "the question over TCP")


def test_servers_at_loopback_addresses_are_the_containers_own(
    engine: EngineProcess, api: Api
) -> None:
    """Programs such as Pi-hole run a name server in the container and are started with
    ``--dns 127.0.0.1``. What the machine itself has at such an address is not asked."""
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    asker = Asker(api, "lan", Dns=["127.0.0.1"])
    assert asker.ask("outside.example").header.rcode == 2  # nobody is there yet
    inside = ["nsenter", f"--net=/proc/{api.inspect(asker.id)['State']['Pid']}/ns/net"]
    with name_server(inside, "127.0.0.1"):
        for tcp in (False, True):
            for _ in range(20):  # more than one batch of sockets
                found = asker.ask("outside.example", tcp=tcp)
                assert [str(record.rdata) for record in found.rr] == ["192.0.2.7"]
        assert asker.addresses("db") == [address]
        engine.kill()
        engine.start()
        assert asker.addresses("outside.example") == ["192.0.2.7"]


def test_answers_too_big_for_udp_come_over_tcp(api: Api, upstream: list[str]) -> None:
    api.post("/networks/create", {"Name": "lan"})
    asker = Asker(api, "lan", Dns=[UPSTREAM])
    cut_off = asker.ask("big.example", "TXT")
    assert cut_off.header.tc == 1
    whole = asker.ask("big.example", "TXT", tcp=True)
    assert (whole.header.tc, len(whole.rr)) == (0, 60)


def test_name_servers_that_fail(api: Api, upstream: list[str]) -> None:
    api.post("/networks/create", {"Name": "lan"})
    server(api, "lan", "db")
    asker = Asker(api, "lan", Dns=[NOBODY, UPSTREAM])
    assert asker.addresses("outside.example") == ["192.0.2.7"]
    assert asker.ask("broken.example").header.rcode == 2  # SERVFAIL, as the server said
    dead = Asker(api, "lan", Dns=[NOBODY])
    for tcp in (False, True):
        assert dead.ask("outside.example", tcp=tcp).header.rcode == 2
    silent = Asker(api, "lan", Dns=[UPSTREAM])
    question = bytes(DNSRecord.question("silent.example").pack())
    known = bytes(DNSRecord.question("db").pack())
    # A question that nobody answers holds up no other.
    answers = silent.packets(known, question, known)
    assert [answer[3] & 0xF for answer in answers] == [0, 2, 0]


class EngineOnALaptop(EngineProcess):
    """An engine that sees a resolv.conf of its own, as a laptop's network manager writes one."""

    resolv_conf: Path

    def command(self, *flags: str) -> list[str]:
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        own = super().command(*flags)
        return ["unshare", "--mount", "sh", "-c", script, str(self.resolv_conf), *own]


def test_a_laptop_that_changes_networks(tmp_path: Path) -> None:
    """What nobody here knows is asked where the machine asks now: a running container notices
    nothing but the answers."""
    engine = EngineOnALaptop()
    engine.resolv_conf = tmp_path / "resolv.conf"
    engine.resolv_conf.write_text(f"nameserver {UPSTREAM}\n")
    for address in (UPSTREAM, SECOND_UPSTREAM):
        command = ["ip", "address", "add", f"{address}/32", "dev", "lo"]
        subprocess.run(engine.inside_network(*command), check=True)
    try:
        engine.start()
        engine.load_image()
        engine.api.post("/networks/create", {"Name": "lan"})
        asker = Asker(engine.api, "lan")
        with name_server(engine.inside_network(), UPSTREAM) as at_home:
            assert asker.addresses("outside.example") == ["192.0.2.7"]
            until(lambda: at_home == ["outside.example A udp"], "one question")
        with name_server(engine.inside_network(), SECOND_UPSTREAM) as at_work:
            assert asker.ask("outside.example").header.rcode == 2, "nobody is at home any more"
            engine.resolv_conf.write_text(f"nameserver {SECOND_UPSTREAM}\nsearch work.example\n")
            assert asker.addresses("outside.example") == ["192.0.2.7"]
            until(lambda: at_work == ["outside.example A udp"], "one question")
            newer = Asker(engine.api, "lan")
            assert "search work.example" in newer.execute("cat", "/etc/resolv.conf")
    finally:
        left = engine.close()
    assert not left


def test_an_internal_network_asks_nobody_outside(api: Api, upstream: list[str]) -> None:
    api.post("/networks/create", {"Name": "inner", "Internal": True})
    address = server(api, "inner", "db")
    asker = Asker(api, "inner", Dns=[UPSTREAM])
    assert asker.addresses("db") == [address]
    assert asker.ask("outside.example").header.rcode == 2
    assert asker.ask("outside.example", tcp=True).header.rcode == 2
    assert upstream == []


def test_malformed_packets_change_nothing_for_others(api: Api) -> None:
    import random

    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    asker = Asker(api, "lan", Dns=[NOBODY])
    chance = random.Random(5)
    good = bytes(DNSRecord.question("db").pack())
    script = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect(("127.0.0.11", 53))
    for line in sys.stdin:
        one.send(bytes.fromhex(line))
for start in (b"", b"\\0", b"\\0\\0", b"\\0\\5abc", b"\\0\\5abcde", b"\\xff\\xff" + bytes(70000)):
    with socket.create_connection(("127.0.0.11", 53), 10) as one:
        one.sendall(start)
print("sent")
"""
    packets = []
    for _ in range(500):
        packet = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        packets.append(bytes(packet[: chance.randrange(len(packet) + 1)]).hex())
    lines = "\n".join(packets) + "\n"
    assert asker.execute("/usr/bin/python3", "-c", script, stdin=lines.encode()) == "sent\n"
    assert asker.addresses("db") == [address]
    connections = """
import socket
held = [socket.create_connection(("127.0.0.11", 53), 10) for _ in range(100)]
print(socket.gethostbyname("db"))
"""
    assert asker.execute("/usr/bin/python3", "-c", connections) == f"{address}\n"


LOOP = """
import select, socket, time
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
waiting = {}
onward = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
onward.connect(("127.0.0.11", 53))
while True:
    for one in select.select([server, onward], [], [])[0]:
        if one is server:
            packet, sender = server.recvfrom(4096)
            waiting[packet[:2]] = sender
            onward.send(packet)
        else:
            answer = onward.recv(4096)
            server.sendto(answer, waiting.pop(answer[:2], ("127.0.0.1", 9)))
"""


def test_servers_that_ask_each_other_in_a_circle_come_to_an_end(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan", "IPAM": {"Config": [{"Subnet": "10.98.0.0/24"}]}})
    address = server(api, "lan", "db")
    api.run(
        *("/usr/bin/python3", "-c", LOOP),
        name="loop",
        HostConfig={"NetworkMode": "lan", "Binds": HOST_PROGRAMS, "Dns": ["10.98.0.77"]},
        NetworkingConfig={
            "EndpointsConfig": {"lan": {"IPAMConfig": {"IPv4Address": "10.98.0.77"}}}
        },
    )
    asker = Asker(api, "lan", Dns=["10.98.0.77"])
    # The forwarder answers what is known here, so it is there.
    until(lambda: asker.ask("nothing.example").header.rcode == 2, "a failure")
    assert asker.addresses("db") == [address]


def test_questions_wait_for_the_next_engine(own_engine: EngineProcess, tmp_path: Path) -> None:
    api = own_engine.api
    api.post("/networks/create", {"Name": "lan"})
    address = server(api, "lan", "db")
    shared = tmp_path / "shared"
    shared.mkdir()
    script = """
import pathlib, socket, time
shared = pathlib.Path("/shared")
while not (shared / "ask").exists():
    time.sleep(0.02)
udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
for one in udp, tcp:
    one.settimeout(60)
    one.connect(("127.0.0.11", 53))
packet = bytes.fromhex("123401000001000000000000026462000001" + "0001")
udp.send(packet)
tcp.sendall(len(packet).to_bytes(2, "big") + packet)
(shared / "asked").touch()
answers = [udp.recv(512), tcp.recv(512)]
(shared / "new").write_text(" ".join(".".join(map(str, answer[-4:])) for answer in answers))
(shared / "new").rename(shared / "answers")
"""
    own_engine.api.run(
        *("/usr/bin/python3", "-c", script),
        HostConfig={"NetworkMode": "lan", "Binds": [*HOST_PROGRAMS, f"{shared}:/shared"]},
    )
    own_engine.kill()
    (shared / "ask").touch()
    until((shared / "asked").exists, "the question without an engine")
    own_engine.start()
    until((shared / "answers").exists, "the answers of the next engine")
    assert (shared / "answers").read_text() == f"{address} {address}"
    own_engine.stop()
    own_engine.start()
    assert Asker(api, "lan").addresses("db") == [address]
