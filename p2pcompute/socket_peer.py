"""Who is at the other end of a unix socket.  Standard library only: every command uses it."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from p2pcompute.errors import TrustError

_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
_TIMEVAL: Final = struct.Struct("@ll")
"""struct timeval: seconds, microseconds."""


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user at the other end of a unix socket; None where the system does not say."""
    if hasattr(socket, "SO_PEERCRED"):
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(raw)[1])
    if hasattr(socket, "LOCAL_PEERCRED"):  # struct xucred: version, uid, …
        raw = connection.getsockopt(0, socket.LOCAL_PEERCRED, 76)
        return int(struct.unpack_from("2I", raw)[1])
    return None


def connect(path: str, wait_s: float) -> socket.socket:
    """Return a connection to our node, without a timeout of its own.

    Args:
        path: of the node's socket.
        wait_s: above 0; how long to wait when many connect at the same time, for the node to take ours.

    Raises:
        OSError: nobody listens there, or the time is over (BlockingIOError).
        TrustError: neither we nor root listen there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not `settimeout`: a socket that does not block is refused at once when the queue of the other is full.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(wait_s), int(wait_s % 1 * 1e6)))
        connection.connect(path)
        check_peer_is_ours(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def check_peer_is_ours(connection: socket.socket, path: str) -> None:
    """Refuse a node that another user runs on our socket: it would get our files and commands.

    Args:
        connection: connected; nothing was sent on it.
        path: of the socket, for the message.

    Raises:
        TrustError: neither we nor root listen there.
    """
    uid = peer_uid(connection)
    if uid not in (os.geteuid(), 0):
        raise TrustError(
            f"what answers on {path} is not your node",
            f"user {'unknown' if uid is None else uid} listens there, you are {os.geteuid()}; nothing was sent",
            f"look at it (ls -l {path}) and remove it, or set P2PC_HOME to a directory of your own",
            code="socket-owner",
        )
