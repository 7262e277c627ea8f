"""The json-file log, line by line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from deskd.runtime.json_log import LINE_BYTES, JsonLog
from deskd.runtime.plan import LogSpec


def entries(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_streams_keep_their_own_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonLog(LogSpec(str(path), extra=(("a", 'b"'),)))
    log.write("stdout", b"one")
    log.write("stderr", b"two\n")
    log.write("stdout", b" more\nrest")
    log.close()
    found = entries(path)
    assert [(e["stream"], e["log"]) for e in found] == [
        ("stderr", "two\n"),
        ("stdout", "one more\n"),
        ("stdout", "rest"),
    ]
    assert all(e["attrs"] == {"a": 'b"'} for e in found)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", found[0]["time"])


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=50),
            st.sampled_from([b"\n", b"x" * LINE_BYTES, b"y" * (LINE_BYTES - 1), b"z" * 40000]),
        ),
        max_size=12,
    )
)
def test_every_byte_arrives_and_no_entry_is_too_long(chunks: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        log = JsonLog(LogSpec(str(path)))
        for chunk in chunks:
            log.write("stdout", chunk)
        log.close()
        found = [json.loads(line)["log"] for line in path.read_bytes().decode().split("\n") if line]
    whole = b"".join(chunks)
    if b"\xff" not in whole and whole.isascii():
        assert "".join(found).encode() == whole
    assert all(len(text.removesuffix("\n")) <= LINE_BYTES for text in found)
    assert sum(text.endswith("\n") for text in found) == whole.count(b"\n")


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonLog(LogSpec(str(path), max_size_bytes=200, max_files=2))
    for number in range(20):
        log.write("stdout", f"line {number}\n".encode())
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1"]
    assert entries(path)[-1]["log"] == "line 19\n"
    single = tmp_path / "single"
    log = JsonLog(LogSpec(str(single), max_size_bytes=100, max_files=1))
    for number in range(20):
        log.write("stdout", f"line {number}\n".encode())
    log.close()
    assert single.stat().st_size < 400


def test_a_full_disk_costs_lines_and_says_so_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonLog(LogSpec(str(path)))
    good = log._fd
    log._fd = os.open("/dev/full", os.O_WRONLY)
    log.write("stdout", b"lost\nlost too\n")
    assert log.lost_lines == 2
    os.close(log._fd)
    log._fd = good
    log.write("stdout", b"kept\n")
    log.close()
    assert [e["log"] for e in entries(path)] == [
        "2 log lines were lost: the log could not be written\n",
        "kept\n",
    ]
