"""JSON keys in another case mean the same fields, as for Go's decoder."""

from __future__ import annotations

import pytest

from deskd.api.http import decode
from deskd.api.json_keys import may_differ
from deskd.domain.container import ApiStruct, ContainerConfig, HostConfig
from deskd.errors import InvalidArgument


class Body(ContainerConfig, frozen=True):
    host_config: HostConfig | None = None


def test_fields_are_found_at_every_depth() -> None:
    body = (
        b'{"image": "busybox", "CMD": ["true"], "labels": {"image": "a", "Image": "b"},'
        b' "hostconfig": {"portbindings": {"80/tcp": [{"hostport": "81"}]},'
        b' "mounts": [{"type": "volume", "bindoptions": {"propagation": "rslave"}}]}}'
    )
    found = decode(body, Body)
    assert (found.image, found.cmd) == ("busybox", ["true"])
    assert found.labels == {"image": "a", "Image": "b"}
    host = found.host_config
    assert host is not None
    assert host.port_bindings is not None
    bindings = host.port_bindings["80/tcp"]
    assert bindings is not None
    assert bindings[0].host_port == "81"
    assert host.mounts is not None
    assert host.mounts[0].bind_options is not None
    assert (host.mounts[0].type, host.mounts[0].bind_options.propagation) == ("volume", "rslave")


def test_an_exact_match_wins_and_null_is_zero() -> None:
    assert decode(b'{"image": "small", "Image": "exact", "user": null}', Body).image == "exact"
    assert decode(b'{"tty": true, "nosuchfield": 1}', Body).tty


def test_wrong_types_are_still_refused() -> None:
    for body in (b'{"tty": "yes"}', b'{"image": ["a"]}', b'{"image": 1', b'["image"]'):
        with pytest.raises(InvalidArgument, match="invalid JSON"):
            decode(body, Body)


def test_usual_bodies_take_the_fast_way() -> None:
    assert not may_differ(b'{"Image":"busybox","Env":["a:b"],"Labels":{"com.example":"x"}}')
    assert may_differ(b'{"image" : "busybox"}')


def test_keys_of_maps_stay_as_they_are() -> None:
    class Holder(ApiStruct, frozen=True):
        inside: dict[str, dict[str, str]] | None = None

    assert decode(b'{"inside": {"a": {"B": "c"}}}', Holder).inside == {"a": {"B": "c"}}
