"""Faults in the kernel: the engine's fault tables and the queues of interfaces, kept as they
should be.

A change is one transaction of nftables with queues around it: what the rules will point to is made
before, what they no longer point to is deleted after. If anything fails, the rules are as they
were and what was made is gone. All methods block; one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Collection, Mapping

from deskd.domain.fault import LinkFault
from deskd.errors import SystemFailure
from deskd.kernel import netlink, traffic
from deskd.kernel.nftables import Nftables
from deskd.network.fault_links import Effects, Link
from deskd.network.fault_rules import FaultRules
from deskd.record import Record

log = logging.getLogger(__name__)

_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
"""What the kernel says of a queue on an interface that has ended, or one that ended with it."""


def check_kernel(link: LinkFault) -> None:
    """Raise ``Unsupported`` where this kernel has no means for such a fault."""
    kinds = ("htb", "netem") if link.needs_emulator else ("htb",)
    with netlink.RouteSocket() as route:
        traffic.check_kinds(route, *kinds)


class _Class(Record):
    minor: int
    fault: LinkFault


class FaultState:
    """Everything of faults that is in the kernel, for one engine."""

    def __init__(self, table: str, nftables: Nftables) -> None:
        self._rules = FaultRules(table, nftables)
        self._classes: dict[Link, _Class] = {}
        self._rooted: set[str] = set()
        self._effects: Effects | None = Effects()
        self._has_rules = False
        self.incomplete: set[str] = set()

    def take_up(self, indices: Collection[int]) -> None:
        """Begin anew: an earlier engine's queues on these interfaces go, its rules stay until
        ``apply`` replaces them, so that no partition has a gap."""
        self._classes, self._rooted, self._effects = {}, set(), Effects()
        self._has_rules = self._rules.present()
        if not self._has_rules:
            return
        self._effects = None
        with netlink.RouteSocket() as route:
            for index in traffic.rooted(route):
                if index in indices:
                    _quietly(route, traffic.delete_root(index))

    def apply(
        self,
        effects: Effects,
        indices: Mapping[str, int],
        *,
        coming: str = "",
        awaited: Collection[str] = (),
    ) -> tuple[bytes, ...]:
        """Bring the kernel to ``effects``; ``indices`` has the interfaces by name.

        The interface ``coming`` does not exist yet: the requests that it needs are returned.
        Those ``awaited`` were such in earlier calls; what they need beyond what was returned then
        is left for ``complete``.
        """
        if effects == self._effects:
            return ()
        kept = {
            link: made
            for link, made in self._classes.items()
            if effects.shaped.get(link) == made.fault and link[1] in self._rooted
        }
        added = self._numbered(effects, kept)
        classes = kept | added
        rooted = {target for _, target in classes}
        script: list[bytes] = []
        incomplete = {target for target in self.incomplete if target in indices}
        with netlink.RouteSocket() as route, contextlib.ExitStack() as undo:
            for target in rooted - self._rooted:
                request = traffic.add_root(indices[target])
                if target == coming:
                    script.append(request)
                elif target not in awaited:
                    self._send(route, request, undo, traffic.delete_root(indices[target]))
            for (_, target), made in added.items():
                index = indices[target]
                requests = _class_requests(index, made)
                if target == coming:
                    script += requests
                    continue
                if target in awaited:
                    incomplete.add(target)
                    continue
                self._send(route, requests[0], undo, traffic.delete_class(index, made.minor))
                for request in requests[1:]:
                    self._send(route, request)
            self._replace_rules(effects, classes)
            undo.pop_all()
            self._delete_old(route, rooted, classes, indices)
        self._classes, self._rooted, self._effects = classes, rooted, effects
        self.incomplete = incomplete
        return tuple(script)

    def complete(self, target: str, index: int) -> None:
        """Let the next ``apply`` make all that an incomplete interface needs: it is there now."""
        self.incomplete.discard(target)
        with netlink.RouteSocket() as route:
            _quietly(route, traffic.delete_root(index))
        self._rooted.discard(target)
        self._classes = {link: made for link, made in self._classes.items() if link[1] != target}
        self._effects = None

    def _numbered(self, effects: Effects, kept: Mapping[Link, _Class]) -> dict[Link, _Class]:
        """Give each link that has no fitting class a number that is free at its target now."""
        used: dict[str, set[int]] = {}
        for (_, target), made in [*self._classes.items(), *kept.items()]:
            used.setdefault(target, set()).add(made.minor)
        added = {}
        for link, fault in effects.shaped.items():
            if link in kept:
                continue
            taken = used.setdefault(link[1], set())
            minor = next(number for number in range(1, traffic.MOST_CLASSES) if number not in taken)
            taken.add(minor)
            added[link] = _Class(minor, fault)
        return added

    def _send(
        self,
        route: netlink.RouteSocket,
        request: bytes,
        undo: contextlib.ExitStack | None = None,
        opposite: bytes = b"",
    ) -> None:
        try:
            route.request(request)
        except OSError as error:
            if error.errno != errno.ENODEV:  # its container ends in this moment
                raise SystemFailure(
                    f"a network fault cannot be set: {error.strerror}; the kernel's log may say "
                    "more"
                ) from error
            return
        if undo is not None:
            undo.callback(_quietly, route, opposite)

    def _replace_rules(self, effects: Effects, classes: Mapping[Link, _Class]) -> None:
        wanted = bool(effects.severed or classes)
        if wanted:
            numbers = {link: made.minor for link, made in classes.items()}
            self._rules.replace(effects.severed, effects.severed_addresses, numbers)
        elif self._has_rules:
            self._rules.remove()
        self._has_rules = wanted

    def _delete_old(
        self,
        route: netlink.RouteSocket,
        rooted: Collection[str],
        classes: Mapping[Link, _Class],
        indices: Mapping[str, int],
    ) -> None:
        """Delete what nothing points to any more; what ended with its interface is none."""
        for target in self._rooted - set(rooted):
            if target in indices:
                _quietly(route, traffic.delete_root(indices[target]))
        for link, made in self._classes.items():
            target = link[1]
            if classes.get(link) != made and target in rooted and target in indices:
                _quietly(route, traffic.delete_class(indices[target], made.minor))


def _class_requests(index: int, made: _Class) -> list[bytes]:
    fault, minor = made.fault, made.minor
    requests = [traffic.add_class(index, minor, bandwidth_bits=fault.bandwidth_bits)]
    if fault.needs_emulator:
        requests.append(
            traffic.add_emulator(
                index,
                minor,
                latency_ms=fault.latency_ms,
                jitter_ms=fault.jitter_ms,
                loss_percent=fault.loss_percent,
                duplicate_percent=fault.duplicate_percent,
                reorder_percent=fault.reorder_percent,
            )
        )
    else:
        requests.append(traffic.add_short_queue(index, minor, bandwidth_bits=fault.bandwidth_bits))
    return requests


def _quietly(route: netlink.RouteSocket, request: bytes) -> None:
    try:
        route.request(request)
    except OSError as error:
        if error.errno not in _GONE:
            log.warning("a queue of a network fault cannot be deleted: %s", error.strerror)
