"""The kernel package's pure parts: hierarchies, device programs, seccomp profiles, features."""

from __future__ import annotations

import struct

import pytest

from deskd.errors import InvalidArgument, Unsupported
from deskd.kernel import capabilities, probe, seccomp
from deskd.kernel.capability_names import CAPABILITIES, DEFAULT_CAPABILITIES
from deskd.kernel.cgroup import device_filter
from deskd.kernel.cgroup.hierarchy import parse_mountinfo
from deskd.kernel.cgroup.limits import DeviceRule
from deskd.kernel.seccomp_profile import default_profile_text, read_profile

V2 = "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "30 20 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "31 20 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 20 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
HYBRID = "40 20 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" + V1


def test_hierarchies_are_told_apart() -> None:
    assert parse_mountinfo(V2).version == 2
    assert parse_mountinfo(V2).root == "/sys/fs/cgroup"
    found = parse_mountinfo(HYBRID)
    assert found.version == 1
    assert found.root == "/sys/fs/cgroup/unified"
    assert found.controllers["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.mount_points()["/sys/fs/cgroup/systemd"] == ["name=systemd"]
    with pytest.raises(Unsupported, match="CONFIG_CGROUPS"):
        parse_mountinfo("1 1 0:1 / / rw - ext4 /dev/vda rw\n")


def run_device_program(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Interpret the few instructions that ``assemble`` uses."""
    memory = struct.pack("=III", access << 16 | kind, major, minor)
    registers = [0] * 11
    position = 0
    while True:
        operation, pair, offset, value = struct.unpack_from("=BBhi", code, position * 8)
        dst, src = pair & 15, pair >> 4
        position += 1
        if operation == 0x61:
            registers[dst] = struct.unpack_from("=I", memory, offset)[0]
        elif operation == 0xB7:
            registers[dst] = value
        elif operation == 0xBC:
            registers[dst] = registers[src]
        elif operation == 0x54:
            registers[dst] &= value
        elif operation == 0x74:
            registers[dst] >>= value
        elif operation == 0x55:
            position += offset if registers[dst] != value else 0
        elif operation == 0x5D:
            position += offset if registers[dst] != registers[src] else 0
        elif operation == 0x95:
            return registers[0]
        else:
            raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "allowed"),
    [
        (2, 2 | 4, 1, 3, 1),
        (2, 2, 1, 5, 1),
        (2, 4, 1, 5, 0),
        (2, 2 | 4, 1, 5, 0),
        (1, 2, 1, 3, 0),
        (2, 4, 136, 99, 1),
        (1, 1, 8, 0, 1),
        (1, 2, 8, 0, 0),
    ],
)
def test_the_device_program(kind: int, access: int, major: int, minor: int, allowed: int) -> None:
    code = device_filter.assemble(
        [
            DeviceRule("c", 1, 3, "rwm"),
            DeviceRule("c", 1, 5, "r"),
            DeviceRule("c", 136, None, "rwm"),
            DeviceRule("b", None, None, "m"),
        ]
    )
    assert run_device_program(code, kind, access, major, minor) == allowed


def test_a_rule_for_everything_ends_the_program() -> None:
    """The kernel refuses a program with instructions that no path reaches."""
    everything = DeviceRule("a", None, None, "rwm")
    code = device_filter.assemble([DeviceRule("c", 1, 3, "r"), everything])
    longer = device_filter.assemble([DeviceRule("c", 1, 3, "r"), everything, everything])
    assert run_device_program(code, 1, 2 | 4, 8, 0) == 1
    assert code == longer


def test_the_default_profile_depends_on_capabilities() -> None:
    small = read_profile(default_profile_text(), DEFAULT_CAPABILITIES)
    large = read_profile(default_profile_text(), CAPABILITIES)

    def allowed(profile: object) -> set[str]:
        rules = profile.rules  # type: ignore[attr-defined]
        return {n for rule in rules if rule.action == 0x7FFF0000 for n in rule.names}

    assert "mount" not in allowed(small)
    assert {"mount", "setns", "bpf", "reboot"} <= allowed(large)
    assert "chroot" in allowed(small)
    assert small.default_action == 0x00050001
    program = seccomp.compile_profile(small)
    assert len(program) % 8 == 0
    assert len(program) > 1000


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"defaultAction": "SCMP_ACT_WHAT"}'])
def test_bad_profiles_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="seccomp profile"):
        read_profile(text, ())


def test_capability_masks() -> None:
    assert capabilities.mask(["CAP_CHOWN", "CAP_KILL"]) == 0b100001
    assert capabilities.names(0b100001) == ["CAP_CHOWN", "CAP_KILL"]


def test_missing_features_name_their_option() -> None:
    assert "CONFIG_OVERLAY_FS" in probe.explain("overlay /", 19)
    assert probe.explain("overlay /", 13) == ""
    found = {feature.option: feature for feature in probe.features()}
    assert found["CONFIG_OVERLAY_FS"].present
    assert "CONFIG_USER_NS" in found
    assert all(feature.option in feature.hint() for feature in probe.missing())
