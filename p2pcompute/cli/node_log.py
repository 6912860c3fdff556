"""This machine's node's own log: `p2pc logs --node`."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import IO, Final

from p2pcompute.cli.terminal_text import SafeStream
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError

LINES: Final = 100
"""Of the log, unless -n says how many."""
LOOK_S: Final = 0.3


def show_node_log(node: str, *, lines: int | None, follow: bool) -> int:
    """Print the end of the log; `follow`: and what comes, until interrupted.

    Raises:
        UsageError: NODE is another one: its log is on its own machine.
        NodeUnavailable: there is no log, because no node has run here.
    """
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    _check_node(node)
    try:
        with paths.log.open("rb") as source:
            out = SafeStream(sys.stdout.buffer)
            out.writelines(deque(source, maxlen=lines or LINES))
            out.flush()
            return _follow(source, paths.log, out) if follow else 0
    except FileNotFoundError as error:
        raise NodeUnavailable("there is no log", f"no node has run here: {paths.log}", "p2pc node start") from error


def _follow(source: IO[bytes], path: Path, out: SafeStream) -> int:
    """Print what is added to a file, also when another one takes its name."""
    while True:
        for line in source:
            out.write(line)
        out.flush()
        time.sleep(LOOK_S)
        try:
            entry, own = path.stat(), os.fstat(source.fileno())
        except FileNotFoundError:
            continue
        if (entry.st_dev, entry.st_ino) != (own.st_dev, own.st_ino):
            out.writelines(source)  # what was added before it was renamed
            with path.open("rb") as newer:
                return _follow(newer, path, out)
        if entry.st_size < source.tell():
            source.seek(0)


def _check_node(node: str) -> None:
    """Raises UsageError for a node that is not this machine's."""
    from p2pcompute.cli.connection import open_connection

    if node in ("self", ".", "localhost"):
        return
    try:
        status = open_connection().request("GET", "/v1/status")["node"]
    except P2pcError:
        raise UsageError(
            f"nobody can say whether {node} is this machine's node", "it does not run", "p2pc logs --node self"
        ) from None
    known = {str(status.get(name) or "") for name in ("name", "id", "short_id")}
    if node not in known:
        raise UsageError(
            f"the log of {node} is on its own machine",
            "nodes show one another no logs",
            f"there: p2pc logs --node self; here, what {node} is known for: p2pc peers {node}",
        )
