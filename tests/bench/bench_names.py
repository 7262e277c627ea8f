"""The name server of networks: answers a second, and what it adds to a container's start.

usage (as root): python -m tests.bench.bench_names [--rounds N]

Answers are counted by a container that keeps 64 questions under way; the engine's processor time
is divided by them. Starts in the default network, which has no name server, and in one that users
made are interleaved; a start here is create, start and wait over the API, without a client program.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from tests.bench.engines import interleave, report
from tests.engine_process import EngineProcess, running_engine

QUESTIONS = 10_000
HOST_PROGRAMS = ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"]

ASK = f"""
import json, socket, time
def question(name, number):
    header = number.to_bytes(2, "big") + bytes.fromhex("01000001000000000000")
    return header + bytes([len(name)]) + name + bytes.fromhex("0000010001")
def run(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(5)
        one.connect(("127.0.0.11", 53))
        begun, sent, got = time.perf_counter(), 0, 0
        while got < {QUESTIONS}:
            while sent < {QUESTIONS} and sent - got < 64:
                one.send(question(name, sent & 0xffff))
                sent += 1
            assert one.recv(512)[3] & 15 == 0
            got += 1
        return {QUESTIONS} / (time.perf_counter() - begun)
print(json.dumps([run(b"one"), run(b"all")]))
"""


def cpu_s(engine: EngineProcess) -> float:
    """Return the processor time that the engine's process has used."""
    assert engine.process is not None
    fields = Path(f"/proc/{engine.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(engine: EngineProcess, network: str) -> None:
    """Run one container to its end and remove it."""
    identifier = engine.api.run("true", HostConfig={"NetworkMode": network})
    engine.api.wait(identifier)
    engine.api.delete(f"/containers/{identifier}", force=True)


def measure_answers(engine: EngineProcess) -> None:
    """Print answers a second and the processor time of one."""
    for name in ("one", "two"):
        engine.api.run(
            *("sleep", "600"),
            name=name,
            HostConfig={"NetworkMode": "lan"},
            NetworkingConfig={"EndpointsConfig": {"lan": {"Aliases": ["all"]}}},
        )
    before = cpu_s(engine)
    fields: dict[str, Any] = {"HostConfig": {"NetworkMode": "lan", "Binds": HOST_PROGRAMS}}
    asker = engine.api.run("/usr/bin/python3", "-c", ASK, **fields)
    engine.api.wait(asker, timeout_s=300)
    one, several = json.loads(engine.api.logs(asker))
    used = cpu_s(engine) - before
    print(
        f"answers a second, asker and engine on the same cores: {one:.0f} with one address, "
        f"{several:.0f} with two that take turns; {used / QUESTIONS / 2 * 1e6:.0f} us of the "
        f"engine's processor time each, {QUESTIONS * 2 / used:.0f} a second on one core"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    with running_engine() as engine:
        engine.api.post("/networks/create", {"Name": "lan"})
        measure_answers(engine)
        time.sleep(1)
        times = interleave(
            rounds,
            {
                "with names": lambda: start(engine, "lan"),
                "without": lambda: start(engine, "bridge"),
            },
        )
        report("create, start, wait, remove", times)


if __name__ == "__main__":
    main()
