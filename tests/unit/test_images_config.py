"""Image configurations: IDs, chain IDs, what is written and what is refused."""

from __future__ import annotations

import hashlib
import json

import pytest

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.container import ContainerConfig
from deskd.domain.image import History, ImageConfig, RootFs


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_chain_ids_follow_the_specification() -> None:
    first, second, third = digest("a"), digest("b"), digest("c")
    two = digest(f"{first} {second}")
    assert rules.chain_ids([first, second, third]) == [first, two, digest(f"{two} {third}")]
    assert rules.chain_ids([]) == []


def test_written_configuration_leaves_zero_values_out_and_reads_back() -> None:
    config = ImageConfig(
        architecture="arm64",
        os="linux",
        created="2025-01-01T00:00:00Z",
        config=ContainerConfig(cmd=["sh"], env=["A=1"]),
        rootfs=RootFs(diff_ids=[digest("a")]),
        history=[History(created_by="x", empty_layer=True)],
    )
    raw = rules.encode_config(config)
    document = json.loads(raw)
    assert document["config"] == {"Cmd": ["sh"], "Env": ["A=1"]}
    assert "author" not in document
    assert document["history"] == [{"created_by": "x", "empty_layer": True}]
    assert rules.parse_config(raw, "x") == config
    assert rules.image_id(raw) == "sha256:" + hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"rootfs": 1}', b"\xff", b'{"rootfs": {"type": "zip"}}']
)
def test_damaged_configuration_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(errors.InvalidArgument, match="image thing"):
        rules.parse_config(raw, "thing")


def test_short_id_is_what_people_read() -> None:
    assert rules.short_id("sha256:" + "ab" * 32) == "abababababab"
