"""The engine's quick reading of its flags: the same as argparse's, or left to it."""

from __future__ import annotations

import pytest

from deskd.settings import _parser, _read_plain_flags


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--config-file /c.json",
        "--data-root /x -H unix:///a -H fd:// --exec-root /y",
        "-b br0 --dns 192.0.2.1 --dns 192.0.2.2",
    ],
)
def test_plain_flags_are_read_as_argparse_reads_them(line: str) -> None:
    read = _read_plain_flags(line.split())
    assert read is not None
    argparsed = vars(_parser().parse_args(line.split()))
    given = {name: value for name, value in argparsed.items() if value is not None}
    assert {name: value for name, value in read.items() if value is not None} == given


@pytest.mark.parametrize(
    "line",
    ["--debug --tls", "--data-root", "one two", "--mtu 1400", "-H --debug", "--dns=192.0.2.1 x"],
)
def test_everything_else_is_left_to_argparse(line: str) -> None:
    assert _read_plain_flags(line.split()) is None
