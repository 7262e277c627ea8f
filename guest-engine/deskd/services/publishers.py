"""Who carries published ports to another computer, and knows which are taken there.

An agent on a laptop opens there what containers publish here. It follows ``questions``; before a
container is started for a client, every agent is asked whether it can have the container's ports,
and holds them until the start is over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from deskd.errors import ResourceExhausted
from deskd.services.questions import Questions

PATIENCE_S = 3.0

Port = dict[str, Any]
"""As in ``Ports`` of ``GET /containers/json``."""


class Publishers:
    """Asks the agents. One that is silent for ``patience_s`` counts as one that agrees."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
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

    def questions(self) -> AsyncIterator[dict[str, Any]]:
        """Return the questions from now on, for one agent."""
        return self._questions.follow()
