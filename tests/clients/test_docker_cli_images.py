"""The docker CLI's image commands, with Docker's words, against a real engine."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clients.docker_commands import ok, until
from tests.engine_process import EngineProcess, run_docker

pytestmark = pytest.mark.root


def refused(engine: EngineProcess, *arguments: str, stdin: bytes = b"") -> str:
    """Run a command that must fail; return what it says."""
    done = run_docker(engine, *arguments, stdin=stdin)
    assert done.returncode != 0, f"docker {' '.join(arguments)} succeeded"
    return done.stderr.strip()


def rootfs(text: str = "hello\n") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("greeting")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def short(engine: EngineProcess, name: str) -> str:
    return ok(engine, "inspect", "-f", "{{.Id}}", name)[7:19]


def events(engine: EngineProcess, since_s: float) -> list[tuple[str, str, str]]:
    """Return the image events since then: action, actor, name."""
    form = "{{.Action}} {{.Actor.ID}} {{json .Actor.Attributes}}"
    until_s = str(time.time() + 0.01)
    shown = ok(
        engine, "events", "--since", f"{since_s:.6f}", "--until", until_s,
        "--filter", "type=image", "--format", form,
    )  # fmt: skip
    found = [line.split(" ", 2) for line in shown.splitlines()]
    return [(action, actor, json.loads(more).get("name", "")) for action, actor, more in found]


def test_rmi_refuses_with_dockers_words(engine: EngineProcess) -> None:
    ok(engine, "import", "-", "app:1", stdin=rootfs())
    identifier = short(engine, "app:1")
    held = ok(engine, "create", "--name", "held", "app:1", "x")[:12]
    assert refused(engine, "rmi", "app:1") == (
        'Error response from daemon: conflict: unable to remove repository reference "app:1" '
        f"(must force) - container {held} is using its referenced image {identifier}"
    )
    assert refused(engine, "rmi", identifier) == (
        f"Error response from daemon: conflict: unable to delete {identifier} (must be forced) - "
        f"image is being used by stopped container {held}"
    )
    ok(engine, "rm", "held")
    ok(engine, "tag", "app:1", "other:1")
    assert refused(engine, "rmi", identifier) == (
        f"Error response from daemon: conflict: unable to delete {identifier} (must be forced) - "
        "image is referenced in multiple repositories"
    )
    assert ok(engine, "rmi", "other:1") == "Untagged: other:1\n"
    runner = ok(engine, "run", "-d", "busybox", "sleep", "1000")[:12]
    busybox = short(engine, "busybox")
    assert refused(engine, "rmi", "-f", busybox) == (
        f"Error response from daemon: conflict: unable to delete {busybox} (cannot be forced) - "
        f"image is being used by running container {runner}"
    )
    child = ok(engine, "commit", runner, "child:1")
    ok(engine, "rm", "-f", runner)
    assert refused(engine, "rmi", busybox) == (
        f"Error response from daemon: conflict: unable to delete {busybox} (cannot be forced) - "
        "image has dependent child images"
    )
    assert ok(engine, "rmi", "child:1").splitlines()[:2] == [
        "Untagged: child:1",
        f"Deleted: {child.strip()}",
    ]
    assert refused(engine, "rmi", "nope") == (
        "Error response from daemon: No such image: nope:latest"
    )
    assert refused(engine, "rmi", "BAD") == (
        "Error response from daemon: invalid reference format: repository name (library/BAD) must "
        "be lowercase"
    )


def test_every_image_operation_has_dockers_events(engine: EngineProcess, tmp_path: Path) -> None:
    begun_s = time.time()
    made = ok(engine, "import", "-c", "LABEL a=b", "-", "ev:1", stdin=rootfs()).strip()
    ok(engine, "save", "-o", str(tmp_path / "ev.tar"), "ev:1")
    ok(engine, "tag", "ev:1", "ev:2")
    ok(engine, "rmi", "ev:1", "ev:2")
    ok(engine, "load", "-i", str(tmp_path / "ev.tar"))
    ok(engine, "rmi", "ev:1")
    ok(engine, "image", "prune", "-f")
    assert events(engine, begun_s) == [
        ("tag", made, "ev:1"),
        ("import", made, made),
        ("save", made, made),
        ("tag", made, "ev:2"),
        ("untag", made, made),
        ("untag", made, made),
        ("delete", made, made),
        ("load", made, made),
        ("untag", made, made),
        ("delete", made, made),
        ("prune", "", ""),
    ]


def test_commit_tells_what_it_made_and_holds_the_container_still(engine: EngineProcess) -> None:
    running = ok(engine, "run", "-d", "--name", "work", "busybox", "sleep", "1000").strip()
    begun_s = time.time()
    made = ok(engine, "commit", "-m", "text", "-a", "ann", "-c", "ENV A=b\nCMD x", "work", "w:1")
    shown = ok(
        engine, "events", "--since", f"{begun_s:.6f}", "--until", str(time.time() + 0.01),
        "--filter", f"container={running}", "--format", "{{json .}}",
    )  # fmt: skip
    told = [json.loads(line) for line in shown.splitlines()]
    assert [event["Action"] for event in told] == ["pause", "commit", "unpause"]
    attributes = told[1]["Actor"]["Attributes"]
    assert (attributes["imageID"], attributes["imageRef"], attributes["comment"]) == (
        made.strip(),
        "w:1",
        "text",
    )
    image = json.loads(ok(engine, "inspect", "w:1"))[0]
    assert (image["Author"], image["Comment"]) == ("ann", "text")
    assert image["Config"]["Cmd"] == ["/bin/sh", "-c", "x"]
    assert "A=b" in image["Config"]["Env"]
    assert ok(engine, "history", "--format", "{{.CreatedBy}}", "w:1").startswith("sleep 1000\n")
    status, _, body = engine.api.raw(
        "POST",
        "/v1.47/commit?container=work&repo=w&tag=2",
        json.dumps({"Labels": {"own": "1"}, "Env": ["A=1"]}),
        {"Content-Type": "application/json"},
    )
    assert status == 201, body
    config = json.loads(ok(engine, "inspect", "w:2"))[0]["Config"]
    assert config["Labels"] == {"own": "1"}
    assert config["Env"] == ["A=1"]
    assert config["Cmd"] == ["sleep", "1000"]  # what the request left out is the container's


@contextlib.contextmanager
def web_server(engine: EngineProcess, folder: Path) -> Iterator[str]:
    """Serve a folder where the engine's network is; yield the address."""
    program = (
        "import functools,http.server as h,sys;"
        "s=h.HTTPServer(('127.0.0.1',0),functools.partial(h.SimpleHTTPRequestHandler,"
        "directory=sys.argv[1]));print(s.server_port,flush=True);s.serve_forever()"
    )
    process = subprocess.Popen(
        engine.inside_network(sys.executable, "-c", program, str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.communicate()


def test_import_from_a_web_server(engine: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(rootfs()))
    with web_server(engine, tmp_path) as address:
        url = f"{address}/root.tar.gz"
        said = ok(engine, "import", url, "web:1").splitlines()
        assert said[0] == f"Downloading from {url}"
        assert said[-1] == ok(engine, "inspect", "-f", "{{.Id}}", "web:1").strip()
        assert ok(engine, "history", "--format", "{{.Comment}}", "web:1").strip() == (
            f"Imported from {url}"
        )
        assert refused(engine, "import", f"{address}/nope") == (
            f"Error response from daemon: failed to GET {address}/nope with status 404 File not "
            "found: check the URL"
        )
    assert "connection refused" in refused(engine, "import", "http://127.0.0.1:1/x")


def test_cp_takes_compressed_archives_and_names_the_container(engine: EngineProcess) -> None:
    ok(engine, "create", "--name", "box", "busybox", "sh")
    ok(engine, "cp", "-", "box:/root", stdin=gzip.compress(rootfs("packed\n")))
    archive = run_docker(engine, "cp", "box:/root/greeting", "-").stdout
    assert "packed" in archive
    ok(engine, "cp", "-", "box:/root", stdin=b"")  # an archive of nothing
    assert refused(engine, "cp", "box:/nope", "-") == (
        "Error response from daemon: Could not find the file /nope in container box"
    )
    cut = gzip.compress(rootfs("packed\n" * 5000))[:60]
    assert "damaged" in refused(engine, "cp", "-", "box:/root", stdin=cut)


def test_what_is_no_name_is_refused(engine: EngineProcess) -> None:
    ok(engine, "import", "-", "app:1", stdin=rootfs())
    assert "refusing to create an ambiguous tag using digest algorithm as name" in refused(
        engine, "tag", "app:1", "sha256:abc"
    )
    error = engine.api.error("POST", "/images/app:1/tag", repo="x", tag=":")
    assert (error.status, error.message[:18]) == (400, "invalid tag format")
    assert "file with no instructions" in refused(engine, "import", "-c", "", "-", stdin=rootfs())


def test_older_clients_read_the_fields_of_their_time(engine: EngineProcess) -> None:
    ok(engine, "import", "-c", "LABEL old=1", "-", stdin=rootfs())
    wanted = '{"label":["old=1"]}'
    (old,) = json.loads(engine.api.raw("GET", f"/v1.42/images/json?filters={wanted}")[2])
    assert (old["RepoTags"], old["VirtualSize"]) == (["<none>:<none>"], old["Size"])
    (new,) = engine.api.get("/images/json", filters={"label": ["old=1"]})
    assert new["RepoTags"] == []
    assert "VirtualSize" not in new


def test_sizes_count_what_docker_counts(engine: EngineProcess) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("a", b"12345"), ("a", b"123"), ("b", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind, target in (("l", tarfile.SYMTYPE, "four"), ("h", tarfile.LNKTYPE, "a")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    ok(engine, "import", "-", "sizes:1", stdin=buffer.getvalue())
    assert ok(engine, "inspect", "-f", "{{.Size}}", "sizes:1").strip() == "8"
    ok(engine, "run", "--name", "writer", "busybox", "sh", "-c", "echo abc >/new; ln -s a /l")
    until(lambda: "exited" in ok(engine, "ps", "-a", "--format", "{{.State}}"))
    assert ok(engine, "inspect", "-s", "-f", "{{.SizeRw}}", "writer").strip() == "5"


def test_a_container_that_changed_nothing_adds_no_layer(engine: EngineProcess) -> None:
    ok(engine, "create", "--name", "still", "busybox", "sh")
    ok(engine, "commit", "-c", "ENV A=b", "still", "still:1")
    layers = "{{json .RootFS.Layers}}"
    assert ok(engine, "inspect", "-f", layers, "still:1") == ok(
        engine, "inspect", "-f", layers, "busybox"
    )
    assert ok(engine, "history", "--format", "{{.Size}} {{.CreatedBy}}", "still:1").startswith(
        "0B sh\n"
    )
    assert ok(engine, "run", "--rm", "still:1", "sh", "-c", "echo $A") == "b\n"
    removed = ok(engine, "rmi", "still:1", "-f").splitlines()
    assert [line.partition(":")[0] for line in removed] == ["Untagged", "Deleted"]
