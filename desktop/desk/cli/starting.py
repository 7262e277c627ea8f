"""Creating containers, and staying with one from its start to its exit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click

from desk.cli import interactive, render, terminal
from desk.cli.container_spec import Flags, container_body
from desk.cli.session import Session
from desk.engine.client import EngineClient
from desk.engine.streams import AttachedStream
from desk.errors import Conflict, EngineError, EngineUnreachable, InvalidRequest

CANNOT_INVOKE = 126
NOT_FOUND = 127


def split_reference(image: str) -> tuple[str, str]:
    """Return name and tag of an image, ``latest`` where none is said; a digest is a tag here."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    head, separator, tail = image.rpartition(":")
    if separator and "/" not in tail:
        return head, tail
    return image, "latest"


def create_container(session: Session, image: str, command: tuple[str, ...], flags: Flags) -> str:
    """Create a container after the flags, fetching its image if needed, and return its ID."""
    body = container_body(image, command, flags)
    session.check_host_ports(body)
    if flags["tty"] and (now := terminal.size()) is not None:
        body["HostConfig"]["ConsoleSize"] = [now.rows, now.columns]
    with _id_file(flags["cidfile"]) as write_id:
        created = _create(session, image, body, flags)
        for warning in created.get("Warnings") or ():
            render.warn(warning)
        container = str(created["Id"])
        write_id(container)
    return container


@contextlib.contextmanager
def _id_file(file: str | None) -> Iterator[Any]:
    """Reserve ``--cidfile`` before anything is created; an unused one is removed."""
    if not file:
        yield lambda _container: None
        return
    path = Path(file)
    try:
        with path.open("x") as opened:
            written: list[str] = []

            def write(container: str) -> None:
                opened.write(container)
                written.append(container)

            try:
                yield write
            finally:
                if not written:
                    path.unlink(missing_ok=True)
    except FileExistsError as error:
        raise Conflict(
            f"the container ID file {file} exists already",
            hint="Remove it if that container is gone, or name another file.",
        ) from error


def _create(session: Session, image: str, body: dict[str, Any], flags: Flags) -> dict[str, Any]:
    client = session.starting_client
    options = {"name": flags["name"], "platform": flags["platform"]}
    if flags["pull"] == "always":
        pull_image(client, image, platform=flags["platform"], quiet=flags["quiet"])
    try:
        return client.containers.create(body, **options)
    except EngineError as error:
        if error.status != 404 or flags["pull"] != "missing":
            raise
        # An image of another platform than the one wanted counts as missing.
        if not flags["platform"] and _has_image(client, image):
            raise
    render.note(f"Unable to find image '{':'.join(split_reference(image))}' locally")
    pull_image(client, image, platform=flags["platform"], quiet=flags["quiet"])
    return client.containers.create(body, **options)


def _has_image(client: EngineClient, image: str) -> bool:
    try:
        client.images.inspect(image)
    except EngineError as error:
        if error.status == 404:
            return False
        raise
    return True


def pull_image(
    client: EngineClient,
    image: str,
    *,
    platform: str | None = None,
    quiet: bool = False,
    all_tags: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Fetch an image; its progress goes to standard error unless it is the command's output."""
    from desk.cli.layer_lines import show_layers
    from desk.engine.logins import Logins, encode_header, server_of

    name, tag = split_reference(image)
    server = server_of(image)
    messages = client.images.pull(
        name,
        tag=None if all_tags else tag,
        platform=platform,
        headers=encode_header(Logins().find(server), server),
    )
    if quiet:
        for _ in messages:
            pass
    else:
        show_layers(messages, stream or sys.stderr)


def full_name(image: str, *, with_tag: bool = True) -> str:
    """Return an image's name with its registry, as Docker's clients print it after a transfer."""
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif "." not in first and ":" not in first and first != "localhost":
        image = f"docker.io/{image}"
    if not with_tag:
        return image
    name, tag = split_reference(image)
    return f"{name}{'@' if ':' in tag else ':'}{tag}"


# --- foreground ---------------------------------------------------------------------------------


class Attachment(NamedTuple):
    """How this terminal is connected to a container."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    detach_keys: str | None
    signals: bool  # pass on the signals that this process gets

    @property
    def any(self) -> bool:
        return self.stdin or self.stdout or self.stderr


def run_attached(
    client: EngineClient,
    container: str,
    attachment: Attachment,
    *,
    removed_after: bool,
    on_warning: Callable[[str], None] | None = None,
) -> int:
    """Start a created container, stay with it, and return its exit code (0 after detaching).
    ``on_warning`` is given what the engine says of the start.

    The order matters: first the streams, so that no output is missed, then the wait, so that a
    quick exit is seen, then the start.
    """
    if attachment.detach_keys is not None:
        interactive.parse_detach_keys(attachment.detach_keys)
    terminal.check_input(tty=attachment.tty, attach_stdin=attachment.stdin)
    with contextlib.ExitStack() as stack:
        stream: AttachedStream | None = None
        if attachment.any:
            stream = client.containers.attach(
                container,
                stdin=attachment.stdin,
                stdout=attachment.stdout,
                stderr=attachment.stderr,
                detach_keys=attachment.detach_keys,
                tty=attachment.tty,
            )
            stack.callback(stream.close)
        condition = "removed" if removed_after else "next-exit"
        wait = client.containers.begin_wait(container, condition=condition)
        stack.callback(wait.close)
        if attachment.signals:
            stack.enter_context(
                interactive.signals_passed_on(
                    lambda name: client.containers.kill(container, signal=name)
                )
            )
        start(client, container, detach_keys=attachment.detach_keys, on_warning=on_warning)
        if stream is not None and stay(client, container, stream, attachment):
            return 0
        ended = wait.result()
    if ended.error:
        raise EngineError(ended.error)
    return ended.code


def stay(
    client: EngineClient, container: str, stream: AttachedStream, attachment: Attachment
) -> bool:
    """Relay between this terminal and the container until its output ends; return whether the
    person detached. The terminal is restored in any case."""
    with contextlib.ExitStack() as stack:
        if attachment.tty and attachment.stdin:
            stack.enter_context(terminal.raw())
        if attachment.tty and terminal.size() is not None:
            stack.enter_context(
                interactive.window_size_followed(
                    lambda now: client.containers.resize(
                        container, rows=now.rows, columns=now.columns
                    )
                )
            )
        return interactive.relay(
            stream,
            tty=attachment.tty,
            stdin=attachment.stdin,
            detach_keys=attachment.detach_keys,
        )


class StartFailed(EngineError):
    """The container's program could not be executed; ``code`` is 126, 127 or 125."""

    def __init__(self, error: EngineError, code: int) -> None:
        super().__init__(error.text, status=error.status, hint=error.hint)
        self.code = code


def start(
    client: EngineClient,
    container: str,
    *,
    detach_keys: str | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> None:
    """Start a container; ``StartFailed`` knows the exit code that Docker gives the failure."""
    try:
        client.containers.start(container, detach_keys=detach_keys, on_warning=on_warning)
    except EngineUnreachable:
        raise
    except EngineError as error:
        raise StartFailed(error, _start_failure_code(client, container, error)) from error


def _start_failure_code(client: EngineClient, container: str, error: EngineError) -> int:
    """Return the exit code that the engine recorded. A container that removed itself left none;
    then the engine's words decide, as in Docker's own client."""
    try:
        code = client.containers.inspect(container)["State"].get("ExitCode")
        if code in (CANNOT_INVOKE, NOT_FOUND):
            return int(code)
    except EngineError as gone:
        if gone.status != 404:
            return 125
    text = error.text.lower()
    if any(part in text for part in ("executable file not found", "no such file or directory")):
        return NOT_FOUND
    if any(part in text for part in ("permission denied", "is a directory", "exec format error")):
        return CANNOT_INVOKE
    return 125


def leave(code: int) -> None:
    """End the command with a container's exit code."""
    if code:
        raise click.exceptions.Exit(code)


def check_streams(*, detach: bool, attach: tuple[str, ...]) -> None:
    if detach and attach:
        raise InvalidRequest(
            "--detach and --attach exclude each other",
            hint="Leave one out; `desk attach` connects to a running container later.",
        )
