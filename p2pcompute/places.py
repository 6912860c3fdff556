"""Places: where the files and the socket of one installation are.

An installation has one key.  Its first group lives in its folder, each further one in a folder of its own below
``groups/``, with a node, a store and a socket of its own; P2PC_GROUP, or else the file `DEFAULT_FILE`, says which is
meant.

Apart from `config`, so that a command that only talks to the node does not pay for settings (5 ms of CPU).
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import ConfigError, NodeUnavailable

SOCKET_PATH_BYTES_MAX: Final = 100
"""`sockaddr_un.sun_path` takes 103 bytes on macOS and 107 on Linux."""
FIRST_GROUP: Final = "home"
"""What the first group is called on this machine."""
GROUPS_DIRECTORY: Final = "groups"
DEFAULT_FILE: Final = "default-group"
"""Holds the name of the group that is meant when none is named."""
_GROUP: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where one installation keeps its things."""

    config_file: Path
    system_configs: tuple[Path, ...]
    group: str = FIRST_GROUP
    """What the group is called on this machine."""
    base: Path
    """The installation's folder: its key, and the folders of further groups."""
    data: Path
    """Membership and levels, mode 0700; the same as `base` for the first group."""
    store: Path
    """Journal and blobs."""
    state: Path
    """Log, lock, process file."""
    socket: Path

    @property
    def environments(self) -> Path:
        """Python environments of jobs."""
        return self.data / "environments"

    @property
    def log(self) -> Path:
        return self.state / "node.log"

    @property
    def lock(self) -> Path:
        return self.state / "node.lock"

    @property
    def run_file(self) -> Path:
        """JSON {pid, version, socket} of the running node."""
        return self.state / "node.json"


def check_group_place(name: str) -> str:
    """Return the name of a group on this machine if it can be one.

    Raises:
        ConfigError: it cannot.
    """
    if not _GROUP.fullmatch(name):
        raise ConfigError(
            f'"{name[:40]}" cannot name a group on this machine',
            "a name has 1 to 32 small letters, digits, - and _, and begins with a letter or digit",
            "choose another one",
            code="group-name",
        )
    return name


def default_group(base: Path) -> str:
    """Return the group that is meant when none is named."""
    try:
        name = (base / DEFAULT_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return FIRST_GROUP
    return name if _GROUP.fullmatch(name) and (base / GROUPS_DIRECTORY / name).is_dir() else FIRST_GROUP


def groups_here(base: Path) -> list[str]:
    """Return the names of the groups on this machine, the first one first."""
    try:
        found = [entry.name for entry in (base / GROUPS_DIRECTORY).iterdir() if entry.is_dir()]
    except OSError:
        found = []
    return [FIRST_GROUP, *sorted(name for name in found if _GROUP.fullmatch(name))]


def find_paths(environ: Mapping[str, str] | None = None, *, group: str | None = None) -> Paths:
    """Return the places of this user's installation on this machine.

    Args:
        group: which of its groups; None: what P2PC_GROUP says, or the default.

    With P2PC_HOME everything is in that one folder.  Otherwise data and state are kept per host name, so that home
    directories shared by several machines give each its own identity.

    Raises:
        ConfigError: P2PC_HOME is relative, or not ours alone to write to.
        NodeUnavailable: so is the directory of the socket.
    """
    environ = os.environ if environ is None else environ
    home = environ.get("P2PC_HOME")
    system: tuple[Path, ...]
    if home:
        root = Path(home).expanduser()
        if not root.is_absolute():
            raise ConfigError(f'P2PC_HOME is "{home}"', "it must be a whole path", "for example: P2PC_HOME=$PWD/home")
        if (why := _why_shared(root, allow_link=True)) is not None:
            raise ConfigError(
                f"P2PC_HOME {root} is not yours alone",
                f"{why}: others could put a key or a socket of theirs there",
                f"look at it (ls -ld {root}) and mend it (chmod go-w {root}), or set P2PC_HOME to another directory",
                code="home-owner",
            )
        config, data, state, system = root / "config.toml", root, root, ()
        runtime = None
    else:
        config_dir, data_dir, state_dir = _user_directories(environ)
        machine = re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename) or "machine"
        config = config_dir / "config.toml"
        data, state = data_dir / "machines" / machine, state_dir / "machines" / machine
        system = (Path("/etc/p2pc/config.toml"),)
        runtime = environ.get("XDG_RUNTIME_DIR")
    if environ.get("P2PC_CONFIG"):
        config, system = Path(environ["P2PC_CONFIG"]).expanduser().absolute(), ()
    base = data
    group = check_group_place(group or environ.get("P2PC_GROUP") or default_group(base))
    if group != FIRST_GROUP:
        data, state = data / GROUPS_DIRECTORY / group, state / GROUPS_DIRECTORY / group
        if not data.is_dir():
            raise ConfigError(
                f"there is no group {group} on this machine",
                f"there are: {', '.join(groups_here(base))}",
                f"p2pc group create {group}",
                code="no-group",
            )
        if not environ.get("P2PC_CONFIG"):  # its own settings go before those of all groups
            config, system = data / "config.toml", (*system, config)
    given = environ.get("P2PC_SOCKET")
    socket = Path(given).absolute() if given else _socket_path(state, runtime, group)
    if not given and (why := _why_shared(socket.parent)) is not None:
        raise NodeUnavailable(
            f"the socket's directory {socket.parent} is not ours alone",
            f"{why}: others could answer in our place",
            f"look at it (ls -ld {socket.parent}) and remove it, or set P2PC_SOCKET to another path",
            code="socket-owner",
        )
    return Paths(
        config_file=config,
        system_configs=system,
        group=group,
        base=base,
        data=data,
        store=data / "store",
        state=state,
        socket=socket,
    )


def _user_directories(environ: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """(config, data, state) by the XDG base directory specification, and Apple's places on macOS."""
    user = Path(environ.get("HOME") or Path.home())
    if sys.platform == "darwin":
        support = user / "Library" / "Application Support" / "p2pc"
        return support, support, support
    places = []
    for variable, fallback in (
        ("XDG_CONFIG_HOME", ".config"),
        ("XDG_DATA_HOME", ".local/share"),
        ("XDG_STATE_HOME", ".local/state"),
    ):
        given = environ.get(variable, "")
        places.append((Path(given) if given.startswith("/") else user / fallback) / "p2pc")
    return places[0], places[1], places[2]


def _is_own_directory(path: Path) -> bool:
    """False also for the directory of the user before sudo."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _why_shared(path: Path, *, allow_link: bool = False) -> str | None:
    """Return why others could put something into a directory of ours; None when they cannot, or there is none yet."""
    try:
        status = path.stat() if allow_link else path.lstat()
    except OSError:
        return None  # whoever wants to use it finds out
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return None  # the same
    if status.st_uid != os.geteuid():
        return f"its owner is user {status.st_uid}, you are {os.geteuid()}"
    return f"its mode is {stat.S_IMODE(status.st_mode):04o}" if status.st_mode & 0o022 else None


def _socket_path(state: Path, runtime: str | None, group: str) -> Path:
    """The socket's place; a path too long for a socket address moves to /tmp, under a name of its own."""
    if runtime and runtime.startswith("/") and _is_own_directory(Path(runtime)):
        path = Path(runtime) / "p2pc" / ("node.sock" if group == FIRST_GROUP else f"node-{group}.sock")
    else:
        path = state / "run" / "node.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        import hashlib

        tag = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
        path = Path(f"/tmp/p2pc-{os.getuid()}-{tag}") / "node.sock"
    return path


def read_run_file(paths: Paths) -> dict[str, Any]:
    """Return what the running node wrote about itself; nothing when there is none or the file is torn."""
    try:
        found = json.loads(paths.run_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
