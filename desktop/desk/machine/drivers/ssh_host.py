"""Driver ``ssh``: the engine on an existing Linux with sshd, under root or sudo.

Options: ``ssh_host`` (needed), ``ssh_port``, ``ssh_user``, ``ssh_key`` (a private key without
passphrase), ``ssh_host_key`` (the host's public key, or a file with it; else the user's
known_hosts must know the host: nothing is trusted blindly), ``prefix``, ``data_root``,
``exec_root``, ``bip``, ``default_address_pool``. An engine that lived there before is used and
left where it is; one that Desk put there goes with the machine.

Facts: ``program``, ``is_root``, ``found`` (an engine was there), ``power``.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import Iterator
from pathlib import Path

from desk.agent.spec import EngineAccess
from desk.errors import DriverError, EngineError, SshError, UsageError
from desk.machine.driver import Features, Progress
from desk.machine.drivers.engine_end import remove_everything, stop_containers
from desk.machine.drivers.options import check_known, port_option
from desk.machine.drivers.remote_engine import Place, RemoteEngine
from desk.machine.drivers.table import DriverContext
from desk.machine.model import MachineSpec, State
from desk.machine.sharing import SHARING_OPTIONS
from desk.ssh.endpoint import Endpoint

OPTIONS = frozenset(
    {
        *("ssh_host", "ssh_port", "ssh_user", "ssh_key", "ssh_host_key"),
        *("prefix", "data_root", "exec_root", "bip", "default_address_pool"),
        *SHARING_OPTIONS,
    }
)
_USUAL_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_PROBE_S = 0.5


class SshHostDriver:
    """An engine on another Linux; power means the engine's."""

    features = Features(
        needs_guest_image=False,
        has_ssh=True,
        can_power=True,
        has_console=False,
        live_memory=False,
        sized=False,
        led_back_by_agent=True,
        state_interval_s=5.0,
        options=OPTIONS,
        needed_options=frozenset({"ssh_host"}),
    )

    def __init__(self, context: DriverContext) -> None:
        self._name = context.name
        self._paths = context.paths
        self._record = context.record

    def create(self, spec: MachineSpec, progress: Progress) -> None:
        """Settle the host key and the login, and install the engine; it does not run yet."""
        check_known(spec, OPTIONS)
        if not all(spec.options.get(key) for key in self.features.needed_options):
            raise UsageError(
                "the driver ssh needs the option ssh_host", hint="Give the host's name or address."
            )
        endpoint = self._endpoint_of(spec)
        self._write_known_hosts(spec, endpoint)
        progress(f"Logging in to {endpoint.user}@{endpoint.host}")
        with self._engine(spec) as engine:
            found = engine.has_engine()
            program = engine.install(progress)
        self._record.update(
            {
                "program": program,
                "is_root": "yes" if engine.is_root else "",
                "found": "yes" if found else "",
                "power": "off",
            }
        )

    def provision(self, progress: Progress) -> None:
        """Look the host key up again and install this Desk's engine."""
        spec = self._spec()
        self._write_known_hosts(spec, self._endpoint_of(spec))
        with self._engine(spec) as engine:
            program = engine.install(progress)
        self._record.update({"program": program, "is_root": "yes" if engine.is_root else ""})

    def _endpoint_of(self, spec: MachineSpec) -> Endpoint:
        options = spec.options
        return Endpoint(
            host=options["ssh_host"],
            port=port_option(spec, "ssh_port", 22),
            user=options.get("ssh_user") or getpass.getuser(),
            private_key=_private_key(options.get("ssh_key", "")),
            known_hosts=self._paths.known_hosts,
        )

    def _write_known_hosts(self, spec: MachineSpec, endpoint: Endpoint) -> None:
        from desk.ssh.keys import write_known_hosts
        from desk.ssh.known_hosts import known_keys, user_files

        given = spec.options.get("ssh_host_key", "")
        if given:
            file = Path(given).expanduser()
            keys: tuple[str, ...] = (file.read_text("utf-8") if file.is_file() else given,)
        else:
            keys = known_keys(user_files(), endpoint.host, endpoint.port)
        if not keys:
            raise UsageError(
                f"the host key of {endpoint.host} is not known",
                hint=f"Connect once with `ssh -p {endpoint.port} {endpoint.user}@{endpoint.host}` "
                "and check its fingerprint, or give the option ssh_host_key.",
            )
        write_known_hosts(self._paths.known_hosts, endpoint.host, endpoint.port, *keys)

    @contextlib.contextmanager
    def _engine(self, spec: MachineSpec) -> Iterator[RemoteEngine]:
        from desk.ssh.session import Session

        with Session.connect(self._endpoint_of(spec)) as session:
            engine = RemoteEngine(session, self._place(spec))
            engine.check()
            yield engine

    def _place(self, spec: MachineSpec) -> Place:
        options = spec.options
        usual = Place(self._name)
        further = ["--host-gateway-ip", "agent"]
        for name in ("bip", "default_address_pool"):
            if options.get(name):
                further += [f"--{name.replace('_', '-')}", options[name]]
        return Place(
            self._name,
            prefix=options.get("prefix") or usual.prefix,
            data_root=options.get("data_root") or usual.data_root,
            exec_root=options.get("exec_root") or usual.exec_root,
            options=tuple(further),
        )

    # --- power -----------------------------------------------------------------------------

    def start(self, progress: Progress) -> None:
        """Start the engine where it does not run; a newer Desk brings its engine along."""
        spec = self._spec()
        progress(f"Starting the engine on {spec.options['ssh_host']}")
        with self._engine(spec) as engine:
            program = engine.install(progress)
            engine.start(program)
        self._record.update({"program": program, "power": "on"})

    def stop(self, *, grace_s: float) -> None:
        """Stop the containers, each with ``grace_s`` seconds, then the engine."""
        if self._record.get("power") == "on":
            self._end(grace_s, hard=False)

    def kill(self) -> None:
        """End the containers and the engine at once."""
        if self._record.get("power") == "on":
            self._end(0, hard=True)

    def _end(self, grace_s: float, *, hard: bool) -> None:
        with self._engine(self._spec()) as engine:
            # An engine that does not answer any more is ended all the same.
            with contextlib.suppress(EngineError):
                stop_containers(engine.transport(self.engine_access()), grace_s=grace_s)
            engine.stop(hard=hard)
        self._record.update({"power": "off"})

    def freeze(self) -> None:
        return

    def thaw(self) -> None:
        return

    def park(self) -> None:
        return

    def check_sharing(self, spec: MachineSpec) -> None:
        return

    def remove(self) -> None:
        """Take away what ``create`` brought; an engine that was there before stays as it is."""
        program = self._record.get("program")
        if not program or not self._record.exists():
            return
        with self._engine(self._spec()) as engine:
            if self._record.get("power") == "on":
                if not self._record.get("found"):
                    with contextlib.suppress(EngineError):
                        remove_everything(engine.transport(self.engine_access()))
                engine.stop(hard=False)
                self._record.update({"power": "off"})
            if not self._record.get("found"):
                engine.remove(program)
        self._record.update({"program": ""})

    # --- what it is now --------------------------------------------------------------------

    def state(self) -> State:
        """Whether the engine was started, and sshd answers; asking the host would take longer."""
        if self._record.get("power") != "on":
            return State.STOPPED
        endpoint = self.endpoint()
        try:
            socket.create_connection((endpoint.host, endpoint.port), _PROBE_S).close()
        except OSError:
            return State.TIMEOUT
        return State.RUNNING

    def endpoint(self) -> Endpoint:
        return self._endpoint_of(self._spec())

    def engine_access(self) -> EngineAccess:
        spec, program = self._spec(), self._record.get("program") or "deskd"
        socket_path = self._place(spec).socket
        dial = f"{program} dial-stdio --host unix://{socket_path}"
        if self._record.get("is_root"):
            return EngineAccess(socket=socket_path, command=dial)
        return EngineAccess(socket="", command=f"sudo -n {dial}")

    def host_memory_bytes(self) -> int | None:
        return None  # this computer pays nothing for it

    def live_memory(self) -> None:
        return None

    def data_disk(self) -> None:
        return None

    def diagnose(self) -> str:
        try:
            with self._engine(self._spec()) as engine:
                words = engine.last_words()
        except (SshError, DriverError) as error:
            return error.text
        return f"the engine's log there ends with: {words}" if words else "the engine wrote no log"

    def _spec(self) -> MachineSpec:
        return self._record.read().spec


def _private_key(option: str) -> Path:
    if option:
        return Path(option).expanduser().absolute()
    directory = Path.home() / ".ssh"
    for name in _USUAL_KEYS:
        if (directory / name).is_file():
            return directory / name
    raise UsageError(
        f"there is no private key in {directory}",
        hint="Give one with the option ssh_key; `ssh-keygen -t ed25519` makes one.",
    )
