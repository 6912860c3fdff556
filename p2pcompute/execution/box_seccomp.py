"""Which system calls a sandboxed task may make: a BPF program, built without a library.

A list of what is refused, on top of namespaces, dropped capabilities and no_new_privs: calls that reach what is not
divided by namespaces (keyrings, BPF, perf, io_uring, other address families), that would make new namespaces or mounts,
that look into other processes, that take memory which nobody counts (memfd, System V IPC, rules of Landlock) or other
cores than the task was given.  Calls that are newer than this list do not exist for tasks.

Imported by the first process of a sandbox: imports only `struct`.

Source: seccomp(2), linux/filter.h; numbers from the kernel's syscall tables.
"""

from __future__ import annotations

import struct

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT, _WORD = 0, 4, 16, 8
"""Offsets in struct seccomp_data; arguments are 64 bits wide, their low halves first on both machines."""

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET and AF_INET6, which the task's own network namespace confines."""
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

LAST_KNOWN = 466
"""removexattrat, of Linux 6.13: what was added later is answered as on an older kernel."""

# Numbers on (x86_64, aarch64); -1: the machine has no such call.
REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "lookup_dcookie": (212, 18),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "landlock_create_ruleset": (444, 444),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "sched_setaffinity": (203, 122),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "uselib": (134, -1),
    "ustat": (136, -1),
    "sysfs": (139, -1),
    "_sysctl": (156, -1),
    "nfsservctl": (180, 42),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_SOCKET = (41, 198)
_IOCTL = (16, 29)
_PERSONALITY = (135, 92)
_SETSOCKOPT = (54, 208)
_SOL_SOCKET = 1
_BUFFER_SIZES = (7, 8, 32, 33)
"""SO_SNDBUF, SO_RCVBUF, and both with force: what waits in a socket is memory of no process."""


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _refuse(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _only(call: int, argument: int, allowed: tuple[int, ...], error: int) -> list[bytes]:
    """Steps that refuse `call` unless the low half of an argument is one of those allowed; the number is loaded."""
    steps = [_step(_LOAD, _ARGUMENT + argument * _WORD)]
    steps += [_step(_EQUAL, value, len(allowed) - position, 0) for position, value in enumerate(allowed)]
    steps += [_refuse(error), _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, call, 0, len(steps)), *steps]


def build(machine: str, families: tuple[int, ...] = FAMILIES) -> bytes:
    """Return the program for a machine as `platform.machine()` names it: struct sock_filter, one after the other.

    Args:
        families: of addresses, for which sockets may be made.

    Raises:
        KeyError: its system calls are not known here.
    """
    column = _COLUMN[machine]
    steps = [_step(_LOAD, _ARCH), _step(_EQUAL, ARCHES[machine], 1, 0), _refuse(ENOSYS), _step(_LOAD, _NUMBER)]
    steps += [_step(_AT_LEAST, LAST_KNOWN + 1, 0, 1), _refuse(ENOSYS)]  # x32, too: its numbers begin at 1 << 30
    steps += [
        _step(_EQUAL, _CLONE3[column], 0, 1),
        _refuse(ENOSYS),
    ]  # its flags are in memory: libraries use clone then
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            steps += [_step(_EQUAL, numbers[column], 0, 1), _refuse(EPERM)]
    clone = [_step(_LOAD, _ARGUMENT), _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _refuse(EPERM), _step(_RETURN, _ALLOW)]
    steps += [_step(_EQUAL, _CLONE[column], 0, len(clone)), *clone]
    steps += _only(_SOCKET[column], 0, families, EAFNOSUPPORT)
    steps += _only(_PERSONALITY[column], 0, _PERSONALITIES, EPERM)
    terminal = [_step(_LOAD, _ARGUMENT + _WORD)]
    for value in _TERMINAL_INPUT:
        terminal += [_step(_EQUAL, value, 0, 1), _refuse(EPERM)]
    terminal.append(_step(_RETURN, _ALLOW))
    steps += [_step(_EQUAL, _IOCTL[column], 0, len(terminal)), *terminal]
    sizes = [_step(_LOAD, _ARGUMENT + 2 * _WORD)]
    for value in _BUFFER_SIZES:
        sizes += [_step(_EQUAL, value, 0, 1), _refuse(0)]  # as if done: a size is a wish, and few programs look
    option = [
        _step(_LOAD, _ARGUMENT + _WORD),
        _step(_EQUAL, _SOL_SOCKET, 0, len(sizes)),
        *sizes,
        _step(_RETURN, _ALLOW),
    ]
    steps += [_step(_EQUAL, _SETSOCKOPT[column], 0, len(option)), *option]
    steps.append(_step(_RETURN, _ALLOW))
    return b"".join(steps)
