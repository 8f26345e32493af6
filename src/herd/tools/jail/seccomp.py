"""The system calls that code in a jail is refused, as a classic BPF program assembled here: no library is needed to load it.

What is left is what programs of data analysis need. Refused are new namespaces and mounts, other processes' memory, the kernel's own
interfaces (modules, bpf, io_uring, keys, performance events), System V and POSIX message objects, memory without a path, sockets of every
family but Unix's (AF_VSOCK and AF_ALG pass a network namespace), faked terminal input, and every call that is newer than this table.
A Landlock jail has no process namespace, so it also refuses what leaves the process group, and all sockets but pairs.
Numbers: Linux's `unistd.h` for x86-64 and the generic table of aarch64; a test compares them with the machine's headers.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from herd.base.errors import HerdError

_LD_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_LAST_KNOWN = 450
_X32_BIT = 0x40000000

# CLONE_NEWTIME shares its bit with the exit signal of clone(2), so it is left to clone3 and unshare, which are refused whole.
_NAMESPACE_FLAGS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TERMINAL_REQUESTS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: both put characters into a terminal's input."""
AF_UNIX = 1

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # name: (x86-64, aarch64)
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "afs_syscall": (183, None),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "getpmsg": (181, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_getsetattr": (245, 185),
    "mq_notify": (244, 184),
    "mq_open": (240, 180),
    "mq_timedreceive": (243, 183),
    "mq_timedsend": (242, 182),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "putpmsg": (182, None),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "security": (185, None),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "shmget": (29, 194),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "tuxcall": (184, None),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vserver": (236, None),
}
_CHECKED_BY_ARGUMENT = ("clone", "ioctl", "socket")
_OF_THE_PROCESS_GROUP = ("setpgid", "setsid")
_SAID_TO_BE_MISSING = ("clone3", "memfd_create", "io_uring_setup", "io_uring_enter", "io_uring_register")
"""For these libraries have another way, which they take on ENOSYS; on anything else they give up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A processor as seccomp knows it."""

    audit: int
    column: int
    has_x32: bool


ARCHITECTURES = {
    "x86_64": Architecture(audit=0xC000003E, column=0, has_x32=True),
    "aarch64": Architecture(audit=0xC00000B7, column=1, has_x32=False),
}


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k)


def _refuse(number: int) -> bytes:
    return _instruction(_RET, _ERRNO | number)


def _argument(index: int) -> bytes:
    """Load the low half of an argument; flags, families and requests are read from there by the kernel too."""
    return _instruction(_LD_ABS, _ARGS_OFFSET + 8 * index)


def program(machine: str, *, process_group: bool) -> bytes:
    """The filter for a machine, as the kernel and bubblewrap take it.

    Args:
        machine: what `platform.machine()` says.
        process_group: code must stay in its process group and has no sockets at all: for a jail without namespaces.

    Raises:
        HerdError: a machine without a table.
    """
    if machine not in ARCHITECTURES:
        raise HerdError(f"no system-call filter for {machine}", hint=f"the jail runs on {', '.join(ARCHITECTURES)}")
    arch = ARCHITECTURES[machine]
    parts = [_instruction(_LD_ABS, _ARCH_OFFSET), _instruction(_JEQ, arch.audit, 1, 0), _instruction(_RET, _KILL)]
    parts += [_instruction(_LD_ABS, _NR_OFFSET)]
    # Also the x32 calls, whose numbers have bit 30.
    parts += [_instruction(_JGE, _LAST_KNOWN + 1, 0, 1), _refuse(errno.ENOSYS)]
    for name, numbers in NUMBERS.items():
        number = numbers[arch.column]
        if number is None or name in _CHECKED_BY_ARGUMENT or (name in _OF_THE_PROCESS_GROUP and not process_group):
            continue
        answer = errno.ENOSYS if name in _SAID_TO_BE_MISSING else errno.EPERM
        parts += [_instruction(_JEQ, number, 0, 1), _refuse(answer)]
    parts += _checked(arch, process_group)
    parts.append(_instruction(_RET, _ALLOW))
    return b"".join(parts)


def _checked(arch: Architecture, process_group: bool) -> list[bytes]:
    """The calls that depend on an argument. Each leaves by a return, since loading the argument loses the number."""

    def number(name: str) -> int:
        found = NUMBERS[name][arch.column]
        assert found is not None
        return found

    allow = _instruction(_RET, _ALLOW)
    clone = [_argument(0), _instruction(_JSET, _NAMESPACE_FLAGS, 0, 1), _refuse(errno.EPERM), allow]
    ioctl = [_argument(1)]
    for request in _TERMINAL_REQUESTS:
        ioctl += [_instruction(_JEQ, request, 0, 1), _refuse(errno.EPERM)]
    ioctl.append(allow)
    socket = [_refuse(errno.EACCES)] if process_group else [_argument(0), _instruction(_JEQ, AF_UNIX, 0, 1), allow, _refuse(errno.EACCES)]
    parts: list[bytes] = []
    for name, body in (("clone", clone), ("ioctl", ioctl), ("socket", socket)):
        parts += [_instruction(_JEQ, number(name), 0, len(body)), *body]
    return parts
