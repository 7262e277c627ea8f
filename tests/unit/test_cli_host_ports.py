"""A port that another program has on this computer is refused before anything is created."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from desk.cli.host_ports import check
from desk.cli.session import Session
from desk.errors import Conflict
from desk.machine.model import MachineSpec
from desk.machine.store import MachineRecord, MachineStore
from desk.paths import Home


class _Containers:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def list(self) -> list[dict[str, Any]]:
        return self._rows


class _Client:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.containers = _Containers(rows)

    def close(self) -> None:
        pass


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    home = Home(tmp_path / "home")
    monkeypatch.setenv("DESK_HOME", str(home.directory))
    monkeypatch.delenv("DESK_MACHINE", raising=False)
    home.machine("default").directory.mkdir(parents=True)
    record = MachineRecord(MachineSpec("default"), "2026-01-01T00:00:00Z", {"ssh_port": "20200"})
    MachineStore(home).file("default").write(record)
    return Session()


def body(port: int, address: str = "", protocol: str = "tcp") -> dict[str, Any]:
    place = {"HostIp": address, "HostPort": str(port)}
    return {"HostConfig": {"PortBindings": {f"80/{protocol}": [place]}}}


def test_a_port_in_use_is_named_with_the_remedy(session: Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        session.__dict__["starting_client"] = _Client([])
        with pytest.raises(Conflict, match=rf"port 127\.0\.0\.1:{port} is in use") as caught:
            check(session, body(port))
        assert f"publish another port, such as -p {port + 1}:80." in caught.value.hint
        session.__dict__["starting_client"] = _Client([{"Ports": [{"PublicPort": port}]}])
        check(session, body(port))  # a container's: the engine names it
        check(session, body(port, protocol="udp"))
        check(session, body(port, address="192.0.2.1"))
        session.choose(host="tcp://somewhere", machine="")
        check(session, body(port))
    session.choose(host="", machine="")
    check(session, body(port))


def test_a_udp_port_in_use_is_named_too(session: Session) -> None:
    session.__dict__["starting_client"] = _Client([{"Ports": [{"PublicPort": 5}]}])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with pytest.raises(Conflict, match=rf"port 127\.0\.0\.1:{port} is in use") as caught:
            check(session, body(port, protocol="udp"))
        assert f"such as -p {port + 1}:80/udp." in caught.value.hint
        rows = [{"Ports": [{"PublicPort": port, "Type": "udp"}]}]
        session.__dict__["starting_client"] = _Client(rows)
        check(session, body(port, protocol="udp"))
    check(session, body(port, protocol="udp"))
