"""Handlers of containers' files."""

from __future__ import annotations

from deskd.api.http import Answer, Request, Response, Stream, json_response
from deskd.services.containers.files import stat_header
from deskd.services.engine import Engine

TAR = "application/x-tar"
STAT_HEADER = "X-Docker-Container-Path-Stat"


async def changes(engine: Engine, request: Request) -> Answer:
    """``ContainerChanges``"""
    return json_response(await engine.files.changes(request.path_values["id"]))


async def export(engine: Engine, request: Request) -> Answer:
    """``ContainerExport``"""
    return Stream(engine.files.export(request.path_values["id"]), content_type=TAR)


async def archive_stat(engine: Engine, request: Request) -> Answer:
    """``ContainerArchiveInfo``"""
    found = await engine.files.stat(request.path_values["id"], request.query.path("path"))
    return Response(200, content_type="", headers=((STAT_HEADER, stat_header(found)),))


async def archive_get(engine: Engine, request: Request) -> Answer:
    """``ContainerArchive``"""
    reference, path = request.path_values["id"], request.query.path("path")
    found = await engine.files.stat(reference, path)
    return Stream(
        engine.files.get(reference, path),
        content_type=TAR,
        headers=((STAT_HEADER, stat_header(found)),),
    )


async def archive_put(engine: Engine, request: Request) -> Answer:
    """``PutContainerArchive``"""
    query = request.query
    await engine.files.put(
        request.path_values["id"],
        query.path("path"),
        request.body,
        refuse_kind_change=query.flag("noOverwriteDirNonDir"),
        copy_owner=query.flag("copyUIDGID"),
    )
    return Response(200, content_type="")
