"""Where everything of this installation is, made sure of on this machine.

`config.find_paths` says where things belong; this module adds what has to be looked at: the machine's id, who
owns the directory of the socket, and whether the store's file system can hold a database.

Source: machine-id(5), which asks programs not to show the id itself but a keyed hash of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pcompute.errors import ConfigError, NodeUnavailable, StoreError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.places import FIRST_GROUP, Paths, find_paths

__all__ = ["MachinePaths", "Paths", "check_store_directory", "machine_id", "prepare_directories", "resolve_paths"]

MACHINE_ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_GENERATED: Final = "machine-id"
_NETWORK_FILE_SYSTEMS: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs")
"""Here SQLite's shared memory or its locks do not work: a database in it gets damaged."""
_MOUNTS: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePaths(Paths):
    """The places of one installation, and the machine that they are on."""

    machine_id: str
    """32 hex digits: stable on this machine, different on others, and not the system's own id."""


def resolve_paths(
    environ: Mapping[str, str] | None = None, *, machine_id_files: tuple[Path, ...] = MACHINE_ID_FILES
) -> MachinePaths:
    """Return where everything is.  Creates nothing but a missing machine id and a short directory for the socket.

    Args:
        environ: P2PC_HOME, P2PC_CONFIG, P2PC_SOCKET, XDG_* and HOME are read; None means the process's own.

    Raises:
        ConfigError: P2PC_HOME is relative, or no machine id can be kept.
        NodeUnavailable: the socket's directory in /tmp belongs to somebody else.
    """
    environ = os.environ if environ is None else environ
    paths = find_paths(environ)
    if paths.socket.parent.parent == Path("/tmp") and not environ.get("P2PC_SOCKET"):
        _claim_directory(paths.socket.parent)
    return MachinePaths(
        config_file=paths.config_file,
        system_configs=paths.system_configs,
        group=paths.group,
        base=paths.base,
        data=paths.data,
        store=paths.store,
        state=paths.state,
        socket=paths.socket,
        machine_id=machine_id(find_paths(environ, group=FIRST_GROUP).state, machine_id_files),
    )


def machine_id(state: Path, files: tuple[Path, ...] = MACHINE_ID_FILES) -> str:
    """Return what tells this machine from others: 32 hex digits.

    Where the system has no id (some containers, macOS) one is generated and kept in `state`; that one moves
    along with a copied directory.

    Raises:
        ConfigError: a generated id cannot be kept.
    """
    for file in files:
        try:
            text = file.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if re.fullmatch(r"[0-9a-fA-F]{32}", text):
            return hashlib.blake2b(bytes.fromhex(text), digest_size=16, person=b"p2pc machine").hexdigest()
    kept = state / _GENERATED
    try:
        text = _read_or_create(kept)
    except OSError as error:
        raise ConfigError(
            f"cannot keep a machine id in {kept}",
            error.strerror or str(error),
            "make the directory writable, or set P2PC_HOME to one that is",
        ) from error
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise ConfigError(f"{kept} is damaged", "it should hold 32 hex digits", f"restore it, or remove it: rm {kept}")
    return text


def _read_or_create(path: Path) -> str:
    """Return the id in `path`; write a new one first when there is none.  Two starters get the same."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = RealCrypto().random_bytes(16).hex()
        temporary = path.with_name(f".{path.name}.{fresh[:8]}")
        temporary.write_text(fresh + "\n", encoding="ascii")
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_text(encoding="ascii", errors="replace").strip()


def _claim_directory(directory: Path) -> None:
    """Create a directory in /tmp for us alone, or make sure that the one there is: others may write to /tmp."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise NodeUnavailable(
            f"cannot create {directory}", error.strerror or str(error), "set P2PC_SOCKET to a path that can be made"
        ) from error
    status = os.lstat(directory)
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or status.st_mode & 0o077:
        raise NodeUnavailable(
            f"the socket's directory {directory} is not ours alone",
            f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}: others could answer in our place",
            f"look at it (ls -ld {directory}) and remove it, or set P2PC_SOCKET to another path",
            code="socket-owner",
        )


def prepare_directories(paths: Paths) -> None:
    """Create what a node needs: data, store, state and the socket's directory, for us alone (0700).

    Raises:
        StoreError: they cannot be created, or the store would be on a network file system.
    """
    check_store_directory(paths.store)
    for directory in (paths.base, paths.data, paths.store, paths.state, paths.socket.parent):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot create {directory}",
                error.strerror or str(error),
                "make room or fix its rights, or set P2PC_HOME to another directory",
            ) from error


def check_store_directory(directory: Path, *, mounts: str | None = None) -> None:
    """Refuse a store on a network file system: its locks are not reliable enough for a database.

    Args:
        directory: need not exist yet.
        mounts: text in the form of /proc/self/mountinfo; None reads that file.  Where there is none (macOS),
            nothing is refused.

    Raises:
        StoreError: it is on one.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
    kind = _file_system(directory.resolve(), mounts)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"the store cannot be on a network file system: {directory} is on {kind}",
            "a database there is damaged sooner or later, and other machines would share it",
            "set P2PC_HOME to a directory on a local disk, for example: export P2PC_HOME=/var/tmp/p2pc-$USER",
            code="store-network",
        )


def _file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`: that of the longest mount point above it."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # Of two mounts on one point the later one covers the earlier.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ")[0]
    return kind
