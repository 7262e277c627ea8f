"""Log drivers as clients use them."""

from __future__ import annotations

import time

import pytest

from tests.engine_process import Api, EngineProcess, run_docker

pytestmark = pytest.mark.root


def log_config(driver: str, **options: str) -> dict[str, object]:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return {"LogConfig": {"Type": driver, "Config": given}}


def test_local_rotates_packs_and_is_read_and_followed(api: Api) -> None:
    script = "for i in $(seq 3000); do echo number $i; done; printf end"
    host = log_config("local", max_size="10k", max_file="20")
    container = api.run("sh", "-c", script, HostConfig=host)
    assert api.wait(container) == 0
    expected = "".join(f"number {i}\n" for i in range(1, 3001)) + "end"
    assert api.logs(container).decode() == expected
    assert api.logs(container, follow=1).decode() == expected
    assert api.logs(container, tail=1500).decode().splitlines()[0] == "number 1502"
    inspected = api.inspect(container)
    assert inspected["LogPath"] == ""
    assert inspected["HostConfig"]["LogConfig"]["Type"] == "local"


def test_json_file_packs_rotated_files(api: Api) -> None:
    host = log_config("json-file", max_size="20k", max_file="9", compress="true")
    container = api.run("seq", "1000", HostConfig=host)
    api.wait(container)
    assert api.logs(container).decode() == "".join(f"{i}\n" for i in range(1, 1001))


def test_none_refuses_to_be_read(api: Api) -> None:
    container = api.run("echo", "hi", HostConfig=log_config("none"))
    api.wait(container)
    error = api.error("GET", f"/containers/{container}/logs", stdout=1)
    assert error.message == "configured logging driver does not support reading"


def test_attributes_of_labels_variables_and_tag(engine: EngineProcess) -> None:
    done = run_docker(
        engine, "run", "--name", "named", "-l", "a=b", "-l", "c=d", "-e", "X1=1", "-e", "Y=2",
        "--log-opt", "labels=a", "--log-opt", "env-regex=^X", "--log-opt", "tag={{.Name}}/{{.ID}}",
        "busybox", "echo", "hi",
    )  # fmt: skip
    assert done.stdout == "hi\n", done.stderr
    short = engine.api.inspect("named")["Id"][:12]
    details = run_docker(engine, "logs", "--details", "named").stdout
    assert details == f"X1=1,a=b,tag=named/{short} hi\n"


def test_unknown_options_are_refused_at_creation(engine: EngineProcess) -> None:
    done = run_docker(engine, "run", "--rm", "--log-opt", "foo=1", "busybox", "true")
    assert done.returncode == 125
    assert "unknown log opt 'foo' for json-file log driver" in done.stderr
    done = run_docker(engine, "run", "--rm", "--log-opt", "tag={{.Foo}}", "busybox", "true")
    assert done.returncode == 125
    assert "Foo" in done.stderr
    assert engine.api.get("/containers/json", all=1) == []


def test_non_blocking_keeps_what_fits(api: Api) -> None:
    host = log_config("json-file", mode="non-blocking", max_buffer_size="4m")
    container = api.run("seq", "2000", HostConfig=host)
    api.wait(container)
    deadline = time.monotonic() + 60
    while len(api.logs(container).splitlines()) < 2000:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("json-file", {"max-size": "much"}, "invalid size 'much' for max-size"),
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-size": "-1"}, "max-size must be a positive number"),
        ("json-file", {"max-size": "1m", "max-file": "x"}, "max-file 'x' is not a number"),
        ("json-file", {"max-size": "1m", "max-file": "0"}, "max-file must be 1 or more"),
        ("json-file", {"compress": "perhaps"}, "compress must be true or false"),
        ("json-file", {"compress": "true", "max-size": "1m"}, "compress cannot be true when"),
        ("json-file", {"mode": "sometimes"}, "logging mode not supported: sometimes"),
        ("json-file", {"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ("json-file", {"labels-regex": "("}, "labels-regex is no regular expression"),
        ("json-file", {"tag": "{{"}, "has an unclosed action"),
        ("local", {"tag": "x"}, "unknown log opt 'tag' for log driver local"),
        ("syslog", {}, "no log driver named 'syslog' is registered"),
    ],
)
def test_log_options_that_cannot_be(
    api: Api, driver: str, options: dict[str, str], text: str
) -> None:
    log = {"LogConfig": {"Type": driver, "Config": options}}
    error = api.error("POST", "/containers/create", {"Image": "busybox", "HostConfig": log})
    assert error.status == 400
    assert text in error.message
