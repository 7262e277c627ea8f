"""Who carries published ports to another computer, and knows which are taken there.

An agent on a laptop opens there what containers publish here. It follows ``questions``; before a
container is started for a client, every agent is asked whether it can have the container's ports,
and holds them until the start is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

from deskd.errors import NotFound, ResourceExhausted
from deskd.record import Record

PATIENCE_S = 3.0

Port = dict[str, Any]
"""As in ``Ports`` of ``GET /containers/json``."""


class _Question(Record):
    number: int
    follower: asyncio.Queue[dict[str, Any]]
    answer: asyncio.Future[str]


class Publishers:
    """Asks the agents. One that is silent for ``patience_s`` counts as one that agrees."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._numbers = count(1)
        self._asked: dict[str, list[_Question]] = {}

    async def ask(self, key: str, name: str, ports: Sequence[Port]) -> None:
        """Ask for the ports of the container ``name``; ``settle(key)`` must follow in any case.

        Raises ``ResourceExhausted`` with an agent's words where no agent can have them. One is
        enough: several laptops may share a machine, and only one of them is the client's.
        """
        if not ports or not self._followers:
            return
        loop = asyncio.get_running_loop()
        questions = self._asked[key] = [
            _Question(next(self._numbers), follower, loop.create_future())
            for follower in self._followers
        ]
        for question in questions:
            question.follower.put_nowait(
                {"Id": question.number, "Names": [f"/{name}"], "Ports": list(ports)}
            )
        refusals: list[str] = []
        try:
            async with asyncio.timeout(self._patience_s):
                for answer in asyncio.as_completed([question.answer for question in questions]):
                    refusal = await answer
                    if not refusal:
                        return
                    refusals.append(refusal)
        except TimeoutError:
            return
        raise ResourceExhausted(
            f"driver failed programming external connectivity on endpoint {name}: {refusals[0]}"
        )

    def settle(self, key: str) -> None:
        """Tell the agents that the start which they were asked about is over; idempotent."""
        for question in self._asked.pop(key, ()):
            question.answer.cancel()
            if question.follower in self._followers:
                question.follower.put_nowait({"Id": question.number, "Settled": True})

    def answer(self, number: int, refusal: str) -> None:
        """Take an agent's answer; an empty ``refusal`` means that it has the ports.

        Raises ``NotFound`` where nobody waits for it any more.
        """
        for questions in self._asked.values():
            for question in questions:
                if question.number == number and not question.answer.done():
                    question.answer.set_result(refusal)
                    return
        raise NotFound(f"no question {number} about ports is open: its start is over")

    def questions(self) -> AsyncIterator[dict[str, Any]]:
        """Return the questions from now on, for one agent."""
        follower: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._followers.add(follower)
        return self._deliver(follower)

    async def _deliver(
        self, follower: asyncio.Queue[dict[str, Any]]
    ) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                yield await follower.get()
        finally:
            self._followers.discard(follower)
            for questions in self._asked.values():
                for question in questions:
                    if question.follower is follower and not question.answer.done():
                        question.answer.set_result("")  # it went away: as if nobody had been asked
