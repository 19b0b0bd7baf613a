"""A seccomp filter for the worker: what it may no longer ask the Linux kernel for.

The filter is classic BPF (seccomp(2), Documentation/userspace-api/seccomp_filter.rst) built by
hand, because its library is a system package that a `pip install` cannot bring.  It refuses with
EPERM; it never kills, so that a library that merely tries something goes on without it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence

__all__ = ["available", "filter_program", "load"]

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_LOAD, _JUMP_EQUAL, _JUMP_GE, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

# Name: number on x86_64, on aarch64 (None where that has no such call).
_REFUSED: dict[str, tuple[int, int | None]] = {
    # the network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "kill": (62, 129), "tkill": (200, 130), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # the rest of the machine
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142),
    "open_by_handle_at": (304, 265), "memfd_create": (319, 279), "setrlimit": (160, 164),
    "personality": (135, 92),
}  # fmt: skip
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)
_PROCESSORS = ("x86_64", "aarch64")
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_SECCOMP_CALL = (317, 277)


def available() -> bool:
    """Whether this machine's kernel and processor are ones the filter is written for."""
    return sys.platform == "linux" and platform.machine() in _PROCESSORS


def load() -> None:
    """Put the filter on every thread of this process, now and to come.  Raises OSError."""
    program = filter_program(platform.machine(), os.getpid())
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: number of instructions, pointer to them
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused no_new_privs")
    number = _SECCOMP_CALL[_PROCESSORS.index(platform.machine())]
    if libc.syscall(number, _SET_MODE_FILTER, _ALL_THREADS, head) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused the seccomp filter")


def filter_program(machine: str, pid: int) -> bytes:
    """The BPF instructions for a processor: threads, signals and limits, but those of `pid` itself only."""
    which = _PROCESSORS.index(machine)
    refused = [pair[which] for pair in _REFUSED.values()]
    steps = [
        _step(_LOAD, _ARCH),
        _step(_JUMP_EQUAL, _AUDIT_ARCH[which], 1, 0),
        _step(_RETURN, _EPERM),
        _step(_LOAD, _NUMBER),
        # The x32 call table of x86_64 would be a way round; numbers this high exist nowhere else.
        _step(_JUMP_GE, _X32_BIT, 0, 1),
        _step(_RETURN, _EPERM),
        *_refuse([number for number in refused if number is not None]),
        # clone3 hides its flags in memory; without it the C library falls back to clone.
        _step(_JUMP_EQUAL, _CLONE3[which], 0, 1),
        _step(_RETURN, _ENOSYS),
        _step(_JUMP_EQUAL, _CLONE[which], 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_JUMP_BITS, _CLONE_THREAD, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _EPERM),
        # The C library asks for its own limits by it, with 0 for itself; those of others end processes.
        _step(_JUMP_EQUAL, _PRLIMIT[which], 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_JUMP_EQUAL, 0, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _EPERM),
        _step(_JUMP_EQUAL, _TGKILL[which], 0, 3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_JUMP_EQUAL, pid, 1, 0),
        _step(_RETURN, _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _refuse(numbers: Sequence[int]) -> list[bytes]:
    jumps = [_step(_JUMP_EQUAL, number, len(numbers) - 1 - i, 0) for i, number in enumerate(numbers)]
    # No match falls through the last jump and skips the refusal.
    jumps[-1] = _step(_JUMP_EQUAL, numbers[-1], 0, 1)
    return [*jumps, _step(_RETURN, _EPERM)]


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
