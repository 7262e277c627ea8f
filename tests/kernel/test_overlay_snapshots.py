"""Writable roots on real overlay mounts: what is seen, what changed, what a commit makes."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.id_mapping import IdMapping
from deskd.domain.image import ImageConfig, ImageRecord, RootFs
from deskd.images.layers import MAXIMUM_LAYERS
from deskd.images.pack import END, IterReader, pack_layer
from deskd.storage.snapshots import Snapshots
from tests.kernel.image_store import Stores, directory, entry, stores, symlink, tar

pytestmark = pytest.mark.root

CONTAINER = "c" * 64
BASE = tar(
    directory("./", 0o711),
    directory("etc"),
    entry("etc/passwd", b"root"),
    entry("etc/group", b"wheel"),
    directory("opt"),
    entry("opt/a", b"a"),
    entry("opt/b", b"b"),
    entry("opt/sub/deep", b"d"),
    directory("srv"),
    entry("srv/x", b"x"),
    symlink("link", "etc"),
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Stores]:
    with stores(tmp_path / "data, root:1") as opened:  # what mount options must escape
        yield opened


def make_image(opened: Stores, *layers: bytes) -> ImageRecord:
    staged = [opened.layers.stage(io.BytesIO(layer)) for layer in layers]
    config = ImageConfig(
        architecture="amd64",
        os="linux",
        rootfs=RootFs(diff_ids=[layer.unpacked.diff_id for layer in staged]),
    )
    try:
        return opened.catalog.add(rules.encode_config(config), staged)
    finally:
        for layer in staged:
            opened.layers.discard(layer)


@contextmanager
def mounted(opened: Stores, tmp_path: Path, container_id: str = CONTAINER) -> Iterator[Path]:
    """Perform the root's mount steps as the executor does."""
    target = tmp_path / "mnt"
    target.mkdir(exist_ok=True)
    (step,) = opened.snapshots.mounts(container_id)
    if step.kind == "bind":
        command = ["mount", "--bind", step.source, str(target)]
    else:
        # Not mount(8): it would parse the options itself.
        command = ["busybox", "mount", "-t", "overlay", "-o", step.data, "overlay", str(target)]
    subprocess.run(command, cwd=step.source, check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def shown(opened: Stores) -> list[str]:
    """Return the changes as ``docker diff`` prints them."""
    return [f"{'CAD'[c.kind]} {c.path}" for c in opened.snapshots.changes(CONTAINER)]


def test_a_container_sees_its_image_and_keeps_its_changes(opened: Stores, tmp_path: Path) -> None:
    image = make_image(opened, BASE, tar(entry("etc/.wh.group"), entry("etc/new", b"2nd")))
    opened.snapshots.create(CONTAINER, image.id)
    with mounted(opened, tmp_path) as root:
        names = {path.name for path in (root / "etc").iterdir()}
        assert names == {"new", "passwd", "hostname", "hosts", "mtab", "resolv.conf"}
        assert stat.S_IMODE(root.stat().st_mode) == 0o755  # the top layer's, which says nothing
        (root / "etc/passwd").write_text("changed")
    with mounted(opened, tmp_path) as root:
        assert (root / "etc/passwd").read_text() == "changed"
    opened.snapshots.remove(CONTAINER)
    opened.snapshots.remove(CONTAINER)
    assert not Path(opened.snapshots.upper(CONTAINER)).exists()
    assert opened.leftovers() == []
    with pytest.raises(errors.NotFound):
        opened.snapshots.mounts(CONTAINER)


def test_the_root_directory_has_the_images_mode(opened: Stores, tmp_path: Path) -> None:
    opened.snapshots.create(CONTAINER, make_image(opened, BASE).id)
    with mounted(opened, tmp_path) as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o711


def test_changes_are_dockers(opened: Stores, tmp_path: Path) -> None:
    opened.snapshots.create(CONTAINER, make_image(opened, BASE).id)
    assert shown(opened) == []
    with mounted(opened, tmp_path) as root:
        (root / "etc/passwd").write_text("changed")
        (root / "etc/group").unlink()
        (root / "tmp").mkdir()
        (root / "tmp/new").write_text("n")
        shutil.rmtree(root / "opt")
        (root / "opt").mkdir()
        (root / "opt/b").write_text("own")
        (root / "opt/sub").mkdir()
        (root / "link").unlink()
        (root / "link").write_text("a file now")
        with (root / "srv/x").open("r+b"):
            pass  # copied up, not changed
        (root / "gone").write_text("")
        (root / "gone").unlink()
    assert shown(opened) == [
        "C /etc", "D /etc/group", "C /etc/passwd", "C /link", "C /opt", "D /opt/a", "C /opt/b",
        "C /opt/sub", "D /opt/sub/deep",
        "A /tmp", "A /tmp/new",
    ]  # fmt: skip


def test_a_changed_directory_alone_counts(opened: Stores, tmp_path: Path) -> None:
    opened.snapshots.create(CONTAINER, make_image(opened, BASE).id)
    with mounted(opened, tmp_path) as root:
        (root / "srv").chmod(0o700)
        shutil.rmtree(root / "opt")
        (root / "opt").write_text("no directory")
    assert shown(opened) == ["C /opt", "C /srv"]


def alter_type(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").mkdir()
    (root / "etc/passwd/inside").write_text("i")
    shutil.rmtree(root / "srv")
    (root / "srv").symlink_to("opt")
    (root / "link").unlink()
    os.mkfifo(root / "link")


def alter_hard_links(root: Path) -> None:
    os.link(root / "opt/a", root / "opt/other")  # copies the file up, which is no change of it
    os.link(root / "etc/passwd", root / "etc/second")
    (root / "etc/second").write_text("changed by its other name")


def alter_attributes(root: Path) -> None:
    (root / "etc/passwd").chmod(0o600)
    os.utime(root / "etc/group", (5, 5))
    os.chown(root / "opt/a", 7, -1)
    os.setxattr(root / "opt/b", "security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12))
    os.setxattr(root / "srv/x", "user.note", b"no change that Docker looks for")
    os.utime(root / "srv", (5, 5))  # nor is a directory's time
    os.utime(root / "link", (5, 5), follow_symlinks=False)


def alter_a_time_within_its_second(root: Path) -> None:
    os.utime(root / "opt/a", ns=(0, 1_700_000_000_500_000_000))
    os.utime(root / "opt/b", ns=(0, 1_700_000_001_000_000_000))


def move_things(root: Path) -> None:
    (root / "opt/a").rename(root / "opt/z")
    with pytest.raises(OSError, match="cross-device"):
        (root / "opt/sub").rename(root / "opt/moved")  # programs copy and remove then
    subprocess.run(["mv", root / "opt/sub", root / "opt/moved"], check=True)
    (root / "new").mkdir()
    (root / "new/x").write_text("longer")
    (root / "new/y").write_text("y")
    shutil.rmtree(root / "srv")
    (root / "new").rename(root / "srv")  # hides the image's directory of that name


def make_again(root: Path) -> None:
    for name in ("opt/a", "etc/passwd"):
        (root / name).unlink()
    (root / "opt/a").write_text("a")
    os.utime(root / "opt/a", (1_700_000_000, 1_700_000_000))  # all is as it was
    (root / "etc/passwd").write_text("ROOT")
    shutil.rmtree(root / "srv")
    (root / "srv").mkdir(0o755)
    (root / "srv/x").write_text("x")
    os.utime(root / "srv/x", (1_700_000_000, 1_700_000_000))


def make_again_within_what_was_made_again(root: Path) -> None:
    shutil.rmtree(root / "opt")
    (root / "opt/sub").mkdir(parents=True)
    (root / "opt/sub/deep").mkdir()
    (root / "opt/sub/deep/er").write_text("e")
    (root / "opt/a").symlink_to("b")


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (alter_type, ["C /etc", "C /etc/passwd", "A /etc/passwd/inside", "C /link", "C /srv"]),
        (alter_hard_links, ["C /etc", "C /etc/passwd", "A /etc/second", "C /opt", "A /opt/other"]),
        (
            alter_attributes,
            ["C /etc", "C /etc/group", "C /etc/passwd", "C /link", "C /opt", "C /opt/a",
             "C /opt/b"],
        ),
        (alter_a_time_within_its_second, ["C /opt", "C /opt/b"]),
        (
            move_things,
            ["C /opt", "D /opt/a", "A /opt/moved", "A /opt/moved/deep", "D /opt/sub", "A /opt/z",
             "C /srv", "C /srv/x", "A /srv/y"],
        ),
        (make_again, ["C /etc", "C /etc/passwd"]),
        (
            make_again_within_what_was_made_again,
            ["C /opt", "C /opt/a", "D /opt/b", "C /opt/sub", "C /opt/sub/deep",
             "A /opt/sub/deep/er"],
        ),
    ],
)  # fmt: skip
def test_changes_of_every_kind_are_dockers(
    opened: Stores, tmp_path: Path, alter: Callable[[Path], None], expected: list[str]
) -> None:
    opened.snapshots.create(CONTAINER, make_image(opened, BASE).id)
    with mounted(opened, tmp_path) as root:
        alter(root)
    assert shown(opened) == expected


def test_a_committed_layer_shows_the_same_files(opened: Stores, tmp_path: Path) -> None:
    base = make_image(opened, BASE)
    opened.snapshots.create(CONTAINER, base.id)
    with mounted(opened, tmp_path) as root:
        (root / "etc/group").unlink()
        shutil.rmtree(root / "opt")
        (root / "opt").mkdir(0o750)
        (root / "opt/c").write_text("c")
        os.link(root / "opt/c", root / "opt/d")
        os.chown(root / "etc/passwd", 5, 6)
        os.setxattr(root / "etc/passwd", "user.note", b"\x00\xff")
        os.mkfifo(root / "pipe")
        expected = listing(root)
        (root / "etc/hosts").touch()  # as the engine does to mount its own file there
    layer = b"".join(pack_layer(opened.snapshots.upper(CONTAINER)))
    assert layer == b"".join(pack_layer(opened.snapshots.upper(CONTAINER)))
    assert IterReader(iter([b"ab", b"", b"c"])).read(1) == b"a"
    committed = make_image(opened, BASE, opened.snapshots.layer_tar(CONTAINER).read(1) and layer)
    opened.snapshots.create("d" * 64, committed.id)
    with mounted(opened, tmp_path, "d" * 64) as root:
        assert listing(root) == expected
        assert os.getxattr(root / "etc/passwd", "user.note") == b"\x00\xff"


def listing(root: Path) -> list[tuple[str, int, int, int, int, bytes]]:
    found = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        name = str(path.relative_to(root))
        links = status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0
        found.append((name, status.st_mode, status.st_uid, status.st_gid, links, content))
    return found


def test_as_many_layers_as_docker_allows_fit_in_one_mount(opened: Stores, tmp_path: Path) -> None:
    layers = [tar(entry(f"file{number}", b"x")) for number in range(MAXIMUM_LAYERS)]
    image = make_image(opened, *layers)
    opened.snapshots.create(CONTAINER, image.id)
    (step,) = opened.snapshots.mounts(CONTAINER)
    assert len(step.data) < 4096
    with mounted(opened, tmp_path) as root:
        assert len(list(root.glob("file*"))) == MAXIMUM_LAYERS
    with pytest.raises(errors.InvalidArgument, match="max depth exceeded"):
        make_image(opened, *layers, tar(entry("one-more")))
    assert opened.leftovers() == []


def test_a_volatile_root_can_be_mounted_again_after_an_unclean_end(
    opened: Stores, tmp_path: Path
) -> None:
    opened.snapshots.create(CONTAINER, make_image(opened, BASE).id, volatile=True)
    with mounted(opened, tmp_path) as root:
        (root / "x").write_text("x")
    mark = Path(opened.root.container_file(CONTAINER, "work"), "work/incompat/volatile")
    mark.mkdir(parents=True, exist_ok=True)
    with mounted(opened, tmp_path) as root:
        assert (root / "x").read_text() == "x"


def test_an_image_without_layers_is_a_root_with_places_to_mount_on(
    opened: Stores, tmp_path: Path
) -> None:
    opened.snapshots.create(CONTAINER, make_image(opened).id)
    with mounted(opened, tmp_path) as root:
        assert {path.name for path in root.iterdir()} == {
            ".dockerenv", "dev", "etc", "proc", "sys",
        }  # fmt: skip
        assert (root / "etc/mtab").readlink() == Path("/proc/mounts")
        (root / "x").write_text("x")
        (root / "etc/x").write_text("x")
    assert shown(opened) == ["C /etc", "A /etc/x", "A /x"]


def test_what_an_image_has_hides_the_places_to_mount_on(opened: Stores, tmp_path: Path) -> None:
    layer = tar(
        directory("etc", 0o700), entry("etc/hosts", b"own"), symlink("dev", "elsewhere"),
        entry("proc", b"a file"),
    )  # fmt: skip
    opened.snapshots.create(CONTAINER, make_image(opened, layer).id)
    with mounted(opened, tmp_path) as root:
        assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o700
        assert (root / "etc/hosts").read_text() == "own"
        assert (root / "dev").readlink() == Path("elsewhere")
        assert (root / "proc").read_text() == "a file"
        assert (root / "sys").is_dir()
    assert shown(opened) == []


def test_a_root_takes_the_disk_only_for_what_is_written(opened: Stores, tmp_path: Path) -> None:
    snapshots, place = opened.snapshots, Path(opened.root.container(CONTAINER))
    snapshots.create(CONTAINER, make_image(opened, BASE).id)

    def nothing_is_there() -> bool:
        return not place.exists() and shown(opened) == []

    assert nothing_is_there()
    assert b"".join(iter(snapshots.layer_tar(CONTAINER).read, b"")) == END
    with mounted(opened, tmp_path) as root:
        (root / "srv/x").read_text()
        (place / "hosts").touch()
    snapshots.put_away(CONTAINER)
    assert nothing_is_there()
    with mounted(opened, tmp_path) as root:
        (root / "new").touch()
        (place / "some.log").touch()
    snapshots.put_away(CONTAINER)
    snapshots.put_away(CONTAINER)
    assert {path.name for path in place.iterdir()} == {"upper", "some.log"}
    assert shown(opened) == ["A /new"]
    with mounted(opened, tmp_path) as root:
        (root / "new").unlink()
    (place / "some.log").unlink()
    snapshots.put_away(CONTAINER)
    assert nothing_is_there()


@pytest.mark.parametrize(
    "alter",
    [
        lambda root: root.chmod(0o777),
        lambda root: os.chown(root, 1, 0),
        lambda root: os.chown(root, 0, 1),
        lambda root: os.setxattr(root, "user.note", b"n"),
        lambda root: (root / "link").unlink(),
    ],
)
def test_a_change_of_the_root_directory_itself_stays(
    opened: Stores, tmp_path: Path, alter: Callable[[Path], None]
) -> None:
    def seen() -> tuple[object, ...]:
        with mounted(opened, tmp_path) as root:
            found = root.stat()
            names = [name for name in os.listxattr(root) if name.startswith("user.")]
            return (
                found.st_mode,
                found.st_uid,
                found.st_gid,
                names,
                {path.name for path in root.iterdir()},
            )

    opened.snapshots.create(CONTAINER, make_image(opened, BASE).id)
    before = seen()
    opened.snapshots.put_away(CONTAINER)
    assert seen() == before
    with mounted(opened, tmp_path) as root:
        alter(root)
    after = seen()
    assert after != before
    opened.snapshots.put_away(CONTAINER)
    assert seen() == after


def test_layers_live_as_long_as_a_container_stands_on_them(opened: Stores) -> None:
    image = make_image(opened, BASE)
    opened.snapshots.create(CONTAINER, image.id)
    opened.catalog.delete(image.id)
    assert opened.layers.release_unused() == []
    assert len(opened.snapshots.mounts(CONTAINER)) == 1
    opened.snapshots.remove(CONTAINER)
    assert opened.layers.all() == []
    assert opened.layer_directories() == set()


def test_a_missing_image_makes_no_root(opened: Stores) -> None:
    with pytest.raises(errors.NotFound):
        opened.snapshots.create(CONTAINER, "sha256:" + "0" * 64)
    assert not Path(opened.root.container(CONTAINER)).exists()


def test_roots_of_lost_containers_are_swept(opened: Stores) -> None:
    image = make_image(opened, BASE)
    opened.snapshots.create(CONTAINER, image.id)
    opened.snapshots.create("e" * 64, image.id)
    for container_id in (CONTAINER, "e" * 64):
        opened.snapshots.restore(container_id)
    Path(opened.root.container("f" * 64)).mkdir()
    opened.snapshots.sweep({CONTAINER})
    assert [p.name for p in Path(opened.root.containers).iterdir()] == [CONTAINER]
    assert len(opened.snapshots.mounts(CONTAINER)) == 1


@pytest.mark.parametrize("remapped", [False, True])
def test_missing_directories_of_a_root_are_made_again_as_they_were(
    opened: Stores, remapped: bool
) -> None:
    member, data = directory("./", 0o1731)
    member.uid, member.gid = 7, 8
    image = make_image(opened, tar((member, data), entry("file", b"x")))
    id_map = IdMapping(((0, 200_000, 65536),), ((0, 300_000, 65536),))
    snapshots = Snapshots(opened.root, opened.database, opened.layers, id_map)
    snapshots.create(CONTAINER, image.id, remapped=remapped)
    snapshots.restore(CONTAINER)
    place = Path(opened.root.container(CONTAINER))
    upper = Path(snapshots.upper(CONTAINER))
    kept = upper / "kept"

    def found() -> dict[str, tuple[int, int, int]]:
        return {
            str(path): (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid)
            for path in (place, upper, place / "work")
        }

    new = found()
    base = (200_000, 300_000) if remapped else (0, 0)
    assert new[str(upper)] == (stat.S_IFDIR | 0o1731, base[0] + 7, base[1] + 8)
    for lost in (upper, place / "work", place):
        shutil.rmtree(lost)
        snapshots.restore(CONTAINER)
        assert found() == new
        kept.touch()
        snapshots.restore(CONTAINER)
        assert kept.exists(), "what is there stays as it is"
