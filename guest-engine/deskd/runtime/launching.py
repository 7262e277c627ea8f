"""Starting the launcher, before the engine's own modules are there.

Imports little: what is here is loaded before the fork and delays both processes.
"""

from __future__ import annotations

import os
import socket
import sys

from deskd.record import as_dict

TYPE_CHECKING = False  # known to type checkers; see deskd.record
if TYPE_CHECKING:
    from deskd.kernel.cgroup.hierarchy import Hierarchy

_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from deskd.runtime.launcher import main
main(sys.argv[2:])
"""


_GO = b"g"


def fork_launcher(
    exec_root: str, hierarchy: Hierarchy | None = None, *, held: bool = False
) -> tuple[int, socket.socket]:
    """Start the launcher; return its PID and the engine's end of the socket pair.

    To be called before the process has threads. The launcher detects the ``hierarchy`` unless it
    is given, and ends where there is none. A ``held`` one loads nothing before ``release``.

    A container can have a held process execute ``/proc/self/exe``, which is the interpreter's
    file, and then write to it by the same name (CVE-2019-5736). So the launcher runs from a
    read-only mount: where the interpreter does not lie on one already (as in Desk's guest), it is
    executed anew from a read-only detached mount of its file. Executing it also leaves behind
    what ``site`` and ``.pth`` files have loaded; an engine that was started without them forks.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    arguments = [str(theirs.fileno()), exec_root, "null"]
    if hierarchy is not None:
        import json

        arguments[2] = json.dumps(as_dict(hierarchy))
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            if held and theirs.recv(len(_GO)) != _GO:
                os._exit(0)  # the engine has ended
            own = os.readlink("/proc/self/exe")
            if sys.flags.isolated and sys.flags.no_site and _lies_read_only(own):
                theirs.detach()
                _become_launcher(arguments)
            else:
                theirs.set_inheritable(True)
                _execute_anew(own, arguments)
        except BaseException:  # noqa: BLE001 - a forked child must not return to its caller
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    return pid, ours


def release(launcher: socket.socket) -> None:
    """Let a held launcher load its modules. ``launcher`` is the engine's end."""
    launcher.send(_GO)


def _lies_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _become_launcher(arguments: list[str]) -> None:
    os.environ.clear()
    os.environ["LC_ALL"] = "C.UTF-8"
    from deskd.runtime.launcher import main

    main(arguments)
    os._exit(0)


def _execute_anew(own: str, arguments: list[str]) -> None:
    from deskd.kernel import mount

    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    interpreter = mount.open_tree(own)
    mount.mount_setattr(interpreter, set_flags=mount.MOUNT_ATTR_RDONLY)
    command = [sys.executable or own, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, library, *arguments]
    os.execve(interpreter, command, {"LC_ALL": "C.UTF-8"})
