"""Asking agents where laptop folders are: which paths, who decides, what a container gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deskd.domain.container import HostConfig, Mount
from deskd.domain.state import MountPoint
from deskd.errors import InvalidArgument, Unavailable
from deskd.services.containers import laptop_folders, mount_wishes
from deskd.services.folders import FolderAnswer, Folders

SRC = "/Users/me/src"
SHARED = FolderAnswer(places={SRC: "/mounts/me/src"})
MISSING = FolderAnswer(reasons={SRC: f"bind source path does not exist: {SRC}"})


def _find(
    *answers: FolderAnswer | None, sources: Sequence[str] = (SRC,), again: bool = False
) -> dict[str, str]:
    """Ask one agent for each answer; ``None`` stands for one that goes away without one."""

    async def reply(folders: Folders, questions: AsyncGenerator[Any, None], answer: Any) -> None:
        question = await anext(questions)
        assert (question["Names"], question["Folders"]) == (["/web"], list(sources))
        if answer is None:
            await questions.aclose()
        else:
            folders.answer(question["Id"], answer)

    async def run() -> dict[str, str]:
        folders = Folders(agent_s=0.01, answer_s=30)
        agents = [folders.questions() for _ in answers]
        replies = [reply(folders, *pair) for pair in zip(agents, answers, strict=True)]
        ask = folders.find_again if again else folders.find
        asked = asyncio.ensure_future(ask("web", sources))
        await asyncio.gather(asked, *replies)
        return asked.result()

    return asyncio.run(run())


def test_without_an_agent_paths_are_the_machines_own() -> None:
    assert _find() == {}


def test_an_agent_that_is_just_connecting_is_waited_for_once() -> None:
    async def run() -> None:
        folders = Folders(expected=True, agent_s=0.01)
        assert await folders.find("web", [SRC]) == {}
        folders = Folders(expected=True, agent_s=60)
        asked = asyncio.ensure_future(folders.find("web", [SRC]))
        await asyncio.sleep(0)
        question = await anext(folders.questions())
        folders.answer(question["Id"], SHARED)
        assert await asked == SHARED.places

    asyncio.run(run())


def test_the_laptop_that_has_the_folder_is_the_one() -> None:
    assert _find(SHARED) == SHARED.places
    assert _find(MISSING, SHARED) == SHARED.places
    assert _find(None, SHARED) == SHARED.places
    assert _find(FolderAnswer(refusal="sshfs is not installed"), SHARED) == SHARED.places


def test_a_missing_folder_is_an_error_unless_the_machine_has_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"does not exist: {SRC}"):
        _find(MISSING)
    own = str(tmp_path)
    assert _find(FolderAnswer(reasons={own: "not shared"}), sources=[own]) == {}


def test_an_agent_that_cannot_mount_or_goes_away() -> None:
    with pytest.raises(Unavailable, match="sshfs is not installed"):
        _find(FolderAnswer(refusal="sshfs is not installed"))
    with pytest.raises(Unavailable, match="went away"):
        _find(None)


def test_a_container_that_has_a_laptops_folder_needs_the_laptop() -> None:
    assert _find(SHARED, again=True) == SHARED.places
    with pytest.raises(Unavailable, match=f"{SRC} is on a computer that is not connected"):
        _find(again=True)
    with pytest.raises(InvalidArgument, match=f"does not exist: {SRC}"):
        _find(MISSING, again=True)
    with pytest.raises(InvalidArgument, match="no longer shared"):
        _find(FolderAnswer(), again=True)


def test_which_paths_may_be_a_laptops() -> None:
    host = HostConfig(
        binds=[
            "/Users/me/src/:/a:ro", r"C:\src:/b", "volume:/c", "/var/run/docker.sock:/d",
            "/proc:/e", "/lib/modules:/f:ro", "/procession:/g", "/anonymous",
        ],
        mounts=[
            Mount(type="bind", source="/Users/you/../me/src", target="/h"),
            Mount(type="bind", source="D:/data", target="/i"),
            Mount(type="volume", source="/x", target="/j"),
        ],
    )  # fmt: skip
    assert laptop_folders.sources(host) == [SRC, r"C:\src", "/procession", "D:/data"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/src:/dst:ro", ["/src", "/dst", "ro"]),
        (r"C:\src:/dst:ro", [r"C:\src", "/dst", "ro"]),
        ("c:/src:/dst", ["c:/src", "/dst"]),
        ("c:/dst", ["c:/dst"]),
        ("/dst", ["/dst"]),
    ],
)
def test_binds_with_drives(text: str, parts: list[str]) -> None:
    assert laptop_folders.split_bind(text) == parts


def test_mount_points_remember_whose_folder_they_show() -> None:
    windows = mount_wishes.parse_bind(r"C:\src:/a")
    mounted = mount_wishes.parse_mount(Mount(type="bind", source=SRC, target="/b"), {SRC})
    own = mount_wishes.parse_bind("/srv:/c")
    places = {r"C:\src": "/c/src", SRC: "/mounts/me/src"}
    points = laptop_folders.placed([windows, mounted, own], places)
    assert [(point.source, point.folder) for point in points] == [
        ("/c/src", r"C:\src"), ("/mounts/me/src", SRC), ("/srv", ""),
    ]  # fmt: skip
    assert [point.create_source for point in points] == [False, False, True]
    assert laptop_folders.wanted(points) == [r"C:\src", SRC]
    moved = laptop_folders.placed(points, {SRC: "/elsewhere", r"C:\src": "/c/src"})
    assert [point.source for point in moved] == ["/c/src", "/elsewhere", "/srv"]
    assert msgspec.json.decode(msgspec.json.encode(points), type=list[MountPoint]) == points
