"""Log drivers: their options, packed rotation, the compact format, the buffer."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from deskd.errors import InvalidArgument
from deskd.logs import files, json_file, local_file
from deskd.runtime.buffered_log import BufferedLog
from deskd.runtime.json_log import LINE_BYTES, JsonLog, open_log
from deskd.runtime.log_compression import pack
from deskd.runtime.log_options import check_log_options, log_spec
from deskd.runtime.plan import LogSpec


def read_all(path: Path, tail: int | None = None) -> list[bytes]:
    reader = json_file.Reader(str(path), tail=tail)
    try:
        lines: list[bytes] = []
        while found := reader.read_lines():
            lines += found
        return lines
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("json-file", {"foo": "1"}, "unknown log opt 'foo' for json-file log driver"),
        ("local", {"labels": "a"}, "unknown log opt 'labels' for log driver local"),
        ("nosuch", {}, "no log driver named 'nosuch' is registered"),
        ("json-file", {"mode": "bad"}, "logging mode not supported: bad"),
        ("json-file", {"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ("json-file", {"mode": "non-blocking", "max-buffer-size": "zz"}, "invalid size"),
        ("json-file", {"labels-regex": "["}, "labels-regex"),
    ],
)
def test_bad_drivers_and_options_are_refused(
    driver: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        check_log_options(driver, options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max-file": "0"}, "max-file must be 1 or more"),
        ({"max-file": "x"}, "not a number"),
        ({"max-size": "x"}, "invalid size"),
        ({"compress": "true"}, "compress cannot be true when max-file is less than 2"),
        ({"compress": "zz"}, "must be true or false"),
    ],
)
def test_bad_values_are_refused(options: dict[str, str], text: str) -> None:
    check_log_options("json-file", options)
    with pytest.raises(InvalidArgument, match=text):
        log_spec("json-file", "/log", options)


def test_defaults_of_the_drivers() -> None:
    assert log_spec("none", "", {}) is None
    plain = log_spec("json-file", "/log", {})
    assert plain == LogSpec("/log")
    local = log_spec("local", "/log", {"mode": "non-blocking"})
    assert local == LogSpec(
        "/log", 20 << 20, 5, driver="local", compress=True, buffer_bytes=1 << 20
    )


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_packed_rotation_loses_nothing_and_tails(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "log"
    log = open_log(LogSpec(str(path), 4000, 100, driver=driver, compress=True))
    follower = json_file.Reader(str(path))
    followed: list[bytes] = []
    for number in range(500):
        log.write("stdout", f"line {number}\n".encode())
        if number % 90 == 0:
            followed += follower.read_lines()
    log.close()
    log.settle()
    names = {p.name for p in tmp_path.iterdir()}
    assert {"log", "log.1.gz", "log.2.gz"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    entries = local_file.entries if driver == "local" else json_file.entries
    expected = [f"line {number}\n" for number in range(500)]
    assert [e.log for e in entries(read_all(path))] == expected
    assert [e.log for e in entries(read_all(path, tail=450))] == expected[-450:]
    while found := follower.read_lines():
        followed += found
    follower.close()
    assert [e.log for e in entries(followed)] == expected


@pytest.mark.parametrize("compress", [False, True])
def test_readers_that_open_in_the_middle_of_rotations_miss_nothing(
    tmp_path: Path, compress: bool
) -> None:
    path = tmp_path / "log"
    log = open_log(LogSpec(str(path), 1000, 1000, compress=compress))
    log.write("stdout", b"line 0\n")

    def write() -> None:
        for number in range(1, 500):
            log.write("stdout", f"line {number}\n".encode())

    writing = threading.Thread(target=write)
    writing.start()
    try:
        while writing.is_alive():
            found = [entry.log for entry in json_file.entries(read_all(path))]
            assert found == [f"line {number}\n" for number in range(len(found))]
    finally:
        writing.join()
        log.close()
        log.settle()
    assert len(list(json_file.entries(read_all(path)))) == 500


def test_files_that_come_from_behind_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rotations pass while a reader has opened the first of the files."""
    path = tmp_path / "log"
    log = open_log(LogSpec(str(path), 1, 9))  # every line makes its file full
    for number in range(2):
        log.write("stdout", f"line {number}\n".encode())
    waiting = [2, 3]
    real = files._open_one

    def opened_and_rotated(name: str) -> files.LogFile | None:
        found = real(name)
        while waiting:
            log.write("stdout", f"line {waiting.pop(0)}\n".encode())
        return found

    monkeypatch.setattr(files, "_open_one", opened_and_rotated)
    found = [entry.log for entry in json_file.entries(read_all(path))]
    log.close()
    assert found == [f"line {number}\n" for number in range(4)]


def test_a_newer_file_with_the_inode_of_a_packed_one_is_no_end(tmp_path: Path) -> None:
    """A reader has read a packed file whose inode, from before, the newest file has now."""
    path = tmp_path / "log"

    def write(place: Path, text: str) -> None:
        with contextlib.closing(open_log(LogSpec(str(place)))) as log:
            log.write("stdout", text.encode())

    newest, packed = tmp_path / "newest", Path(f"{path}.1.gz")
    write(newest, "third\n")
    inode = newest.stat().st_ino
    write(Path(f"{path}.1"), "first\n")
    pack(f"{path}.1")
    raw = bytearray(packed.read_bytes())
    end = raw.index(0, 10)
    raw[10:end] = b"inode=%d" % inode
    packed.write_bytes(raw)
    reader = json_file.Reader(str(path))
    read = reader.read_lines()
    packed.rename(f"{path}.2.gz")
    write(Path(f"{path}.1"), "second\n")
    newest.rename(path)
    while more := reader.read_lines():
        read += more
    reader.close()
    assert [entry.log for entry in json_file.entries(read)] == ["first\n", "second\n", "third\n"]


def test_rotation_keeps_only_so_many_packed_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = open_log(LogSpec(str(path), 300, 3, compress=True))
    for number in range(100):
        log.write("stdout", f"line {number}\n".encode())
    log.close()
    log.settle()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1.gz", "log.2.gz"]


def test_local_keeps_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = open_log(LogSpec(str(path), driver="local"))
    data = bytes(range(10)) + bytes(range(11, 256))
    log.write("stderr", data + b"\n")
    log.write("stdout", b"x" * (LINE_BYTES + 5) + b"\nrest")
    log.close()
    found = list(local_file.entries(read_all(path)))
    assert found[0].stream == "stderr"
    assert found[0].log.encode("utf-8", "surrogateescape") == data + b"\n"
    assert [len(e.log) for e in found[1:]] == [LINE_BYTES, 6, 4]
    assert found[0].time.endswith("Z")
    assert local_file.parse_line(b"damaged") is None


class SlowLog(JsonLog):
    """Waits before each write, as a busy disk does."""

    def __init__(self, spec: LogSpec) -> None:
        super().__init__(spec)
        self.may_write = threading.Event()

    def write(self, stream: str, data: bytes) -> None:
        self.may_write.wait()
        super().write(stream, data)


def test_a_full_buffer_drops_instead_of_waiting(tmp_path: Path) -> None:
    path = tmp_path / "log"
    slow = SlowLog(LogSpec(str(path)))
    log = BufferedLog(slow, 100)
    for number in range(1000):
        log.write("stdout", f"line {number:03}\n".encode())
    slow.may_write.set()
    log.close()
    found = [e.log for e in json_file.entries(read_all(path))]
    assert 10 <= len(found) <= 13
    assert found[0] == "line 000\n"
