"""Networks beside Debian's dockerd: changes, throughput and rates of connections.

usage (as root): python -m tests.bench.bench_networks [--rounds N] [--seconds S]

Needs the packages iperf3, wrk and busybox-static; both engines run at once, each in a network
namespace of its own, and take turns. Changes are asked for over the API, without a client program:
network create and remove, connect and disconnect of a running container. Throughput is iperf3's
between two containers of one network, and from the machine to a published port; connections are
wrk's, one request each, to busybox's httpd behind a published port, where forking of the server
takes most of the time on both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.engines import (
    Engine,
    busybox_archive,
    desk_engine,
    docker_engine,
    interleave,
    report,
)
from tests.engine_process import API, Api

HOST_PROGRAMS = ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"]
IPERF_PORT = 5201
TURNS = 11  # each a tenth or so off: the median of few says nothing about a few hundredths
COMMON_API = "/v1.45"
ANSWER_TIMEOUT_S = 30.0
CHANGE_LIMIT = 0.5
PROGRAMS = ("iperf3", "wrk", "busybox", "docker")


class BothKnow(Api):
    """Calls of an API version that both engines have."""

    def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> tuple[int, dict[str, str], bytes]:
        path = COMMON_API + path.removeprefix(API)
        return super().raw(method, path, body, headers, timeout_s=timeout_s)


class Subject:
    """One engine with a network, a server for iperf3 and HTTP, and a client."""

    def __init__(self, engine: Engine, archive: Path) -> None:
        self.engine = engine
        self.api = BothKnow(str(engine.socket))
        engine.docker("import", str(archive), "bench")
        self.api.post("/networks/create", {"Name": "lan"})
        self.api.post("/networks/create", {"Name": "second"})
        script = (
            "mkdir -p /www /tmp && echo hello >/www/index.html && "
            "/usr/bin/busybox httpd -p 80 -h /www && "
            f"exec /usr/bin/iperf3 -s -p {IPERF_PORT}"
        )
        self.server = self._run("lan", "/bin/sh", "-c", script, ports=(IPERF_PORT, 80))
        self.client = self._run("lan", "/bin/sleep", "3600")
        shown = self.api.get(f"/containers/{self.server}/json")["NetworkSettings"]
        self.address = shown["Networks"]["lan"]["IPAddress"]
        self.published = {
            int(key.split("/")[0]): int(bindings[0]["HostPort"])
            for key, bindings in shown["Ports"].items()
        }
        self._await_server()

    def _run(self, network: str, *command: str, ports: Sequence[int] = ()) -> str:
        keys = [f"{port}/tcp" for port in ports]
        identifier: str = self.api.post(
            "/containers/create",
            {
                "Image": "bench",
                "Cmd": list(command),
                "ExposedPorts": {key: {} for key in keys},
                "HostConfig": {
                    "NetworkMode": network,
                    "Binds": HOST_PROGRAMS,
                    "PortBindings": {key: [{"HostPort": ""}] for key in keys},
                },
            },
        )["Id"]
        self.api.post(f"/containers/{identifier}/start")
        return identifier

    def _await_server(self) -> None:
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        reason = ""
        while time.monotonic() < deadline:
            try:
                self.to_published(1)
            except subprocess.CalledProcessError as error:  # iperf3 tells it in its report
                reason = error.stdout
                time.sleep(0.2)
            else:
                return
        raise SystemExit(f"{self.engine.name}: the server does not answer: {reason}")

    def create_and_remove(self) -> None:
        identifier = self.api.post("/networks/create", {"Name": "short"})["Id"]
        self.api.delete(f"/networks/{identifier}")

    def connect_and_disconnect(self) -> None:
        self.api.post("/networks/second/connect", {"Container": self.client})
        self.api.post("/networks/second/disconnect", {"Container": self.client})

    def between_containers(self, seconds: int) -> float:
        """Return gigabits a second from the client to the server."""
        pid = self.api.get(f"/containers/{self.client}/json")["State"]["Pid"]
        return self.iperf(self.address, IPERF_PORT, seconds, pid)

    def to_published(self, seconds: int) -> float:
        """Return gigabits a second from the machine to the published port."""
        return self.iperf("127.0.0.1", self.published[IPERF_PORT], seconds, self.engine.pid)

    def connections(self, seconds: int) -> float:
        """Return connections a second from the machine to the published HTTP port."""
        url = f"http://127.0.0.1:{self.published[80]}/index.html"
        close = ("-H", "Connection: close")
        wrk = ["wrk", "-t1", "-c16", f"-d{seconds}s", *close, url]
        found = re.search(r"Requests/sec:\s*([\d.]+)", _in_network(self.engine.pid, *wrk))
        if found is None:
            raise SystemExit(f"{self.engine.name}: wrk printed no rate")
        return float(found[1])

    def iperf(self, address: str, port: int, seconds: int, pid: int) -> float:
        """Run iperf3's client in a process's network namespace."""
        command = ["iperf3", "-c", address, "-p", str(port), "-t", str(seconds), "-J"]
        answer = json.loads(_in_network(pid, *command))
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def _in_network(pid: int, *command: str) -> str:
    nsenter = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
    return subprocess.run(nsenter, check=True, capture_output=True, text=True).stdout


def compare(title: str, unit: str, runs: dict[str, Callable[[], float]]) -> None:
    """Print the medians of measurements that take turns, and the ratio; more is better."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS):
        # What heats up or warms up in a round must not fall to the same one each time.
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            found[name].append(runs[name]())
    ours, theirs = (statistics.median(values) for values in found.values())
    first, second = runs
    print(
        f"{title}: {first} {ours:.2f} {unit}, {second} {theirs:.2f} {unit}, "
        f"ratio {ours / theirs:.2f}, wanted at least 1",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="changes (30)")
    parser.add_argument("--seconds", type=int, default=3, help="each measurement of traffic (3)")
    arguments = parser.parse_args()
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is missing: apt-get install iperf3 wrk busybox-static")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-bench-")))
        archive = busybox_archive(directory)
        subjects = [
            Subject(stack.enter_context(one()), archive) for one in (desk_engine, docker_engine)
        ]
        measure_changes(subjects, arguments.rounds)
        measure_traffic(subjects, arguments.seconds)


def measure_changes(subjects: Sequence[Subject], rounds: int) -> None:
    for title, change in (
        ("network create and remove", Subject.create_and_remove),
        ("network connect and disconnect", Subject.connect_and_disconnect),
    ):
        runs = {one.engine.name: partial(change, one) for one in subjects}
        report(title, interleave(rounds, runs), limit=CHANGE_LIMIT)


def measure_traffic(subjects: Sequence[Subject], seconds: int) -> None:
    for title, unit, measure in (
        ("container to container", "Gbit/s", Subject.between_containers),
        ("machine to a published port", "Gbit/s", Subject.to_published),
        ("connections to a published port", "/s", Subject.connections),
    ):
        compare(title, unit, {one.engine.name: partial(measure, one, seconds) for one in subjects})


if __name__ == "__main__":
    main()
