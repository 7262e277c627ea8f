"""nftables transactions: all or nothing, with nft's own explanation."""

from __future__ import annotations

import pytest

from deskd.kernel.nftables import Nftables, NftablesError
from tests.network_namespaces import in_namespace

pytestmark = pytest.mark.root


def test_transaction_is_all_or_nothing() -> None:
    def body() -> None:
        nftables = Nftables()
        nftables.run("add table inet t; add set inet t s { type inet_service; }")
        with pytest.raises(NftablesError, match="No such file or directory"):
            nftables.run("add element inet t s { 80 }; add element inet t nosuch { 81 }")
        assert "80" not in nftables.run("list set inet t s")
        nftables.run("add element inet t s { 80 }")
        assert "80" in nftables.run("list set inet t s")
        nftables.close()
        nftables.close()
        with pytest.raises(NftablesError, match="closed"):
            nftables.run("list tables")

    in_namespace(body)


def test_namespace_has_rules_of_its_own() -> None:
    def body() -> None:
        nftables = Nftables()
        assert nftables.run("list tables") == ""
        nftables.close()

    in_namespace(body)
