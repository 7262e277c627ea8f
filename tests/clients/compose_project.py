"""Compose as its users run it: Compose 2 as plugin of the docker CLI and alone, and
docker-compose 1.29 (Debian 12's package)."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from tests.engine_process import REPOSITORY, EngineProcess, docker_cli

PROJECTS = Path(__file__).parent / "projects"
PLUGIN_PLACES = (
    *(
        f"{directory}/docker/cli-plugins/docker-compose"
        for directory in ("/usr/local/lib", "/usr/local/libexec", "/usr/lib", "/usr/libexec")
    ),
    str(REPOSITORY / "build/trixie/root/usr/libexec/docker/cli-plugins/docker-compose"),
)
TIMEOUT_S = 90.0


@functools.cache
def compose_plugin() -> str:
    """Return the program of Compose 2: an installed plugin, or the one packaging/test unpacked."""
    found = next((path for path in PLUGIN_PLACES if Path(path).exists()), None)
    assert found, f"Compose 2 is missing: packaging/test fetches it; looked at {PLUGIN_PLACES}"
    return found


@functools.cache
def old_compose() -> str:
    """Return docker-compose 1.29."""
    found = shutil.which("docker-compose")
    assert found, "docker-compose 1.29 is missing: install Debian 12's docker-compose"
    version = subprocess.run([found, "version", "--short"], capture_output=True, text=True).stdout
    assert version.startswith("1.29"), f"{found} is version {version}: the tests want 1.29"
    return found


class Compose:
    """One project of ``tests/clients/projects``, run by one kind of Compose."""

    def __init__(self, kind: str, engine: EngineProcess, project: str, directory: Path) -> None:
        self.kind = kind
        self.name = project
        self.directory = directory / project
        shutil.copytree(PROJECTS / project, self.directory)
        self._engine = engine
        plugins = Path(engine.environment["DOCKER_CONFIG"]) / "cli-plugins"
        plugins.mkdir(exist_ok=True)
        link = plugins / "docker-compose"
        if not link.exists():
            link.symlink_to(compose_plugin())

    def command(self, *arguments: str) -> list[str]:
        """Return a command line."""
        if self.kind == "plugin":
            program = [docker_cli(), "compose"]
        else:
            program = [old_compose() if self.kind == "1.29" else compose_plugin()]
        return [*program, "--ansi", "never", "-p", self.name, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            env=self._engine.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def __call__(self, *arguments: str) -> str:
        """Run a command that must succeed; return its standard output."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"compose {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that stays; its output is to be read from ``stdout``."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.directory,
            env=self._engine.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def containers(
        self, service: str = "", *, running_only: bool = False
    ) -> list[dict[str, object]]:
        """List the project's containers through the engine's API."""
        labels = [f"com.docker.compose.project={self.name}"]
        if service:
            labels.append(f"com.docker.compose.service={service}")
        found: list[dict[str, object]] = self._engine.api.get(
            "/containers/json", all=not running_only, filters={"label": labels}
        )
        return found
