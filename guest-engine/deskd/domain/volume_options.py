"""Options of the volume driver ``local``: ``type``, ``device`` and ``o``, meant as mount(8)'s."""

from __future__ import annotations

from collections.abc import Mapping

from deskd.errors import InvalidArgument

_NAMES = ("device", "o", "size", "type")
_NEEDED = {"device": ("type",), "o": ("device", "type"), "type": ("device",)}
_SECRETS = ("pass", "password", "password2")


def check_options(volume: str, options: Mapping[str, str]) -> None:
    """Raise ``InvalidArgument`` for options that say nothing that could be mounted. Whether it can
    be is seen when a container wants it."""
    for name in options:
        if name not in _NAMES:
            raise InvalidArgument(f'create {volume}: invalid option: "{name[:100]}"')
    if "size" in options:
        raise InvalidArgument(
            f"create {volume}: quota size requested but no quota support; for a volume in memory"
            " write type=tmpfs, device=tmpfs and o=size=…"
        )
    for name, needed in _NEEDED.items():
        for other in needed:
            if name in options and other not in options:
                raise InvalidArgument(f'create {volume}: missing required option: "{other}"')


def needs_mount(options: Mapping[str, str] | None) -> bool:
    """Say whether a volume with these options is a file system that must be mounted."""
    return bool(options and (options.get("device") or options.get("type")))


def words_of(options: str) -> list[str]:
    """Split the option ``o``."""
    return [word for word in options.split(",") if word]


def without_secrets(options: str) -> str:
    """Return ``o`` as it may be shown in an error."""
    return ",".join(
        f"{name}=********" if equals and name in _SECRETS else word
        for word in options.split(",")
        for name, equals, _ in [word.partition("=")]
    )
