"""The connection of commands that look at kept jobs, with or without a node."""

from __future__ import annotations

from p2pcompute.cli.connection import REQUEST_S_MAX, Connection, open_connection


def open_kept(*, timeout_s: float = REQUEST_S_MAX) -> Connection:
    """Return the connection of a command about jobs that are kept: it works where no node runs as well.

    Raises:
        UsageError: none is running, and nothing is kept.
    """
    connection = open_connection(timeout_s=timeout_s)
    if connection.is_answering():
        return connection
    from p2pcompute.cli.daemon_start import look_connection

    return look_connection(timeout_s=timeout_s)
