"""The rules of ``--log-driver`` and ``--log-opt``: what each driver takes, and what it means."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deskd.errors import InvalidArgument
from deskd.runtime.plan import LogSpec
from deskd.runtime.resource_rules import parse_size

JSON_FILE, LOCAL, NONE = "json-file", "local", "none"
DRIVERS = (JSON_FILE, LOCAL, NONE)
_COMMON = ("mode", "max-buffer-size")
_OPTIONS = {
    JSON_FILE: (
        "max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag",
    ),
    LOCAL: ("max-size", "max-file", "compress"),
}  # fmt: skip
# Docker's defaults: json-file keeps everything, local keeps five files of 20 MB, packed.
_DEFAULTS = {
    JSON_FILE: {"max-size": "-1", "max-file": "1", "compress": "false"},
    LOCAL: {"max-size": "20m", "max-file": "5", "compress": "true"},
}
_DEFAULT_BUFFER = "1m"
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


def check_log_options(driver: str, options: Mapping[str, str]) -> None:
    """Raise ``InvalidArgument`` for a driver or options that there are not."""
    if driver == NONE:
        return
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidArgument(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
            )
        parse_size(options["max-buffer-size"], "max-buffer-size")
    if driver not in _OPTIONS:
        raise InvalidArgument(
            f"logger: no log driver named '{driver}' is registered; "
            f"this engine has {', '.join(DRIVERS)}"
        )
    for name in options:
        if name not in _OPTIONS[driver] and name not in _COMMON:
            known_as = "json-file log driver" if driver == JSON_FILE else f"log driver {driver}"
            raise InvalidArgument(f"unknown log opt '{name}' for {known_as}")
    for name in ("labels-regex", "env-regex"):
        pattern(options, name)


def pattern(options: Mapping[str, str], name: str) -> re.Pattern[str] | None:
    """Return the regular expression of an option, or None. Raises ``InvalidArgument``."""
    if not options.get(name):
        return None
    try:
        return re.compile(options[name])
    except re.error as error:
        raise InvalidArgument(f"the log option {name} is no regular expression: {error}") from error


def log_spec(
    driver: str,
    path: str,
    options: Mapping[str, str],
    extra: tuple[tuple[str, str], ...] = (),
) -> LogSpec | None:
    """Return how the monitor writes the log; None where it writes none.

    Raises ``InvalidArgument`` for values that make no sense.
    """
    if not path or driver == NONE:
        return None
    given = {**_DEFAULTS[driver], **options}
    max_size = parse_size(given["max-size"], "max-size")
    if "max-size" in options and max_size <= 0:
        raise InvalidArgument(f"max-size must be a positive number, not {options['max-size']!r}")
    max_files = _count(given["max-file"])
    compress = _flag("compress", given["compress"])
    if compress and (max_files < 2 or max_size <= 0):
        if "compress" in options:
            raise InvalidArgument(
                "compress cannot be true when max-file is less than 2 or max-size is not set"
            )
        compress = False
    buffered = options.get("mode") == "non-blocking"
    buffer_bytes = parse_size(options.get("max-buffer-size", _DEFAULT_BUFFER), "max-buffer-size")
    return LogSpec(
        path,
        max(max_size, 0),
        max_files,
        extra,
        driver=driver,
        compress=compress,
        buffer_bytes=max(buffer_bytes, 1) if buffered else 0,
    )


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise InvalidArgument(f"max-file {text!r} is not a number") from None
    if count < 1:
        raise InvalidArgument("max-file must be 1 or more")
    return count


def _flag(name: str, text: str) -> bool:
    if text not in _TRUE and text not in _FALSE:
        raise InvalidArgument(f"the log option {name} must be true or false, not {text!r}")
    return text in _TRUE
