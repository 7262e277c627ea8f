"""What an engine with ``--userns-remap`` settles before anything else: IDs, user, data root."""

from __future__ import annotations

import logging
import shutil
import tempfile

from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.errors import DeskdError, NotFound
from deskd.layout import remapped_root
from deskd.record import replace
from deskd.services import subordinate_ids
from deskd.services.ports import Runtime
from deskd.services.subordinate_ids import DEFAULT, DEFAULT_USER, RemapUser
from deskd.settings import Settings

log = logging.getLogger(__name__)


async def settle(settings: Settings, runtime: Runtime) -> tuple[Settings, IdMapping]:
    """Return the settings with the data root of the remapped containers, and their IDs.

    ``default`` adds the user ``dockremap`` and ranges for it where they are missing. Raises
    ``NotFound`` and ``InvalidArgument`` that say what to add or change.
    """
    try:
        return resolve(settings)
    except NotFound as missing:
        if settings.userns_remap != DEFAULT:
            raise
        await _add_default_user(runtime, missing)
    return resolve(settings)


def resolve(settings: Settings) -> tuple[Settings, IdMapping]:
    """Do ``settle`` for a user that exists. Raises what it raises."""
    user: RemapUser = subordinate_ids.look_up(settings.userns_remap)
    if user.uid == 0:
        log.warning("root cannot be remapped with itself; user namespaces are off")
        return replace(settings, userns_remap=""), NO_MAPPING
    id_map = subordinate_ids.id_mapping(user)
    root = remapped_root(settings.data_root, *id_map.root)
    chosen = replace(settings, userns_remap=f"{user.name}:{user.group}", data_root=root)
    return chosen, id_map


async def _add_default_user(runtime: Runtime, missing: NotFound) -> None:
    try:
        subordinate_ids.look_up(DEFAULT)
        exists = True
    except NotFound:
        exists = False
    wanted = {
        "name": DEFAULT_USER,
        "missing": not exists,
        "first": subordinate_ids.free_range(),
        "count": subordinate_ids.NEEDED_IDS,
    }
    try:
        await runtime.run_job("add_remap_user", wanted, ())
    except DeskdError as error:
        raise NotFound(f"{missing} (the engine could not do it: {error})") from error


async def check_machine(temporary: str, id_map: IdMapping, runtime: Runtime) -> None:
    """See whether the data root can hold remapped containers. Raises ``Unsupported``."""
    place = tempfile.mkdtemp(prefix="idmap-", dir=temporary)
    try:
        arguments = {"place": place, "uid_map": id_map.uids, "gid_map": id_map.gids}
        await runtime.run_job("probe_id_mapping", arguments, ())
    finally:
        shutil.rmtree(place, ignore_errors=True)
