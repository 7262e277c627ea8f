"""Asking agents: the desktop's processes that follow a stream of questions and post answers.

The engine asks what only a laptop knows: whether it has ports free, where its folders are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from itertools import count
from typing import Any, Generic, TypeVar

from deskd.errors import NotFound
from deskd.record import Record

Answer = TypeVar("Answer")
Follower = asyncio.Queue[dict[str, Any]]


class Question(Record):
    """One question to one agent. ``answer`` is ``None`` where the agent went away."""

    number: int
    follower: Follower
    answer: asyncio.Future[Any]


class Questions(Generic[Answer]):
    """The agents that follow now, and what they are being asked about ``subject``."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._followers: set[Follower] = set()
        self._numbers = count(1)
        self._open: dict[str, list[Question]] = {}
        self._came = asyncio.Event()

    @property
    def anybody(self) -> bool:
        """Whether an agent follows now."""
        return bool(self._followers)

    async def wait_for_anybody(self, patience_s: float) -> bool:
        """Wait until an agent follows; return whether one does."""
        try:
            async with asyncio.timeout(patience_s):
                await self._came.wait()
        except TimeoutError:
            return False
        return True

    async def ask(
        self,
        key: str,
        body: Mapping[str, Any],
        *,
        patience_s: float,
        suits: Callable[[Answer], bool],
    ) -> tuple[Answer | None, list[Answer]]:
        """Ask every agent; ``settle(key)`` must follow in any case.

        Return the first answer that ``suits``, and those before it that did not. An agent that goes
        away counts as one that was never asked. Raises ``TimeoutError``.
        """
        loop = asyncio.get_running_loop()
        questions = self._open[key] = [
            Question(next(self._numbers), follower, loop.create_future())
            for follower in self._followers
        ]
        for question in questions:
            question.follower.put_nowait({"Id": question.number, **body})
        unsuited: list[Answer] = []
        async with asyncio.timeout(patience_s):
            for coming in asyncio.as_completed([question.answer for question in questions]):
                answer: Answer | None = await coming
                if answer is None:
                    continue
                if suits(answer):
                    return answer, unsuited
                unsuited.append(answer)
        return None, unsuited

    def settle(self, key: str) -> list[Question]:
        """Wait for no more answers about ``key``; return the questions, once."""
        questions = self._open.pop(key, [])
        for question in questions:
            question.answer.cancel()
        return [question for question in questions if question.follower in self._followers]

    def answer(self, number: int, answer: Answer) -> None:
        """Take an agent's answer. Raises ``NotFound`` where nobody waits for it any more."""
        for questions in self._open.values():
            for question in questions:
                if question.number == number and not question.answer.done():
                    question.answer.set_result(answer)
                    return
        raise NotFound(f"no question {number} about {self._subject} is open: its start is over")

    def follow(self) -> AsyncGenerator[dict[str, Any], None]:
        """Return the questions from now on, for one agent."""
        follower: Follower = asyncio.Queue()
        self._followers.add(follower)
        self._came.set()
        return self._deliver(follower)

    async def _deliver(self, follower: Follower) -> AsyncGenerator[dict[str, Any], None]:
        try:
            while True:
                yield await follower.get()
        finally:
            self._followers.discard(follower)
            if not self._followers:
                self._came.clear()
            for questions in self._open.values():
                for question in questions:
                    if question.follower is follower and not question.answer.done():
                        question.answer.set_result(None)
