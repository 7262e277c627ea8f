"""Random trees through layers and back: what comes out is what went in.

GNU tar writes and reads the same archives as a second opinion.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings

from deskd.images.layer_check import content_problem
from deskd.images.pack import END, Packer
from deskd.storage.changes import ChangeKind
from tests.kernel.image_store import stores
from tests.kernel.random_trees import (
    CHANGES,
    TREES,
    Seen,
    Step,
    Tree,
    in_seconds,
    snapshot,
    take,
)
from tests.kernel.test_overlay_snapshots import make_image, mounted
from tests.kernel.test_overlay_unpack import Place

pytestmark = pytest.mark.root

XATTRS = ["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"]


def packed_by_gnu_tar(tree: Path) -> bytes:
    command = ["tar", "-C", str(tree), *XATTRS, "--sparse", "--format=posix", "--numeric-owner"]
    done = subprocess.run([*command, "-cf", "-", "."], check=True, capture_output=True)
    return done.stdout


def unpacked_by_gnu_tar(data: bytes, into: Path) -> Tree:
    into.mkdir()
    command = ["tar", "-C", str(into), *XATTRS, "--numeric-owner", "-xpf", "-"]
    subprocess.run(command, input=data, check=True, capture_output=True)
    return snapshot(into)


def exported(tree: Path) -> bytes:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return b"".join(Packer().children(fd, "")) + END
    finally:
        os.close(fd)


@given(TREES)
@settings(max_examples=40)
def test_a_tree_is_the_same_after_an_import_and_an_export(steps: Sequence[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        take(steps, source)
        tree = snapshot(source)
        data = packed_by_gnu_tar(source)
        place = Place(Path(folder, "in"))
        unpacked = place.unpack(data)
        assert snapshot(place.diff) == tree
        assert place.repacked(unpacked) == data
        assert content_problem(place.diff.parent, iter([data]), folder) == ""
        out = exported(place.diff)
        assert out == exported(source)
        again = Place(Path(folder, "again"))
        again.unpack(out)
        assert snapshot(again.diff) == in_seconds(tree)
        assert unpacked_by_gnu_tar(out, Path(folder, "gnu")) == in_seconds(tree)


def changes_as_docker_finds_them(before: Tree, after: Tree) -> set[tuple[ChangeKind, bytes]]:
    """Compare two whole trees, which is what Docker does with two mounts."""
    found: dict[bytes, ChangeKind] = {}
    for path, seen in after.items():
        if path not in before:
            found[path] = ChangeKind.ADDED
        elif differs(before[path], seen):
            found[path] = ChangeKind.MODIFIED
    for path in before.keys() - after.keys():
        above = _above(path)
        if not above or (above in after and stat.S_ISDIR(after[above].mode)):
            found[path] = ChangeKind.DELETED
    for path in list(found):
        above = path
        while above := _above(above):
            found.setdefault(above, ChangeKind.MODIFIED)
    return {(kind, b"/" + path) for path, kind in found.items()}


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def differs(before: Seen, after: Seen) -> bool:
    old, new = (
        (seen.mode, seen.owner, seen.device, dict(seen.attributes).get("security.capability"))
        for seen in (before, after)
    )
    if old != new:
        return True
    if stat.S_ISDIR(after.mode):
        return False
    seconds = [divmod(seen.mtime_ns, 10**9) for seen in (before, after)]
    same_time = seconds[0] == seconds[1] or (
        seconds[0][0] == seconds[1][0] and 0 in (seconds[0][1], seconds[1][1])
    )
    return not same_time or len(before.content) != len(after.content)


@given(TREES, CHANGES, CHANGES)
@settings(max_examples=40)
def test_a_changed_tree_is_the_same_as_layers(
    first: Sequence[Step], second: Sequence[Step], third: Sequence[Step]
) -> None:
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder, "data")) as opened:
        source = Path(folder, "source")
        source.mkdir()
        take(first, source)
        layers = [packed_by_gnu_tar(source)]
        # A committed layer leaves out the places that the engine mounts on: none for the steps.
        shutil.rmtree(opened.root.mount_points)
        Path(opened.root.mount_points).mkdir()
        for number, steps in enumerate((second, third)):
            container = f"{number}" * 64
            opened.snapshots.create(container, make_image(opened, *layers).id)
            with mounted(opened, Path(folder), container) as root:
                before = snapshot(root)
                take(steps, root)
                after = snapshot(root)
            changes = opened.snapshots.changes(container)
            told = {(change.kind, os.fsencode(change.path)) for change in changes}
            assert len(told) == len(changes)
            assert told == changes_as_docker_finds_them(before, after)
            tar = opened.snapshots.layer_tar(container)
            layers.append(b"".join(iter(tar.read, b"")))
            whole = f"{number + 5}" * 64
            opened.snapshots.create(whole, make_image(opened, *layers).id)
            with mounted(opened, Path(folder), whole) as root:
                assert in_seconds(snapshot(root)) == in_seconds(after)
            assert opened.snapshots.changes(whole) == []
