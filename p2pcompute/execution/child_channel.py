"""The worker process's end of the socket to its node."""

from __future__ import annotations

import os
import select

from p2pcompute.execution import messages
from p2pcompute.execution.child_tasks import ChannelClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_READ_BYTES = 1 << 16
"""Below the size from which the C library maps memory for every single buffer."""
_PARENT_CHECK_MS = 5000


class Channel:
    """The socket to the node: messages in, frames out."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inbox: list[Any] = []
        """Messages but KILL, oldest first."""
        self.killed: dict[int, None] = {}
        """Runs that are to be stopped or not to be started."""
        self.peeks: list[Any] = []
        """Questions for what a task has printed."""
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._parent = os.getppid()

    def send(self, frame: bytes) -> None:
        """Write a whole frame; waits while the node does not read.

        Raises:
            ChannelClosed: the node is gone, or a task closed the socket.
        """
        try:
            written = os.write(self.fd, frame)
            while written < len(frame):
                written += os.write(self.fd, frame[written : written + _READ_BYTES])
        except OSError as error:
            raise ChannelClosed from error

    def wait(self) -> None:
        """Wait until a message is complete.

        Raises:
            ChannelClosed: the node is gone.
        """
        while not self.inbox:
            if self._poll.poll(_PARENT_CHECK_MS):
                self._read()
            elif os.getppid() != self._parent:  # somebody else may hold a copy of the node's end
                raise ChannelClosed

    def wait_for(self, kind: int) -> Any:
        """Wait for a message of one kind, which is taken out; others stay.

        Raises:
            ChannelClosed: the node is gone.
        """
        while not (self.inbox and self.inbox[-1][0] == kind):
            if self._poll.poll(_PARENT_CHECK_MS):
                self._read()
        return self.inbox.pop()

    def answer_peeks(self, run_id: int, fds: Sequence[int], progress: bytes = b"") -> None:
        """Tell what the running task has printed.

        Args:
            fds: files of its standard output and error.
            progress: how far it says that it is.

        Raises:
            ChannelClosed: the node is gone.
        """
        while self.peeks:
            serial, wanted, *offsets = self.peeks.pop()
            if wanted == run_id:
                stdout, stderr = map(messages.tail_of, fds, offsets)
                self.send(messages.pack_tail(serial, stdout, stderr, progress))

    def receive_now(self) -> None:
        """Take what has arrived, without waiting.

        Raises:
            ChannelClosed: the node is gone.
        """
        while self._poll.poll(0):
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self.fd, _READ_BYTES)
        except OSError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        buffer = self._buffer
        buffer += data
        head = messages.HEAD.size
        while len(buffer) >= head:
            end = head + messages.HEAD.unpack_from(buffer)[0]
            if len(buffer) < end:
                return
            message = messages.unpack_down(bytes(buffer[head:end]))
            del buffer[:end]
            if message[0] == messages.KILL:
                self.killed.update(dict.fromkeys(message[1]))
            elif message[0] == messages.PEEK:
                self.peeks.append(message[1:])
            else:
                self.inbox.append(message)
