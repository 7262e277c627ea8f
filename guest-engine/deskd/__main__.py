"""``deskd``: the engine's program.

Imports next to nothing: ``dial-stdio`` runs once per connection, and the launcher is forked before
the engine's modules are there, so that it stays small.
"""

from __future__ import annotations

import sys

DEFAULT_SOCKET = "/run/desk/engine.sock"


def main() -> None:
    """Entry point of the program ``deskd``."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["dial-stdio"]:
        from deskd.dial import dial_stdio

        sys.exit(dial_stdio(arguments[1:]))
    if arguments == ["relay-datagrams"]:
        from deskd.datagrams import relay_datagrams

        sys.exit(relay_datagrams())
    if arguments[:1] == ["tell-changes"]:
        from deskd.folder_changes import tell_changes

        sys.exit(tell_changes(arguments[1:]))
    if arguments[:1] == ["purge"]:
        sys.exit(_purge(arguments[1:]))
    if arguments in (["--version"], ["-v"], ["version"]):
        from deskd import __version__

        sys.stdout.write(f"Desk engine version {__version__}\n")
        return
    sys.exit(_serve(arguments))


def _serve(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        from deskd.settings import parse_arguments

        parse_arguments(arguments)
    import gc

    gc.disable()  # what is loaded now stays: looking for garbage in it is a twentieth of the start
    from deskd.errors import DeskdError
    from deskd.runtime.launching import fork_launcher, release
    from deskd.settings import early_exec_root, parse_arguments

    try:
        # Held: on two emulated processors its imports would delay the greeting.
        _, launcher = fork_launcher(early_exec_root(arguments), held=True)
        settings = parse_arguments(arguments)
        from deskd.opening import Opening

        opening = Opening(settings)
        try:
            opening.open()
            release(launcher)
            if not settings.tls.enabled:
                _import_asyncio_without_ssl()
            from deskd.compose import run

            gc.freeze()
            gc.enable()
            run(settings, launcher, opening)
        finally:
            opening.close()
    except DeskdError as error:
        sys.stderr.write(f"deskd: {error}\n")
        return 1
    return 0


def _purge(arguments: list[str]) -> int:
    """Remove the interfaces and firewall rules that a killed engine left, by its data root."""
    import os

    from deskd.errors import DeskdError
    from deskd.layout import DataRoot
    from deskd.network.service import purge
    from deskd.opening import take_lock
    from deskd.settings import parse_arguments

    try:
        settings = parse_arguments(arguments)
        if settings.userns_remap:
            from deskd.services.remapped_start import resolve

            settings, _ = resolve(settings)
        lock = DataRoot(settings.data_root).lock
        descriptor = take_lock(lock) if os.path.exists(lock) else None
        purge(settings.data_root, settings.bridge)
        if descriptor is not None:
            os.close(descriptor)
    except DeskdError as error:
        sys.stderr.write(f"deskd: {error}\n")
        return 1
    return 0


def _import_asyncio_without_ssl() -> None:
    """Spare a twentieth of the start-up time: asyncio does without ssl where it is missing, and
    nothing here needs both. Later imports of ssl find it."""
    sys.modules["ssl"] = None  # type: ignore[assignment]  # how an import is made to fail
    import asyncio  # noqa: F401

    del sys.modules["ssl"]


if __name__ == "__main__":
    main()
