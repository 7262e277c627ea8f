"""Asking agents for ports before a container starts: who decides, and who is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deskd.errors import NotFound, ResourceExhausted
from deskd.services.publishers import Publishers

PORTS = [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]
TAKEN = "Bind for 127.0.0.1:8080 failed: port is already allocated"


async def _answer(publishers: Publishers, questions: AsyncIterator[Any], refusal: str) -> None:
    question = await anext(questions)
    assert (question["Names"], question["Ports"]) == (["/web"], PORTS)
    publishers.answer(question["Id"], refusal)


def _ask(*refusals: str | None, patience_s: float = 30.0) -> None:
    """Ask one agent for each of ``refusals``; ``None`` stands for one that never answers."""

    async def run() -> None:
        publishers = Publishers(patience_s=patience_s)
        agents = [publishers.questions() for _ in refusals]
        answers = [
            _answer(publishers, agent, refusal)
            for agent, refusal in zip(agents, refusals, strict=True)
            if refusal is not None
        ]
        try:
            await asyncio.gather(publishers.ask("key", "web", PORTS), *answers)
        finally:
            publishers.settle("key")

    asyncio.run(run())


def test_nobody_to_ask() -> None:
    _ask()


def test_an_agent_that_has_the_port() -> None:
    _ask("")


def test_an_agent_that_refuses_fails_the_start_in_its_words() -> None:
    with pytest.raises(ResourceExhausted, match=f"on endpoint web: {TAKEN}"):
        _ask(TAKEN)


def test_one_of_two_agents_is_enough() -> None:
    _ask(TAKEN, "")
    with pytest.raises(ResourceExhausted):
        _ask(TAKEN, TAKEN)


def test_a_silent_agent_delays_the_start_but_does_not_prevent_it() -> None:
    _ask(None, patience_s=0.05)
    _ask(TAKEN, None, patience_s=0.05)


def test_an_agent_that_goes_away_is_not_waited_for() -> None:
    async def run() -> None:
        publishers = Publishers(patience_s=30.0)
        leaving = publishers.questions()

        async def leave() -> None:
            await anext(leaving)
            await leaving.aclose()  # type: ignore[attr-defined]  # an async generator

        await asyncio.gather(publishers.ask("key", "web", PORTS), leave())
        publishers.settle("key")
        await publishers.ask("key", "web", PORTS)  # nobody is left

    asyncio.run(run())


def test_agents_learn_that_a_start_is_over_and_late_answers_are_refused() -> None:
    async def run() -> None:
        publishers = Publishers(patience_s=0.05)
        agent = publishers.questions()
        await publishers.ask("key", "web", PORTS)
        question = await anext(agent)
        publishers.settle("key")
        publishers.settle("key")
        assert await anext(agent) == {"Id": question["Id"], "Settled": True}
        with pytest.raises(NotFound):
            publishers.answer(question["Id"], "")
        await publishers.ask("other", "idle", [])
        await publishers.ask("web", "web", PORTS)
        assert (await anext(agent))["Names"] == ["/web"]

    asyncio.run(run())
