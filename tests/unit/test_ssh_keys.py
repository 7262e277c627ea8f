"""Key files are OpenSSH's own: checked with ssh-keygen itself."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from desk.errors import SshError
from desk.ssh import keys


def _ssh_keygen(*arguments: str) -> str:
    return subprocess.run(
        ["ssh-keygen", *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_generated_pair_is_readable_by_openssh_and_private(tmp_path: Path) -> None:
    private, public = tmp_path / "id", tmp_path / "id.pub"
    pair = keys.generate_key_pair("desk default")
    keys.write_key_pair(pair, private, public)

    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    derived = _ssh_keygen("-y", "-f", str(private)).split()
    assert derived[:2] == pair.public.split()[:2]
    assert public.read_text() == pair.public + "\n"
    assert pair.public.endswith(" desk default")
    assert sorted(tmp_path.iterdir()) == [private, public]


def test_fingerprint_equals_ssh_keygen(tmp_path: Path) -> None:
    pair = keys.generate_key_pair("x")
    keys.write_key_pair(pair, tmp_path / "id", tmp_path / "id.pub")
    assert keys.fingerprint(pair.public) == _ssh_keygen("-lf", str(tmp_path / "id.pub")).split()[1]


def test_known_hosts_line_is_found_by_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    pair = keys.generate_key_pair("")
    keys.write_known_hosts(path, "127.0.0.1", 2222, pair.public)
    assert pair.public.split()[1] in _ssh_keygen("-F", "[127.0.0.1]:2222", "-f", str(path))
    keys.write_known_hosts(path, "example.org", 22, pair.public)
    assert path.read_text().startswith("example.org ssh-ed25519 ")


def test_repair_keeps_an_existing_pair_and_restores_the_public_half(tmp_path: Path) -> None:
    private, public = tmp_path / "id", tmp_path / "id.pub"
    keys.repair_key_pair(private, public, "one")
    first, line = private.read_bytes(), public.read_text()
    assert line == keys.public_line(private, "one") + "\n"
    public.unlink()
    keys.repair_key_pair(private, public, "one")
    assert (private.read_bytes(), public.read_text()) == (first, line)


def test_a_damaged_private_key_is_named(tmp_path: Path) -> None:
    private = tmp_path / "id"
    private.write_text("not a key")
    with pytest.raises(SshError, match=str(private)):
        keys.public_line(private)


def test_text_that_is_no_public_key_is_refused() -> None:
    with pytest.raises(SshError, match="no public SSH key"):
        keys.fingerprint("nonsense")
