"""Taking secrets out of texts that a person shows to others."""

from __future__ import annotations

import re
from pathlib import Path

_HIDDEN = "***"

_WORDS = r"pass(?:word|wd|phrase)?|secret|token|credentials?|auth|api[_-]?key|private[_-]?key"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # PEM blocks of private keys (RFC 7468 and OpenSSH's).
    (
        re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        f"-----BEGIN \\1----- {_HIDDEN}",
    ),
    # The user information of a URL (RFC 3986, 3.2.1), also with a password that was not quoted.
    (re.compile(r"(?<=://)[^\s@'\"]+@"), f"{_HIDDEN}@"),
    # HTTP's credentials, and Docker's logins in headers.
    (
        re.compile(
            r"(?i)\b((?:proxy-)?authorization|x-registry-(?:auth|config)|cookie)(\"?\s*[:=]\s*).+"
        ),
        f"\\1\\2{_HIDDEN}",
    ),
    # name=value, "name": "value", --name value, of everything that sounds like a secret.
    (
        re.compile(
            rf"(?i)(\b[\w.-]*(?:{_WORDS})[\w.-]*['\"]?(?:\s*[:=]\s*))"
            r"(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;}\]]+)"
        ),
        f"\\1{_HIDDEN}",
    ),
    (re.compile(rf"(?i)(--[\w-]*(?:{_WORDS})[\w-]*\s+)(\S+)"), f"\\1{_HIDDEN}"),
)


def without_secrets(text: str) -> str:
    """Return the text with keys, passwords and tokens replaced by ``***``, and the person's home
    directory by ``~``.

    It errs on the side of hiding: a harmless value whose name sounds like a secret's goes too.
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
