"""``desk network fault`` against a real engine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess

pytestmark = pytest.mark.root


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Cli:
    """The command line, with a network ``net`` and the containers n1 to n3 in it."""
    desk = Cli(engine.socket, tmp_path / "home")
    desk.ok("network", "create", "net")
    for name in ("n1", "n2", "n3"):
        desk.ok("run", "-d", "--name", name, "--network", "net", "busybox", "sleep", "600")
    return desk


def reaches(desk: Cli, source: str, target: str, *, wait_s: int = 20) -> bool:
    return desk("exec", source, "ping", "-c", "1", "-W", str(wait_s), target).code == 0


def test_a_partition_from_its_begin_to_its_end(desk: Cli) -> None:
    begun = time.time()
    assert reaches(desk, "n1", "n2")
    assert desk.ok("network", "fault", "partition", "n1", "n2,n3", "--for", "1h") == "partition1\n"
    assert not reaches(desk, "n1", "n2", wait_s=1)
    assert reaches(desk, "n2", "n3")
    heading, row = desk.ok("network", "fault", "ls").splitlines()
    assert heading.split("  ")[0] == "NAME"
    assert row.split()[:6] == ["partition1", "net", "n1", "|", "n2,n3", "severed"]
    assert len(row) <= 80
    (found,) = json.loads(desk.ok("network", "fault", "inspect", "partition1"))
    assert found["Partition"] == [["n1"], ["n2", "n3"]]
    assert desk.ok("network", "fault", "heal", "partition1") == "partition1\n"
    assert reaches(desk, "n1", "n2")
    events = desk.ok(
        *("events", "--since", f"{begun:.6f}", "--until", f"{time.time():.6f}"),
        *("--filter", "event=fault", "--filter", "event=heal"),
        *("--format", "{{.Action}} {{.Actor.Attributes.fault}}"),
    )
    assert events.splitlines() == ["fault partition1", "heal partition1"]


def test_every_kind_is_listed_and_healed_with_one_command(desk: Cli) -> None:
    fault = ("network", "fault")
    assert desk.ok(*fault, "block", "--from", "n1", "--to", "n2") == "block1\n"
    rate = ("link", "n2", "n3", "--rate", "2mbit", "--name", "thin")
    assert desk.ok(*fault, *rate) == "thin\n"
    names = ("dns", "n1", "--answer", "nxdomain", "--host", "n3")
    assert desk.ok(*fault, *names) == "dns1\n"
    shown = desk.ok(*fault, "ls", "--format", "{{.Name}}: {{.Links}}: {{.Effect}}")
    assert shown.splitlines() == [
        "block1: n1 -> n2: severed",
        "thin: n2 <-> n3: rate 2mbit",
        "dns1: n1: DNS nxdomain for n3",
    ]
    assert not reaches(desk, "n1", "n3", wait_s=1)  # it does not know the name
    assert desk.ok(*fault, "ls", "-q", "--network", "bridge") == ""
    assert desk.ok(*fault, "heal", "--all").split() == ["block1", "thin", "dns1"]
    assert desk.ok(*fault, "ls", "-q") == ""
    assert reaches(desk, "n1", "n3")
    assert reaches(desk, "n1", "n2")


def test_what_cannot_be(desk: Cli) -> None:
    for arguments, code, text in (
        (("link", "n1", "n2"), 125, "a link fault needs something to go wrong"),
        (("link", "--rate", "10MB"), 125, "invalid rate '10MB'"),
        (("link", "--loss", "much"), 125, "invalid --loss 'much'"),
        (("link", "--latency", "5"), 125, "invalid --latency '5'"),
        (("partition", "n1", "n2", "--for", "0s"), 125, "invalid --for '0s'"),
        (("partition", "n1", "ghost"), 1, "No such container: ghost"),
        (("block",), 1, "name a network, or containers of one"),
        (("block", "n1"), 1, "between n1 and nobody there is no link"),
        (("dns", "--answer", "maybe", "--network", "net"), 1, "invalid DNS answer 'maybe'"),
        (("heal",), 125, "either name the faults to heal, or which are meant"),
        (("heal", "ghost"), 1, "no network fault ghost"),
        (("inspect", "ghost"), 1, "no network fault ghost"),
    ):
        done = desk("network", "fault", *arguments)
        assert (done.code, text in done.err) == (code, True), done
    assert desk.ok("network", "fault", "ls", "-q") == ""
