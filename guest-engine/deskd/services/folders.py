"""Folders of laptops: where in this machine they are, which the agent on the laptop knows.

A path in ``-v`` means the laptop's folder where an agent follows ``questions``. It is asked when a
container is created and again at each start, and has the folder mounted before it answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from typing import Any

from deskd.errors import InvalidArgument, Unavailable
from deskd.record import Record, field
from deskd.services.questions import Questions

ANSWER_S = 60.0
AGENT_S = 10.0
LOOK_S = 5.0
AGENT_AFTER_BOOT_S = 90.0


class FolderAnswer(Record):
    """What an agent says: ``places`` of what it shares, by the asked path; ``reasons`` why others
    are not to be had from it; ``refusal`` where the container must not start at all."""

    places: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    refusal: str = ""


class Folders:
    """Asks the agents. With none of them, paths are this machine's own.

    One that is ``expected`` (or was here) is waited for once, because it may just be connecting.
    """

    def __init__(
        self, *, expected: bool = False, agent_s: float = AGENT_S, answer_s: float = ANSWER_S
    ) -> None:
        self._expected = expected
        self._agent_s = agent_s
        self._answer_s = answer_s
        self._questions: Questions[FolderAnswer] = Questions("folders")
        self._keys = count(1)

    async def find(self, name: str, sources: Sequence[str]) -> dict[str, str]:
        """Return the places of those ``sources`` that are a laptop's, for a new container.

        Raises ``InvalidArgument`` where neither the laptop nor this machine has one, and
        ``Unavailable`` where the agent does not answer.
        """
        if not sources or not await self._somebody():
            return {}
        answer = await self._ask(name, sources)
        for source in sources:
            reason = answer.reasons.get(source)
            if reason and not await self._is_here(source):
                raise InvalidArgument(reason)
        return answer.places

    async def find_again(self, name: str, sources: Sequence[str]) -> dict[str, str]:
        """Return the places of ``sources``, which were a laptop's when the container was created.

        Raises what ``find`` raises, and ``Unavailable`` where no agent comes.
        """
        if not sources:
            return {}
        if not await self._questions.wait_for_anybody(self._agent_s):
            raise Unavailable(
                f"the folder {sources[0]} is on a computer that is not connected: start its agent "
                "with any desk command there, then start the container"
            )
        answer = await self._ask(name, sources)
        for source in sources:
            if source not in answer.places:
                raise InvalidArgument(
                    answer.reasons.get(source) or f"the folder {source} is no longer shared"
                )
        return answer.places

    async def _somebody(self) -> bool:
        if self._expected:
            self._expected = await self._questions.wait_for_anybody(self._agent_s)
        return self._questions.anybody

    async def _is_here(self, source: str) -> bool:
        """Tell whether the path is one of this machine itself; it may be in a folder that hangs."""
        if not source.startswith("/"):
            return False
        try:
            async with asyncio.timeout(LOOK_S):
                return await asyncio.to_thread(os.path.lexists, source)
        except TimeoutError:
            return False

    async def wait_for_agent(self) -> None:
        """Wait for an agent as long as one may take that connects after this machine's boot."""
        await self._questions.wait_for_anybody(AGENT_AFTER_BOOT_S)

    async def _ask(self, name: str, sources: Sequence[str]) -> FolderAnswer:
        key = str(next(self._keys))
        body = {"Names": [f"/{name}"], "Folders": list(dict.fromkeys(sources))}
        try:
            found, others = await self._questions.ask(
                key,
                body,
                patience_s=self._answer_s,
                suits=lambda answer: answer.places.keys() >= set(sources),
            )
        except TimeoutError:
            raise Unavailable(
                f"the computer that has the folder {sources[0]} does not answer: `desk machine "
                "status` there says how its agent is"
            ) from None
        finally:
            self._questions.settle(key)
        if found is not None:
            return found
        # Several laptops may share this machine; the one that has most of the folders is asking.
        if willing := [answer for answer in others if not answer.refusal]:
            return max(willing, key=lambda answer: len(answer.places))
        if others:
            raise Unavailable(others[0].refusal)
        raise Unavailable(f"the computer that has the folder {sources[0]} went away: try again")

    def answer(self, number: int, answer: FolderAnswer) -> None:
        """Take an agent's answer. Raises ``NotFound`` where nobody waits for it any more."""
        self._questions.answer(number, answer)

    def questions(self) -> AsyncGenerator[dict[str, Any], None]:
        """Return the questions from now on, for one agent."""
        self._expected = True
        return self._questions.follow()
