"""The guest image that the tests boot: built once, kept up to date by its own build."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGE = REPOSITORY / "build" / "guest"
_BOX = REPOSITORY / "build" / "desk-libvirt.box"


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """Return the directory of an up-to-date guest image for this computer."""
    return built(IMAGE)


@pytest.fixture(scope="session")
def libvirt_box() -> Path:
    """Return an up-to-date Vagrant box for the provider libvirt."""
    built(IMAGE, "--box", "libvirt")
    return _BOX


def built(image: Path, *flags: str) -> Path:
    """Build an image where it is not up to date, and return its directory."""
    done = subprocess.run(
        [str(REPOSITORY / "vm-images" / "build"), "--output", str(image), *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return image
