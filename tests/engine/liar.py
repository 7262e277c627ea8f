"""An HTTP server that answers what a test says, as a registry that lies would."""

from __future__ import annotations

from collections.abc import Callable

from tests.http_service import HttpService, QuietHandler

Reply = tuple[int, dict[str, str], bytes]


class _Liar(QuietHandler):
    """Answers what the test says; ``seen`` keeps the requests with their credentials."""

    reply: Callable[[str], Reply]
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        type(self).seen.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/v2/":
            self.answer(*(type(self).reply("ping") or (200, {}, b"{}")))
        else:
            self.answer(*type(self).reply(self.path))


class Server(HttpService):
    """``reply`` gets each request's path, "ping" for the first question, and says what is answered
    (to a ping, None is the usual)."""

    def __init__(self, reply: Callable[[str], Reply | None]) -> None:
        self.seen: list[tuple[str, str]] = []
        super().__init__(_Liar, reply=staticmethod(reply), seen=self.seen)
