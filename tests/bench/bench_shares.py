"""Print how fast shared folders are in a machine, by SFTP and by virtiofs, beside QEMU's own 9p in
the same machine.

    python -m tests.bench.bench_shares [--image build/guest] [--rounds 3] [--files 200]

As root, under software emulation, on a computer that has virtiofsd. All lead to the same disk; the
turns alternate, the medians count. The machine's cache is emptied before what reads. 9p is without
a cache of its own, with which it would not see a file that changed here; Desk's folders see it
within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.laptop import Laptop

PROJECT = Path(__file__).resolve().parent.parent.parent
PEER = "/mnt/peer"
MOUNT = f"""mkdir -p {PEER} && modprobe 9pnet_virtio && mount -t 9p \
-o trans=virtio,version=9p2000.L,msize=512000,cache=none peer {PEER}"""
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
def laptop_with_peer(image: Path, folders: dict[str, Path]) -> Iterator[Laptop]:
    """Make a machine that has one folder by virtiofs, one by SFTP, and one by QEMU's 9p."""
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Laptop(None, home, timeout_s=300.0)
    qemu = home / "qemu"
    real = shutil.which("qemu-system-x86_64")
    more = (
        f"-fsdev local,id=peer,path={folders['9p']},security_model=none,multidevs=remap "
        "-device virtio-9p-pci,fsdev=peer,mount_tag=peer"
    )
    qemu.write_text(f'#!/bin/sh\nexec {real} "$@" $(case "$*" in *hostfwd*) echo {more} ;; esac)\n')
    qemu.chmod(0o755)
    options = {"accelerator": "tcg", "qemu": qemu, "share_by": "virtiofs"}
    options["share_folder"] = folders["virtiofs"]
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    try:
        made.desk("machine", "image", "install", str(image))
        made.desk("machine", "create", "--memory", f"{MEMORY_MIB}m", *words, "default")
        made.desk("machine", "start")
        made.desk("machine", "ssh", "default", "--", MOUNT)
        # What is shared while the machine runs is no device of it.
        both = f"share-folder={folders['virtiofs']},{folders['sftp']}"
        made.desk("machine", "set", "default", both)
        binds = [word for way in ("sftp", "virtiofs") for word in ("-v", f"{folders[way]}:/{way}")]
        made.desk("run", "-d", "--name", "hold", *binds, "busybox", "sleep", "3600")
        mounts = made.desk("machine", "ssh", "default", "--", "cat", "/proc/mounts")
        for way, kind in (("sftp", "fuse.sshfs"), ("virtiofs", "virtiofs"), ("9p", "9p")):
            assert f" {PEER if way == '9p' else folders[way]} {kind} " in mounts, mounts
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
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {name: place / name for name in ("sftp", "virtiofs", "9p")}
        for folder in folders.values():
            folder.mkdir()
        (folders["9p"] / "work.py").write_text(WORK)
        ways = {**{name: str(folder) for name, folder in folders.items()}, "9p": PEER}
        laptop = stack.enter_context(laptop_with_peer(arguments.image.absolute(), folders))
        results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, where in ways.items():
                run = f"python3 {PEER}/work.py {where} {arguments.megabytes} {arguments.files}"
                told = laptop.desk("machine", "ssh", "default", "--", run)
                results[way].append(json.loads(told))
    print(" " * 20 + "".join(f"{way:>10}" for way in ways) + "   sftp/9p  virtiofs/9p")
    for what in results["9p"][0]:
        medians = [statistics.median(run[what] for run in runs) for runs in results.values()]
        shares = "".join(f"{other / medians[-1]:10.2f}" for other in medians[:-1])
        print(f"{what:20}" + "".join(f"{median:10.0f}" for median in medians) + shares)
    return 0


if __name__ == "__main__":
    sys.exit(main())
