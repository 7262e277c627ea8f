"""Key pairs and known_hosts files: what proves Desk to a machine and a machine to Desk.

Formats are OpenSSH's (PROTOCOL.key for the private file, sshd(8) for known_hosts), so that the
ordinary ``ssh`` reads every file that Desk writes.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from desk.errors import SshError
from desk.whole_file import replace_file


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ed25519 key pair: ``private`` in OpenSSH's format, ``public`` as one line without end."""

    private: bytes
    public: str


def generate_key_pair(comment: str) -> KeyPair:
    """Make a fresh ed25519 key pair without a passphrase; ``comment`` ends the public line."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    comment = " ".join(comment.split())
    return KeyPair(private, f"{public.decode('ascii')} {comment}".rstrip())


def write_key_pair(pair: KeyPair, private: Path, public: Path | None = None) -> None:
    """Write ``pair`` to ``private`` (mode 0600) and, where given, ``public`` (mode 0644).

    Each file appears whole or not at all, and replaces what was there.
    """
    replace_file(private, pair.private, mode=0o600)
    if public is not None:
        replace_file(public, pair.public.encode() + b"\n", mode=0o644)


def repair_key_pair(private: Path, public: Path | None, comment: str) -> None:
    """Make the pair anew where the private key is missing or damaged; the public file, where one
    is given, is written by the private one in any case."""
    try:
        line = public_line(private, comment)
    except SshError:
        write_key_pair(generate_key_pair(comment), private, public)
        return
    if public is not None:
        replace_file(public, line.encode() + b"\n", mode=0o644)


def public_line(private: Path, comment: str = "") -> str:
    """Return the public line that belongs to the private key in the file ``private``."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise SshError(
            f"the private key {private} does not exist",
            hint="Remove the machine with `desk machine rm` and create it again.",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
        raise SshError(
            f"the private key {private} cannot be read: {error}",
            hint="Restore the file from a backup, or remove the machine and create it again.",
        ) from error
    encoded = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{encoded.decode('ascii')} {comment}".rstrip()


def host_pattern(host: str, port: int) -> str:
    """Return how known_hosts names ``host`` at ``port``: bare at 22, else ``[host]:port``."""
    return host if port == 22 else f"[{host}]:{port}"


def known_hosts_line(host: str, port: int, public: str) -> str:
    """Return the known_hosts line (without end) for a host that shows the key ``public``."""
    kind, encoded = _split_public(public)
    return f"{host_pattern(host, port)} {kind} {encoded}"


def write_known_hosts(path: Path, host: str, port: int, *publics: str) -> None:
    """Make ``path`` say that ``host`` at ``port`` shows these keys, and nothing else."""
    lines = [known_hosts_line(host, port, public) for public in publics]
    replace_file(path, "".join(f"{line}\n" for line in lines).encode(), mode=0o600)


def fingerprint(public: str) -> str:
    """Return a public line's fingerprint as ``ssh-keygen -l`` prints it: ``SHA256:…``."""
    _kind, encoded = _split_public(public)
    return fingerprint_of_blob(base64.b64decode(encoded))


def fingerprint_of_blob(blob: bytes) -> str:
    """Return the fingerprint of a public key in its wire form (RFC 4253, 6.6)."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return "SHA256:" + digest.rstrip("=")


def _split_public(public: str) -> tuple[str, str]:
    words = public.split()
    if len(words) < 2:
        raise SshError(
            f"{public!r} is no public SSH key",
            hint="A public key is one line: a type such as ssh-ed25519, then base64 text.",
        )
    return words[0], words[1]
