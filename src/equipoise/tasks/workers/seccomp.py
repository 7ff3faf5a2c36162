"""The kernel's part of the confinement, on Linux: a list of the system calls that a process which computes needs.

Everything else - sockets, processes and threads, signals to others, changes of files - answers ENOSYS, and so do new
calls of later kernels: libraries take that for an old kernel. Opening a file to write it answers EACCES. seccomp(2)
needs no privileges; it holds until the process ends and cannot be taken back.
"""

import ctypes
import platform
import struct
import sys

# name -> numbers on x86-64 and 64-bit ARM (linux/arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h).
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "write": (1, 64), "writev": (20, 66), "close": (3, 57),
    "lseek": (8, 62), "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None),
    "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17),
    "getdents64": (217, 61), "ioctl": (16, 29), "fcntl": (72, 25), "dup": (32, 23), "fadvise64": (221, 223),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283), "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "setitimer": (38, 103), "getitimer": (36, 102),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "uname": (63, 160), "getrandom": (318, 278), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "exit": (60, 93),
    "exit_group": (231, 94),
}  # fmt: skip
_OPENING = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # numbers, and which argument holds the flags
_WRITING = 0o3 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ, BPF_JMP|JSET, BPF_RET
_ALLOW, _ENOSYS, _EACCES = 0x7FFF0000, 0x00050000 | 38, 0x00050000 | 13
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def forbid_all_but_computing() -> bool:
    """Puts this process under the filter for good; False where the system has none that we know."""
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.maxsize < 2**32 or sys.byteorder != "little":
        return False
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    code = _program(*machine)
    filter_ = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(filter_))
    zero, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
    if prctl(_PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) != 0:
        return False
    return prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), zero, zero) == 0


def _program(column: int, architecture: int) -> bytes:
    """The filter in the kernel's classic BPF: struct sock_filter is code, jump if true, jump if false, operand."""
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _ENOSYS)]
    steps.append((_LOAD, 0, 0, _NUMBER))
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for numbers, argument in _OPENING.values():
        if (number := numbers[column]) is not None:
            steps += [
                (_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_ANY_BIT, 0, 1, _WRITING),
                (_RETURN, 0, 0, _EACCES),
                (_RETURN, 0, 0, _ALLOW),
            ]
    steps.append((_RETURN, 0, 0, _ENOSYS))
    return b"".join(struct.pack("HBBI", *step) for step in steps)
