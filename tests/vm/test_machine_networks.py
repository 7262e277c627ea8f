"""Networks that need the machine's kernel: faults by netem between containers, a replicated store
under a partition, and containers upon parents of every kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest_image import guest_image
from tests.laptop import laptop_with_machine
from tests.replicated_store import Store, lose_the_leader

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1200)]

FAULT = ("network", "fault")
BIG = 60_000
"""Bytes of a packet that a slow line carries in half a second."""


@pytest.fixture(scope="module")
def store(guest_image: Path) -> Iterator[Store]:
    """A store's three nodes in the network ``net`` of a machine."""
    with laptop_with_machine(guest_image, memory="1g") as laptop:

        def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
            done = laptop(*arguments, stdin=stdin)
            return done.code, done.out, done.err

        made = Store(run)
        made.ok("network", "create", "net")
        made.start("net")
        yield made


class Pings:
    """What ``ping`` counted and measured from n1 to n2."""

    def __init__(self, store: Store, count: int, *, wait_s: int = 20, size_bytes: int = 56) -> None:
        script = f"ping -i 0.2 -s {size_bytes} -c {count} -W {wait_s} n2; true"
        self.text = store.ok("exec", "n1", "sh", "-c", script)
        self.received = self._number(r"(\d+) packets received")
        self.duplicates = self._number(r"(\d+) duplicates") if "duplicates" in self.text else 0
        times = re.search(r"= ([\d.]+)/[\d.]+/([\d.]+) ms", self.text)
        self.shortest_ms, self.longest_ms = (
            (float(times[1]), float(times[2])) if times else (0.0, 0.0)
        )

    def _number(self, pattern: str) -> int:
        found = re.search(pattern, self.text)
        assert found, self.text
        return int(found[1])


def test_latency_loss_duplicates_and_reordering(store: Store) -> None:
    assert Pings(store, 2).received == 2
    store.ok(*FAULT, "link", "n1", "n2", "--latency", "400ms", "--jitter", "50ms")
    late = Pings(store, 3)
    # There and back: twice 400 ms, less at most twice 50.
    assert (late.received, late.shortest_ms >= 700) == (3, True), late.text
    store.ok(*FAULT, "heal", "--all")

    store.ok(*FAULT, "link", "--from", "n1", "--to", "n2", "--loss", "50%")
    lossy = Pings(store, 60, wait_s=3)
    assert 5 <= lossy.received <= 55, lossy.text  # by chance once in 10 ** 11
    store.ok(*FAULT, "link", "--from", "n1", "--to", "n2", "--loss", "100", "--name", "all")
    assert Pings(store, 3, wait_s=3).received == 0
    store.ok(*FAULT, "heal", "--all")

    store.ok(*FAULT, "link", "--from", "n1", "--to", "n2", "--duplicate", "100%")
    doubled = Pings(store, 5)
    assert doubled.duplicates >= 4, doubled.text  # ping goes when it has its fifth answer
    store.ok(*FAULT, "heal", "--all")

    overtaking = ("--latency", "3s", "--reorder", "50%")
    store.ok(*FAULT, "link", "--from", "n1", "--to", "n2", *overtaking)
    mixed = Pings(store, 30)
    assert mixed.shortest_ms < 3000 <= mixed.longest_ms, mixed.text
    store.ok(*FAULT, "heal", "--all")

    store.ok(*FAULT, "link", "n1", "n2", "--rate", "1mbit", "--latency", "200ms", "--for", "1h")
    assert Pings(store, 2).shortest_ms >= 400
    shown = store.ok(*FAULT, "ls", "--no-trunc", "--format", "{{.Effect}}")
    assert shown == "latency 200ms, rate 1mbit\n"
    store.ok(*FAULT, "heal", "--all")

    fast = Pings(store, 3, size_bytes=BIG).shortest_ms
    store.ok(*FAULT, "link", "--from", "n1", "--to", "n2", "--rate", "1mbit")
    # All but the first 16 KiB, which may leave at once, take 1 ms for each 125 bytes.
    assert Pings(store, 3, size_bytes=BIG).shortest_ms >= fast + 250
    store.ok(*FAULT, "heal", "--all")
    assert Pings(store, 2).received == 2


def test_etcd_loses_its_leader_and_keeps_one_history(store: Store) -> None:
    lose_the_leader(store, "net")


@pytest.mark.parametrize(
    ("driver", "options", "mode"),
    [
        ("macvlan", {"parent": ""}, "bridge"),  # a dummy
        ("macvlan", {"parent": "eth0"}, "bridge"),
        ("macvlan", {"parent": "eth0.7"}, "bridge"),  # a tagged network
        ("ipvlan", {"parent": "eth0.8"}, "l2"),
        ("ipvlan", {"parent": "eth0.8", "ipvlan_mode": "l3"}, "l3"),
        ("ipvlan", {"parent": "", "ipvlan_mode": "l3s"}, "l3s"),
        ("ipvlan", {"parent": "eth0.8", "ipvlan_flag": "private"}, "l2 private"),
    ],
)
def test_containers_upon_a_parent(
    store: Store, driver: str, options: dict[str, str], mode: str
) -> None:
    before = links(store)
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    store.ok("network", "create", "-d", driver, *flags, "--subnet", "10.91.0.0/24", "upon")
    try:
        for name in ("one", "two"):
            store.ok("run", "-d", "--name", name, "--network", "upon", "busybox", "sleep", "3600")
        shown = store.ok("exec", "one", "ip", "addr", "show", "eth0")
        assert "10.91.0.2/24" in shown
        route = store.ok("exec", "one", "ip", "route")
        if not options["parent"]:
            assert "default" not in route
        elif "l3" in mode:
            assert "default dev eth0" in route
        else:
            assert "default via 10.91.0.1" in route
        if mode == "l2 private":
            ping = store.ok("exec", "one", "sh", "-c", "ping -c 1 -W 2 10.91.0.3; true")
            assert "100% packet loss" in ping
        else:
            store.ok("exec", "one", "ping", "-c", "1", "-W", "60", "two")
    finally:
        store.ok("rm", "-f", "one", "two")
        store.ok("network", "rm", "upon")
    assert links(store) == before, "the parents that were made are gone"


def links(store: Store) -> list[str]:
    listed = store.ok("machine", "ssh", "default", "ls", "/sys/class/net").split()
    # dummy0 is the kernel's own: it comes when the module is loaded.
    return [name for name in listed if not name.startswith("veth") and name != "dummy0"]
