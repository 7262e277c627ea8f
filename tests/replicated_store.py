"""A replicated store of three nodes (etcd, from Debian's etcd-server) in containers, and what
becomes of it when its leader is cut off: for engines on this computer and in a machine."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine_process import busybox_tar

NODES = ("n1", "n2", "n3")
IMAGE = "etcd-of-debian"
PATIENCE_S = 240.0

Desk = Callable[..., tuple[int, str, str]]
"""Runs ``desk`` with arguments (and ``stdin``); returns exit code, output and errors."""


def etcd_tar() -> bytes:
    """Return a root file system of busybox and etcd with the libraries that it is linked to."""
    program = shutil.which("etcd")
    assert program, "etcd is missing: install Debian's etcd-server"
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    files = {word for word in linked.split() if word.startswith("/")} | {program}
    buffer = io.BytesIO(busybox_tar())
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for path in sorted(files):
            name = "bin/etcd" if path == program else path.lstrip("/")
            tar.add(Path(path).resolve(), name)
    return buffer.getvalue()


class Store:
    """The three nodes. Each call runs in the node's own container."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def ok(self, *arguments: str, stdin: bytes = b"") -> str:
        code, out, err = self._desk(*arguments, stdin=stdin)
        assert code == 0, (arguments, out, err)
        return out

    def start(self, network: str) -> None:
        """Start the nodes; they are slow to call a leader gone, for slow computers."""
        self.ok("import", "-", IMAGE, stdin=etcd_tar())
        peers = ",".join(f"{node}=http://{node}:2380" for node in NODES)
        for node in NODES:
            self.ok(
                *("run", "-d", "--name", node, "--network", network, "--tmpfs", "/data", IMAGE),
                *("etcd", "--name", node, "--data-dir", "/data/etcd", "--initial-cluster", peers),
                *("--initial-advertise-peer-urls", f"http://{node}:2380"),
                *("--listen-peer-urls", "http://0.0.0.0:2380"),
                *("--listen-client-urls", "http://0.0.0.0:2379"),
                *("--advertise-client-urls", f"http://{node}:2379"),
                *("--heartbeat-interval", "400", "--election-timeout", "4000"),
            )

    def call(self, node: str, path: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """Ask a node; ``None`` where it cannot answer."""
        url = f"http://127.0.0.1:2379/v3/{path}"
        ask = ("wget", "-q", "-O", "-", "--post-data", json.dumps(request), url)
        code, out, _ = self._desk("exec", node, *ask)
        answer: dict[str, Any] | None = json.loads(out) if code == 0 else None
        return answer

    def leader(self, *nodes: str) -> str:
        """Return whom all of these nodes take for their leader; empty where they disagree."""
        found = set()
        for node in nodes:
            status = self.call(node, "maintenance/status", {})
            if status is None or status.get("leader", "0") == "0":
                return ""
            found.add(status["leader"])
        if len(found) != 1:
            return ""
        members = self.call(nodes[0], "cluster/member/list", {})
        named = {item["ID"]: item.get("name", "") for item in (members or {}).get("members", ())}
        name: str = named.get(found.pop(), "")
        return name

    def put(self, node: str, key: str, value: str) -> bool:
        """Write; tell whether the node says that it is written."""
        return self.call(node, "kv/put", {"key": _coded(key), "value": _coded(value)}) is not None

    def history(self, node: str) -> list[tuple[str, str, str]]:
        """Return key, value and revision of all that a node itself has, in the order of writing;
        it asks no other node."""
        everything = {"key": _coded("\0"), "range_end": _coded("\0"), "serializable": True}
        answer = self.call(node, "kv/range", everything) or {}
        found = [
            (_plain(item["key"]), _plain(item["value"]), item["mod_revision"])
            for item in answer.get("kvs", ())
        ]
        return sorted(found, key=lambda item: int(item[2]))


def lose_the_leader(store: Store, network: str) -> None:
    """Cut the leader off, see the others choose a new one and go on, heal, see one history."""
    old = _until(lambda: store.leader(*NODES), "a first leader")
    _until(lambda: store.put(old, "before", "all"), "a first write")
    majority = [node for node in NODES if node != old]
    store.ok("network", "fault", "partition", old, ",".join(majority), "--network", network)
    new = _until(lambda: store.leader(*majority), "a leader of the majority", other_than=old)
    assert new in majority
    _until(lambda: store.put(new, "during", "majority"), "a write of the majority")
    # Alone it has no leader, and writes nothing; it says so when it has waited long enough.
    assert not store.put(old, "lost", "minority")
    assert store.leader(old) == ""
    assert [key for key, _, _ in store.history(old)] == ["before"]
    store.ok("network", "fault", "heal", "--all")
    assert _until(lambda: store.leader(*NODES), "a leader of all") in NODES
    _until(lambda: store.put(old, "after", "all"), "a write through the node that was away")
    expected = ["before", "during", "after"]
    _until(
        lambda: all(len(store.history(node)) == len(expected) for node in NODES),
        "a whole history on each node",
    )
    histories = [store.history(node) for node in NODES]
    assert histories[0] == histories[1] == histories[2]
    assert [key for key, _, _ in histories[0]] == expected


def _until(condition: Callable[[], Any], what: str, *, other_than: Any = None) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()) or found == other_than:
        assert time.monotonic() < deadline, f"there is not {what}"
        time.sleep(0.2)
    return found


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _plain(text: str) -> str:
    return base64.b64decode(text).decode()
