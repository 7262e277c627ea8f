"""Bad requests: each is answered at once with 400 (or what is true of it) and one sentence."""

from __future__ import annotations

import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deskd.domain.container import ContainerConfig, HostConfig, NetworkingConfig
from tests.engine_process import API, IMAGE, Api

pytestmark = pytest.mark.root

JSON = {"Content-Type": "application/json"}


def post(api: Api, path: str, body: bytes) -> tuple[int, str]:
    """Send a body; return the status and the error's text, which must be one sentence."""
    status, headers, answer = api.raw("POST", f"{API}{path}", body, JSON, timeout_s=15)
    if status < 400:
        return status, ""
    assert headers["content-type"] == "application/json"
    message = json.loads(answer)["message"]
    assert message
    assert "Traceback" not in message
    assert len(message) < 2000
    return status, message


def create(api: Api, **fields: Any) -> tuple[int, str]:
    return post(api, "/containers/create", json.dumps({"Image": IMAGE, **fields}).encode())


def host(**fields: Any) -> dict[str, Any]:
    return {"HostConfig": fields}


BAD: list[dict[str, Any]] = [
    {"Labels": {"big": "x" * 1_000_000}},
    {"Labels": {"x" * 1_000_000: ""}},
    {"Hostname": "h" * 300},
    {"Hostname": "a b"},
    {"Env": ["=x"]},
    {"Env": ["A=\0"]},
    {"Cmd": ["a\0b"]},
    {"Entrypoint": [""], "Cmd": [""]},
    {"User": "a\0b"},
    {"WorkingDir": "relative"},
    {"WorkingDir": "/a\0b"},
    {"StopSignal": "SIGNONSENSE"},
    {"ExposedPorts": {"99999/tcp": {}}},
    {"ExposedPorts": {"-1": {}}},
    {"ExposedPorts": {"80/ip": {}}},
    {"Volumes": {"/": {}}},
    {"Healthcheck": {"Test": ["CMD", "true"], "Interval": -1}},
    {"MacAddress": "nonsense"},
    host(Memory=-1),
    host(Memory=1000),
    host(MemorySwap=-5, Memory=10_000_000),
    host(MemorySwappiness=500),
    host(MemoryReservation=-3),
    host(ShmSize=-1),
    host(NanoCpus=-1),
    host(CpuShares=-1),
    host(CpuShares=1),
    host(CpuShares=262_145),
    host(CpuPeriod=-4),
    host(CpuQuota=5),
    host(CpusetCpus="many"),
    host(CpusetMems="0-"),
    host(BlkioWeight=5000),
    host(BlkioDeviceReadBps=[{"Path": "/dev/nosuch", "Rate": 5}]),
    host(BlkioDeviceWriteBps=[{"Path": "/dev/null", "Rate": 5}]),
    host(OomScoreAdj=5000),
    host(PortBindings={"80/tcp": [{"HostPort": "70000"}]}),
    host(PortBindings={"80/tcp": [{"HostPort": "a-b"}]}),
    host(PortBindings={"80/tcp": [{"HostIp": "300.1.1.1"}]}),
    host(PortBindings={"0/tcp": []}),
    host(Binds=["/a:/b:nonsense"]),
    host(Binds=["a/b:/c"]),
    host(Binds=["a\0b:/c"]),
    host(Binds=["/a\0b:/c"]),
    host(Binds=["/a:/b", "/c:/b"]),
    host(Binds=["v" * 5000 + ":/c"]),
    host(Mounts=[{"Type": "magic", "Target": "/a"}]),
    host(Mounts=[{"Type": "bind", "Source": "/nosuch", "Target": "/a"}]),
    host(Mounts=[{"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"SizeBytes": -1}}]),
    host(Tmpfs={"relative": ""}),
    host(Tmpfs={"/a": "size=many"}),
    host(Ulimits=[{"Name": "nonsense", "Soft": 1, "Hard": 1}]),
    host(Ulimits=[{"Name": "nofile", "Soft": 9, "Hard": 1}]),
    host(Ulimits=[{"Name": "nofile", "Soft": -9, "Hard": -7}]),
    host(Sysctls={"kernel.panic": "1"}),
    host(Sysctls={"net/../../x": "1"}),
    host(Sysctls={"": "1"}),
    host(Devices=[{"PathOnHost": "/dev/nosuch", "PathInContainer": "/dev/x"}]),
    host(Devices=[{"PathOnHost": "/dev/null", "CgroupPermissions": "xyz"}]),
    host(DeviceCgroupRules=["nonsense"]),
    host(CapAdd=["CAP_NONSENSE"]),
    host(SecurityOpt=["nonsense=1"]),
    host(SecurityOpt=["seccomp={"]),
    host(RestartPolicy={"Name": "sometimes"}),
    host(RestartPolicy={"Name": "always", "MaximumRetryCount": 3}),
    host(LogConfig={"Type": "nonsense"}),
    host(LogConfig={"Type": "json-file", "Config": {"max-size": "much"}}),
    host(NetworkMode="container:"),
    host(PidMode="nonsense"),
    host(IpcMode="nonsense"),
    host(UTSMode="nonsense"),
    host(UsernsMode="nonsense"),
    host(CgroupnsMode="nonsense"),
    host(CgroupParent="../../x"),
    host(Runtime="nonsense"),
    host(VolumesFrom=["a:nonsense"]),
    host(ExtraHosts=["nonsense"]),
    host(Dns=["nonsense"]),
    host(ConsoleSize=[-1, -1]),
]


@pytest.mark.parametrize("fields", BAD, ids=lambda fields: json.dumps(fields)[:60])
def test_wishes_that_cannot_be(api: Api, fields: dict[str, Any]) -> None:
    """Refused when it is made or, where only the kernel knows, when it is started."""
    status, message = create(api, **{"Cmd": ["true"], **fields})
    if status == 201:
        (container,) = api.get("/containers/json", all=True)
        status, message = post(api, f"/containers/{container['Id']}/start", b"")
        assert not api.inspect(container["Id"])["State"]["Running"]
    assert status == 400, (status, message)


def test_names_that_cannot_be(api: Api) -> None:
    body = json.dumps({"Image": IMAGE}).encode()
    for name in ("a" * 10_000, "-x", "a%00b", "..%2Fx", "a%20b", "%C3%A4"):
        assert post(api, f"/containers/create?name={name}", body)[0] == 400


def test_unknown_fields_are_passed_over(api: Api) -> None:
    fields = {"Nonsense": {"a": [1]}, "HostConfig": {"Nonsense": 5}}
    assert create(api, Cmd=["true"], **fields) == (201, "")


@pytest.mark.parametrize(
    "path",
    [
        "/containers/create",
        "/containers/{id}/update",
        "/containers/{id}/exec",
        "/networks/create",
        "/volumes/create",
        "/networks/bridge/connect",
        "/networks/bridge/disconnect",
        "/exec/{exec}/start",
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nul",
        b"[]",
        b"5",
        b'"text"',
        b'{"a": 1} trailing',
        b"\xff\xfe\x00",
        b"{" * 50_000,
        b'{"Cmd": 7, "Name": 7, "Memory": "x", "Container": {}, "Detach": "x", "Labels": 5}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_malformed_json(api: Api, path: str, body: bytes) -> None:
    container = api.run("sleep", "60")
    made = api.post(f"/containers/{container}/exec", {"Cmd": ["true"]})["Id"]
    status, message = post(api, path.format(id=container, exec=made), body)
    assert status == 400, (status, message)


@pytest.mark.parametrize(
    "query",
    [
        "/containers/json?limit=many",
        "/containers/json?filters=nonsense",
        "/containers/json?filters=[1]",
        "/containers/json?filters={%22nosuch%22:[%22x%22]}",
        "/containers/json?filters={%22status%22:[%22nonsense%22]}",
        "/containers/{id}/logs",
        "/containers/{id}/logs?stdout=1&tail=-x&since=never",
        "/containers/{id}/logs?stdout=1&until=never",
        "/containers/{id}/top?ps_args=--nonsense",
        "/containers/{id}/archive",
        "/containers/{id}/archive?path=a%00b",
        f"/containers/{{id}}/archive?path={'a' * 3000}",
        "/events?since=never",
        "/events?filters=nonsense",
        "/images/json?filters=nonsense",
        "/networks?filters=nonsense",
        "/networks?filters={%22until%22:[%229223372036854775808%22]}",
        "/containers/{id}/logs?stdout=1&since=%C2%B2",
        "/volumes?filters=nonsense",
    ],
)
def test_queries_that_make_no_sense(api: Api, query: str) -> None:
    container = api.run("sleep", "60")
    target = f"{API}{query.replace('{id}', container)}"
    status, _, answer = api.raw("GET", target, timeout_s=10)
    assert status == 400, (status, answer[:300])
    assert json.loads(answer)["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/kill?signal=SIGNONSENSE",
        "/stop?t=soon",
        "/stop?signal=NONSENSE",
        "/restart?t=soon",
        "/resize?h=a&w=b",
        "/rename",
        "/rename?name=",
        "/rename?name=a%20b",
        "/wait?condition=never",
        "/attach?detachKeys=nonsense-keys&stream=1",
    ],
)
def test_orders_that_make_no_sense(api: Api, path: str) -> None:
    container = api.run("sleep", "60")
    status, message = post(api, f"/containers/{container}{path}", b"")
    assert status == 400, (status, message)
    assert api.inspect(container)["State"]["Running"]


# --- any body at all -----------------------------------------------------------------------------

TEXT = st.one_of(
    st.sampled_from(["", "/", "/a", "host", "container:x", "a:b", "80/tcp", "-1", "\0", "no"]),
    st.text(max_size=12),
)
NUMBER = st.one_of(st.integers(-5, 5), st.integers(-(2**65), 2**65))
JUNK = st.one_of(st.none(), st.booleans(), NUMBER, TEXT, st.lists(TEXT, max_size=2))


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for JSON of (about) a type of the API."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return st.fixed_dictionaries(
            {}, optional={field.encode_name: around(field.type) for field in fields}
        )
    if origin is list:
        return st.lists(values(parts[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(TEXT, values(parts[1]), max_size=2)
    if origin is tuple:
        return st.lists(NUMBER, max_size=3)
    if parts:
        return st.one_of(*(values(part) for part in parts))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return NUMBER
    if kind is str:
        return TEXT
    return JUNK


def around(kind: Any) -> st.SearchStrategy[Any]:
    """Mostly what the field takes, sometimes anything."""
    good = values(kind)
    return st.one_of(good, good, good, JUNK)


def one_field(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        *(
            st.fixed_dictionaries({field.encode_name: around(field.type)})
            for field in msgspec.structs.fields(kind)
        )
    )


CREATE_BODIES = st.one_of(
    one_field(ContainerConfig),
    one_field(HostConfig).map(lambda value: {"HostConfig": value}),
    values(NetworkingConfig).map(lambda value: {"NetworkingConfig": value}),
    st.tuples(one_field(ContainerConfig), one_field(HostConfig), one_field(HostConfig)).map(
        lambda three: {**three[0], "HostConfig": {**three[1], **three[2]}}
    ),
)


@settings(
    max_examples=250,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=CREATE_BODIES)
def test_any_create_request_is_made_or_refused_in_a_sentence(
    api: Api, body: dict[str, Any]
) -> None:
    data = json.dumps({"Image": IMAGE, "Cmd": ["true"], **body}).encode()
    status, message = post(api, "/containers/create", data)
    assert status in (201, 400, 404, 409, 501), (status, message)
    if status == 201:
        _remove_all(api)


def _remove_all(api: Api) -> None:
    for container in api.get("/containers/json", all=True):
        api.delete(f"/containers/{container['Id']}", force=True, v=True)
