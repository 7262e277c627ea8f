"""Which networks there are, how they are found and filtered, and which wishes are refused."""

from __future__ import annotations

import msgspec
import pytest
from tests.network_records import MemoryRecords

from deskd.domain.network import (
    GATEWAY_MODES,
    OPTION_BRIDGE_NAME,
    OPTION_HOST_BINDING,
    OPTION_INTER_CONTAINER,
    OPTION_MTU,
    ConfigReference,
    Ipam,
    IpamConfig,
    NetworkCreateRequest,
    NetworkRecord,
)
from deskd.errors import Conflict, DeskdError, Forbidden, InvalidArgument, NotFound, Unsupported
from deskd.network.catalog import Catalog, bridge_name, describe
from deskd.network.selection import LIST_FILTERS, PRUNE_FILTERS, selected


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(MemoryRecords(), "desk0")


def add(catalog: Catalog, name: str, **more: object) -> NetworkRecord:
    record = catalog.new(NetworkCreateRequest(name=name, **more))  # type: ignore[arg-type]
    catalog.put(record)
    return record


def test_predefined_networks_have_dockers_names_and_drivers(catalog: Catalog) -> None:
    assert {r.name: r.driver for r in catalog.all()} == {
        "bridge": "bridge",
        "host": "host",
        "none": "null",
    }
    assert catalog.find("default") is catalog.find("bridge")
    assert bridge_name(catalog.find("bridge")) == "desk0"


def test_networks_outlive_the_catalog() -> None:
    records = MemoryRecords()
    first = Catalog(records, "desk0")
    mine = add(first, "mine", labels={"a": "b"})
    second = Catalog(records, "desk0")
    assert second.find("mine") == mine
    assert [r.id for r in second.all()] == [r.id for r in first.all()]


def test_inspect_output_has_dockers_field_names(catalog: Catalog) -> None:
    shown = msgspec.to_builtins(describe(catalog.find("none")))
    assert shown["Name"] == "none"
    assert shown["Driver"] == "null"
    assert shown["Scope"] == "local"
    assert shown["IPAM"] == {"Driver": "default", "Options": None, "Config": None}
    assert shown["EnableIPv4"] is True
    assert shown["EnableIPv6"] is False
    assert shown["ConfigFrom"] == {"Network": ""}
    assert shown["Containers"] == {}
    assert {"Id", "Created", "Internal", "Attachable", "Ingress", "Labels", "Options"} <= set(shown)


def test_find_by_id_prefix_and_ambiguity(catalog: Catalog) -> None:
    record = add(catalog, "mine")
    assert catalog.find(record.id) == record
    assert catalog.find(record.id[:12]) == record
    catalog.put(msgspec.structs.replace(record, id=record.id[:20] + "f" * 44, name="other"))
    with pytest.raises(InvalidArgument, match="ambiguous"):
        catalog.find(record.id[:20])
    with pytest.raises(NotFound, match="network nosuch not found"):
        catalog.find("nosuch")


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (NetworkCreateRequest(name="bridge"), Forbidden, "predefined bridge network"),
        (NetworkCreateRequest(name=""), InvalidArgument, "invalid network name"),
        (NetworkCreateRequest(name="a\x1b[2Jb"), InvalidArgument, r"\\x1b"),
        (NetworkCreateRequest(name="mine"), Conflict, "network with name mine already exists"),
        (NetworkCreateRequest(name="x", driver="overlay"), NotFound, "'overlay' not found"),
        (NetworkCreateRequest(name="x", driver="host"), Forbidden, "only one instance"),
        (
            NetworkCreateRequest(name="x", enable_ipv4=False),
            InvalidArgument,
            "IPv4 or IPv6 must be enabled",
        ),
        (NetworkCreateRequest(name="x", scope="swarm"), Unsupported, "swarm"),
        (NetworkCreateRequest(name="x", ipam=Ipam(driver="dhcp")), NotFound, "dhcp"),
        (
            NetworkCreateRequest(name="x", options={OPTION_BRIDGE_NAME: "sixteen-letters!"}),
            InvalidArgument,
            "at most 15",
        ),
        (
            NetworkCreateRequest(name="x", options={OPTION_BRIDGE_NAME: "desk0"}),
            Conflict,
            "belongs to the network bridge",
        ),
        (
            NetworkCreateRequest(name="x", options={OPTION_MTU: "huge"}),
            InvalidArgument,
            "invalid MTU",
        ),
        (
            NetworkCreateRequest(name="x", options={OPTION_HOST_BINDING: "nonsense"}),
            InvalidArgument,
            "give an IPv4 address",
        ),
        (
            NetworkCreateRequest(name="x", options={GATEWAY_MODES[0]: "routed"}),
            Unsupported,
            "gateway_mode_ipv4 routed is not supported",
        ),
        (
            NetworkCreateRequest(name="x", options={GATEWAY_MODES[1]: "sideways"}),
            InvalidArgument,
            "give nat",
        ),
        (
            NetworkCreateRequest(name="x", config_from=ConfigReference("mine")),
            NotFound,
            'configuration network "mine" does not exist',
        ),
        (
            NetworkCreateRequest(name="x", config_only=True, config_from=ConfigReference("mine")),
            Forbidden,
            "cannot depend on another",
        ),
        (
            NetworkCreateRequest(name="x", options={OPTION_INTER_CONTAINER: "maybe"}),
            InvalidArgument,
            "true or false",
        ),
    ],
)
def test_refused_wishes(
    catalog: Catalog, request_: NetworkCreateRequest, error: type[DeskdError], text: str
) -> None:
    add(catalog, "mine")
    with pytest.raises(error, match=text):
        catalog.new(request_)
    assert len(catalog.all()) == 4


def names(
    catalog: Catalog, filters: dict[str, list[str]], used: set[str] | frozenset[str] = frozenset()
) -> set[str]:
    accepted = {*LIST_FILTERS, *PRUNE_FILTERS}
    return {r.name for r in selected(catalog.all(), filters, used, accepted=accepted)}


def test_filters(catalog: Catalog) -> None:
    mine = add(catalog, "mine", labels={"team": "db"})
    add(catalog, "other", labels={"team": "web"})
    assert names(catalog, {"name": ["min"]}) == {"mine"}
    assert names(catalog, {"name": ["^in$", "^mine$"]}) == {"mine"}
    assert names(catalog, {"id": [mine.id[:10]]}) == {"mine"}
    assert names(catalog, {"driver": ["null", "host"]}) == {"none", "host"}
    assert names(catalog, {"type": ["custom"]}) == {"mine", "other"}
    assert names(catalog, {"label": ["team"]}) == {"mine", "other"}
    assert names(catalog, {"label": ["team=db"]}) == {"mine"}
    assert names(catalog, {"label!": ["team=db"], "type": ["custom"]}) == {"other"}
    assert names(catalog, {"dangling": ["true"]}, {mine.id}) == {"other"}
    assert names(catalog, {"scope": ["swarm"]}) == set()
    assert names(catalog, {"until": ["1h"]}) == set()
    assert len(names(catalog, {"until": ["2999-01-01T00:00:00"]})) == 5
    for wrong in ({"colour": ["red"]}, {"type": ["odd"]}, {"until": ["soon"]}):
        with pytest.raises(InvalidArgument):
            names(catalog, wrong)


def test_a_configuration_is_taken_whole_and_is_no_subnet_of_its_own(catalog: Catalog) -> None:
    wish = Ipam(config=[IpamConfig(subnet="10.30.0.0/24")])
    options = {OPTION_MTU: "1300"}
    config = add(catalog, "cfg", config_only=True, ipam=wish, options=options, driver="macvlan")
    assert (config.driver, config.config_only) == ("null", True)
    made = add(catalog, "made", config_from=ConfigReference("cfg"), labels={"own": "1"})
    assert (made.driver, made.ipam.config, made.options) == ("bridge", wish.config, options)
    shown = msgspec.to_builtins(describe(made))
    assert (shown["ConfigFrom"], shown["ConfigOnly"]) == ({"Network": "cfg"}, False)
    assert catalog.dependents(config) == ["made"]
    for more, text in (
        ({"options": {"a": "b"}}, "network driver options are not supported"),
        ({"ipam": wish}, "user specified configurations are not supported"),
    ):
        with pytest.raises(Forbidden, match=text):
            add(catalog, "other", config_from=ConfigReference("cfg"), **more)
