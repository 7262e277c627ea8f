"""One SSH connection to a machine: commands, byte streams, files.

The host key must be known beforehand, and only Desk's own key is offered: no SSH agent, no
password, no ``~/.ssh``. Every failure is an ``SshError`` whose hint names the remedy.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm

from desk.errors import HostKeyMismatch, SshError
from desk.ssh.channel import ChannelRefused, OpenFailure, WireChannel
from desk.ssh.endpoint import Endpoint
from desk.ssh.keys import fingerprint_of_blob, host_pattern
from desk.ssh.stream import ChannelStream
from desk.ssh.wire import Wire, reason_of

_KEEPALIVE_INTERVAL_S = 5.0
_KEEPALIVE_DEADLINE_S = 9.0
_READ_BYTES = 1 << 20


class ChannelError(SshError):
    """The machine does not open a channel of an SSH connection; ``failure`` says why."""

    def __init__(self, text: str, failure: OpenFailure, *, hint: str = "") -> None:
        super().__init__(text, hint=hint)
        self.failure = failure


class KeyRefused(SshError):
    """The machine does not accept Desk's key."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the machine left behind; ``exit_code`` is -1 where a signal ended it."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Session:
    """An authenticated SSH connection, usable from any number of threads.

    It watches itself: a machine that gives no sign of life for about 14 seconds ends it, and then
    every call on it and on its channels raises or returns at once. ``ended`` is set by then.
    """

    def __init__(self, endpoint: Endpoint, wire: Wire) -> None:
        self.endpoint = endpoint
        self.ended = wire.ended
        self.connected_at = time.time()
        self._wire = wire
        self._check_requested = threading.Event()
        self._check_deadline_s = _KEEPALIVE_DEADLINE_S
        self._watcher = threading.Thread(target=self._watch, name="ssh-watch", daemon=True)
        self._watcher.start()

    @classmethod
    def connect(
        cls, endpoint: Endpoint, *, timeout_s: float = 15.0, banner_timeout_s: float | None = None
    ) -> Session:
        """Connect and log in within ``timeout_s`` seconds for each of the steps.

        ``banner_timeout_s`` bounds the wait for the server's first line: a forwarded port
        accepts connections before the machine behind it does. Raises ``HostKeyMismatch``,
        ``KeyRefused``, or ``SshError``.
        """
        known = _known_keys(endpoint)
        private_key = _load_private_key(endpoint.private_key)
        connection = _dial(endpoint, timeout_s)
        wire = Wire(connection)
        try:
            wire.banner_timeout = timeout_s if banner_timeout_s is None else banner_timeout_s
            wire.handshake_timeout = timeout_s
            wire.auth_timeout = timeout_s
            _shake_hands(endpoint, wire, known, timeout_s)
            _log_in(endpoint, wire, private_key)
        except BaseException:
            wire.abort()
            raise
        wire.calm()
        return cls(endpoint, wire)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- life ------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    @property
    def end_reason(self) -> str:
        """Why the connection is over, for a log; empty while it lives."""
        return self._wire.end_reason

    def check(self, deadline_s: float) -> None:
        """Ask for a sign of life now; without one in ``deadline_s`` seconds the session ends."""
        self._check_deadline_s = deadline_s
        self._check_requested.set()

    def close(self) -> None:
        """End the connection and everything on it; idempotent."""
        self._wire.abort()
        self._check_requested.set()
        if threading.current_thread() is not self._watcher:
            self._watcher.join(timeout=5.0)

    def _watch(self) -> None:
        while not self.ended.is_set():
            asked = self._check_requested.wait(_KEEPALIVE_INTERVAL_S)
            if self.ended.is_set():
                return
            self._check_requested.clear()
            deadline_s = self._check_deadline_s if asked else _KEEPALIVE_DEADLINE_S
            # The ping can hang in a full socket; the timer is what ends it then.
            silent = f"no sign of life for {deadline_s:g} seconds"
            timer = threading.Timer(deadline_s, self._wire.abort, [silent])
            timer.daemon = True
            timer.start()
            try:
                trouble = "" if self._wire.ping(deadline_s) else silent
            except EOFError:
                return  # the wire is ending and knows why
            except (paramiko.SSHException, OSError) as error:
                trouble = reason_of(error)
            finally:
                timer.cancel()
            if trouble:
                self._wire.abort(trouble)
                return

    # --- channels --------------------------------------------------------------------------

    def open_exec(self, command: str, *, timeout_s: float = 15.0) -> ChannelStream:
        """Start ``command`` (text for the login shell) and return its standard streams."""
        channel = self._opened(
            lambda: self._wire.open_session_channel(timeout_s), f"a session for `{command}`"
        )
        try:
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            ChannelStream(channel).close()
            raise SshError(
                f"{self._place} does not run `{command}`: {reason_of(error)}",
                hint="Try again; `desk machine status` says whether the machine is well.",
            ) from error
        return ChannelStream(channel)

    def open_tcp(self, host: str, port: int, *, timeout_s: float = 15.0) -> ChannelStream:
        """Return a stream to a TCP address as the machine sees it."""
        channel = self._opened(
            lambda: self._wire.open_tcp_channel(host, port, timeout_s), f"{host}:{port}"
        )
        return ChannelStream(channel, by_command=False)

    def open_unix(self, path: str, *, timeout_s: float = 15.0) -> ChannelStream:
        """Return a stream to a Unix socket in the machine (needs OpenSSH there)."""
        channel = self._opened(
            lambda: self._wire.open_unix_channel(path, timeout_s), f"the socket {path}"
        )
        return ChannelStream(channel, by_command=False)

    def relay(
        self,
        local: socket.socket,
        stream: ChannelStream,
        *,
        ended: Callable[[], None],
        when_silent: Callable[[], bytes] | None = None,
    ) -> None:
        """Take over both and copy between them until both have ended, then close both and call
        ``ended``; returns at once.

        An end of data travels as a half-close, so that each direction may go on without the other.
        ``when_silent`` is called, in a thread of its own, where the machine's side ended without
        one byte; what it returns goes to the local side.
        """
        self._wire.relays.add(local, stream.channel, ended=ended, when_silent=when_silent)

    def relay_tcp(
        self,
        local: socket.socket,
        host: str,
        port: int,
        *,
        opened: Callable[[], None],
        refused: Callable[[ChannelError], None],
        ended: Callable[[], None],
    ) -> None:
        """Open a stream to a TCP address as the machine sees it and relay it as ``relay`` does;
        returns at once, and nothing that is called may wait.

        ``opened`` is called when it stands; else only ``refused``, and nothing happened to
        ``local``.
        """
        self._wire.relays.open(
            local,
            host,
            port,
            opened=opened,
            refused=lambda refusal: refused(self._refused(refusal, f"{host}:{port}")),
            ended=ended,
        )

    def listen_unix(
        self, path: str, serve: Callable[[ChannelStream], None], *, timeout_s: float = 15.0
    ) -> None:
        """Have the machine's sshd listen on a Unix socket (of the login's own, mode 0600) while
        this connection lasts. ``serve`` gets each connection in a thread and closes it.

        Raises ``SshError`` where sshd does not: something is in its place, or it is not allowed.
        """

        def accept(channel: WireChannel) -> None:
            serve(ChannelStream(channel, by_command=False))

        try:
            listens = self._wire.listen_unix(path, accept, timeout_s)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise SshError(
                f"{self._place} does not listen on {path}: {reason_of(error)}",
                hint="Run `desk machine status` to see whether the machine is well.",
            ) from error
        if not listens:
            raise SshError(
                f"{self._place} does not listen on {path}",
                hint="Set AllowStreamLocalForwarding yes in the machine's sshd_config.",
            )

    def open_terminal(
        self, command: str, *, term: str, columns: int, rows: int, timeout_s: float = 15.0
    ) -> ChannelStream:
        """Start ``command``, or the login shell where it is empty, on a terminal."""
        channel = self._opened(lambda: self._wire.open_session_channel(timeout_s), "a terminal")
        try:
            channel.get_pty(term, columns, rows)
            if command:
                channel.exec_command(command)
            else:
                channel.invoke_shell()
        except (paramiko.SSHException, OSError, EOFError) as error:
            ChannelStream(channel).close()
            raise SshError(
                f"{self._place} gives no terminal: {reason_of(error)}",
                hint="Give a command instead: `desk machine ssh NAME COMMAND`.",
            ) from error
        return ChannelStream(channel)

    def _opened(self, opener: Callable[[], WireChannel], target: str) -> WireChannel:
        try:
            return opener()
        except ChannelRefused as error:
            raise self._refused(error, target) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ChannelError(
                f"{self._place} does not open {target}: {reason_of(error)}",
                OpenFailure.NO_ANSWER,
                hint="Run `desk machine status` to see whether the machine is well.",
            ) from error

    def _refused(self, error: ChannelRefused, target: str) -> ChannelError:
        hint = {
            OpenFailure.PROHIBITED: "Allow it in the machine's sshd_config.",
            OpenFailure.CONNECT_FAILED: "Nothing listens there, or the login may not use it.",
            OpenFailure.RESOURCE_SHORTAGE: "Raise MaxSessions in the machine's sshd_config.",
        }.get(error.failure, "Run `desk machine status` to see whether the machine is well.")
        return ChannelError(
            f"{self._place} does not open {target}: {error.text or error.failure.name}",
            error.failure,
            hint=hint,
        )

    @property
    def _place(self) -> str:
        return f"the machine at {self.endpoint.host}:{self.endpoint.port}"

    # --- commands and files ----------------------------------------------------------------

    def run(
        self, command: str, *, stdin: bytes = b"", timeout_s: float | None = 60.0
    ) -> CommandResult:
        """Run ``command`` in the machine's login shell and return its exit code and output.

        Raises ``SshError`` where the connection is lost or the command does not end within
        ``timeout_s`` seconds; its standard streams are closed then.
        """
        stream = self.open_exec(command)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            stream.close()

        timer = threading.Timer(timeout_s, give_up) if timeout_s is not None else None
        errors: list[bytes] = []
        workers = [
            threading.Thread(target=lambda: errors.extend(stream.iter_stderr()), daemon=True),
            threading.Thread(target=_feed, args=(stream, stdin), daemon=True),
        ]
        try:
            for thread in (*workers, *([timer] if timer is not None else [])):
                thread.daemon = True
                thread.start()
            output = b"".join(iter(lambda: stream.recv(_READ_BYTES), b""))
            exit_code = stream.wait_exit_code()
            for thread in workers:
                thread.join()
        finally:
            if timer is not None:
                timer.cancel()
            stream.close()
        if late.is_set():
            raise SshError(
                f"`{command}` did not end within {timeout_s:g} seconds",
                hint="The machine may be overloaded; `desk machine restart` restarts it.",
            )
        if not self.alive:
            raise SshError(
                f"the connection to {self._place} was lost while `{command}` ran",
                hint="Run `desk machine status` to see whether the machine is well.",
            )
        return CommandResult(exit_code, output, b"".join(errors))

    def upload(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """Copy the file ``local`` to the path ``remote`` in the machine."""
        with self._sftp(f"copying {local} to {remote}") as sftp:
            sftp.put(str(local), remote)
            if mode is not None:
                sftp.chmod(remote, mode)

    def download(self, remote: str, local: Path) -> None:
        """Copy the machine's file ``remote`` to ``local``; nothing half-copied stays behind."""
        partial = local.with_name(f".{local.name}.part")
        try:
            with self._sftp(f"copying {remote} to {local}") as sftp:
                sftp.get(remote, str(partial))
            partial.replace(local)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _sftp(self, operation: str) -> Iterator[paramiko.SFTPClient]:
        try:
            channel = self._opened(lambda: self._wire.open_session_channel(15.0), "SFTP")
            channel.invoke_subsystem("sftp")
            client = paramiko.SFTPClient(channel)
            try:
                yield client
            finally:
                client.close()
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(
                f"{operation} failed: {reason_of(error)}",
                hint="Check both paths and their permissions.",
            ) from error


def _feed(stream: ChannelStream, data: bytes) -> None:
    try:
        if data:
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # a command need not read its input; its exit code tells the rest


# --- connecting ------------------------------------------------------------------------------


def _known_keys(endpoint: Endpoint) -> dict[str, paramiko.PKey]:
    """Return the host keys that known_hosts has for the endpoint, by type."""
    hint = "Recreate the machine, or put its host key into that file (ssh-keyscan prints it)."
    pattern = host_pattern(endpoint.host, endpoint.port)
    try:
        known = paramiko.HostKeys(str(endpoint.known_hosts)).lookup(pattern)
    except OSError as error:
        raise SshError(
            f"cannot read the known host keys in {endpoint.known_hosts}: {reason_of(error)}",
            hint=hint,
        ) from error
    if not known:
        raise SshError(f"{endpoint.known_hosts} has no host key for {pattern}", hint=hint)
    return dict(known)


def _load_private_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise SshError(
            f"the private key {path} does not exist",
            hint="Recreate the machine, or give another key.",
        ) from error
    except TypeError as error:  # what cryptography raises for a key with a passphrase
        raise SshError(
            f"the private key {path} is protected by a passphrase",
            hint="Give a key without one; the agent cannot ask.",
        ) from error
    except (ValueError, OSError, UnsupportedAlgorithm, paramiko.SSHException) as error:
        raise SshError(
            f"the private key {path} cannot be read: {reason_of(error)}",
            hint="Restore the file, or recreate the machine.",
        ) from error


def _dial(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    place = f"{endpoint.host}:{endpoint.port}"
    try:
        connection = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except ConnectionRefusedError as error:
        raise SshError(
            f"nothing answers at {place}: connection refused",
            hint="Check that the machine runs (`desk machine ls`) and that sshd listens there.",
        ) from error
    except socket.gaierror as error:
        raise SshError(
            f"the name {endpoint.host} cannot be resolved: {reason_of(error)}",
            hint="Check the host's name and this computer's network.",
        ) from error
    except TimeoutError as error:
        raise SshError(
            f"nothing answers at {place} within {timeout_s:g} seconds",
            hint="Check that the host is up and that no firewall is in between.",
        ) from error
    except OSError as error:
        raise SshError(
            f"{place} cannot be reached: {reason_of(error)}",
            hint="Check this computer's network.",
        ) from error
    return connection


def _host_key_types(known: dict[str, paramiko.PKey]) -> list[str]:
    types: list[str] = []
    for name in known:
        types += ["rsa-sha2-512", "rsa-sha2-256"] if name == "ssh-rsa" else [name]
    return types


def _shake_hands(
    endpoint: Endpoint, wire: Wire, known: dict[str, paramiko.PKey], timeout_s: float
) -> None:
    place = f"{endpoint.host}:{endpoint.port}"
    options = wire.get_security_options()
    # Known types first, as ssh does it; the rest stay, so that a changed key can be named.
    supported = tuple(options.key_types)
    first = [name for name in _host_key_types(known) if name in supported]
    options.key_types = tuple(first) + tuple(name for name in supported if name not in first)
    try:
        wire.start_client(timeout=timeout_s)
        shown = wire.get_remote_server_key()
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise SshError(
            f"{place} accepts connections but does not finish the SSH handshake:"
            f" {reason_of(error)}",
            hint="The machine may still be starting, or something else than sshd listens there.",
        ) from error
    expected = known.get(shown.get_name())
    if expected is not None and expected.asbytes() == shown.asbytes():
        return
    fingerprints = " or ".join(fingerprint_of_blob(key.asbytes()) for key in known.values())
    raise HostKeyMismatch(
        f"{place} shows the host key {fingerprint_of_blob(shown.asbytes())}, "
        f"but {endpoint.known_hosts} expects {fingerprints}",
        hint="Something else may be answering there. If you changed the machine's host key "
        "yourself, put the new one into that file; otherwise do not connect.",
    )


def _log_in(endpoint: Endpoint, wire: Wire, private_key: paramiko.PKey) -> None:
    place = f"{endpoint.host}:{endpoint.port}"
    started = time.monotonic()
    try:
        missing = wire.auth_publickey(endpoint.user, private_key)
    except paramiko.AuthenticationException as error:
        timed_out = time.monotonic() - started >= wire.auth_timeout
        if timed_out or not wire.is_active():
            raise SshError(
                f"{place} ended or stalled the login of user {endpoint.user}",
                hint="The machine may be overloaded, or its sshd limits logins; try again.",
            ) from error
        raise _refused(endpoint, place) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise SshError(
            f"{place} broke the connection off during the login: {reason_of(error)}",
            hint="Try again; see the machine's console log if it stays so.",
        ) from error
    if missing:
        raise _refused(endpoint, place)


def _refused(endpoint: Endpoint, place: str) -> KeyRefused:
    return KeyRefused(
        f"the machine at {place} does not accept Desk's key {endpoint.private_key} "
        f"for user {endpoint.user}",
        hint=f"Add the line in {endpoint.private_key}.pub to ~{endpoint.user}/.ssh/"
        "authorized_keys in the machine, or recreate the machine.",
    )
