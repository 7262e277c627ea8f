"""Commands on images."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click

from desk.cli import complete, options, render
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand
from desk.cli.layer_lines import show_layers
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.starting import split_reference
from desk.cli.units import ago, format_created_at, format_rfc3339, human_size
from desk.engine.streams import ByteStream
from desk.errors import EngineError, EngineUnreachable, InvalidRequest, UsageError

_PIECE_BYTES = 256 * 1024
_NONE = "<none>"

IMAGE_HEADINGS = {
    "Containers": "CONTAINERS",
    "CreatedAt": "CREATED AT",
    "CreatedSince": "CREATED",
    "Digest": "DIGEST",
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "SharedSize": "SHARED SIZE",
    "Size": "SIZE",
    "Tag": "TAG",
    "UniqueSize": "UNIQUE SIZE",
    "VirtualSize": "SIZE",
}

TREE_HEADINGS = {
    "Image": "IMAGE",
    "ID": "ID",
    "Usage": "DISK USAGE",
    "Content": "CONTENT SIZE",
    "Extra": "EXTRA",
}

HISTORY_HEADINGS = {
    "Comment": "COMMENT",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "CreatedSince": "CREATED",
    "ID": "IMAGE",
    "Size": "SIZE",
}


# --- looking ------------------------------------------------------------------------------------


def image_rows(
    images: Iterable[Mapping[str, Any]],
    *,
    truncate: bool,
    digests: bool = False,
    one_each: bool = False,
) -> Iterator[render.Row]:
    """Yield one row for each tag, and for each digest without one when ``digests``; with
    ``one_each`` an image has only its first."""
    for image in images:
        tags = [tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"]
        known = [item for item in image.get("RepoDigests") or () if not item.startswith(_NONE)]
        pairs = [_tag_and_digest(tag, known) for tag in tags]
        if not pairs:
            pairs = [
                (*item.partition("@")[::2][:1], _NONE, item.partition("@")[2]) for item in known
            ]
        if not digests:
            pairs = list(dict.fromkeys((name, tag, "") for name, tag, _ in pairs))
        pairs = pairs or [(_NONE, _NONE, "")]
        for name, tag, digest in pairs[:1] if one_each else pairs:
            yield _image_row(image, name, tag, digest or _NONE, truncate=truncate)


def _tag_and_digest(reference: str, digests: Iterable[str]) -> tuple[str, str, str]:
    name, _, tag = reference.rpartition(":")
    digest = next((d.partition("@")[2] for d in digests if d.partition("@")[0] == name), "")
    return name, tag, digest


def _image_row(
    image: Mapping[str, Any], name: str, tag: str, digest: str, *, truncate: bool
) -> render.Row:
    identifier = str(image["Id"])
    created = image.get("Created") or 0
    containers = image.get("Containers", -1)
    shared = image.get("SharedSize", -1)
    size = image.get("Size") or 0
    return {
        "Containers": "N/A" if containers < 0 else str(containers),
        "CreatedAt": format_created_at(created),
        "CreatedSince": ago(created),
        "Digest": digest,
        "ID": identifier.removeprefix("sha256:")[:12] if truncate else identifier,
        "Repository": name,
        "SharedSize": "N/A" if shared < 0 else human_size(shared, digits=4),
        "Size": human_size(size),
        "Tag": tag,
        "UniqueSize": "N/A" if shared < 0 else human_size(size - shared, digits=4),
        "VirtualSize": human_size(size, digits=4),
    }


def tree_rows(images: Iterable[Mapping[str, Any]]) -> Iterator[render.Row]:
    """Yield a row for each image below those of its further names. An engine of this API has an
    image for one platform, so nothing branches off."""
    for image in images:
        *others, last = image.get("RepoTags") or ["<untagged>"]
        for name in others:
            yield {"Image": name, "ID": "", "Usage": "", "Content": "", "Extra": ""}
        yield {
            "Image": last,
            "ID": str(image["Id"]).removeprefix("sha256:")[:12],
            "Usage": human_size(image.get("Size") or 0),
            "Content": "0B",
            "Extra": "U" if image.get("Containers", 0) > 0 else "",
        }


def _print_tree(session: Session, wanted: dict[str, list[str]], *, all_: bool) -> None:
    if not all_:
        wanted.setdefault("dangling", ["false"])
    images = session.client.images.list(all_=all_, filters=wanted, shared=True)
    Table(TREE_HEADINGS, default=list(TREE_HEADINGS)).print(tree_rows(images))
    if any((image.get("Containers") or 0) > 0 for image in images):
        click.echo("U: in use by a container")


def _list_command(name: str) -> Any:
    @click.command(name, cls=DeskCommand, example="desk images\ndesk images -q trixie")
    @click.option("-a", "--all", "all_", is_flag=True, help="Show intermediate images too.")
    @click.option("--digests", is_flag=True, help="Show digests.")
    @options.filters("Show those that match, such as dangling=true.")
    @options.table_format
    @options.no_trunc
    @options.quiet_ids
    @click.option("--tree", is_flag=True, help="Show each image below its names, and what is used.")
    @click.argument(
        "repository", metavar="[REPOSITORY[:TAG]]", required=False, shell_complete=complete.images
    )
    @pass_session
    def command(
        session: Session,
        all_: bool,
        digests: bool,
        filters: tuple[str, ...],
        form: str,
        no_trunc: bool,
        quiet: bool,
        tree: bool,
        repository: str | None,
    ) -> None:
        """List images."""
        wanted = parse_filters(filters)
        if repository:
            wanted.setdefault("reference", []).append(repository)
        if tree:
            flags = {"quiet": quiet, "no-trunc": no_trunc, "digests": digests, "format": form}
            for flag in (flag for flag, value in flags.items() if value):
                raise InvalidRequest(
                    f"--{flag} is not supported with --tree", hint="Leave one out."
                )
            _print_tree(session, wanted, all_=all_)
            return
        images = session.client.images.list(all_=all_, filters=wanted)
        rows = image_rows(images, truncate=not no_trunc, digests=digests or ".Digest" in form)
        shown = ["Repository", "Tag", "ID", "CreatedSince", "Size"]
        if digests:
            shown.insert(2, "Digest")
        Table(IMAGE_HEADINGS, default=shown, quiet="ID").print(rows, form=form, quiet=quiet)

    return command


images = _list_command("images")
ls = _list_command("ls")


@click.command(cls=DeskCommand, example="desk history trixie")
@options.table_format
@click.option("-H", "--human/--no-human", default=True, help="Sizes and dates for people (on).")
@options.no_trunc
@options.quiet_ids
@click.argument("image", shell_complete=complete.images)
@pass_session
def history(
    session: Session, image: str, form: str, human: bool, no_trunc: bool, quiet: bool
) -> None:
    """Show how an image was made."""
    table = Table(
        HISTORY_HEADINGS,
        default=["ID", "CreatedSince" if human else "CreatedAt", "CreatedBy", "Size", "Comment"],
        quiet="ID",
    )
    rows = [
        _history_row(layer, truncate=not no_trunc, human=human)
        for layer in session.client.images.history(image)
    ]
    table.print(rows, form=form, quiet=quiet)


def _history_row(layer: Mapping[str, Any], *, truncate: bool, human: bool) -> render.Row:
    from desk.cli.container_rows import shortened

    created_by = " ".join(str(layer.get("CreatedBy") or "").split())
    identifier = str(layer["Id"])
    return {
        "Comment": layer.get("Comment") or "",
        "CreatedAt": format_rfc3339(layer.get("Created") or 0),
        "CreatedBy": shortened(created_by, 45) if truncate else created_by,
        "CreatedSince": ago(layer.get("Created") or 0),
        "ID": identifier.removeprefix("sha256:")[:12] if truncate else identifier,
        "Size": human_size(layer.get("Size") or 0) if human else str(layer.get("Size") or 0),
    }


# --- names --------------------------------------------------------------------------------------


@click.command(cls=DeskCommand, example="desk tag trixie registry.example:5000/trixie:13")
@click.argument("image", shell_complete=complete.images)
@click.argument("new_name", metavar="NEW_NAME[:TAG]")
@pass_session
def tag(session: Session, image: str, new_name: str) -> None:
    """Give an image another name."""
    repository, new_tag = split_reference(new_name)
    session.client.images.tag(image, repository=repository, tag=new_tag)


def _remove_command(name: str) -> Any:
    @click.command(name, cls=DeskCommand, example=f"desk {name} trixie")
    @click.option("-f", "--force", is_flag=True, help="Remove it though containers use it.")
    @click.option("--no-prune", is_flag=True, help="Keep parents that have no name.")
    @click.argument(
        "images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete.images
    )
    @pass_session
    def command(session: Session, images: tuple[str, ...], force: bool, no_prune: bool) -> None:
        """Remove images."""
        failed = False
        for image in images:
            try:
                report = session.removing_client.images.remove(
                    image, force=force, prune=not no_prune
                )
            except EngineUnreachable:
                raise
            except EngineError as failure:
                render.error(failure)
                failed = failed or not (force and failure.status == 404)
                continue
            for item in report:
                for action in ("Untagged", "Deleted"):
                    if item.get(action):
                        render.out(f"{action}: {item[action]}")
        if failed:
            raise click.exceptions.Exit(1)

    return command


rmi = _remove_command("rmi")
rm = _remove_command("rm")


# --- in and out ---------------------------------------------------------------------------------


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(_PIECE_BYTES):
        yield piece


_OUTPUT_HELP = "File (standard output); .gz, .xz, .bz2 and .zst compress it."


@contextlib.contextmanager
def _input_file(file: str | None) -> Iterator[BinaryIO]:
    """Open a file, or standard input for ``-`` and ``None``, which must then be no terminal."""
    if file in (None, "-"):
        if sys.stdin.isatty():
            raise UsageError(
                "standard input is a terminal, not an archive",
                hint="Pipe an archive in, or name its file.",
            )
        yield sys.stdin.buffer
        return
    path = Path(str(file)).expanduser()
    with path.open("rb") as opened:
        yield opened


def write_stream(stream: ByteStream, file: str | None) -> None:
    """Write a tar archive to a file, which appears only when it is whole and is compressed where
    its name says so, or to standard output, which must then be no terminal."""
    if not file:
        if sys.stdout.isatty():
            stream.close()
            raise UsageError(
                "an archive is not for a terminal",
                hint="Use -o FILE, or redirect standard output.",
            )
        for piece in stream:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    from desk.compression import compressed

    path = Path(file).expanduser()
    if path.exists() and not path.is_file():  # a device or a pipe
        with path.open("wb") as target:
            target.writelines(stream)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as raw, compressed(raw, path.name) as target:
            for piece in stream:
                target.write(piece)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@click.command(
    "import",
    cls=DeskCommand,
    example="mmdebstrap --variant=minbase trixie - | desk import - trixie\n"
    "desk import -c 'CMD [\"bash\"]' rootfs.tar.zst trixie:13",
)
@click.option(
    "-c",
    "--change",
    "changes",
    metavar="INSTRUCTION",
    multiple=True,
    help="Dockerfile instruction to apply, such as CMD or ENV.",
)
@click.option("-m", "--message", metavar="TEXT", help="Comment of the image.")
@click.option("--platform", metavar="PLATFORM", help="Platform, such as linux/amd64.")
@click.argument("source", metavar="FILE|URL|-")
@click.argument("name", metavar="[REPOSITORY[:TAG]]", required=False)
@pass_session
def import_(
    session: Session,
    source: str,
    name: str | None,
    changes: tuple[str, ...],
    message: str | None,
    platform: str | None,
) -> None:
    """Make an image of a root file system's tar archive."""
    repository, new_tag = split_reference(name) if name else (None, None)
    options: dict[str, Any] = {
        "repository": repository,
        "tag": new_tag,
        "message": message,
        "changes": changes,
        "platform": platform,
    }
    images = session.starting_client.images
    if source.startswith(("http://", "https://", "ftp://")):
        render.show_progress(images.import_(source, **options))
        return
    with _input_file(source) as archive:
        render.show_progress(images.import_(_pieces(archive), **options))


@click.command(cls=DeskCommand, example="desk load -i images.tar")
@click.option("-i", "--input", "file", metavar="FILE", help="Archive (standard input).")
@click.option("-q", "--quiet", is_flag=True, help="Do not show progress.")
@pass_session
def load(session: Session, file: str | None, quiet: bool) -> None:
    """Load images from a tar archive."""
    with _input_file(file) as archive:
        show_layers(session.starting_client.images.load(_pieces(archive), quiet=quiet))


@click.command(cls=DeskCommand, example="desk save -o images.tar trixie busybox")
@click.option("-o", "--output", "file", metavar="FILE", help=_OUTPUT_HELP)
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete.images
)
@pass_session
def save(session: Session, images: tuple[str, ...], file: str | None) -> None:
    """Write images to a tar archive."""
    with session.client.images.save(images) as archive:
        write_stream(archive, file)


@click.command(cls=DeskCommand, example="desk export -o web.tar web")
@click.option("-o", "--output", "file", metavar="FILE", help=_OUTPUT_HELP)
@click.argument("container", shell_complete=complete.containers)
@pass_session
def export(session: Session, container: str, file: str | None) -> None:
    """Write a container's files as a tar archive."""
    with session.client.containers.export(container) as archive:
        write_stream(archive, file)


@click.command(cls=DeskCommand, example="desk commit -m 'with nginx' web web:2")
@click.option("-a", "--author", metavar="NAME", help="Author of the image.")
@click.option(
    "-c",
    "--change",
    "changes",
    metavar="INSTRUCTION",
    multiple=True,
    help="Dockerfile instruction to apply, such as CMD or ENV.",
)
@click.option("-m", "--message", metavar="TEXT", help="Comment of the image.")
@click.option("-p", "--pause/--no-pause", default=True, help="Pause it meanwhile (on).")
@click.argument("container", shell_complete=complete.containers)
@click.argument("name", metavar="[REPOSITORY[:TAG]]", required=False)
@pass_session
def commit(
    session: Session,
    container: str,
    name: str | None,
    author: str | None,
    changes: tuple[str, ...],
    message: str | None,
    pause: bool,
) -> None:
    """Make an image of a container's changes."""
    repository, new_tag = split_reference(name) if name else (None, None)
    render.out(
        session.client.containers.commit(
            container,
            repository=repository,
            tag=new_tag,
            comment=message,
            author=author,
            changes=changes,
            pause=pause,
        )
    )
