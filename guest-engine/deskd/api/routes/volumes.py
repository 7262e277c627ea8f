"""Handlers of volumes."""

from __future__ import annotations

from typing import Any

from deskd.api.http import NO_CONTENT, Answer, Request, json_response
from deskd.domain.container import ApiStruct
from deskd.domain.filters import parse_filters
from deskd.errors import Unavailable
from deskd.services.engine import Engine


class _CreateBody(ApiStruct, frozen=True):
    """``VolumeCreateOptions``"""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


async def select(engine: Engine, request: Request) -> Answer:
    """``VolumeList``"""
    found = engine.volumes.select(parse_filters(request.query.text("filters")))
    return json_response({"Volumes": found, "Warnings": None})


async def create(engine: Engine, request: Request) -> Answer:
    """``VolumeCreate``"""
    body = await request.optional_json(_CreateBody, _CreateBody())
    if body.cluster_volume_spec is not None:
        raise Unavailable(
            "This node is not a swarm manager: a cluster volume needs one, leave ClusterVolumeSpec "
            "out"
        )
    record = await engine.volumes.create(
        body.name, driver=body.driver, options=body.driver_opts, labels=body.labels
    )
    return json_response(engine.volumes.render(record), 201)


async def inspect(engine: Engine, request: Request) -> Answer:
    """``VolumeInspect``"""
    record = engine.volumes.get(request.path_values["name"])
    return json_response(engine.volumes.render(record))


async def update(_engine: Engine, _request: Request) -> Answer:
    """``VolumeUpdate``: only a swarm has volumes that can be changed."""
    raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")


async def remove(engine: Engine, request: Request) -> Answer:
    """``VolumeDelete``"""
    await engine.volumes.remove(
        request.path_values["name"],
        force=request.query.flag("force"),
        group=engine.bin.group(request.query.text("bin")),
    )
    return NO_CONTENT


async def prune(engine: Engine, request: Request) -> Answer:
    """``VolumePrune``"""
    filters = parse_filters(request.query.text("filters"))
    # Before 1.42 a prune took named volumes too.
    everything = request.version < (1, 42)
    group = engine.bin.group(request.query.text("bin"))
    answer = await engine.volumes.prune(filters, everything=everything, group=group)
    return json_response(answer)
