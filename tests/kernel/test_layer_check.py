"""The whole comparison of a layer with its tar: what is no damage, though the disk has it otherwise
than the tar says."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskd.images.layer_check import content_problem
from tests.kernel.image_store import Stores, directory, entry, stores, tar

pytestmark = pytest.mark.root

NOTE = "trusted.note"
# Version 3 with the root user 0, which the kernel gives back as version 2.
CAPABILITY = struct.pack("<6I", 0x03000000, 1 << 10, 0, 0, 0, 0)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Stores]:
    with stores(tmp_path / "data") as opened:
        yield opened


def test_what_is_no_damage(opened: Stores) -> None:
    layer = tar(
        # The mark of an opaque directory may come before the directory and between two of it.
        entry("late/.wh..wh..opq"),
        directory("late", 0o711),
        entry("twice", kind=tarfile.DIRTYPE, mode=0o755, xattrs={NOTE: b"1", "trusted.one": b""}),
        entry("twice/.wh..wh..opq"),
        entry("twice", kind=tarfile.DIRTYPE, mode=0o700, xattrs={NOTE: b"2"}),
        entry("was/.wh..wh..opq"),
        entry("was", b"a file now"),
        entry("link", kind=tarfile.SYMTYPE, target="x", xattrs={"user.note": b"x", NOTE: b"x"}),
        entry("pipe", kind=tarfile.FIFOTYPE, xattrs={"user.note": b"x"}),
        entry("capable", b"x", xattrs={"security.capability": CAPABILITY}),
        entry("unheard", b"x", xattrs={"unheard.of": b"x", "trusted.overlay.opaque": b"y"}),
        entry("./", kind=tarfile.DIRTYPE, mode=0o711, owner=(7, 8), xattrs={NOTE: b"root"}),
        entry(".wh..wh..opq"),
    )
    staged = opened.layers.stage(io.BytesIO(layer))
    with opened.layers.recording():
        record = opened.layers.record("", staged)
    diff = Path(opened.layers.directory(record))

    def problem() -> str:
        tar_ = opened.layers.open_tar(record)
        return content_problem(opened.layers.place(record), tar_, opened.root.temporary)

    # The disk is not as the tar says word by word.
    assert os.listxattr(diff / "link", follow_symlinks=False) == [NOTE]
    assert os.getxattr(diff / "capable", "security.capability") != CAPABILITY
    assert problem() == ""
    os.removexattr(diff / "capable", "security.capability")
    assert problem() == "/capable was changed"
    os.setxattr(diff / "capable", "security.capability", CAPABILITY)
    os.setxattr(diff / "link", NOTE, b"y", follow_symlinks=False)
    assert problem() == "/link was changed"
    os.setxattr(diff / "link", NOTE, b"x", follow_symlinks=False)
    os.setxattr(diff, NOTE, b"other")
    assert problem() == "/ was changed"
    os.setxattr(diff, NOTE, b"root")
    os.removexattr(diff / "twice", "trusted.overlay.opaque")
    assert problem() == "/twice was changed"
    os.setxattr(diff / "twice", "trusted.overlay.opaque", b"y")
    assert problem() == ""
    assert opened.leftovers() == []
