"""Real file servers for volumes: Debian's nfs-ganesha (NFS 4) and samba (SMB 3), on 127.0.0.1.

``packaging/test`` unpacks them below build/servers, because their packages would start services.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.engine_process import REPOSITORY
from tests.free_ports import free_port

PLACE = REPOSITORY / "build" / "servers"
_START_S = 60.0


@contextlib.contextmanager
def nfs_server(shared: Path, scratch: Path) -> Iterator[int]:
    """Serve ``shared`` as ``/shared`` to whoever comes, root included; yield the port."""
    port = free_port()
    (plugins,) = PLACE.glob("usr/lib/*/ganesha")
    identities, configuration = scratch / "idmapd.conf", scratch / "ganesha.conf"
    identities.write_text("[General]\nDomain = localdomain\n")
    configuration.write_text(
        f"""
        NFS_CORE_PARAM {{
            NFS_Port = {port}; Protocols = 4; Bind_addr = 127.0.0.1; Enable_NLM = false;
            Enable_RQUOTA = false; Plugins_Dir = {plugins};
        }}
        NFSV4 {{
            Graceless = true; RecoveryRoot = {scratch}; IdmapConf = {identities};
            Only_Numeric_Owners = true;
        }}
        EXPORT {{
            Export_Id = 1; Path = {shared}; Pseudo = /shared; Access_Type = RW;
            Squash = No_Root_Squash; SecType = sys; FSAL {{ Name = VFS; }}
        }}
        """
    )
    command: list[Path | str] = [PLACE / "usr/bin/ganesha.nfsd", "-F", "-f", configuration]
    command += ["-L", scratch / "ganesha.log", "-p", scratch / "ganesha.pid"]
    libraries = {"LD_LIBRARY_PATH": str(PLACE / "usr/lib/ganesha")}
    with _running(command, port, scratch / "ganesha.log", os.environ | libraries):
        yield port


@contextlib.contextmanager
def smb_server(shared: Path, scratch: Path) -> Iterator[int]:
    """Serve ``shared`` as ``shared`` to guests; yield the port."""
    port = free_port()
    configuration = scratch / "smb.conf"
    places = "".join(
        f"{name} = {scratch}\n"
        for name in ("private dir", "state directory", "lock directory", "cache directory",
                     "pid directory", "ncalrpc dir")
    )  # fmt: skip
    configuration.write_text(
        f"""
        [global]
        server role = standalone server
        smb ports = {port}
        interfaces = 127.0.0.1
        bind interfaces only = yes
        disable netbios = yes
        load printers = no
        disable spoolss = yes
        map to guest = Bad User
        guest account = root
        log file = {scratch / "smbd.log"}
        {places}
        [shared]
        path = {shared}
        guest ok = yes
        read only = no
        """
    )
    command: list[Path | str] = [
        PLACE / "usr/sbin/smbd",
        "-F",
        "--no-process-group",
        "-s",
        configuration,
    ]
    with _running(command, port, scratch / "smbd.log", dict(os.environ)):
        yield port


@contextlib.contextmanager
def _running(
    command: list[Path | str], port: int, log: Path, environment: dict[str, str]
) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                break
            told = log.read_text(errors="replace")[-2000:] if log.exists() else "nothing"
            assert process.poll() is None, f"{command[0]} ended and said {told}"
            assert time.monotonic() < deadline, f"{command[0]} does not listen; it said {told}"
            time.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
