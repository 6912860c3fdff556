"""What the owner's service keeps of a job beside the core's books.

Who watches it, what is pinned and stored for it, and what people are shown of its course.

Bounds: JOB_NODES_MAX nodes, the one that came first is forgotten; READERS_MAX readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome
from p2pcompute.limits import JOB_NODES_MAX
from p2pcompute.scheduler.books import OwnedJob, TaskEnd
from p2pcompute.scheduler.fairness import Usage
from p2pcompute.store.journal import JobRecord

RATE_TAU_S = 10.0
"""Time constant of the rates that people see."""

Listener = Callable[[Sequence[TaskEnd]], None]


class Rate:
    """Events per second, exponentially averaged over RATE_TAU_S."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._at = 0.0
        self._value = 0.0

    def add(self, now: float) -> None:
        self._value = self.at(now) + 1 / RATE_TAU_S
        self._at = now

    def at(self, now: float) -> float:
        return self._value * max(0.0, 1 - (now - self._at) / RATE_TAU_S) if self._value else 0.0


@dataclass(slots=True)
class JobBook:
    """What the service keeps beside the core's books."""

    record: JobRecord
    job: OwnedJob
    next_fact: int = 0
    next_relay: int = 0
    """Of another node's job: claims that were taken for it."""
    listeners: list[Listener] = field(default_factory=list)
    rates: dict[bytes, Rate] = field(default_factory=dict)
    took: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    """Node → good ends there in this life of the node, and their run time together."""
    refused: dict[bytes, None] = field(default_factory=dict)
    """Other nodes that have refused tasks of it in this life of the node."""
    usage: Usage = field(default_factory=Usage)
    """Slot time of tasks that ended lately, of each at most what counts as lately."""
    room: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while more tasks may be added."""
    kept: dict[BlobRef, None] = field(default_factory=dict)
    """Blobs pinned for it in this life of the node."""
    unfetched: dict[BlobRef, None] = field(default_factory=dict)
    """Of another node's job: blobs that may have to be brought here."""
    kept_bytes: int = 0
    """Of another node's job: what is kept of it here, but for cookies."""
    readers: dict[bytes, None] = field(default_factory=dict)
    """Nodes that have shown a ticket for it; the last READERS_MAX."""
    lost_bytes: int = 0
    """Of what is kept of attempts that were lost."""

    def note_end(self, now: float, node: bytes) -> None:
        """A task has ended on a node."""
        self.rates.setdefault(node, Rate()).add(now)
        _bound(self.rates)

    def note_good(self, node: bytes, outcome: Outcome) -> None:
        """A task has ended well there."""
        count, took_s = self.took.get(node, (0, 0.0))
        self.took[node] = count + 1, took_s + outcome.runtime_s
        _bound(self.took)

    def note_refused(self, node: bytes) -> None:
        """Another node has refused a task."""
        self.refused[node] = None
        _bound(self.refused)


def _bound(nodes: dict[bytes, Any]) -> None:
    if len(nodes) > JOB_NODES_MAX:
        del nodes[next(iter(nodes))]
