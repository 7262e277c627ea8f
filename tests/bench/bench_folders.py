"""Print how fast shared folders are beside OpenSSH's SFTP server, under the same sshfs.

``python -m tests.bench.bench_folders [--megabytes N] [--files N] [--rounds N]`` (root and FUSE)

Both mounts go through one loopback sshd and lead to the same disk: Desk's to the agent's server,
which the connection reaches backwards, OpenSSH's to ``sftp-server``. Each line: Desk's figure,
OpenSSH's, and the ratio. Rounds alternate; the median counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from desk.agent.echoes import Echoes
from desk.agent.guest_mounts import OPTIONS, GuestMounts
from desk.agent.sftp import SftpConnection
from desk.agent.shared_tree import SharedFolder, SharedTree
from desk.ssh.session import Session
from desk.ssh.stream import ChannelStream
from tests.ssh_server import SshServer

_BLOCK = os.urandom(1 << 20)


@contextlib.contextmanager
def desk_mount(server: SshServer, folder: Path) -> Iterator[Path]:
    """Mount ``folder`` as an agent does."""
    tree = SharedTree([SharedFolder(str(folder), str(folder))], (), Echoes())

    def serve(stream: ChannelStream) -> None:
        with contextlib.closing(stream):
            SftpConnection(stream, tree).serve()

    deskd = Path(sys.executable).with_name("deskd")
    mounts = GuestMounts(f"bench-{os.getpid()}", f"{deskd} dial-stdio")
    with Session.connect(server.endpoint) as session:
        mounts.prepare(session, mounts.socket)
        session.listen_unix(mounts.socket, serve)
        place = mounts.mount(session, str(folder))
        try:
            yield Path(place)
        finally:
            mounts.unmount(session, place)
            shutil.rmtree(Path(mounts.socket).parent)


@contextlib.contextmanager
def openssh_mount(server: SshServer, folder: Path, place: Path) -> Iterator[Path]:
    """Mount ``folder`` as sshfs does by itself."""
    at = server.endpoint
    place.mkdir()
    ssh = f"ssh -F none -i {at.private_key} -o UserKnownHostsFile={at.known_hosts} -o IPQoS=none"
    words = ["-p", str(at.port), "-o", f"ssh_command={ssh}", "-o", OPTIONS]
    subprocess.run(["sshfs", f"{at.user}@{at.host}:{folder}", place, *words], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write(place: Path, megabytes: int) -> None:
    with (place / "big").open("wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(_BLOCK)
        os.fsync(file.fileno())


def read(place: Path) -> None:
    with (place / "big").open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def make_files(place: Path, files: int) -> None:
    (place / "many").mkdir()
    for number in range(files):
        (place / "many" / str(number)).write_bytes(b"some 20 bytes of it\n")


def read_files(place: Path) -> None:
    for path in (place / "many").iterdir():
        path.read_bytes()


def remove_files(place: Path) -> None:
    shutil.rmtree(place / "many")


def one_round(place: Path, megabytes: int, files: int) -> dict[str, float]:
    """Return each figure of one mount: megabytes or files a second."""
    return {
        "write, MB/s": megabytes / timed(lambda: write(place, megabytes)),
        "read, MB/s": megabytes / timed(lambda: read(place)),
        "files made, /s": files / timed(lambda: make_files(place, files)),
        "files read, /s": files / timed(lambda: read_files(place)),
        "files removed, /s": files / timed(lambda: remove_files(place)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"desk": [], "openssh": []}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        top = Path(name)
        folders = {who: top / who for who in results}
        for folder in folders.values():
            folder.mkdir()
            (folder / "here").touch()  # so that it is not mounted over itself
        server = stack.enter_context(SshServer(top / "sshd"))
        places = {
            "desk": stack.enter_context(desk_mount(server, folders["desk"])),
            "openssh": stack.enter_context(
                openssh_mount(server, folders["openssh"], top / "mounted")
            ),
        }
        for _ in range(arguments.rounds):
            for who, place in places.items():
                results[who].append(one_round(place, arguments.megabytes, arguments.files))
    for what in results["desk"][0]:
        ours, theirs = (
            statistics.median(run[what] for run in results[who]) for who in ("desk", "openssh")
        )
        print(f"{what:20} {ours:8.0f} {theirs:8.0f}   {ours / theirs:5.2f}")


if __name__ == "__main__":
    main()
