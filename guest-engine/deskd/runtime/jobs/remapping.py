"""The jobs behind ``--userns-remap`` at the engine's start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from deskd.domain.mount import MountStep
from deskd.errors import Unsupported
from deskd.runtime.jobs.enter import enter_root
from deskd.runtime.jobs.programs import run_program


def probe(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Mount an overlay with mapped owners below the empty directory ``place``, for this process
    only. Raises ``Unsupported`` where the kernel or the file system has no such mounts."""
    del fds
    place: str = arguments["place"]
    for name in ("layers/0", "upper", "work", "root"):
        os.makedirs(f"{place}/{name}")
    maps = {
        name: tuple((inside, outside, count) for inside, outside, count in arguments[name])
        for name in ("uid_map", "gid_map")
    }
    os.mkdir(f"{place}/layers/0/file")
    step = MountStep(
        "overlay",
        "/",
        source=f"{place}/layers",
        data=f"lowerdir=0,upperdir={place}/upper,workdir={place}/work",
        uid_map=maps["uid_map"],
        gid_map=maps["gid_map"],
    )
    try:
        enter_root([step], f"{place}/root")
    except OSError as error:
        raise Unsupported(
            "--userns-remap needs Linux 5.19 or newer, user namespaces (CONFIG_USER_NS,"
            " user.max_user_namespaces above 0) and a data root on a file system with idmapped"
            f" mounts (ext4, xfs, btrfs): {error.strerror}; change that or leave the option out"
        ) from error
    if os.stat("/file").st_uid != maps["uid_map"][0][1]:
        raise Unsupported(
            "--userns-remap needs a kernel whose overlay file system maps the owners of layers"
            " (Linux 5.19 or newer); leave --userns-remap out"
        )


def add_user(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Add the system user ``name`` where ``missing`` says so, and for it ``count`` subordinate
    user and group IDs from ``first`` on. Raises ``Unsupported`` where the tools are missing or
    refuse."""
    del fds
    name, first = arguments["name"], arguments["first"]
    if arguments["missing"]:
        run_program("useradd", "--system", "--user-group", "--no-create-home", name)
    span = f"{first}-{first + arguments['count'] - 1}"
    run_program("usermod", "--add-subuids", span, "--add-subgids", span, name)
