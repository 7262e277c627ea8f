"""Vagrant boxes."""
from pathlib import Path
PROVIDERS = ("libvirt",)
def make(provider: str, image: Path, output: Path) -> None:
    raise NotImplementedError
