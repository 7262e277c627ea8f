"""What the app's tables show: rows made from the Engine API's answers, and their columns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap

from desk.gui.models.rows import Column

RUNNING_COLOR = "#2e9e5b"
PAUSED_COLOR = "#c98a1b"
STOPPED_COLOR = "#9aa0a6"
DOT_PX = 12


@dataclass(frozen=True, slots=True)
class ContainerRow:
    """A container in the list. ``ports`` is ``((host port, container port, protocol), …)``."""

    id: str
    name: str
    image: str
    state: str
    status: str
    ports: tuple[tuple[int | None, int, str], ...]
    created_s: int

    @property
    def running(self) -> bool:
        return self.state in ("running", "paused", "restarting")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One tag of an image, or an untagged image (``repository`` is then ``<none>``)."""

    id: str
    repository: str
    tag: str
    created_s: int
    size_bytes: int

    @property
    def reference(self) -> str:
        """What names this row towards the engine."""
        return self.id if self.repository == "<none>" else f"{self.repository}:{self.tag}"


def container_row(answer: Mapping[str, Any]) -> ContainerRow:
    """Make a row of one element of ``GET /containers/json``."""
    ports = {
        (port.get("PublicPort"), int(port["PrivatePort"]), str(port.get("Type", "tcp")))
        for port in answer.get("Ports") or []
    }
    names = answer.get("Names") or [""]
    return ContainerRow(
        id=answer["Id"],
        name=names[0].lstrip("/"),
        image=answer.get("Image", ""),
        state=answer.get("State", ""),
        status=answer.get("Status", ""),
        ports=tuple(sorted(ports, key=lambda port: (port[1], port[2], port[0] or 0))),
        created_s=int(answer.get("Created", 0)),
    )


def image_rows(answer: Mapping[str, Any]) -> list[ImageRow]:
    """Make the rows of one element of ``GET /images/json``: one for each tag."""
    rows = []
    for reference in answer.get("RepoTags") or ["<none>:<none>"]:
        repository, _, tag = reference.rpartition(":")
        rows.append(
            ImageRow(
                id=answer["Id"],
                repository=repository,
                tag=tag,
                created_s=int(answer.get("Created", 0)),
                size_bytes=int(answer.get("Size", 0)),
            )
        )
    return rows


def port_text(ports: Sequence[tuple[int | None, int, str]]) -> str:
    """Say the published ports of a container: ``8080 → 80``; the protocol only if not TCP."""
    said = []
    for host, inside, protocol in ports:
        suffix = "" if protocol == "tcp" else f"/{protocol}"
        said.append(f"{host} → {inside}{suffix}" if host else f"{inside}{suffix}")
    return ", ".join(dict.fromkeys(said))


def size_text(size_bytes: float) -> str:
    """Say a size in decimal units, as Docker does: ``4.26 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def memory_text(size_bytes: float) -> str:
    """Say an amount of memory in binary units: ``1.5 GiB``."""
    mebibytes = size_bytes / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def age_text(created_s: int) -> str:
    """Say how long ago a moment (seconds since the epoch) was."""
    age_s = max(0, int(time.time()) - created_s)
    for unit, length_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = age_s // length_s
        if count:
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now"


def short_id(identifier: str) -> str:
    """Return the 12 hexadecimal digits that name an object to people."""
    return identifier.removeprefix("sha256:")[:12]


def state_icon(state: str) -> QIcon:
    """Return a dot in the colour of a container's state."""
    color = {"running": RUNNING_COLOR, "paused": PAUSED_COLOR, "restarting": PAUSED_COLOR}
    pixmap = QPixmap(DOT_PX, DOT_PX)
    pixmap.fill(QColor(0, 0, 0, 0))
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QColor("white"))  # sets the dot off from a selected row
    painter.setBrush(QColor(color.get(state, STOPPED_COLOR)))
    painter.drawEllipse(1, 1, DOT_PX - 3, DOT_PX - 3)
    painter.end()
    return QIcon(pixmap)


CONTAINER_COLUMNS: tuple[Column[ContainerRow], ...] = (
    Column(
        "Name",
        lambda row: row.name,
        tool_tip=lambda row: row.id,
        decoration=lambda row: state_icon(row.state),
    ),
    Column("Image", lambda row: row.image),
    Column("Status", lambda row: row.status, sort_key=lambda row: (row.state, row.status)),
    Column("Ports", lambda row: port_text(row.ports)),
    Column("Created", lambda row: age_text(row.created_s), sort_key=lambda row: row.created_s),
)

IMAGE_COLUMNS: tuple[Column[ImageRow], ...] = (
    Column("Repository", lambda row: row.repository),
    Column("Tag", lambda row: row.tag),
    Column("Image ID", lambda row: short_id(row.id), tool_tip=lambda row: row.id),
    Column("Created", lambda row: age_text(row.created_s), sort_key=lambda row: row.created_s),
    Column("Size", lambda row: size_text(row.size_bytes), sort_key=lambda row: row.size_bytes),
)
