"""Registries and a machine: its own one, one on the laptop, and how the machine is told of them."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli_process import DESK
from tests.guest_image import guest_image
from tests.http_proxy import HttpProxy
from tests.kernel.image_store import entry, tar
from tests.laptop import LAPTOP, Laptop, laptop_with_machine
from tests.registry_process import Pusher, free_port, running_registry

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

LAYER = tar(entry("from", b"the laptop\n"))


@pytest.fixture(scope="module")
def laptop(guest_image: Path) -> Iterator[Laptop]:
    with laptop_with_machine(guest_image) as made:
        yield made


def catalog(address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{address}/v2/_catalog", timeout=30) as answer:
        return list(json.load(answer)["repositories"])


def test_the_machines_own_registry(laptop: Laptop) -> None:
    port = free_port()
    address = f"localhost:{port}"
    laptop.desk("registry", "start", "--port", str(port))
    name = f"{address}/team/box:1"
    laptop.docker("tag", "busybox", name)
    laptop.docker("push", name)
    assert catalog(address) == ["team/box"]
    laptop.docker("rmi", name)
    laptop.docker("pull", name)
    assert laptop.docker("run", "--rm", name, "echo", "pulled") == "pulled\n"
    assert f"registry: it answers at {address}" in laptop.told(DESK, "doctor")

    # It comes back with the machine, and its images with it.
    laptop.desk("machine", "restart")
    assert laptop.desk("registry", "start").startswith(f"The registry is at {address}.")
    assert catalog(address) == ["team/box"]
    laptop.desk("registry", "stop")
    assert laptop.desk("registry", "status") == "Stopped\n"
    laptop.desk("registry", "rm", "-f")
    assert "desk-registry" not in laptop.docker("ps", "-a") + laptop.docker("volume", "ls")


def test_settings_of_a_machine_survive_restarts_and_lose_no_container(
    laptop: Laptop, tmp_path: Path
) -> None:
    """A registry of the laptop: without TLS, with a CA of its own, as a mirror, beyond a proxy."""
    with (
        running_registry(tmp_path / "plain") as here,
        running_registry(tmp_path / "secure", tls=True, tls_address=LAPTOP) as guarded,
        HttpProxy(here) as proxy,
    ):
        Pusher(here).image("mine", "1", [LAYER])
        Pusher(here).image("library/mirrored", "1", [LAYER])
        plain, secure = (f"{LAPTOP}:{at.rpartition(':')[2]}" for at in (here, guarded))
        laptop.docker("run", "-d", "--name", "lasting", "--restart", "always",
                      "busybox", "sleep", "100000")  # fmt: skip
        said = laptop.docker("pull", f"{plain}/mine:1", code=1)
        assert "server gave HTTP response to HTTPS client" in said

        trusted = laptop.home / "docker" / "certs.d" / secure
        trusted.mkdir(parents=True)
        shutil.copyfile(tmp_path / "secure" / "cert.pem", trusted / "ca.crt")
        laptop.desk(
            "machine", "set", "default",
            f"insecure-registry={plain},hidden.example:5000",
            f"registry-mirror=http://{plain}",
            f"http-proxy=http://{LAPTOP}:{proxy.address.rpartition(':')[2]}",
            f"no-proxy={LAPTOP}",
        )  # fmt: skip
        laptop.desk("machine", "restart")

        assert "lasting" in laptop.docker("ps")
        laptop.docker("pull", f"{plain}/mine:1")
        laptop.docker("pull", "mirrored:1")
        laptop.docker("pull", "hidden.example:5000/mine:1")
        assert set(proxy.hosts) == {"hidden.example:5000"}
        laptop.docker("tag", "busybox", f"{secure}/own:1")
        laptop.docker("push", f"{secure}/own:1")
        laptop.docker("rmi", f"{secure}/own:1")
        laptop.docker("pull", f"{secure}/own:1")
        laptop.docker("rm", "-f", "lasting")


def test_impossible_settings_change_nothing(laptop: Laptop) -> None:
    before = laptop.desk("machine", "inspect")
    for given in ("registry-mirror=host", "insecure-registry=http://host", "https-proxy=host:1"):
        assert "cannot be" in laptop.desk("machine", "set", given, code=125)
    assert "registry_mirror" in laptop.desk("machine", "set", "registry-miror=https://a", code=125)
    assert laptop.desk("machine", "inspect") == before
