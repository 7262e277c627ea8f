"""``docker login`` through the engine, to a real registry with passwords."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_process import Api, EngineProcess, docker_cli

pytestmark = pytest.mark.root

PORT = 5077
# ann, s3cret
PASSWORDS = "ann:$2b$04$AzTvBQO/r1AAY6dGG3Y2Le02P.U/7CbbGxzaMEqEB5Esi3MdAxiRe\n"
CONFIGURATION = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/data}}}}
http: {{addr: 127.0.0.1:{port}}}
auth: {{htpasswd: {{realm: here, path: {directory}/passwords}}}}
"""


@pytest.fixture
def registry(engine: EngineProcess, tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry beside the engine, in its network namespace."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("the registry is missing: apt-get install docker-registry")
    (tmp_path / "passwords").write_text(PASSWORDS)
    configuration = tmp_path / "registry.yml"
    configuration.write_text(CONFIGURATION.format(directory=tmp_path, port=PORT))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            engine.inside_network(program, "serve", str(configuration)), stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 60
            while b"listening on" not in (tmp_path / "log").read_bytes():
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
            yield f"127.0.0.1:{PORT}"
        finally:
            process.terminate()
            process.wait(60)


def log_in(engine: EngineProcess, home: Path, address: str, password: str) -> tuple[int, str]:
    done = subprocess.run(
        [docker_cli(), "login", "-u", "ann", "--password-stdin", address],
        input=password.encode(),
        env={**os.environ, **engine.environment, "HOME": str(home), "DOCKER_CONFIG": str(home)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def test_docker_login(engine: EngineProcess, registry: str, tmp_path: Path) -> None:
    code, text = log_in(engine, tmp_path, registry, "s3cret")
    assert code == 0, text
    assert "Login Succeeded" in text
    code, text = log_in(engine, tmp_path, registry, "wrong")
    assert code == 1
    assert "unauthorized: incorrect username or password" in text


def test_answers_to_bad_logins(api: Api) -> None:
    error = api.error("POST", "/auth", {})
    assert (error.status, error.message) == (400, "a login needs a username and a password")
    body = {"username": "a", "password": "b", "serveraddress": "127.0.0.1:9"}
    error = api.error("POST", "/auth", body)
    assert error.status == 503
    assert "127.0.0.1:9" in error.message
