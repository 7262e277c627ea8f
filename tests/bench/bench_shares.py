"""Print how fast a shared folder is in a machine beside QEMU's own 9p in the same machine.

    python -m tests.bench.bench_shares [--image build/guest] [--rounds 3] [--files 200]

As root, under software emulation. Both lead to the same disk; the turns alternate, the medians
count. The machine's cache is emptied before what reads.
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
def laptop_with_peer(image: Path, shared: Path, peer: Path) -> Iterator[Laptop]:
    """Make a machine that has one folder by Desk and another by QEMU's 9p."""
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Laptop(None, home, timeout_s=300.0)
    qemu = home / "qemu"
    real = shutil.which("qemu-system-x86_64")
    qemu.write_text(
        f'#!/bin/sh\nexec {real} "$@" $(case "$*" in *hostfwd*) echo -fsdev '
        f"local,id=peer,path={peer},security_model=none,multidevs=remap "
        "-device virtio-9p-pci,fsdev=peer,mount_tag=peer ;; esac)\n"
    )
    qemu.chmod(0o755)
    try:
        made.desk("machine", "image", "install", str(image))
        made.desk("machine", "create", "--memory", "1g", "-o", "accelerator=tcg",
                  "-o", f"qemu={qemu}", "-o", f"share_folder={shared}", "default")  # fmt: skip
        made.desk("machine", "start")
        made.desk("machine", "ssh", "default", "--", MOUNT)
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
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"desk": [], "9p": []}
    with tempfile.TemporaryDirectory() as name:
        shared, peer = Path(name, "shared"), Path(name, "peer")
        shared.mkdir()
        peer.mkdir()
        (peer / "work.py").write_text(WORK)
        amounts = f"{arguments.megabytes} {arguments.files}"
        with laptop_with_peer(arguments.image.absolute(), shared, peer) as laptop:
            for _ in range(arguments.rounds):
                for who, place in (("desk", str(shared)), ("9p", PEER)):
                    run = f"python3 {PEER}/work.py {place} {amounts}"
                    told = laptop.desk("machine", "ssh", "default", "--", run)
                    results[who].append(json.loads(told))
    print(f"{'':20} {'desk':>8} {'9p':>8}")
    for what in results["desk"][0]:
        ours, theirs = (
            statistics.median(run[what] for run in results[who]) for who in ("desk", "9p")
        )
        print(f"{what:20} {ours:8.0f} {theirs:8.0f}   {ours / theirs:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
