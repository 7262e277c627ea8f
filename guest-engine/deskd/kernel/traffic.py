"""Traffic control: queues that delay, lose, repeat, reorder or slow down what an interface sends.

The root is ``htb``: a packet whose priority is the number of one of its classes goes into that
class, any other leaves at once. A class limits the bandwidth; below it ``netem`` does the rest.

pyroute2's message class is imported on first use (``deskd.kernel.netlink``): with all the kinds of
queues that it knows it takes 0.1 s. Sources: tc-htb(8), tc-netem(8), the kernel's pkt_sched.h.
"""

from __future__ import annotations

import errno
import struct
import threading
from typing import Any

from deskd.errors import SystemFailure, Unsupported
from deskd.kernel import netlink

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS = 40, 41
TC_H_ROOT = 0xFFFFFFFF
MAJOR = 0xD5C
"""The number of Desk's root queues."""
MOST_CLASSES = 0xFFEF

_ROOT = MAJOR << 16
_HTB_VERSION = 3
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_UNLIMITED_BITS = 80_000_000_000
_TICK_NS = 64
"""The unit of times in these messages (PSCHED_SHIFT 6), the same on every machine."""
_MOST_TICKS = 0xFFFFFFFF
_CERTAIN = 0xFFFFFFFF
_EMULATED_PACKETS = 10_000
_QUEUE_S = 0.1
_LEAST_QUEUE_BYTES = 1 << 17
_OPTIONS = {"htb": "CONFIG_NET_SCH_HTB", "netem": "CONFIG_NET_SCH_NETEM"}

_message_class: Any = None
_lock = threading.Lock()


def _messages() -> Any:
    global _message_class
    with _lock:
        if _message_class is None:
            with netlink.without_package():
                from pyroute2.netlink.rtnl.tcmsg import tcmsg
            _message_class = tcmsg
        return _message_class


def _request(
    message_type: int, flags: int, index: int, *, handle: int, parent: int, kind: str = "",
    options: Any = None,
) -> bytes:  # fmt: skip
    message = _messages()()
    message["index"], message["handle"], message["parent"] = index, handle, parent
    message["attrs"] = [("TCA_KIND", kind)] if kind else []
    if options is not None:
        message["attrs"].append(("TCA_OPTIONS", options))
    return netlink.encode(message, message_type, flags)


_NEW = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL


def add_root(index: int) -> bytes:
    """Give an interface the root queue; packets of no class pass it."""
    start = {"version": _HTB_VERSION, "rate2quantum": 10, "defcls": 0, "debug": 0, "direct_pkts": 0}
    return _request(
        RTM_NEWQDISC, _NEW, index, handle=_ROOT, parent=TC_H_ROOT, kind="htb",
        options={"attrs": [("TCA_HTB_INIT", start)]},
    )  # fmt: skip


def delete_root(index: int) -> bytes:
    """Take the root queue away with all that is below it and in it."""
    return _request(RTM_DELQDISC, 0, index, handle=_ROOT, parent=TC_H_ROOT)


def add_class(index: int, minor: int, *, bandwidth_bits: int = 0) -> bytes:
    """Add a class to the root queue; 0 means as fast as can be."""
    rate = (bandwidth_bits or _UNLIMITED_BITS) // 8
    # What may leave at once after a pause: 5 ms' worth, and never less than a few packets.
    burst_bytes = max(rate // 200, 1 << 14)
    ticks = min(burst_bytes * 1_000_000_000 // rate // _TICK_NS, _MOST_TICKS)
    parameters = {
        "rate": min(rate, 0xFFFFFFFF), "ceil": min(rate, 0xFFFFFFFF), "buffer": ticks,
        "cbuffer": ticks, "quantum": 60_000, "rate___reserved": _ETHERNET,
        "ceil___reserved": _ETHERNET,
    }  # fmt: skip
    attributes: list[tuple[str, Any]] = [("TCA_HTB_PARMS", parameters)]
    if rate > 0xFFFFFFFF:
        attributes += [("TCA_HTB_RATE64", rate), ("TCA_HTB_CEIL64", rate)]
    return _request(
        RTM_NEWTCLASS, _NEW, index, handle=_ROOT | minor, parent=_ROOT, kind="htb",
        options={"attrs": attributes},
    )  # fmt: skip


def delete_class(index: int, minor: int) -> bytes:
    """Take a class away with what waits in it."""
    return _request(RTM_DELTCLASS, 0, index, handle=_ROOT | minor, parent=_ROOT)


def add_emulator(
    index: int, minor: int, *, latency_ms: float, jitter_ms: float, loss_percent: float,
    duplicate_percent: float, reorder_percent: float,
) -> bytes:  # fmt: skip
    """Let ``netem`` treat a class's packets."""
    options: dict[str, Any] = {
        "delay": _ticks(latency_ms),
        "jitter": _ticks(jitter_ms),
        "loss": _chance(loss_percent),
        "duplicate": _chance(duplicate_percent),
        "gap": 1 if reorder_percent else 0,
        "limit": _EMULATED_PACKETS,
        "attrs": [],
    }
    if reorder_percent:
        # netem tells the probability of a packet that does not wait.
        reorder = {"prob_reorder": _chance(reorder_percent), "corr_reorder": 0}
        options["attrs"].append(("TCA_NETEM_REORDER", reorder))
    return _request(
        RTM_NEWQDISC, _NEW, index, handle=0, parent=_ROOT | minor, kind="netem", options=options
    )


def add_short_queue(index: int, minor: int, *, bandwidth_bits: int) -> bytes:
    """Let a class hold a tenth of a second's worth of packets, as a router on a slow line would;
    its usual queue of a thousand packets holds many megabytes."""
    limit_bytes = max(int(bandwidth_bits / 8 * _QUEUE_S), _LEAST_QUEUE_BYTES)
    return _request(
        RTM_NEWQDISC, _NEW, index, handle=0, parent=_ROOT | minor, kind="bfifo",
        options=struct.pack("=I", limit_bytes),
    )  # fmt: skip


def _ticks(delay_ms: float) -> int:
    return min(int(delay_ms * 1_000_000 / _TICK_NS), _MOST_TICKS)


def _chance(percent: float) -> int:
    return round(_CERTAIN * percent / 100)


def rooted(route: netlink.RouteSocket) -> list[int]:
    """Return the indices of all interfaces with a root queue of Desk's."""
    message_class = _messages()
    found = []
    for data in route.dump(netlink.dump_request(message_class, RTM_GETQDISC)):
        # struct tcmsg after the header of 16 bytes: family, padding, then these.
        index, handle = struct.unpack_from("=iI", data, 20)
        if handle == _ROOT:
            found.append(index)
    return found


def check_kinds(route: netlink.RouteSocket, *kinds: str) -> None:
    """Raise ``Unsupported`` naming the kernel's option where it lacks a kind of queue.

    Each is asked for without its settings, on ``lo``: a kernel that has it refuses that (EINVAL),
    one that lacks it says so before (ENOENT). Nothing is made.
    """
    for kind in kinds:
        request = _request(
            RTM_NEWQDISC, _NEW, netlink.LOOPBACK_INDEX, handle=0, parent=TC_H_ROOT, kind=kind
        )
        try:
            route.request(request)
        except OSError as error:
            if error.errno == errno.EINVAL:
                continue
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                option = _OPTIONS[kind]
                can = (
                    "partitions, blocks, bandwidths and DNS faults work without"
                    if kind == "netem"
                    else "partitions, blocks and DNS faults work without"
                )
                raise Unsupported(
                    f"the kernel has no {kind} queues, which this fault needs: load the module "
                    f"sch_{kind} or use a kernel with {option} ({can})"
                ) from error
            raise SystemFailure(
                f"the kernel's traffic control cannot be used: {error.strerror}"
            ) from error
