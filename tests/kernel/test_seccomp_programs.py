"""What the default filter decides, for both architectures: the compiled BPF is carried out by an
interpreter, so that arm64's is tested on any machine."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from deskd.kernel import seccomp
from deskd.kernel.capability_names import CAPABILITIES, DEFAULT_CAPABILITIES
from deskd.kernel.seccomp_profile import default_profile_text, read_profile

ALLOW, REFUSE, NOT_THERE = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
NEW_NAMESPACES = {
    "CLONE_NEWNS": 0x00020000, "CLONE_NEWCGROUP": 0x02000000, "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000, "CLONE_NEWUSER": 0x10000000, "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """An architecture: the names that we and libseccomp have for it, what the kernel calls it and
    its 32-bit predecessor (linux/audit.h), and its system calls' numbers."""

    ours: str
    library: bytes
    audit: int
    narrow_audit: int
    numbers: dict[str, int]


NUMBERS = {
    # x86-64: arch/x86/entry/syscalls/syscall_64.tbl; arm64: include/uapi/asm-generic/unistd.h
    "read": (0, 63), "openat": (257, 56), "execve": (59, 221), "exit_group": (231, 94),
    "capset": (126, 91), "prctl": (157, 167), "setgroups": (116, 159), "seccomp": (317, 277),
    "mount": (165, 40), "umount2": (166, 39), "setns": (308, 268), "unshare": (272, 97),
    "bpf": (321, 280), "ptrace": (101, 117), "keyctl": (250, 219), "clone": (56, 220),
    "clone3": (435, 435), "socket": (41, 198), "personality": (135, 92),
    "init_module": (175, 105), "kexec_load": (246, 104), "reboot": (169, 142),
    "open_by_handle_at": (304, 265), "io_uring_setup": (425, 425), "chroot": (161, 51),
    "settimeofday": (164, 170), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "pivot_root": (155, 41), "swapon": (167, 224), "add_key": (248, 217),
}  # fmt: skip
NARROW_NUMBERS = {"read": 3, "mount": 21}  # 32-bit x86 and 32-bit ARM agree on these
X86_64 = Machine(
    *("x86_64", b"x86_64", 0xC000003E, 0x40000003),
    {name: numbers[0] for name, numbers in NUMBERS.items()},
)
ARM64 = Machine(
    *("arm64", b"aarch64", 0xC00000B7, 0x40000028),
    {name: numbers[1] for name, numbers in NUMBERS.items()},
)
RISC_V = 0xC00000F3


class Foreign:
    """libseccomp as it is on a machine of another architecture: its filters begin with that one's
    instead of this machine's."""

    def __init__(self, library: ctypes.CDLL, machine: Machine) -> None:
        self._library = library
        self._machine = machine
        library.seccomp_arch_native.restype = ctypes.c_uint32
        library.seccomp_arch_remove.argtypes = (ctypes.c_void_p, ctypes.c_uint32)

    def __getattr__(self, name: str) -> object:
        return getattr(self._library, name)

    def seccomp_init(self, action: int) -> int:
        context: int = self._library.seccomp_init(action)
        wanted = self._library.seccomp_arch_resolve_name(self._machine.library)
        native = self._library.seccomp_arch_native()
        if wanted != native:
            assert self._library.seccomp_arch_add(context, wanted) == 0
            assert self._library.seccomp_arch_remove(context, native) == 0
        return context


@pytest.fixture(params=[X86_64, ARM64], ids=lambda machine: machine.ours)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    chosen: Machine = request.param
    foreign = Foreign(seccomp._library(), chosen)
    monkeypatch.setattr(seccomp, "_library", lambda: foreign)
    return chosen


def compiled(machine: Machine, capabilities: Iterable[str] = DEFAULT_CAPABILITIES) -> bytes:
    profile = read_profile(default_profile_text(), capabilities, machine.ours)
    return seccomp.compile_profile(profile)


def decide(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """Carry a filter out for one system call, as the kernel does (linux/bpf_common.h)."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, audit, 0, *(value & (1 << 64) - 1 for value in padded))
    steps = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = steps[position]
        position += 1
        kind, operation = code & 0x07, code & 0xF0
        if kind == 0x00:  # load a word
            assert code == 0x20, hex(code)
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif kind == 0x04:  # calculate
            assert operation == 0x50, hex(code)  # and
            accumulator &= value
        elif kind == 0x05 and operation == 0x00:
            position += value
        elif kind == 0x05:
            holds = {
                0x10: accumulator == value,
                0x20: accumulator > value,
                0x30: accumulator >= value,
                0x40: bool(accumulator & value),
            }[operation]
            position += if_true if holds else if_false
        else:
            assert code == 0x06, hex(code)  # return
            return value


def test_what_containers_may_always_do_and_what_never(machine: Machine) -> None:
    program = compiled(machine)

    def verdict(name: str, *arguments: int) -> int:
        return decide(program, machine.audit, machine.numbers[name], *arguments)

    for name in ("read", "openat", "execve", "exit_group", "capset", "prctl", "setgroups"):
        assert verdict(name) == ALLOW, name
    for name in ("ptrace", "seccomp", "chroot"):
        assert verdict(name) == ALLOW, name
    for name in (
        *("mount", "umount2", "setns", "unshare", "bpf", "keyctl", "add_key", "init_module"),
        *("kexec_load", "reboot", "open_by_handle_at", "io_uring_setup", "settimeofday"),
        *("perf_event_open", "userfaultfd", "pivot_root", "swapon"),
    ):
        assert verdict(name) == REFUSE, name
    assert verdict("clone3") == NOT_THERE  # so that C libraries fall back to clone


def test_arguments_decide(machine: Machine) -> None:
    program = compiled(machine)

    def verdict(name: str, *arguments: int) -> int:
        return decide(program, machine.audit, machine.numbers[name], *arguments)

    assert verdict("clone", 0x003D0F00) == ALLOW  # a thread
    for name, flag in NEW_NAMESPACES.items():
        assert verdict("clone", 0x11 | flag) == REFUSE, name
        assert verdict("clone", 0x11, flag) == ALLOW, "the second argument is no flag here"
    for family, wanted in ((1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (17, ALLOW)):
        assert verdict("socket", family) == wanted, family
    assert verdict("socket", 38) == REFUSE  # the kernel's cryptography
    assert verdict("socket", 40) == REFUSE  # sockets of virtual machines
    for persona, wanted in ((0, ALLOW), (8, ALLOW), (0x20000, ALLOW), (0xFFFFFFFF, ALLOW)):
        assert verdict("personality", persona) == wanted, persona
    assert verdict("personality", 0x0040000) == REFUSE  # ADDR_NO_RANDOMIZE


def test_capabilities_open_what_they_stand_for(machine: Machine) -> None:
    everything = compiled(machine, CAPABILITIES)
    for name in ("mount", "setns", "bpf", "reboot", "open_by_handle_at", "init_module", "clone3"):
        assert decide(everything, machine.audit, machine.numbers[name]) == ALLOW, name
    flags = 0x11 | NEW_NAMESPACES["CLONE_NEWUSER"]
    assert decide(everything, machine.audit, machine.numbers["clone"], flags) == ALLOW
    for name in ("kexec_load", "add_key", "swapon"):
        assert decide(everything, machine.audit, machine.numbers[name]) == REFUSE, name


def test_every_number_is_decided_as_the_profile_says(machine: Machine) -> None:
    """All numbers of the architecture, by libseccomp's own table, also those that have no name."""
    library = seccomp._library()
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    token = ctypes.c_uint32(library.seccomp_arch_resolve_name(machine.library))
    profile = read_profile(default_profile_text(), DEFAULT_CAPABILITIES, machine.ours)
    allowed = {
        name
        for rule in profile.rules
        if rule.action == ALLOW and not rule.comparisons
        for name in rule.names
    }
    conditional = {name for rule in profile.rules if rule.comparisons for name in rule.names}
    program = compiled(machine)
    decided = 0
    for number in range(512):
        found = library.seccomp_syscall_resolve_num_arch(token, number)
        name = found.decode() if found else ""
        if name in conditional or name == "clone3":
            continue
        wanted = ALLOW if name in allowed else REFUSE
        assert decide(program, machine.audit, number) == wanted, (number, name)
        decided += wanted == ALLOW
    assert decided > 200


def test_other_instruction_sets_are_no_way_around(machine: Machine) -> None:
    program = compiled(machine)
    assert decide(program, machine.narrow_audit, NARROW_NUMBERS["read"]) == ALLOW
    assert decide(program, machine.narrow_audit, NARROW_NUMBERS["mount"]) == REFUSE
    x32 = 0x40000000
    if machine is X86_64:
        assert decide(program, machine.audit, machine.numbers["read"] | x32) == ALLOW
    assert decide(program, machine.audit, machine.numbers["mount"] | x32) != ALLOW
    for audit in {X86_64.audit, ARM64.audit, RISC_V} - {machine.audit}:
        for number in (machine.numbers["read"], machine.numbers["mount"]):
            assert decide(program, audit, number) != ALLOW
