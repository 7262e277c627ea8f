"""Tables, rows and ports as the list commands print them."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest

from desk.cli import render
from desk.cli.commands.machine_looking import machine_row, matching
from desk.cli.commands.networks import subnets
from desk.cli.commands.stats import stats_row
from desk.cli.commands.system import df_rows, event_text
from desk.cli.container_rows import container_row, ports_text, table
from desk.cli.render import columns
from desk.cli.template import RenderError
from desk.errors import EngineError, InvalidRequest, UsageError
from desk.machine.model import MachineStatus, State


def port(private: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, Any]:
    found: dict[str, Any] = {"PrivatePort": private, "Type": kind}
    return found | ({"PublicPort": public, "IP": ip} if ip else {})


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([], ""),
        ([port(80)], "80/tcp"),
        ([port(80, 8080, "0.0.0.0")], "0.0.0.0:8080->80/tcp"),
        (
            [port(80, 8080, "::"), port(80, 8080, "0.0.0.0")],
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp",
        ),
        (
            [port(n, n, "0.0.0.0") for n in (8000, 8001, 8002, 9000)],
            "0.0.0.0:8000-8002->8000-8002/tcp, 0.0.0.0:9000->9000/tcp",
        ),
        ([port(53, kind="udp"), port(53)], "53/tcp, 53/udp"),
        ([port(80), port(81), port(83)], "80-81/tcp, 83/tcp"),
    ],
)
def test_ports(ports: list[dict[str, Any]], text: str) -> None:
    assert ports_text(ports) == text


CONTAINER: dict[str, Any] = {
    "Id": "0123456789abcdef" * 4,
    "Names": ["/web", "/other/alias"],
    "Image": "busybox",
    "ImageID": "sha256:" + "f" * 64,
    "Command": "sh -c 'while :; do sleep 1; done'",
    "Created": int(time.time()) - 130,
    "Ports": [port(80, 8080, "0.0.0.0")],
    "Labels": {"b": "2", "a": "1"},
    "State": "running",
    "Status": "Up 2 minutes",
    "Mounts": [{"Type": "volume", "Name": "a-very-long-volume-name", "Driver": "local"}],
    "NetworkSettings": {"Networks": {"bridge": {}}},
}


def test_the_container_table_is_dockers() -> None:
    # Of now, not of when this file was loaded: that may be minutes ago.
    container = {**CONTAINER, "Created": int(time.time()) - 130}
    lines = table(size=False).render([container_row(container)]).splitlines()
    assert lines == [
        "CONTAINER ID   IMAGE     COMMAND                  CREATED         STATUS         "
        "PORTS                  NAMES",
        '0123456789ab   busybox   "sh -c \'while :; do …"   2 minutes ago   Up 2 minutes   '
        "0.0.0.0:8080->80/tcp   web",
    ]


def test_the_empty_table_has_its_heading() -> None:
    assert table(size=True).render([]) == (
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES     SIZE\n"
    )


def test_formats_of_rows() -> None:
    rows = [container_row(CONTAINER)]
    shown = table(size=False)
    assert shown.render(rows, quiet=True) == "0123456789ab\n"
    assert shown.render(rows, form="{{.Names}}: {{.Labels}}") == "web: a=1,b=2\n"
    assert shown.render(rows, form=r"{{.Names}}\t{{.State}}") == "web\trunning\n"
    assert shown.render(rows, form=r'table {{.Names}}\t{{.Label "a"}}\t{{.Mounts}}') == (
        "NAMES     a         MOUNTS\nweb       1         a-very-long-vo…\n"
    )
    decoded = json.loads(shown.render(rows, form="json"))
    assert list(decoded) == sorted(decoded)
    assert decoded["Ports"] == "0.0.0.0:8080->80/tcp"
    assert "\\u003e" in shown.render(rows, form="{{json .}}")
    full = container_row(CONTAINER, truncate=False)
    assert (full["ID"], full["Names"]) == (CONTAINER["Id"], "web,other/alias")


def test_wide_characters_keep_columns_straight() -> None:
    assert columns([("名前", "x"), ("a", "y")]) == "名前      x\na         y\n"


def test_machine_rows_name_state_and_engine() -> None:
    row = machine_row(MachineStatus("default", "qemu", State.STOPPED, memory_mib=2048), in_use=True)
    assert (row["Active"], row["State"], row["DockerVersion"], row["Memory"]) == (
        "*",
        "Stopped",
        "Unknown",
        "2GiB",
    )


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ((), ["web1", "web2", "lab"]),
        (("name=^web",), ["web1", "web2"]),
        (("name=1", "name=^lab$"), ["web1", "lab"]),
        (("state=running", "driver=QEMU"), ["web1"]),
        (("label=zone",), ["web1", "lab"]),
        (("label=zone=a",), ["web1"]),
        (("label=zone=",), []),
        (("label=zone", "state=stopped"), ["lab"]),
    ],
)
def test_machines_are_filtered_as_docker_machine_does(
    filters: tuple[str, ...], names: list[str]
) -> None:
    statuses = [
        MachineStatus("web1", "qemu", State.RUNNING, labels=("zone=a", "rack=1")),
        MachineStatus("web2", "local", State.RUNNING),
        MachineStatus("lab", "qemu", State.STOPPED, labels=("zone=b",)),
    ]
    assert [each.name for each in matching(statuses, filters)] == names


def test_filters_of_machines_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="invalid filter 'swarm'"):
        matching([], ("swarm=x",))
    with pytest.raises(UsageError, match="invalid filter name"):
        matching([MachineStatus("a", "qemu", State.STOPPED)], ("name=(",))


def test_stats_are_computed_between_two_samples() -> None:
    sample = {
        "id": "0123456789abcdef",
        "name": "/web",
        "cpu_stats": {
            "cpu_usage": {"total_usage": 300},
            "system_cpu_usage": 2000,
            "online_cpus": 2,
        },
        "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
        "memory_stats": {
            "usage": 3 << 20,
            "limit": 4 << 20,
            "stats": {"inactive_file": 1 << 20},
        },
        "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 10}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 2000}]},
        "pids_stats": {"current": 3},
    }
    row = stats_row("web", sample, truncate=True)
    assert row["CPUPerc"] == "40.00%"
    assert row["MemUsage"] == "2MiB / 4MiB"
    assert row["MemPerc"] == "50.00%"
    assert (row["NetIO"], row["BlockIO"], row["PIDs"]) == ("1kB / 10B", "2kB / 0B", "3")
    assert stats_row("web", None, truncate=True)["MemUsage"] == "-- / --"


def test_disk_use_counts_what_can_be_won() -> None:
    rows = df_rows(
        {
            "LayersSize": 3000,
            "Images": [
                {"Containers": 1, "Size": 1000, "SharedSize": 0},
                {"Containers": 0, "Size": 2000, "SharedSize": 0},
            ],
            "Containers": [
                {"State": "running", "SizeRw": 10},
                {"State": "exited", "SizeRw": 30},
            ],
            "Volumes": [{"UsageData": {"RefCount": 0, "Size": 5}}],
        }
    )
    assert [(row["TotalCount"], row["Active"], row["Reclaimable"]) for row in rows] == [
        ("2", "1", "2kB (66%)"),
        ("2", "1", "30B (75%)"),
        ("1", "0", "5B (100%)"),
        ("0", "0", "0B"),
    ]


def test_events_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    event = {
        "Type": "container",
        "Action": "die",
        "timeNano": 1_700_000_000_000_000_001,
        "Actor": {"ID": "abc", "Attributes": {"name": "web", "exitCode": "0"}},
    }
    assert event_text(event) == (
        "2023-11-14T22:13:20.000000001Z container die abc (exitCode=0, name=web)"
    )


def test_ranges_and_gateways_go_with_their_subnet() -> None:
    assert subnets(
        ("10.1.0.0/24", "fd00::/64"), ("10.1.0.128/25",), ("fd00::1",), {"host": "10.1.0.5"}
    ) == [
        {
            "Subnet": "10.1.0.0/24",
            "IPRange": "10.1.0.128/25",
            "AuxiliaryAddresses": {"host": "10.1.0.5"},
        },
        {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
    ]
    with pytest.raises(InvalidRequest, match="is in no --subnet"):
        subnets(("10.1.0.0/24",), (), ("10.2.0.1",), {})
    with pytest.raises(InvalidRequest, match="invalid --subnet"):
        subnets(("ten",), (), (), {})


def test_a_column_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(RenderError) as caught:
        table(size=False).render([container_row(CONTAINER)], form="{{.Name}}")
    assert caught.value.exit_code == 1
    assert ".Names, .Networks" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "status", "hint"),
    [
        ("/containers/none/start", 404, "`desk ps -a` lists the containers."),
        ("/images/none/json", 404, "`desk images` lists the images."),
        ("/networks/none", 404, "`desk network ls` lists the networks."),
        ("/volumes/none", 404, "`desk volume ls` lists the volumes."),
        ("/containers/none/start", 409, ""),
        ("/containers/create", 404, ""),
        ("/containers/web/archive", 404, ""),
        ("/events", 404, ""),
        ("", 404, ""),
    ],
)
def test_what_the_engine_did_not_find_is_told_with_where_to_look(
    path: str, status: int, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    render.error(EngineError("not there", status=status, path=path))
    assert capsys.readouterr().err == "desk: not there\n" + f"{hint}\n" * bool(hint)


def test_a_tree_of_images_has_each_image_once_below_its_names() -> None:
    from desk.cli.commands.images import image_rows, tree_rows

    image = {"Id": "sha256:" + "a" * 64, "Created": 0, "Size": 3_990_000, "Containers": 1,
             "RepoTags": ["app:1", "other:2"], "SharedSize": 0}  # fmt: skip
    rows = list(tree_rows([image, {"Id": "sha256:" + "b" * 64, "Size": 0, "RepoTags": []}]))
    assert [(row["Image"], row["ID"], row["Usage"], row["Extra"]) for row in rows] == [
        ("app:1", "", "", ""),
        ("other:2", "a" * 12, "3.99MB", "U"),
        ("<untagged>", "b" * 12, "0B", ""),
    ]
    (row,) = image_rows([image], truncate=True, one_each=True)  # as `system df -v` counts
    assert (row["Repository"], row["Tag"]) == ("app", "1")


def test_a_load_elsewhere_than_on_a_terminal_says_only_what_it_loaded() -> None:
    from desk.cli.layer_lines import show_layers

    output = io.StringIO()
    counted = {"status": "Loading layer", "id": "abc", "progressDetail": {"current": 1, "total": 2}}
    show_layers([counted, {"stream": "Loaded image: app:1\n"}], output)
    assert output.getvalue() == "Loaded image: app:1\n"
