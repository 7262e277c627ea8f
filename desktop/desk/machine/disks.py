"""The data disks of machines: how large, how full, what the host pays; and how they grow."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import Conflict, DriverError, EngineError, UsageError
from desk.machine.coming_up import Machine
from desk.machine.driver import Progress
from desk.machine.manager import Manager
from desk.machine.model import State
from desk.machine.sparse import host_bytes
from desk.sizes import binary_size

_GIB = 1 << 30
_ANSWER_S = 15.0
_DISCARD_S = 10.0
_QUIET_S = 0.5
_QUIET_SHORT_S = 2.0
"""The same while less came back than was deleted: a busy computer may only be slow."""
_LOOK_S = 0.05

# The guest's kernel is told of the new size, and may take a moment. SIZE is in sectors.
_GROW = """. /run/desk-disks; block=${DATA#/dev/}; tries=0
until [ "$(cat /sys/class/block/$block/size)" -ge SIZE ] || [ $tries -ge 100 ]; do
  tries=$((tries + 1)); usleep 100000
done
/usr/sbin/resize2fs "$DATA" 2>&1"""


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """A machine's data disk. What is not known, as the use of one that is off, is ``None``."""

    name: str
    size_bytes: int | None
    used_bytes: int | None  # what the guest's files take
    free_bytes: int | None  # what containers can still write
    reserve_bytes: int | None  # kept for the engine, so that it works on a full disk
    host_bytes: int | None  # the blocks that the disk takes here
    snapshots_bytes: int = 0


class MachineDisks:
    """Looks at the disks of machines and makes them larger."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def usage(self, name: str) -> DiskUsage:
        """Return a machine's disk, running or not."""
        machine = self._manager.open(name)
        told = _told(machine) if machine.driver.state() is State.RUNNING else None
        portable = machine.driver.features.portable
        disk_bytes = host_bytes(machine.paths.data_disk.resolve()) if portable else None
        size_bytes = machine.record.spec.disk_gib * _GIB if portable else None
        if told is not None and size_bytes is None:
            size_bytes = told["Total"]
        return DiskUsage(
            name=name,
            size_bytes=size_bytes,
            used_bytes=None if told is None else told["Used"],
            free_bytes=None if told is None else told["Available"],
            reserve_bytes=None if told is None else told["Reserve"],
            host_bytes=disk_bytes,
            snapshots_bytes=sum(host_bytes(d) for d in machine.paths.snapshots.glob("*/data.img")),
        )

    def host_bytes(self, name: str) -> int | None:
        """Return what this computer pays for a machine's disk; ``None`` where the disk is no file
        of Desk's."""
        machine = self._manager.open(name)
        if not machine.driver.features.portable:
            return None
        return host_bytes(machine.paths.data_disk.resolve())

    def given_back(self, name: str, before_bytes: int, freed_bytes: int) -> int:
        """Return how much less than ``before_bytes`` this computer pays now for the disk of a
        running machine, when its guest has discarded the ``freed_bytes`` that were deleted there:
        within seconds. It can be less; what was never written is not paid for."""
        machine = self._manager.open(name)
        if _told(machine, settle=True) is None:
            return 0
        # The discards follow the guest's sync, one after the other.
        deadline = time.monotonic() + _DISCARD_S
        back, quiet_since = self._less_than(name, before_bytes), time.monotonic()
        while time.monotonic() < deadline:
            quiet_s = _QUIET_SHORT_S if back < freed_bytes else _QUIET_S
            if time.monotonic() > quiet_since + quiet_s:
                break
            time.sleep(_LOOK_S)
            now = self._less_than(name, before_bytes)
            if now != back:
                back, quiet_since = now, time.monotonic()
        return back

    def _less_than(self, name: str, before_bytes: int) -> int:
        paid = self.host_bytes(name)
        return 0 if paid is None else max(0, before_bytes - paid)

    def grow(
        self, name: str, disk_gib: int, progress: Progress, *, settings: str | None = None
    ) -> bool:
        """Make the disk larger, with the file system of a running machine; return whether there
        was anything to do.

        Raises ``Conflict`` for a size below what it has, ``UsageError`` where the disk is none of
        Desk's, and ``DriverError``; then nothing has changed. ``settings`` is what is then the
        machine's ``machine.toml``, instead of the one that it has.
        """
        with self._manager.held(name, "setting") as machine:
            disk = machine.driver.data_disk()
            if disk is None:
                raise UsageError(
                    f"the disk of machine {name} is not a file of Desk's",
                    hint="It is made larger where the machine comes from.",
                )
            spec = machine.record.spec
            if disk_gib < spec.disk_gib:
                raise self._too_small(name, disk_gib, spec.disk_gib)
            state = machine.driver.state()
            if state not in (State.RUNNING, State.STOPPED):
                raise Conflict(
                    f"machine {name} is {state.value.lower()}, and its disk cannot grow so",
                    hint=f"`desk machine start {name}` wakes it.",
                )
            if disk_gib == spec.disk_gib:
                return False
            if settings is None:
                self._manager.check_settings(machine)
            progress(f"Growing the disk of machine {name} to {disk_gib} GiB")
            disk.grow(disk_gib * _GIB)
            grown = replace(spec, disk_gib=disk_gib)
            self._manager.respecify(machine, grown, settings=settings)
            if state is State.RUNNING:
                _grow_file_system(machine, disk_gib * _GIB)
            return True

    def _too_small(self, name: str, wanted_gib: int, size_gib: int) -> Conflict:
        usage = self.usage(name)
        used = usage.used_bytes
        if used is not None and used > wanted_gib * _GIB:
            return Conflict(
                f"machine {name} holds {binary_size(used)}, more than {wanted_gib} GiB",
                hint="`desk system prune` removes what is not in use.",
            )
        takes = "" if usage.host_bytes is None else f" ({binary_size(usage.host_bytes)} now)"
        return Conflict(
            f"the disk of machine {name} has {size_gib} GiB and cannot become smaller",
            hint=f"Nothing is gained by that: here it takes the room of what is in it{takes}.",
        )


def _grow_file_system(machine: Machine, size_bytes: int) -> None:
    from desk.ssh.session import Session

    endpoint = machine.driver.endpoint()
    if endpoint is None:
        return
    with Session.connect(endpoint) as session:
        done = session.run(_GROW.replace("SIZE", str(size_bytes // 512)))
    if done.exit_code != 0:
        words = done.stdout.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason"]
        raise DriverError(
            f"the disk of machine {machine.name} has grown, but not its file system: {words[0]}",
            hint=f"`desk machine restart {machine.name}` grows it at the boot.",
        )


def _told(machine: Machine, *, settle: bool = False) -> dict[str, int] | None:
    """Return what the engine tells of its disk; ``None`` where it does not answer or is older."""
    try:
        with EngineClient(
            UnixTransport(machine.paths.engine_socket), timeout_s=_ANSWER_S
        ) as client:
            return client.system.disk(settle=settle)
    except EngineError:
        return None
