"""A private registry on a machine: Debian's docker-registry in a container of its own.

The container is like any other (``docker logs desk-registry``); images lie in the volume of the
same name. The program comes with the guest image, as a root file system beside it; where none is
installed, the machine's own docker-registry is used.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from desk.engine.client import EngineClient
from desk.errors import Conflict, DeskError, EngineError, ImageError, MachineError, NotFound
from desk.machine.driver import Progress
from desk.machine.images import ImageStore
from desk.paths import Home

NAME = "desk-registry"
"""Name of the container, its image and its volume."""

DEFAULT_PORT = 5000
PROGRAM = "/usr/bin/docker-registry"
CONFIGURATION = "/etc/docker/registry/config.yml"
_ROLE = {"desk.role": "registry"}
_MACHINES_OWN = "machine"  # tag of the image that has nothing but what the machine has
_PIECE_BYTES = 256 * 1024
_ANSWER_DEADLINE_S = 60.0
_RESTARTS = 5
_GRACE_S = 10
_SETTINGS = """\
version: 0.1
log:
  level: info
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: /var/lib/registry
  delete:
    enabled: true
http:
  addr: :5000
"""


@dataclass(frozen=True, slots=True)
class RegistryStatus:
    """What there is of the registry. ``error`` is empty while it runs and answers, or is stopped
    as it should be."""

    running: bool
    port: int
    image: str
    error: str = ""

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"


class PrivateRegistry:
    """The registry of one engine. Calls block."""

    def __init__(self, client: EngineClient, home: Home) -> None:
        self._client = client
        self._images = ImageStore(home)

    # --- looking ---------------------------------------------------------------------------

    def status(self) -> RegistryStatus | None:
        """Return how the registry is, ``None`` where there is none. Raises ``Conflict`` where
        somebody else's container has its name."""
        details = self._container()
        if details is None:
            return None
        state = details["State"]
        host = details["HostConfig"]
        port = int(host["PortBindings"]["5000/tcp"][0]["HostPort"])
        image = str(details["Config"]["Image"])
        if not state["Running"]:
            failed = state.get("Error") or ""
            return RegistryStatus(running=False, port=port, image=image, error=str(failed))
        return RegistryStatus(True, port, image, self._obstacle(port))

    def _container(self) -> dict[str, Any] | None:
        try:
            details = self._client.containers.inspect(NAME)
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        if (details["Config"].get("Labels") or {}).get("desk.role") != "registry":
            raise Conflict(
                f"a container that is no registry of Desk's has the name {NAME}",
                hint=f"Rename it: `desk rename {NAME} NEW-NAME`.",
            )
        return details

    def _obstacle(self, port: int) -> str:
        """Say why the engine does not reach the registry; empty where it does."""
        try:
            self._client.images.distribution(f"localhost:{port}/desk-registry/is-there")
        except EngineError as error:
            # An answer that there is no such image is one.
            return "" if error.status in (401, 403, 404) else error.text
        return ""

    # --- starting --------------------------------------------------------------------------

    def start(self, port: int | None, progress: Progress) -> RegistryStatus:
        """Make the registry where there is none, start it, and return when it answers.

        ``port`` is the one of ``localhost``; ``None`` keeps what it has. With another port, or a
        newer program, the container is made anew; its images stay. Whatever is raised, a container
        that did not exist before does not exist now.
        """
        now = self.status()
        if now is not None and now.running and port in (None, now.port):
            if now.error:  # it may have come up with the machine a moment ago
                progress("Waiting for the registry")
                self._await_answer(now.port)
            return replace(now, error="")
        wanted = port or (now.port if now else DEFAULT_PORT)
        with ExitStack() as undo:
            image = self._image(now.image if now else "", progress)
            if now is None or now.port != wanted or now.image != image:
                if now is not None:
                    self._remove_container()
                self._create(image, wanted)
                undo.callback(self._remove_container)
            progress(f"Starting the registry at localhost:{wanted}")
            self._begin(image, wanted)
            self._await_answer(wanted)
            undo.pop_all()
        return RegistryStatus(running=True, port=wanted, image=image)

    def _image(self, present: str, progress: Progress) -> str:
        """Return the name of the image to run, imported where it is not there."""
        archive = self._archive()
        if archive is None and present and self._has_image(present):
            return present
        tag = _MACHINES_OWN if archive is None else _tag(archive)
        name = f"{NAME}:{tag}"
        if not self._has_image(name):
            progress("Giving the registry to the engine")
            pieces = _links_only() if archive is None else _pieces(archive)
            for _message in self._client.images.import_(
                pieces, repository=NAME, tag=tag, message="docker-registry of Debian"
            ):
                pass
        return name

    def _archive(self) -> Path | None:
        """Return the registry of the newest guest image for the engine's processor."""
        machine = str(self._client.system.info().get("Architecture", ""))
        arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
        try:
            return self._images.newest(arch).registry
        except ImageError:
            return None

    def _has_image(self, name: str) -> bool:
        try:
            self._client.images.inspect(name)
        except EngineError as error:
            if error.status == 404:
                return False
            raise
        return True

    def _create(self, image: str, port: int) -> None:
        mounts: list[dict[str, Any]] = [
            {"Type": "volume", "Source": NAME, "Target": "/var/lib/registry"}
        ]
        if image.endswith(f":{_MACHINES_OWN}"):
            mounts.append({"Type": "bind", "Source": "/usr", "Target": "/usr", "ReadOnly": True})
        self._client.containers.create(
            {
                "Image": image,
                "Entrypoint": [PROGRAM],
                "Cmd": ["serve", CONFIGURATION],
                "Labels": _ROLE,
                "ExposedPorts": {"5000/tcp": {}},
                "HostConfig": {
                    "RestartPolicy": {"Name": "unless-stopped"},
                    # On the machine's own loopback, and by its agent on the laptop's.
                    "PortBindings": {"5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
                    "Mounts": mounts,
                    "LogConfig": {"Type": "local", "Config": {"max-size": "5m"}},
                    "CapDrop": ["ALL"],
                    "SecurityOpt": ["no-new-privileges"],
                },
            },
            name=NAME,
        )
        try:
            self._client.containers.put_archive(NAME, "/", _settings_archive())
        except BaseException:
            self._remove_container()
            raise

    def _begin(self, image: str, port: int) -> None:
        try:
            self._client.containers.start(NAME)
        except EngineError as error:
            if image.endswith(f":{_MACHINES_OWN}") and not self._machine_has_program():
                raise NotFound(
                    "the machine has no docker-registry",
                    hint="Install Debian's package docker-registry there, or a guest image of this"
                    " Desk here (`desk machine image install PATH-OR-URL`).",
                ) from error
            raise MachineError(
                f"the registry cannot start: {error.text}",
                hint=f"If port {port} is taken, choose another: `desk registry start --port 5001`.",
            ) from error

    def _machine_has_program(self) -> bool:
        """Look for the program through the container, which has the machine's /usr."""
        try:
            self._client.containers.stat_archive(NAME, PROGRAM)
        except EngineError:
            return False
        return True

    def _await_answer(self, port: int) -> None:
        deadline = time.monotonic() + _ANSWER_DEADLINE_S
        while True:
            obstacle = self._obstacle(port)
            if not obstacle:
                return
            details = self._client.containers.inspect(NAME)
            # With its restart policy a program that ends is "restarting", over and over.
            ended = not details["State"]["Running"] or details["RestartCount"] >= _RESTARTS
            if ended or time.monotonic() > deadline:
                raise MachineError(
                    f"the registry does not answer: {self._last_words() or obstacle}",
                    hint="`desk doctor` checks the machine.",
                )
            time.sleep(0.1)

    def _last_words(self) -> str:
        with contextlib.suppress(DeskError), self._client.containers.logs(NAME, tail=1) as output:
            lines = b"".join(data for _kind, data in output).decode("utf-8", "replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    # --- stopping, tidying, removing -------------------------------------------------------

    def stop(self) -> bool:
        """Stop the registry; false where it was stopped. It stays so until it is started."""
        self._require()
        return self._client.containers.stop(NAME, timeout_s=_GRACE_S)

    def prune(self, progress: Progress) -> str:
        """Delete what no tag needs any more, and return what the registry's program says.

        The registry is stopped meanwhile: what an upload has just sent would look unused.
        """
        before = self._require()
        progress("Deleting what no tag needs any more")
        with ExitStack() as undo:
            if before.running:
                self._client.containers.stop(NAME, timeout_s=_GRACE_S)
                undo.callback(self._client.containers.start, NAME)
            helper = self._client.containers.create(
                {
                    "Image": before.image,
                    "Entrypoint": [PROGRAM],
                    "Cmd": ["garbage-collect", "--delete-untagged", CONFIGURATION],
                    "HostConfig": {
                        "NetworkMode": "none",
                        "Mounts": self._require_container()["HostConfig"]["Mounts"],
                    },
                }
            )["Id"]
            undo.callback(self._client.containers.remove, helper, force=True)
            self._client.containers.put_archive(helper, "/", _settings_archive())
            self._client.containers.start(helper)
            code = self._client.containers.wait(helper).code
            with self._client.containers.logs(helper) as output:
                said = b"".join(data for _kind, data in output).decode("utf-8", "replace")
            if code != 0:
                lines = said.strip().splitlines() or [f"exit code {code}"]
                raise MachineError(
                    f"the registry's garbage collection failed: {lines[-1]}",
                    hint="`desk registry start` and another try may do.",
                )
        if before.running:
            self._await_answer(before.port)
        return said

    def remove(self) -> None:
        """Remove the registry with its images; raises ``NotFound`` where there is nothing of it."""
        details = self._container()
        if details is not None:
            self._remove_container()
        volume = self._gone(lambda: self._client.volumes.remove(NAME))
        if details is None and volume:
            raise _no_registry()
        for image in self._client.images.list(filters={"reference": [NAME]}):
            for name in image.get("RepoTags") or ():
                self._gone(lambda name=name: self._client.images.remove(name))

    @staticmethod
    def _gone(remove: Any) -> bool:
        """Remove something; true where it was not there."""
        try:
            remove()
        except EngineError as error:
            if error.status != 404:
                raise
            return True
        return False

    def _require(self) -> RegistryStatus:
        found = self.status()
        if found is None:
            raise _no_registry()
        return found

    def _require_container(self) -> dict[str, Any]:
        details = self._container()
        if details is None:
            raise _no_registry()
        return details

    def _remove_container(self) -> None:
        self._gone(lambda: self._client.containers.remove(NAME, force=True))


def _no_registry() -> NotFound:
    return NotFound("there is no registry", hint="`desk registry start` makes and starts one.")


def _tag(archive: Path) -> str:
    """Return the image tag of an archive: the same for the same bytes."""
    import hashlib

    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _pieces(archive: Path) -> Iterator[bytes]:
    with archive.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _links_only() -> Iterator[bytes]:
    """A root file system for a registry whose /usr is the machine's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("usr", "etc", "tmp", "var", "var/lib", "var/lib/registry"):
            archive.addfile(_member(name, tarfile.DIRTYPE))
        for name in ("bin", "lib", "lib64"):
            link = _member(name, tarfile.SYMTYPE)
            link.linkname = f"usr/{name}"
            archive.addfile(link)
    yield buffer.getvalue()


def _settings_archive() -> Iterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        path = CONFIGURATION.lstrip("/")
        for parent in reversed(Path(path).parents[:-1]):
            archive.addfile(_member(parent.as_posix(), tarfile.DIRTYPE))
        member = _member(path, tarfile.REGTYPE)
        content = _SETTINGS.encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    yield buffer.getvalue()


def _member(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, 0o644 if kind == tarfile.REGTYPE else 0o755
    return member
