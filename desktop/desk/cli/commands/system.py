"""``desk version``, ``info``, ``events`` and ``system df``: the engine itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

import desk
from desk.cli import options, render
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import ago, format_rfc3339, human_size, parse_moment, parse_timestamp
from desk.errors import DeskError
from desk.sizes import binary_size


@click.command(cls=DeskCommand, example="desk version --format '{{.Server.Version}}'")
@options.detail_format
@pass_session
def version(session: Session, form: str) -> None:
    """Show the versions of Desk and the engine."""
    client = {
        "Version": desk.__version__,
        "ApiVersion": "1.47",
        "DefaultAPIVersion": "1.47",
        "PythonVersion": sys.version.split()[0],
        "Os": sys.platform,
        "Machine": session.engine_url or session.machine,
    }
    failure: DeskError | None = None
    server: dict[str, Any] | None = None
    try:
        server = session.client.system.version()
    except DeskError as error:
        failure = error
    if form:
        from desk.cli.structures import structured

        both = structured({"Client": client, "Server": server}, "Versions")
        render.out(render.render_object(both, form))
    else:
        render.out(
            "Client: Desk\n"
            f" Version:           {client['Version']}\n"
            f" API version:       {client['ApiVersion']}\n"
            f" Python version:    {client['PythonVersion']}\n"
            f" OS:                {client['Os']}\n"
            f" Machine:           {client['Machine']}"
        )
        if server is not None:
            render.out("\n" + _server_text(server))
    if failure is not None:
        raise failure


def _server_text(server: Mapping[str, Any]) -> str:
    name = (server.get("Platform") or {}).get("Name") or "Engine"
    lines = [f"Server: {name}"]
    components = server.get("Components") or [
        {"Name": "Engine", "Version": server.get("Version", ""), "Details": server}
    ]
    for component in components:
        details = component.get("Details") or {}
        lines += [f" {component['Name']}:", f"  Version:          {component['Version']}"]
        minimum = details.get("MinAPIVersion")
        for label, value in (
            (
                "API version",
                f"{details['ApiVersion']} (minimum version {minimum})"
                if details.get("ApiVersion")
                else "",
            ),
            ("Python version", details.get("PythonVersion")),
            ("Go version", details.get("GoVersion")),
            ("Git commit", details.get("GitCommit")),
            ("Built", details.get("BuildTime")),
            ("OS/Arch", "/".join(filter(None, (details.get("Os"), details.get("Arch"))))),
            ("Kernel", details.get("KernelVersion")),
        ):
            if value:
                lines.append(f"  {label + ':':<17} {value}")
    return "\n".join(lines)


@click.command(cls=DeskCommand, example="desk info --format '{{.MemTotal}}'")
@options.detail_format
@pass_session
def info(session: Session, form: str) -> None:
    """Show facts about the engine and its machine."""
    facts = session.client.system.info()
    if form:
        render.out(render.render_object(facts, form))
        return
    render.out(
        f"Client: Desk\n Version:  {desk.__version__}\n"
        f" Machine:  {session.engine_url or session.machine}\n\nServer:\n" + _info_text(facts)
    )
    for warning in facts.get("Warnings") or ():
        render.note(warning)


def _info_text(facts: Mapping[str, Any]) -> str:
    plugins = facts.get("Plugins") or {}
    security = [
        option.partition("name=")[2] or option for option in facts.get("SecurityOptions") or ()
    ]
    lines: list[tuple[int, str, Any]] = [
        (1, "Containers", facts.get("Containers")),
        (2, "Running", facts.get("ContainersRunning")),
        (2, "Paused", facts.get("ContainersPaused")),
        (2, "Stopped", facts.get("ContainersStopped")),
        (1, "Images", facts.get("Images")),
        (1, "Server Version", facts.get("ServerVersion")),
        (1, "Storage Driver", facts.get("Driver")),
        *((2, name, value) for name, value in facts.get("DriverStatus") or ()),
        (1, "Logging Driver", facts.get("LoggingDriver")),
        (1, "Cgroup Driver", facts.get("CgroupDriver")),
        (1, "Cgroup Version", facts.get("CgroupVersion")),
        (1, "Networks", " ".join(plugins.get("Network") or ())),
        (1, "Volumes", " ".join(plugins.get("Volume") or ())),
        (1, "Log", " ".join(plugins.get("Log") or ())),
        (1, "Runtimes", " ".join(facts.get("Runtimes") or {})),
        (1, "Default Runtime", facts.get("DefaultRuntime")),
        (1, "Security Options", " ".join(security)),
        (1, "Kernel Version", facts.get("KernelVersion")),
        (1, "Operating System", facts.get("OperatingSystem")),
        (1, "OSType", facts.get("OSType")),
        (1, "Architecture", facts.get("Architecture")),
        (1, "CPUs", facts.get("NCPU")),
        (1, "Total Memory", binary_size(facts.get("MemTotal") or 0)),
        (1, "Name", facts.get("Name")),
        (1, "ID", facts.get("ID")),
        (1, "Root Dir", facts.get("DockerRootDir")),
        (1, "Debug Mode", str(bool(facts.get("Debug"))).lower()),
        (1, "Live Restore Enabled", str(bool(facts.get("LiveRestoreEnabled"))).lower()),
    ]
    return "\n".join(
        f"{' ' * indent}{label}: {value}"
        for indent, label, value in lines
        if value not in (None, "")
    )


@click.command(cls=DeskCommand, example="desk events --since 10m --filter type=container")
@options.filters("Show those that match, such as event=die.")
@click.option("--format", "form", metavar="FORMAT", default="", help="json, or a Go template.")
@click.option("--since", metavar="TIME", help="From this time on.")
@click.option("--until", metavar="TIME", help="Up to this time, then end.")
@pass_session
def events(
    session: Session, filters: tuple[str, ...], form: str, since: str | None, until: str | None
) -> None:
    """Show what happens in the engine as it happens."""
    from desk.engine.following import follow_events

    show: Callable[[Any], str] = render.object_renderer(form, "Event") if form else event_text
    for event in follow_events(
        session.client.system,
        since=parse_moment(since) if since else None,
        until=parse_moment(until) if until else None,
        filters=parse_filters(filters),
        lost=render.tell_loss,
    ):
        render.out(show(event))
        sys.stdout.flush()


def event_text(event: Mapping[str, Any]) -> str:
    """Render an event in Docker's one-line form."""
    nanoseconds = event.get("timeNano") or event.get("time", 0) * 10**9
    seconds, rest = divmod(nanoseconds, 10**9)
    whole = format_rfc3339(seconds)
    moment = f"{whole[:19]}.{rest:09d}{whole[19:]}"
    actor = event.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    details = ", ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
    suffix = f" ({details})" if details else ""
    return f"{moment} {event.get('Type')} {event.get('Action')} {actor.get('ID', '')}{suffix}"


# --- disk use -----------------------------------------------------------------------------------

_DF_HEADINGS = {
    "Active": "ACTIVE",
    "Reclaimable": "RECLAIMABLE",
    "Size": "SIZE",
    "TotalCount": "TOTAL",
    "Type": "TYPE",
}


@click.command(cls=DeskCommand, example="desk system df -v")
@options.table_format
@click.option("-v", "--verbose", is_flag=True, help="Show each image, container and volume.")
@pass_session
def df(session: Session, form: str, verbose: bool) -> None:
    """Show how much disk images, containers and volumes use."""
    usage = session.client.system.disk_usage()
    if verbose and form not in ("", "table"):
        # Unlike elsewhere, Docker ends only JSON with a line end here.
        render.write(render.render_object(df_objects(usage), form) + "\n" * (form == "json"))
        return
    if verbose:
        _df_verbose(usage)
        return
    table = Table(_DF_HEADINGS, default=("Type", "TotalCount", "Active", "Size", "Reclaimable"))
    table.print(df_rows(usage) + bin_rows(session.client.bin.contents()), form=form)


def bin_rows(contents: Mapping[str, Any]) -> list[render.Row]:
    """Return the bin's row, where there is something in it."""
    count, size = len(contents["Entries"]), contents["Size"]
    return [_df_row("Bin", count, 0, size, size)] if count else []


def df_rows(usage: Mapping[str, Any]) -> list[render.Row]:
    """Return the overview's rows of a ``/system/df`` answer."""
    images = usage.get("Images") or []
    containers = usage.get("Containers") or []
    volumes = usage.get("Volumes") or []
    caches = usage.get("BuildCache") or []
    layers = usage.get("LayersSize") or 0
    used = sum(
        item["Size"] - max(item.get("SharedSize", 0), 0)
        for item in images
        if item.get("Containers", 0) > 0
    )
    sizes = [item.get("SizeRw") or 0 for item in containers]
    idle = [
        size
        for item, size in zip(containers, sizes, strict=True)
        if item.get("State") not in ("running", "paused", "restarting")
    ]
    data = [item.get("UsageData") or {} for item in volumes]
    volume_sizes = [max(item.get("Size", 0), 0) for item in data]
    unused = [
        size for item, size in zip(data, volume_sizes, strict=True) if item.get("RefCount", 0) == 0
    ]
    cache_sizes = [item.get("Size") or 0 for item in caches]
    free_cache = [item.get("Size") or 0 for item in caches if not item.get("InUse")]
    active_images = sum(item.get("Containers", 0) > 0 for item in images)
    return [
        _df_row("Images", len(images), active_images, layers, max(layers - used, 0)),
        _df_row("Containers", len(containers), len(sizes) - len(idle), sum(sizes), sum(idle)),
        _df_row(
            "Local Volumes", len(volumes), len(data) - len(unused), sum(volume_sizes), sum(unused)
        ),
        _df_row(
            "Build Cache",
            len(caches),
            len(caches) - len(free_cache),
            sum(cache_sizes),
            sum(free_cache),
        ),
    ]


def _df_row(kind: str, count: int, active: int, size: int, free: int) -> render.Row:
    share = f" ({100 * free // size}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": str(count),
        "Active": str(active),
        "Size": human_size(size, digits=4),
        "Reclaimable": f"{human_size(free, digits=4)}{share}",
    }


def df_objects(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rows of all that is there, as templates of ``system df -v`` see them."""
    from desk.cli.commands.images import image_rows
    from desk.cli.commands.volumes import volume_row
    from desk.cli.template_functions import TableRow

    return {
        "Images": [
            TableRow({**row, "Digest": ""})
            for row in image_rows(usage.get("Images") or (), truncate=False, one_each=True)
        ],
        "Containers": [
            TableRow(_df_container_row(item, truncate=False))
            for item in usage.get("Containers") or ()
        ],
        "Volumes": [TableRow(volume_row(item)) for item in usage.get("Volumes") or ()],
        "BuildCache": [TableRow(_cache_row(item)) for item in usage.get("BuildCache") or ()],
    }


def _df_verbose(usage: Mapping[str, Any]) -> None:
    from desk.cli.commands.images import IMAGE_HEADINGS, image_rows

    render.out("Images space usage:\n")
    shown = (
        "Repository",
        "Tag",
        "ID",
        "CreatedSince",
        "Size",
        "SharedSize",
        "UniqueSize",
        "Containers",
    )
    Table(IMAGE_HEADINGS, default=shown).print(
        image_rows(usage.get("Images") or (), truncate=True, one_each=True)
    )
    render.out("\nContainers space usage:\n")
    headings = {
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "Command": "COMMAND",
        "LocalVolumes": "LOCAL VOLUMES",
        "Size": "SIZE",
        "RunningFor": "CREATED",
        "Status": "STATUS",
        "Names": "NAMES",
    }
    Table(headings, default=tuple(headings)).print(
        _df_container_row(item, truncate=True) for item in usage.get("Containers") or ()
    )
    render.out("\nLocal Volumes space usage:\n")
    render.print_columns(
        [
            ("VOLUME NAME", "LINKS", "SIZE"),
            *(
                (
                    item["Name"],
                    str((item.get("UsageData") or {}).get("RefCount", 0)),
                    human_size(max((item.get("UsageData") or {}).get("Size", 0), 0)),
                )
                for item in usage.get("Volumes") or ()
            ),
        ]
    )
    caches = usage.get("BuildCache") or []
    render.out(f"\nBuild cache usage: {human_size(sum(item.get('Size') or 0 for item in caches))}")
    render.out("")
    headings = {
        "ID": "CACHE ID",
        "CacheType": "CACHE TYPE",
        "Size": "SIZE",
        "CreatedSince": "CREATED",
        "LastUsedSince": "LAST USED",
        "UsageCount": "USAGE",
        "Shared": "SHARED",
    }
    Table(headings, default=tuple(headings)).print(
        {**_cache_row(item), "ID": item["ID"][:12]} for item in caches
    )


def _df_container_row(item: Mapping[str, Any], *, truncate: bool) -> render.Row:
    from desk.cli.container_rows import container_row

    return {**container_row(item, truncate=truncate), "Size": human_size(item.get("SizeRw") or 0)}


def _cache_row(item: Mapping[str, Any]) -> render.Row:
    return {
        "CacheType": item.get("Type", ""),
        "CreatedAt": item.get("CreatedAt", ""),
        "CreatedSince": ago(parse_timestamp(item.get("CreatedAt", ""))),
        "Description": item.get("Description", ""),
        "ID": item["ID"],
        "InUse": str(bool(item.get("InUse"))).lower(),
        "LastUsedAt": item.get("LastUsedAt") or "",
        "LastUsedSince": ago(parse_timestamp(item.get("LastUsedAt") or "")),
        "Shared": str(bool(item.get("Shared"))).lower(),
        "Size": human_size(item.get("Size") or 0),
        "UsageCount": str(item.get("UsageCount", 0)),
    }
