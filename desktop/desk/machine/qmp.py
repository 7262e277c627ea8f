"""A few QMP commands, each bounded in time, over the library ``qemu.qmp``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from desk.errors import DriverError


def execute(
    address: str | tuple[str, int],
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    timeout_s: float = 5.0,
) -> Any:
    """Connect to the QMP server at ``address`` (a socket's path, or host and port), run one
    command and return its answer. Raises ``DriverError`` where QEMU refuses or does not answer.
    """
    return asyncio.run(_execute(address, command, dict(arguments or {}), timeout_s))


async def _execute(
    address: str | tuple[str, int], command: str, arguments: dict[str, object], timeout_s: float
) -> Any:
    from qemu.qmp import QMPClient, QMPError

    client = QMPClient("desk")
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(address)
            try:
                return await client.execute(command, arguments or None)
            finally:
                # After "quit" QEMU is gone before the goodbye, which is no failure of it.
                with contextlib.suppress(EOFError, OSError, QMPError):
                    await client.disconnect()
    except TimeoutError as error:
        raise DriverError(
            f"QEMU does not answer {command} within {timeout_s:g} s",
            hint="`desk machine kill` ends a QEMU that hangs.",
        ) from error
    except (QMPError, OSError, EOFError) as error:
        raise DriverError(
            f"QEMU did not take {command}: {error}",
            hint="`desk machine kill` ends a QEMU that hangs.",
        ) from error
