"""Which entries of the bin ``desk undo`` means."""

from __future__ import annotations

from typing import Any

import pytest

from desk.cli.commands.undo import bin_row, chosen
from desk.errors import NotFound


def entry(number: int, name: str, group: str, kind: str = "container") -> dict[str, Any]:
    identifier = f"{number:x}" * 32
    return {
        "Id": identifier, "Kind": kind, "Name": name, "Group": group, "RemovedNano": 0, "Size": 2000
    }  # fmt: skip


BIN = [
    entry(0xA, "web", "second"),
    entry(0xB, "data", "second", "volume"),
    entry(0xC, "web", "first"),
    entry(0xD, "data", "first"),
]


def test_without_names_the_last_command_is_undone() -> None:
    assert chosen(BIN, ()) == BIN[:2]


def test_a_name_means_the_latest_of_that_name_and_may_say_the_kind() -> None:
    assert chosen(BIN, ("web",)) == BIN[:1]
    assert chosen(BIN, ("container data", "cccccccccccc")) == [BIN[3], BIN[2]]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match="nothing removed is called other"):
        chosen(BIN, ("other",))
    with pytest.raises(NotFound, match="nothing removed is called ccc"):
        chosen(BIN, ("ccc",))  # too short for an ID
    with pytest.raises(NotFound, match="nothing to bring back"):
        chosen([], ())


def test_a_row_has_what_a_person_reads() -> None:
    row = bin_row(BIN[1])
    assert (row["ID"], row["Kind"], row["Name"], row["Size"]) == ("b" * 12, "volume", "data", "2kB")
