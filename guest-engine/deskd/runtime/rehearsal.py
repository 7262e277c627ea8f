"""What a spare monitor does while it waits: the first steps of its work, without their effects.

After a fork the first write to each page costs a fault and a copy. What is gone through here has
had them when an order comes. It goes as far as the clone of a container's first process, which
makes both sides' pages shared once more.
"""

from __future__ import annotations

import json
import os
import socket

from deskd.domain.mount import MountStep
from deskd.kernel.cgroup import cgroup_at
from deskd.kernel.cgroup.hierarchy import Hierarchy
from deskd.kernel.cgroup.limits import DeviceRule, Limits
from deskd.layout import ExecRoot
from deskd.runtime.birth import Birth
from deskd.runtime.control import Control
from deskd.runtime.monitor import Monitor
from deskd.runtime.plan import (
    AtOnce,
    CgroupSpec,
    ExecTarget,
    LogSpec,
    NamespaceSpec,
    NetlinkMessages,
    Plan,
    ProcessSpec,
    RootSpec,
    StreamSpec,
    decode,
    encode,
)


def sample_orders() -> tuple[bytes, bytes]:
    """Return the plans of a container and of an exec, of which nothing is carried out."""
    program = ProcessSpec(("sh", "-c"), env=("PATH=/bin", "A=b"), capabilities=("CAP_KILL",))
    step = MountStep("bind", "/a", "/b")
    rule = DeviceRule(allow=True, kind="c", major=1, minor=3, access="rwm")
    container = Plan(
        key="container",
        process=program,
        streams=StreamSpec(),
        cgroup=CgroupSpec("", "", limits=Limits(devices=(rule, rule))),
        root=RootSpec((step,), (step, step), masked_paths=("/a",), read_only_paths=("/b",)),
        networks=(NetlinkMessages((b"12345678",), (0,), (b"1234",), (("a", "b"),)),),
        log=LogSpec("/dev/null"),
    )
    execution = Plan(
        key="exec",
        process=program,
        streams=StreamSpec(),
        cgroup=CgroupSpec("", "", create=False),
        namespaces=NamespaceSpec(),
        target=ExecTarget(os.getpid(), "no container"),
        at_once=AtOnce(attached=True, stdout=True),
    )
    return encode(container), encode(execution)


def rehearse(order: bytes, hierarchy: Hierarchy, exec_root: ExecRoot) -> None:
    """Go through what a monitor does with such an order before there is a process."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    Control(one).send(event="rehearsal")
    Control(other).receive()
    one.close()
    other.close()
    plan = decode(json.loads(order))
    cgroup = cgroup_at(hierarchy, plan.cgroup.parent, plan.cgroup.name)
    Monitor(plan, cgroup, exec_root).close()
    Birth(plan, cgroup, exec_root.processes).rehearse()
