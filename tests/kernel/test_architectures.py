"""What differs between x86-64 and arm64, checked for both wherever the tests run."""

from __future__ import annotations

import ctypes

import pytest

from deskd.kernel import capabilities, process, seccomp
from deskd.kernel.capability_names import CAPABILITIES, DEFAULT_CAPABILITIES
from deskd.kernel.cgroup import device_filter
from deskd.kernel.libc import SYSCALL_TABLE
from deskd.kernel.seccomp_profile import Profile, default_profile_text, read_profile

ALLOW = 0x7FFF0000
ARCHITECTURES = {"x86_64": b"x86_64", "arm64": b"aarch64"}  # ours, libseccomp's


def allowed(profile: Profile) -> set[str]:
    """Return what is allowed whatever the arguments."""
    return {
        name
        for rule in profile.rules
        if rule.action == ALLOW and not rule.comparisons
        for name in rule.names
    }


def number_of(name: str, architecture: str) -> int:
    """Ask libseccomp for a system call's number; negative where there is none."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    token = library.seccomp_arch_resolve_name(ARCHITECTURES[architecture])
    number: int = library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name.encode())
    return number


@pytest.mark.parametrize(("column", "architecture"), [(0, "x86_64"), (1, "arm64")])
def test_system_calls_have_the_kernels_numbers(column: int, architecture: str) -> None:
    for name, numbers in SYSCALL_TABLE.items():
        assert numbers[column] == number_of(name, architecture), name


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_engines_own_start_passes_the_default_filter(architecture: str) -> None:
    """What a container's first process still calls once its filter is loaded."""
    profile = read_profile(default_profile_text(), DEFAULT_CAPABILITIES, architecture)
    assert {"capset", "execve", "prctl", "write", "exit_group"} <= allowed(profile)


def test_the_default_filter_follows_the_architecture() -> None:
    text = default_profile_text()
    x86 = read_profile(text, DEFAULT_CAPABILITIES, "x86_64")
    arm = read_profile(text, DEFAULT_CAPABILITIES, "arm64")
    assert x86.architectures == ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
    assert arm.architectures == ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")
    assert allowed(x86) - allowed(arm) == {"arch_prctl", "modify_ldt"}
    assert allowed(arm) - allowed(x86) == {
        "arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush",
        "set_tls",
    }  # fmt: skip
    more = allowed(read_profile(text, CAPABILITIES, "arm64")) - allowed(arm)
    assert {"mount", "setns", "bpf", "perf_event_open"} <= more


@pytest.mark.parametrize(
    ("structure", "size_bytes"),
    [
        (process._CloneArgs, 88),  # CLONE_ARGS_SIZE_VER2
        (seccomp._SockFilterProgram, 16),
        (seccomp._ArgumentComparison, 24),
        (capabilities._Header, 8),
        (capabilities._Data, 24),
        (device_filter._LoadAttributes, 48),
        (device_filter._AttachAttributes, 16),
    ],
)
def test_structures_have_the_size_of_64_bit_kernels(
    structure: type[ctypes.Structure], size_bytes: int
) -> None:
    assert ctypes.sizeof(structure) == size_bytes
