"""Calls on containers and on processes executed in them (``/containers``, ``/exec``)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from desk.engine.connection import EngineConnection, JsonObject, JsonObjects, segment
from desk.engine.streams import (
    MULTIPLEXED,
    PATH_STAT_HEADER,
    AttachedStream,
    ByteStream,
    JsonStream,
    OutputStream,
    decode_objects,
)
from desk.engine.wire import Body, Response
from desk.errors import EngineError

Filters = Mapping[str, Iterable[str]]

_FOR_EVER = float("inf")
_WARNING = "desk-warning"


def encode_filters(filters: Filters | None) -> dict[str, list[str]] | None:
    """Return filters in the form that the API takes, ``None`` when there are none."""
    return {name: list(values) for name, values in filters.items()} if filters else None


class Exit(NamedTuple):
    """What a wait answers: the exit code, and the engine's error where it had one."""

    code: int
    error: str


class Wait:
    """A wait that the engine has registered; ``result`` blocks until the container ends.

    ``close`` may come from another thread; ``result`` then raises ``EngineError``.
    """

    def __init__(self, response: Response) -> None:
        self._response = response

    def result(self) -> Exit:
        answers = list(decode_objects(self._response.pieces()))
        if answers:
            error = answers[0].get("Error") or {}
            return Exit(int(answers[0].get("StatusCode", 0)), str(error.get("Message") or ""))
        raise EngineError("the engine ended the wait without an answer")

    def close(self) -> None:
        self._response.close()


class Containers:
    """``client.containers``: every name or ID is taken as the engine takes it."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def list(
        self,
        *,
        all_: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: Filters | None = None,
    ) -> JsonObjects:
        return self.list_with_kills(all_=all_, limit=limit, size=size, filters=filters)[0]

    def list_with_kills(
        self,
        *,
        all_: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: Filters | None = None,
    ) -> tuple[JsonObjects, bool]:
        """Return the list, and whether ``system.out_of_memory`` may have something to tell."""
        query = {
            "all": all_ or None,
            "limit": limit,
            "size": size or None,
            "filters": encode_filters(filters),
        }
        found, headers = self._connection.call_whole("GET", "/containers/json", query=query)
        return found or [], headers.get("desk-out-of-memory") != "0"

    def create(
        self, config: JsonObject, *, name: str | None = None, platform: str | None = None
    ) -> JsonObject:
        """Create a container from a ``ContainerCreate`` body; returns ``Id`` and ``Warnings``."""
        created: JsonObject = self._connection.call(
            "POST",
            "/containers/create",
            query={"name": name, "platform": platform},
            body=config,
        )
        return created

    def inspect(self, container: str, *, size: bool = False) -> JsonObject:
        details: JsonObject = self._connection.call(
            "GET", self._path(container, "json"), query={"size": size or None}
        )
        return details

    def start(
        self,
        container: str,
        *,
        detach_keys: str | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> bool:
        """Start a container; false when it runs already. ``on_warning`` is given a sentence where
        Desk's engine has one: that the container will not fit into the machine's memory."""
        response = self._connection.request(
            "POST",
            self._path(container, "start"),
            query={"detachKeys": detach_keys},
            timeout_s=_FOR_EVER,
        )
        response.read()
        warning = response.headers.get(_WARNING)
        if warning and on_warning is not None:
            on_warning(warning)
        return response.status != 304

    def stop(
        self, container: str, *, timeout_s: int | None = None, signal: str | None = None
    ) -> bool:
        """Stop a container; false when it is stopped already. ``timeout_s`` is the grace before
        SIGKILL, the container's own by default, -1 for no limit."""
        return self._changed(container, "stop", {"t": timeout_s, "signal": signal})

    def restart(
        self, container: str, *, timeout_s: int | None = None, signal: str | None = None
    ) -> None:
        self._changed(container, "restart", {"t": timeout_s, "signal": signal})

    def kill(self, container: str, *, signal: str | None = None) -> None:
        self._changed(container, "kill", {"signal": signal})

    def pause(self, container: str) -> None:
        self._changed(container, "pause")

    def unpause(self, container: str) -> None:
        self._changed(container, "unpause")

    def rename(self, container: str, name: str) -> None:
        self._changed(container, "rename", {"name": name})

    def resize(self, container: str, *, rows: int, columns: int) -> None:
        self._changed(container, "resize", {"h": rows, "w": columns})

    def update(self, container: str, changes: JsonObject) -> JsonObject:
        """Change limits of a container; returns ``Warnings``."""
        answer: JsonObject | None = self._connection.call(
            "POST", self._path(container, "update"), body=changes
        )
        return answer or {}

    def remove(
        self, container: str, *, force: bool = False, volumes: bool = False, link: bool = False
    ) -> None:
        query = {
            "force": force or None,
            "v": volumes or None,
            "link": link or None,
            "bin": self._connection.bin_group or None,
        }
        self._connection.status("DELETE", self._path(container), query=query, timeout_s=_FOR_EVER)

    def wait(self, container: str, *, condition: str = "not-running") -> Exit:
        """Wait until ``condition``: ``not-running``, ``next-exit`` or ``removed``."""
        return self.begin_wait(container, condition=condition).result()

    def begin_wait(self, container: str, *, condition: str = "not-running") -> Wait:
        """Register a wait and return at once, so that an exit right after a start is seen."""
        return Wait(
            self._connection.stream(
                "POST", self._path(container, "wait"), query={"condition": condition}
            )
        )

    def logs(
        self,
        container: str,
        *,
        follow: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        since: str | None = None,
        until: str | None = None,
        timestamps: bool = False,
        tail: str | int = "all",
        details: bool = False,
        tty: bool | None = None,
    ) -> OutputStream:
        """Return the container's log. ``since`` and ``until`` are Unix times. ``tty`` says how
        the container was made; without it the answer's content type decides (API 1.42)."""
        response = self._connection.stream(
            "GET",
            self._path(container, "logs"),
            query={
                "follow": follow or None,
                "stdout": stdout,
                "stderr": stderr,
                "since": since,
                "until": until,
                "timestamps": timestamps or None,
                "tail": tail,
                "details": details or None,
            },
        )
        if tty is None:
            tty = response.headers.get("content-type") != MULTIPLEXED
        return OutputStream(response, multiplexed=not tty)

    def attach(
        self,
        container: str,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        logs: bool = False,
        stream: bool = True,
        detach_keys: str | None = None,
        tty: bool | None = None,
    ) -> AttachedStream:
        """Connect to the container's first process. ``tty`` as for ``logs``."""
        return self._connection.upgrade(
            self._path(container, "attach"),
            query={
                "stream": stream,
                "stdin": stdin or None,
                "stdout": stdout or None,
                "stderr": stderr or None,
                "logs": logs or None,
                "detachKeys": detach_keys,
            },
            multiplexed=None if tty is None else not tty,
        )

    def top(self, container: str, arguments: str | None = None) -> JsonObject:
        """Return ``Titles`` and ``Processes``; ``arguments`` are ps's."""
        table: JsonObject = self._connection.call(
            "GET", self._path(container, "top"), query={"ps_args": arguments}
        )
        return table

    def stats(self, container: str, *, stream: bool = True, one_shot: bool = False) -> JsonStream:
        """Return samples of resource use, one a second, or one only."""
        return self._connection.objects(
            "GET",
            self._path(container, "stats"),
            query={"stream": stream, "one-shot": one_shot or None},
        )

    def changes(self, container: str) -> JsonObjects:
        """Return ``Path`` and ``Kind`` (0 changed, 1 added, 2 deleted) of what differs."""
        return self._connection.call("GET", self._path(container, "changes")) or []

    def export(self, container: str) -> ByteStream:
        """Return the container's files as a tar archive."""
        return ByteStream(self._connection.stream("GET", self._path(container, "export")))

    def commit(
        self,
        container: str,
        *,
        repository: str | None = None,
        tag: str | None = None,
        comment: str | None = None,
        author: str | None = None,
        changes: Iterable[str] = (),
        pause: bool = True,
    ) -> str:
        """Make an image of the container's files and return its ID."""
        answer = self._connection.call(
            "POST",
            "/commit",
            query={
                "container": container,
                "repo": repository,
                "tag": tag,
                "comment": comment,
                "author": author,
                "changes": list(changes) or None,
                "pause": pause,
            },
            body={},
            timeout_s=_FOR_EVER,
        )
        return str(answer["Id"])

    def get_archive(self, container: str, path: str) -> tuple[ByteStream, JsonObject]:
        """Return ``path`` as a tar archive, and its stat (``name``, ``size``, ``mode``,
        ``mtime``, ``linkTarget``)."""
        response = self._connection.stream(
            "GET", self._path(container, "archive"), query={"path": path}
        )
        return ByteStream(response), _decode_stat(response.headers.get(PATH_STAT_HEADER))

    def stat_archive(self, container: str, path: str) -> JsonObject:
        """Return the stat of ``path``; ``EngineError`` with status 404 where there is none."""
        headers = self._connection.headers(
            "HEAD", self._path(container, "archive"), query={"path": path}
        )
        return _decode_stat(headers.get(PATH_STAT_HEADER, ""))

    def put_archive(
        self,
        container: str,
        path: str,
        archive: Body,
        *,
        overwrite_directories: bool = True,
        keep_owner: bool = False,
    ) -> None:
        """Unpack a tar archive into the directory ``path``. A directory and a file never replace
        each other unless ``overwrite_directories``."""
        self._connection.status(
            "PUT",
            self._path(container, "archive"),
            query={
                "path": path,
                "noOverwriteDirNonDir": None if overwrite_directories else "true",
                "copyUIDGID": "true" if keep_owner else None,
            },
            pieces=archive,
            timeout_s=_FOR_EVER,
        )

    def prune(self, *, filters: Filters | None = None) -> JsonObject:
        """Remove all stopped containers; returns ``ContainersDeleted``, ``SpaceReclaimed``."""
        report: JsonObject = self._connection.call(
            "POST",
            "/containers/prune",
            query={
                "filters": encode_filters(filters),
                "bin": self._connection.bin_group or None,
            },
            timeout_s=_FOR_EVER,
        )
        return report

    @staticmethod
    def _path(container: str, *rest: str) -> str:
        return "/".join(("/containers", segment(container), *rest))

    def _changed(
        self, container: str, operation: str, query: Mapping[str, Any] | None = None
    ) -> bool:
        # These answer when the container has obeyed, which its own grace period decides.
        status = self._connection.status(
            "POST", self._path(container, operation), query=query, timeout_s=_FOR_EVER
        )
        return status != 304


class Execs:
    """``client.execs``: processes executed in running containers."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def create(self, container: str, config: JsonObject) -> str:
        """Prepare a process from an ``ExecConfig`` body and return its ID."""
        path = f"/containers/{segment(container)}/exec"
        return str(self._connection.call("POST", path, body=config)["Id"])

    def start(
        self,
        exec_id: str,
        *,
        tty: bool = False,
        rows: int | None = None,
        columns: int | None = None,
    ) -> AttachedStream:
        """Execute the process and return its standard streams."""
        body: JsonObject = {"Detach": False, "Tty": tty}
        if tty and rows and columns:
            body["ConsoleSize"] = [rows, columns]
        return self._connection.upgrade(
            f"/exec/{segment(exec_id)}/start", body=body, multiplexed=not tty
        )

    def start_detached(self, exec_id: str, *, tty: bool = False) -> None:
        self._connection.status(
            "POST", f"/exec/{segment(exec_id)}/start", body={"Detach": True, "Tty": tty}
        )

    def inspect(self, exec_id: str) -> JsonObject:
        details: JsonObject = self._connection.call("GET", f"/exec/{segment(exec_id)}/json")
        return details

    def resize(self, exec_id: str, *, rows: int, columns: int) -> None:
        query = {"h": rows, "w": columns}
        self._connection.status("POST", f"/exec/{segment(exec_id)}/resize", query=query)


def _decode_stat(header: str) -> JsonObject:
    try:
        stat: JsonObject = json.loads(base64.b64decode(header))
    except ValueError as error:
        raise EngineError("the engine sent no readable stat of the path") from error
    return stat
