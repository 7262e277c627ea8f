"""The engine's pure rules: settings, routes, filters, times, merging, detach keys, log files."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deskd
from deskd.api.http import Query, decode
from deskd.api.routes import ROUTES
from deskd.api.routing import PageNotFound, Route, Router, split_version
from deskd.api.status import status_of
from deskd.api.streams import DetachFilter, framed, unframed
from deskd.domain.container import ContainerConfig, HostConfig
from deskd.domain.detach_keys import parse_detach_keys
from deskd.domain.event import Event
from deskd.domain.filters import Filters, parse_filters
from deskd.domain.state import TRANSITIONS, ContainerRecord, IllegalTransition, Status
from deskd.domain.times import parse_duration, parse_moment, parse_rfc3339, rfc3339, rfc3339_fixed
from deskd.errors import (
    Conflict,
    DeskdError,
    InvalidArgument,
    NotFound,
    SystemFailure,
    Unsupported,
)
from deskd.logs.json_file import Reader, entries
from deskd.services.events import matches
from deskd.settings import early_exec_root, parse_arguments

REPOSITORY = Path(__file__).resolve().parents[2]


# --- settings -----------------------------------------------------------------------------------


def _file(tmp_path: Path, **values: object) -> str:
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps(values))
    return str(path)


def test_settings_from_flags() -> None:
    settings = parse_arguments(
        [
            *("-H", "unix:///a.sock", "--host", "tcp://127.0.0.1:2375", "--data-root", "/d"),
            *("--dns", "1.1.1.1", "--dns", "9.9.9.9", "--bip", "10.1.0.1/16", "-l", "debug"),
            *("--default-address-pool", "base=10.5.0.0/16,size=24", "--log-opt", "max-size=1m"),
        ]
    )
    assert settings.hosts == ("unix:///a.sock", "tcp://127.0.0.1:2375")
    assert settings.dns == ("1.1.1.1", "9.9.9.9")
    assert settings.data_root == "/d"
    assert settings.default_address_pools[0].size == 24
    assert settings.log_options == {"max-size": "1m"}


def test_settings_from_the_file(tmp_path: Path) -> None:
    path = _file(
        tmp_path, hosts=["unix:///x"], bip="10.2.0.1/24", debug=True, **{"exec-root": "/e"}
    )
    settings = parse_arguments(["--config-file", path])
    assert (settings.hosts, settings.bip, settings.debug) == (("unix:///x",), "10.2.0.1/24", True)
    assert early_exec_root(["--config-file", path]) == "/e" == settings.exec_root
    assert early_exec_root([f"--config-file={path}", "--exec-root", "/f"]) == "/f"


def test_proxies_are_an_object_in_the_file_and_flags_on_the_command_line(tmp_path: Path) -> None:
    path = _file(tmp_path, proxies={"https-proxy": "http://p:1", "no-proxy": ".lan"})
    settings = parse_arguments(["--config-file", path, "--http-proxy", "http://q:2"])
    assert settings.https_proxy == "http://p:1"
    assert settings.no_proxy == ".lan"
    assert settings.http_proxy == "http://q:2"


@pytest.mark.parametrize(
    ("values", "flags", "text"),
    [
        ({"proxies": {"ftp-proxy": "http://p"}}, [], '"proxies" in the configuration file'),
        ({"proxies": {"http-proxy": "p:1"}}, [], "must have the form http://HOST:PORT"),
        ({"nonsense": 1}, [], "keys that this engine does not know: nonsense"),
        ({"bip": "10.1.0.1/16"}, ["--bip", "10.2.0.1/16"], "specified both as a flag and in"),
        ({"hosts": "unix:///x"}, [], '"hosts" must be a list'),
        ({"debug": "perhaps"}, [], "must be true or false"),
        ({"live-restore": False}, [], "live restore cannot be switched off"),
        ({"registry-mirrors": ["mirror.example"]}, [], "unsupported scheme"),
        ({"registry-mirrors": ["https://a@mirror.example"]}, [], "has a user"),
        ({}, ["--insecure-registry", "http://x"], "should not contain '://'"),
        ({}, ["--insecure-registry", "x:5000/y"], "neither HOST:PORT nor a network"),
        ({}, ["--log-level", "loud"], "--log-level loud is unknown"),
        ({}, ["--bip", "10.1.0.1"], "is not an address with a prefix|leaves no address"),
        ({}, ["--dns", "name"], "--dns name is not an IP address"),
        ({}, ["--default-address-pool", "10.0.0.0/8"], "must have the form base="),
        ({}, ["--tlsverify"], "TLS needs a certificate and a key"),
        ({}, ["--storage-driver", "btrfs"], "the only storage driver is overlay2"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, values: dict[str, object], flags: list[str], text: str
) -> None:
    with pytest.raises((InvalidArgument, Unsupported), match=text):
        parse_arguments(["--config-file", _file(tmp_path, **values), *flags])


def test_broken_and_missing_configuration_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(InvalidArgument, match="is not valid JSON"):
        parse_arguments(["--config-file", str(broken)])
    with pytest.raises(InvalidArgument, match="does not exist"):
        parse_arguments(["--config-file", str(tmp_path / "none.json")])


def test_one_version_number() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert deskd.__version__ == project["version"]


def test_dial_stdio_imports_next_to_nothing() -> None:
    script = (
        "import sys; before = set(sys.modules); import deskd.dial; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "guest-engine")},
    )
    loaded = set(eval(done.stdout))
    assert loaded <= {"__future__", "_socket", "deskd", "deskd.dial", "select"}


# --- routes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_has_its_handler(route: Route) -> None:
    module, _, function = route.handler.partition(":")
    assert callable(getattr(import_module(f"deskd.api.routes.{module}"), function))


def test_routes_match_names_with_slashes() -> None:
    router = Router(ROUTES)
    _, values = router.find("GET", "/images/reg.io:5000/a/b:1/json", (1, 47))
    assert values == {"name": "reg.io:5000/a/b:1"}
    _, values = router.find("DELETE", "/images/a/json", (1, 47))
    assert values == {"name": "a/json"}
    _, values = router.find("GET", "/containers/json/json", (1, 47))
    assert values == {"id": "json"}
    for method, path in (("GET", "/containers//json"), ("GET", "/x"), ("POST", "/version")):
        with pytest.raises(PageNotFound):
            router.find(method, path, (1, 47))
    with pytest.raises(PageNotFound):
        router.find("POST", "/containers/prune", (1, 24))


def test_version_prefixes() -> None:
    assert split_version("/v1.30/info") == ((1, 30), "/info")
    # Older tools that move images between stores say this of every engine.
    assert split_version("/v1.22/images/get?names=x") == ((1, 24), "/images/get?names=x")
    assert split_version("/v1.22/images/load") == ((1, 24), "/images/load")
    assert split_version("/version") == ((1, 47), "/version")
    assert split_version("/volumes") == ((1, 47), "/volumes")
    for path in ("/v1.48/x", "/v1.23/x", "/v2.0/x", "/v0.1/x"):
        with pytest.raises(InvalidArgument, match="API version"):
            split_version(path)


def test_statuses() -> None:
    assert status_of(NotFound("x")) == 404
    assert status_of(Conflict("x")) == 409
    assert status_of(SystemFailure("x")) == 500
    assert status_of(ValueError("x")) == 500
    for kind in DeskdError.__subclasses__():
        assert 300 <= status_of(kind.__new__(kind)) <= 503


def test_query_values() -> None:
    query = Query("a=1&b=&c=false&d=x%20y&d=z&e")
    assert (query.flag("a"), query.flag("b"), query.flag("c"), query.flag("e")) == (
        True,
        False,
        False,
        False,
    )
    assert query.texts("d") == ["x y", "z"]
    assert query.integer("a") == 1
    with pytest.raises(InvalidArgument, match="parameter d must be a whole number"):
        query.integer("d")


@given(st.binary(max_size=200))
def test_decoding_never_fails_otherwise(data: bytes) -> None:
    # Any other exception fails the test.
    with contextlib.suppress(InvalidArgument):
        decode(data, ContainerConfig)


# --- domain -------------------------------------------------------------------------------------


def test_filters() -> None:
    filters = parse_filters('{"label": ["a=1", "b"], "status": {"exited": true, "dead": false}}')
    assert filters.get("status") == ["exited"]
    assert filters.allows_labels({"a": "1", "b": ""})
    assert not filters.allows_labels({"a": "2", "b": ""})
    assert Filters({"name": ["^x.*z$"]}).allows_pattern("name", "xyz")
    assert Filters({"name": ["("]}).allows_pattern("name", "a(b")
    assert Filters({"f": ["true"]}).flag("f") is True
    for text in ("[]", "{", '{"a": 5}', '{"a": [5]}'):
        with pytest.raises(InvalidArgument):
            parse_filters(text)


def test_times() -> None:
    assert rfc3339(0) == "0001-01-01T00:00:00Z"
    assert rfc3339(1_500_000_000_123_000_000) == "2017-07-14T02:40:00.123Z"
    assert rfc3339_fixed(1_500_000_000_000_000_001) == "2017-07-14T02:40:00.000000001Z"
    assert parse_rfc3339("2017-07-14T04:40:00.5+02:00") == 1_500_000_000_500_000_000
    assert parse_duration("1h30m0.5s") == 5_400_500_000_000
    assert parse_moment("1500000000.000000001", "since") == 1_500_000_000_000_000_001
    assert parse_moment("0", "since") is None
    for text in ("yesterday", "--5", "\u00b2", "9" * 5000, "9" * 400 + "h", "nan", "1.\u0662"):
        with pytest.raises(InvalidArgument, match="failed to parse value as time or duration"):
            parse_moment(text, "since")


@given(st.integers(min_value=1, max_value=4 * 10**18))
def test_times_survive_the_round_trip(moment_ns: int) -> None:
    assert parse_rfc3339(rfc3339(moment_ns)) == moment_ns


def test_states_move_by_the_table_only() -> None:
    assert set(TRANSITIONS) == set(Status)
    record = ContainerRecord(
        id="a" * 64,
        name="n",
        created_ns=1,
        image_id="i",
        image_name="i",
        config=ContainerConfig(),
        host_config=HostConfig(),
        path="x",
        args=[],
        networks={},
    )
    record.move(Status.RUNNING)
    record.move(Status.PAUSED)
    with pytest.raises(IllegalTransition, match="is paused and cannot become removing"):
        record.move(Status.REMOVING)


def test_events_are_filtered_as_docker_does() -> None:
    event = Event("container", "exec_start: ls", "abc", {"image": "img:1", "name": "n", "l": "v"})
    for wanted, expected in (
        ({"event": ["exec_start"]}, True),
        ({"type": ["image"]}, False),
        ({"container": ["n"]}, True),
        ({"container": ["ab"]}, True),
        ({"container": ["other"]}, False),
        ({"image": ["img"]}, True),
        ({"label": ["l=v"]}, True),
        ({"label": ["l=w"]}, False),
        ({"volume": ["n"]}, False),
    ):
        assert matches(event, Filters(wanted)) is expected, wanted


# --- streams ------------------------------------------------------------------------------------


def test_detach_keys() -> None:
    assert parse_detach_keys("") == b"\x10\x11"
    assert parse_detach_keys("a,ctrl-b,ctrl-[") == b"a\x02\x1b"
    for text in ("ctrl-", "ctrl-1", "ab", "a,,b"):
        with pytest.raises(InvalidArgument, match="invalid detach keys"):
            parse_detach_keys(text)
    keys = DetachFilter(b"\x10\x11")
    assert keys.feed(b"ab\x10") == (b"ab", False)
    assert keys.feed(b"c") == (b"\x10c", False)
    assert keys.feed(b"\x10\x10") == (b"\x10", False)
    assert keys.feed(b"\x11rest") == (b"", True)


@given(st.lists(st.binary(max_size=8), max_size=20))
def test_detach_filter_passes_everything_else(blocks: list[bytes]) -> None:
    keys = DetachFilter(b"\x10\x11")
    passed = b""
    typed = b""
    for block in blocks:
        clean = block.replace(b"\x11", b"")
        typed += clean
        data, detached = keys.feed(clean)
        assert not detached
        passed += data
    assert typed.startswith(passed)
    assert typed[len(passed) :] in (b"", b"\x10")


# --- log files ----------------------------------------------------------------------------------


def _line(text: str) -> str:
    return json.dumps({"log": f"{text}\n", "stream": "stdout", "time": "2024-01-01T00:00:00Z"})


def _texts(reader: Reader) -> list[str]:
    found = []
    while lines := reader.read_lines():
        found += [entry.log.strip() for entry in entries(lines)]
    return found


def test_log_reader_follows_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{_line(str(i))}\n" for i in range(3)))
    reader = Reader(str(path))
    assert _texts(reader) == ["0", "1", "2"]
    assert _texts(reader) == []
    with path.open("a") as file:
        file.write(_line("3")[:10])
    assert _texts(reader) == []
    with path.open("a") as file:
        file.write(f"{_line('3')[10:]}\n{_line('4')}\n")
    path.rename(tmp_path / "log.1")
    path.write_text(f"{_line('5')}\n")
    (tmp_path / "log.1").rename(tmp_path / "log.2")
    path.rename(tmp_path / "log.1")
    path.write_text(f"{_line('6')}\n")
    assert _texts(reader) == ["3", "4", "5", "6"]
    reader.close()


def test_log_reader_starts_at_the_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1").write_text("".join(f"{_line(str(i))}\n" for i in range(5)))
    path.write_text("".join(f"{_line(str(i))}\n" for i in range(5, 8)))
    for tail, expected in ((0, []), (1, ["7"]), (3, ["5", "6", "7"]), (5, list("34567"))):
        reader = Reader(str(path), tail=tail)
        assert _texts(reader) == expected
        reader.close()
    reader = Reader(str(path), tail=100)
    assert _texts(reader) == list("01234567")
    reader.close()


def test_log_reader_leaves_damaged_lines_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\0\0garbage\n" + _line("kept").encode() + b"\n{half")
    reader = Reader(str(path))
    assert _texts(reader) == ["kept"]
    reader.close()
    missing = Reader(str(tmp_path / "none"))
    assert missing.read_lines() == []
    missing.close()


def test_frames_are_taken_off_wherever_a_stream_is_cut() -> None:
    stream = framed(b"one") + framed(b"") + framed(b"two and more")
    for size in range(1, len(stream) + 1):
        take = unframed()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert b"".join(map(take, pieces)) == b"onetwo and more"
