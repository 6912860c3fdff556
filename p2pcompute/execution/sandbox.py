"""How a sandbox is made on this machine: what it sees of the file system, and bubblewrap's command line.

Where the node is root, bubblewrap is started as root and the first process of the sandbox becomes a user that nobody
else is; started by another user, the sandbox has a user namespace and that user's number.  Never does a task have the
kernel's uid 0: files of /proc/sys belong to it in any user namespace.

A sandbox sees programs, libraries, some configuration of programs and this interpreter, all read-only.  It sees no home
directory, no /run, no /sys, no disk, and nothing of the node but its own inbox.

Deviations: no user namespace for a root node, so that an interpreter in root's home can be used and no uid map must be
had; the sandbox's rights end before the first task.  bubblewrap's own /dev and unsized temporary file systems are not
used: they are writable without bounds.

Source: bwrap(1) of bubblewrap 0.8.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import pwd
import resource
import shutil
import site
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, Final

import p2pcompute
from p2pcompute.execution import box_network, box_places, box_seccomp
from p2pcompute.limits import (
    SANDBOX_DISK_BYTES_MIN,
    SANDBOX_FILES,
    SANDBOX_INODES,
    SANDBOX_MEM_BYTES_MIN,
    SANDBOX_OUTPUT_BYTES_MAX,
    SANDBOX_PROCESSES,
    SANDBOX_PROCESSES_PER_CORE,
)

LIBRARY: Final = "/p2pc-lib"
"""Where this package is in a sandbox."""
_SYSTEM: Final = ("/usr", "/opt", "/nix/store")
_SYSTEM_LINKS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_CONFIGURATION: Final = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "locale.conf", "terminfo"),
    *("ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki/tls/certs", "crypto-policies", "mime.types", "magic"),
    *("protocols", "services", "fonts", "ImageMagick-*", "java*", "povray", "R", "perl", "python3*", "texmf", "OpenCL"),
)
"""Below /etc: what programs need to run, and nothing that says who uses the machine."""
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_CONFIGURATION_OF_PYTHON: Final = "pyvenv.cfg"
_CAPABILITIES: Final = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_CHOWN")
"""Of the first process, until it has given them up."""
_USERS: Final = range(61184, 65520)
"""Numbers that systemd's dynamic users have: of no person and no service of the distribution."""
_FD_LINKS: Final = (("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLimits:
    """What one sandbox may use."""

    mem_bytes: int
    disk_bytes: int
    processes: int
    cores: tuple[int, ...]


class NoSandbox(Exception):
    """This machine cannot isolate a task; the text says why, and `fix` what to do about it."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.fix = fix


def find_bubblewrap() -> str:
    """Return the path of bubblewrap.

    Raises:
        NoSandbox: another system, or it is not installed.
    """
    if sys.platform != "linux":
        raise NoSandbox(f"there is no sandbox for {platform.system()} yet", "let a Linux machine take work of others")
    if platform.machine() not in box_seccomp.ARCHES:
        raise NoSandbox(
            f"no list of system calls is known for {platform.machine()}", "let an x86_64 or aarch64 machine do it"
        )
    found = shutil.which("bwrap", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin")))
    if found is None:
        raise NoSandbox("bubblewrap is not installed", install_command())
    return found


def find_pasta() -> str:
    """Return the path of pasta, which gives sandboxes a network.

    Raises:
        NoSandbox: it is not installed, or may not make network devices.
    """
    found = shutil.which("pasta", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin")))
    if found is None:
        raise NoSandbox("pasta is not installed", install_command("passt"))
    try:
        device = os.stat(_TUN)
    except OSError:
        raise NoSandbox(f"there is no {_TUN}", "modprobe tun") from None
    if device.st_mode & 0o006 != 0o006:
        raise NoSandbox(f"{_TUN} is not for everybody", f"chmod 666 {_TUN}")
    return found


def install_command(package: str = "bubblewrap") -> str:
    """Return the command that installs a package of this name here."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    for program, words in (
        ("apt-get", "apt-get install"),
        ("dnf", "dnf install"),
        ("pacman", "pacman -S"),
        ("zypper", "zypper install"),
        ("apk", "apk add"),
    ):
        if shutil.which(program):
            return f"{sudo}{words} {package}"
    return f"install {package}"


def limits_of_slot(slot: int, slot_count: int, cpus: float, mem_bytes: int | None, disk_bytes: int | None) -> BoxLimits:
    """Return what a task gets that asks for this much (None: nothing said) in a slot of so many."""
    slots = max(1, slot_count)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    extra = max(0, int(cpus) - 1) * SANDBOX_PROCESSES_PER_CORE
    return BoxLimits(
        mem_bytes=mem_bytes or max(SANDBOX_MEM_BYTES_MIN, total // 2 // slots),
        disk_bytes=max(disk_bytes or total // 8 // slots, SANDBOX_DISK_BYTES_MIN),
        processes=SANDBOX_PROCESSES + extra,
        cores=_cores_of_slot(slot, cpus),
    )


def _cores_of_slot(slot: int, cpus: float) -> tuple[int, ...]:
    """Return as many cores as a task asks for, at least one; neighbouring slots have others, as far as they last."""
    cores = sorted(os.sched_getaffinity(0))
    count = min(len(cores), max(1, ceil(cpus)))
    return tuple(sorted(cores[(slot * count + step) % len(cores)] for step in range(count)))


def box_settings(limits: BoxLimits, user: int | None) -> dict[str, Any]:
    """Return what the first process is told; see `child_tasks.BoxSettings`."""
    return {
        "user": user,
        "cores": list(limits.cores),
        "mem_bytes": limits.mem_bytes,
        "disk_bytes": limits.disk_bytes,
        "files_max": SANDBOX_INODES,
        "output_bytes_max": SANDBOX_OUTPUT_BYTES_MAX,
        "kept_in_tmp": sorted({Path(root).parts[2] for root in _roots() if _is_inside(root, [_TMP])}),
        "limits": {
            resource.RLIMIT_CORE: 1,  # 0 would still feed a program that the machine may have for core dumps
            resource.RLIMIT_NPROC: limits.processes,
            resource.RLIMIT_NOFILE: SANDBOX_FILES,
            resource.RLIMIT_DATA: limits.mem_bytes,
            resource.RLIMIT_FSIZE: limits.disk_bytes,
            resource.RLIMIT_MEMLOCK: 1 << 16,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NICE: 0,
            resource.RLIMIT_RTPRIO: 0,
        },
    }


def user_of_slot(directory: Path, slot: int) -> int | None:
    """Return the uid and gid that a sandbox of a root node becomes; None: the node is not root.

    Each slot of each node of a machine has another one, as far as can be: limits of processes count by user.
    """
    if os.geteuid() != 0:
        return None
    start = int.from_bytes(hashlib.blake2b(os.fsencode(directory), digest_size=4).digest(), "big")
    for step in range(len(_USERS)):
        user = _USERS[(start + slot + step * 257) % len(_USERS)]
        try:
            pwd.getpwuid(user)
        except KeyError:
            return user
    raise NoSandbox("every number for users of sandboxes is in use", "free one between 61184 and 65519")


@functools.cache
def environment() -> dict[str, str]:
    """Return the environment of sandboxed tasks: nothing of the node's user but language and time zone."""
    kept = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in ("LANG", "LANGUAGE", "TZ") or name.startswith("LC_")
    }
    inside = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if _is_inside(place, _roots())]
    path = dict.fromkeys([*inside, "/usr/local/bin", "/usr/bin", "/bin"])
    return {**kept, "PATH": os.pathsep.join(path), "HOME": "/tmp", "USER": "task", "LOGNAME": "task"}


def _is_inside(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


@functools.cache
def _roots() -> tuple[str, ...]:
    """Return the directories that are bound as they are: the system's programs, this interpreter, its packages."""
    found = [path for path in _SYSTEM if os.path.isdir(path)]
    interpreter = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, os.path.dirname(sys.executable)]
    interpreter.append(os.path.dirname(os.path.realpath(sys.executable)))
    packages = [*site.getsitepackages()]
    if site.ENABLE_USER_SITE and site.getusersitepackages() in sys.path:
        packages.append(site.getusersitepackages())
    for path in [*interpreter, *packages]:
        for form in (path, os.path.realpath(path)):
            if form != "/" and os.path.isdir(form) and not _is_inside(form, [*found, *_SYSTEM_LINKS]):
                found.append(form)
    return tuple(path for path in found if not _is_inside(path, [other for other in found if other != path]))


_TMP: Final = "/tmp"
_VAR_TMP: Final = "/var/tmp"
_SHM: Final = "/dev/shm"
_TUN: Final = "/dev/net/tun"


def command(
    bubblewrap: str,
    *,
    directory: Path,
    hidden: Sequence[Path],
    user: int | None,
    name: str,
    channel_fd: int,
    environment_path: Path | None = None,
    pasta: str = "",
) -> tuple[list[str], dict[str, str]]:
    """Return the words that start a sandbox and their environment.

    Args:
        directory: of this sandbox, with `in`, `passwd` and `group` in it (`prepare`).
        hidden: directories of the node that must not be seen, even when a bound one holds them.
        name: host name inside.
        pasta: its path, for a sandbox with a network (`box_network`); empty: it has none.
        environment_path: Python environment that it runs in, seen as `box_places.ENVIRONMENT`; None: this process's.

    Raises:
        NoSandbox: a directory of the node or the user's home would be seen.
    """
    roots = _roots()
    home = os.path.realpath(Path.home())
    if home != "/" and _is_inside(home, roots):
        raise NoSandbox(
            f"the interpreter's own directory is, or holds, the home directory {home}", "use a virtual environment"
        )
    covered = next((root for root in roots if _is_inside(root, [_SHM])), None)
    if covered is not None:
        raise NoSandbox(
            f"the interpreter or its packages are in {covered}, where each sandbox has files of its own",
            "install p2pcompute on a disk",
        )
    words = [bubblewrap, "--die-with-parent", "--as-pid-1"]
    words += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not pasta:
        words += ["--unshare-net"]
    words += ["--hostname", name, "--cap-drop", "ALL"]
    if user is None:
        words += ["--unshare-user", "--cap-add", _CAPABILITIES[0]]
    else:
        for capability in _CAPABILITIES:
            words += ["--cap-add", capability]
    made: dict[str, None] = {}
    words += [*seen(made), *places(["/p2pc", box_places.INBOX], made)]
    for own in ("passwd", "group", *(("resolv.conf",) if pasta else ())):
        words += ["--ro-bind", str(directory / own), f"/etc/{own}"]
    for path in _hidden(hidden, [*_roots(), str(Path(p2pcompute.__file__).parent)]):
        words += ["--perms", "0000", "--tmpfs", path, "--remount-ro", path]
    words += ["--ro-bind", str(directory / "in"), box_places.INBOX, "--proc", "/proc"]
    interpreter, inside = sys.executable, ""
    if environment_path is not None:
        interpreter, inside = f"{box_places.BARE}/bin/python", box_places.ENVIRONMENT
        words += ["--ro-bind", str(environment_path), inside, *places([f"{box_places.BARE}/bin"], made)]
        words += ["--symlink", os.path.realpath(sys.executable), interpreter]
        words += ["--ro-bind", str(directory / _CONFIGURATION_OF_PYTHON), f"{box_places.BARE}/pyvenv.cfg"]
    words += ["--chdir", "/", "--remount-ro", "/", "--"]
    words += [interpreter, "-P", "-m", "p2pcompute.execution.box", str(channel_fd), inside]
    has_packages = environment_path is None and site.ENABLE_USER_SITE
    search = [LIBRARY, site.getusersitepackages() if has_packages else ""]
    python = {"PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if pasta:
        script = str(Path(box_network.__file__))
        words = [sys.executable, "-P", script, pasta, str(-1 if user is None else user), *words]
    return words, {**environment(), **python}


def seen(made: dict[str, None]) -> list[str]:
    """Return the words for what every sandbox sees, read-only: programs, libraries, this interpreter and package.

    Args:
        made: directories that `places` has made; added to.
    """
    words = places(["/etc", "/tmp", "/var", LIBRARY], made)
    for path in _roots():
        words += [*places([os.path.dirname(path)], made), "--ro-bind", path, path]
    for path in _SYSTEM_LINKS:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    for pattern in _CONFIGURATION:
        for path in sorted(glob(f"/etc/{pattern}")):
            words += [*places([os.path.dirname(path)], made), "--ro-bind", path, path]
    for name, directory in library_parts():
        words += ["--ro-bind", str(directory), f"{LIBRARY}/{name}"]
    if not any(_is_inside(root, [_VAR_TMP]) for root in _roots()):
        words += ["--symlink", _TMP, _VAR_TMP]
    words += ["--perms", "0755", "--tmpfs", "/dev"]
    for device in _DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for target, link in _FD_LINKS:
        words += ["--symlink", target, f"/dev/{link}"]
    words += ["--dir", "/dev/pts", "--dir", "/dev/shm", "--symlink", "pts/ptmx", "/dev/ptmx", "--remount-ro", "/dev"]
    return words


@functools.cache
def library_parts() -> tuple[tuple[str, Path], ...]:
    """Return what a worker process imports that is not in the standard library: (name, directory)."""
    cloudpickle = find_spec("cloudpickle")
    assert cloudpickle is not None and cloudpickle.origin is not None
    return ("p2pcompute", Path(p2pcompute.__file__).parent), ("cloudpickle", Path(cloudpickle.origin).parent)


def places(paths: Iterable[str], made: dict[str, None]) -> list[str]:
    """Return the words that make directories and those above them: bubblewrap would make them for its user alone."""
    words: list[str] = []
    for path in paths:
        parts = Path(path).parts[1:]
        for depth in range(len(parts)):
            place = "/" + "/".join(parts[: depth + 1])
            if place not in made and not _is_inside(place, _roots()) and place not in _SYSTEM_LINKS:
                made[place] = None
                words += ["--perms", "0755", "--dir", place]
    return words


def _hidden(directories: Sequence[Path], roots: Sequence[str]) -> list[str]:
    """Return those that would be seen."""
    found = []
    for directory in directories:
        path = os.path.realpath(directory)
        if any(_is_inside(root, [path]) for root in roots):
            raise NoSandbox(
                f"the interpreter is inside of the node's own directory {path}", "move one of them, with P2PC_HOME"
            )
        if _is_inside(path, roots) and os.path.isdir(path):
            found.append(path)
    return found


def prepare(directory: Path, user: int | None) -> None:
    """Make what a sandbox gets of its own.

    Raises:
        OSError: no room, or no right.
    """
    number, group = (os.getuid(), os.getgid()) if user is None else (user, user)
    (directory / "in").mkdir(mode=0o755)
    (directory / "in").chmod(0o755)
    home = os.path.dirname(os.path.realpath(sys.executable))
    for name, text in (
        (_CONFIGURATION_OF_PYTHON, f"home = {home}\ninclude-system-site-packages = false\n"),
        ("passwd", f"root:x:0:0::/:/bin/false\ntask:x:{number}:{group}::/tmp:/bin/sh\n"),
        ("group", f"root:x:0:\ntask:x:{group}:\n"),
        ("resolv.conf", f"nameserver {box_network.NAME_SERVERS[box_network.families() == (False, True)]}\n"),
    ):
        path = directory / name
        path.write_text(text)
        path.chmod(0o644)


@functools.cache
def lower_priority() -> tuple[str, ...]:
    """Return the words before a command that let everything else on this machine go first: processor, then disk."""
    nice, ionice = shutil.which("nice"), shutil.which("ionice")
    return (*((nice, "-n", "19") if nice else ()), *((ionice, "-c", "3") if ionice else ()))


def host_name(node_name: str) -> str:
    """Return a name for the inside: the node's, of characters that a host name may have."""
    clean = "".join(char if char.isascii() and (char.isalnum() or char == "-") else "-" for char in node_name)
    return clean.strip("-")[:63] or socket.gethostname()[:63]
