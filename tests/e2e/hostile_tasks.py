"""What a member with bad intent may try: ``python hostile_tasks.py ATTACK [WORD]``, run as a task on a real node.

An attack that fails as it must ends with exit code 0 and says how; one that succeeds exits 1.  Those that must be ended
from outside never end by themselves.  Needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)
CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_getfd": (438, 438),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "unshare": (272, 97),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "shmget": (29, 194),
    "kexec_load": (246, 104),
    "clone3": (435, 435),
    "open_tree_attr": (467, 467),
}
MIB = 1 << 20


def call(name: str, *arguments: int) -> int:
    """Return the errno of a system call, 0 when it has succeeded."""
    values = [ctypes.c_long(value) for value in arguments]
    result = LIBC.syscall(ctypes.c_long(CALLS[name][COLUMN]), *values)
    return ctypes.get_errno() if result < 0 else 0


def refused(what: str, attempt: Callable[[], object], *numbers: int) -> None:
    """Fail unless the attempt raises OSError with one of these numbers (none given: with any)."""
    try:
        attempt()
    except OSError as error:
        if numbers and error.errno not in numbers:
            sys.exit(f"{what}: {error}")
        print(f"{what}: {errno.errorcode.get(error.errno or 0, error)}")
        return
    sys.exit(f"{what}: done")


def fork_bomb(_word: str) -> None:
    count = 0
    try:
        while count < 5000:
            if os.fork() == 0:
                signal.pause()
            count += 1
    except OSError as error:
        assert error.errno == errno.EAGAIN, error
    assert count < 200, count
    print("EAGAIN after", count)


def endless_forks(_word: str) -> None:
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def thread_bomb(_word: str) -> None:
    hold = threading.Event()
    count = 0
    try:
        while count < 5000:
            threading.Thread(target=hold.wait, daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    assert count < 200, count
    print("no more threads after", count)
    sys.stdout.flush()
    os._exit(0)


def pipe_bomb(_word: str) -> None:
    pipes = []
    try:
        while len(pipes) < 100_000:
            pipes.append(os.pipe())
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    assert len(pipes) < 512
    print("EMFILE after", len(pipes))
    sys.stdout.flush()
    os._exit(0)


def heap_hog(_word: str) -> None:
    kept = []
    try:
        while len(kept) < 4096:
            kept.append(bytearray(MIB))
    except MemoryError:
        count = len(kept)
        kept.clear()
        assert count < 512, count
        print("MemoryError after MiB", count)
        return
    sys.exit("4 GiB taken")


def hog_in_many(_word: str) -> None:
    for _ in range(16):
        if os.fork() == 0:
            kept = bytearray(40 * MIB)
            for start in range(0, len(kept), 4096):
                kept[start] = 1
            signal.pause()
    signal.pause()


def hog_shared(_word: str) -> None:
    for _ in range(16):
        if os.fork() == 0:
            kept = mmap.mmap(-1, 40 * MIB)
            for start in range(0, len(kept), 4096):
                kept[start] = 1
            signal.pause()
    signal.pause()


def hog_sockets(_word: str) -> None:
    """Memory of the kernel, in which what was sent waits; of no process's."""
    kept = []
    for _ in range(16):
        if os.fork() == 0:
            while True:
                with contextlib.suppress(OSError):
                    pair = socket.socketpair()
                    kept.append(pair)
                    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
                    pair[0].setblocking(False)
                    while pair[0].send(bytes(65536)):
                        pass
                time.sleep(0.001)
    signal.pause()


def one_socket(_word: str) -> None:
    left, _right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    left.setblocking(False)
    total = 0
    with contextlib.suppress(BlockingIOError):
        while total < 4 * MIB:
            total += left.send(bytes(65536))
    assert total < MIB, total
    print("bytes that wait:", total)


def uncounted_memory(_word: str) -> None:
    for name, arguments in (("memfd_create", (0, 0)), ("shmget", (0, MIB, 0o1600))):
        number = call(name, *arguments)
        assert number == errno.EPERM, (name, number)
    print("memfd, System V: EPERM")


def fill_disk(_word: str) -> None:
    total = 0
    for place in (".", "/tmp", "/dev/shm", os.environ["P2PC_SCRATCH"]):
        try:
            with open(os.path.join(place, "filler"), "wb") as file:
                while total < 4096:
                    file.write(bytes(MIB))
                    total += 1
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EFBIG), error
        assert total < 512, total
    for place in (".", "/tmp", "/dev/shm", os.environ["P2PC_SCRATCH"]):
        os.unlink(os.path.join(place, "filler"))  # or there would be no room to say so
    print("ENOSPC after MiB", total)


def inode_flood(_word: str) -> None:
    count = 0
    os.mkdir("flood")
    try:
        while count < 200_000:
            os.close(os.open(f"flood/{count}", os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    assert count < 30_000, count
    print("ENOSPC after files", count)


def sparse_output(_word: str) -> None:
    with open("out", "wb") as file:
        refused("10 TB", lambda: file.truncate(10 << 40), errno.EFBIG)


def _look(path: str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    if flags:
        os.listdir(fd)
    else:
        os.read(fd, 1)


def look_into_first(_word: str) -> None:
    for name in ("environ", "mem", "maps", "smaps", "fd", "fdinfo", "map_files", "root", "cwd"):
        path = f"/proc/1/{name}"
        flags = os.O_DIRECTORY if name in ("fd", "fdinfo", "map_files", "root", "cwd") else 0
        refused(path, lambda path=path, flags=flags: _look(path, flags), errno.EACCES, errno.EPERM)  # type: ignore[misc]
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    assert len(pids) < 10 and max(pids) < 100_000, pids
    print("processes seen:", len(pids))


def read_files(word: str) -> None:
    for path in word.split(","):
        refused(path, lambda path=path: os.stat(path), errno.ENOENT, errno.EACCES)  # type: ignore[misc]
    for place in ("/home", "/sys", "/mnt", "/etc/shadow", "/etc/hosts", "/var/lib"):
        assert not os.path.exists(place), place
    with open("/proc/self/mountinfo") as file:
        writable = [line.split()[4] for line in file if line.split()[5].startswith("rw")]
    assert set(writable) <= {
        *("/p2pc", "/tmp", "/dev/shm", "/dev/pts", "/proc"),
        *(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")),
    }, writable


def network(word: str) -> None:
    port = int(word)
    for family, host in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family) as link:
            link.settimeout(3)
            refused(host, lambda link=link, host=host: link.connect((host, 53)), errno.ENETUNREACH)  # type: ignore[misc]
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            refused(host, lambda link=link, host=host: link.sendto(b"x", (host, 53)), errno.ENETUNREACH)  # type: ignore[misc]
    with socket.socket() as link:
        refused("the node", lambda: link.connect(("127.0.0.1", port)), errno.ECONNREFUSED)
    for family in (socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK, getattr(socket, "AF_ALG", 38)):
        refused(str(family), lambda family=family: socket.socket(family, socket.SOCK_RAW), errno.EAFNOSUPPORT)  # type: ignore[misc]
    refused("DNS", lambda: socket.getaddrinfo("example.org", 80))


def unix_sockets(word: str) -> None:
    path, name = word.split(",")
    for address in (path, "\0" + name):
        with socket.socket(socket.AF_UNIX) as link:
            refused(repr(address), lambda link=link, a=address: link.connect(a), errno.ENOENT, errno.ECONNREFUSED)  # type: ignore[misc]


def spy(_word: str) -> None:
    for name, arguments in (
        ("ptrace", (16, 1, 0, 0)),
        ("process_vm_readv", (1, 0, 0, 0, 0, 0)),
        ("pidfd_getfd", (0, 0, 0)),
    ):
        number = call(name, *arguments)
        assert number == errno.EPERM, (name, number)
    print("EPERM")


def kill_all(_word: str) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(1, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, number)
    refused("a process of the machine", lambda: os.kill(os.getpid() + 100_000, 0), errno.ESRCH)
    print("the first process lives")


def gain_rights(_word: str) -> None:
    assert os.getuid() != 0 and os.geteuid() != 0 and os.getgid() != 0
    with open("/proc/self/uid_map") as file:
        inside, outside, _ = file.readline().split()
    assert not (inside == outside == "0" and os.getuid() == 0)
    refused("setuid", lambda: os.setuid(0), errno.EPERM, errno.EINVAL)
    refused("setgroups", lambda: os.setgroups([0]), errno.EPERM, errno.EINVAL)
    refused("chroot", lambda: os.chroot("/"), errno.EPERM)
    refused("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5), errno.EACCES, errno.EPERM)
    assert len(os.sched_getaffinity(0)) == 1
    refused("more cores", lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)), errno.EPERM)
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (limit + 1, limit + 1))
        sys.exit("a limit was raised")
    except (ValueError, OSError):
        pass
    for name, arguments in (("mount", (0, 0, 0, 0, 0)), ("unshare", (0x10000000,)), ("unshare", (0x00020000,))):
        number = call(name, *arguments)
        assert number == errno.EPERM, (name, number)
    assert call("clone3", 0, 0) == errno.ENOSYS
    assert call("open_tree_attr", 0, 0, 0, 0, 0) == errno.ENOSYS
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0 and status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def kernel_doors(_word: str) -> None:
    for name, arguments in (
        ("keyctl", (0, -3, 0)),
        ("add_key", (0, 0, 0, 0, 0)),
        ("io_uring_setup", (8, 0)),
        ("bpf", (0, 0, 0)),
        ("perf_event_open", (0, 0, -1, -1, 0)),
        ("userfaultfd", (0,)),
        ("open_by_handle_at", (0, 0, 0)),
        ("kexec_load", (0, 0, 0, 0)),
    ):
        number = call(name, *arguments)
        assert number == errno.EPERM, (name, number)
    for path in (
        *("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/oom_score_adj", "/p2pc-lib/p2pcompute/x"),
        *("/etc/passwd", "/usr/bin/env", "/new", "/dev/new", "/in/new", "/proc/sys/net/ipv4/ip_forward"),
    ):
        refused(
            path,
            lambda path=path: os.open(path, os.O_WRONLY | os.O_CREAT),
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOENT,
        )  # type: ignore[misc]


def push_input(_word: str) -> None:
    """TIOCSTI: type into the terminal from which the node may have been started."""
    refused("/dev/tty", lambda: os.open("/dev/tty", os.O_RDWR))
    try:
        terminal = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        print("no terminals:", error)
        return
    for request in (0x5412, 0x541C):
        refused("TIOCSTI", lambda request=request: fcntl.ioctl(terminal, request, b"x"), errno.EPERM)  # type: ignore[misc]


def leaked(_word: str) -> None:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    assert set(found) <= {0, 1, 2}, found
    names = {
        name for name in os.environ if not name.startswith(("P2PC_", "LC_", "PARALLEL_")) and "THREADS" not in name
    }
    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PWD"}, names
    assert "P2PC_HOME" not in os.environ and os.environ["HOME"] == "/tmp"
    print("nothing")


def time_bomb(_word: str) -> None:
    """Leave a daemon that would spoil the next task's directory."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 32):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_IGN)
            while True:
                for place in ("/tmp", "/dev/shm", "/p2pc"):
                    with contextlib.suppress(OSError):
                        open(os.path.join(place, f"bomb-{time.monotonic_ns()}"), "w").close()
                time.sleep(0.001)
        os._exit(0)
    time.sleep(0.1)


def is_clean(_word: str) -> None:
    own = {os.path.basename(__file__)}
    own |= {path.split("/")[2] for path in (sys.prefix, sys.base_prefix) if path.startswith("/tmp/")}
    for place in (".", "/tmp", "/dev/shm", os.environ["P2PC_SCRATCH"]):
        assert not [name for name in os.listdir(place) if name not in own], (place, os.listdir(place))
    assert sorted(os.listdir("/p2pc")) == ["command-1", "out", "shared", "shm", "tmp"], os.listdir("/p2pc")
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    assert len(pids) == 2, pids


def ignore_signals(_word: str) -> None:
    for number in range(1, 32):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def burn(_word: str) -> None:
    while True:
        pass


def talk(_word: str) -> None:
    while True:
        os.write(1, b"x" * MIB)


def dump_core(_word: str) -> None:
    os.abort()


def bad_outputs(word: str) -> None:
    {
        "link": lambda: os.symlink("/etc/passwd", word),
        "fifo": lambda: os.mkfifo(word),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(word),
        "directory": lambda: os.mkdir(word),
    }[word]()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
