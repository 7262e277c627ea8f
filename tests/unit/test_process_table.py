"""``top``: the options of ps, and the table of this machine's processes."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskd.errors import InvalidArgument
from deskd.services.containers.process_table import process_table

FULL = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
AUX = ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"]


@pytest.mark.parametrize(
    ("arguments", "titles"),
    [
        ("", FULL),
        ("-ef", FULL),
        ("-e", ["PID", "TTY", "TIME", "CMD"]),
        ("-efL", [*FULL[:3], "LWP", "C", "NLWP", *FULL[4:]]),
        ("-L", ["PID", "LWP", "TTY", "TIME", "CMD"]),
        ("-eT", ["PID", "SPID", "TTY", "TIME", "CMD"]),
        ("-F", [*FULL[:4], "SZ", "RSS", "PSR", *FULL[4:]]),
        ("-j", ["PID", "PGID", "SID", "TTY", "TIME", "CMD"]),
        ("aux", AUX),
        ("-aux", AUX),  # there is no user x
        ("faux", AUX),
        ("auxwwf", AUX),
        ("ax", ["PID", "TTY", "STAT", "TIME", "COMMAND"]),
        ("j", ["PPID", "PID", "PGID", "SID", "TTY", "TPGID", "STAT", "UID", "TIME", "COMMAND"]),
        ("-o pid,comm", ["PID", "COMMAND"]),
        ("-opid,comm", ["PID", "COMMAND"]),
        ("axo pid,args", ["PID", "COMMAND"]),
        ("-eo pid -o args", ["PID", "COMMAND"]),
        ("-o pid=PID,comm", ["PID", "COMMAND"]),
        ("-o pid,comm=NAME,rss=KB", ["PID", "NAME", "KB"]),
        ("--format=pid,user --sort=-pid", ["PID", "USER"]),
    ],
)
def test_titles(arguments: str, titles: list[str]) -> None:
    table = process_table([os.getpid()], arguments)
    assert table["Titles"] == titles
    assert {len(row) for row in table["Processes"]} == {len(titles)}
    assert table["Processes"][0][titles.index("PID")] == str(os.getpid())


LIKE_PS = """
-l; -ly; -fl; -jl; -elf; -c; -fc; -lc; -jc; -Fl; -FL; -lL; -FlL; -fT; -lT; -P; -fP; -FP; -ej
-Z; -M; -fjZ; -fLc; -ljy; -fly; -g; -t; -ag; l; lx; axl; v; s; Z; lZ; --context; -e --cols 200
-O %cpu; O ni,pri; -ef --rows=3; -eo pid,pri,opri,priority,cls,class,policy
-eo pid,f,flags,addr,wchan:20,sess,session; -eo pid,egid,gid,rgid,group,egroup,rgroup
-eo pid,euid,ruid,ruser,pending,blocked,ignored,caught; -eo pid,maj_flt,min_flt,trs,drs
"""


@pytest.mark.parametrize("arguments", re.split(r";\s|\n", LIKE_PS.strip()))
def test_titles_are_those_of_the_machines_ps(arguments: str) -> None:
    shown = subprocess.run(["ps", *arguments.split()], capture_output=True, text=True, check=False)
    assert process_table([os.getpid()], arguments)["Titles"] == shown.stdout.split("\n")[0].split()


def test_values_are_those_of_the_machines_ps(children: list[int]) -> None:
    columns = (
        "pid,ppid,f,s,uid,user,euid,ruid,ruser,egid,rgid,group,rgroup,pri,opri,priority,ni,cls"
        ",policy,addr,sid,sess,pgid,tpgid,tname,blocked,ignored,caught,trs,drs,vsz,nlwp,label,comm,args"
    )
    pid = children[0]
    until_it_sleeps(pid)
    command = ["ps", "-o", columns, "-p", str(pid), "ww"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = process_table([pid], f"-o {columns}")["Processes"][0]
    assert " ".join(row).split() == shown.splitlines()[1].split()
    wanted = {str(number) for number in children}
    for choice in (f"-s {os.getsid(0)}", f"-g {os.getsid(0)}", f"-G {os.getgid()}", "-N -C ps"):
        assert {row[0] for row in process_table(children, choice)["Processes"]} == wanted
    assert process_table(children, "-N -C sleep")["Processes"] == []
    assert process_table(children, "-t pts/4000 -o pid")["Processes"] == []


def until_it_sleeps(pid: int) -> None:
    """Wait until a child has become its program, and waits itself."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().split()[1:3] != ["(sleep)", "S"]:
        assert time.monotonic() < deadline, "it does not sleep"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("-o comm", "Couldn't find PID field in ps output"),
        ("-o pid=", "Couldn't find PID field in ps output"),
        ("-o comm=PID", 'specifying "comm=PID" is not allowed'),
        ("-u nobody-of-this-name", "user name does not exist: nobody-of-this-name"),
        ("-o", "-o needs a value"),
        ("-p one", "'one' is no list of process IDs"),
        ("-o pid,nonsense", "'nonsense'"),
        ("-o pid --sort nonsense", "cannot sort by 'nonsense'"),
        ("-X", "unsupported option '-X'"),
        ("--bad", "unsupported option '--bad'"),
        ("-", "unsupported option '-'"),
        ("-G no-group-of-this-name", "group name does not exist: no-group-of-this-name"),
        ("-s one", "'one' is no list of sessions"),
        ("-e --no-headers", "Couldn't find PID field in ps output"),
    ],
)
def test_what_cannot_be(arguments: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        process_table([os.getpid()], arguments)
    assert text in str(caught.value)


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Three sleeping children."""
    started = [subprocess.Popen(["sleep", str(600 + number)]) for number in range(3)]
    yield [child.pid for child in started]
    for child in started:
        child.kill()
        child.wait()


def chosen(pids: list[int], arguments: str) -> list[int]:
    return [int(row[0]) for row in process_table(pids, f"-o pid {arguments}")["Processes"]]


def test_processes_are_chosen_and_ordered(children: list[int]) -> None:
    first, second, third = sorted(children)
    own = os.getpid()
    assert chosen([own, first, second], "") == sorted([own, first, second])
    assert chosen(children, f"-p {first},{third}") == [first, third]
    assert chosen(children, f"-p {first} -p {third}") == [first, third]
    assert chosen(children, f"-p {own}") == []  # it is not of these
    assert chosen(children, f"-e -p {first}") == [first, second, third]
    assert chosen([own, *children], f"--ppid {own}") == [first, second, third]
    assert chosen([own, *children], "-C sleep") == [first, second, third]
    assert chosen(children, f"-u {os.getuid()},20") == [first, second, third]
    assert chosen(children, f"-u {os.getuid() + 1}") == []
    assert chosen(children, "--sort -pid") == [third, second, first]
    assert chosen(children, "k -pid") == [third, second, first]


def test_a_forest_shows_who_made_whom(children: list[int]) -> None:
    rows = process_table([os.getpid(), *children], "f -o pid,ppid,comm")["Processes"]
    assert [row[0] for row in rows] == [str(pid) for pid in (os.getpid(), *sorted(children))]
    assert [row[2].partition(" ")[0] for row in rows] == ["\\_"] * 4


def test_threads_have_lines_of_their_own() -> None:
    halt = threading.Event()
    thread = threading.Thread(target=halt.wait)
    thread.start()
    try:
        rows = process_table([os.getpid()], "-L -o pid,lwp,nlwp")["Processes"]
    finally:
        halt.set()
        thread.join()
    assert {row[0] for row in rows} == {str(os.getpid())}
    assert {str(os.getpid()), str(thread.native_id)} <= {row[1] for row in rows}
    assert len(process_table([os.getpid()], "-o pid,lwp,nlwp")["Processes"]) == 1
