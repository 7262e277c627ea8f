"""The agent's log file: bounded, rotating, the owner's alone."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_LOG_BYTES = 1 << 20
_OLD_LOGS = 2


def open_log(path: Path, *, foreground: bool) -> contextlib.AbstractContextManager[None]:
    """Send the process's log records to ``path`` (and to standard error in the foreground) from
    now on, until the returned context is left."""
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(
            path, maxBytes=_LOG_BYTES, backupCount=_OLD_LOGS, encoding="utf-8"
        )
    ]
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    threading.excepthook = _log_thread_failure
    return _closing(handlers)


@contextlib.contextmanager
def _closing(handlers: list[logging.Handler]) -> Iterator[None]:
    try:
        yield
    finally:
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


def _log_thread_failure(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread is not None else "a thread"
    logging.getLogger(__name__).critical(
        "%s ended by an unexpected error",
        name,
        exc_info=(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback),
    )
