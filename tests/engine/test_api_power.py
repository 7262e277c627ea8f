"""On the laptop's battery containers get less CPU time, and labelled ones are paused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

LABELS = {"desk.power": "pause-on-battery"}
ALWAYS = {"RestartPolicy": {"Name": "always"}}
BATTERY, MAINS = {"Source": "battery", "NanoCpus": 250_000_000}, {"Source": "mains"}


def states(api: Api) -> dict[str, str]:
    found = api.get("/containers/json", all=True)
    return {container["Names"][0].removeprefix("/"): container["State"] for container in found}


def names(found: list[dict[str, str]]) -> list[str]:
    return sorted(each["Name"] for each in found)


def run(api: Api, name: str, **fields: Any) -> str:
    return api.run("sleep", "600", name=name, StopTimeout=0, **fields)


def test_battery_limits_and_freezes_and_mains_undoes_it(api: Api) -> None:
    plain = run(api, "plain")
    run(api, "worker", Labels=LABELS)
    run(api, "other", Labels={"desk.power": "always"})
    run(api, "own", Labels=LABELS)
    api.post("/containers/own/pause")
    with api.events(filters='{"type":["daemon","container"],"event":["power","pause"]}') as events:
        told = api.post("/desk/power", BATTERY)
        paused, power = next(events), next(events)
    assert (told["Source"], told["NanoCpus"], told["Problem"]) == ("battery", 250_000_000, "")
    assert (names(told["Frozen"]), told["Spared"]) == (["worker"], [])
    assert (paused["Action"], paused["Actor"]["Attributes"]["name"]) == ("pause", "worker")
    about = power["Actor"]["Attributes"]
    assert (power["Type"], power["Action"]) == ("daemon", "power")
    assert (about["source"], about["cpus"], about["frozen"]) == ("battery", "0.25", "worker")
    assert api.get("/desk/power") == told
    assert states(api) == {"plain": "running", "worker": "paused", "other": "running",
                           "own": "paused"}  # fmt: skip
    # A limit on all of them is none of the container's own.
    assert api.inspect(plain)["HostConfig"]["NanoCpus"] == 0

    told = api.post("/desk/power", MAINS)
    assert (told["Source"], told["NanoCpus"], told["Frozen"]) == ("mains", 0, [])
    assert states(api) == {"plain": "running", "worker": "running", "other": "running",
                           "own": "paused"}  # fmt: skip


def test_who_is_started_or_unpaused_by_hand_runs_until_the_next_change(api: Api) -> None:
    run(api, "first", Labels=LABELS)
    api.post("/desk/power", BATTERY)
    api.post("/containers/first/unpause")
    run(api, "second", Labels=LABELS)
    told = api.post("/desk/power", BATTERY)
    assert (told["Frozen"], names(told["Spared"])) == ([], ["first", "second"])
    # Neither a power that is not known nor a silent agent is a change of the power.
    api.post("/desk/power", {"Source": "unknown"})
    assert api.post("/desk/power", BATTERY)["Frozen"] == []
    api.post("/desk/power", MAINS)
    assert names(api.post("/desk/power", BATTERY)["Frozen"]) == ["first", "second"]
    api.post("/containers/first/stop")
    api.post("/containers/second/kill")
    assert states(api) == {"first": "exited", "second": "exited"}
    assert api.get("/desk/power")["Frozen"] == []
    api.post("/desk/power", MAINS)


def test_a_start_by_hand_counts_for_the_restarts_after_it(api: Api) -> None:
    api.post("/desk/power", BATTERY)
    ends = "[ -e /again ] && exec sleep 600; touch /again; exit 1"
    api.run("sh", "-c", ends, name="policy", StopTimeout=0, HostConfig=ALWAYS, Labels=LABELS)
    until(lambda: api.inspect("policy")["RestartCount"] == 1)
    until(lambda: states(api)["policy"] == "running")
    assert names(api.get("/desk/power")["Spared"]) == ["policy"]
    api.post("/desk/power", MAINS)
    assert names(api.post("/desk/power", BATTERY)["Frozen"]) == ["policy"]
    api.post("/desk/power", MAINS)


def test_it_outlives_the_engine_and_its_machine(own_engine: EngineProcess) -> None:
    api = own_engine.api
    run(api, "worker", Labels=LABELS)
    run(api, "wanted", Labels=LABELS)
    run(api, "own")
    api.post("/containers/own/pause")
    api.post("/desk/power", BATTERY)
    api.post("/containers/wanted/unpause")
    own_engine.kill()
    own_engine.start()
    told = api.get("/desk/power")
    assert (told["Source"], told["NanoCpus"]) == ("unknown", 250_000_000)
    assert names(told["Frozen"]) == ["worker"]
    told = api.post("/desk/power", BATTERY)
    assert (names(told["Frozen"]), names(told["Spared"])) == (["worker"], ["wanted"])

    # With the machine's restart the policy's pause is no state of the container's own.
    before = api.post("/desk/restart", {"TimeoutSeconds": 20})["Containers"]
    assert {each["Name"]: each["Before"] for each in before} == {
        "worker": "running", "wanted": "running", "own": "paused",
    }  # fmt: skip
    own_engine.kill()
    own_engine.start()
    api.post("/desk/power", BATTERY)
    report = until(lambda: (r := api.get("/desk/restart"))["Pending"] == 0 and r)
    assert {each["Name"]: each["After"] for each in report["Containers"]} == {
        each["Name"]: each["Before"] for each in before
    }
    until(lambda: states(api) == {"worker": "paused", "wanted": "running", "own": "paused"})
    assert names(api.get("/desk/power")["Frozen"]) == ["worker"]
    api.post("/desk/power", MAINS)
    assert states(api) == {"worker": "running", "wanted": "running", "own": "paused"}


def test_reports_that_say_nothing_are_refused(api: Api) -> None:
    for wrong in ({"Source": "sun"}, {}, {"Source": "battery", "NanoCpus": 1_000_000},
                  {"Source": "battery", "NanoCpus": -1}):  # fmt: skip
        assert api.error("POST", "/desk/power", wrong).status == 400, wrong
    assert api.get("/desk/power")["Frozen"] == []
