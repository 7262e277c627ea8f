"""``desk`` beside the docker CLI on one engine: the same words give the same output and code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli_process import Cli, Result
from tests.engine_process import EngineProcess

pytestmark = pytest.mark.root

# ruff: noqa: E501 - the command lines are easier to read, and to type, in one piece

RUNNING = "web"

many_programs = pytest.mark.timeout(900)
"""A test that runs some hundred programs takes half a minute, and many times that on a busy machine."""


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Iterator[Cli]:
    """An engine with containers in all states, a network and a volume."""
    cli = Cli(engine.socket, tmp_path / "home")
    cli.ok("network", "create", "--label", "x=y", "back")
    cli.ok("volume", "create", "--label", "x=y", "spare")
    cli.ok("run", "-d", "--name", RUNNING, "-p", "8080:80", "-p", "9000-9002:9000-9002",
           "-p", "127.0.0.1:7000-7001:7000-7001/udp", "--expose", "99", "--label", "a=b",
           "--label", "c.d=<e>", "-v", "data:/data", "-v", "/tmp:/host:ro", "--tmpfs", "/scratch",
           "--restart", "on-failure:3", "busybox", "sleep", "600")  # fmt: skip
    cli(*shlex.split("run --name done busybox sh -c 'echo said; touch /new; rm /etc/group'"))
    assert cli("run", "--name", "failed", "busybox", "sh", "-c", "echo no >&2; exit 3").code == 3
    cli.ok("create", "--name", "fresh", "busybox", "true")
    yield cli
    # Removed here: the volumes must not be found by the next test.
    cli.ok("rm", "-f", RUNNING, "done", "failed", "fresh")
    cli.ok("volume", "rm", "data", "spare")
    cli.ok("network", "rm", "back")


COMMANDS = r"""
ps
ps -a
ps -aq
ps -q --no-trunc
ps -a --no-trunc
ps -as
ps -l
ps -n 2
ps -n -1
ps -a --filter status=exited
ps -a --filter exited=3
ps -a --filter name=we --filter name=do
ps -a --filter label=a=b
ps -a --filter before=done
ps -a --filter since=done
ps -a --filter ancestor=busybox
ps -a --filter publish=8080
ps -a --filter expose=99
ps -a --filter volume=data
ps -a --filter network=bridge
ps -a --filter health=none
ps -a --filter id=none
ps -a --format json
ps -a --format '{{json .}}'
ps -a --format '{{json .Names}} {{json .Labels}}'
ps -a --format '{{.ID}}:{{.Names}}:{{.Ports}}:{{.Mounts}}:{{.LocalVolumes}}:{{.Networks}}:{{.State}}'
ps -s --format '{{.Size}} {{.Command}} {{.Image}} {{.CreatedAt}} {{.Labels}}'
ps --format 'table {{.ID}}\t{{.Names}}'
ps --format 'table {{.Names}}\t{{.Label "a"}}\t{{.Networks}}\t{{.Size}}\t{{.LocalVolumes}}'
ps --format table
ps --format ''
ps --format '{{upper .Names}} {{lower .Image}} {{title .Image}} {{pad .Names 2 3}}|{{truncate .ID 3}}'
ps --format '{{join (split .Image "u") "/"}} {{println .Names}}'
ps --format '{{if eq .Names "web"}}yes{{else if .Names}}no{{end}}{{range split .Names "e"}}<{{.}}>{{end}}'
ps --format '{{len .Names}} {{printf "%-10s|%5d|%q" .Names 3 .ID}} {{index (split .Image "s") 0}}'
ps --format '{{with $x := .Names}}{{$x}}{{end}}{{/* c */}}{{- " a " -}} b'
ps --format '{{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 1 2}} {{ne 1 2}} {{eq 1 2 1}} {{not true}} {{and 1 0}}'
ps --format '{{.Status | printf "%.2s"}} {{print .ID 1 2}} {{html "<a>"}} {{js "a<b"}} {{urlquery "a b"}}'
container ls -a
container list -q
container ps
images
images -q --no-trunc
images --digests
images --format json
images --filter reference=busy*
images --filter dangling=true
images none
images --format 'table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.CreatedSince}}\t{{.Size}}'
image ls
image list -a
history busybox
history --no-trunc busybox
history -q busybox
history -H=false busybox
history --format json busybox
history --format '{{.ID}} {{.CreatedSince}} {{.CreatedAt}} {{.CreatedBy}} {{.Size}} {{.Comment}}' busybox
inspect web
inspect -s web
inspect web done spare back busybox
inspect --type volume spare
inspect --type network back
inspect --type image busybox
inspect -f '{{.State.Status}}/{{.Config.Image}}/{{json .HostConfig.PortBindings}}' web done
inspect -f '{{range .Mounts}}{{.Type}} {{.Name}}->{{.Destination}} {{end}}' web
inspect -f '{{.ID}} {{.Name}} {{.Path}} {{.Args}} {{.RestartCount}} {{.SizeRw}}' web
inspect -f '{{.HostConfig.LogConfig}} {{.Config.Healthcheck}} {{.HostConfig.RestartPolicy}}' web
inspect -f '{{.State.Running}} {{.State.ExitCode}} {{.Created}} {{if .State.Health}}h{{end}}' web
inspect -f '{{.State}}' done
inspect -f '{{.Config.Cmd}} {{.Config.Labels}} {{.HostConfig.NanoCPUs}} {{.Mounts}}' web
inspect -f '{{range $p, $b := .NetworkSettings.Ports}}{{$p}}={{range $b}}{{.HostPort}},{{end}} {{end}}' web
inspect -f '{{.NetworkSettings.Networks.bridge.IPAddress}} {{.NetworkSettings.IPAddress}}' web
inspect -f '{{index .Config.Labels "c.d"}}|{{index .Config.Labels "none"}}|{{len .Config.Env}}' web
container inspect web
container inspect -s web
image inspect busybox
image inspect -f '{{.ID}} {{.RepoTags}} {{.Size}} {{.Architecture}} {{.RootFS}}' busybox
volume inspect data spare
volume inspect -f '{{.Name}} {{.Labels}} {{.Options}}' spare
network inspect bridge back
network inspect -v bridge
network inspect -f '{{.Driver}} {{.IPAM.Driver}} {{.Options}} {{range .IPAM.Config}}{{.Subnet}}{{end}}' bridge
port web
port web 80
port web 7000/udp
diff done
logs done
logs failed
logs -n 1 done
logs --tail 0 done
logs --details done
logs --since 10m done
logs --since 2099-01-01 done
logs --until 2000-01-01T00:00:00Z done
logs -t --tail 1 done
logs -f done
top web
top web -o pid,comm
top web aux
network ls --no-trunc
network ls -q
network ls --format json
network ls --filter driver=bridge
network ls --filter label=x
network ls --filter name=ba
network ls --format 'table {{.ID}}\t{{.Name}}\t{{.IPv6}}\t{{.Internal}}\t{{.Labels}}\t{{.CreatedAt}}'
volume ls
volume ls -q
volume ls --format json
volume ls --filter dangling=true
volume ls --filter label=x
volume ls --format 'table {{.Name}}\t{{.Driver}}\t{{.Scope}}\t{{.Mountpoint}}\t{{.Labels}}\t{{.Links}}\t{{.Size}}'
system df
system df -v
system df --format json
system df -v --format '{{range .Images}}{{.Repository}}{{end}} {{range .Volumes}}{{.Name}} {{.Links}}{{end}}'
system df --format 'table {{.Type}}\t{{.TotalCount}}\t{{.Size}}'
system df --format '{{.Type}}: {{.Active}} {{.Reclaimable}}'
wait done failed
stats --no-stream --format '{{.Name}} {{.Container}} {{.ID}} {{.PIDs}}' web done
stats --no-stream -a --format '{{.Name}} {{.Container}}'
events --since 1h --until 0s --filter event=die
events --since 1h --until 0s --filter event=die --format '{{.Type}} {{.Action}} {{.ID}} {{.Actor.Attributes.name}}'
events --since 1h --until 0s --filter event=die --filter container=failed --format '{{json .}}'
info --format '{{.ServerVersion}} {{.Driver}} {{.ID}} {{.NCPU}}'
version --format '{{.Server.Version}} {{.Server.APIVersion}} {{.Server.Os}}/{{.Server.Arch}}'
"""
"""Looking: what Docker answers, Desk answers."""


def lines(block: str) -> list[str]:
    return block.strip().splitlines()


def normalised(text: str) -> str:
    """Leave out what changes from one second to the next."""
    text = re.sub(r"\d+ seconds?|Less than a second|About a minute", "N seconds", text)
    return re.sub(r" +", " ", text)


def same_objects(ours: str, theirs: str) -> bool:
    """Whether lines of JSON say the same, as far as this machine's docker CLI knows the keys."""
    found = [json.loads(line) for line in ours.splitlines()]
    wanted = [json.loads(line) for line in theirs.splitlines()]
    return len(found) == len(wanted) and all(
        {key: item.get(key) for key in reference} == reference
        for item, reference in zip(found, wanted, strict=True)
    )


@many_programs
def test_the_same_words_give_the_same_output(desk: Cli) -> None:
    different = []
    for line in lines(COMMANDS):
        ours, theirs = desk(*shlex.split(line)), desk.docker(*shlex.split(line))
        assert theirs.code == 0, (line, theirs)
        out, reference = normalised(ours.out), normalised(theirs.out)
        if line.startswith("top"):  # the process that counts its own time
            out, reference = (
                re.sub(r"\d+:\d\d(:\d\d)?", "TIME", text) for text in (out, reference)
            )
        equal = (
            same_objects(out, reference)
            if "--format json" in line or "'{{json .}}'" in line
            else out == reference
        )
        if not equal or ours.code != 0 or bool(ours.err) != bool(theirs.err):
            different.append(f"{line}\n{theirs.out}{theirs.err}\n{ours.out}{ours.err}")
    assert not different, "\n".join(different)


# --- running ------------------------------------------------------------------------------------

RUNS = r"""
run --rm busybox sh -c 'echo out; echo err >&2; exit 42'
run --rm -e A=1 -e B --env-file env busybox sh -c 'env | grep -v HOSTNAME | sort'
run --rm --ulimit nofile=100:200 busybox sh -c 'ulimit -n; ulimit -Hn'
run --rm --user 1000:1000 --group-add 5 busybox id
run --rm --entrypoint echo busybox a b
run --rm --entrypoint '' busybox echo a
run --rm -h h --domainname d busybox sh -c 'hostname; cat /etc/hostname'
run --rm --add-host a=1.2.3.4 --add-host b:5.6.7.8 busybox grep -E '1.2|5.6' /etc/hosts
run --rm --dns 1.1.1.1 --dns-search x --dns-opt ndots:2 busybox grep -v '^#' /etc/resolv.conf
run --rm --sysctl net.ipv4.ip_forward=1 busybox cat /proc/sys/net/ipv4/ip_forward
run --rm --security-opt no-new-privileges --cap-drop ALL busybox grep -E 'NoNew|CapEff' /proc/self/status
run --rm --tmpfs /x:size=1m --shm-size 1m busybox df /x /dev/shm
run --rm -v rel/ative busybox ls -d /rel/ative
run --rm --mount type=tmpfs,target=/x,tmpfs-size=1m,tmpfs-mode=700 busybox stat -c %a /x
run --rm --mount type=volume,src=spare,dst=/x,readonly busybox touch /x/a
run --rm --mount type=bind,src=/tmp,dst=/x,ro,bind-propagation=rprivate busybox touch /x/a
run --rm --volumes-from web busybox ls -d /data /host
run --rm -v spare:/s:ro busybox touch /s/x
run --rm --device /dev/null:/dev/xx:r busybox ls /dev/xx
run --rm --network none busybox ls /sys/class/net
run --rm --network name=back,alias=x --mac-address 02:42:ac:11:00:99 busybox cat /sys/class/net/eth0/address
run --rm --init busybox cat /proc/1/comm
run --rm --read-only busybox touch /x
run --rm -a stdout busybox sh -c 'echo a; echo b >&2'
run --rm -a stderr busybox sh -c 'echo a; echo b >&2'
run --rm -i busybox cat
run --rm -t busybox tty
run --rm -w /new/dir busybox pwd
run --rm -m=64m --cpus=.5 -c=100 busybox true
run --rm=true --privileged=false --no-healthcheck --isolation default busybox true
exec web sh -c 'echo out; echo err >&2; exit 7'
exec -e A=b --env-file env -w /tmp -u 99 web sh -c 'echo $A $X $Y; pwd; id'
exec -i web cat
exec -t web tty
exec -d web true
exec -it web true
start -a done
"""
"""What a container sees and prints, by the flags that it is run with."""


def without_ids(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "ID", text)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "env").write_text('X=1\n# comment\n\n  B\nY=a b\nZ="q"\n')
    return tmp_path


@many_programs
def test_the_same_flags_give_the_same_container(
    desk: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B", "passed on")
    different = []
    for line in lines(RUNS):
        ours = desk(*shlex.split(line), stdin=b"typed", cwd=work)
        theirs = desk.docker(*shlex.split(line), stdin=b"typed", cwd=work)
        if (ours.code, without_ids(ours.out)) != (theirs.code, without_ids(theirs.out)):
            different.append(f"{line}: docker {theirs}, desk {ours}")
        if ours.code and ours.err.startswith("desk: "):
            continue  # an error has other words here
        if ours.err != theirs.err:
            different.append(f"{line}: docker {theirs.err!r}, desk {ours.err!r}")
    assert not different, "\n".join(different)


LIFE = r"""
create --name cc --memory 64m busybox sleep 600
ps -a --filter name=^cc$ --format '{{.Names}} {{.Status}}'
start cc
pause cc
ps --filter name=^cc$ --format '{{.Names}} {{.State}}'
unpause cc
kill -s KILL cc
wait cc
start cc
update --memory 70m --restart always --pids-limit 50 cc
inspect -f '{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.PidsLimit}}' cc
restart -t 0 cc
rename cc dd
network connect --alias q back dd
inspect -f '{{json .NetworkSettings.Networks.back.Aliases}}' dd
network disconnect back dd
stop -s KILL dd none
stop dd
rm dd
create --rm --name ee --cidfile cid busybox true
start ee none
run -d --name ff -p 80 busybox sleep 600
port ff
rm -f ff
volume create --name vv
volume create
volume rm vv
network create --subnet 10.99.0.0/24 --gateway 10.99.0.1 --ip-range 10.99.0.0/25 nn
network inspect -f '{{json .IPAM.Config}}' nn
network create --internal -o com.example=1 --label c=d mm
network inspect -f '{{.Internal}} {{.Options}} {{.Labels}}' mm
network rm nn mm none-such
tag busybox other:1
images -q other
rmi other:1
import - made:1
rmi made:1
commit -m text -a me -c 'ENV A=b' done made:2
inspect -f '{{.Comment}} {{.Author}} {{.Config.Env}}' made:2
rmi made:2
create --name gg --label prune busybox
container prune -f --filter label=none
container prune -f --filter label=prune
image prune -f
system prune -f --filter label=none
network prune -f --filter label=none
volume prune -f --filter label=none
volume prune -f -a --filter label=none
"""
"""Commands that change something, each after the other."""


def lived(run: Cli, work: Path, *, ours: bool) -> list[str]:
    """Carry ``LIFE`` out with one of the two programs; return codes and output."""
    (work / "cid").unlink(missing_ok=True)
    program = run if ours else run.docker
    seen = []
    for line in lines(LIFE):
        done: Result = program(*shlex.split(line), stdin=EMPTY_TAR, cwd=work)
        out = re.sub(r":\d{5}\b", ":PORT", without_ids(done.out))
        seen.append(f"{line}: {done.code}\n{out}")
    return seen


EMPTY_TAR = bytes(10240)


@many_programs
def test_the_same_changes_are_told_the_same_way(desk: Cli, work: Path) -> None:
    theirs = lived(desk, work, ours=False)
    assert lived(desk, work, ours=True) == theirs


# --- mistakes -----------------------------------------------------------------------------------

FAILING = r"""
rm none
rm
rm web
ps --foo
ps -z
ps x
ps -a --filter
ps -a --filter foo=bar
ps -a --filter foo
ps --format '{{'
ps --format '{{.Foo}}'
run
run --foo busybox
run -p abc busybox
run -p 99999:80 busybox
run -v ab:c busybox true
run -v /a:/b:foo busybox true
run --mount foo busybox
run --mount type=foo,target=/x busybox
run --mount type=bind,source=/nonexistent,target=/x busybox
run --mount type=tmpfs,dst=/x,volume-nocopy busybox
run --mount type=bind,src=/tmp,dst=/x,bind-recursive=foo busybox
run --ulimit nofile=100:50 busybox
run --gpus foo=bar busybox
run --rm --gpus all busybox true
run --no-healthcheck --health-cmd x busybox
run --health-interval foo busybox
run --memory foo busybox
run --memory 1k busybox
run --cpus foo busybox
run --cpu-shares foo busybox
run --device foo busybox
run --rm --restart always busybox
run --restart foo busybox
run --network foo --name gone busybox
run --add-host foo busybox
run --security-opt foo busybox
run --security-opt seccomp=/none busybox
run --cap-add foo busybox
run --env-file /none busybox
run --label-file /none busybox
run --cidfile env busybox
run --stop-timeout foo busybox
run --log-driver foo busybox
run --pid container:none busybox
run --volumes-from none busybox
run -a foo busybox
run -d -a stdout busybox true
run --pull never none
run --pull foo busybox
run --name web busybox
run --rm -it busybox cat
run --rm=foo busybox
run --rm busybox none
run --rm busybox /etc
run --rm busybox /etc/passwd
run --rm --workdir /etc/passwd busybox pwd
run --rm busybox false
create --pull never none
exec none true
exec done true
exec web none
exec web /etc
exec web
exec -d web none
exec --detach-keys foo web true
start none
start -ai done web
stop none
stop -t foo web
restart none
attach done
attach none
inspect missing
inspect web missing
inspect --type image web
inspect --type foo web
inspect -f '{{ web'
inspect -f '{{.Foo}}' web
logs none
logs --since foo done
kill done
kill -s foo web
kill -s HUP none done
pause done
unpause web
rename none x1
rename web done
rename web
update web
update --memory foo web
update --memory 100m none
top done
top none
stats --no-stream none
diff none
export none
export web none
port web 99
port web foo
port none
rmi none
rmi busybox
tag none x
tag busybox
cp none:/x .
cp web:/none .
cp web:/etc/passwd none:/
cp a b
cp a
cp /none web:/
cp web: .
network rm missing
network rm bridge
network create back
network create --subnet foo x1
network connect back none
network disconnect back fresh
network inspect none1
volume rm none
volume rm data
volume create a/b
volume inspect none
container prune -f --filter foo=bar
system prune -f --volumes --filter until=10m
events --since foo --until 0s
wait none
nonsense
container nonsense
version --foo
version --format '{{'
info --format '{{.Foo}}'
"""


@many_programs
def test_the_same_mistakes_give_the_same_code(desk: Cli, work: Path) -> None:
    different = []
    for line in lines(FAILING):
        ours = desk(*shlex.split(line), cwd=work)
        theirs = desk.docker(*shlex.split(line), cwd=work)
        assert theirs.code != 0, (line, theirs)
        if ours.code != theirs.code:
            different.append(f"{line}: docker {theirs}, desk {ours}")
        if not line.startswith(("exec", "run --rm busybox false")) and not (
            re.search("^desk: .", ours.err, re.MULTILINE) and len(ours.err.splitlines()) <= 4
        ):
            different.append(f"{line} is no clear error: {ours}")
    assert not different, "\n".join(different)


# --- cp -----------------------------------------------------------------------------------------

INTO = [
    ("src/a.txt", "/t/"),
    ("src/a.txt", "/t/renamed"),
    ("src", "/t"),
    ("src", "/t/newdir"),
    ("src", "/t/newdir"),
    ("src/.", "/t/newdir"),
    ("src/link", "/t/linkcopy"),
    ("-L src/link", "/t/linkfollowed"),
    ("-a src/a.txt", "/t/owned"),
    ("src", "/t/a.txt"),
    ("src/a.txt", "/t/none/"),
    ("src/a.txt", "/t/none/x"),
    ("none", "/t"),
    ("src/a.txt", "/t/src/sub"),
]

OUT_OF = [
    ("/t/a.txt", "."),
    ("/t/a.txt", "b.txt"),
    ("/t/newdir", "."),
    ("/t/newdir", "other"),
    ("/t/newdir", "other"),
    ("/t/newdir/.", "content"),
    ("/t/newdir/.", "content"),
    ("/t/newdir", "a.txt"),
    ("/t/a.txt", "none/"),
    ("/t/a.txt", "none/x"),
    ("/t/none", "."),
    ("/t/newdir/link", "l1"),
    ("-L /t/newdir/link", "l2"),
    ("/t/a.txt", "other"),
]

LIST = "cd /t && find . | sort | while read f; do stat -c '%n %F %a %u %s %N' \"$f\"; done"


def copied(desk: Cli, work: Path, *, ours: bool) -> list[str]:
    """Run all copies with one of the two programs; return codes and what is there afterwards."""
    run = desk if ours else desk.docker
    source, goal = work / "src", work / "goal"
    (source / "sub").mkdir(parents=True)
    goal.mkdir()
    (source / "a.txt").write_text("hello\n")
    os.utime(source / "a.txt", (1_600_000_000, 1_600_000_000))
    os.chown(source / "a.txt", 99, 99)
    (source / "sub" / "b.txt").write_text("deep\n")
    (source / "sub").chmod(0o750)
    (source / "link").symlink_to("a.txt")
    desk.ok("exec", RUNNING, "sh", "-c", "rm -rf /t; mkdir /t")
    seen: list[str] = []
    for origin, target in INTO:
        code = run("cp", *origin.split(), f"{RUNNING}:{target}", cwd=work).code
        seen.append(f"{origin} -> {target}: {code}")
    seen += desk.ok("exec", RUNNING, "sh", "-c", LIST).splitlines()
    for origin, target in OUT_OF:
        *flags, path = origin.split()
        code = run("cp", *flags, f"{RUNNING}:{path}", target, cwd=goal).code
        seen.append(f"{origin} -> {target}: {code}")
    found = subprocess.run(
        ["find", ".", "-printf", r"%p %y %m %s %l %U %TY\n"],
        cwd=goal,
        capture_output=True,
        text=True,
        check=True,
    )
    return seen + sorted(found.stdout.splitlines())


@pytest.mark.slow
def test_copies_land_where_docker_puts_them(desk: Cli, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours = copied(desk, tmp_path / "ours", ours=True)
    assert ours == copied(desk, tmp_path / "theirs", ours=False)


def test_archives_by_pipe(desk: Cli, tmp_path: Path) -> None:
    done = subprocess.run(
        desk.command("cp", f"{RUNNING}:/etc", "-"), capture_output=True, timeout=60, check=True
    )
    listing = subprocess.run(
        ["tar", "t"], input=done.stdout, capture_output=True, check=True
    ).stdout.decode()
    assert "etc/passwd" in listing.split()
    desk.ok("exec", RUNNING, "mkdir", "/copy")
    desk.ok("cp", "-", f"{RUNNING}:/copy", stdin=done.stdout)
    assert "passwd" in desk.ok("exec", RUNNING, "ls", "/copy/etc").split()
    refused = desk("cp", "-", f"{RUNNING}:/etc/passwd", stdin=done.stdout)
    assert refused.code == 1
    assert "no directory" in refused.err


def test_cp_of_names_that_are_no_utf_8(desk: Cli, tmp_path: Path) -> None:
    name = os.fsdecode(b"no-text-\xff")
    (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree" / name / name).write_text("inside")
    clients: tuple[Callable[..., Result], ...] = (desk, desk.docker)
    for number, run in enumerate(clients):
        place, back = f"{RUNNING}:/no-text-{number}", tmp_path / str(number)
        back.mkdir()
        assert run("cp", str(tmp_path / "tree"), place).code == 0
        for source, goal in ((f"{name}", "directory"), (f"{name}/{name}", "file")):
            done = run("cp", f"{place}/{source}", str(back / goal))
            assert done.code == 0, done
        assert (back / "directory" / name).read_text() == "inside"
        assert (back / "file").read_text() == "inside"
        (tmp_path / "one").write_text("new")
        assert run("cp", str(tmp_path / "one"), f"{place}/{name}/{name}").code == 0
        assert run("cp", str(tmp_path / "one"), f"{place}/{name}/").code == 0
        assert run("cp", f"{place}/{name}", str(back / "again")).code == 0
        assert {path.name: path.read_text() for path in (back / "again").iterdir()} == {
            name: "new", "one": "new",
        }  # fmt: skip
        done = run("cp", f"{place}/{name}/missing", str(back))
        assert done.code == 1
        assert f"Could not find the file /no-text-{number}/no-text-\ufffd/missing" in done.err


def test_a_hostile_archive_writes_nothing_outside(desk: Cli, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    script = (
        f"mkdir -p /evil/d && ln -s {outside} /evil/d/way && rm -rf /evil2 && mkdir -p /evil2/way"
        " && echo bad > /evil2/way/file"
    )
    desk.ok("exec", RUNNING, "sh", "-c", script)
    goal = tmp_path / "goal"
    goal.mkdir()
    desk.ok("cp", f"{RUNNING}:/evil/d/.", str(goal))
    assert (goal / "way").is_symlink()
    done = desk("cp", f"{RUNNING}:/evil2/.", str(goal))
    assert done.code == 1
    assert list(outside.iterdir()) == []
