"""Shared folders that the machine has as virtiofs devices: telling it of changes made here.

``deskd tell-changes`` (its module describes the texts) runs in the machine while containers use
such a folder. It knows what containers wrote, and this side knows what it told itself: neither is
told, so that nothing goes round in circles.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from desk.agent.door import last_words
from desk.errors import DeskError, MachineError
from desk.machine import process
from desk.ssh.session import Session
from desk.ssh.stream import ChannelStream

_log = logging.getLogger(__name__)

GREETING = b"desk changes 1\n"
_GREETING_S = 30.0
_MOST_PATHS = 20_000


@dataclass(frozen=True, slots=True)
class Change:
    """A file that changed here: its ``name`` among the shared folders, its path ``here`` and
    ``there``, in the machine."""

    name: str
    here: str
    there: str


class FolderDevices:
    """The devices of one machine: ``tags`` by the names of the folders. ``program`` are the words
    that start ``deskd`` there; ``servers`` is the directory with the processes that serve the
    folders here. Calls may come from any thread."""

    def __init__(self, tags: Mapping[str, str], program: str, servers: Path) -> None:
        self.tags = tags
        self._program = program
        self._servers = servers
        self._lock = threading.Lock()
        self._places: tuple[str, ...] = ()
        self._stream: ChannelStream | None = None
        self._told: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def trouble(self) -> str:
        """Return why folders cannot be had; empty while each has its server. A program in the
        machine waits for ever for one that has ended."""
        if not self.tags or all(map(process.recall, self._servers.glob("*.pid"))):
            return ""
        return "their virtiofs server on this computer has ended"

    def is_echo(self, name: str, found: os.stat_result | None) -> bool:
        """Whether the machine was told of this very state of a file, which telling brings about."""
        return found is not None and self._told.get(name) == (found.st_mtime_ns, found.st_size)

    def use(self, places: Iterable[str]) -> None:
        """Say which mounts containers use: of what changes in others nobody is told."""
        wanted = tuple(sorted(places))
        with self._lock:
            if wanted != self._places:
                self._end()
                self._places = wanted

    def follow(self, session: Session) -> None:
        """Have what runs in the machine notice what is written in the mounts that are used."""
        with self._lock:
            if not self._places:
                return
            try:
                self._running(session)
            except DeskError as error:
                _log.warning("%s", error.text)

    def tell(self, session: Session, changes: Iterable[Change]) -> None:
        """Have watchers in the machine see changes. Raises ``DeskError``."""
        texts: list[bytes] = []
        with self._lock:
            for change in changes:
                try:
                    found = os.lstat(change.here)
                except OSError:
                    continue  # gone since: its own event follows
                self._told[change.name] = (found.st_mtime_ns, found.st_size)
                self._told.move_to_end(change.name)
                there = change.there.encode("utf-8", "surrogateescape")
                texts.append(b"%d %d %s\0" % (found.st_mtime_ns, found.st_size, there))
            while len(self._told) > _MOST_PATHS:
                self._told.popitem(last=False)
            if not texts or not self._places:
                return  # nobody uses the folders any more
            stream = self._running(session)
            try:
                stream.sendall(b"".join(texts))
            except OSError as error:
                self._end()
                raise MachineError(f"the machine was not told of changes: {error}") from error

    def close(self) -> None:
        """End what runs in the machine; idempotent."""
        with self._lock:
            self._end()

    def _running(self, session: Session) -> ChannelStream:
        """Return the stream to the machine's command, which is started where it does not run."""
        if self._stream is not None and not self._stream.closed:
            return self._stream
        self._end()
        words = ("tell-changes", *self._places)
        stream = session.open_exec(f"{self._program} {shlex.join(words)}")
        try:
            stream.settimeout(_GREETING_S)
            if stream.recv_exactly(len(GREETING)) == GREETING:
                stream.settimeout(None)
                self._stream = stream
                return stream
            why = last_words(stream) or "it ends without a word"
        except OSError as error:
            why = str(error) or "it is silent"
        stream.close()
        raise MachineError(f"the machine is not told of changes in this computer's folders: {why}")

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
