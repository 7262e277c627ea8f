"""Health checks: states, log, events, filters, pauses, stops and engine restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess, busybox_tar, run_docker, until

pytestmark = pytest.mark.root

MS = 1_000_000


def check(*test: str, **fields: Any) -> dict[str, Any]:
    return {
        "Test": list(test),
        "Interval": 100 * MS,
        "Timeout": 30_000 * MS,
        "Retries": 2,
        **fields,
    }


def health(api: Api, container: str) -> Any:
    return api.inspect(container)["State"]["Health"]


def reaches(api: Api, container: str, status: str) -> Any:
    return until(lambda: (found := health(api, container))["Status"] == status and found)


def settled(look: Callable[[], Any]) -> Any:
    """Return what is the same for half a second, five times the checks' interval."""

    def twice() -> Any:
        before = look()
        time.sleep(0.5)
        return look() == before and [before]

    return until(twice)[0]


def selected(api: Api, status: str) -> list[str]:
    found = api.get("/containers/json", filters=json.dumps({"health": [status]}), all=1)
    return [item["Id"] for item in found]


def test_health_follows_the_probe_and_is_told(api: Api) -> None:
    script = "test -e /tmp/ok && echo fine || { echo bad >&2; exit 3; }"
    with api.events(filters={"type": ["container"], "event": ["health_status"]}) as events:
        container = api.run("sleep", "60", Healthcheck=check("CMD-SHELL", script))
        assert health(api, container)["Status"] == "starting"
        state = reaches(api, container, "unhealthy")
        assert state["FailingStreak"] >= 2
        result = state["Log"][-1]
        assert (result["ExitCode"], result["Output"]) == (3, "bad\n")
        assert result["Start"] < result["End"]
        assert selected(api, "unhealthy") == [container]
        run = api.post(f"/containers/{container}/exec", {"Cmd": ["touch", "/tmp/ok"]})["Id"]
        api.post(f"/exec/{run}/start", {"Detach": True})
        state = reaches(api, container, "healthy")
        assert (state["FailingStreak"], state["Log"][-1]["Output"]) == (0, "fine\n")
        assert [next(events)["Action"] for _ in range(2)] == [
            "health_status: unhealthy", "health_status: healthy",
        ]  # fmt: skip
    until(lambda: len(health(api, container)["Log"]) == 5)
    (summary,) = api.get("/containers/json")
    assert summary["Status"].endswith("(healthy)")
    assert selected(api, "healthy") == [container]
    assert selected(api, "none") == []
    assert len(api.inspect(container)["ExecIDs"] or []) <= 2  # one that ends, one that begins


def test_start_period_failures_do_not_count(api: Api) -> None:
    container = api.run(
        "sleep", "60",
        Healthcheck=check("CMD", "false", StartPeriod=60_000 * MS, StartInterval=50 * MS),
    )  # fmt: skip
    until(lambda: len(health(api, container)["Log"]) >= 3)
    state = health(api, container)
    assert (state["Status"], state["FailingStreak"]) == ("starting", 0)
    assert api.get("/containers/json")[0]["Status"].endswith("(health: starting)")


def test_slow_missing_and_talkative_probes(api: Api) -> None:
    slow = api.run(
        "sleep", "60", Healthcheck=check("CMD-SHELL", "echo hm; sleep 9", Timeout=1000 * MS)
    )
    missing = api.run("sleep", "60", Healthcheck=check("CMD", "nosuchprogram"))
    talkative = api.run(
        "sleep", "60", Healthcheck=check("CMD-SHELL", "head -c 100000 /dev/zero | tr '\\0' x")
    )
    reaches(api, slow, "unhealthy")
    told = "Health check exceeded timeout (1s): hm\n"
    until(lambda: any(entry["Output"] == told for entry in health(api, slow)["Log"]))
    assert {entry["ExitCode"] for entry in health(api, slow)["Log"]} == {-1}
    result = reaches(api, missing, "unhealthy")["Log"][-1]
    assert result["ExitCode"] == -1
    assert "nosuchprogram" in result["Output"]
    output = reaches(api, talkative, "healthy")["Log"][-1]["Output"]
    assert output == "x" * 4096 + "..."


def test_pause_and_stop_end_the_probes(api: Api) -> None:
    script = "echo . >> /tmp/probes"
    container = api.run(
        "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done",
        Healthcheck=check("CMD-SHELL", script),
    )  # fmt: skip
    reaches(api, container, "healthy")
    api.post(f"/containers/{container}/pause")
    settled(lambda: health(api, container)["Log"][-1])
    api.post(f"/containers/{container}/unpause")
    reaches(api, container, "healthy")
    api.post(f"/containers/{container}/stop")
    assert settled(lambda: health(api, container))["Status"] == "unhealthy"
    api.post(f"/containers/{container}/start")
    assert health(api, container)["Status"] in ("starting", "healthy")
    reaches(api, container, "healthy")


def test_containers_without_a_check_have_no_health(api: Api) -> None:
    checks: list[dict[str, Any]] = [
        {},
        *({"Healthcheck": {"Test": test}} for test in (["NONE"], [])),
    ]
    for fields in checks:
        container = api.run("sleep", "60", **fields)
        assert "Health" not in api.inspect(container)["State"]
        assert container in selected(api, "none")


def test_health_survives_an_engine_restart(own_engine: EngineProcess) -> None:
    api = own_engine.api
    container = api.run("sleep", "60", Healthcheck=check("CMD", "true"))
    reaches(api, container, "healthy")
    own_engine.kill()
    own_engine.start()
    state = health(api, container)
    assert state["Status"] == "healthy"
    newest = state["Log"][-1]
    until(lambda: health(api, container)["Log"][-1] != newest)


def test_docker_cli_flags_and_the_images_check(engine: EngineProcess) -> None:
    done = run_docker(
        engine, "import", "-c", "HEALTHCHECK --interval=100ms CMD cat /etc/health",
        "-", "checked", stdin=busybox_tar(),
    )  # fmt: skip
    if done.returncode:
        pytest.fail(done.stderr)
    run_docker(engine, "run", "-d", "--name", "own", "checked", "sleep", "60")
    run_docker(engine, "run", "-d", "--name", "off", "--no-healthcheck", "checked", "sleep", "60")
    run_docker(
        engine, "run", "-d", "--name", "other", "--health-cmd", "true", "checked", "sleep", "60"
    )
    api = engine.api
    reaches(api, "other", "healthy")
    assert api.inspect("other")["Config"]["Healthcheck"]["Interval"] == 100 * MS
    assert "Health" not in api.inspect("off")["State"]
    until(lambda: health(api, "own")["FailingStreak"] >= 1)
    names = run_docker(engine, "ps", "--filter", "health=healthy", "--format", "{{.Names}}")
    assert names.stdout == "other\n"
    engine.remove_everything()
    assert run_docker(engine, "rmi", "checked").returncode == 0


def test_pausing_and_stopping_in_the_middle_of_probes_leaves_nothing(
    own_engine: EngineProcess,
) -> None:
    api = own_engine.api
    container = api.run("sleep", "60", Healthcheck=check("CMD", "true", Interval=1 * MS))
    for _ in range(10):
        api.post(f"/containers/{container}/pause")
        api.post(f"/containers/{container}/unpause")
    reaches(api, container, "healthy")
    api.post(f"/containers/{container}/kill")
    processes = own_engine.root / "run" / "processes"
    until(lambda: list(processes.iterdir()) == [])
