"""The launcher stays small: what it imports is what every monitor carries."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("asyncio", "msgspec", "pyroute2", "h11", "sqlite3", "logging", "ssl")
AVOIDED = ("pathlib", "shutil", "subprocess", "tempfile")


def test_the_launcher_imports_nothing_heavy() -> None:
    code = "import sys; import deskd.runtime.launcher; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "guest-engine"},
    ).stdout.split()
    assert "deskd.runtime.monitor" in loaded
    assert [name for name in (*FORBIDDEN, *AVOIDED) if name in loaded] == []
    assert [name for name in loaded if name.startswith("deskd.services")] == []
    assert [name for name in loaded if name.startswith("deskd.runtime.jobs.")] == []
