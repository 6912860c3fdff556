"""Finding out, by doing it, whether this machine can isolate a task.

Used by a node before it takes work of others, and by `p2pc doctor`.  Nothing is concluded from versions or settings:
a sandbox is started as for a task, and what it says is believed when it says that all its steps have succeeded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import p2pcompute
from p2pcompute.execution import box_places, messages, sandbox
from p2pcompute.execution.child_fence import given_up
from p2pcompute.execution.child_tasks import BoxSettings
from p2pcompute.execution.installing import install_command
from p2pcompute.execution.levels import Level
from p2pcompute.limits import (
    ERROR_TEXT_BYTES_MAX,
    INLINE_BYTES_MAX,
    KIB,
    KILL_GRACE_S,
    MIB,
    OUTPUT_FILES_MAX,
    SANDBOX_TRIAL_S,
    WASM_ENGINE_BYTES,
)

NO_OPERATION: Final = bytes.fromhex(
    "0061736d01000000 010401600000 03020100 070a01065f73746172740000 0a040102000b"  # (module (func (export "_start")))
)
_MEM_BYTES: Final = 256 * MIB
_DISK_BYTES: Final = 64 * MIB
_RIGHTS: Final = (
    "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1, or on Ubuntu an AppArmor profile for bwrap; "
    "in a container, start it with --privileged, or run p2pc on the host"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What this machine offers to work of others."""

    level: Level
    landlock: int = 0
    """Version in use; 0: the kernel has none, and the mounts alone decide which files are seen."""
    only_wasm: bool = False
    """WASI modules are taken, and nothing else."""
    why: str = ""
    """Why there is no sandbox."""
    fix: str = ""


def isolation(accept: str, hidden: Sequence[Path]) -> Isolation:
    """Return how work of others is run by a node with this setting of `node.accept`; blocks for about 0.1 s.

    Args:
        hidden: directories of the node.
    """
    if accept == "none":
        return Isolation(level=Level.NONE, why="node.accept is none")
    if accept == "all":
        return Isolation(level=Level.PROCESS)
    only_wasm = accept == "wasm"
    try:
        return Isolation(level=Level.SANDBOX, landlock=try_sandbox(hidden), only_wasm=only_wasm)
    except sandbox.NoSandbox as error:
        missing = error
    try:
        try_fence()
    except sandbox.NoSandbox as error:
        missing = error if only_wasm else missing
        return Isolation(level=Level.NONE, why=str(missing), fix=missing.fix)
    return Isolation(level=Level.WASM, only_wasm=True, why=str(missing), fix=missing.fix)


def try_fence() -> None:
    """Run a WASI module in an engine that has shut itself in.

    Raises:
        NoSandbox: it does not work here; says why and what helps.
    """
    if find_spec("wasmtime") is None:
        raise sandbox.NoSandbox("wasmtime is not installed", install_command("wasmtime>=50"))
    with tempfile.TemporaryDirectory(prefix="p2pc-trial-") as name, contextlib.ExitStack() as undo:
        directory = Path(name)
        user = sandbox.user_of_slot(directory, 0)
        _furnish(directory, user)
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        search = os.pathsep.join([str(Path(p2pcompute.__file__).parent.parent), *filter(None, sys.path)])
        with theirs, open(directory / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "p2pcompute.execution.wasm_engine", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"PYTHONPATH": search, "PYTHONUTF8": "1"},
            )
        undo.callback(_end, process)
        ours.settimeout(SANDBOX_TRIAL_S)
        box = sandbox.box_settings(sandbox.limits_of_slot(0, 1, 1.0, WASM_ENGINE_BYTES, _DISK_BYTES), user)
        try:
            for message in _module_run(directory, BoxSettings(box)):
                ours.sendall(messages.pack_down((message,)))
            answer = ours.recv(messages.WASM_ANSWER.size, socket.MSG_WAITALL)
            how, code, *_, size = messages.WASM_ANSWER.unpack(answer)
            said = ours.recv(size, socket.MSG_WAITALL).decode("utf-8", "replace") if size else ""
        except (OSError, struct.error):
            how, code, said = messages.WASM_BROKEN, 0, (directory / "log").read_text("utf-8", "replace")[-2 * KIB :]
    if (how, code) != (messages.WASM_EXIT, 0):
        raise sandbox.NoSandbox(
            f"a WASI module could not be run: {said.strip()}", f"{install_command('wasmtime>=50')} --upgrade"
        )


def _furnish(directory: Path, user: int | None) -> None:
    (directory / "code").write_bytes(NO_OPERATION)
    (directory / "work").mkdir()
    for name in ("out", "err"):
        (directory / name).touch()
    if user is not None:
        directory.chmod(0o711)
        for name in ("work", "out", "err"):
            os.chown(directory / name, user, user)


def _module_run(directory: Path, fence: BoxSettings) -> tuple[dict[str, object], ...]:
    """Return what an engine is told that is to run one task."""
    setup = {
        "code": str(directory / "code"),
        "cache": "work",
        "directory": str(directory),
        "mem_bytes": MIB,
        "fuel": None,
    }
    streams = {"stdin": os.devnull, "stdout": "out", "stderr": "err", "directory": "work"}
    task = {"argv": ["trial"], "env": {}, "seed": b"", "index": 0, "cpu_s": None}
    return {**setup, "fence": given_up(fence)}, {**task, **streams}


def try_sandbox(hidden: Sequence[Path] = ()) -> int:
    """Start a sandbox and end it; return the version of Landlock in it.

    Raises:
        NoSandbox: it does not work here; says why and what helps.
    """
    bubblewrap = sandbox.find_bubblewrap()
    with tempfile.TemporaryDirectory(prefix="p2pc-trial-") as name, contextlib.ExitStack() as undo:
        directory = Path(name)
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        undo.callback(theirs.close)
        user = sandbox.user_of_slot(directory, 0)
        sandbox.prepare(directory, user)
        words, environment = sandbox.command(
            bubblewrap, directory=directory, hidden=hidden, user=user, name="trial", channel_fd=theirs.fileno()
        )
        with theirs, open(directory / "log", "wb") as log:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=directory,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=environment,
                )
            except OSError as error:
                raise sandbox.NoSandbox(f"bubblewrap cannot be started: {error}", "reinstall bubblewrap") from error
        undo.callback(_end, process)
        ours.settimeout(SANDBOX_TRIAL_S)
        try:
            ours.sendall(messages.pack_down((messages.SETUP, _settings(user))))
            head = ours.recv(messages.HEAD.size + 2, socket.MSG_WAITALL)
        except TimeoutError:
            raise sandbox.NoSandbox(
                f"a sandbox did not start within {SANDBOX_TRIAL_S:g} s", "try again when the machine is idle"
            ) from None
        except OSError:
            head = b""
        if len(head) < messages.HEAD.size + 2 or head[messages.HEAD.size] != messages.HELLO:
            _end(process)
            said = (directory / "log").read_bytes()[-2 * KIB :].decode("utf-8", "replace").strip()
            raise sandbox.NoSandbox(f"a sandbox could not be made: {said or 'it ended at once'}", _RIGHTS)
        return head[-1]


def _settings(user: int | None) -> dict[str, object]:
    return {
        "directory": box_places.PLACE,
        "shared_directory": f"{box_places.PLACE}/shared",
        "slot": 0,
        "inline_bytes_max": INLINE_BYTES_MAX,
        "files_max": OUTPUT_FILES_MAX,
        "error_bytes_max": ERROR_TEXT_BYTES_MAX,
        "kill_grace_s": KILL_GRACE_S,
        "box": sandbox.box_settings(sandbox.limits_of_slot(0, 1, 1.0, _MEM_BYTES, _DISK_BYTES), user),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
