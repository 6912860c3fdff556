"""What the first process of a sandbox does to itself before it takes a task: it can do none of it afterwards, and
neither can what it starts.

bubblewrap has made the namespaces and a read-only tree, and has left this process the right to mount (and to become
another user, where the node is root).  Here the one writable place is mounted, with a limit of bytes and of files;
then the rights go, in this order: user, capabilities, files by Landlock (where the kernel has it), system calls.

Imported by the first process of a sandbox: imports little.  Any failure ends that process, and with it the sandbox.

Source: landlock(7), capabilities(7), seccomp(2), tmpfs(5).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct

from p2pcompute.execution import box_seccomp
from p2pcompute.execution.box_places import BOUND, PLACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC = 2, 4, 8, 4096, 16384
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 22, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES = range(64)
_SIGKILL = 9

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_ABI = 1
_ALL_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many kinds of access to files a version of Landlock handles; 16 from version 5."""
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read file, list directory."""
_WRITE_DEVICE = 1 << 1 | 1 << 15
"""Write to a file, ioctl on a device."""
_SCOPES = 1 | 2
"""Abstract unix sockets and signals stay inside (version 6)."""


class Broken(Exception):
    """The sandbox cannot be made; the text says which step failed and why."""


class _Libc:
    """Calls of the C library that raise."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long

    def mount(self, source: str, target: str, kind: str, flags: int, options: str) -> None:
        words = [word.encode() for word in (source, target, kind, options)]
        self._check(
            self._libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mounting {target}"
        )

    def prctl(self, what: int, *values: int) -> None:
        self._check(self._prctl(what, values), f"prctl {what}")

    def try_prctl(self, what: int, *values: int) -> None:
        self._prctl(what, values)

    def _prctl(self, what: int, values: tuple[int, ...]) -> int:
        padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
        return int(self._libc.prctl(what, *padded))

    def call(self, number: int, *arguments: object, what: str) -> int:
        values = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
        return self._check(int(self._libc.syscall(ctypes.c_long(number), *values)), what)

    def landlock_version(self) -> int:
        """Return the version of Landlock; 0: none."""
        answer = self._libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_long(0), ctypes.c_long(1))
        return max(0, int(answer))

    def _check(self, result: int, what: str) -> int:
        if result < 0:
            raise Broken(f"{what}: {os.strerror(ctypes.get_errno())}")
        return result


def enter(
    *,
    disk_bytes: int,
    files_max: int,
    user: int | None,
    limits: dict[int, int],
    kept_in_tmp: Sequence[str] = (),
) -> int:
    """Shut this process and all that it will start in; return the version of Landlock in use (0: none).

    Args:
        disk_bytes: size of the writable place.
        files_max: most files in it.
        user: uid and gid to become; None: it is what it shall be.
        limits: RLIMIT → hard limit.
        kept_in_tmp: names in /tmp that stay, as they are.

    Raises:
        Broken: a step failed.
    """
    libc = _Libc()
    _prefer_to_be_killed()
    _mount(libc, disk_bytes, files_max, user, kept_in_tmp)
    _give_up(libc, user, limits)
    version = _landlock(libc, reads=("/",), writes=(PLACE, *(seen_as for _, seen_as in BOUND), "/dev/pts"))
    _filter_calls(libc, box_seccomp.FAMILIES)
    return version


def fence(*, user: int | None, limits: dict[int, int]) -> int:
    """Shut this process, which has one thread, into its current directory, on a machine where no sandbox can be made;
    return the version of Landlock in use (0: none).  No sockets, and no files but those there and devices.

    Args:
        user: uid and gid to become; None: this process is nobody's but its user's.
        limits: RLIMIT → hard limit.

    Raises:
        Broken: a step failed.
    """
    libc = _Libc()
    _prefer_to_be_killed()
    _give_up(libc, user, limits)
    version = _landlock(libc, reads=(), writes=(".",))
    _filter_calls(libc, ())
    return version


def step_down(*, user: int | None, limits: dict[int, int]) -> None:
    """Give up every right that this process has, but the network and what it sees; for what nobody but us has chosen to
    run, on files that others have made.

    Args:
        user: uid and gid to become; None: this process is who it shall be.
        limits: RLIMIT → hard limit.

    Raises:
        Broken: a step failed.
    """
    libc = _Libc()
    _prefer_to_be_killed()
    _give_up(libc, user, limits)
    _filter_calls(libc, box_seccomp.FAMILIES)


def _give_up(libc: _Libc, user: int | None, limits: dict[int, int]) -> None:
    if user is not None:
        _become(libc, user)
    if 0 in (*os.getresuid(), *os.getresgid()) and _is_root_outside():
        raise Broken("this process is still root")
    _drop_capabilities(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)  # a change of user has taken it back
    libc.prctl(_PR_SET_DUMPABLE, 0)
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))


def allow_dumping() -> None:
    """Make this process like any other in /proc: for those that are started without exec."""
    _Libc().try_prctl(_PR_SET_DUMPABLE, 1)


def _prefer_to_be_killed() -> None:
    """When the machine has no memory left, tasks of others go first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900")
    except OSError:
        return


def _is_root_outside() -> bool:
    """Whether uid 0 of this user namespace is uid 0 of the machine: then the map is the identity."""
    with open("/proc/self/uid_map") as file:
        inside, outside, _count = file.readline().split()
    return inside == outside == "0"


def _mount(libc: _Libc, disk_bytes: int, files_max: int, user: int | None, kept_in_tmp: Sequence[str]) -> None:
    kept = [(name, os.open(f"/tmp/{name}", os.O_PATH | os.O_CLOEXEC)) for name in kept_in_tmp]
    options = f"size={disk_bytes},nr_inodes={files_max},mode=0700"
    libc.mount("tmpfs", PLACE, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for name, seen_as in BOUND:
        path = f"{PLACE}/{name}"
        os.mkdir(path)
        os.chmod(path, 0o1777)
        libc.mount(path, seen_as, "", _MS_BIND, "")
    for name, before in kept:  # a mount of its own: nobody in here can rename or remove it
        os.mkdir(f"/tmp/{name}")
        libc.mount(f"/proc/self/fd/{before}", f"/tmp/{name}", "", _MS_BIND | _MS_REC, "")
        os.close(before)
    if user is not None:
        for path in (*(f"{PLACE}/{name}" for name, _ in BOUND), PLACE):  # the last one last: then it is closed to us
            os.chown(path, user, user)
    try:
        libc.mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    except Broken:
        return  # tasks have no terminals of their own then


def _become(libc: _Libc, user: int) -> None:
    for capability in _CAPABILITIES:
        libc.try_prctl(_PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _drop_capabilities(libc: _Libc) -> None:
    libc.try_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    libc.call(_CAPSET[platform.machine()], header, bytes(24), what="giving up capabilities")
    with open("/proc/self/status") as file:
        held = [line for line in file if line.startswith(("CapPrm", "CapEff", "CapInh", "CapAmb"))]
    if any(int(line.split()[1], 16) for line in held):
        raise Broken("capabilities are left")


def _landlock(libc: _Libc, *, reads: tuple[str, ...], writes: tuple[str, ...]) -> int:
    version = libc.landlock_version()
    if not version:
        return 0
    everything = (1 << _ALL_FILE_RIGHTS.get(version, 16)) - 1
    rules = struct.pack("=QQQ", everything, 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.call(_LANDLOCK_CREATE, rules, size, 0, what="making Landlock rules")
    allowed = [*((path, _READ) for path in reads), ("/dev", _READ | _WRITE_DEVICE)]
    allowed += [(path, everything) for path in writes]
    for path, rights in allowed:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights & everything, descriptor)
        libc.call(_LANDLOCK_ADD, ruleset, _LANDLOCK_ABI, rule, 0, what=f"a Landlock rule for {path}")
        os.close(descriptor)
    libc.call(_LANDLOCK_RESTRICT, ruleset, 0, what="entering Landlock")
    os.close(ruleset)
    return version


def _filter_calls(libc: _Libc, families: tuple[int, ...]) -> None:
    try:
        steps = box_seccomp.build(platform.machine(), families)
    except KeyError:
        raise Broken(f"no list of system calls for {platform.machine()}") from None
    buffer = ctypes.create_string_buffer(steps, len(steps))
    program = struct.pack("HxxxxxxP", len(steps) // 8, ctypes.addressof(buffer))
    keep = ctypes.create_string_buffer(program, len(program))
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(keep))
