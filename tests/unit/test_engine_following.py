"""Streams that go on: what counts as a break, how long it is waited for, what comes once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from desk.engine import following
from desk.engine.following import _Place, going_on
from desk.engine.streams import STDERR, STDOUT, Frame, demultiplex
from desk.engine.wire import ProtocolError
from desk.errors import EngineError, EngineUnreachable

BREAK = ProtocolError("the engine closed the connection")


def breaking(*items: int, error: EngineError = BREAK) -> Iterator[int]:
    yield from items
    raise error


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_PAUSE_S", 0.0)


def test_a_stream_goes_on_until_its_end() -> None:
    streams = [breaking(2), breaking(3, 4), iter([5])]
    losses: list[EngineError] = []
    assert list(going_on(breaking(1), lambda: streams.pop(0), losses.append)) == [1, 2, 3, 4, 5]
    assert losses == [BREAK]  # told once for breaks that follow each other


def test_an_answer_of_the_engine_is_no_break() -> None:
    gone = EngineError("No such container: web", status=404)
    with pytest.raises(EngineError, match="No such container"):
        list(going_on(breaking(1, error=gone), lambda: iter([2]), lambda _: None))

    def reopen() -> Iterator[int]:
        raise gone

    with pytest.raises(EngineError, match="No such container"):
        list(going_on(breaking(1), reopen, lambda _: None))


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (EngineUnreachable("nothing listens"), "_NOBODY_S"),
        (EngineError("machine m is not reachable", status=503), "_AWAY_S"),
        (BREAK, "_AWAY_S"),
    ],
)
def test_who_stays_away_is_given_up_after_a_while(
    error: EngineError, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_NOBODY_S", "_AWAY_S"):
        monkeypatch.setattr(following, name, 0.2 if name == limit else 3600.0)

    def reopen() -> Iterator[int]:
        raise error

    with pytest.raises(type(error), match=error.text):
        list(going_on(breaking(1), reopen, lambda _: None))


def test_a_stream_that_only_breaks_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_AWAY_S", 0.2)
    with pytest.raises(ProtocolError):
        list(going_on(breaking(1), breaking, lambda _: None))


def entry(second: int, text: str, stream: int = STDOUT) -> Frame:
    return Frame(stream, f"2026-01-31T12:00:{second:02d}.000000001Z {text}\n".encode())


def texts(frames: Iterator[Frame]) -> list[str]:
    return [frame.data.decode().strip() for frame in frames]


def test_lines_of_one_moment_come_once() -> None:
    place = _Place(shows=False)
    assert place.resume() == ""
    read = [entry(1, "a"), entry(2, "b"), entry(2, "b", STDERR)]
    assert texts(place.noted(iter(read))) == ["a", "b", "b"]
    assert place.resume() == "1769860802.000000001"
    again = [*read[1:], entry(2, "c"), entry(3, "d")]
    assert texts(place.noted(iter(again))) == ["c", "d"]
    place.resume()
    # A rotated log has lost what was read already.
    assert texts(place.noted(iter([entry(4, "e")]))) == ["e"]


def test_times_stay_where_they_are_wanted() -> None:
    place = _Place(shows=True)
    assert texts(place.noted(iter([entry(1, "a")]))) == ["2026-01-31T12:00:01.000000001Z a"]


def test_a_line_without_its_time_is_refused() -> None:
    with pytest.raises(ProtocolError, match="without its time"):
        texts(_Place(shows=False).noted(iter([Frame(STDOUT, b"a\n")])))


def test_whole_frames_wait_for_their_end() -> None:
    wire = b"\x01\0\0\0\0\0\0\x04abcd\x02\0\0\0\0\0\0\x02ef"
    pieces = [wire[index : index + 3] for index in range(0, len(wire), 3)]
    assert list(demultiplex(pieces, whole=True)) == [Frame(STDOUT, b"abcd"), Frame(STDERR, b"ef")]
    assert b"".join(frame.data for frame in demultiplex(pieces)) == b"abcdef"
