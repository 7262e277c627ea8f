"""A replicated store under a partition, on this computer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess
from tests.replicated_store import IMAGE, Store, lose_the_leader

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def test_etcd_loses_its_leader_and_keeps_one_history(engine: EngineProcess, tmp_path: Path) -> None:
    desk = Cli(engine.socket, tmp_path / "home")

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        done = desk(*arguments, stdin=stdin)
        return done.code, done.out, done.err

    store = Store(run)
    store.ok("network", "create", "net")
    store.start("net")
    try:
        lose_the_leader(store, "net")
    finally:
        store.ok("rm", "-f", "n1", "n2", "n3")
        store.ok("rmi", IMAGE)
