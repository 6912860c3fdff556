"""Whether this machine's node answers those who have calls there, and how long they wait for it when it does not.

A node that is restarted, updated or stopped for a while goes on with what it keeps; so whoever waits for it waits on,
says so once, and gives up after a time that its user chooses.  What the node refuses is no absence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from p2pcompute.errors import NodeUnavailable

T = TypeVar("T")

log = logging.getLogger("p2pcompute.detached")

AWAY_S: Final = 3600.0
"""How long a node that does not answer is waited for, unless the user says otherwise: a reboot, an update, a lunch."""
SAID_S: Final = 10.0
"""An absence is said after so long: a restart takes less."""
RETRY_S: Final = 0.5
RETRY_S_MAX: Final = 5.0
"""Between two tries: the first, and when it has been away for long."""
_GROWTH: Final = 1.5


class Presence:
    """One for all threads that ask the node for the same executor."""

    def __init__(self, limit_s: float = AWAY_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._missed_at: float | None = None
        """When it first did not answer; None: it does."""
        self._is_said = False

    def answered(self) -> None:
        """It is there."""
        if self._missed_at is None:
            return
        with self._lock:
            was_said, self._missed_at, self._is_said = self._is_said, None, False
        if was_said:
            log.warning("this machine's node is back")

    def missed(self, error: NodeUnavailable) -> None:
        """It does not answer.

        Raises:
            NodeUnavailable: it has been away for longer than it is waited for.
        """
        now = time.monotonic()
        with self._lock:
            if self._missed_at is None:
                self._missed_at = now
            away_s = now - self._missed_at
            is_to_say = not self._is_said and SAID_S <= away_s < self._limit_s
            self._is_said = self._is_said or is_to_say
        if away_s >= self._limit_s:
            raise NodeUnavailable(
                f"this machine's node has not answered for {_span(self._limit_s)}",
                error.why or error.what,
                "p2pc node start: it goes on with what it has; p2pcompute.get_job(ID) and p2pc jobs show it",
                code="node-away",
            ) from error
        if is_to_say:
            log.warning(
                "this machine's node does not answer; its calls are waited for, up to %s: p2pc node start",
                _span(self._limit_s),
            )

    def note(self) -> str:
        """Return what is to be said of it now; empty while it answers."""
        missed_at = self._missed_at
        return "" if missed_at is None else f"no answer from the node for {_span(time.monotonic() - missed_at)}"

    def patiently(self, step: Callable[[], T]) -> T:
        """Do something at the node, again while it does not answer.

        Raises:
            P2pcError: it refuses, or is away for too long.
        """
        pause_s = RETRY_S
        while True:
            try:
                result = step()
            except NodeUnavailable as error:
                self.missed(error)
            else:
                self.answered()
                return result
            time.sleep(pause_s)
            pause_s = longer(pause_s)


def longer(pause_s: float) -> float:
    """Return the pause after this one."""
    return min(RETRY_S_MAX, pause_s * _GROWTH)


def _span(time_s: float) -> str:
    for unit_s, unit in ((3600.0, "h"), (60.0, "min")):
        if time_s >= unit_s:
            return f"{time_s / unit_s:.3g} {unit}"
    return f"{time_s:.0f} s"
