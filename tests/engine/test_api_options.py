"""Options of ``docker run`` as the program in the container meets them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import IMAGE, Api

pytestmark = pytest.mark.root


def lines(api: Api, script: str, **fields: Any) -> list[str]:
    return api.output("sh", "-c", script, **fields).splitlines()


def start_error(api: Api, *command: str, **fields: Any) -> str:
    """Return why a container that can be made cannot be started; it says so itself too."""
    container = api.create(*command, **fields)
    error = api.error("POST", f"/containers/{container}/start")
    state = api.inspect(container)["State"]
    assert (state["Error"], state["Status"]) == (error.message, "created")
    return f"{error.status} {error.message}"


def refusal(api: Api, **fields: Any) -> str:
    error = api.error("POST", "/containers/create", {"Image": IMAGE, "Cmd": ["true"], **fields})
    return f"{error.status} {error.message}"


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "hostname", "names"),
    [
        ({"Hostname": "box"}, "box", ["box"]),
        ({"Hostname": "my_box"}, "my_box", ["my_box"]),
        ({"Hostname": "box.example.com"}, "box.example.com", ["box.example.com", "box"]),
        (
            {"Hostname": "box", "Domainname": "example.com"},
            "box",
            ["box.example.com", "box"],
        ),
    ],
)
def test_host_names(api: Api, fields: dict[str, Any], hostname: str, names: list[str]) -> None:
    script = "hostname; cat /etc/hostname; tail -n 1 /etc/hosts; cat /proc/sys/kernel/domainname"
    first, second, own, domain = lines(api, script, **fields)
    assert first == second == hostname
    assert own.split()[1:] == names
    assert domain == fields.get("Domainname", "(none)")


def test_host_names_that_no_hosts_file_can_hold(api: Api) -> None:
    for name in ("a b", "a\nb", "x" * 65):
        assert refusal(api, Hostname=name).startswith("400 invalid hostname format")
        assert refusal(api, Domainname=name).startswith("400 invalid domainname format")


def test_more_hosts_and_name_servers(api: Api) -> None:
    gateway = api.get("/networks/bridge")["IPAM"]["Config"][0]["Gateway"]
    host = {
        "ExtraHosts": ["one:192.0.2.1", "up:host-gateway", "six:2001:db8::1"],
        "Dns": ["192.0.2.53", "192.0.2.54"],
        "DnsSearch": ["a.example", "b.example"],
        "DnsOptions": ["ndots:3", "timeout:1"],
    }
    found = lines(api, "cat /etc/hosts; cat /etc/resolv.conf", HostConfig=host)
    for line in ("192.0.2.1\tone", f"{gateway}\tup", "2001:db8::1\tsix"):
        assert line in found
    start = found.index("nameserver 192.0.2.53")
    assert found[start:] == [
        "nameserver 192.0.2.53",
        "nameserver 192.0.2.54",
        "search a.example b.example",
        "options ndots:3 timeout:1",
        "",
        "# Based on host file: '/etc/resolv.conf' (legacy)",
        "# Overrides: [nameservers search options]",
        "# Option ndots from: override",
    ]
    none = lines(api, "cat /etc/resolv.conf", HostConfig={"DnsSearch": ["."]})
    assert not [line for line in none if line.startswith("search")]


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("nobody", "uid=99(nobody) gid=99(nobody) groups=99(nobody)"),
        ("99", "uid=99(nobody) gid=99(nobody) groups=99(nobody)"),
        ("99:0", "uid=99(nobody) gid=0(root) groups=0(root)"),
        ("nobody:root", "uid=99(nobody) gid=0(root) groups=0(root)"),
        ("1234", "uid=1234 gid=0(root) groups=0(root)"),
        ("1234:5678", "uid=1234 gid=5678 groups=5678"),
        (":99", "uid=0(root) gid=99(nobody) groups=99(nobody)"),
    ],
)
def test_users(api: Api, user: str, shown: str) -> None:
    assert api.output("id", User=user).strip() == shown


def test_users_and_groups_that_are_not_there(api: Api) -> None:
    for fields, text in (
        ({"User": "ghost"}, "unable to find user ghost: no matching entries in passwd file"),
        ({"User": "root:ghosts"}, "unable to find group ghosts: no matching entries in group file"),
        ({"User": "99999999999"}, "uids and gids must be in range 0-2147483647"),
        ({"HostConfig": {"GroupAdd": ["ghosts"]}}, "unable to find group ghosts"),
    ):
        assert text in start_error(api, "true", **fields)


def test_further_groups(api: Api) -> None:
    text = api.output("id", "-G", User="nobody", HostConfig={"GroupAdd": ["root", "4321"]})
    assert set(text.split()) == {"99", "0", "4321"}


def test_the_environment(api: Api) -> None:
    given = ["A=1", "EMPTY=", "B=x=y", "A=2", "HOSTNAME=own", "GONE"]
    found = set(lines(api, "env", Env=given, Hostname="box"))
    assert {"A=2", "EMPTY=", "B=x=y", "HOSTNAME=own", "HOME=/root"} <= found
    assert not any(line.startswith("GONE") for line in found)
    assert "TERM=xterm" in api.output("env", Tty=True)
    for name in ("=x", ""):
        assert refusal(api, Env=[name]) == f"400 invalid environment variable: {name}"


def test_working_directories(api: Api) -> None:
    container = api.create("pwd", WorkingDir="/made/../made/here/")
    assert api.inspect(container)["Config"]["WorkingDir"] == "/made/here"
    assert api.output("pwd", WorkingDir="/made/here") == "/made/here\n"
    assert "it needs to be an absolute path" in refusal(api, WorkingDir="here")
    text = start_error(api, "pwd", WorkingDir="/etc/passwd")
    assert 'chdir to cwd ("/etc/passwd"): not a directory' in text


def test_entrypoints(api: Api) -> None:
    assert api.output("world", Entrypoint=["echo", "hello"]) == "hello world\n"
    container = api.create("a", Entrypoint="echo")
    found = api.inspect(container)
    assert (found["Path"], found["Args"], found["Config"]["Entrypoint"]) == (
        "echo",
        ["a"],
        ["echo"],
    )
    assert api.output("echo", "plain", Entrypoint=[""]) == "plain\n"
    assert refusal(api, Cmd=[""], Entrypoint=[""]) == "400 no command specified"


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("none-such", 127, 'exec: "none-such": executable file not found in $PATH'),
        ("/bin/none", 127, 'exec: "/bin/none": stat /bin/none: no such file or directory'),
        ("/etc", 126, "permission denied"),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_programs_that_cannot_run(api: Api, program: str, code: int, text: str) -> None:
    container = api.create(program)
    error = api.error("POST", f"/containers/{container}/start")
    assert error.status == 400
    assert error.message.endswith(text)
    assert api.inspect(container)["State"]["ExitCode"] == code


def test_an_init_process_is_the_first(api: Api) -> None:
    first = api.output("cat", "/proc/1/cmdline", HostConfig={"Init": True}).split("\0")[0]
    assert first == "/sbin/docker-init"
    assert api.output("cat", "/proc/1/comm").strip() == "cat"


# --- confinement ---------------------------------------------------------------------------------

STATUS = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | cut -f 2"


def test_security_options(api: Api) -> None:
    default, no_new, seccomp = lines(api, STATUS)
    assert (default, no_new, seccomp) == ("00000000a80425fb", "0", "2")
    for option, expected in (
        ("no-new-privileges", ("1", "2")),
        ("no-new-privileges:true", ("1", "2")),
        ("no-new-privileges=false", ("0", "2")),
        ("seccomp=unconfined", ("0", "0")),
        ("seccomp=builtin", ("0", "2")),
        ("label=disable", ("0", "2")),
        ("apparmor=unconfined", ("0", "2")),
        ("apparmor=of-a-kernel-without-it", ("0", "2")),  # as with Docker, nobody asks
    ):
        found = lines(api, STATUS, HostConfig={"SecurityOpt": [option]})
        assert tuple(found[1:]) == expected, option


def test_a_seccomp_profile_of_ones_own(api: Api) -> None:
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
        '[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}'
    )
    found = lines(
        api,
        "mkdir /made 2>&1; touch /file && echo touched",
        HostConfig={"SecurityOpt": [f"seccomp={profile}"]},
    )
    assert found == ["mkdir: can't create directory '/made': Permission denied", "touched"]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("no-new-privileges:perhaps", "invalid --security-opt"),
        ("systempaths=half", "invalid --security-opt"),
        ("nonsense", "invalid --security-opt"),
        ("", "invalid --security-opt"),
        ("seccomp={", "the seccomp profile is no JSON object"),
        ("seccomp={}", "the seccomp profile has no defaultAction"),
        ("seccomp=/a/path", "the seccomp profile is no JSON object"),
    ],
)
def test_security_options_that_cannot_be(api: Api, option: str, text: str) -> None:
    found = refusal(api, HostConfig={"SecurityOpt": [option]})
    assert found.startswith(f"400 {text}")


def test_system_paths(api: Api) -> None:
    count = "grep -c ' /proc' /proc/self/mountinfo"
    bare: dict[str, list[str]] = {"MaskedPaths": [], "ReadonlyPaths": []}
    assert lines(api, count, HostConfig=bare) == ["1"]
    assert lines(api, count, HostConfig={"SecurityOpt": ["systempaths=unconfined"]}) == ["1"]
    own = {"MaskedPaths": ["/etc/passwd"], "ReadonlyPaths": ["/tmp"]}
    found = lines(api, f"cat /etc/passwd; touch /tmp/x 2>&1; {count}", HostConfig=own)
    assert found == ["touch: /tmp/x: Read-only file system", "1"]
    hidden = api.inspect(api.create("true"))["HostConfig"]
    assert {"/proc/kcore", "/sys/firmware"} <= set(hidden["MaskedPaths"])
    assert "/proc/sys" in hidden["ReadonlyPaths"]


def test_what_a_privileged_container_shows(api: Api) -> None:
    host = api.inspect(api.create("true", HostConfig={"Privileged": True}))["HostConfig"]
    assert host["MaskedPaths"] is host["ReadonlyPaths"] is None
    assert host["SecurityOpt"] == ["label=disable"]


def test_sysctls(api: Api) -> None:
    sysctls = {
        "kernel.shmmax": "1000000",
        "net/ipv4/ip_forward": "1",
        "kernel.domainname": "example.org",
        "fs.mqueue.msg_max": "20",
    }
    found = lines(
        api,
        "cd /proc/sys; cat kernel/shmmax net/ipv4/ip_forward kernel/domainname fs/mqueue/msg_max",
        HostConfig={"Sysctls": sysctls},
    )
    assert found == ["1000000", "1", "example.org", "20"]


@pytest.mark.parametrize(
    ("sysctls", "more", "text"),
    [
        ({"vm.swappiness": "1"}, {}, "'vm.swappiness' is not in a separate kernel namespace"),
        ({"kernel.hostname": "x"}, {}, "use --hostname"),
        ({"kernel.shmfoo": "1"}, {}, "'kernel.shmfoo' is not in a separate kernel namespace"),
        ({"net.ipv4.ip_forward": "1"}, {"NetworkMode": "host"}, "not allowed in host network"),
        ({"kernel.shmmax": "1"}, {"IpcMode": "host"}, "not allowed in host ipc namespace"),
        ({"kernel.domainname": "x"}, {"UTSMode": "host"}, "not allowed in host UTS namespace"),
    ],
)
def test_sysctls_of_the_machine(
    api: Api, sysctls: dict[str, str], more: dict[str, str], text: str
) -> None:
    assert text in refusal(api, HostConfig={"Sysctls": sysctls, **more})


def test_sysctls_that_the_kernel_refuses(api: Api) -> None:
    for sysctls, text in (
        (
            {"net.none.such": "1"},
            "open /proc/sys/net/none/such: no such file or directory; this kernel has no such",
        ),
        ({"net.ipv4.ip_forward": "much"}, "the kernel refuses the value 'much'"),
    ):
        found = start_error(api, "true", HostConfig={"Sysctls": sysctls})
        assert found.startswith("400 ")
        assert text in found


def test_devices(api: Api) -> None:
    null = {"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing"}
    host = {"Devices": [{**null, "CgroupPermissions": "r"}, {"PathOnHost": "/dev/loop0"}]}
    found = lines(api, "ls -l /dev/nothing /dev/loop0 | tr -s ' '", HostConfig=host)
    assert [line.split()[4:6] for line in found] == [["7,", "0"], ["1,", "3"]]
    for device, text in (
        ({"PathOnHost": "/dev/none"}, 'custom device "/dev/none": no such file or directory'),
        ({"PathOnHost": "/etc/passwd"}, 'custom device "/etc/passwd": not a device node'),
        ({**null, "CgroupPermissions": "x"}, "invalid device permissions 'x'"),
    ):
        assert text in refusal(api, HostConfig={"Devices": [device]})


def test_device_rules(api: Api) -> None:
    script = "mknod /loop b 7 0 && dd if=/loop of=/dev/null bs=1 count=1 2>&1 | grep -c permitted"
    assert lines(api, script) == ["1"]
    assert lines(api, script, HostConfig={"DeviceCgroupRules": ["b 7:* rmw"]}) == ["0"]
    for rule in ("x 1:1 r", "c 1:1", "c 1:1 z", ""):
        text = refusal(api, HostConfig={"DeviceCgroupRules": [rule]})
        assert text.startswith(f"400 invalid device cgroup rule {rule!r}")


def test_a_gpu_is_refused_at_the_start(api: Api) -> None:
    for request, text in (
        ({"Count": -1, "Capabilities": [["gpu"]]}, 'device driver "" with capabilities: [[gpu]]'),
        (
            {"Driver": "nvidia", "Capabilities": [["gpu", "compute"]]},
            'device driver "nvidia" with capabilities: [[gpu compute]]',
        ),
    ):
        found = start_error(api, "true", HostConfig={"DeviceRequests": [request]})
        assert f"could not select {text}" in found


def test_a_read_only_root(api: Api) -> None:
    script = "for d in / /tmp /dev /dev/shm /etc; do touch $d/x 2>/dev/null && echo $d; done"
    host = {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": ""}}
    assert lines(api, script, HostConfig=host) == ["/tmp", "/dev", "/dev/shm"]
    script = "for n in hosts hostname resolv.conf; do echo >>/etc/$n && echo $n; done"
    assert lines(api, script, HostConfig=host) == [
        f"sh: can't create /etc/{name}: Read-only file system"
        for name in ("hosts", "hostname", "resolv.conf")
    ]
    assert lines(api, script) == ["hosts", "hostname", "resolv.conf"]


def test_the_table_of_mounts_is_where_programs_look(api: Api) -> None:
    container = api.run("sh", "-c", "readlink /etc/mtab; cat /etc/mtab; ls /dev/core /proc/kcore")
    api.wait(container)
    link, first, *_ = api.logs(container).decode().splitlines()
    assert (link, first.split()[:3]) == ("/proc/mounts", ["overlay", "/", "overlay"])
    missing = re.findall(r"ls: (\S+): No such file", api.logs(container).decode())
    assert missing == ([] if Path("/proc/kcore").exists() else ["/dev/core", "/proc/kcore"])
    # It is the engine's doing: neither a change nor part of an image that is made of it.
    assert api.get(f"/containers/{container}/changes") == []
    made = api.post("/commit", container=container)["Id"]
    try:
        base, image = api.get("/images/busybox/json"), api.get(f"/images/{made}/json")
        assert image["RootFS"] == base["RootFS"], "nothing was written, so there is no layer"
    finally:
        api.delete(f"/images/{made}")
    other = api.run("sh", "-c", "rm /etc/mtab; echo own >/etc/mtab")
    api.wait(other)
    assert {"Path": "/etc/mtab", "Kind": 0} in api.get(f"/containers/{other}/changes")


def test_runtimes_and_isolation(api: Api) -> None:
    for runtime in ("runc", "io.containerd.runc.v2", "desk"):
        shown = api.inspect(api.create("true", HostConfig={"Runtime": runtime}))
        assert shown["HostConfig"]["Runtime"] == runtime
    assert "unknown or invalid runtime name: kata" in refusal(api, HostConfig={"Runtime": "kata"})
    assert "Invalid isolation" in refusal(api, HostConfig={"Isolation": "hyperv"})
    api.create("true", HostConfig={"Isolation": "default", "Annotations": {"a": "b"}})


def test_platforms_that_an_image_does_not_have(api: Api) -> None:
    document = {"Image": IMAGE, "Cmd": ["true"]}
    for platform, status, text in (
        ("linux/s390x", 404, "does not match the specified platform: wanted linux/s390x"),
        ("s390x", 404, "does not match the specified platform"),
        ("bogus", 400, '"bogus": unknown operating system or architecture'),
        ("a/b/c/d", 400, "is an invalid platform"),
    ):
        error = api.error("POST", "/containers/create", document, platform=platform)
        assert (error.status, text in error.message) == (status, True), error
    api.post("/containers/create", document, platform="linux")


def test_a_reference_to_no_container_is_no_missing_image(api: Api) -> None:
    """Clients take 404 from a create for a missing image, and pull it."""
    for host in (
        {"NetworkMode": "container:ghost"},
        {"IpcMode": "container:ghost"},
        {"PidMode": "container:ghost"},
        {"VolumesFrom": ["ghost"]},
    ):
        assert refusal(api, HostConfig=host) == "400 No such container: ghost"


def test_times_and_networks_of_a_container_that_ran(api: Api) -> None:
    container = api.run("sh", "-c", "[ -e /again ] && exec sleep 600; touch /again")
    api.wait(container)
    first = api.inspect(container)
    assert first["NetworkSettings"]["Networks"]["bridge"]["NetworkID"]
    assert first["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""
    api.post(f"/containers/{container}/start")
    second = api.inspect(container)["State"]
    assert second["StartedAt"] > second["FinishedAt"] == first["State"]["FinishedAt"]


def test_ids_of_exposed_and_changed_files(api: Api) -> None:
    script = r"rm /etc/group; touch /new /$(printf 'no-text-\377'); mkdir /dir; chmod 700 /root"
    container = api.run("sh", "-c", script)
    api.wait(container)
    changes = {item["Path"]: item["Kind"] for item in api.get(f"/containers/{container}/changes")}
    assert changes == {"/dir": 1, "/etc": 0, "/etc/group": 2, "/new": 1, "/no-text-\ufffd": 1}


def test_an_exec_makes_no_working_directory(api: Api) -> None:
    container = api.run("sleep", "600", User="nobody")
    wish = {"Cmd": ["pwd"], "WorkingDir": "/none", "AttachStdout": True, "AttachStderr": True}
    made = api.post(f"/containers/{container}/exec", wish)["Id"]
    text: bytes = api.post(f"/exec/{made}/start", {})
    assert b'chdir to cwd ("/none"): no such file or directory' in text
    shown = api.get(f"/exec/{made}/json")
    assert (shown["ExitCode"], shown["ProcessConfig"]["user"]) == (126, "nobody")
    wish = {"Cmd": ["id"], "User": "ghost", "AttachStderr": True}
    made = api.post(f"/containers/{container}/exec", wish)["Id"]
    api.post(f"/exec/{made}/start", {})
    assert api.get(f"/exec/{made}/json")["ExitCode"] == 126


def test_hosts_of_the_machine_are_not_hidden_from_its_own_network(api: Api) -> None:
    found = lines(api, "hostname; cat /etc/hosts", HostConfig={"NetworkMode": "host"})
    assert found[0] == os.uname().nodename
    assert set(Path("/etc/hosts").read_text().splitlines()) <= set(found[1:])
