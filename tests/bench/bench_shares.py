"""Print how fast a shared folder is in a machine beside QEMU's own 9p in the same machine, and
beside virtiofs where this computer has a virtiofsd.

    python -m tests.bench.bench_shares [--image build/guest] [--rounds 3] [--files 200]
        [--virtiofsd /usr/lib/qemu/virtiofsd]

As root, under software emulation. All lead to the same disk; the turns alternate, the medians
count. The machine's cache is emptied before what reads. Without a cache of their own the peers see
a file that changed here at once, as Desk's folders do within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.engine_process import until
from tests.laptop import Laptop

PROJECT = Path(__file__).resolve().parent.parent.parent
PEER = "/mnt/peer"
MOUNT = f"""mkdir -p {PEER} && modprobe 9pnet_virtio && mount -t 9p \
-o trans=virtio,version=9p2000.L,msize=512000,cache=none peer {PEER}"""
VIRTIOFS = "/mnt/virtiofs"
MOUNT_VIRTIOFS = f"mkdir -p {VIRTIOFS} && modprobe virtiofs && mount -t virtiofs shared {VIRTIOFS}"
MEMORY_MIB = 1024

# Runs in the machine: the folder, megabytes, files. Prints each figure's name and value.
WORK = """
import json, os, shutil, sys, time
place, megabytes, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block, many, found = os.urandom(1 << 20), os.path.join(place, "many"), {}
def timed(name, amount, work):
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")
    started = time.perf_counter()
    work()
    found[name] = amount / (time.perf_counter() - started)
def write():
    with open(f"{place}/big", "wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(block)
        os.fsync(file.fileno())
def read():
    with open(f"{place}/big", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
def make():
    os.mkdir(many)
    for number in range(files):
        with open(f"{many}/{number}", "wb") as file:
            file.write(b"some 20 bytes of it\\n")
def look():
    for number in range(files):
        os.stat(f"{many}/{number}")
def read_files():
    for name in os.listdir(many):
        with open(f"{many}/{name}", "rb") as file:
            file.read()
timed("written, MB/s", megabytes, write)
timed("read, MB/s", megabytes, read)
timed("files made, /s", files, make)
timed("files looked at, /s", files, look)
timed("files read, /s", files, read_files)
timed("files removed, /s", files, lambda: shutil.rmtree(many))
print(json.dumps(found))
"""


@contextlib.contextmanager
def virtiofs_server(program: Path, folder: Path, socket: Path) -> Iterator[None]:
    """Serve ``folder`` on ``socket`` as QEMU's documentation says."""
    server = subprocess.Popen(
        [program, f"--socket-path={socket}", "-o", f"source={folder}", "-o", "cache=none",
         "-o", "sandbox=chroot", "--rlimit-nofile=0"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(socket.exists)
        yield
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def laptop_with_peers(
    image: Path, shared: Path, peer: Path, virtiofs: Path | None
) -> Iterator[Laptop]:
    """Make a machine that has one folder by Desk, another by QEMU's 9p, and by virtiofs what a
    server has at the socket ``virtiofs``."""
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Laptop(None, home, timeout_s=300.0)
    qemu = home / "qemu"
    real = shutil.which("qemu-system-x86_64")
    more = (
        f"-fsdev local,id=peer,path={peer},security_model=none,multidevs=remap "
        "-device virtio-9p-pci,fsdev=peer,mount_tag=peer"
    )
    if virtiofs is not None:
        more += (
            f" -object memory-backend-memfd,id=all,size={MEMORY_MIB}M,share=on"
            f" -machine memory-backend=all -chardev socket,id=fs,path={virtiofs}"
            " -device vhost-user-fs-pci,chardev=fs,tag=shared"
        )
    qemu.write_text(f'#!/bin/sh\nexec {real} "$@" $(case "$*" in *hostfwd*) echo {more} ;; esac)\n')
    qemu.chmod(0o755)
    try:
        made.desk("machine", "image", "install", str(image))
        made.desk("machine", "create", "--memory", f"{MEMORY_MIB}m", "-o", "accelerator=tcg",
                  "-o", f"qemu={qemu}", "-o", f"share_folder={shared}", "default")  # fmt: skip
        made.desk("machine", "start")
        made.desk("machine", "ssh", "default", "--", MOUNT)
        if virtiofs is not None:
            made.desk("machine", "ssh", "default", "--", MOUNT_VIRTIOFS)
        made.desk("run", "-d", "--name", "hold", "-v", f"{shared}:/s", "busybox", "sleep", "3600")
        yield made
    finally:
        made("machine", "rm", "-f", "default")
        shutil.rmtree(home)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=PROJECT / "build" / "guest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--virtiofsd", type=Path, default=Path("/usr/lib/qemu/virtiofsd"))
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {name: place / name for name in ("desk", "9p", "virtiofs")}
        for folder in folders.values():
            folder.mkdir()
        (folders["9p"] / "work.py").write_text(WORK)
        ways = {"desk": str(folders["desk"]), "9p": PEER}
        socket = None
        if arguments.virtiofsd.exists():
            ways["virtiofs"] = VIRTIOFS
            socket = place / "socket"
            server = virtiofs_server(arguments.virtiofsd, folders["virtiofs"], socket)
            stack.enter_context(server)
        laptop = stack.enter_context(
            laptop_with_peers(arguments.image.absolute(), folders["desk"], folders["9p"], socket)
        )
        results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, where in ways.items():
                run = f"python3 {PEER}/work.py {where} {arguments.megabytes} {arguments.files}"
                told = laptop.desk("machine", "ssh", "default", "--", run)
                results[way].append(json.loads(told))
    print(" " * 20 + "".join(f"{way:>10}" for way in ways) + "   desk's share of each")
    for what in results["desk"][0]:
        medians = [statistics.median(run[what] for run in runs) for runs in results.values()]
        shares = "".join(f"{medians[0] / other:8.2f}" for other in medians[1:])
        print(f"{what:20}" + "".join(f"{median:10.0f}" for median in medians) + shares)
    return 0


if __name__ == "__main__":
    sys.exit(main())
