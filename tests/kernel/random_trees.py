"""Random directory trees and random changes to them, as strategies of hypothesis.

A tree is the outcome of steps that are carried out on a real directory, and so is a change of it.
A step names the places that it works on by numbers, which count the entries that are there then:
so every list of steps can be carried out, and what fails can be made smaller.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hypothesis import strategies as st

CAPABILITIES = (
    b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12),
    b"\x00\x00\x00\x02\x00\x20\x00\x00" + bytes(12),
)
_KEPT_XATTRS = ("user.", "security.capability")


class Seen(NamedTuple):
    """What a tree shows of one entry; ``names`` are all the names of a file with several."""

    mode: int
    owner: tuple[int, int]
    device: int
    content: bytes
    mtime_ns: int
    attributes: tuple[tuple[str, bytes], ...]
    names: tuple[bytes, ...]


Tree = dict[bytes, Seen]


def snapshot(root: str | bytes | os.PathLike[str]) -> Tree:
    """Return all below ``root`` by path from it. The root itself is not part of it."""
    top = os.fsencode(root)
    found: dict[bytes, os.stat_result] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    for path in paths(top):
        status = os.lstat(os.path.join(top, path))
        found[path] = status
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: Seen(
            mode=status.st_mode,
            owner=(status.st_uid, status.st_gid),
            device=status.st_rdev,
            content=_content(os.path.join(top, path), status),
            mtime_ns=status.st_mtime_ns,
            attributes=_attributes(os.path.join(top, path), status),
            names=tuple(names.get((status.st_dev, status.st_ino), ())),
        )
        for path, status in found.items()
    }


def in_seconds(tree: Tree) -> Tree:
    """Return the tree with times as an archive of Docker's keeps them."""
    return {
        path: seen._replace(mtime_ns=seen.mtime_ns // 10**9 * 10**9) for path, seen in tree.items()
    }


def paths(root: bytes) -> list[bytes]:
    """Return the paths of all below ``root``, sorted."""
    found: list[bytes] = []
    for directory, directories, files in os.walk(root):
        inside = os.path.relpath(directory, root)
        prefix = b"" if inside == b"." else inside + b"/"
        found += (prefix + name for name in (*directories, *files))
    return sorted(found)


def _content(path: bytes, status: os.stat_result) -> bytes:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return file.read()
    return b""


def _attributes(path: bytes, status: os.stat_result) -> tuple[tuple[str, bytes], ...]:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return ()
    kept = (name for name in sorted(os.listxattr(path)) if name.startswith(_KEPT_XATTRS))
    return tuple((name, os.getxattr(path, name)) for name in kept)


# --- entries ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """One entry to make. ``hole_bytes``: a file begins with a hole of this size."""

    kind: int
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = 0
    content: bytes = b""
    hole_bytes: int = 0
    device: tuple[int, int] = (0, 0)
    note: bytes | None = None
    capability: bytes | None = None

    def make(self, path: bytes) -> None:
        if self.kind == stat.S_IFDIR:
            os.mkdir(path)
        elif self.kind == stat.S_IFLNK:
            os.symlink(self.content or b"nowhere", path)
        elif self.kind == stat.S_IFREG:
            with open(path, "xb") as file:
                file.seek(self.hole_bytes)
                file.write(self.content)
                file.truncate(self.hole_bytes + len(self.content))
        else:
            os.mknod(path, self.kind | 0o600, os.makedev(*self.device))
        os.chown(path, *self.owner, follow_symlinks=False)
        if self.kind != stat.S_IFLNK:
            os.chmod(path, self.mode)
        if self.note is not None and self.kind in (stat.S_IFREG, stat.S_IFDIR):
            os.setxattr(path, "user.note", self.note)
        if self.capability is not None and self.kind == stat.S_IFREG:
            os.setxattr(path, "security.capability", self.capability)
        os.utime(path, ns=(self.mtime_ns, self.mtime_ns), follow_symlinks=False)


NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"d"]),
    st.sampled_from(
        [b"\xff\xfe", b" ", b"two\nlines", b"-x", b"back\\slash", b"a:b,c", b"n" * 255, b"..."]
    ),
    st.binary(min_size=1, max_size=8).map(lambda raw: raw.translate(None, b"/\0") or b"e"),
).filter(lambda name: name not in (b".", b"..") and not name.startswith(b".wh."))
"""Names; those that an image layer gives another meaning are left out."""
_MODES = st.one_of(st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o1777]), st.integers(0, 0o7777))
_IDS = st.sampled_from([0, 1, 1000, 65534, 100_000, 2**31, 2**32 - 2])
_TIMES_NS = st.one_of(
    st.sampled_from([0, -1, 10**9 - 1, 1_700_000_000 * 10**9, 1_699_999_999_999_999_999]),
    st.integers(-(2**31) * 10**9, 2**33 * 10**9),
)
_KINDS = st.sampled_from(
    [stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO,
     stat.S_IFCHR, stat.S_IFBLK]
)  # fmt: skip
_CONTENT = st.one_of(
    st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"0")),
    st.sampled_from([b"x" * 511, b"x" * 512, b"x" * 513, b"t" * 150, b"../" * 40]),
)
NODES = st.builds(
    Node,
    kind=_KINDS,
    mode=_MODES,
    owner=st.tuples(_IDS, _IDS),
    mtime_ns=_TIMES_NS,
    content=_CONTENT,
    hole_bytes=st.sampled_from([0, 0, 0, 1 << 20]),
    device=st.tuples(st.integers(1, 4095), st.integers(0, 2**20 - 1)),
    note=st.none() | st.binary(max_size=12),
    capability=st.none() | st.sampled_from(CAPABILITIES),
)

# --- steps --------------------------------------------------------------------------------------

_CANNOT_BE = (
    errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY,
    errno.EXDEV,
)  # fmt: skip
"""What a step may be answered with that goes where it cannot: it changes nothing then. A directory
of an image cannot be renamed in an overlay (EXDEV), programs copy it then."""


class Step(Protocol):
    def take(self, root: bytes) -> None: ...


@dataclass(frozen=True)
class Make:
    """Make an entry in one of the directories."""

    where: int
    name: bytes
    node: Node

    def take(self, root: bytes) -> None:
        self.node.make(os.path.join(_directory(root, self.where), self.name))


@dataclass(frozen=True)
class Link:
    """Give a file or symbolic link one more name; GNU tar knows such names of nothing else."""

    which: int
    where: int
    name: bytes

    def take(self, root: bytes) -> None:
        found = _entry(root, self.which)
        if found and stat.S_IFMT(os.lstat(found).st_mode) in (stat.S_IFREG, stat.S_IFLNK):
            target = os.path.join(_directory(root, self.where), self.name)
            os.link(found, target, follow_symlinks=False)


@dataclass(frozen=True)
class Rename:
    """Give an entry another place, perhaps that of another."""

    which: int
    where: int
    name: bytes

    def take(self, root: bytes) -> None:
        if found := _entry(root, self.which):
            os.rename(found, os.path.join(_directory(root, self.where), self.name))


@dataclass(frozen=True)
class Remove:
    """Remove an entry with all below it."""

    which: int

    def take(self, root: bytes) -> None:
        if found := _entry(root, self.which):
            _remove(found)


@dataclass(frozen=True)
class Replace:
    """Put another entry in the place of one; in a directory's, if that was one, the first names
    that it had come back as ``inside``."""

    which: int
    node: Node
    inside: tuple[Node, ...]

    def take(self, root: bytes) -> None:
        if not (found := _entry(root, self.which)):
            return
        names = sorted(os.listdir(found)) if _is_directory(found) else []
        _remove(found)
        self.node.make(found)
        if self.node.kind == stat.S_IFDIR:
            for name, node in zip(names, self.inside, strict=False):
                node.make(os.path.join(found, name))


@dataclass(frozen=True)
class Alter:
    """Change one thing of an entry and leave the others."""

    which: int
    what: str
    to: Node

    def take(self, root: bytes) -> None:
        if not (found := _entry(root, self.which)):
            return
        kind = stat.S_IFMT(os.lstat(found).st_mode)
        if self.what == "owner":
            os.chown(found, *self.to.owner, follow_symlinks=False)
        elif self.what == "time":
            time_ns = self.to.mtime_ns
            os.utime(found, ns=(time_ns, time_ns), follow_symlinks=False)
        elif self.what == "fraction":
            time_ns = os.lstat(found).st_mtime_ns // 10**9 * 10**9
            os.utime(found, ns=(time_ns, time_ns), follow_symlinks=False)
        elif self.what == "mode" and kind != stat.S_IFLNK:
            os.chmod(found, self.to.mode)
        elif self.what == "content" and kind == stat.S_IFREG:
            with open(found, "r+b") as file:
                file.write(self.to.content)
        elif self.what == "note" and kind in (stat.S_IFREG, stat.S_IFDIR):
            os.setxattr(found, "user.note", self.to.note or b"")
        elif self.what == "capability" and kind == stat.S_IFREG:
            os.setxattr(found, "security.capability", self.to.capability or CAPABILITIES[0])


def _directory(root: bytes, number: int) -> bytes:
    found = [b"", *(path for path in paths(root) if _is_directory(os.path.join(root, path)))]
    return os.path.join(root, found[number % len(found)])


def _entry(root: bytes, number: int) -> bytes:
    found = paths(root)
    return os.path.join(root, found[number % len(found)]) if found else b""


def _is_directory(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _remove(path: bytes) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


_NUMBERS = st.integers(0, 30)
_MAKES = st.builds(Make, where=_NUMBERS, name=NAMES, node=NODES)
_LINKS = st.builds(Link, which=_NUMBERS, where=_NUMBERS, name=NAMES)
TREES = st.lists(st.one_of(_MAKES, _MAKES, _MAKES, _LINKS), min_size=3, max_size=16)
"""Steps that make a tree in an empty directory."""
CHANGES = st.lists(
    st.one_of(
        _MAKES,
        _LINKS,
        st.builds(Rename, which=_NUMBERS, where=_NUMBERS, name=NAMES),
        st.builds(Remove, which=_NUMBERS),
        st.builds(
            Replace, which=_NUMBERS, node=NODES, inside=st.lists(NODES, max_size=2).map(tuple)
        ),
        st.builds(
            Alter,
            which=_NUMBERS,
            what=st.sampled_from(
                ["owner", "time", "fraction", "mode", "content", "note", "capability"]
            ),
            to=NODES,
        ),
    ),
    min_size=1,
    max_size=8,
)
"""Steps that change a tree."""


def take(steps: Iterable[Step], root: str | bytes | os.PathLike[str]) -> None:
    """Carry the steps out below ``root``."""
    for step in steps:
        try:
            step.take(os.fsencode(root))
        except OSError as error:
            if error.errno not in _CANNOT_BE:
                raise
