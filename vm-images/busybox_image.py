#!/usr/bin/env python3
"""Makes the bundled base image: a docker-archive of Debian's busybox-static.

    python3 vm-images/busybox_image.py OUTPUT.tar [--busybox PATH] [--tag NAME:TAG]

The same busybox and SOURCE_DATE_EPOCH give the same bytes, and so the same image ID. Needs
nothing but Python's standard library and the package beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from guestbuild.archives import add

DEFAULT_EPOCH = 1_735_689_600  # 2025-01-01T00:00:00Z, where SOURCE_DATE_EPOCH is not set
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
BUSYBOX_PLACES = ("/bin/busybox", "/usr/bin/busybox")
DIRECTORIES = (
    ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("lib", 0o755),
    ("proc", 0o755), ("root", 0o700), ("sbin", 0o755), ("sys", 0o755), ("tmp", 0o1777),
    ("usr", 0o755), ("usr/bin", 0o755), ("usr/sbin", 0o755), ("var", 0o755),
    ("var/log", 0o755), ("var/spool", 0o755), ("var/tmp", 0o1777), ("var/www", 0o755),
)  # fmt: skip
LINKS = (("run", "tmp"), ("var/run", "../tmp"))
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "bin:x:2:2:bin:/bin:/bin/false\n"
        "www-data:x:33:33:www-data:/var/www:/bin/false\n"
        "nobody:x:65534:65534:nobody:/home:/bin/false\n"
    ),
    "etc/group": (
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nwheel:x:10:root\n"
        "www-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
    ),
    "etc/shadow": "root:*:::::::\nnobody:*:::::::\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
PRIVATE_FILES = ("etc/shadow",)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the bundled busybox image.")
    parser.add_argument("output", type=Path, help="the archive to write")
    parser.add_argument("--busybox", type=Path, help="a statically linked busybox")
    parser.add_argument("--tag", default="busybox:latest", help="the image's name")
    parser.add_argument(
        "--arch", default=ARCHITECTURES.get(platform.machine(), platform.machine()),
        help="the architecture as images name it (default: this machine's)",
    )  # fmt: skip
    parser.add_argument("--emulator", type=Path, help="what runs a busybox of another processor")
    arguments = parser.parse_args()
    busybox = arguments.busybox or next(
        (Path(place) for place in BUSYBOX_PLACES if Path(place).is_file()), None
    )
    if busybox is None or not busybox.is_file():
        missing = arguments.busybox or "busybox"
        print(f"{missing} is not here: install busybox-static or name one with --busybox",
              file=sys.stderr)  # fmt: skip
        return 1
    image_id = build(arguments.output, busybox, arguments.tag, arguments.arch, arguments.emulator)
    print(f"{arguments.output} {arguments.tag} {image_id}")
    return 0


def build(
    output: Path, busybox: Path, tag: str, architecture: str, emulator: Path | None = None
) -> str:
    """Write the archive ``output``; return the image's ID. ``emulator`` runs a busybox of another
    processor."""
    epoch_s = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    layer = layer_tar(busybox, epoch_s, emulator)
    diff_id = hashlib.sha256(layer).hexdigest()
    created = datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = _json(
        {
            "architecture": architecture,
            "config": {
                "Cmd": ["sh"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "created": created,
            "history": [{"created": created, "created_by": "busybox-static of Debian"}],
            "os": "linux",
            "rootfs": {"diff_ids": [f"sha256:{diff_id}"], "type": "layers"},
        }
    )
    image_id = hashlib.sha256(config).hexdigest()
    manifest = [
        {"Config": f"{image_id}.json", "Layers": [f"{diff_id}/layer.tar"], "RepoTags": [tag]}
    ]
    members = [
        (f"{image_id}.json", config),
        (f"{diff_id}/layer.tar", layer),
        ("manifest.json", _json(manifest)),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            add(archive, name, mtime_s=epoch_s, mode=0o644, data=data)
    part.replace(output)
    return f"sha256:{image_id}"


def layer_tar(busybox: Path, epoch_s: int, emulator: Path | None = None) -> bytes:
    """Return the root file system: busybox, a link for each applet, and what programs expect."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, mode in DIRECTORIES:
            add(archive, name, mtime_s=epoch_s, mode=mode, kind=tarfile.DIRTYPE)
        add(archive, "bin/busybox", mtime_s=epoch_s, mode=0o755, data=busybox.read_bytes())
        for path in applets(busybox, emulator):
            depth = path.count("/")
            target = "busybox" if path.startswith("bin/") else "../" * depth + "bin/busybox"
            add(archive, path, mtime_s=epoch_s, mode=0o777, kind=tarfile.SYMTYPE, target=target)
        for name, target in LINKS:
            add(archive, name, mtime_s=epoch_s, mode=0o777, kind=tarfile.SYMTYPE, target=target)
        for name, text in FILES.items():
            mode = 0o640 if name in PRIVATE_FILES else 0o644
            add(archive, name, mtime_s=epoch_s, mode=mode, data=text.encode())
    return buffer.getvalue()


def applets(busybox: Path, emulator: Path | None = None) -> list[str]:
    """Return the applets' paths (``bin/sh``, ``usr/bin/env``, …) as this busybox lists them."""
    listed = _list_full(busybox, emulator).split()
    known = tuple(f"{name}/" for name, _ in DIRECTORIES)
    return sorted({path for path in listed if path.startswith(known) and path != "bin/busybox"})


def _list_full(busybox: Path, emulator: Path | None) -> str:
    # A busybox out of an unpacked package may lack its execute bit, or lie on a noexec mount.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "busybox")
        copy.write_bytes(busybox.read_bytes())
        copy.chmod(0o755)
        argv = [copy, "--list-full"] if emulator is None else [emulator, copy, "--list-full"]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return done.stdout


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    sys.exit(main())
