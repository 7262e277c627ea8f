"""Who carries published ports to another computer, and knows which are taken there.

An agent on a laptop opens there what containers publish here. It follows ``questions``; before a
container is started for a client, every agent is asked whether it can have the container's ports,
and holds them until the start is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol

from deskd.errors import ResourceExhausted
from deskd.services.questions import Questions

PATIENCE_S = 3.0


class WaysToLaptops(Protocol):
    """The sockets on which the machine's sshd listens for agents that take connections to their
    computer; the last one is used."""

    def add(self, agent: str) -> None: ...
    def remove(self, agent: str) -> None:
        """Take back one ``add``."""


Port = dict[str, Any]
"""As in ``Ports`` of ``GET /containers/json``."""


class Publishers:
    """Asks the agents. One that is silent for ``patience_s`` counts as one that agrees."""

    def __init__(
        self, ways: WaysToLaptops | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._ways = ways
        self._patience_s = patience_s
        self._questions: Questions[str] = Questions("ports")

    async def ask(self, key: str, name: str, ports: Sequence[Port]) -> None:
        """Ask for the ports of the container ``name``; ``settle(key)`` must follow in any case.

        Raises ``ResourceExhausted`` with an agent's words where no agent can have them. One is
        enough: several laptops may share a machine, and only one of them is the client's.
        """
        if not ports or not self._questions.anybody:
            return
        body = {"Names": [f"/{name}"], "Ports": list(ports)}
        try:
            held, refusals = await self._questions.ask(
                key, body, patience_s=self._patience_s, suits=lambda refusal: not refusal
            )
        except TimeoutError:
            return
        if held is None and refusals:
            raise ResourceExhausted(
                f"driver failed programming external connectivity on endpoint {name}: {refusals[0]}"
            )

    def settle(self, key: str) -> None:
        """Tell the agents that the start which they were asked about is over; idempotent."""
        for question in self._questions.settle(key):
            question.follower.put_nowait({"Id": question.number, "Settled": True})

    def answer(self, number: int, refusal: str) -> None:
        """Take an agent's answer; an empty ``refusal`` means that it has the ports.

        Raises ``NotFound`` where nobody waits for it any more.
        """
        self._questions.answer(number, refusal)

    def questions(self, way: str = "") -> AsyncIterator[dict[str, Any]]:
        """Return the questions from now on, for one agent. Behind ``way``, a socket of the machine,
        it takes connections to its computer for as long."""
        questions = self._questions.follow()
        return self._with_way(questions, way) if way and self._ways is not None else questions

    async def _with_way(
        self, questions: AsyncGenerator[dict[str, Any], None], way: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        assert self._ways is not None
        self._ways.add(way)
        try:
            async with contextlib.aclosing(questions):
                async for question in questions:
                    yield question
        finally:
            self._ways.remove(way)
