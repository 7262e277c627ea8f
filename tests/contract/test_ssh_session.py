"""The SSH layer against a real OpenSSH server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue

import pytest
from tests.free_ports import free_port
from tests.ssh_server import SshServer, ssh_server  # noqa: F401 - a fixture

from desk.errors import HostKeyMismatch, SshError
from desk.ssh import session as ssh_session
from desk.ssh.channel import OpenFailure
from desk.ssh.endpoint import Endpoint
from desk.ssh.keys import fingerprint, generate_key_pair, write_key_pair, write_known_hosts
from desk.ssh.session import ChannelError, KeyRefused, Session


@pytest.fixture
def session(ssh_server: SshServer) -> Iterator[Session]:  # noqa: F811
    with Session.connect(ssh_server.endpoint) as session:
        yield session


# --- commands and streams --------------------------------------------------------------------


def test_run_returns_exit_code_and_both_outputs(session: Session) -> None:
    result = session.run("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")


def test_run_feeds_standard_input_while_reading(session: Session) -> None:
    data = os.urandom(6_000_000)  # more than both windows
    assert session.run("cat", stdin=data).stdout == data


def test_run_names_the_command_that_takes_too_long(session: Session) -> None:
    with pytest.raises(SshError, match=r"`sleep 30` did not end within 0\.5 seconds"):
        session.run("sleep 30", timeout_s=0.5)
    assert session.run("echo still").stdout == b"still\n"


def test_many_commands_at_once(session: Session) -> None:
    results: dict[int, bytes] = {}
    threads = [
        threading.Thread(
            target=lambda n=n: results.update({n: session.run(f"sleep 0.1; echo {n}").stdout})
        )
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n".encode() for n in range(16)}


def test_stream_behaves_as_a_socket(session: Session) -> None:
    stream = session.open_exec("head -n 2; echo done")
    stream.sendall(b"one\n")
    with stream.makefile("rb") as lines, stream.makefile("wb") as out:
        out.write(b"two\n")
        out.flush()
        stream.shutdown(socket.SHUT_WR)
        assert lines.read() == b"one\ntwo\ndone\n"
    assert stream.recv(1) == b""
    assert stream.wait_exit_code() == 0
    stream.close()
    with pytest.raises(OSError, match="closed"):
        stream.sendall(b"x")


def test_stream_read_times_out_and_close_wakes_a_reader(session: Session) -> None:
    stream = session.open_exec("cat")
    stream.settimeout(0.05)
    with pytest.raises(TimeoutError):
        stream.recv(1)
    stream.settimeout(None)
    threading.Timer(0.1, stream.close).start()
    assert stream.recv(1) == b""


def test_shutdown_for_reading_wakes_a_reader(session: Session) -> None:
    stream = session.open_exec("cat")
    threading.Timer(0.1, stream.shutdown, [socket.SHUT_RD]).start()
    assert stream.recv(1) == b""
    stream.close()


def test_cipher_is_the_fast_one_and_nothing_is_compressed(session: Session) -> None:
    wire = session._wire
    assert wire.remote_cipher == wire.local_cipher == "aes128-gcm@openssh.com"
    assert wire.remote_compression == wire.local_compression == "none"


# --- channels to sockets ---------------------------------------------------------------------


@pytest.fixture
def echo_listener(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP and a Unix listener; whatever connects gets its bytes back until it ends them."""
    tcp = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "echo.sock"))
    unix.listen()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client may have gone away
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            connection.sendall(b"END")

    for listener in (tcp, unix):
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    yield tcp, unix
    for listener in (tcp, unix):
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_channels_to_tcp_and_unix_sockets_half_close(
    session: Session, echo_listener: tuple[socket.socket, socket.socket]
) -> None:
    tcp, unix = echo_listener
    for stream in (
        session.open_tcp("127.0.0.1", tcp.getsockname()[1]),
        session.open_unix(unix.getsockname()),
    ):
        stream.sendall(b"hello")
        stream.shutdown(socket.SHUT_WR)
        with stream.makefile("rb") as file:
            assert file.read() == b"helloEND"
        stream.close()


def test_refused_channels_say_why(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ChannelError) as caught:
        session.open_tcp("127.0.0.1", free_port())
    assert caught.value.failure is OpenFailure.CONNECT_FAILED
    with pytest.raises(ChannelError, match=r"none\.sock"):
        session.open_unix(str(tmp_path / "none.sock"))
    assert session.run("true").exit_code == 0


def test_forbidden_channels_say_so(tmp_path: Path) -> None:
    options = ("AllowTcpForwarding no", "AllowStreamLocalForwarding no", "MaxSessions 1")
    with (
        SshServer(tmp_path / "s", options=options) as server,
        Session.connect(server.endpoint) as session,
    ):
        with pytest.raises(ChannelError) as caught:
            session.open_tcp("127.0.0.1", 1)
        assert caught.value.failure is OpenFailure.PROHIBITED
        assert "sshd_config" in caught.value.hint
        with pytest.raises(ChannelError):
            session.open_unix("/run/x.sock")
        held = session.open_exec("cat")
        with pytest.raises(SshError, match="does not open a session"):
            session.open_exec("cat")
        held.close()


# --- relaying --------------------------------------------------------------------------------


Relayed = Callable[[Session, int], socket.socket]


def _by_stream(session: Session, port: int) -> socket.socket:
    """Return one end of a socket pair whose other end is relayed to ``port``: by a stream that was
    opened before."""
    ours, theirs = socket.socketpair()
    session.relay(theirs, session.open_tcp("127.0.0.1", port), ended=lambda: None)
    return ours


def _by_itself(session: Session, port: int) -> socket.socket:
    """Do as above, without a stream."""
    ours, theirs = socket.socketpair()
    opened: Queue[ChannelError | None] = Queue()
    session.relay_tcp(
        theirs,
        "127.0.0.1",
        port,
        opened=lambda: opened.put(None),
        refused=opened.put,
        ended=lambda: None,
    )
    assert opened.get(timeout=60) is None
    return ours


def _nothing_is_left(session: Session) -> None:
    """Wait until the session knows of no relay, and the server has closed every channel."""
    known = session._wire.relays
    kinds = (known._openings, known._given_up, known._by_channel, known._by_local, known._closing)
    deadline = time.monotonic() + 60
    while any(kinds) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(kinds)


relays = pytest.mark.parametrize("relayed", [_by_stream, _by_itself])


@relays
def test_relay_carries_every_byte_both_ways(
    session: Session,
    echo_listener: tuple[socket.socket, socket.socket],
    relayed: Relayed,
) -> None:
    data = os.urandom(20_000_000)
    with relayed(session, echo_listener[0].getsockname()[1]) as local:

        def send() -> None:
            local.sendall(data)
            local.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b"".join(iter(lambda: local.recv(1 << 20), b""))
        sender.join()
    assert hashlib.sha256(received[:-3]).digest() == hashlib.sha256(data).digest()
    assert received[-3:] == b"END"


@relays
def test_relay_holds_a_writer_back_for_a_slow_reader(session: Session, relayed: Relayed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        local = relayed(session, listener.getsockname()[1])
        remote, _ = listener.accept()
        remote.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 30:
                sent += remote.send(bytes(1 << 16))
        # One window of the channel, and what sockets and sshd hold.
        assert sent < 32 << 20
        received = 0
        remote.shutdown(socket.SHUT_WR)
        while data := local.recv(1 << 20):
            received += len(data)
        assert received == sent
        local.close()
        remote.close()


@relays
def test_relay_ends_the_remote_side_when_the_client_goes_away(
    session: Session, relayed: Relayed
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        local = relayed(session, listener.getsockname()[1])
        remote, _ = listener.accept()
        local.sendall(b"x")
        assert remote.recv(1) == b"x"
        local.close()  # without reading; the remote side is silent and would wait for ever
        remote.settimeout(60)
        assert remote.recv(1) == b""
        # Not only our data ended: the channel is closed, so writing fails soon.
        for _ in range(3000):
            try:
                remote.send(b"y")
            except (ConnectionResetError, BrokenPipeError):
                break
            time.sleep(0.02)
        else:
            pytest.fail("the channel is still open")
        remote.close()


@relays
def test_a_relay_whose_server_is_gone_disturbs_no_other(session: Session, relayed: Relayed) -> None:
    """What a client says to a closed channel is dropped: sshd would end the whole connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        local = relayed(session, listener.getsockname()[1])
        remote, _ = listener.accept()
        remote.sendall(bytes(2 << 20))  # more than a socket takes, and less than the window
        local.sendall(b"unread")  # so that the end below is a reset
        time.sleep(0.5)
        remote.close()
        local.settimeout(0.05)
        for _ in range(100):
            with contextlib.suppress(OSError):
                local.send(bytes(1000))
            time.sleep(0.01)
        assert session.run("echo well").stdout == b"well\n"
        local.close()
    _nothing_is_left(session)


def test_relay_tells_why_there_is_no_stream_and_leaves_the_client_alone(session: Session) -> None:
    told: Queue[ChannelError] = Queue()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session.relay_tcp(
            theirs,
            "127.0.0.1",
            free_port(),
            opened=pytest.fail,
            refused=told.put,
            ended=pytest.fail,
        )
        refusal = told.get(timeout=60)
        assert refusal.failure is OpenFailure.CONNECT_FAILED
        assert "Nothing listens there" in refusal.hint
        theirs.sendall(b"busy")
        assert ours.recv(10) == b"busy"


def test_relay_gives_up_a_server_that_does_not_answer(
    session: Session,
    ssh_server: SshServer,  # noqa: F811
    echo_listener: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A channel that is opened too late is closed again."""
    monkeypatch.setattr("desk.ssh.forward._OPEN_S", 0.2)
    told: Queue[ChannelError] = Queue()
    port = echo_listener[0].getsockname()[1]
    ours, theirs = socket.socketpair()
    for pid in ssh_server.session_pids():
        os.kill(pid, signal.SIGSTOP)
    try:
        session.relay_tcp(
            theirs, "127.0.0.1", port, opened=pytest.fail, refused=told.put, ended=pytest.fail
        )
        assert "does not answer" in told.get(timeout=60).text
    finally:
        for pid in ssh_server.session_pids():
            os.kill(pid, signal.SIGCONT)
    with ours, theirs:
        assert session.run("true").exit_code == 0
    _nothing_is_left(session)


@relays
def test_relay_ends_with_the_connection(
    session: Session,
    ssh_server: SshServer,  # noqa: F811
    echo_listener: tuple[socket.socket, socket.socket],
    relayed: Relayed,
) -> None:
    local = relayed(session, echo_listener[0].getsockname()[1])
    local.sendall(b"hello")
    assert local.recv(5, socket.MSG_WAITALL) == b"hello"
    for pid in ssh_server.session_pids():
        os.kill(pid, signal.SIGKILL)
    local.settimeout(60)
    assert local.recv(1) == b""
    local.close()
    lost: Queue[ChannelError] = Queue()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert session.ended.wait(60)
        session.relay_tcp(
            theirs, "127.0.0.1", 1, opened=pytest.fail, refused=lost.put, ended=pytest.fail
        )
        assert "the SSH connection is lost" in lost.get(timeout=60).text


def test_many_short_relays_leave_nothing(
    session: Session, echo_listener: tuple[socket.socket, socket.socket]
) -> None:
    port = echo_listener[0].getsockname()[1]
    right: list[bool] = []

    def many() -> None:
        for number in range(50):
            with _by_itself(session, port) as local:
                word = b"%d" % number
                local.sendall(word)
                if number % 2:  # else the client goes away with the answer unread
                    local.shutdown(socket.SHUT_WR)
                    answer = b"".join(iter(lambda: local.recv(100), b""))
                    right.append(answer == word + b"END")

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert right == [True] * 200
    _nothing_is_left(session)


def test_new_keys_under_load_disturb_nothing(
    tmp_path: Path, echo_listener: tuple[socket.socket, socket.socket]
) -> None:
    """The server asks for new keys every 4 MB while data flows and channels come and go."""
    port = echo_listener[0].getsockname()[1]
    with (
        SshServer(tmp_path / "s", options=("RekeyLimit 4M",)) as server,
        Session.connect(server.endpoint) as session,
    ):
        results: list[bool] = []

        def many() -> None:
            for _ in range(40):
                stream = session.open_tcp("127.0.0.1", port)
                stream.sendall(b"ping")
                results.append(stream.recv(4) == b"ping")
                stream.close()

        def relayed() -> None:
            for _ in range(20):
                data = os.urandom(1_000_000)
                with _by_itself(session, port) as local:
                    sender = threading.Thread(target=local.sendall, args=(data,))
                    sender.start()
                    results.append(local.recv(len(data), socket.MSG_WAITALL) == data)
                    sender.join()

        def bulk() -> None:
            size = len(session.run("head -c 60000000 /dev/zero").stdout)
            results.append(size == 60_000_000)

        threads = [threading.Thread(target=target) for target in (many, many, relayed, bulk, bulk)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == [True] * 102


@pytest.mark.parametrize(
    "cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr"]
)
def test_large_contents_are_the_same_with_every_cipher(
    tmp_path: Path, cipher: str, echo_listener: tuple[socket.socket, socket.socket]
) -> None:
    """Also while new keys come, which both directions wait for, and where it is relayed."""
    data = os.urandom(12_000_001)
    options = (f"Ciphers {cipher}", "RekeyLimit 3M")
    with (
        SshServer(tmp_path / "s", options=options) as server,
        Session.connect(server.endpoint) as session,
    ):
        assert session._wire.remote_cipher == cipher
        assert session.run("cat", stdin=data).stdout == data
        assert session.run("cat >&2", stdin=data[:1_000_001]).stderr == data[:1_000_001]
        with _by_itself(session, echo_listener[0].getsockname()[1]) as local:
            sender = threading.Thread(target=local.sendall, args=(data,))
            sender.start()
            assert local.recv(len(data), socket.MSG_WAITALL) == data
            sender.join()


def test_channel_numbers_are_used_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("desk.ssh.wire._CHANNEL_NUMBERS", 4)
    for number in range(7):
        assert session.run(f"echo {number}").stdout == f"{number}\n".encode()
    assert len(session._wire.channels_seen) <= 5


# --- files -----------------------------------------------------------------------------------


def test_files_go_up_and_down(session: Session, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    session.upload(tmp_path / "a", str(tmp_path / "b"), mode=0o640)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640
    session.download(str(tmp_path / "b"), tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == data


def test_a_missing_file_is_named_and_leaves_nothing(session: Session, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SshError, match=r"/nowhere/x.* failed: No such file"):
        session.download("/nowhere/x", tmp_path / "c")
    assert sorted(tmp_path.iterdir()) == before


# --- what goes wrong while connecting --------------------------------------------------------


def test_a_missing_known_hosts_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SshError, match=str(tmp_path / "known_hosts")):
        Session.connect(_endpoint_at(tmp_path, free_port()))


def _endpoint_at(directory: Path, port: int) -> Endpoint:
    return Endpoint("127.0.0.1", port, "root", directory / "id_ed25519", directory / "known_hosts")


def _prepared(directory: Path, port: int) -> Endpoint:
    pair = generate_key_pair("x")
    write_key_pair(pair, directory / "id_ed25519")
    write_known_hosts(directory / "known_hosts", "127.0.0.1", port, pair.public)
    return _endpoint_at(directory, port)


def test_nothing_listens(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(SshError, match=f"nothing answers at 127.0.0.1:{port}") as caught:
        Session.connect(_prepared(tmp_path, port))
    assert caught.value.hint


def test_a_name_that_does_not_resolve(ssh_server: SshServer) -> None:  # noqa: F811
    endpoint = replace(ssh_server.endpoint, host="no-such-host.invalid")
    write_known_hosts(
        endpoint.known_hosts, endpoint.host, endpoint.port, ssh_server.host_key.public
    )
    with pytest.raises(SshError, match=r"no-such-host\.invalid cannot be resolved"):
        Session.connect(endpoint)


def test_a_listener_that_never_speaks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = _prepared(tmp_path, silent.getsockname()[1])
        with pytest.raises(SshError, match="does not finish the SSH handshake"):
            Session.connect(endpoint, timeout_s=10, banner_timeout_s=0.5)


def test_a_listener_that_is_no_sshd(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:

        def answer() -> None:
            connection, _ = web.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SshError, match="does not finish the SSH handshake"):
            Session.connect(_prepared(tmp_path, web.getsockname()[1]), timeout_s=5)
        thread.join()


def test_changed_host_key_names_both_fingerprints(ssh_server: SshServer) -> None:  # noqa: F811
    known = fingerprint(ssh_server.host_key.public)
    shown = fingerprint(ssh_server.change_host_key().public)
    with pytest.raises(HostKeyMismatch) as caught:
        Session.connect(ssh_server.endpoint)
    assert known in caught.value.text
    assert shown in caught.value.text
    assert "known_hosts" in caught.value.text
    assert caught.value.hint


def test_unknown_host_is_not_trusted(ssh_server: SshServer) -> None:  # noqa: F811
    ssh_server.endpoint.known_hosts.write_text("")
    with pytest.raises(SshError, match="has no host key for"):
        Session.connect(ssh_server.endpoint)


def test_host_key_of_another_type_is_a_mismatch(ssh_server: SshServer) -> None:  # noqa: F811
    rsa = ssh_server.directory / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(rsa)], check=True)
    endpoint = ssh_server.endpoint
    write_known_hosts(
        endpoint.known_hosts, endpoint.host, endpoint.port, rsa.with_suffix(".pub").read_text()
    )
    with pytest.raises(HostKeyMismatch, match=re.escape(fingerprint(ssh_server.host_key.public))):
        Session.connect(endpoint)


def test_wrong_key_is_named_with_the_remedy(ssh_server: SshServer) -> None:  # noqa: F811
    write_key_pair(generate_key_pair("stranger"), ssh_server.endpoint.private_key)
    with pytest.raises(KeyRefused, match="does not accept Desk's key") as caught:
        Session.connect(ssh_server.endpoint)
    assert "authorized_keys" in caught.value.hint


def test_an_ssh_agent_and_other_keys_are_not_asked(
    ssh_server: SshServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    good = ssh_server.endpoint.private_key.read_bytes()
    (home / ".ssh" / "id_ed25519").write_bytes(good)
    monkeypatch.setenv("HOME", str(home))
    write_key_pair(generate_key_pair("stranger"), ssh_server.endpoint.private_key)
    with pytest.raises(KeyRefused):
        Session.connect(ssh_server.endpoint)


def test_private_keys_that_cannot_be_used_are_named(ssh_server: SshServer) -> None:  # noqa: F811
    key = ssh_server.endpoint.private_key
    key.unlink()
    with pytest.raises(SshError, match="does not exist"):
        Session.connect(ssh_server.endpoint)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True
    )
    with pytest.raises(SshError, match="protected by a passphrase"):
        Session.connect(ssh_server.endpoint)
    key.write_text("nonsense")
    with pytest.raises(SshError, match="cannot be read"):
        Session.connect(ssh_server.endpoint)


# --- what goes wrong later -------------------------------------------------------------------


def test_a_killed_connection_ends_everything_at_once(
    ssh_server: SshServer,  # noqa: F811
    session: Session,
) -> None:
    stream = session.open_exec("cat")
    assert session.end_reason == ""
    ssh_server.kill_sessions()
    assert stream.recv(1) == b""
    assert session.ended.wait(60)
    assert session.end_reason in ("the machine ended it", "Connection reset by peer")
    with pytest.raises(OSError, match=r"closed|lost"):
        stream.sendall(b"x")
    with pytest.raises(SshError, match="lost"):
        session.run("true")


def test_a_silent_connection_is_found_dead_on_request(
    ssh_server: SshServer,  # noqa: F811
    session: Session,
) -> None:
    pids = ssh_server.session_pids()
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        session.check(0.5)
        assert session.ended.wait(60)
        assert session.end_reason == "no sign of life for 0.5 seconds"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_silent_connection_is_found_dead_while_a_writer_is_stuck(
    ssh_server: SshServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody asks for the check here: the keepalive alone finds out, also in a full socket."""
    monkeypatch.setattr("desk.ssh.session._KEEPALIVE_INTERVAL_S", 0.5)
    monkeypatch.setattr("desk.ssh.session._KEEPALIVE_DEADLINE_S", 2)
    with Session.connect(ssh_server.endpoint) as session:
        stream = session.open_exec("cat > /dev/null")
        pids = ssh_server.session_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with contextlib.suppress(OSError):
                while True:
                    stream.sendall(bytes(1 << 20))
            assert session.ended.wait(60)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def test_the_keepalive_finds_a_dead_machine_within_fifteen_seconds() -> None:
    assert ssh_session._KEEPALIVE_INTERVAL_S + ssh_session._KEEPALIVE_DEADLINE_S <= 15


def test_an_idle_session_stays(
    ssh_server: SshServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("desk.ssh.session._KEEPALIVE_INTERVAL_S", 0.05)
    with Session.connect(ssh_server.endpoint) as session:
        assert not session.ended.wait(1)  # twenty questions
        assert session.run("echo here").stdout == b"here\n"
    assert session.end_reason == "Desk ended it"


@pytest.mark.timeout(60)
def test_a_question_to_a_connection_that_is_over_waits_for_no_answer(session: Session) -> None:
    session.close()
    with pytest.raises(EOFError):
        session._wire.ping(600)
    assert not session._wire.listen_unix("/run/nobody", lambda channel: None, 600)
    assert session.end_reason == "Desk ended it"
