"""Saying before a start that a container will not fit into the machine's memory.

It is no refusal: a limit need not be reached, and what others hold now may be free in a moment.
"""

from __future__ import annotations

from collections.abc import Callable

from deskd.domain.sizes import binary_size
from deskd.kernel.machine_memory import MachineMemory, read_machine_memory
from deskd.record import Record
from deskd.services.containers.memory_peaks import MemoryPeaks
from deskd.services.containers.registry import ContainerRegistry

_STEP_BYTES = 256 << 20
_HEADROOM_BYTES = 64 << 20
_KERNEL_BYTES = 64 << 20
_KERNEL_PART = 32


class Need(Record):
    """What is known of a container's need of memory, in bytes; 0 where nothing is."""

    limit: int = 0
    reservation: int = 0
    peak: int = 0  # of its own runs, or of its namesake's
    alike: int = 0  # of containers of the same image and command

    @property
    def known(self) -> bool:
        """Whether there is anything to compare with what the machine has."""
        return bool(self.limit or self.reservation or self.peak or self.alike)


class MemoryFit:
    """Compares what a container needs with what the machine has.

    ``dial``: the machine's memory can be set by ``desk machine set``.
    """

    def __init__(
        self,
        registry: ContainerRegistry,
        peaks: MemoryPeaks,
        *,
        dial: bool,
        read: Callable[[], MachineMemory] = read_machine_memory,
    ) -> None:
        self._registry = registry
        self._peaks = peaks
        self._dial = dial
        self._read = read

    def warning(self, reference: str) -> str:
        """Return the warning before a start, ``""`` where there is none. Raises ``NotFound``."""
        container = self._registry.get(reference)
        record = container.record
        held = self._peaks.of(container).held_bytes
        need = Need(
            limit=max(record.host_config.memory, 0),
            reservation=max(record.host_config.memory_reservation, 0),
            peak=held,
            alike=0 if held else self._peaks.of_alike(record),
        )
        if not need.known:
            return ""  # for most containers not even the machine's memory is read
        found = self._read()
        return misfit(
            record.name, record.image_name, need, found.total, found.used, dial=self._dial
        )


def misfit(name: str, image: str, need: Need, total: int, used: int, *, dial: bool) -> str:
    """Say in a sentence why the container does not fit beside what is ``used`` of the machine's
    ``total``, with the remedy; ``""`` where it fits as far as is known."""
    most = need.limit or (1 << 63)
    peak, alike = min(need.peak, most), min(need.alike, most)
    wanted = {
        f"{name} reserves {binary_size(need.reservation)}": need.reservation,
        f"{name} has held up to {binary_size(peak)}": peak,
        f"containers of {image} with this command have held up to {binary_size(alike)}": alike,
    }
    reason, size = max(wanted.items(), key=lambda pair: pair[1])
    if size and used + size > total:
        remedy = _remedy(used + size, dial=dial) or "stop or limit other containers"
        left = binary_size(max(total - used, 0))
        return f"{reason}, but {left} of the machine's memory are left: {remedy}"
    if need.limit > _ceiling(total):
        remedy = _remedy(need.limit + used, dial=dial) or "a lower limit protects what else runs"
        return (
            f"{name} may use {binary_size(need.limit)}, but the machine's memory of"
            f" {binary_size(total)} is used up before: {remedy}"
        )
    return ""


def _ceiling(total: int) -> int:
    """Return the memory that a machine was given whose kernel tells ``total``, or a little more:
    the kernel took its part at the boot. A limit of 2 GiB in a machine of 2 GiB is no mistake."""
    return total + total // _KERNEL_PART + _KERNEL_BYTES


def _remedy(used_bytes: int, *, dial: bool) -> str:
    """Name the command after which the machine has so much; ``""`` where there is none."""
    if not dial:
        return ""
    mib = -(-_ceiling(used_bytes + _HEADROOM_BYTES) // _STEP_BYTES) * _STEP_BYTES >> 20
    size = f"{mib // 1024}g" if mib % 1024 == 0 else f"{mib}m"
    return f"`desk machine set --memory {size}` gives it more"
