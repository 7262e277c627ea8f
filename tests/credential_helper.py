"""A credential helper as tests put it on the PATH: it speaks the protocol of Docker's helpers
(https://github.com/docker/docker-credential-helpers) and keeps the logins in a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_PROGRAM = """#!{python}
import json, sys
from pathlib import Path
store = Path({store!r})
known = json.loads(store.read_text()) if store.exists() else {{}}
text = sys.stdin.read()
with Path({asked!r}).open("a") as asked:
    print(sys.argv[1], file=asked)
if sys.argv[1] == "get":
    if text not in known:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps({{"ServerURL": text, "Username": known[text][0], "Secret": known[text][1]}}))
elif sys.argv[1] == "list":
    print(json.dumps({{server: login[0] for server, login in known.items()}}))
elif sys.argv[1] == "store":
    given = json.loads(text)
    known[given["ServerURL"]] = [given["Username"], given["Secret"]]
elif sys.argv[1] == "erase":
    known.pop(text, None)
store.write_text(json.dumps(known))
"""


class CredentialHelper:
    """The program ``docker-credential-NAME`` in ``directory / "bin"``."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / "bin"
        self._store = directory / f"{name}.kept.json"
        self._asked = directory / f"{name}.asked"
        self.directory.mkdir(exist_ok=True)
        program = self.directory / f"docker-credential-{name}"
        program.write_text(
            _PROGRAM.format(python=sys.executable, store=str(self._store), asked=str(self._asked))
        )
        program.chmod(0o755)

    @property
    def kept(self) -> dict[str, list[str]]:
        """User (or ``<token>``) and secret by server."""
        if not self._store.exists():
            return {}
        kept: dict[str, list[str]] = json.loads(self._store.read_text())
        return kept

    def asked(self) -> list[str]:
        """Return what was asked of it since the last time."""
        if not self._asked.exists():
            return []
        asked = self._asked.read_text().split()
        self._asked.unlink()
        return asked
