"""Starting a node for a command: in the background where it may stay, inside the command where it may not.

A machine's own node stays.  In CI, containers, notebooks and throw-away environments (`uvx`, `pipx run`) nothing may be
left behind, so there the command holds an *embedded* node: a process that ends with it, by a lifeline that breaks
whatever happens to the command.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pcompute.cli.connection import Connection, error_of
from p2pcompute.errors import NodeUnavailable, UsageError
from p2pcompute.places import Paths, find_paths, read_run_file

AUTOSTART_S_MAX: Final = 5.0
"""For a node that is started on the way to something else."""
START_S_MAX: Final = 30.0
"""For `p2pc node start`: checking and migrating a large store takes time."""
EMBEDDED_END_S_MAX: Final = 5.0
STOP_LOOK_S: Final = 0.05
_STDERR_FILE: Final = "node.err"
_LOOK_SOCKET: Final = "look.sock"

_LOCAL_SETTINGS: Final = ("node.discover=false", "node.interfaces=lo", "node.peers=", "node.seeds=")


class EmbeddedNode:
    """A node process that lives as long as this one."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Let it end, and wait until it has: the next command may start another one at once."""
        if self._lifeline is None:
            return
        atexit.unregister(self.close)
        os.close(self._lifeline)
        self._lifeline = None
        # Another command may follow a job there; then it outlives this one until that is over.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EMBEDDED_END_S_MAX)


def ensure_node(
    *, local: bool = False, announce: Callable[[str], object] | None = None, is_retried: bool = True
) -> Connection:
    """Return a connection to a node that answers; start one if there is none.

    Args:
        local: only this machine is wanted: what has to be started is embedded and opens no port beyond loopback.
        announce: told in one line when a node was started in the background.
        is_retried: once more when the node that was in the way has just gone.

    Raises:
        NodeUnavailable: none runs and none may be started, or it did not start; tried once.
    """
    paths = find_paths(os.environ)
    connection = Connection(paths.socket)
    if connection.is_answering():
        return connection
    if os.environ.get("P2PC_NO_AUTOSTART"):
        raise NodeUnavailable("no node is running here", "P2PC_NO_AUTOSTART forbids to start one", "p2pc node start")
    try:
        if local or why_embedded(os.environ) is not None:
            connection.embedded = start_embedded(paths, settings=_LOCAL_SETTINGS if local else ())
        else:
            pid = start_background(paths, limit_s=AUTOSTART_S_MAX)
            if announce is not None:
                announce(f"started a node for you (pid {pid}); stop it: p2pc node stop")
    except NodeUnavailable as error:
        # Two commands at the same moment: the other one's node does as well.
        if error.code != "running" or not _answers_soon(connection):
            if error.code == "running" and is_retried and not is_running(paths):
                return ensure_node(local=local, announce=announce, is_retried=False)  # the other one only looked
            raise
    return connection


def _answers_soon(connection: Connection) -> bool:
    """Wait for a node that is starting; False when it does not answer, or has gone."""
    deadline = time.monotonic() + AUTOSTART_S_MAX
    while not connection.is_answering():
        if time.monotonic() > deadline or not is_running(find_paths(os.environ)):
            return connection.is_answering()
        time.sleep(STOP_LOOK_S)
    return True


def look_connection(*, timeout_s: float) -> Connection:
    """Return a connection for looking at jobs, also where no node runs.

    Then a node that lives as long as this command shows what the installation keeps; it runs nothing, so that
    unfinished jobs rest.  It has a socket of its own: no job can be given to it.

    Raises:
        UsageError: none runs, and nothing is kept here.
        NodeUnavailable: it did not start.
    """
    paths = find_paths(os.environ)
    connection = Connection(paths.socket, timeout_s=timeout_s)
    if connection.is_answering() or os.environ.get("P2PC_NO_AUTOSTART"):
        return connection
    if not paths.store.is_dir():
        if os.environ.get("P2PC_SOCKET"):  # another node is meant than this installation's
            return connection
        why, fix = "none was submitted on this computer", "start one: p2pc run"
        raise UsageError("there is no job here", why, fix, code="no-job")
    socket = paths.socket.with_name(_LOOK_SOCKET)
    try:
        looking = Connection(socket, timeout_s=timeout_s)
        looking.embedded = start_embedded(paths, look_socket=socket)
    except NodeUnavailable as error:
        if error.code == "running" and _answers_soon(connection):
            return connection
        raise
    return looking


def start_background(paths: Paths, *, settings: Sequence[str] = (), limit_s: float = START_S_MAX) -> int:
    """Start a node that stays; return its process id once it answers.

    Raises:
        NodeUnavailable: it did not start, with its reason; `running` when there is one already.
        P2pcError: another reason of its own (settings, identity, store).
    """
    process, ready = _spawn(paths, settings, None)
    answer = _wait_ready(paths, process, ready, limit_s)
    process.returncode = 0  # it is not ours to wait for: silences the warning about a child that still runs
    return int(answer["pid"])


def start_embedded(paths: Paths, *, settings: Sequence[str] = (), look_socket: Path | None = None) -> EmbeddedNode:
    """Start a node that ends with this process.

    Args:
        look_socket: it only shows what is kept, on this socket.

    Raises:
        NodeUnavailable: as `start_background`.
    """
    inner, lifeline = os.pipe()
    try:
        process, ready = _spawn(paths, settings, inner, look_socket)
    except BaseException:  # tidied up after, and raised again
        os.close(lifeline)
        raise
    finally:
        os.close(inner)
    node = EmbeddedNode(process, lifeline)
    try:
        _wait_ready(paths, process, ready, AUTOSTART_S_MAX)
    except BaseException:  # tidied up after, and raised again
        node.close()
        raise
    return node


def _spawn(
    paths: Paths, settings: Sequence[str], lifeline: int | None, look_socket: Path | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Return the new process and the descriptor on which it reports."""
    with contextlib.suppress(OSError):  # the node says what is wrong with the directory, and what to do
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready, report = os.pipe()
    # -P: nothing in the working directory is ever imported.
    command = [sys.executable, "-P", "-m", "p2pcompute.daemon", "--ready-fd", str(report)]
    if lifeline is not None:
        command += ["--lifeline", str(lifeline)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**_environment(os.environ), "P2PC_GROUP": paths.group}
    if look_socket is not None:
        command.append("--look")
        environment["P2PC_SOCKET"] = str(look_socket)
    try:
        with _stderr(paths) as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                pass_fds=(report,) if lifeline is None else (report, lifeline),
                env=environment,
                cwd=paths.state if paths.state.is_dir() else "/",
            )
    except BaseException:  # tidied up after, and raised again
        os.close(ready)
        raise
    finally:
        os.close(report)
    return process, ready


def _stderr(paths: Paths) -> Any:
    """What a node prints before its log is open, or when the interpreter itself fails."""
    try:
        return open(paths.state / _STDERR_FILE, "wb")
    except OSError:
        return open(os.devnull, "wb")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The node must find this very package, also when it is run from a source tree."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    if "site-packages" in root or root in environ.get("PYTHONPATH", "").split(os.pathsep):
        return dict(environ)
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH", ""))))}


def _wait_ready(paths: Paths, process: subprocess.Popen[bytes], ready: int, limit_s: float) -> dict[str, Any]:
    """Return the node's report; the node is ended when it is not ready in time."""
    try:
        line = _read_line(ready, time.monotonic() + limit_s)
    finally:
        os.close(ready)
    if line is None:
        process.terminate()
        raise NodeUnavailable(
            f"the node was not ready within {limit_s:g} s",
            "the machine is busy, or the store is large",
            f"p2pc node start   (it waits {START_S_MAX:g} s; log: {paths.log})",
            code="slow-start",
        )
    if not line:
        process.wait()
        raise NodeUnavailable(
            "the node did not start",
            _last_line(paths.state / _STDERR_FILE) or f"exit code {process.returncode}",
            f"see its log: {paths.log}",
            code="no-start",
        )
    report: dict[str, Any] = json.loads(line)
    if not report.get("ready"):
        process.wait()
        raise error_of(503 if report.get("code") in ("running", "socket", "no-node", "socket-owner") else 400, report)
    return report


def _read_line(descriptor: int, deadline: float) -> bytes | None:
    """Return what comes until the other end closes; None when it takes too long."""
    data = b""
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        part = os.read(descriptor, 65536)
        if not part:
            break
        data += part
    return data


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


# --- where nothing may stay -----------------------------------------------------------------------


def why_embedded(environ: Mapping[str, str]) -> str | None:
    """Return why a node may not outlive the command here, None where it may."""
    if environ.get("CI"):
        return "CI"
    if is_container(environ):
        return "container"
    if "ipykernel" in sys.modules or environ.get("JPY_PARENT_PID") or environ.get("JPY_SESSION_NAME"):
        return "notebook"
    if is_throwaway(sys.prefix, environ):
        return "throw-away environment"
    return None


def is_container(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """True inside Docker, Podman, Kubernetes, LXC and the like.

    Args:
        root: the file system to look at.
    """
    if environ.get("container") or environ.get("KUBERNETES_SERVICE_HOST"):
        return True
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    try:
        groups = (root / "proc/1/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(word in groups for word in ("docker", "kubepods", "containerd", "libpod", "lxc"))


def is_throwaway(prefix: str, environ: Mapping[str, str]) -> bool:
    """True for environments that a tool may remove at any time: those of `uvx`, `uv run --with` and `pipx run`."""
    path = Path(prefix)
    cache = environ.get("UV_CACHE_DIR")
    if cache and path.is_relative_to(cache):
        return True
    parts = path.parts
    pairs = set(itertools.pairwise(parts))
    if ("uv", "archive-v0") in pairs or ("uv", "environments-v2") in pairs or ("uv", "builds-v0") in pairs:
        return True
    return "pipx" in parts and (".cache" in parts[parts.index("pipx") :] or ".cache" in parts[: parts.index("pipx")])


# --- stopping -------------------------------------------------------------------------------------


def is_running(paths: Paths) -> bool:
    """True while a node of this installation holds its lock, also when it does not answer."""
    import fcntl

    try:
        with open(paths.lock, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def running_pid(paths: Paths) -> int | None:
    """Return the process id that the running node wrote down."""
    pid = read_run_file(paths).get("pid")
    return pid if isinstance(pid, int) else None


@dataclass(frozen=True, slots=True)
class HowStarted:
    """How the node that runs was started, as it wrote down; nothing is known of older ones."""

    flags: Mapping[str, str]
    """Settings by key, as text."""
    is_foreground: bool
    """In a terminal, or by the system's service manager."""
    accept: str
    """The setting node.accept that it obeys; empty: not known."""


def how_started(paths: Paths) -> HowStarted:
    """Return what is known of the node that runs."""
    found = read_run_file(paths)
    flags = found.get("flags")
    return HowStarted(
        {str(key): str(value) for key, value in flags.items()} if isinstance(flags, dict) else {},
        bool(found.get("foreground")),
        str(found.get("accept") or ""),
    )


def forget_flag(paths: Paths, key: str) -> None:
    """A setting was changed after the node was started with a flag for it: a restart goes by the setting."""
    found = read_run_file(paths)
    if isinstance(flags := found.get("flags"), dict) and flags.pop(key, None) is not None:
        part = paths.run_file.with_name(f".{paths.run_file.name}.{os.getpid()}")
        part.write_text(json.dumps(found) + "\n", encoding="utf-8")
        part.replace(paths.run_file)


def wait_stopped(paths: Paths, limit_s: float) -> bool:
    """Wait until the node has gone; False when it has not after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while is_running(paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(STOP_LOOK_S)
    return True
