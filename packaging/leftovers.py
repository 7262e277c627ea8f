"""Take a picture of what tests could leave on a machine, and compare it with a later one.

usage: leftovers.py take FILE | leftovers.py compare FILE

Looks at processes, mounts, named network namespaces, interfaces, cgroups and nftables tables.
``compare`` prints what is new and exits 1 if there is anything. Other programs of the machine
come and go meanwhile, so processes count only if they carry the run's mark in their environment
(``DESK_TESTS_RUN``, inherited from the test command), are in a container's cgroup, or run a
program that the tests start in the background; cgroups only if Desk made them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

SETTLE_S = 10.0
MARK = "DESK_TESTS_RUN"
BACKGROUND_PROGRAMS = re.compile(
    rb"deskd|desk\.agent|qemu-system|libvirtd|virtlogd|dnsmasq|sshd|vagrant|docker-registry"
)


def _command(*argv: str) -> list[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
    return found


def _processes() -> dict[str, str]:
    mine, found = _ancestors(), {}
    mark = f"{MARK}={os.environ.get(MARK, '')}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes().split(b"\0")
            cgroup = (entry / "cgroup").read_bytes()
            started = (entry / "stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            continue
        ours = mark in environment or b"/desk" in cgroup or BACKGROUND_PROGRAMS.search(command)
        if command and ours:  # kernel threads have no command line
            text = command.replace(b"\0", b" ").decode(errors="replace").strip()
            found[f"{entry.name}@{started}"] = text[:200]
    return found


def _cgroups() -> list[str]:
    # The empty parent of all containers stays between engines, as dockerd's does.
    found = (at for at, _, _ in os.walk("/sys/fs/cgroup") if "/desk" in at)
    return [at for at in found if not at.endswith("/desk")]


def picture() -> dict[str, list[str]]:
    """Return what is on the machine now, one list of names for each kind of thing."""
    return {
        "processes": [f"{pid} {command}" for pid, command in _processes().items()],
        "mounts": [
            line.split(" - ")[0].split(" ", 3)[3]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ],
        "network namespaces": _command("ip", "netns", "list"),
        "interfaces": [
            line.split(":")[1].strip().split("@")[0]
            for line in _command("ip", "-o", "link", "show")
        ],
        "cgroups": _cgroups(),
        "nftables tables": _command("nft", "list", "tables"),
    }


def new_things(before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return what ``after`` has and ``before`` has not, kinds without news left out."""
    news = {kind: sorted(set(now) - set(before.get(kind, []))) for kind, now in after.items()}
    return {kind: names for kind, names in news.items() if names}


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[0] not in ("take", "compare"):
        print(__doc__, file=sys.stderr)
        return 2
    file = Path(argv[1])
    if argv[0] == "take":
        file.write_text(json.dumps(picture()))
        return 0
    before = json.loads(file.read_text())
    deadline = time.monotonic() + SETTLE_S
    # The kernel takes network namespaces and cgroups down in the background.
    while (left := new_things(before, picture())) and time.monotonic() < deadline:
        time.sleep(0.5)
    for kind, names in left.items():
        for name in names:
            print(f"left behind ({kind}): {name}")
    if not left:
        print("nothing is left behind")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
