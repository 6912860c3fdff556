"""One worker process as the node sees it: start it, write to it, read frames, learn of its death, kill it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import p2pcompute
from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import messages
from p2pcompute.execution.child_os import SIGKILL
from p2pcompute.execution.environments import Environment
from p2pcompute.execution.results import Tail
from p2pcompute.limits import RUNNER_MESSAGE_BYTES_MAX
from p2pcompute.wire.frames import FrameReader

_READ_BYTES: Final = 1 << 16
"""Below the size from which the C library maps memory for every single buffer."""
_READS_MAX: Final = 16
"""Reads in a row before others get their turn."""
_DYING_S: Final = 0.2
"""A process that dies closes its socket first; it is gone within this, or it lives on with a closed socket."""
_INHERITED: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_RUNTIME_DIR",
    "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF",
    "DOCKER_HOST",
)


def inherited_environment() -> dict[str, str]:
    """Return the part of this process's environment that tasks may see."""
    return {
        name: value for name, value in sorted(os.environ.items()) if name in _INHERITED or name.startswith("LC_")
    } | {"PATH": os.environ.get("PATH", os.defpath)}


class WorkerProcess:
    """A spawned worker process and its socket.

    Callbacks come from the event loop: `on_frames(bodies)` with what it said, `on_exit(returncode)` once, after
    everything it said.  `on_frames` may raise RemoteProtocolError: the process is then killed.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        on_frames: Callable[[list[bytes]], None],
        on_exit: Callable[[int], None],
        environment: Environment | None = None,
    ) -> None:
        """Args:
        environment: Python environment that it runs in; None: that of this process.
        """
        self.directory = directory
        self.environment = environment
        self.log_path = directory / "log"
        self._settings = settings
        self._on_frames = on_frames
        self._on_exit = on_exit
        self._reader = FrameReader(RUNNER_MESSAGE_BYTES_MAX)
        self._unsent = bytearray()
        self._is_reading = False
        self._is_writing = False
        self._is_alive = False
        self.is_usable = False
        """False before `start` and from the moment that it is killed or has died."""
        self.is_condemned = False
        """It was told to end because of a kill or a time limit: what it runs next is not to blame."""
        self.was_cut_off = False
        """It was killed because it closed its socket or said what cannot be."""
        self.is_dead = False
        """It has ended, and its last words are being read."""
        self.ooms_before = 0
        self.ooms_counted_at = float("-inf")
        self.is_ready = False
        """It has said hello."""
        self.known_jobs: dict[int, None] = {}
        """Jobs that it remembers, the least recently used first."""
        self.peeks: dict[int, asyncio.Future[Tail | None]] = {}
        """Who waits for what a task has printed, by serial number."""
        self.peek_count = 0
        self.recalled: dict[int, None] = {}
        """Runs that were taken back, and that it has not said it left out."""
        self.groups: dict[int, None] = {}
        """Process groups of commands that it started and whose end it has not reported."""

    def start(self) -> None:
        """Spawn the process; needs a running event loop.

        Raises:
            OSError: no memory, processes, descriptors or disk for it.
        """
        self._loop = asyncio.get_running_loop()
        self.directory.mkdir(mode=0o700, parents=True)
        ours, theirs = socket.socketpair()
        read_end, self._life_line = os.pipe()
        try:
            words, environment = self._command(theirs.fileno(), read_end)
            with open(self.log_path, "wb") as log:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    close_fds=True,
                    pass_fds=(theirs.fileno(), *self._passed(read_end)),
                    start_new_session=True,
                    env=environment,
                )
        except BaseException:
            ours.close()
            os.close(self._life_line)
            raise
        finally:
            theirs.close()
            os.close(read_end)
        self._socket = ours
        ours.setblocking(False)
        self._is_alive = self.is_usable = True
        try:
            self._pidfd = os.pidfd_open(self.pid)
            self._loop.add_reader(self._pidfd, self._exited)
        except (AttributeError, OSError):
            self._pidfd = -1  # then the end of its socket tells
        self.resume()
        self.send(messages.pack_down((messages.SETUP, self._settings)))

    def _command(self, channel_fd: int, life_line_fd: int) -> tuple[list[str], dict[str, str]]:
        """Return the words that start it and their environment."""
        package_root = str(Path(p2pcompute.__file__).parent.parent)
        search = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        interpreter = sys.executable
        if self.environment is not None:
            search, interpreter = [str(self.environment.library)], str(self.environment.python)
        words = [interpreter, "-P", "-m", "p2pcompute.execution.child", str(channel_fd), str(life_line_fd)]
        return words, {**inherited_environment(), "PYTHONPATH": os.pathsep.join(search), "PYTHONUTF8": "1"}

    def _passed(self, life_line_fd: int) -> tuple[int, ...]:
        """Return the descriptors that it gets beside its end of the socket."""
        return (life_line_fd,)

    def place(self, path: str) -> str:
        """Return the name under which it finds a blob."""
        return path

    def begin_batch(self) -> None:
        """What `place` is asked for from now on is what it still needs."""

    def end_batch(self) -> None:
        """All blobs of the batch have been asked for."""

    def taken(self, size: int) -> None:
        """A result file of so many bytes was taken over."""

    def taken_descriptors(self, count: int) -> list[int]:
        """Return descriptors that it has sent; they are the caller's.

        Raises:
            RemoteProtocolError: it has not sent so many.
        """
        raise RemoteProtocolError("descriptors from a process that sends none")

    @property
    def pid(self) -> int:
        """Process id, which is also its process group and session."""
        return self._process.pid

    # --- writing --------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Queue a frame.  The queue holds at most one batch, since a slot takes one at a time."""
        if not self._is_alive:
            return
        if self._unsent:
            self._unsent += frame
            return
        self._unsent += frame
        self._flush()

    async def peek(self, run_id: int, offsets: tuple[int, int], limit_s: float) -> Tail | None:
        """Ask what the running task has printed; None: it did not answer in time, or runs no more."""
        self.peek_count += 1
        serial = self.peek_count
        waiting: asyncio.Future[Tail | None] = self._loop.create_future()
        self.peeks[serial] = waiting
        timer = self._loop.call_later(limit_s, lambda: self.peeked(serial, None))
        try:
            self.send(messages.pack_down((messages.PEEK, serial, run_id, *offsets)))
            return await waiting
        finally:
            timer.cancel()
            del self.peeks[serial]

    def peeked(self, serial: int, tail: Tail | None) -> None:
        """An answer has come.

        Raises:
            RemoteProtocolError: to nothing that was asked.
        """
        if not 0 < serial <= self.peek_count:
            raise RemoteProtocolError("an answer that nobody waits for")
        waiting = self.peeks.get(serial)
        if waiting is not None and not waiting.done():
            waiting.set_result(tail)

    @property
    def has_unsent(self) -> bool:
        """Whether something that was sent is not in its socket yet."""
        return bool(self._unsent)

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(bytes(self._unsent[:_READ_BYTES]))
                del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._flush)
            self._is_writing = True
            return
        except OSError:  # it is gone; its exit is reported by itself
            self._unsent.clear()
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._socket)

    # --- reading --------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Leave what it says in the socket until `resume`."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Read from now on."""
        if self._is_alive and not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._socket, self.read_now)

    def read_now(self) -> None:
        """Read what is there."""
        frames: list[bytes] = []
        is_closed = False
        try:
            for _ in range(_READS_MAX):
                data = self._receive()
                if not data:
                    is_closed = True
                    break
                frames += self._reader.feed(data)
                if len(data) < _READ_BYTES // 2:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except RemoteProtocolError:
            self._broken()
        except OSError:
            is_closed = True
        if is_closed:
            self.is_usable = False  # before the slot is given its next batch
        if frames:
            self._deliver(frames)
        if is_closed:
            self._closed()

    def _receive(self) -> bytes:
        """Read once.

        Raises:
            OSError, RemoteProtocolError: as `read_now` answers.
        """
        return self._socket.recv(_READ_BYTES)

    def _deliver(self, frames: list[bytes]) -> None:
        try:
            self._on_frames(frames)
        except RemoteProtocolError:
            self._broken()

    def _broken(self) -> None:
        """It said what cannot be."""
        self.was_cut_off = True
        self.kill()

    def _closed(self) -> None:
        """Its end is closed: it is dying, or a task closed the socket; it is of no use either way."""
        self.pause()
        self.is_usable = False
        self._loop.call_later(_DYING_S, self._is_still_there)

    def _is_still_there(self) -> None:
        if not self._is_alive:
            return
        if self._pidfd < 0:
            if self._process.poll() is None:
                self._broken()
            self._exited()
            return
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                self._broken()

    # --- death ----------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal to the process's own group."""
        _kill_group(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process, its group and its command's group."""
        if self._is_alive:
            self.is_usable = False
            self._kill_groups()

    def _kill_groups(self) -> None:
        for group in (self.pid, *self.groups):  # it would see its command end, and begin the next task
            _kill_group(group, SIGKILL)

    def _exited(self) -> None:
        if not self._is_alive:
            return
        self.is_usable = False
        self.is_dead = True
        self._kill_groups()  # what is left; it is not reaped yet, so the group is still its own
        for _ in range(1 << 12):  # at most one socket buffer
            try:
                data = self._receive()
                if not data:
                    break
                frames = self._reader.feed(data)
            except (OSError, RemoteProtocolError):
                break
            self._deliver(frames)
        self._kill_groups()  # of a command that it had just started
        self._is_alive = False
        returncode = self._process.wait()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        os.close(self._life_line)
        for serial in list(self.peeks):
            self.peeked(serial, None)
        self._let_go()
        self._on_exit(returncode)

    def _let_go(self) -> None:
        """Close what else it has."""


def is_command_of(group: int, worker_pid: int) -> bool:
    """True when `group` is a session of its own whose leader is a child of the worker process."""
    try:
        if os.getsid(group) != group:
            return False
        with open(f"/proc/{group}/stat", "rb") as file:
            stat = file.read()
    except ProcessLookupError:
        return False
    except OSError:
        return sys.platform == "darwin"
    return stat[stat.rfind(b")") + 2 :].split(b" ", 3)[1] == str(worker_pid).encode()


def group_exists(group: int) -> bool:
    """True while the process group has a member, be it a zombie."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return
