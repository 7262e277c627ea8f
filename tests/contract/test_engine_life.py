"""An engine that is killed: containers go on, no line is lost, policies are carried out after."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.engine_places import EnginePlace, execute


def until(condition: Callable[[], object], what: str, deadline_s: float = 60) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_killing_the_engine_ends_no_container_and_loses_nothing(place: EnginePlace) -> None:
    """Processes, log lines, limits and restart policies are there when an engine is again."""
    api = place.api
    counting = "i=0; until [ -e /end ]; do i=$((i+1)); echo n$i; usleep 5000; done; exit 9"
    counter = api.run("sh", "-c", counting)
    steady = api.run("sleep", "600", HostConfig={"Memory": 64 << 20})
    always = api.run("sleep", "600", HostConfig={"RestartPolicy": {"Name": "always"}})
    pids = {name: api.inspect(name)["State"]["Pid"] for name in (steady, always)}
    until(lambda: api.logs(counter), "the container does not count")
    place.kill_engine()
    state = api.inspect(steady)["State"]
    assert (state["Status"], state["Pid"]) == ("running", pids[steady])
    assert execute(place, steady, "echo hello") == (0, "hello\n")
    execute(place, counter, "touch /end")  # it may be ended with the container
    assert api.wait(counter) == 9
    lines = api.logs(counter).decode().splitlines()
    assert lines == [f"n{number}" for number in range(1, len(lines) + 1)]
    assert len(lines) > 10
    api.post(f"/containers/{steady}/update", {"PidsLimit": 40})

    place.run(f"kill -9 {pids[steady]} {pids[always]}")
    assert api.wait(steady) == 137

    def back() -> bool:
        state = api.inspect(always)["State"]
        return state["Status"] == "running" and state["Pid"] != pids[always]

    until(back, "the container was not started again")
    assert api.inspect(always)["RestartCount"] == 1
    api.post(f"/containers/{always}/stop", t=0)
    assert api.inspect(always)["State"]["Status"] == "exited"
