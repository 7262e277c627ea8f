"""Handlers of images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from deskd.api.http import Answer, Request, Response, Stream, json_lines, json_response
from deskd.api.status import status_of
from deskd.domain.container import ContainerConfig
from deskd.domain.filters import parse_filters
from deskd.domain.reference import from_repository
from deskd.errors import DeskdError, InvalidArgument
from deskd.services.engine import Engine
from deskd.services.images import CommitSource
from deskd.services.ports import Progress

if TYPE_CHECKING:
    from deskd.registry.authorization import Credentials

SEARCH_LIMIT = 25


async def select(engine: Engine, request: Request) -> Answer:
    """``ImageList``"""
    query = request.query
    filters = dict(parse_filters(query.text("filters")).as_mapping())
    if query.text("filter"):  # before API 1.41
        filters.setdefault("reference", []).append(query.text("filter"))
    found = await engine.images.list_images(
        filters, all_=query.flag("all"), shared_size=query.flag("shared-size")
    )
    if request.version < (1, 44):
        for image in found:
            image["VirtualSize"] = image["Size"]
    if request.version < (1, 43):
        for image in found:
            if not image["RepoTags"] and not image["RepoDigests"]:
                image |= {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    return json_response(found)


async def inspect(engine: Engine, request: Request) -> Answer:
    """``ImageInspect``"""
    found = await engine.images.inspect(request.path_values["name"])
    # WORKAROUND docker-compose 1 asks with the newest version and reads this older field when it
    # makes a container anew (docker/compose issue 11742: KeyError 'ContainerConfig').
    if request.version < (1, 45) or "docker-compose/1." in request.headers.get("user-agent", ""):
        found["ContainerConfig"] = found["Config"]
    if request.version < (1, 44):
        found["VirtualSize"] = found["Size"]
    return json_response(found)


async def history(engine: Engine, request: Request) -> Answer:
    """``ImageHistory``"""
    return json_response(await engine.images.history(request.path_values["name"]))


async def create(engine: Engine, request: Request) -> Answer:
    """``ImageCreate``: pull (``fromImage``) or import (``fromSrc``)"""
    query = request.query
    if query.text("fromImage"):
        return await _pull(engine, request)
    source = query.text("fromSrc")
    if not source:
        raise InvalidArgument("give fromImage to pull or fromSrc to import")

    async def work(tell: Progress) -> None:
        content, message = request.body, query.text("message")
        if source != "-":
            from deskd.images.downloading import download

            found = await download(source)
            content = found.chunks(tell)
            message = message or f"Imported from {found.url}"
        await engine.images.import_(
            content,
            repo=query.text("repo"),
            tag=query.text("tag"),
            changes=query.texts("changes"),
            message=message,
            platform=query.text("platform"),
            progress=tell,
        )

    return await _with_progress(work)


async def _pull(engine: Engine, request: Request) -> Answer:
    query = request.query
    name, tag = query.text("fromImage"), query.text("tag")
    separator = "@" if ":" in tag else ":"
    reference = f"{name}{separator}{tag}" if tag else name
    credentials = _credentials(request)
    return await _with_progress(
        lambda tell: engine.distribution.pull(
            reference, credentials, tell, platform=query.text("platform")
        )
    )


async def load(engine: Engine, request: Request) -> Answer:
    """``ImageLoad``"""

    async def work(tell: Progress) -> None:
        await engine.images.load(request.body, tell, quiet=request.query.flag("quiet"))

    return await _with_progress(work)


async def save(engine: Engine, request: Request) -> Answer:
    """``ImageGet``"""
    return await _archive(engine, [request.path_values["name"]])


async def save_many(engine: Engine, request: Request) -> Answer:
    """``ImageGetAll``"""
    names = [name for text in request.query.texts("names") for name in text.split(",") if name]
    if not names:
        raise InvalidArgument("give the names of the images to save")
    return await _archive(engine, names)


async def _archive(engine: Engine, names: list[str]) -> Answer:
    return Stream(await engine.images.save(names), content_type="application/x-tar")


async def search(engine: Engine, request: Request) -> Answer:
    """``ImageSearch``"""
    query = request.query
    limit = query.integer("limit", 0)
    found = await engine.distribution.search(
        query.text("term"),
        _credentials(request),
        limit=limit or SEARCH_LIMIT,
        filters=parse_filters(query.text("filters")),
    )
    return json_response(found)


def _credentials(request: Request) -> Credentials:
    from deskd.registry.authorization import parse_header

    return parse_header(request.headers.get("x-registry-auth", ""))


async def push(engine: Engine, request: Request) -> Answer:
    """``ImagePush``"""
    name, tag = request.path_values["name"], request.query.text("tag")
    reference = f"{name}:{tag}" if tag else name
    credentials = _credentials(request)
    return await _with_progress(
        lambda tell: engine.distribution.push(
            reference, credentials, tell, platform=request.query.text("platform")
        )
    )


async def distribution(engine: Engine, request: Request) -> Answer:
    """``DistributionInspect``"""
    name = request.path_values["name"]
    return json_response(await engine.distribution.inspect(name, _credentials(request)))


async def tag(engine: Engine, request: Request) -> Answer:
    """``ImageTag``"""
    query = request.query
    await engine.images.tag(request.path_values["name"], query.text("repo"), query.text("tag"))
    return Response(201, content_type="")


async def remove(engine: Engine, request: Request) -> Answer:
    """``ImageDelete``"""
    query = request.query
    done = await engine.images.remove(
        request.path_values["name"],
        force=query.flag("force"),
        noprune=query.flag("noprune"),
        group=engine.bin.group(query.text("bin")),
    )
    return json_response(done)


async def prune(engine: Engine, request: Request) -> Answer:
    """``ImagePrune``"""
    filters = parse_filters(request.query.text("filters")).as_mapping()
    group = engine.bin.group(request.query.text("bin"))
    return json_response(await engine.images.prune(filters, group=group))


async def prune_build_cache(_engine: Engine, _request: Request) -> Answer:
    """``BuildPrune``; nothing is built here, so nothing was kept. `docker system prune` asks."""
    return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})


async def commit(engine: Engine, request: Request) -> Answer:
    """``ImageCommit``"""
    query = request.query
    if not query.text("container"):
        raise InvalidArgument('invalid name or ID supplied: "": name the container to commit')
    record = engine.registry.get(query.text("container")).record
    given = await request.optional_json(ContainerConfig | None, None)  # type: ignore[arg-type]
    async with engine.lifecycle.held_still(record.id, wanted=query.flag("pause", default=True)):
        image_id = await engine.images.commit(
            CommitSource(record.id, record.image_id, record.config),
            repo=query.text("repo"),
            tag=query.text("tag"),
            comment=query.text("comment"),
            author=query.text("author"),
            changes=query.texts("changes"),
            config=given,
        )
        attributes = {"comment": query.text("comment"), "imageID": image_id}
        if query.text("repo"):
            attributes["imageRef"] = from_repository(query.text("repo"), query.text("tag")).familiar
        engine.registry.tell(engine.registry.get(record.id), "commit", attributes)
    return json_response({"Id": image_id}, 201)


async def _with_progress(work: Callable[[Progress], Awaitable[None]]) -> Answer:
    """Run ``work`` and send its progress objects as they come.

    An error before the first of them is an HTTP error; a later one is the stream's last object.
    """
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        first = await queue.get()
    except BaseException:
        task.cancel()
        raise
    if first is None:
        await task
    return Stream(json_lines(_progress(task, queue, first)))


async def _progress(
    task: asyncio.Future[None],
    queue: asyncio.Queue[dict[str, Any] | None],
    message: dict[str, Any] | None,
) -> AsyncIterator[dict[str, Any]]:
    try:
        while message is not None:
            yield message
            message = await queue.get()
        try:
            await task
        except DeskdError as error:
            text = str(error)
            yield {"errorDetail": {"code": status_of(error), "message": text}, "error": text}
    finally:
        task.cancel()
