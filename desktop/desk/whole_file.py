"""Replacing a file as a whole, for everything that must survive a crash in mid-write."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(file: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace ``file`` by ``content``: readers see the old content or the new, also after a crash.

    Its directory must exist. Raises ``OSError``; then the old content is still there.
    """
    # mkstemp makes the file 0600, so a private key is never readable by others, not even for the
    # moment between opening it and changing its mode.
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
