"""Containers as rows of ``desk ps``, with the columns that Docker's templates know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from desk.cli.render import Row, Table
from desk.cli.units import ago, format_created_at, human_size

HEADINGS = {
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Labels": "LABELS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Mounts": "MOUNTS",
    "Names": "NAMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
    "Ports": "PORTS",
    "RunningFor": "CREATED",
    "Size": "SIZE",
    "State": "STATE",
    "Status": "STATUS",
}

_DEFAULT = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def table(*, size: bool) -> Table:
    return Table(HEADINGS, default=(*_DEFAULT, "Size") if size else _DEFAULT, quiet="ID")


def shortened(text: str, length: int) -> str:
    """Cut a text to ``length`` characters, the last being an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def container_row(container: Mapping[str, Any], *, truncate: bool = True) -> Row:
    """Return the columns of a container summary."""
    labels = container.get("Labels") or {}
    names = [name.lstrip("/") for name in container.get("Names") or ()]
    if truncate:  # links have a name below the container's
        names = [name for name in names if "/" not in name]
    command = str(container.get("Command", ""))
    mounts = container.get("Mounts") or ()
    mount_names = [str(mount.get("Name") or mount.get("Source") or "") for mount in mounts]
    if truncate:
        command = shortened(command, 20)
        mount_names = [shortened(name, 15) for name in mount_names]
    networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
    identifier = str(container["Id"])
    return {
        "Command": json.dumps(command, ensure_ascii=False),
        "CreatedAt": format_created_at(container.get("Created", 0)),
        "ID": identifier[:12] if truncate else identifier,
        "Image": _image(container, truncate=truncate),
        "Label": lambda name: labels.get(name, ""),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in mounts)),
        "Mounts": ",".join(mount_names),
        "Names": ",".join(names),
        "Networks": ",".join(networks),
        "Platform": (container.get("ImageManifestDescriptor") or {}).get("platform"),
        "Ports": ports_text(container.get("Ports") or ()),
        "RunningFor": ago(container.get("Created", 0)),
        "Size": _size(container),
        "State": container.get("State", ""),
        "Status": container.get("Status", ""),
    }


def _image(container: Mapping[str, Any], *, truncate: bool) -> str:
    image = str(container.get("Image") or "") or "<no image>"
    if truncate:
        image = image.removeprefix("sha256:") if image == container.get("ImageID") else image
        if len(image) == 64 and all(c in "0123456789abcdef" for c in image):
            return image[:12]
        image = image.partition("@")[0]
    return image


def _size(container: Mapping[str, Any]) -> str:
    own = human_size(container.get("SizeRw") or 0)
    virtual = container.get("SizeRootFs") or 0
    return f"{own} (virtual {human_size(virtual)})" if virtual > 0 else own


# --- ports --------------------------------------------------------------------------------------


def ports_text(ports: Iterable[Mapping[str, Any]]) -> str:
    """Render ports as Docker does: neighbours that map to themselves as a range, then those that
    map to other ports."""
    ordered = sorted(
        ports,
        key=lambda port: (
            port["PrivatePort"],
            port.get("IP") or "",
            port.get("PublicPort") or 0,
            port["Type"],
        ),
    )
    closed: list[str] = []
    mapped: list[str] = []
    ranges: dict[tuple[str, str], tuple[int, int]] = {}
    for port in ordered:
        private, kind, ip = port["PrivatePort"], port["Type"], port.get("IP") or ""
        if ip and port.get("PublicPort") != private:
            mapped.append(f"{_host(ip)}:{port.get('PublicPort')}->{private}/{kind}")
            continue
        key = (ip, kind)
        if key in ranges and private == ranges[key][1] + 1:
            ranges[key] = (ranges[key][0], private)
            continue
        if key in ranges:
            closed.append(_range_text(key, ranges[key]))
        ranges[key] = (private, private)
    return ", ".join([*closed, *(_range_text(*item) for item in ranges.items()), *mapped])


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _range_text(key: tuple[str, str], ports: tuple[int, int]) -> str:
    ip, kind = key
    text = str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"
    return f"{_host(ip)}:{text}->{text}/{kind}" if ip else f"{text}/{kind}"
