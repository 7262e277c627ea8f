"""Paths and modes of the copy jobs, as Docker and Go write them."""

from __future__ import annotations

import stat

import pytest

from deskd import errors
from deskd.runtime.jobs.archive import absolute, go_mode


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("etc", "/etc"),
        ("/etc/", "/etc/"),
        ("/etc/.", "/etc/."),
        ("//etc//passwd", "/etc/passwd"),
        ("/etc/../../x", "/x"),
        ("..", "/"),
        ("/", "/"),
        ("/.", "/"),
        ("a/./b", "/a/b"),
    ],
)
def test_a_path_counts_from_the_root_and_keeps_its_ending(given: str, path: str) -> None:
    assert absolute(given) == path


def test_a_nul_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument):
        absolute("a\0b")


@pytest.mark.parametrize(
    ("mode", "bits"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFDIR | 0o755, 0x80000000 | 0o755),
        (stat.S_IFLNK | 0o777, 0x08000000 | 0o777),
        (stat.S_IFREG | 0o4755, 0x00800000 | 0o755),
        (stat.S_IFDIR | 0o1777, 0x80000000 | 0x00100000 | 0o777),
        (stat.S_IFDIR | 0o2755, 0x80000000 | 0x00400000 | 0o755),
        (stat.S_IFCHR | 0o666, 0x04200000 | 0o666),
        (stat.S_IFBLK | 0o660, 0x04000000 | 0o660),
        (stat.S_IFIFO | 0o600, 0x02000000 | 0o600),
        (stat.S_IFSOCK | 0o600, 0x01000000 | 0o600),
    ],
)
def test_modes_are_those_of_gos_file_mode(mode: int, bits: int) -> None:
    assert go_mode(mode) == bits
