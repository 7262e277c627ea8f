"""Fetches Debian packages with mmdebstrap and unpacks them, without running anything of theirs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guestbuild import recipe
from guestbuild.errors import BuildError
from guestbuild.progress import run

_DEB = re.compile(r"(?P<name>[^_]+)_(?P<version>[^_]+)_[a-z0-9]+\.deb\Z")


@dataclass(frozen=True, slots=True)
class Base:
    """Unpacked packages: the tree, and which package (name, version) each path came from."""

    tree: Path
    versions: dict[str, str]
    owners: dict[str, str]


def fetch(arch: recipe.Architecture, directory: Path, mirror: str) -> None:
    """Make ``directory`` with ``tree/`` and ``packages.json``.

    mmdebstrap's variant ``extract`` resolves dependencies, verifies signatures and unpacks; no
    maintainer script runs, so neither root nor a chroot is needed.
    """
    names = ",".join((arch.kernel_package, *recipe.PACKAGES))
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".packages-") as scratch:
        debs, archive = Path(scratch, "debs"), Path(scratch, "base.tar")
        debs.mkdir()
        run(
            [
                "mmdebstrap", "--variant=extract", f"--mode={_mode()}",
                f"--architectures={arch.debian}", f"--include={names}",
                "--aptopt=APT::Install-Recommends \"false\"",
                f"--extract-hook=copy-out /var/cache/apt/archives {shlex.quote(str(debs))}",
                recipe.SUITE, str(archive), mirror,
            ],
            what=f"fetching Debian packages from {mirror}",
            env={**os.environ, "SOURCE_DATE_EPOCH": str(recipe.EPOCH_S)},
        )  # fmt: skip
        versions, owners = _read_packages(debs)
        tree = Path(scratch, "tree")
        tree.mkdir()
        run(
            ["tar", "-xf", archive, "-C", tree, "--exclude=./dev", "--no-same-owner"],
            what="unpacking the packages",
        )
        made = Path(scratch, "made")
        made.mkdir()
        tree.replace(made / "tree")
        facts = {"versions": versions, "owners": owners}
        (made / "packages.json").write_text(json.dumps(facts, sort_keys=True), "utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        made.replace(directory)


def load(directory: Path) -> Base:
    """Return what ``fetch`` made."""
    facts = json.loads((directory / "packages.json").read_text("utf-8"))
    return Base(directory / "tree", facts["versions"], facts["owners"])


def _mode() -> str:
    if os.geteuid() == 0:
        return "root"
    probe = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        raise BuildError(
            "this user may not make user namespaces, which unpacking packages needs: "
            "run vm-images/build as root (sudo vm-images/build)"
        )
    return "unshare"


def _read_packages(debs: Path) -> tuple[dict[str, str], dict[str, str]]:
    versions: dict[str, str] = {}
    owners: dict[str, str] = {}
    for deb in sorted(debs.rglob("*.deb")):
        found = _DEB.match(deb.name)
        if found is None:
            continue
        name = found["name"]
        versions[name] = found["version"].replace("%3a", ":")
        listing = run(["dpkg-deb", "--fsys-tarfile", deb], what=f"reading {deb.name}")
        with tempfile.TemporaryFile() as stream:
            stream.write(listing)
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    if not member.isdir():
                        owners[_merged(member.name.removeprefix("./"))] = name
    if not versions:
        raise BuildError("mmdebstrap left no packages: its version is older than 1.0, update it")
    return versions, owners


def _merged(path: str) -> str:
    """Return the path as it is with the merged /usr."""
    return f"usr/{path}" if path.partition("/")[0] in {"bin", "sbin", "lib", "lib64"} else path
