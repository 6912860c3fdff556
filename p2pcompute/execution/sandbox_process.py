"""A sandbox as the node sees it: one for a job and a slot, whose first process speaks like a worker process.

What its tasks need lies in its inbox, as links to blobs that it cannot change; what they leave comes as descriptors,
which the node copies before it reads the result that names them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import box_places, messages, sandbox
from p2pcompute.execution.cgroups import Cgroups
from p2pcompute.execution.environments import Environment
from p2pcompute.execution.worker_process import WorkerProcess
from p2pcompute.limits import OUTPUT_FILES_MAX

_STREAMS: Final = 3
"""Value, standard output and error."""
_READ_BYTES: Final = 1 << 16
_COPY_BYTES: Final = 1 << 20


class SandboxProcess(WorkerProcess):
    """A spawned sandbox and its socket; the rest is as of `WorkerProcess`."""

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        on_frames: Callable[[list[bytes]], None],
        on_exit: Callable[[int], None],
        *,
        bubblewrap: str,
        hidden: Sequence[Path],
        user: int | None,
        node_name: str,
        owner: tuple[bytes, bytes],
        limits: sandbox.BoxLimits,
        environment: Environment | None = None,
        pasta: str = "",
        cgroups: Cgroups | None = None,
    ) -> None:
        """Args:
        owner: submitter and job whose tasks it runs; no others.
        pasta: its path, for a sandbox with a network.
        cgroups: where the kernel limits it; None: it is watched only.
        """
        super().__init__(directory, settings, on_frames, on_exit, environment)
        self.owner = owner
        self.limits = limits
        self._bubblewrap = bubblewrap
        self._pasta = pasta
        self._cgroups = cgroups
        self._cgroup: Path | None = None
        self._hidden = hidden
        self._user = user
        self._node_name = node_name
        self._left_bytes = limits.disk_bytes
        self._left_files = OUTPUT_FILES_MAX + _STREAMS
        """What may be copied to `out` while nothing of it is taken over: it cannot fill the node's disk."""
        self._received: list[int] = []
        self._inbox: dict[str, None] = {}
        self._wanted: dict[str, None] = {}
        self.landlock = 0
        """Version in use, once it is ready; 0: none."""

    def _command(self, channel_fd: int, life_line_fd: int) -> tuple[list[str], dict[str, str]]:
        sandbox.prepare(self.directory, self._user)
        (self.directory / "out").mkdir(mode=0o700)
        try:
            words, environment = sandbox.command(
                self._bubblewrap,
                directory=self.directory,
                hidden=self._hidden,
                user=self._user,
                name=sandbox.host_name(self._node_name),
                channel_fd=channel_fd,
                environment_path=None if self.environment is None else self.environment.path,
                pasta=self._pasta,
            )
        except sandbox.NoSandbox as error:
            raise OSError(str(error)) from error
        words = [*sandbox.lower_priority(), *words]
        if self._cgroups is not None:
            self._cgroup = self._cgroups.make(self.directory.name, self.limits)
        return words if self._cgroup is None else Cgroups.within(self._cgroup, words), environment

    def _passed(self, life_line_fd: int) -> tuple[int, ...]:
        return ()

    # --- blobs to it ----------------------------------------------------------------------------------

    def begin_batch(self) -> None:
        """Take note of what is asked for."""
        self._wanted = {}

    def place(self, path: str) -> str:
        """Link a blob into the inbox.

        Raises:
            OSError: it is gone, or there is no room for a copy.
        """
        name = os.path.basename(path)
        if name not in self._inbox:
            target = self.directory / "in" / name
            try:
                os.link(path, target)
            except FileNotFoundError:
                raise
            except OSError:  # another file system, or too many links
                shutil.copyfile(path, target)
                target.chmod(0o444)
            self._inbox[name] = None
        self._wanted[name] = None
        return f"{box_places.INBOX}/{name}"

    def end_batch(self) -> None:
        """Take what was not asked for out of the inbox."""
        for name in [name for name in self._inbox if name not in self._wanted]:
            del self._inbox[name]
            with contextlib.suppress(OSError):
                (self.directory / "in" / name).unlink()

    # --- files from it --------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        data, descriptors, flags, _ = socket.recv_fds(
            self._socket, _READ_BYTES, messages.OUTPUTS_MAX, socket.MSG_CMSG_CLOEXEC
        )
        self._received += descriptors
        if flags & socket.MSG_CTRUNC or len(self._received) > messages.OUTPUTS_MAX:
            raise RemoteProtocolError("more descriptors than were agreed on")
        return data

    def taken_descriptors(self, count: int) -> list[int]:
        """Return descriptors that it has sent; they are the caller's.

        Raises:
            RemoteProtocolError: it has not sent so many.
        """
        if len(self._received) != count:
            raise RemoteProtocolError("not as many descriptors as files")
        self._left_files -= count
        if self._left_files < 0:
            raise RemoteProtocolError("more files than a task may have")
        taken, self._received = self._received, []
        return taken

    def copy_out(self, numbers: Sequence[int], descriptors: Sequence[int]) -> tuple[str, bool]:
        """Copy files into `out`, in a thread; return why that failed, and whether that is this node's doing.  The
        descriptors are closed."""
        try:
            for number, descriptor in zip(numbers, descriptors, strict=True):
                entry = os.fstat(descriptor)
                if not stat.S_ISREG(entry.st_mode) or entry.st_size > self._left_bytes:
                    return "a file of the result is no plain file, or larger than the sandbox", False
                self._left_bytes -= entry.st_size
                with open(self.directory / "out" / str(number), "xb") as target:
                    position = 0
                    while position < entry.st_size:
                        data = os.pread(descriptor, min(_COPY_BYTES, entry.st_size - position), position)
                        if not data:
                            break
                        target.write(data)
                        position += len(data)
        except OSError as error:
            return f"the result could not be stored on this node: {error.strerror}", True
        finally:
            close_all(descriptors)
        return "", False

    def taken(self, size: int) -> None:
        """A file of `out` was taken over: there is room for as much again."""
        self._left_bytes += size
        self._left_files += 1

    def _let_go(self) -> None:
        if self._cgroups is not None and self._cgroup is not None:
            self._cgroups.end(self._cgroup)
        close_all(self._received)
        self._received.clear()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that a sandbox has sent."""
    for descriptor in descriptors:
        os.close(descriptor)
