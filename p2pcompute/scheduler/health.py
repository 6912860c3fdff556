"""Whether tasks can be started on this node at all, and how long it rests when they cannot.

That a single other installation's tasks cannot be started says nothing about this node: nobody shall stop the work of
all others by his own.  Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import REST_S_MAX, REST_S_MIN

_STARTED: Final = (OutcomeStatus.OK, OutcomeStatus.FAILED, OutcomeStatus.TIMEOUT, OutcomeStatus.DIED)


class Health:
    """What the last tasks say of their node."""

    __slots__ = ("_count", "_installation", "_rest_until", "_suspect", "ill_because")

    def __init__(self, installation: bytes) -> None:
        """Args:
        installation: this node's, whose tasks are believed.
        """
        self._installation = installation
        self.ill_because = ""
        """Why this node cannot start tasks; empty when it can."""
        self._count = 0
        """Times in a row that none could be started."""
        self._suspect = b""
        """The other installation of which alone no task could be started lately: that may be its tasks' own doing."""
        self._rest_until = 0.0

    def note(self, now: float, outcomes: Sequence[Outcome], submitter: bytes) -> float:
        """Judge tasks that ended together: what was queued behind one that died is told along with it.

        Args:
            submitter: installation whose tasks they were.

        Returns:
            For how long this node rests now, seconds; 0: nothing is new.
        """
        if all(outcome.status is OutcomeStatus.NOT_RUN for outcome in outcomes):
            is_known = bool(self._count) or submitter == self._installation
            if not is_known and self._suspect in (b"", submitter):
                self._suspect = submitter
                return 0.0
            self.ill_because = outcomes[0].error
            self._count += 1
            rest_s = min(REST_S_MAX, REST_S_MIN * 2.0 ** min(self._count - 1, 16))
            self._rest_until = now + rest_s
            return rest_s
        if any(outcome.status in _STARTED for outcome in outcomes):
            self._suspect, self._count, self.ill_because = b"", 0, ""
        return 0.0

    def is_resting(self, now: float) -> bool:
        return now < self._rest_until
