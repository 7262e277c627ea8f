"""``--userns-remap``: who is meant, and which IDs there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.errors import DeskdError, InvalidArgument, NotFound
from deskd.kernel.file_capabilities import file_capabilities
from deskd.layout import DataRoot, remapped_root
from deskd.services import subordinate_ids
from deskd.services.subordinate_ids import RemapUser

USER = RemapUser("remap", 4242, "remap")


def ranges(tmp_path: Path, uids: str, gids: str = "remap:1000000:65536\n") -> IdMapping:
    (tmp_path / "subuid").write_text(uids)
    (tmp_path / "subgid").write_text(gids)
    return subordinate_ids.id_mapping(USER, str(tmp_path / "subuid"), str(tmp_path / "subgid"))


def test_ranges_of_the_user_by_name_and_number(tmp_path: Path) -> None:
    text = "# who\nother:100000:65536\n4242:400000:6000\n\nremap:200000:65536\n"
    found = ranges(tmp_path, text)
    assert found.uids == ((0, 200000, 65536), (65536, 400000, 6000))
    assert found.gids == ((0, 1000000, 65536),)
    assert found.root == (200000, 1000000)


@pytest.mark.parametrize(
    ("uids", "kind", "text"),
    [
        ("", NotFound, "has no range for the user remap; add a line as `remap:100000:65536`"),
        ("other:100000:65536", NotFound, "add a line as `remap:165536:65536`"),
        ("remap:100000:65535", InvalidArgument, "too small, it has 65535 IDs .* need 65536"),
        ("remap:0:65536", InvalidArgument, "must not overlap, include 0"),
        ("remap:4294900000:70000", InvalidArgument, "go beyond 4294967294"),
        ("remap:100000:65536\nremap:120000:65536", InvalidArgument, "must not overlap"),
        ("remap:100000", InvalidArgument, "line 1: 'remap:100000' must have the form USER:FIRST"),
        ("remap:a:1", InvalidArgument, "must have the form USER:FIRST-ID:COUNT"),
    ],
)
def test_ranges_that_cannot_be_used(
    tmp_path: Path, uids: str, kind: type[DeskdError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        ranges(tmp_path, uids)


def test_a_missing_file_has_no_ranges(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere has no range for the user remap"):
        subordinate_ids.id_mapping(USER, str(tmp_path / "nowhere"), str(tmp_path / "nowhere"))


def test_a_new_range_goes_where_none_is(tmp_path: Path) -> None:
    file = tmp_path / "ranges"
    file.write_text("a:165536:65536\nb:100000:65536\nc:240000:10\n")
    assert subordinate_ids.free_range((str(file),)) == 240010


@pytest.mark.parametrize("text", ["root", "root:root", "0", "0:0", "root:0"])
def test_users_and_groups_by_name_and_number(text: str) -> None:
    assert subordinate_ids.look_up(text) == RemapUser("root", 0, "root")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ("no-such-user", NotFound, "there is no user no-such-user in /etc/passwd"),
        ("4000000000", NotFound, "there is no user 4000000000"),
        ("99999999999999999999", NotFound, "there is no user 9999"),
        ("root:no-such-group", NotFound, "there is no group no-such-group in /etc/group"),
        ("a:b:c", InvalidArgument, 'Invalid user/group specification in --userns-remap: "a:b:c"'),
        (":", InvalidArgument, "Invalid user/group specification"),
        ("root:", InvalidArgument, "Invalid user/group specification"),
    ],
)
def test_users_that_are_not_there(value: str, kind: type[DeskdError], text: str) -> None:
    with pytest.raises(kind, match=text):
        subordinate_ids.look_up(value)


def test_ids_are_mapped_both_ways() -> None:
    mapping = IdMapping(((0, 1000, 10), (10, 5000, 5)), ((0, 2000, 15),))
    assert mapping.to_host(12, 3) == (5002, 2003)
    assert mapping.to_container(5002, 2003) == (12, 3)
    assert mapping.to_container(0, 0) == (65534, 65534)
    with pytest.raises(InvalidArgument, match="the group ID 15 has no ID on the machine"):
        mapping.to_host(0, 15)
    assert NO_MAPPING.to_host(70000, 5) == NO_MAPPING.to_container(70000, 5) == (70000, 5)


def test_file_capabilities_name_the_root_that_they_hold_for() -> None:
    plain = bytes.fromhex("0100000202000000000000000000000000000000")
    inside = file_capabilities(plain, 200000)
    assert inside == bytes.fromhex("0100000302000000000000000000000000000000400d0300")
    assert file_capabilities(inside) == plain
    assert file_capabilities(b"nonsense", 1) == b"nonsense"


def test_containers_of_an_engine_with_other_ids_are_known(tmp_path: Path) -> None:
    plain = DataRoot(str(tmp_path))
    remapped = DataRoot(remapped_root(str(tmp_path), 200000, 300000))
    for root, name in ((plain, "one"), (remapped, "two")):
        Path(root.container(name)).mkdir(parents=True)
    assert [plain.container_of_sibling(name) for name in ("one", "two")] == [False, True]
    assert [remapped.container_of_sibling(name) for name in ("one", "two")] == [True, False]
