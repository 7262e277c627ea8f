"""Seccomp filters: compiled with libseccomp in the engine, loaded as BPF in the launcher's child.

``load`` needs the kernel alone; ``compile_profile`` opens libseccomp at its first call. See
seccomp(2), seccomp_rule_add(3).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

from deskd.errors import InvalidArgument, SystemFailure, Unsupported
from deskd.kernel.libc import syscall
from deskd.kernel.seccomp_profile import Comparison, Profile

_SET_MODE_FILTER = 1
_ATTRIBUTE_NO_NEW_PRIVILEGES = 3
_ATTRIBUTE_OPTIMIZE = 8
_BINARY_TREE = 2
_UNKNOWN_SYSCALL = -1

_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": b"x86_64",
    "SCMP_ARCH_X86": b"x86",
    "SCMP_ARCH_X32": b"x32",
    "SCMP_ARCH_AARCH64": b"aarch64",
    "SCMP_ARCH_ARM": b"arm",
}


class _SockFilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _ArgumentComparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    )


def load(program: bytes) -> None:
    """Load a BPF program for this process for good. Needs CAP_SYS_ADMIN or no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    description = _SockFilterProgram(len(program) // 8, ctypes.addressof(buffer))
    syscall("seccomp", _SET_MODE_FILTER, 0, description)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise Unsupported(
            "seccomp needs the library libseccomp.so.2: install libseccomp2"
        ) from error
    context = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_init.restype = context
    library.seccomp_release.argtypes = (context,)
    library.seccomp_release.restype = None
    library.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = (context, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_attr_set.argtypes = (context, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        context,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_ArgumentComparison),
    )
    library.seccomp_export_bpf.argtypes = (context, ctypes.c_int)
    return library


def compile_profile(profile: Profile) -> bytes:
    """Translate a profile to BPF. System calls that the library does not know are left out, as
    Docker does. Raises ``InvalidArgument`` for rules that contradict each other."""
    library = _library()
    context = library.seccomp_init(profile.default_action)
    if not context:
        raise InvalidArgument("the seccomp profile's default action is not valid")
    try:
        for name in profile.architectures[1:]:
            _add_architecture(library, context, name)
        _check(library.seccomp_attr_set(context, _ATTRIBUTE_NO_NEW_PRIVILEGES, 0), "no_new_privs")
        # Libraries before 2.5 have no such attribute; the filter is only slower then.
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)
        for rule in profile.rules:
            if rule.action == profile.default_action:
                continue
            for name in rule.names:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number != _UNKNOWN_SYSCALL:
                    _add_rule(library, context, rule.action, number, rule.comparisons, name)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add_architecture(library: ctypes.CDLL, context: int, name: str) -> None:
    if name not in _ARCHITECTURES:
        return  # another machine's
    token = library.seccomp_arch_resolve_name(_ARCHITECTURES[name])
    result = library.seccomp_arch_add(context, token)
    if result != -errno.EEXIST:
        _check(result, name)


def _add_rule(
    library: ctypes.CDLL,
    context: int,
    action: int,
    number: int,
    comparisons: tuple[Comparison, ...],
    name: str,
) -> None:
    indexes = [item.index for item in comparisons]
    # The library wants each argument once in a rule; repeated ones mean "or" in Docker's format.
    groups = [comparisons] if len(set(indexes)) == len(indexes) else [(i,) for i in comparisons]
    for group in groups:
        array = (_ArgumentComparison * len(group))(
            *(
                _ArgumentComparison(item.index, item.operator, item.value, item.value_two)
                for item in group
            )
        )
        _check(library.seccomp_rule_add_array(context, action, number, len(group), array), name)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise InvalidArgument(
            f"the seccomp profile's entry for {what!r} was refused: {os.strerror(-result)}"
        )


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result < 0:
            raise SystemFailure(f"the seccomp filter could not be built: {os.strerror(-result)}")
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
