"""Observing how much memory containers hold at most, and remembering it beyond their end.

A container's peak is in its record. When it is removed, the peak goes to a table of its own, where
the next container of the same image and name (or command) finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable

from deskd.domain.memory_peak import (
    MemoryPeak,
    PastPeak,
    after_run,
    peak_key,
    raised,
    together,
    too_many,
)
from deskd.domain.process import Exit
from deskd.domain.state import ContainerRecord
from deskd.record import Record
from deskd.services.containers.names import is_random
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import MemoryReading
from deskd.store.database import Records

MOST_PAST = 256
"""How many peaks of removed containers are kept."""
LEAST_UNNAMED_BYTES = 16 << 20
"""A removed container that nobody named and that held less decides nothing, and is forgotten."""
_LEAST_RISE_BYTES = 1 << 20
"""A peak that rises by less while the container runs is written at its end only."""
_WRITTEN_AFTER_S = 1.0


class _Run(Record, frozen=False):
    """What is known of the run that a container is in."""

    highest: int  # the kernel's mark at the last look
    written: int  # what the database has of the peak


class MemoryPeaks:
    """Knows the peaks of all containers; ``close`` writes what is not written yet.

    Everything here runs on the event loop.
    """

    def __init__(self, registry: ContainerRegistry, records: Records[PastPeak]) -> None:
        self._registry = registry
        self._records = records
        self._past = {past.key: past for past in records.all()}
        self._runs: dict[str, _Run] = {}
        self._unwritten: set[str] = set()
        self._writing: asyncio.TimerHandle | None = None
        registry.on_removal(self._removed)

    def close(self) -> None:
        """Write all that is known; idempotent."""
        if self._writing is not None:
            self._writing.cancel()
        self._write()

    # --- observing -------------------------------------------------------------------------------

    def began(self, container: Container) -> None:
        """Take note of a new run, whose marks begin at nothing."""
        known = container.record.state.memory_peak or MemoryPeak()
        self._runs[container.id] = _Run(highest=0, written=known.held_bytes)

    def seen(self, container_id: str, found: MemoryReading) -> None:
        """Take note of a look at a container; nothing where it has ended meanwhile."""
        container = self._registry.find(container_id)
        if container is None or not container.record.state.running:
            return
        state, run = container.record.state, self._run(container, found.peak)
        state.memory_peak = raised(
            state.memory_peak or MemoryPeak(),
            held=found.held,
            cache=found.cache,
            highest=found.peak,
            highest_before=run.highest,
        )
        run.highest = max(run.highest, found.peak)
        if state.memory_peak.held_bytes >= run.written + _LEAST_RISE_BYTES:
            run.written = state.memory_peak.held_bytes
            self._registry.save(container)

    def ended(self, container: Container, ended: Exit) -> None:
        """Take note of the end of a run; the caller saves the record, whose state still says when
        the run began. One that no monitor told of, because the machine died, adds nothing."""
        state, highest = container.record.state, ended.memory_peak_bytes
        run = self._run(container, highest)
        del self._runs[container.id]
        if not highest:
            return
        peak = raised(
            state.memory_peak or MemoryPeak(),
            held=0,
            cache=ended.memory_cache_bytes,
            highest=highest,
            highest_before=run.highest,
        )
        state.memory_peak = after_run(peak, ended.finished_at_ns - state.started_at_ns)

    def _run(self, container: Container, highest: int) -> _Run:
        """Return the run that the container is in. Where an earlier engine saw it begin, only what
        is above all that was ever seen is a rise: when the rest was, nobody knows."""
        run = self._runs.get(container.id)
        if run is None:
            known = container.record.state.memory_peak or MemoryPeak()
            run = _Run(highest=min(highest, known.usage_bytes), written=known.held_bytes)
            self._runs[container.id] = run
        return run

    # --- telling ---------------------------------------------------------------------------------

    def of(self, container: Container) -> MemoryPeak:
        """Return the container's peak, with that of removed ones of its image and name."""
        record = container.record
        past = None
        if not is_random(record.name):
            past = self._past.get(peak_key(record.image_name, record.name, ""))
        return together(record.state.memory_peak, past.peak if past else None)

    def of_alike(self, record: ContainerRecord) -> int:
        """Return the most that containers of the same image and command held, in bytes; 0 where
        there were none."""
        digest = _digest(record)
        held = [
            past.peak.held_bytes
            for past in self._past.values()
            if past.image == record.image_name and past.command == digest
        ]
        for other in self._registry:
            known = other.record.state.memory_peak
            if known is not None and _alike(other.record, record):
                held.append(known.held_bytes)
        return max(held, default=0)

    def past(self) -> Iterable[PastPeak]:
        """Return those of removed containers that no container of today has for its own."""
        own = {
            peak_key(each.record.image_name, each.record.name, "")
            for each in self._registry
            if not is_random(each.record.name)
        }
        return [past for key, past in self._past.items() if key not in own]

    # --- remembering -----------------------------------------------------------------------------

    def _removed(self, container: Container) -> None:
        self._runs.pop(container.id, None)
        record, peak = container.record, container.record.state.memory_peak
        if peak is None:
            return
        name = "" if is_random(record.name) else record.name
        if not name and peak.held_bytes < LEAST_UNNAMED_BYTES:
            return
        command = _digest(record)
        key = peak_key(record.image_name, name, command)
        known = self._past.get(key)
        self._past[key] = PastPeak(
            image=record.image_name,
            name=name,
            command=command,
            peak=together(known.peak if known else None, peak),
            started_at_ns=record.state.started_at_ns,
            finished_at_ns=record.state.finished_at_ns,
        )
        self._unwritten.add(key)
        for old in too_many(self._past.values(), MOST_PAST):
            del self._past[old.key]
            self._unwritten.add(old.key)
        if self._writing is None:
            # Somebody waits for the removal, and nobody for this.
            loop = asyncio.get_running_loop()
            self._writing = loop.call_later(_WRITTEN_AFTER_S, self._write)

    def _write(self) -> None:
        self._writing = None
        keys, self._unwritten = self._unwritten, set()
        if not keys:
            return
        with self._records.database.transaction():
            for key in keys:
                if key in self._past:
                    self._records.put(self._past[key])
                else:
                    self._records.delete(key)


def _digest(record: ContainerRecord) -> str:
    """Return what a command is known by. The command itself may tell secrets, and need not outlive
    its container."""
    words = "\0".join([record.path, *record.args])
    return hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:32]


def _alike(one: ContainerRecord, other: ContainerRecord) -> bool:
    return (one.image_name, one.path, one.args) == (other.image_name, other.path, other.args)
