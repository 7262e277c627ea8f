"""The disk reserve: its sizes, what is given up and when, what is taken back."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskd import errors
from deskd.store import reserve as reserves
from deskd.store.reserve import Reserve, Sizes, sizes_for, takes_back

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("disk_bytes", "sizes"),
    [
        (2 * MIB, Sizes(256 * KIB, 32 * KIB, 128 * KIB)),
        (64 * MIB, Sizes(MIB, 32 * KIB, 512 * KIB)),
        (4000 * MIB, Sizes(40 * MIB, 640 * KIB, 6 * MIB)),
        (20 * GIB, Sizes(64 * MIB, MIB, 6 * MIB)),
        (2000 * GIB, Sizes(64 * MIB, MIB, 6 * MIB)),
    ],
)
def test_sizes(disk_bytes: int, sizes: Sizes) -> None:
    assert sizes_for(disk_bytes) == sizes


@given(st.integers(0, 1 << 50))
def test_sizes_fit_every_disk(disk_bytes: int) -> None:
    sizes = sizes_for(disk_bytes)
    assert 0 <= sizes.piece <= sizes.whole <= disk_bytes // 8
    assert sizes.log <= sizes.whole
    assert sizes.whole % 4096 == sizes.piece % 4096 == 0


@given(st.integers(0, 70 * MIB), st.integers(0, 200 * MIB))
def test_what_is_taken_back_is_not_given_up_at_once(held: int, free: int) -> None:
    sizes = sizes_for(20 * GIB)
    taken = takes_back(sizes, held, free)
    assert 0 <= taken <= max(0, sizes.whole - held)
    if taken:
        assert free - taken >= 2 * sizes.piece


def test_enough_room_brings_all_of_it_back() -> None:
    sizes = sizes_for(20 * GIB)
    assert takes_back(sizes, 0, sizes.whole + 2 * sizes.piece) == sizes.whole
    assert takes_back(sizes, sizes.whole, 100 * GIB) == 0
    assert takes_back(sizes, 0, sizes.piece) == 0


class Disk:
    """What a disk would tell; only its free room is made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = GIB
        monkeypatch.setattr(reserves, "writable_bytes", lambda _path: self.free)
        monkeypatch.setattr(Reserve, "sizes", Sizes(MIB, 128 * KIB, 512 * KIB))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_pieces_go_one_after_the_other_and_all_come_back(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Reserve(str(tmp_path / "reserve"))
    kept.open()
    kept.restore()
    assert (kept.held_bytes, kept.in_use) == (MIB, False)
    kept.check()
    failures = 3

    def work() -> str:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(errno.ENOSPC, "full")
        return "done"

    with caplog.at_level("CRITICAL", "deskd.store.reserve"):
        assert kept.with_room(work) == "done"
        assert kept.held_bytes == MIB - 3 * 128 * KIB
        disk.free = 200 * KIB
        with pytest.raises(errors.ResourceExhausted, match=r"no space left .* enlarge the disk"):
            kept.check()
        disk.free = GIB
        kept.check()
    assert (kept.held_bytes, kept.in_use) == (MIB, False)
    kept.close()
    kept.close()


def test_other_errors_give_nothing_up(disk: Disk, tmp_path: Path) -> None:
    kept = Reserve(str(tmp_path / "reserve"))
    kept.open()
    kept.restore()
    with pytest.raises(PermissionError):
        kept.with_room(lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    assert kept.held_bytes == MIB
    kept.close()


def test_the_last_piece_is_the_end(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Reserve(str(tmp_path / "reserve"))
    kept.open()
    kept.restore()
    disk.free = 0
    with caplog.at_level("CRITICAL", "deskd.store.reserve"):
        kept.make_room()
    assert kept.held_bytes == 0
    assert kept.give_up() is False
    kept.close()


def test_a_reserve_with_holes_is_filled(disk: Disk, tmp_path: Path) -> None:
    """A backup may bring the file back without its blocks."""
    file = tmp_path / "reserve"
    with file.open("wb") as stream:
        stream.truncate(MIB)
    kept = Reserve(str(file))
    kept.open()
    kept.restore()
    assert file.stat().st_blocks * 512 >= MIB
    kept.close()
