"""The json-file log, line by line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskd.runtime.json_log import LINE_BYTES, JsonLog
from deskd.runtime.local_log import LocalLog
from deskd.runtime.plan import LogSpec


def entries(path: Path) -> list[dict[str, Any]]:
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


@settings(deadline=None)
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


@pytest.mark.parametrize("kind", [JsonLog, LocalLog])
@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
def test_a_file_is_full_with_the_line_that_reaches_its_size(
    tmp_path: Path, kind: type[JsonLog], block: int
) -> None:
    path = tmp_path / "log"
    log = kind(LogSpec(str(path), max_size_bytes=3000, max_files=100))
    data = b"".join(b"line %d\n" % number for number in range(700))
    for start in range(0, len(data), block):
        log.write("stdout", data[start : start + block])
    log.close()
    files = [path, *(Path(f"{path}.{number}") for number in range(1, 100))]
    texts = [file.read_bytes() for file in files if file.exists()]
    assert len(texts) > 5
    for text in texts[1:]:
        *all_but_last, _ = text.splitlines(keepends=True)
        assert sum(map(len, all_but_last)) < 3000 <= len(text)
    assert sum(text.count(b"\n") for text in texts) == 700


def test_one_file_alone_starts_again_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonLog(LogSpec(str(path), max_size_bytes=1000, max_files=1))
    log.write("stdout", b"".join(b"line %d\n" % number for number in range(200)))
    log.close()
    assert path.stat().st_size < 1100
    assert entries(path)[-1]["log"] == "line 199\n"
    assert list(tmp_path.iterdir()) == [path]
