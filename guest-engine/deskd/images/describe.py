"""Images as the API shows them: summaries, inspect, history (field names of API 1.47)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from deskd.domain.container import whole
from deskd.domain.image import ImageRecord, chain_ids
from deskd.domain.times import rfc3339
from deskd.images.catalog import Catalog
from deskd.images.filters import created_ns, matches, time_ns
from deskd.images.removal import ImageUse

UNKNOWN = -1
_LEFT_OUT_WHEN_ZERO = frozenset({
    "ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress",
    "StopSignal", "StopTimeout", "Shell",
})  # fmt: skip


def summaries(
    catalog: Catalog,
    images: Sequence[ImageRecord],
    uses: Sequence[ImageUse],
    *,
    with_shared: bool,
    patterns: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return ``ImageSummary`` objects. ``with_shared`` counts shared bytes and containers, which
    are -1 else; with ``patterns`` only names that one of them matches are listed."""
    names = catalog.all_names()
    if patterns:
        names = {
            image_id: [name for name in own if any(matches(name, p) for p in patterns)]
            for image_id, own in names.items()
        }
    holders = Counter(
        chain_id for image in catalog.all() for chain_id in chain_ids(image.config.diff_ids)
    )
    using = Counter(use.image_id for use in uses)
    found: list[dict[str, Any]] = []
    for image in images:
        shared = UNKNOWN
        if with_shared:
            shared = sum(
                layer.size_bytes
                for chain_id in chain_ids(image.config.diff_ids)
                if holders[chain_id] > 1 and (layer := catalog.layers.get(chain_id))
            )
        found.append(
            {
                "Id": image.id,
                "ParentId": image.parent,
                "RepoTags": [name.familiar for name in names.get(image.id, []) if name.tag],
                "RepoDigests": [name.familiar for name in names.get(image.id, []) if name.digest],
                "Created": created_ns(image) // 1_000_000_000,
                "Size": image.size_bytes,
                "SharedSize": shared,
                "Labels": image.container_config.labels or None,
                "Containers": using[image.id] if with_shared else UNKNOWN,
            }
        )
    return found


def inspect(catalog: Catalog, image: ImageRecord) -> dict[str, Any]:
    """Return ``ImageInspect``."""
    config = image.config
    history = config.history or []
    names = catalog.names(image.id)
    document: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": [name.familiar for name in names if name.tag],
        "RepoDigests": [name.familiar for name in names if name.digest],
        "Parent": image.parent,
        "Comment": config.comment or (history[-1].comment if history else ""),
        **({"Created": config.created} if config.created else {}),
        "DockerVersion": config.docker_version,
        "Author": config.author,
        "Config": shown_config(image),
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": image.size_bytes,
        "GraphDriver": graph_driver(catalog, image),
        "RootFS": {"Type": config.rootfs.type, "Layers": config.diff_ids},
        "Metadata": {"LastTagTime": rfc3339(image.last_tagged_ns)},
    }
    for key, value in (
        ("Variant", config.variant),
        ("OsVersion", config.os_version),
    ):
        if value:
            document[key] = value
    return document


def shown_config(image: ImageRecord) -> dict[str, Any]:
    """Return the image's configuration with the fields that Docker shows."""
    document: dict[str, Any] = whole(image.container_config)
    return {
        key: value for key, value in document.items() if value or key not in _LEFT_OUT_WHEN_ZERO
    }


def graph_driver(catalog: Catalog, image: ImageRecord) -> dict[str, Any]:
    """Return where the image's layers are."""
    top = chain_ids(image.config.diff_ids)[-1:]
    places = [
        catalog.layers.directory(layer) for chain in top for layer in catalog.layers.chain(chain)
    ]
    data = {"UpperDir": places[0]} if places else {}
    if len(places) > 1:
        data["LowerDir"] = ":".join(places[1:])
    return {"Name": "overlay2", "Data": data or None}


def history(catalog: Catalog, image: ImageRecord) -> list[dict[str, Any]]:
    """Return ``HistoryResponseItem`` objects, newest first."""
    config = image.config
    chain = iter(chain_ids(config.diff_ids))
    steps: list[dict[str, Any]] = []
    for step in config.history or []:
        layer = None if step.empty_layer else catalog.layers.get(next(chain, ""))
        steps.append(
            {
                "Id": "<missing>",
                "Created": time_ns(step.created) // 1_000_000_000,
                "CreatedBy": step.created_by,
                "Tags": None,
                "Size": layer.size_bytes if layer else 0,
                "Comment": step.comment,
            }
        )
    steps.reverse()
    known: ImageRecord | None = image
    for entry in steps:
        if known is None:
            break
        entry["Id"] = known.id
        entry["Tags"] = [name.familiar for name in catalog.names(known.id) if name.tag] or None
        known = catalog.by_id(known.parent) if known.parent else None
    return steps
