"""Control groups, versions 1 and 2, behind one set of methods."""

from __future__ import annotations

from deskd.kernel.cgroup.hierarchy import Hierarchy
from deskd.kernel.cgroup.v1 import CgroupV1
from deskd.kernel.cgroup.v2 import CgroupV2

Cgroup = CgroupV1 | CgroupV2


def cgroup_at(hierarchy: Hierarchy, parent: str, name: str) -> Cgroup:
    """Name the cgroup ``parent/name``; nothing is made or checked yet."""
    kind = CgroupV1 if hierarchy.version == 1 else CgroupV2
    return kind(hierarchy, parent, name)
