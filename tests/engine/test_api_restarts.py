"""Restart policies, stops between two runs, and removals that race with starts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.engine_process import Api, ApiError, until

pytestmark = pytest.mark.root


def policy(name: str, count: int = 0, **more: Any) -> dict[str, Any]:
    return {"RestartPolicy": {"Name": name, "MaximumRetryCount": count}, **more}


def state(api: Api, container: str) -> Any:
    return api.inspect(container)["State"]


def test_restarts_come_after_growing_pauses(api: Api) -> None:
    container = api.create("false", HostConfig=policy("always"))
    with api.events(filters={"container": [container], "event": ["start", "die"]}) as events:
        api.post(f"/containers/{container}/start")
        told = [next(events) for _ in range(9)]
    assert [event["Action"] for event in told] == ["start", "die"] * 4 + ["start"]
    pauses = [
        (start["timeNano"] - die["timeNano"]) / 1e9
        for die, start in zip(told[1::2], told[2::2], strict=True)
    ]
    # Docker's: 100 ms, twice as long each time. Only "not sooner" can be asserted.
    for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert pause >= least * 0.95
    until(lambda: api.inspect(container)["RestartCount"] >= 4)
    api.post(f"/containers/{container}/stop")
    assert state(api, container)["Status"] == "exited"


def test_on_failure_gives_up_after_its_count(api: Api) -> None:
    container = api.run("sh", "-c", "exit 3", HostConfig=policy("on-failure", 2))
    until(lambda: state(api, container)["Status"] == "exited")
    found = api.inspect(container)
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (2, 3)
    assert api.wait(container) == 3
    api.post(f"/containers/{container}/start")  # counts from the beginning
    until(lambda: state(api, container)["Status"] == "exited")
    assert api.inspect(container)["RestartCount"] == 2


def test_on_failure_is_content_with_success(api: Api) -> None:
    container = api.run("true", HostConfig=policy("on-failure"))
    assert api.wait(container) == 0
    assert state(api, container)["Status"] == "exited"
    assert api.inspect(container)["RestartCount"] == 0


def test_a_container_between_two_runs(api: Api) -> None:
    script = "[ -e /tmp/ran ] || { touch /tmp/ran; sleep 0.1; }; exit 5"
    container = api.run("sh", "-c", script, HostConfig=policy("unless-stopped"))

    def pausing() -> bool:
        found = api.inspect(container)
        return found["State"]["Restarting"] and found["RestartCount"] > 5

    until(pausing)  # for 3.2 s now
    found = state(api, container)
    assert (found["Running"], found["Status"], found["ExitCode"]) == (True, "restarting", 5)
    for path, document in (("pause", None), ("exec", {"Cmd": ["true"]})):
        error = api.error("POST", f"/containers/{container}/{path}", document)
        assert error.status == 409
        assert "is restarting, wait until the container is running" in error.message
    error = api.error("DELETE", f"/containers/{container}")
    assert error.status == 409
    listed = api.get("/containers/json", filters={"status": ["restarting"]})
    assert [item["Id"] for item in listed] == [container]
    assert listed[0]["Status"].startswith("Restarting (5) ")
    api.post(f"/containers/{container}/stop")
    assert state(api, container)["Status"] == "exited"


def test_a_policy_can_be_taken_away_and_given(api: Api) -> None:
    container = api.run("false", HostConfig=policy("always"))
    until(lambda: api.inspect(container)["RestartCount"] > 0)
    api.post(f"/containers/{container}/update", policy("no"))
    until(lambda: state(api, container)["Status"] == "exited")
    api.post(f"/containers/{container}/update", policy("on-failure", 1))
    assert api.inspect(container)["HostConfig"]["RestartPolicy"] == {
        "Name": "on-failure",
        "MaximumRetryCount": 1,
    }
    for wrong in (policy("sometimes"), policy("always", 3), policy("on-failure", -1)):
        error = api.error("POST", f"/containers/{container}/update", wrong)
        assert (error.status, error.message.split(":")[0]) == (400, "invalid restart policy")
    removed = api.run("sleep", "600", HostConfig={"AutoRemove": True})
    error = api.error("POST", f"/containers/{removed}/update", policy("always"))
    assert error.status == 409


def test_what_a_hand_stopped_is_not_restarted(api: Api) -> None:
    for action in ("stop?t=0", "kill"):
        container = api.run("sleep", "600", HostConfig=policy("always"))
        api.post(f"/containers/{container}/{action}")
        assert state(api, container)["Status"] == "exited"
        assert api.inspect(container)["RestartCount"] == 0
    # A signal that the program dies of by itself is no stop.
    script = "trap 'exit 9' USR1; touch /ready; while :; do sleep 0.05; done"
    container = api.run("sh", "-c", script, HostConfig=policy("always"))
    until(lambda: api.raw("HEAD", f"/containers/{container}/archive?path=/ready")[0] == 200)
    api.post(f"/containers/{container}/kill", signal="USR1")
    until(lambda: api.inspect(container)["RestartCount"] == 1)


def test_removal_by_itself_and_restarts_exclude_each_other(api: Api) -> None:
    for name in ("always", "on-failure", "unless-stopped"):
        wish = {"Image": "busybox", "HostConfig": policy(name, AutoRemove=True)}
        error = api.error("POST", "/containers/create", wish)
        assert error.status == 400
        assert error.message == "can't create 'AutoRemove' container with restart policy"
    container = api.run("true", HostConfig={"AutoRemove": True})
    until(lambda: api.raw("GET", f"/containers/{container}/json")[0] == 404)


def test_a_forced_removal_beats_starts(api: Api) -> None:
    for _ in range(15):
        container = api.create("sleep", "600")
        met: list[int] = []

        def start(container: str = container, met: list[int] = met) -> None:
            for _ in range(3):
                try:
                    api.post(f"/containers/{container}/start")
                except ApiError as error:
                    met.append(error.status)

        starting = threading.Thread(target=start)
        starting.start()
        api.delete(f"/containers/{container}", force=True)
        starting.join()
        assert set(met) <= {404, 409}
        assert api.raw("GET", f"/containers/{container}/json")[0] == 404
