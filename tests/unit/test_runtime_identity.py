"""Users and groups looked up in a container's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from deskd.runtime.identity import LookupFailed, look_up


@pytest.fixture
def root(tmp_path: Path) -> str:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(
        "# comment:x:1:1::/:\nroot:x:0:0:root:/root:/bin/sh\nbroken line\n"
        "app:x:1000:1001::/home/app:/bin/sh\n"
    )
    (etc / "group").write_text("root:x:0:root\napp:x:1001:\nextra:x:2000:other,app\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        ("", (0, 0, (0,), "/root")),
        ("app", (1000, 1001, (1001, 2000), "/home/app")),
        ("1000", (1000, 1001, (1001, 2000), "/home/app")),
        ("app:extra", (1000, 2000, (2000,), "/home/app")),
        ("5:6", (5, 6, (6,), "/")),
        ("77", (77, 0, (0,), "/")),
        (":extra", (0, 2000, (2000,), "/root")),
    ],
)
def test_users(root: str, user: str, wanted: tuple[int, int, tuple[int, ...], str]) -> None:
    found = look_up(user, (), root)
    assert (found.uid, found.gid, found.groups, found.home) == wanted


def test_extra_groups(root: str) -> None:
    assert look_up("app", ("root", "9"), root).groups == (1001, 2000, 0, 9)


def test_unknown_names(root: str) -> None:
    with pytest.raises(LookupFailed, match="unable to find user nobody"):
        look_up("nobody", (), root)
    with pytest.raises(LookupFailed, match="unable to find group none"):
        look_up("app:none", (), root)
    with pytest.raises(LookupFailed, match="range"):
        look_up("99999999999", (), root)


def test_an_image_without_files(tmp_path: Path) -> None:
    assert look_up("12:13", (), str(tmp_path)).uid == 12
    with pytest.raises(LookupFailed):
        look_up("app", (), str(tmp_path))
