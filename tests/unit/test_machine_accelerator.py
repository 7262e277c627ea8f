"""Choosing an accelerator by trial, with small programs in QEMU's place."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from desk.errors import DriverError
from desk.machine import accelerator
from desk.machine.accelerator import Accelerators, qemu_version
from desk.machine.images import GuestImage, ImageFile, Manifest
from desk.machine.qemu_command import HostFacts
from desk.paths import Home

IMAGE = GuestImage(
    Path("/image"),
    Manifest(
        "0.1.0",
        "amd64",
        ImageFile("k", "1" * 64),
        ImageFile("i", "2" * 64),
        ImageFile("r", "3" * 64),
        "quiet",
    ),
)

BOOTS = """#!/bin/sh
echo "$@" >>"$0.calls"
for word; do case $word in
  file,id=console,path=*) console=${word#file,id=console,path=} ;;
  hvf) exit_code=%d; text='%s'; pause=%s ;;
  tcg,*) exit_code=0; text=DESK-PROBE-OK; pause=0 ;;
esac; done
echo "$text" >"$console"
sleep $pause
[ $exit_code = 0 ] || echo 'no such device' >&2
exit $exit_code
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def mac(binary: Path) -> HostFacts:
    return HostFacts("darwin", "amd64", str(binary), (9, 0, 0))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def calls(binary: Path) -> list[str]:
    file = Path(f"{binary}.calls")
    return file.read_text().splitlines() if file.exists() else []


def test_accelerator_that_boots_is_chosen_and_remembered(home: Home, tmp_path: Path) -> None:
    binary = script(tmp_path / "qemu", BOOTS % (0, "DESK-PROBE-OK", 0))
    for _ in range(2):
        assert Accelerators(home).choose(mac(binary), IMAGE, print).accelerator == "hvf"
    assert len(calls(binary)) == 1
    assert "-append quiet desk.probe" in calls(binary)[0]
    assert home.accelerators.stat().st_mode & 0o777 == 0o600


def test_refusing_accelerator_is_passed_over_with_its_reason(home: Home, tmp_path: Path) -> None:
    binary = script(tmp_path / "qemu", BOOTS % (1, "", 0))
    trials = Accelerators(home)
    assert trials.choose(mac(binary), IMAGE, print).accelerator == "tcg"
    (verdict,) = trials.known(mac(binary), IMAGE)
    assert not verdict.works
    assert "no such device" in verdict.reason


def test_hanging_accelerator_is_ended_in_time(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "_DEFAULT_PROBE_S", 0.3)
    binary = script(tmp_path / "qemu", BOOTS % (0, "SeaBIOS", 30))
    assert Accelerators(home).choose(mac(binary), IMAGE, print).accelerator == "tcg"
    (verdict,) = Accelerators(home).known(mac(binary), IMAGE)
    assert "did not boot within 0.3 s; its console ended with: SeaBIOS" in verdict.reason
    assert [e.name for e in tmp_path.iterdir() if e.name.startswith(".probe")] == []


def test_changed_qemu_image_or_kernel_means_a_new_trial(home: Home, tmp_path: Path) -> None:
    binary = script(tmp_path / "qemu", BOOTS % (0, "DESK-PROBE-OK", 0))
    trials = Accelerators(home)
    trials.choose(mac(binary), IMAGE, print)
    trials.choose(HostFacts("darwin", "amd64", str(binary), (10, 0, 0)), IMAGE, print)
    assert len(calls(binary)) == 2
    document = json.loads(home.accelerators.read_text())
    home.accelerators.write_text(json.dumps({**document, "key": "other"}))
    assert trials.known(mac(binary), IMAGE) == []
    home.accelerators.write_text("damaged")
    assert trials.known(mac(binary), IMAGE) == []


def test_doctor_tries_everything_anew(home: Home, tmp_path: Path) -> None:
    binary = script(tmp_path / "qemu", BOOTS % (0, "DESK-PROBE-OK", 0))
    trials = Accelerators(home)
    trials.choose(mac(binary), IMAGE, print)
    verdicts = trials.probe_all(mac(binary), IMAGE, print)
    assert [(v.accelerator, v.works) for v in verdicts] == [("hvf", True), ("tcg", True)]
    assert len(calls(binary)) == 3


def test_missing_or_closed_kvm_is_not_even_tried() -> None:
    reason = accelerator._obstacle("kvm")
    kvm = Path("/dev/kvm")
    assert bool(reason) == (not kvm.exists() or not os.access(kvm, os.R_OK | os.W_OK))
    assert accelerator._obstacle("hvf") == ""


def test_version_of_qemu(tmp_path: Path) -> None:
    good = script(tmp_path / "good", "#!/bin/sh\necho 'QEMU emulator version 7.2.22 (Debian 1)'\n")
    assert qemu_version(str(good)) == (7, 2, 22)
    odd = script(tmp_path / "odd", "#!/bin/sh\necho hello\n")
    with pytest.raises(DriverError, match="does not tell its version"):
        qemu_version(str(odd))
    with pytest.raises(DriverError, match="does not run"):
        qemu_version(str(tmp_path / "missing"))
