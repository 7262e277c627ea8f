"""The device allow-list of cgroup version 2: a small BPF program. See bpf(2) and
``BPF_PROG_TYPE_CGROUP_DEVICE`` in ``include/uapi/linux/bpf.h``."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from deskd.errors import SystemFailure
from deskd.kernel.cgroup.limits import DeviceRule
from deskd.kernel.libc import syscall

_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

_BPF_PROG_LOAD = 5
_BPF_PROG_ATTACH = 8
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_F_ALLOW_MULTI = 2

_LOAD_WORD = 0x61  # dst = *(u32 *)(src + offset)
_MOVE_IMMEDIATE = 0xB7
_MOVE_REGISTER_32 = 0xBC
_AND_32 = 0x54
_SHIFT_RIGHT_32 = 0x74
_JUMP_NOT_EQUAL = 0x55
_JUMP_NOT_EQUAL_REGISTER = 0x5D
_EXIT = 0x95


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, offset, value)


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """Translate an allow-list: the program returns 1 for an access that one rule allows.

    A rule with ``allow=False`` refuses what it matches; the first match decides.
    """
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),  # r2 = access_type
        _instruction(_MOVE_REGISTER_32, 3, 2),
        _instruction(_AND_32, 2, value=0xFFFF),  # r2 = kind
        _instruction(_SHIFT_RIGHT_32, 3, value=16),  # r3 = access
        _instruction(_LOAD_WORD, 4, 1, 4),  # r4 = major
        _instruction(_LOAD_WORD, 5, 1, 8),  # r5 = minor
    ]
    for rule in rules:
        code += _rule(rule)
        if rule.kind == "a" and rule.major is rule.minor is None and set(rule.access) == set("rwm"):
            # It matches everything, and the kernel refuses instructions that are never reached.
            return b"".join(code)
    code += [_instruction(_MOVE_IMMEDIATE, 0, value=0), _instruction(_EXIT)]
    return b"".join(code)


def _rule(rule: DeviceRule) -> list[bytes]:
    tests: list[tuple[int, int, int, int]] = []  # code, dst, src, value
    if rule.kind != "a":
        tests.append((_JUMP_NOT_EQUAL, 2, 0, _KINDS[rule.kind]))
    if rule.major is not None:
        tests.append((_JUMP_NOT_EQUAL, 4, 0, rule.major))
    if rule.minor is not None:
        tests.append((_JUMP_NOT_EQUAL, 5, 0, rule.minor))
    access = sum(_ACCESS[letter] for letter in set(rule.access))
    before: list[bytes] = []
    if access != 7:
        before = [
            _instruction(_MOVE_REGISTER_32, 1, 3),
            _instruction(_AND_32, 1, value=access),
        ]
        tests.append((_JUMP_NOT_EQUAL_REGISTER, 1, 3, 0))
    after = [_instruction(_MOVE_IMMEDIATE, 0, value=int(rule.allow)), _instruction(_EXIT)]
    code = [
        _instruction(jump, dst, src, len(tests) - position + len(after) - 1, value)
        for position, (jump, dst, src, value) in enumerate(tests)
    ]
    return before + code + after


class _LoadAttributes(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
    )


class _AttachAttributes(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    )


def attach(directory: str, rules: Sequence[DeviceRule]) -> None:
    """Load the program of an allow-list and attach it to a cgroup; it goes with the cgroup.

    Raises ``SystemFailure`` where the kernel refuses it (it needs CONFIG_CGROUP_BPF).
    """
    code = assemble(rules)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    load = _LoadAttributes(
        prog_type=_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(licence),
    )
    opened: list[int] = []
    try:
        opened.append(syscall("bpf", _BPF_PROG_LOAD, load, ctypes.sizeof(load)))
        opened.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        attributes = _AttachAttributes(opened[1], opened[0], _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI)
        syscall("bpf", _BPF_PROG_ATTACH, attributes, ctypes.sizeof(attributes))
    except OSError as error:
        raise SystemFailure(
            f"the device list of {directory} could not be attached ({error.strerror}):"
            " it needs a kernel with CONFIG_CGROUP_BPF"
        ) from error
    finally:
        for fd in opened:
            os.close(fd)
