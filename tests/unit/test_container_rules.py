"""Pure rules of containers: the image's part, defaults, checks, limits and their changes."""

from __future__ import annotations

import pytest

from deskd.domain.container import (
    ContainerConfig,
    HostConfig,
    PortBinding,
    RestartPolicy,
    ThrottleDevice,
    WeightDevice,
)
from deskd.domain.signals import parse_signal
from deskd.errors import Conflict, InvalidArgument, Unsupported
from deskd.kernel.cgroup.features import Features
from deskd.record import replace
from deskd.services.containers import merging
from deskd.services.containers.listing import age_text
from deskd.services.containers.names import check_name, random_name
from deskd.services.containers.resource_checks import settle_resources
from deskd.services.containers.updating import updated_host_config


def test_merging_with_the_image() -> None:
    image = ContainerConfig(
        env=["PATH=/bin", "A=image"],
        entrypoint=["/start"],
        cmd=["default"],
        labels={"from": "image", "both": "image"},
        working_dir="/srv",
        exposed_ports={"80/tcp": {}},
    )
    own = ContainerConfig(env=["A=own"], labels={"both": "own"})
    merged = merging.merge_config(own, image)
    assert merged.env == ["A=own", "PATH=/bin"]
    assert (merged.entrypoint, merged.cmd) == (["/start"], ["default"])
    assert merged.labels == {"from": "image", "both": "own"}
    assert merged.working_dir == "/srv"
    own = ContainerConfig(cmd=["other"])
    assert merging.command_line(merging.merge_config(own, image)) == ["/start", "other"]
    own = ContainerConfig(entrypoint=["sh"])
    assert merging.command_line(merging.merge_config(own, image)) == ["sh"]
    own = ContainerConfig(entrypoint=[""], cmd=["sh"])
    assert merging.command_line(merging.merge_config(own, image)) == ["sh"]
    with pytest.raises(InvalidArgument, match="no command specified"):
        merging.command_line(ContainerConfig())


FEATURES = Features(
    version=1,
    cpus=frozenset((0, 1, 3)),
    memory_nodes=frozenset((0,)),
    swap_limit=True,
    realtime=True,
)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (HostConfig(memory=1024), "Minimum memory limit allowed is 6MB"),
        (HostConfig(memory=2**30, memory_swap=2**29), "Minimum memoryswap limit"),
        (HostConfig(memory_swap=2**30), "You should always set the Memory limit"),
        (HostConfig(nano_cpus=10**9, cpu_quota=5000), "Conflicting options: Nano CPUs"),
        (HostConfig(cpuset_cpus="a-b"), "Invalid value a-b for cpuset cpus"),
        (HostConfig(cpuset_cpus="1-0"), "Invalid value 1-0 for cpuset cpus"),
        (
            HostConfig(cpuset_cpus="0-3"),
            "Requested CPUs are not available - requested 0-3, available: 0-1,3",
        ),
        (HostConfig(cpuset_cpus="0-99999999999"), "Invalid value"),
        (
            HostConfig(cpuset_mems="1"),
            "Requested memory nodes are not available - requested 1, available: 0",
        ),
        (
            HostConfig(cpu_realtime_period=1000, cpu_realtime_runtime=2000),
            "cpu real-time runtime cannot be higher than cpu real-time period",
        ),
        (
            HostConfig(blkio_weight_device=[WeightDevice(path="/dev/vda", weight=3)]),
            "Range of blkio weight is from 10 to 1000",
        ),
        (
            HostConfig(blkio_device_read_bps=[ThrottleDevice(path="/dev/vda", rate=-1)]),
            "invalid rate for device /dev/vda: -1",
        ),
        (HostConfig(io_maximum_iops=1), "does not support configuration of maximum IOPs"),
        (HostConfig(isolation="hyperv"), 'Invalid isolation: "hyperv" - linux only supports'),
        (HostConfig(oom_score_adj=5000), "range for oom score adj"),
        (
            HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")),
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=2)),
            "maximum retry count can only be used with 'on-failure'",
        ),
        (HostConfig(network_mode="container:"), "invalid container format"),
        (HostConfig(pid_mode="nonsense"), "invalid PID mode: nonsense"),
        (HostConfig(port_bindings={"0/tcp": None}), "invalid port specification"),
        (
            HostConfig(port_bindings={"80": [PortBinding(host_port="99999")]}),
            "invalid port specification",
        ),
        (HostConfig(port_bindings={"80": [PortBinding(host_ip="a")]}), "invalid host address"),
        (HostConfig(runtime="kata"), "unknown or invalid runtime name: kata"),
        (HostConfig(storage_opt={"size": "1g"}), "--storage-opt is supported only for overlay"),
        (HostConfig(storage_opt={"quota": "1g"}), "Unknown option quota"),
    ],
)
def test_impossible_host_configurations(host: HostConfig, text: str) -> None:
    with pytest.raises((InvalidArgument, Unsupported), match=text):
        merging.check_host_config(host, FEATURES)


def test_what_the_machine_lacks_is_taken_away_with_a_warning() -> None:
    wanted = HostConfig(
        memory=2**26, memory_swappiness=5, oom_kill_disable=True, cpu_percent=5, pids_limit=-1
    )
    old, told = settle_resources(wanted, FEATURES)
    assert (old.oom_kill_disable, old.memory_swappiness, old.pids_limit) == (True, 5, None)
    assert told == ["linux does not support CPU percent. Percent discarded."]
    unified = Features(
        version=2,
        cpus=FEATURES.cpus,
        memory_nodes=FEATURES.memory_nodes,
        swap_limit=False,
        realtime=False,
    )
    new, told = settle_resources(wanted, unified)
    assert (new.oom_kill_disable, new.memory_swappiness, new.memory_swap) == (None, None, -1)
    assert [text.partition(".")[0] for text in told] == [
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted",
        "linux does not support CPU percent",
        "Your kernel does not support OomKillDisable",
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted",
    ]
    assert settle_resources(HostConfig(), FEATURES)[0].oom_kill_disable is False


def test_block_weights_are_discarded_where_the_kernel_has_none() -> None:
    without = replace(FEATURES, io_weight=False)
    wanted = HostConfig(
        blkio_weight=5, blkio_weight_device=[WeightDevice(path="/dev/none", weight=5)]
    )
    merging.check_host_config(wanted, without)
    settled, told = settle_resources(wanted, without)
    assert (settled.blkio_weight, settled.blkio_weight_device) == (0, [])
    assert told == [
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. "
        "Weight discarded.",
        "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. "
        "Weight-device discarded.",
    ]


def test_updates_keep_what_they_do_not_name() -> None:
    old = HostConfig(memory=2**26, memory_swap=2**27, pids_limit=5, nano_cpus=10**9)
    new = updated_host_config(old, HostConfig(cpu_shares=512, pids_limit=-1))
    assert (new.memory, new.cpu_shares, new.pids_limit) == (2**26, 512, 0)
    for changes, text in (
        (HostConfig(memory=2**28), "already set memoryswap limit"),
        (HostConfig(cpu_quota=50000), "CPU Quota cannot be updated as NanoCPUs has already been"),
    ):
        with pytest.raises(Conflict, match=text):
            updated_host_config(old, changes)
    for swap in (0, -1):
        with pytest.raises(Conflict, match="already set memoryswap limit"):
            updated_host_config(HostConfig(memory_swap=swap), HostConfig(memory=2**26))
    with pytest.raises(InvalidArgument, match="Minimum memoryswap limit should be larger"):
        updated_host_config(old, HostConfig(memory_swap=2**25))
    with pytest.raises(InvalidArgument, match="needs a memory limit"):
        updated_host_config(HostConfig(), HostConfig(memory_swap=2**25))
    # More kept free than there may be: the kernel and Docker take that.
    assert updated_host_config(old, HostConfig(memory_reservation=2**28)).memory == 2**26
    itself = HostConfig(auto_remove=True)
    with pytest.raises(Conflict, match="AutoRemove is enabled"):
        updated_host_config(itself, HostConfig(restart_policy=RestartPolicy(name="always")))
    with pytest.raises(Conflict, match="Nano CPUs cannot be updated as CPU Period"):
        updated_host_config(HostConfig(cpu_period=5000), HostConfig(nano_cpus=10**9))


def test_defaults_that_inspect_shows() -> None:
    settled, warnings = settle_resources(HostConfig(memory=2**26), FEATURES)
    assert warnings == []
    host = merging.complete_host_config(settled, cgroup_v2=True, log_options={})
    assert (host.network_mode, host.ipc_mode, host.cgroupns_mode) == (
        "bridge",
        "private",
        "private",
    )
    assert (host.shm_size, host.memory_swap, host.restart_policy.name) == (2**26, 2**27, "no")
    assert "/proc/kcore" in (host.masked_paths or [])


def test_signals() -> None:
    assert [parse_signal(text) for text in ("KILL", "sigterm", "9", "SIGRTMIN+3")] == [
        9,
        15,
        9,
        37,
    ]
    for text in ("", "0", "SIGNONE", "-1"):
        with pytest.raises(InvalidArgument, match="invalid signal"):
            parse_signal(text)
    with pytest.raises(InvalidArgument, match="the linux daemon does not support signal 65"):
        parse_signal("65")


def test_names() -> None:
    assert check_name("/good.name-1") == "good.name-1"
    for name in ("", "a", "-a", "a b", "a/b", "ä" * 3, "x" * 300):
        with pytest.raises(InvalidArgument, match="Invalid container name"):
            check_name(name)
    assert all(check_name(random_name(attempt)) for attempt in range(12))


def test_ages() -> None:
    second = 10**9
    for seconds, words in (
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (3 * 3600, "3 hours"),
        (3 * 86400, "3 days"),
        (21 * 86400, "3 weeks"),
        (90 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ):
        assert age_text(seconds * second) == words
