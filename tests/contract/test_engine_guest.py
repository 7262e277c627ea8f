"""What the guest promises to containers, beyond what every machine does: its kernel's features,
its limits, engines within, and what a restart of the machine leaves."""

from __future__ import annotations

import signal

import pytest
from tests.engine_places import GuestPlace, execute, remove_everything

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

NEST = """
mkdir /sys/fs/cgroup/init
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo $pid >/sys/fs/cgroup/init/cgroup.procs; done
for name in $(cat /sys/fs/cgroup/cgroup.controllers); do
  echo +$name >/sys/fs/cgroup/cgroup.subtree_control
done
echo nested
sleep 600
"""


def test_the_machine_has_version_2_and_every_limit(guest: GuestPlace) -> None:
    info = guest.api.get("/info")
    assert info["CgroupVersion"] == "2"
    assert info["SwapLimit"] is True
    assert info["OomKillDisable"] is False
    assert not info["Warnings"]


def test_what_version_2_lacks_is_discarded_with_a_warning(guest: GuestPlace) -> None:
    host = {"OomKillDisable": True, "MemorySwappiness": 20, "Memory": 64 << 20}
    answer = guest.api.post(
        "/containers/create", {"Image": "busybox", "Cmd": ["true"], "HostConfig": host}
    )
    assert sorted(warning.split(".")[0] for warning in answer["Warnings"]) == [
        "Your kernel does not support OomKillDisable",
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted",
    ]
    guest.api.post(f"/containers/{answer['Id']}/start")
    assert guest.api.wait(answer["Id"]) == 0


def test_a_block_weight_has_the_kernels_own_scale(guest: GuestPlace) -> None:
    container = guest.api.run("sleep", "600", HostConfig={"BlkioWeight": 500})
    show = "cat /sys/fs/cgroup/io.weight"
    assert execute(guest, container, show)[1] == "default 4950\n"
    guest.api.post(f"/containers/{container}/update", {"BlkioWeight": 1000})
    assert execute(guest, container, show)[1] == "default 10000\n"


def test_an_engine_or_service_manager_may_live_in_a_container(guest: GuestPlace) -> None:
    """It moves its processes down and hands the controllers on; exec, stats, top, update and
    the limits of the container go on working."""
    host = {"Privileged": True, "Memory": 64 << 20}
    container = guest.api.run("sh", "-c", NEST, HostConfig=host)
    with guest.api.events(filters={"container": [container]}):
        while b"nested" not in guest.api.logs(container):
            assert guest.api.inspect(container)["State"]["Running"], guest.api.logs(container)
    code, text = execute(guest, container, "cat /proc/self/cgroup")
    assert (code, text) == (0, "0::/init\n")
    inner = "cd /sys/fs/cgroup; mkdir inner; echo 20 >inner/pids.max; cat inner/pids.max"
    assert execute(guest, container, inner) == (0, "20\n")
    assert guest.api.get(f"/containers/{container}/top")["Processes"]
    guest.api.post(f"/containers/{container}/pause")
    guest.api.post(f"/containers/{container}/unpause")
    guest.api.post(f"/containers/{container}/update", {"NanoCpus": 500_000_000})
    guest.api.post(f"/containers/{container}/stop", t=0)
    assert guest.api.inspect(container)["State"]["ExitCode"] == 137


def test_kernel_features_load_when_a_container_asks_for_them(guest: GuestPlace) -> None:
    kinds = ("dummy", "wireguard", "bridge", "bond", "ifb", "veth")
    script = "".join(f"ip link add t{kind} type {kind} || echo no {kind};" for kind in kinds)
    script += "(: <>/dev/net/tun) || echo no tun"
    host = {
        "CapAdd": ["NET_ADMIN"],
        "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun",
                     "CgroupPermissions": "rwm"}],
    }  # fmt: skip
    assert guest.api.output("sh", "-c", script, HostConfig=host) == ""
    script = (
        "mkdir /m; mount -t binfmt_misc none /m && test -w /m/register && umount /m;"
        "for n in loop-control fuse mapper/control ppp; do (: </dev/$n) || echo no $n; done;"
        "mkdir /l /u /w; mount -t tmpfs none /w; mkdir /w/u /w/w;"
        "mount -t overlay -o lowerdir=/l,upperdir=/w/u,workdir=/w/w none /m"
    )
    assert guest.api.output("sh", "-c", script, HostConfig={"Privileged": True}) == ""


def test_a_privileged_container_finds_the_kernels_own_file_systems(guest: GuestPlace) -> None:
    binds = [f"{path}:{path}:ro" for path in ("/sys/kernel/debug", "/sys/fs/bpf", "/lib/modules")]
    script = (
        "ls /sys/kernel/debug | grep -x bdi; grep ' /sys/fs/bpf ' /proc/mounts | cut -d ' ' -f 3;"
        "test -r /sys/kernel/btf/vmlinux && ls /lib/modules/$(uname -r) | grep -x modules.dep"
    )
    host = {"Privileged": True, "Binds": binds}
    text = guest.api.output("sh", "-c", script, HostConfig=host)
    assert text.split() == ["bdi", "bpf", "modules.dep"]


def test_the_kernels_limits_suit_many_containers(guest: GuestPlace) -> None:
    wanted = {
        "vm/max_map_count": 262_144,
        "fs/inotify/max_user_watches": 524_288,
        "fs/inotify/max_user_instances": 1024,
        "fs/file-max": 1_048_576,
        "fs/nr_open": 1_048_576,
        "fs/aio-max-nr": 1_048_576,
        "kernel/pid_max": 4_194_304,
        "kernel/keys/maxkeys": 20_000,
        "kernel/keys/maxbytes": 2_000_000,
        "net/core/somaxconn": 4096,
        "net/ipv4/neigh/default/gc_thresh3": 65_536,
        "user/max_user_namespaces": 1000,
    }
    found = guest.run(f"cd /proc/sys; cat {' '.join(wanted)}").split()
    low = {
        name: value
        for (name, least), value in zip(wanted.items(), found, strict=True)
        if int(value) < least
    }
    assert low == {}


def test_a_container_inherits_room_for_files_and_processes(guest: GuestPlace) -> None:
    text = guest.api.output("sh", "-c", "ulimit -Hn; ulimit -u", User="nobody")
    assert text.split() == ["1048576", "unlimited"]


def test_restart_policies_outlive_the_machine(guest: GuestPlace) -> None:
    api = guest.api

    def run(policy: str) -> str:
        return api.run("sleep", "6000", HostConfig={"RestartPolicy": {"Name": policy}})

    always, unless_stopped, stopped, plain = (
        run(policy) for policy in ("always", "unless-stopped", "unless-stopped", "no")
    )
    api.post(f"/containers/{stopped}/stop", t=0)
    stopped_always = run("always")
    api.post(f"/containers/{stopped_always}/stop", t=0)
    guest.restart()
    everyone = (always, unless_stopped, stopped, plain, stopped_always)
    states = {container: api.inspect(container)["State"]["Status"] for container in everyone}
    assert [states[container] for container in (always, unless_stopped)] == ["running"] * 2
    assert [states[container] for container in (stopped, plain)] == ["exited"] * 2
    # PID 1 does not end by SIGTERM; how it ended was seen and kept before the machine went off.
    assert api.inspect(plain)["State"]["ExitCode"] == 128 + signal.SIGKILL
    # As with dockerd: whoever asked for "always" gets it when the engine starts.
    assert states[stopped_always] == "running"


def test_remapped_users_in_the_machine(guest: GuestPlace) -> None:
    settings = "/etc/desk/daemon.json"
    guest.run(f'cp {settings} /tmp/before; echo \'{{"userns-remap": "default"}}\' >{settings}')
    try:
        guest.kill_engine()
        assert "name=userns" in guest.api.get("/info")["SecurityOptions"]
        host = {"Binds": ["mapped:/v"]}
        container = guest.api.run("sh", "-c", "touch /v/mine; exec sleep 600", HostConfig=host)
        first, outside, count = execute(guest, container, "cat /proc/self/uid_map")[1].split()
        assert (first, count) == ("0", "65536")
        pid = guest.api.inspect(container)["State"]["Pid"]
        owner = guest.run(f"stat -c %u /proc/{pid}").strip()
        assert owner == outside != "0"
        assert execute(guest, container, "id -u; stat -c %u /v/mine")[1].split() == ["0", "0"]
        place = guest.api.get("/volumes/mapped")["Mountpoint"]
        assert guest.run(f"stat -c %u {place}/mine").strip() == outside
        remove_everything(guest.api)
    finally:
        guest.run(f"mv /tmp/before {settings}")
        guest.kill_engine()
    assert "name=userns" not in guest.api.get("/info")["SecurityOptions"]
