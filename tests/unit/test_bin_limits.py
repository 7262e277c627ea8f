"""What the bin's limits let go: the oldest, and everything where the disk is short."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest

from deskd.domain.binned import Kind, new_entry
from deskd.domain.image import BinnedImage
from deskd.errors import InvalidArgument
from deskd.images.catalog import Catalog
from deskd.images.layers import LayerStore
from deskd.layout import DataRoot
from deskd.services.bin import Bin, BinLimits, bin_limits
from deskd.settings import Settings
from deskd.store import records
from deskd.store.database import Database

GIB = 1 << 30


@pytest.fixture
def make(tmp_path: Path) -> Any:
    layout = DataRoot(str(tmp_path))
    database = Database.open(layout.database)
    layers = LayerStore(layout, database)
    catalog = Catalog(database, layers)
    unused = cast("Any", None)  # names of images need neither containers nor volumes

    def made(limits: BinLimits, free_bytes: int = 50 * GIB) -> Bin:
        return Bin(
            catalog, unused, unused, unused, unused, layout, limits,
            lambda _: (free_bytes, 60 * GIB),
        )  # fmt: skip

    binned = records.binned(database)
    for number in range(4):
        image = BinnedImage(id=f"sha256:{number}", names=[f"docker.io/library/n{number}:latest"])
        binned.insert(new_entry(Kind.IMAGE, f"n{number}", "g", image, size_bytes=100))
    yield made
    database.close()


def left(bin_: Bin) -> list[str]:
    asyncio.run(bin_.enforce())
    return [entry["Name"] for entry in bin_.contents()["Entries"]]


def test_what_is_within_the_limits_stays(make: Any) -> None:
    assert left(make(BinLimits(size_bytes=400))) == ["n3", "n2", "n1", "n0"]


def test_the_oldest_goes_where_it_is_too_much(make: Any) -> None:
    assert left(make(BinLimits(size_bytes=250))) == ["n3", "n2"]


def test_what_is_too_old_goes(make: Any) -> None:
    time.sleep(0.01)  # the entries get older than that
    assert left(make(BinLimits(age_s=0.001))) == []


def test_a_short_disk_empties_it(make: Any) -> None:
    assert left(make(BinLimits(), free_bytes=3 * GIB)) != []
    assert left(make(BinLimits(), free_bytes=GIB)) == []


def test_settings_are_read_and_refused_in_words() -> None:
    assert bin_limits(Settings()) == BinLimits()
    told = bin_limits(Settings(bin_age="1h30m", bin_size="1g", bin_clients="all"))
    assert told == BinLimits(5400.0, GIB, everybody=True)
    assert bin_limits(Settings(bin_age="0")).age_s == 0
    for settings in (Settings(bin_age="soon"), Settings(bin_size="x"), Settings(bin_clients="me")):
        with pytest.raises(InvalidArgument, match="bin-"):
            bin_limits(settings)
