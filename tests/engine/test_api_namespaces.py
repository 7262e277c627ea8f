"""The namespaces of a container: its own, the machine's, another container's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import IMAGE, Api, EngineProcess, run_docker

pytestmark = pytest.mark.root

KINDS = ("mnt", "uts", "ipc", "net", "pid", "cgroup", "user")


def spaces(pid: int | str) -> dict[str, str]:
    return {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in KINDS}


def spaces_of(api: Api, container: str) -> dict[str, str]:
    return spaces(api.inspect(container)["State"]["Pid"])


def engine_spaces(engine: EngineProcess) -> dict[str, str]:
    assert engine.process is not None
    return spaces(engine.process.pid)


def shared(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {kind for kind in KINDS if one[kind] == other[kind]}


def test_a_container_has_its_own(engine: EngineProcess, api: Api) -> None:
    modes = {"CgroupnsMode": "private"}
    one, two = (spaces_of(api, api.run("sleep", "600", HostConfig=modes)) for _ in range(2))
    assert shared(one, engine_spaces(engine)) == {"user"}
    assert shared(one, two) == {"user"}


@pytest.mark.parametrize(
    ("modes", "kinds"),
    [
        ({"NetworkMode": "host"}, {"net"}),
        ({"PidMode": "host"}, {"pid"}),
        ({"IpcMode": "host"}, {"ipc"}),
        ({"UTSMode": "host"}, {"uts"}),
        ({"CgroupnsMode": "host"}, {"cgroup"}),
        (
            {"NetworkMode": "host", "PidMode": "host", "IpcMode": "host", "UTSMode": "host"},
            {"net", "pid", "ipc", "uts"},
        ),
    ],
)
def test_sharing_the_machines(
    engine: EngineProcess, api: Api, modes: dict[str, str], kinds: set[str]
) -> None:
    wished = {"CgroupnsMode": "private", **modes}
    container = api.run("sleep", "600", HostConfig=wished)
    assert shared(spaces_of(api, container), engine_spaces(engine)) == {"user"} | kinds
    told = api.inspect(container)["HostConfig"]
    assert {name: told[name] for name in wished} == wished


@pytest.mark.parametrize(
    ("mode", "kind"), [("NetworkMode", "net"), ("PidMode", "pid"), ("IpcMode", "ipc")]
)
def test_sharing_another_containers(api: Api, mode: str, kind: str) -> None:
    own = {"CgroupnsMode": "private", "IpcMode": "shareable"}
    donor = api.run("sleep", "600", name="donor", HostConfig=own)
    for reference in (donor, "donor"):
        wished = {"CgroupnsMode": "private", mode: f"container:{reference}"}
        container = api.run("sleep", "600", HostConfig=wished)
        assert shared(spaces_of(api, container), spaces_of(api, donor)) == {"user", kind}


def test_a_mac_address_for_a_shared_network_is_of_no_account(api: Api) -> None:
    donor = api.run("sleep", "600", name="donor")
    mode = f"container:{donor}"
    given = {"EndpointsConfig": {mode: {"MacAddress": "02:42:ac:11:00:99"}}}
    script = ("cat", "/sys/class/net/eth0/address")
    text = api.output(*script, HostConfig={"NetworkMode": mode}, NetworkingConfig=given)
    assert text.strip() == api.inspect(donor)["NetworkSettings"]["MacAddress"]


def test_processes_of_a_shared_pid_namespace_are_seen_and_end_alone(api: Api) -> None:
    donor = api.run("sleep", "601")
    modes = {"PidMode": f"container:{donor}"}
    container = api.run("sleep", "602", HostConfig=modes)
    assert "sleep 601" in api.output("ps", HostConfig=modes)
    api.delete(f"/containers/{container}", force=True)
    assert api.inspect(donor)["State"]["Running"]
    assert "sleep 602" not in api.output("ps", HostConfig=modes)


def test_shared_memory_is_shared_with_the_ipc_namespace(api: Api) -> None:
    wished = {"IpcMode": "shareable", "ShmSize": 1 << 20}
    donor = api.run("sh", "-c", "echo seen > /dev/shm/f; exec sleep 600", HostConfig=wished)
    modes = {"IpcMode": f"container:{donor}"}
    script = "while test ! -s /dev/shm/f; do sleep 0.1; done; cat /dev/shm/f; df -k /dev/shm"
    text = api.output("sh", "-c", script, HostConfig=modes)
    assert text.startswith("seen\n")
    assert text.split()[-5] == "1024"


@pytest.mark.parametrize("mode", ["private", "none", ""])
def test_an_ipc_namespace_that_is_not_shareable(api: Api, mode: str) -> None:
    donor = api.run("sleep", "600", HostConfig={"IpcMode": mode})
    assert api.inspect(donor)["HostConfig"]["IpcMode"] == (mode or "private")
    container = api.create("true", HostConfig={"IpcMode": f"container:{donor}"})
    error = api.error("POST", f"/containers/{container}/start")
    assert error.status == 400
    assert "non-shareable IPC (hint: use IpcMode:shareable for the donor container)" in (
        error.message
    )


def test_no_shared_memory_without_ipc(api: Api) -> None:
    text = api.output("ls", "-d", "/dev/shm", "/dev/mqueue", HostConfig={"IpcMode": "none"})
    assert text == "/dev/mqueue\nls: /dev/shm: No such file or directory\n" or text == (
        "ls: /dev/shm: No such file or directory\n/dev/mqueue\n"
    )


def test_no_network(api: Api) -> None:
    text = api.output("ip", "-o", "link", HostConfig={"NetworkMode": "none"})
    assert text.count("\n") == 1
    assert "lo:" in text


def test_the_cgroup_that_is_seen(api: Api, engine: EngineProcess) -> None:
    seen = {
        mode: api.output("cat", "/proc/self/cgroup", HostConfig={"CgroupnsMode": mode})
        for mode in ("host", "private")
    }
    assert engine.cgroup_parent in seen["host"]
    assert engine.cgroup_parent not in seen["private"]


def test_a_parent_for_the_cgroup(api: Api, engine: EngineProcess) -> None:
    """Container and exec are below it; the parent itself is whoever's who named it."""
    parent = f"{engine.cgroup_parent}/inner"
    for wish in (f"/{parent}", parent):
        container = api.run("sleep", "600", HostConfig={"CgroupParent": wish})
        found = api.inspect(container)
        assert found["HostConfig"]["CgroupParent"] == wish
        made = api.post(f"/containers/{container}/exec", {"Cmd": ["sleep", "600"]})["Id"]
        api.post(f"/exec/{made}/start", {"Detach": True})
        for pid in (found["State"]["Pid"], api.get(f"/exec/{made}/json")["Pid"]):
            places = Path(f"/proc/{pid}/cgroup").read_text()
            assert f":/{parent}/{container}\n" in places
        used = api.get(f"/containers/{container}/stats", **{"stream": False, "one-shot": True})
        assert used["pids_stats"]["current"] >= 2
        api.delete(f"/containers/{container}", force=True)
    top = Path("/sys/fs/cgroup")
    for place in (*top.glob(f"*/{parent}"), *top.glob(parent)):
        place.rmdir()


@pytest.mark.parametrize("mode", ["NetworkMode", "PidMode", "IpcMode"])
def test_a_donor_that_does_not_run(api: Api, mode: str) -> None:
    donor = api.create("sleep", "600", HostConfig={"IpcMode": "shareable"})
    container = api.create("true", HostConfig={mode: f"container:{donor}"})
    error = api.error("POST", f"/containers/{container}/start")
    assert error.status == 409
    assert donor in error.message
    assert ("is not running" in error.message) == (mode != "NetworkMode")
    assert ("cannot join network of a non running container" in error.message) == (
        mode == "NetworkMode"
    )


def test_the_host_name_goes_with_the_network(api: Api, engine: EngineProcess) -> None:
    donor = api.run("sleep", "600", Hostname="donor-name", Domainname="example")
    modes = {"NetworkMode": f"container:{donor}"}
    text = api.output("sh", "-c", "hostname; echo $HOSTNAME; cat /etc/hostname", HostConfig=modes)
    assert text.split() == ["donor-name"] * 3
    done = run_docker(engine, "run", "--rm", "--network", "host", IMAGE, "hostname")
    assert done.stdout == Path("/proc/sys/kernel/hostname").read_text()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"HostConfig": {"UTSMode": "host"}, "Hostname": "h"}, "hostname and the UTS mode"),
        ({"Hostname": "h"}, "hostname and the network mode"),
        ({"MacAddress": "02:42:ac:11:00:09"}, "mac-address and the network mode"),
        ({"ExposedPorts": {"80/tcp": {}}}, "port exposing and the container type network mode"),
        (
            {"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}}},
            "port publishing and the container type network mode",
        ),
        (
            {"HostConfig": {"PublishAllPorts": True}},
            "port publishing and the container type network mode",
        ),
        ({"HostConfig": {"Dns": ["1.1.1.1"]}}, "dns and the network mode"),
        (
            {"HostConfig": {"ExtraHosts": ["a:1.1.1.1"]}},
            "custom host-to-IP mapping and the network mode",
        ),
    ],
)
def test_wishes_that_contradict_shared_namespaces(
    api: Api, fields: dict[str, Any], text: str
) -> None:
    donor = api.create("true")
    host = {"NetworkMode": f"container:{donor}"} if "UTS" not in text else {}
    document = {"Image": IMAGE, **fields, "HostConfig": {**host, **fields.get("HostConfig", {})}}
    error = api.error("POST", "/containers/create", document)
    assert (error.status, error.message) == (400, f"conflicting options: {text}")


def test_the_docker_clients_words(engine: EngineProcess) -> None:
    done = run_docker(engine, "run", "--rm", "--uts", "host", "-h", "x", IMAGE, "true")
    assert (done.returncode, "conflicting options: hostname and the UTS mode" in done.stderr) == (
        125,
        True,
    )
    done = run_docker(engine, "run", "--rm", "--userns", "else", IMAGE, "true")
    assert done.returncode == 125
    for flags in (("--pid", "host"), ("--ipc", "host"), ("--uts", "host"), ("--network", "host")):
        done = run_docker(engine, "run", "--rm", *flags, "--userns", "host", IMAGE, "echo", "in")
        assert (done.stdout, done.returncode) == ("in\n", 0), done.stderr
