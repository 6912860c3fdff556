"""What every experiment gives for a seed, and who may look on while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

PROBLEMS_MAX: Final = 20
"""Problems of one run that are kept."""
EVENTS_MAX: Final = 10**12
"""Events of one run: its virtual time is what ends it."""


@dataclass(frozen=True)
class RunResult:
    """What one run gave."""

    scenario: str
    seed: int
    nodes: int
    trace_hash: str
    events: int
    """Of the event loop."""
    messages: int
    """Datagrams and frames sent."""
    wall_s: float
    simulated_s: float
    metrics: dict[str, float]
    fired: dict[str, int]
    """Faults that took effect, by kind."""
    problems: tuple[str, ...]
    """Broken invariants; empty: the seed passed."""
    notes: tuple[str, ...] = ()
    """What whoever reads the figures should know."""


class Watch:
    """Somebody who looks on.  This one does nothing; override what is wanted."""

    def progress(self, simulated_s: float, wall_s: float) -> None:
        """Called now and then."""

    def record(self, record: dict[str, Any]) -> None:
        """Called with every record of the schema p2pc.trace/1."""
