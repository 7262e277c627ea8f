"""The Engine API client against a socket server that answers as the API's description says."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from desk.engine.client import EngineClient
from desk.engine.connection import encode_query, segment
from desk.engine.streams import Frame, decode_objects, demultiplex
from desk.engine.transport import TcpTransport, UnixTransport, transport_for
from desk.errors import EngineError, EngineUnreachable, UsageError


@dataclass
class Request:
    """One request as it came, with the connection for answers that take it over."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: socket.socket
    reader: io.BufferedReader


def reply(body: bytes = b"", *, status: str = "200 OK", headers: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nApi-Version: 1.47\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body


def json_reply(value: object, *, status: str = "200 OK") -> bytes:
    return reply(json.dumps(value).encode(), status=status)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Handler = Callable[[Request], bytes | None]


PONG = b"HTTP/1.1 200 OK\r\nApi-Version: 1.47\r\n\r\n"


@dataclass
class Server:
    """Accepts on a Unix socket; every request goes to ``handler``, whose bytes are the answer.
    ``None`` closes the connection."""

    path: Path
    handler: Handler = lambda request: reply()
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    pong: bytes = PONG

    def __post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._thread(self._accept)

    def _thread(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._thread(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            try:
                while (request := self._read(connection, reader)) is not None:
                    self.requests.append(request)
                    if " /_ping " in request.line and request.line.startswith("HEAD"):
                        answer: bytes | None = self.pong
                    else:
                        answer = self.handler(request)
                    if answer is None:
                        return
                    connection.sendall(answer)
            except (OSError, ValueError):  # the client went away, perhaps in mid-body
                return

    @staticmethod
    def _read(connection: socket.socket, reader: io.BufferedReader) -> Request | None:
        line = reader.readline().decode().strip()
        if not line:
            return None
        headers: dict[str, str] = {}
        while text := reader.readline().decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(reader.readline(), 16):
                body += reader.read(size)
                reader.readline()
            reader.readline()
        else:
            body = reader.read(int(headers.get("content-length", 0)))
        return Request(line, headers, body, connection, reader)

    def close(self) -> None:
        for connection in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "engine.sock")
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[EngineClient]:
    with EngineClient(UnixTransport(server.path), timeout_s=60) as client:
        yield client


def test_the_first_answer_tells_the_version_and_connections_are_reused(
    server: Server, client: EngineClient
) -> None:
    server.handler = lambda request: json_reply([])
    assert client.containers.list(all_=True, filters={"name": ["web"]}) == []
    assert client.images.list() == []
    client.containers.stop("web")
    lines = [request.line for request in server.requests]
    assert lines[0].startswith("GET /v1.47/containers/json?all=1&filters=%7B%22name%22")
    assert lines[1] == "GET /v1.47/images/json HTTP/1.1"
    assert lines[2].startswith("POST /v1.47/containers/web/stop")
    assert server.connections == 1


def test_what_changes_something_asks_for_the_version_first(
    server: Server, client: EngineClient
) -> None:
    server.handler = lambda request: json_reply([])
    client.containers.stop("web")
    client.containers.stop("web")
    lines = [request.line.partition("?")[0] for request in server.requests]
    assert lines[0] == "HEAD /_ping HTTP/1.1"
    assert all(line.startswith("POST /v1.47/containers/web/stop") for line in lines[1:])
    assert len(lines) == 3


def test_an_older_engine_is_spoken_to_in_its_version(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "old.sock"))
    listener.listen()
    seen: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(4096))
            refusal = b'{"message":"client version 1.47 is too new"}'
            head = b"HTTP/1.1 400 Bad Request\r\nApi-Version: 1.30\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(refusal) + refusal)
            seen.append(connection.recv(4096))
            connection.sendall(reply(b"[]"))

    thread = threading.Thread(target=serve)
    thread.start()
    with EngineClient(UnixTransport(tmp_path / "old.sock"), timeout_s=60) as client:
        client.containers.list()
    thread.join(60)
    listener.close()
    assert seen[0].startswith(b"GET /v1.47/containers/json HTTP/1.1\r\n")
    assert seen[1].startswith(b"GET /v1.30/containers/json HTTP/1.1\r\n")


def test_an_engine_too_old_is_refused(server: Server) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nApi-Version: 1.20\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        EngineClient(TcpTransport("127.0.0.1", port), timeout_s=60) as client,
        pytest.raises(EngineError, match=r"speaks API version 1\.20 only"),
    ):
        client.containers.list()
    thread.join(60)
    listener.close()


def test_an_error_carries_status_and_message(server: Server, client: EngineClient) -> None:
    server.handler = lambda request: json_reply(
        {"message": "No such container: x"}, status="404 Not Found"
    )
    with pytest.raises(EngineError, match=r"^No such container: x$") as caught:
        client.containers.inspect("x")
    assert caught.value.status == 404
    assert caught.value.exit_code == 125


def test_no_engine_is_unreachable_with_the_given_hint(tmp_path: Path) -> None:
    transport = UnixTransport(tmp_path / "none.sock")
    with (
        EngineClient(transport, unreachable_hint="Run `desk up`.") as client,
        pytest.raises(EngineUnreachable, match="No such file") as caught,
    ):
        client.system.version()
    assert caught.value.hint == "Run `desk up`."


def test_an_engine_that_is_away_is_revived_once(server: Server) -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    revived: list[None] = []

    def leave() -> None:
        server.pong = away
        server.handler = lambda request: away

    def revive() -> None:
        revived.append(None)
        server.pong = PONG
        server.handler = lambda request: json_reply([])

    for ask in (lambda c: c.containers.list(), lambda c: c.containers.stop("web")):
        leave()
        revived.clear()
        with (
            EngineClient(UnixTransport(server.path), timeout_s=60) as client,
            pytest.raises(EngineError, match="not ready"),
        ):
            ask(client)
        with EngineClient(UnixTransport(server.path), timeout_s=60, revive=revive) as client:
            ask(client)
        assert len(revived) == 1


def test_what_changes_nothing_is_asked_again_where_its_connection_ended(
    server: Server, client: EngineClient
) -> None:
    """As with an agent that is killed while it takes the connection."""
    cut = [True, False]

    def handler(request: Request) -> bytes | None:
        return None if cut.pop(0) else json_reply([])

    server.handler = handler
    assert client.containers.list() == []
    assert (len(server.requests), server.connections) == (2, 2)

    cut += [True, True, True]  # over the connection that was kept, a new one, and another
    with pytest.raises(EngineUnreachable, match="closed the connection"):
        client.containers.list()
    assert not cut

    cut += [True, False]
    with pytest.raises(EngineUnreachable, match="closed the connection"):
        client.containers.stop("web")
    assert cut == [False]


def test_something_else_than_an_engine_is_named(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        EngineClient(TcpTransport("127.0.0.1", listener.getsockname()[1]), timeout_s=60) as client,
        pytest.raises(EngineUnreachable, match="does not answer like an engine"),
    ):
        client.system.version()
    thread.join(60)
    listener.close()


def test_something_else_that_keeps_its_connection_is_named_at_once(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"-ERR unknown command 'HEAD'\r\n")
            done.wait(60)

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        EngineClient(TcpTransport("127.0.0.1", listener.getsockname()[1]), timeout_s=60) as client,
        pytest.raises(EngineUnreachable, match="does not answer like an engine") as caught,
    ):
        client.system.version()
    assert "Check the address" in caught.value.hint
    done.set()
    thread.join(60)
    listener.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed the connection"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", "does not answer like an engine"),
        (b"HTTP/1.1 zwei OK\r\n\r\n", "does not answer like an engine"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "does not answer like an engine"),
        (b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n", "does not answer like an engine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[]", "closed the connection"),
        (CHUNKED + b"xyz\r\n", "sent a malformed answer"),
        (CHUNKED + b"2\r\n[]no end", "sent a malformed answer"),
    ],
)
def test_answers_that_are_no_http_are_told(
    server: Server, client: EngineClient, answer: bytes, words: str
) -> None:
    def handler(request: Request) -> None:
        request.connection.sendall(answer)
        request.connection.shutdown(socket.SHUT_WR)  # closing could reset what is unread

    server.handler = handler
    with pytest.raises(EngineUnreachable, match=words):
        client.containers.list()


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (reply(b"[]"), 1),
        (b"HTTP/1.1 102 Processing\r\n\r\n" + reply(b"[]"), 1),
        (CHUNKED + chunk(b"[") + chunk(b"]") + b"0\r\nX-Sum: 1\r\n\r\n", 1),
        (reply(b"[]", headers="Connection: close\r\n"), 2),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n[]", 2),
        (reply(b"[]") + b"left over", 2),
    ],
)
def test_a_connection_is_kept_when_the_answer_allows_it(
    server: Server, client: EngineClient, answer: bytes, connections: int
) -> None:
    server.handler = lambda request: answer
    assert client.containers.list() == []
    assert client.containers.list() == []
    assert server.connections == connections


def test_a_body_without_length_ends_with_the_connection(
    server: Server, client: EngineClient
) -> None:
    def handler(request: Request) -> None:
        request.connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + b"tar" * 100_000)

    server.handler = handler
    assert client.containers.export("web").read() == b"tar" * 100_000
    assert client.containers.export("web").read() == b"tar" * 100_000
    assert server.connections == 2


def test_a_slow_answer_times_out(server: Server) -> None:
    release = threading.Event()

    def handler(request: Request) -> None:
        release.wait(60)

    server.handler = handler
    with (
        EngineClient(UnixTransport(server.path), timeout_s=0.1) as client,
        pytest.raises(EngineUnreachable, match="did not answer in time"),
    ):
        client.system.version()
    release.set()


def test_a_connection_closed_while_idle_is_replaced(server: Server, client: EngineClient) -> None:
    server.handler = lambda request: json_reply([])
    client.containers.list()
    server._open[0].shutdown(socket.SHUT_RDWR)
    assert client.containers.list() == []
    client.containers.start("web")  # not sent twice, but on a connection known to be good
    assert server.connections == 2


def test_start_tells_whether_it_changed_anything(server: Server, client: EngineClient) -> None:
    answers = [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"]
    server.handler = lambda request: answers.pop(0)
    assert client.containers.start("web") is True
    assert client.containers.start("web") is False
    assert server.connections == 1


def test_logs_are_demultiplexed_by_content_type(server: Server, client: EngineClient) -> None:
    output = b"\1\0\0\0\0\0\0\5hello\2\0\0\0\0\0\0\3err"
    server.handler = lambda request: (
        CHUNKED.replace(
            b"\r\n\r\n",
            b"\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n\r\n",
        )
        + chunk(output[:3])
        + chunk(output[3:])
        + b"0\r\n\r\n"
    )
    assert list(client.containers.logs("web")) == [Frame(1, b"hello"), Frame(2, b"err")]
    frames = list(client.containers.logs("web", tty=True))
    assert {frame.stream for frame in frames} == {1}
    assert b"".join(frame.data for frame in frames) == output


def test_events_end_when_another_thread_closes_them(server: Server, client: EngineClient) -> None:
    event = json.dumps({"Type": "container", "Action": "start"}).encode() + b"\n"
    server.handler = lambda request: CHUNKED + chunk(event)
    seen = []
    got_one = threading.Event()
    events = client.system.events()

    def follow() -> None:
        for item in events:
            seen.append(item["Action"])
            got_one.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert got_one.wait(60)
    events.close()
    thread.join(60)
    assert not thread.is_alive()
    assert seen == ["start"]


def test_a_stream_cut_in_a_chunk_is_an_error(server: Server, client: EngineClient) -> None:
    def handler(request: Request) -> None:
        request.connection.sendall(CHUNKED + b"10\r\nshort")

    server.handler = handler
    with pytest.raises(EngineUnreachable, match="closed the connection"):
        client.containers.export("web").read()


def test_attach_upgrades_reads_frames_and_half_closes(server: Server, client: EngineClient) -> None:
    def handler(request: Request) -> None:
        assert request.headers["upgrade"] == "tcp"
        assert request.body == b""
        request.connection.sendall(
            b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            b"Content-Type: application/vnd.docker.multiplexed-stream\r\n\r\n"
            b"\1\0\0\0\0\0\0\3hi\n"
        )
        sent = request.reader.read()  # to the end of the client's input
        request.connection.sendall(b"\1\0\0\0\0\0\0" + bytes([len(sent)]) + sent)

    server.handler = handler
    with client.containers.attach("web", stdin=True) as stream:
        stream.write(b"ping")
        stream.close_write()
        assert [frame.data for frame in stream] == [b"hi\n", b"ping"]


def test_exec_start_takes_the_older_200_answer(server: Server, client: EngineClient) -> None:
    def handler(request: Request) -> None:
        assert json.loads(request.body) == {
            "Detach": False,
            "Tty": True,
            "ConsoleSize": [24, 80],
        }
        request.connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nraw out"
        )

    server.handler = handler
    with client.execs.start("e1", tty=True, rows=24, columns=80) as stream:
        assert [frame.data for frame in stream] == [b"raw out"]


def test_an_attachment_that_is_refused_is_an_error_and_keeps_the_connection(
    server: Server, client: EngineClient
) -> None:
    server.handler = lambda request: json_reply(
        {"message": "container x is not running"}, status="409 Conflict"
    )
    for _ in range(2):
        with pytest.raises(EngineError, match="is not running") as caught:
            client.containers.attach("x", stdin=True)
        assert caught.value.status == 409
    assert server.connections == 1


def test_a_reader_of_an_attachment_wakes_when_another_thread_closes_it(
    server: Server, client: EngineClient
) -> None:
    def handler(request: Request) -> None:
        request.connection.sendall(
            b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nprompt"
        )
        request.reader.read()

    server.handler = handler
    stream = client.containers.attach("web", stdin=True, tty=True)
    seen: list[bytes] = []
    got_one = threading.Event()

    def follow() -> None:
        for frame in stream:
            seen.append(frame.data)
            got_one.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert got_one.wait(60)
    stream.close()
    thread.join(60)
    assert not thread.is_alive()
    assert b"".join(seen) == b"prompt"


def test_an_upload_and_its_answer_flow_at_once(tmp_path: Path) -> None:
    """The engine tells of its progress while pieces still come, which wait for that progress."""
    told = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"one"
        assert told.wait(60)
        yield b"two"

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "engine.sock"))
    listener.listen()
    received = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nApi-Version: 1.47\r\n\r\n")
            while b"3\r\none\r\n" not in received:
                received.extend(connection.recv(4096))
            connection.sendall(CHUNKED + chunk(b'{"status":"one"}\n'))
            while not received.endswith(b"0\r\n\r\n"):
                received.extend(connection.recv(4096))
            connection.sendall(chunk(b'{"status":"all"}\n') + b"0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    seen = []
    with EngineClient(UnixTransport(tmp_path / "engine.sock"), timeout_s=60) as other:
        for message in other.images.load(pieces()):
            seen.append(message["status"])
            told.set()
    thread.join(60)
    listener.close()
    assert seen == ["one", "all"]
    assert received.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_import_streams_its_upload_and_reports_errors(server: Server, client: EngineClient) -> None:
    server.handler = lambda request: reply(b'{"status":"sha256:abc"}\r\n')
    pieces = iter([b"one", b"", b"two"])
    assert list(client.images.import_(pieces, repository="trixie")) == [{"status": "sha256:abc"}]
    request = server.requests[-1]
    assert request.body == b"onetwo"
    assert request.line == "POST /v1.47/images/create?fromSrc=-&repo=trixie HTTP/1.1"

    server.handler = lambda request: reply(
        b'{"status":"Unpacking"}\n{"errorDetail":{"message":"no space"},"error":"no space"}\n'
    )
    with pytest.raises(EngineError, match=r"^no space$"):
        list(client.images.import_(iter([b"x"])))


def test_an_early_refusal_ends_an_endless_upload(server: Server, client: EngineClient) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nApi-Version: 1.47\r\n\r\n")
            connection.recv(4096)
            connection.sendall(json_reply({"message": "disk full"}, status="507 Full"))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # what is under way; closing now would reset it
                pass

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1024

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        EngineClient(TcpTransport("127.0.0.1", listener.getsockname()[1]), timeout_s=60) as other,
        pytest.raises(EngineError, match="disk full") as caught,
    ):
        list(other.images.load(endless()))
    assert caught.value.status == 507
    thread.join(60)
    listener.close()


def test_a_failing_source_aborts_the_upload_with_its_own_error(
    server: Server, client: EngineClient
) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the file went away")

    with pytest.raises(OSError, match="the file went away"):
        list(client.images.load(broken()))


def test_wait_returns_code_and_error(server: Server, client: EngineClient) -> None:
    server.handler = lambda request: CHUNKED + chunk(b'{"StatusCode":137}\n') + b"0\r\n\r\n"
    assert client.containers.wait("web", condition="next-exit") == (137, "")
    assert server.requests[-1].line == (
        "POST /v1.47/containers/web/wait?condition=next-exit HTTP/1.1"
    )


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"a": None, "all": True, "v": False, "t": -1}, "all=1&v=0&t=-1"),
        ({"names": ["a", "b/c"]}, "names=a&names=b%2Fc"),
        ({"filters": {"label": ["x=y"]}}, "filters=%7B%22label%22%3A%5B%22x%3Dy%22%5D%7D"),
        (None, ""),
    ],
)
def test_query_encoding(query: dict[str, object] | None, text: str) -> None:
    assert encode_query(query) == text


def test_segments_cannot_leave_their_place() -> None:
    assert segment("a?b#c d") == "a%3Fb%23c%20d"
    assert segment("localhost:5000/team/app@sha256:0") == "localhost:5000/team/app@sha256:0"


def test_demultiplex_survives_any_split() -> None:
    stream = b"\1\0\0\0\0\0\0\2ab\2\0\0\0\0\0\0\1c\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\1d"
    for size in range(1, len(stream)):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        frames = list(demultiplex(pieces))
        assert b"".join(data for number, data in frames if number == 1) == b"abd"
        assert b"".join(data for number, data in frames if number == 2) == b"c"


def test_objects_are_decoded_whatever_separates_them() -> None:
    text = '{"a":1}{"b":"é"}\r\n\n{"c":3}'.encode()
    for size in range(1, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(decode_objects(pieces)) == [{"a": 1}, {"b": "é"}, {"c": 3}]


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("unix:///run/x.sock", UnixTransport(Path("/run/x.sock"))),
        ("tcp://10.0.0.1:2375", TcpTransport("10.0.0.1", 2375)),
        ("tcp://[::1]:99", TcpTransport("::1", 99)),
        ("tcp://[::1]", TcpTransport("::1", 2375)),
        ("tcp://somewhere", TcpTransport("somewhere", 2375)),
        ("localhost:4000", TcpTransport("localhost", 4000)),
    ],
)
def test_addresses(url: str, transport: UnixTransport | TcpTransport) -> None:
    assert transport_for(url) == transport


@pytest.mark.parametrize("url", ["unix://x.sock", "tcp://h:99999", "tcp://h:x", "fd://3"])
def test_wrong_addresses_are_usage_errors(url: str) -> None:
    with pytest.raises(UsageError, match="invalid engine address"):
        transport_for(url)
