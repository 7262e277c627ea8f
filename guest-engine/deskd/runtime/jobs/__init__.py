"""Jobs: work that must enter namespaces or a container's root, done in a short-lived process.

The engine calls ``Runtime.run_job(name, arguments, fds)``; the launcher forks a child that runs
the function named here and sends its result back. To add a job:

1. Write ``def job(arguments: Mapping[str, Any], fds: Sequence[int]) -> Any`` in a module of this
   package. ``arguments`` and the result are what JSON can carry; ``fds`` are the child's own
   copies, in the order given. Raise a ``DeskdError``: it comes back to the caller as that class.
   An ``OSError`` comes back as ``SystemFailure``.
2. Add its name to ``JOBS`` below. The module is imported in the child, never in the launcher;
   import everything that it needs at the top of the module (or before ``enter_*``): afterwards
   the engine's files are out of reach.
3. Inside, call one of ``deskd.runtime.jobs.enter``'s functions to get where the work is. The
   child ends with the job; there is no way back and none is needed.
"""

from __future__ import annotations

JOBS: dict[str, str] = {
    "probe_id_mapping": "deskd.runtime.jobs.remapping:probe",
    "add_remap_user": "deskd.runtime.jobs.remapping:add_user",
    "load_apparmor_default": "deskd.runtime.jobs.apparmor:load_default",
    "netlink": "deskd.runtime.jobs.netlink:run",
    "name_sockets": "deskd.runtime.jobs.name_sockets:run",
    "client_sockets": "deskd.runtime.jobs.client_sockets:run",
    "archive_get": "deskd.runtime.jobs.archive:get",
    "archive_put": "deskd.runtime.jobs.archive:put",
    "archive_stat": "deskd.runtime.jobs.archive:stat",
    "export": "deskd.runtime.jobs.archive:export",
    "mount_volume": "deskd.runtime.jobs.volume_mounts:mount",
    "unmount_volume": "deskd.runtime.jobs.volume_mounts:unmount",
}
"""Job names and where their functions are: ``module:function``."""
