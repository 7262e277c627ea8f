"""Archives as Docker wrote them before 1.10: ``repositories``, and a directory for each layer with
its ``json`` and its ``layer.tar``, by IDs that are no digests (image specification v1.0).

Such a layer was an image of its own. Each becomes one, with a configuration that Docker's own
conversion gives too, so that the IDs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.record import Record

_LEFT_OUT = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")
_NO_TIME = "0001-01-01T00:00:00Z"


class FirstImage(Record):
    """An image of such an archive: like ``loading.Wanted``."""

    raw_config: bytes
    layers: list[str]
    names: list[str]
    parent: str


class _Command(msgspec.Struct, frozen=True):
    Cmd: list[str] | None = None


class _LayerDocument(msgspec.Struct, frozen=True):
    id: str = ""
    parent: str = ""
    created: str = _NO_TIME
    author: str = ""
    comment: str = ""
    container_config: _Command | None = None


class _Conversion:
    """Converts the layers of one archive, each after those that it stands on."""

    def __init__(self, documents: Mapping[str, bytes], diff_ids: Mapping[str, str]) -> None:
        self._documents = documents
        self._diff_ids = diff_ids
        self._converted: dict[str, tuple[FirstImage, list[dict[str, Any]], list[str]]] = {}
        self.images: list[FirstImage] = []

    def image(self, name: str) -> FirstImage:
        """Return the image of the layer ``name`` (its directory)."""
        chain: list[str] = []
        above = name
        while above and above not in self._converted:
            if above in chain:
                raise errors.InvalidArgument(f"the image archive's layer {above} is its own parent")
            chain.append(above)
            above = self._read(above).parent
        for layer in reversed(chain):
            self._convert(layer)
        return self._converted[name][0]

    def _read(self, name: str) -> _LayerDocument:
        try:
            return msgspec.json.decode(self._raw(name), type=_LayerDocument)
        except FOREIGN_JSON_ERRORS as error:
            raise errors.InvalidArgument(
                f"the image archive is damaged ({name}/json: {error}): make or fetch it again"
            ) from error

    def _raw(self, name: str) -> bytes:
        raw = self._documents.get(f"{name}/json")
        if raw is None or f"{name}/layer.tar" not in self._diff_ids:
            raise errors.InvalidArgument(
                f"the image archive names the layer {name!r}, which is not in it: the archive is "
                "damaged"
            )
        return raw

    def _convert(self, name: str) -> None:
        document = self._read(name)
        below: FirstImage | None = None
        history: list[dict[str, Any]] = []
        layers: list[str] = []
        if document.parent:
            below, history, layers = self._converted[document.parent]
        command = (document.container_config or _Command()).Cmd or []
        step = {
            "created": document.created,
            "created_by": " ".join(command),
            "author": document.author,
            "comment": document.comment,
        }
        history = [*history, {key: value for key, value in step.items() if value}]
        layers = [*layers, f"{name}/layer.tar"]
        fields = msgspec.json.decode(self._raw(name), type=dict[str, msgspec.Raw])
        config: dict[str, Any] = {
            key: msgspec.Raw(msgspec.json.format(bytes(value), indent=-1))
            for key, value in fields.items()
            if key not in _LEFT_OUT
        }
        diff_ids = [self._diff_ids[layer] for layer in layers]
        config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
        config["history"] = history
        raw_config = _encode(config)
        parent = rules.image_id(below.raw_config) if below else ""
        image = FirstImage(raw_config, layers, [], parent)
        self._converted[name] = image, history, layers
        self.images.append(image)


def _encode(document: dict[str, Any]) -> bytes:
    """Encode as Docker does: keys sorted, and what HTML minds escaped within strings."""
    raw = msgspec.json.encode(dict(sorted(document.items())))
    for sign in ("<", ">", "&"):
        raw = raw.replace(sign.encode(), f"\\u{ord(sign):04x}".encode())
    return raw


def images(documents: Mapping[str, bytes], diff_ids: Mapping[str, str]) -> list[FirstImage]:
    """Return the images, parents first. ``documents`` and ``diff_ids`` are the archive's JSON
    files and layers by member name. Raises ``InvalidArgument`` for a damaged archive."""
    try:
        named = msgspec.json.decode(documents["repositories"], type=dict[str, dict[str, str]])
    except FOREIGN_JSON_ERRORS as error:
        raise errors.InvalidArgument(
            f"the image archive is damaged (repositories: {error}): make or fetch it again"
        ) from error
    conversion = _Conversion(documents, diff_ids)
    for repository, tags in named.items():
        for tag, layer in tags.items():
            conversion.image(layer).names.append(f"{repository}:{tag}")
    return conversion.images
