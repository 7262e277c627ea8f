"""``packaging/up`` refuses what it cannot do before it touches anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "words", "remedy"),
    [
        (["--image", "/no/such/image"], "the image /no/such/image does not exist", "manifest.json"),
        (["--image"], "--image needs a value", "--help"),
        (["--image", "https://127.0.0.1/x.tar"], "comes without its checksum", "--sha256"),
        (["--sha256", "ab"], "--sha256 belongs to --image", "--help"),
        (["--image", ".", "--sha256", "xyz"], "xyz is no SHA-256", "64"),
        (["--image", ".", "--sha256", "abc"], "abc is no SHA-256", "64"),
        (["--imgae"], "unknown argument --imgae", "--help"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_a_remedy(
    arguments: list[str], words: str, remedy: str
) -> None:
    done = subprocess.run(
        [REPOSITORY / "packaging" / "up", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert words in lines[0]
    assert remedy in lines[1]
    assert done.stdout == ""


def test_help_names_every_option() -> None:
    done = subprocess.run(
        [REPOSITORY / "packaging" / "up", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--image", "--sha256", "--no-app"):
        assert option in done.stdout
