"""The control socket: bound by us with mode 0600, open to this user and root only, served by uvicorn.

uvicorn's own unix sockets become 0666 whatever the umask (uvicorn#2731), and it takes over the process's signals and
wakes ten times a second; so the socket is made here, signals stay with `main`, and waiting is waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from p2pcompute.errors import NodeUnavailable
from p2pcompute.limits import API_CONNECTIONS_MAX, API_WAIT_S_MAX, API_WAITING_MAX, PROTOCOL_MAX, PROTOCOL_MIN
from p2pcompute.socket_peer import peer_uid

log = logging.getLogger("p2pcompute.daemon")

_BACKLOG: Final = 512
"""Connections that the kernel keeps until they are taken; whoever connects beyond it waits."""
_CONNECT_S_MAX: Final = 2.0
"""A socket that accepts within this is alive."""
_LISTEN_FD: Final = 3
"""Where systemd puts the first socket (SD_LISTEN_FDS_START)."""
_OUT_OF: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_LOG_S: Final = 60.0
_CUT_S: Final = 2
"""After the node has stopped: how long open answers may still take."""


def _refusal(status: bytes, code: str, what: str, why: str = "", fix: str = "") -> bytes:
    """Return a whole answer, for a connection on which nothing was read."""
    document = {"schema": "p2pc.error/1", "code": code, "what": what, "why": why, "fix": fix}
    content = json.dumps(document, separators=(",", ":")).encode()
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(content)) + content


_NOT_YOURS: Final = _refusal(b"403 Forbidden", "refused", "this node belongs to another user")
_TOO_MANY: Final = _refusal(
    b"503 Service Unavailable",
    "busy",
    "too many programs speak to this node at once",
    f"{API_CONNECTIONS_MAX} connections are open, and others wait",
    "end some of them, then try again",
)


def bind_socket(path: Path) -> socket.socket:
    """Return a listening socket at `path`, mode 0600.  A stale one of a node that died is replaced.

    Raises:
        NodeUnavailable: a node answers there, something else is there, or the path cannot be used.
    """
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
    except OSError as error:
        listening.close()
        raise NodeUnavailable(
            f"the control socket {path} cannot be made",
            error.strerror or str(error),
            "set P2PC_SOCKET to a path that can, of at most 100 bytes",
            code="socket",
        ) from error
    finally:
        os.umask(before)
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


def handed_over_socket(path: Path) -> socket.socket | None:
    """Return the listening socket that whoever started this process listened on before it: systemd's socket units by
    the variables LISTEN_*, inetd ("wait") as standard input.  None when there is none.

    The variables are removed: they are not for the node's own children.

    Raises:
        NodeUnavailable: there is one, but not the one at which this node's commands look for it.

    Source: sd_listen_fds(3), inetd(8).
    """
    count, process = (os.environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if process == str(os.getpid()) and count not in ("", "0"):
        if count != "1":
            raise NodeUnavailable(
                f"{count} sockets were handed over at the start",
                "a node has one control socket",
                f"one ListenStream={path} in the socket unit",
                code="socket",
            )
        descriptor = _LISTEN_FD
    elif _is_listening(sys.stdin):
        descriptor = os.dup(sys.stdin.fileno())
    else:
        return None
    os.set_inheritable(descriptor, False)
    handed = socket.socket(fileno=descriptor)
    where = handed.getsockname() if handed.family == socket.AF_UNIX else None
    if where is None or os.path.realpath(os.fsdecode(where)) != os.path.realpath(path):
        handed.close()
        raise NodeUnavailable(
            "the socket that was handed over at the start is another one",
            f"commands look for the node at {path}" + (f", and it is {where!r}" if where else ""),
            f"ListenStream={path} in the socket unit, or set P2PC_SOCKET for node and commands",
            code="socket",
        )
    handed.setblocking(False)
    return handed


def _is_listening(stream: Any) -> bool:
    """Whether a file of this process is a socket that takes connections."""
    try:
        descriptor = stream.fileno()
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as there:
            return bool(there.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (AttributeError, OSError, ValueError):
        return False


def _clear(path: Path) -> None:
    """Make sure that nothing is at `path`."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise NodeUnavailable(f"the control socket {path} cannot be made", error.strerror or str(error)) from error
    if not stat.S_ISSOCK(mode):
        raise NodeUnavailable(
            f"{path} is not a socket",
            "the control socket belongs there",
            "move it away, or set P2PC_SOCKET",
            code="socket",
        )
    if is_answering(path):
        raise NodeUnavailable(
            "a node is running here already", f"it answers on {path}", "see it: p2pc status", code="running"
        )
    path.unlink(missing_ok=True)


def is_answering(path: Path) -> bool:
    """True when some process accepts connections on the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S_MAX)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT, None)
    return True


class PrivateProtocol(H11Protocol):
    """HTTP for this user and root; anyone else gets one refusal and is cut off before a byte is read.

    The mode of the socket keeps others out already; this holds where a file system or a moved directory does not.

    Connections beyond API_CONNECTIONS_MAX wait, unread, in the order in which they came.
    """

    def __init__(self, *args: Any, waiting: dict[PrivateProtocol, asyncio.Transport], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = waiting
        """Those of all connections of a listener."""
        self._is_heard = False
        self._give_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # narrower, as uvicorn's
        uid = peer_uid(transport.get_extra_info("socket"))
        if uid not in (os.geteuid(), 0):
            _answer(transport, _NOT_YOURS)
        elif len(self.connections) < API_CONNECTIONS_MAX:
            self._hear(transport)
        elif len(self._waiting) < API_WAITING_MAX:
            self._waiting[self] = transport
            # Not at once: up to Python 3.11.3 the loop begins to read after this, paused or not.
            self.loop.call_soon(self._pause)
            self._give_up = self.loop.call_later(API_WAIT_S_MAX, _answer, transport, _TOO_MANY)
        else:
            _answer(transport, _TOO_MANY)

    def _pause(self) -> None:
        if (transport := self._waiting.get(self)) is not None:
            transport.pause_reading()

    def _hear(self, transport: asyncio.Transport) -> None:
        self._is_heard = True
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_heard:
            super().connection_lost(exc)
        else:
            self._stop_waiting()
        while self._waiting and len(self.connections) < API_CONNECTIONS_MAX:
            first, transport = next(iter(self._waiting.items()))
            first._stop_waiting()
            first._hear(transport)
            transport.resume_reading()

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._give_up is not None:
            self._give_up.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_heard:
            super().data_received(data)

    def eof_received(self) -> None:
        if self._is_heard:
            super().eof_received()


def _answer(transport: asyncio.Transport, content: bytes) -> None:
    """Answer a connection that is not listened to, and end it."""
    transport.write(content)
    transport.close()


class AcceptTrouble:
    """The event loop's handler of errors: says once in a while that connections cannot be taken, not at each try.

    asyncio pauses a listening socket for 1 s when the process is out of descriptors, but before that it tries as often
    as the socket's backlog is long, and reports every try with a traceback.
    """

    def __init__(self) -> None:
        self._said: float | None = None
        self._unsaid_count = 0

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See `asyncio.loop.set_exception_handler`."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _OUT_OF:
            loop.default_exception_handler(context)
            return
        now = loop.time()
        if self._said is not None and now - self._said < _ACCEPT_LOG_S:
            self._unsaid_count += 1
            return
        log.warning(
            "no connections can be taken: %s (%d tries since it was said last); trying on",
            error.strerror,
            self._unsaid_count,
        )
        self._said, self._unsaid_count = now, 0


class Listener(uvicorn.Server):
    """Serves an application on a socket until `stop`."""

    def __init__(self, app: Any, version: str) -> None:
        self._waiting: dict[PrivateProtocol, asyncio.Transport] = {}
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", partial(PrivateProtocol, waiting=self._waiting)),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                headers=[("p2pc-version", version), ("p2pc-protocol", f"{PROTOCOL_MIN}-{PROTOCOL_MAX}")],
                backlog=_BACKLOG,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=_CUT_S,
            )
        )
        self._stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `main`."""
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._stopping.wait()

    def stop(self) -> None:
        """Take no more connections, end the open ones."""
        self.should_exit = True
        while self._waiting:
            self._waiting.popitem()[1].close()
        self._stopping.set()
