"""Which accelerator a QEMU machine gets: the first that was seen to boot a guest here.

A device such as /dev/kvm can exist and hang every guest, so each candidate boots the guest's own
kernel and initramfs with ``desk.probe`` on the kernel command line; the initramfs then prints a
marker and powers off. Verdicts are remembered until QEMU, the host's kernel or the image changes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from desk.errors import DriverError
from desk.machine.driver import Progress
from desk.machine.images import GuestImage
from desk.machine.process import last_lines, write_whole
from desk.machine.qemu_command import BootFiles, HostFacts, boot_command, candidate_accelerators
from desk.paths import Home

MARKER = "DESK-PROBE-OK"
ARGUMENT = "desk.probe"
FORMAT = 1

_PROBE_S = {"tcg": 30.0}
"""Seconds a trial boot may take; an accelerator worth having needs far less than the default."""
_DEFAULT_PROBE_S = 6.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial of one accelerator showed; ``reason`` is a sentence for ``desk doctor``."""

    accelerator: str
    works: bool
    reason: str


def qemu_version(binary: str) -> tuple[int, int, int]:
    """Ask QEMU for its version; raises ``DriverError`` where the program does not run."""
    try:
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DriverError(
            f"{binary} does not run: {error}", hint="Install QEMU again from your package manager."
        ) from error
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", answer.stdout)
    if found is None:
        raise DriverError(f"{binary} does not tell its version: {answer.stdout.strip()[:80]}")
    return int(found[1]), int(found[2]), int(found[3])


class Accelerators:
    """Trials and their remembered verdicts."""

    def __init__(self, home: Home) -> None:
        self._file = home.accelerators
        self._directory = home.directory

    def choose(self, host: HostFacts, image: GuestImage, progress: Progress) -> Verdict:
        """Return the best accelerator that works; TCG, which needs nothing, ends the search."""
        verdicts = self._remembered(host, image)
        for name in candidate_accelerators(host, image.manifest.arch):
            if name == "tcg":
                return verdicts.get(name, Verdict(name, True, "software emulation"))
            if name not in verdicts:
                progress(f"Trying the accelerator {name}")
                verdicts[name] = self._try(host, image, name)
                self._remember(host, image, verdicts)
            if verdicts[name].works:
                return verdicts[name]
        raise AssertionError("candidate_accelerators ends with tcg")

    def probe_all(self, host: HostFacts, image: GuestImage, progress: Progress) -> list[Verdict]:
        """Try every candidate anew, TCG too, and remember the verdicts."""
        verdicts = {}
        for name in candidate_accelerators(host, image.manifest.arch):
            progress(f"Trying the accelerator {name}")
            verdicts[name] = self._try(host, image, name)
        self._remember(host, image, verdicts)
        return list(verdicts.values())

    def known(self, host: HostFacts, image: GuestImage) -> list[Verdict]:
        """Return the remembered verdicts, without any trial."""
        return list(self._remembered(host, image).values())

    def _try(self, host: HostFacts, image: GuestImage, name: str) -> Verdict:
        obstacle = _obstacle(name)
        if obstacle:
            return Verdict(name, False, obstacle)
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=self._directory) as directory:
            return _trial_boot(host, image, name, Path(directory))

    def _key(self, host: HostFacts, image: GuestImage) -> str:
        version = ".".join(map(str, host.qemu_version))
        return f"{version} {platform.release()} {image.manifest.digest[:16]}"

    def _remembered(self, host: HostFacts, image: GuestImage) -> dict[str, Verdict]:
        try:
            document = json.loads(self._file.read_text("utf-8"))
            if document["format"] != FORMAT or document["key"] != self._key(host, image):
                return {}
            return {entry["accelerator"]: Verdict(**entry) for entry in document["verdicts"]}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # only a cache: a damaged one is made anew by the next trial

    def _remember(self, host: HostFacts, image: GuestImage, verdicts: dict[str, Verdict]) -> None:
        document = {
            "format": FORMAT,
            "key": self._key(host, image),
            "verdicts": [asdict(verdict) for verdict in verdicts.values()],
        }
        write_whole(self._file, json.dumps(document, indent=2) + "\n")


def _obstacle(accelerator: str) -> str:
    """Return why the accelerator cannot even be tried; empty where it can."""
    if accelerator != "kvm":
        return ""
    device = Path("/dev/kvm")
    if not device.exists():
        return f"{device} does not exist: the processor or the firmware offers no virtualisation"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened: add your user to the group kvm and log in again"
    return ""


def _trial_boot(host: HostFacts, image: GuestImage, name: str, directory: Path) -> Verdict:
    console = directory / "console.log"
    files = BootFiles(image.kernel, image.initramfs, console)
    argv = boot_command(
        host,
        image.manifest.arch,
        name,
        files,
        cmdline=f"{image.manifest.cmdline} {ARGUMENT}",
        memory_mib=256,
        cpus=1,
    )
    limit_s = _PROBE_S.get(name, _DEFAULT_PROBE_S)
    return _judge(name, argv, console, limit_s)


def _judge(name: str, argv: Sequence[str], console: Path, limit_s: float) -> Verdict:
    try:
        # A session of its own: Ctrl-C is handled here, and must end QEMU by our hand.
        done = subprocess.run(
            [*argv, "-no-reboot"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
            start_new_session=os.name == "posix",
        )
    except subprocess.TimeoutExpired:
        words = "; ".join(last_lines(console))
        seen = f"; its console ended with: {words}" if words else "; its console stayed empty"
        return Verdict(name, False, f"a trial guest did not boot within {limit_s:g} s{seen}")
    except OSError as error:
        raise DriverError(
            f"{argv[0]} does not run: {error}", hint="Install QEMU again from your package manager."
        ) from error
    if console.exists() and MARKER in console.read_text("utf-8", "replace"):
        return Verdict(name, True, "a trial guest booted")
    words = "; ".join([*done.stderr.strip().splitlines()[-1:], *last_lines(console)])
    return Verdict(name, False, f"a trial guest did not boot: {words or 'no output'}")
