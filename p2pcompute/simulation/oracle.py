"""The oracle of a run: it looks into all nodes at once, which do not know of it.  `invariants` asks it.

What costs much is sampled: `nodes_max` nodes at a time, in turn, and long books the more seldom the longer they are.
Hostile nodes may do what they like: only what honest ones do is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Final, TypeVar

from p2pcompute.node.node import Node
from p2pcompute.simulation.mesh import Member
from p2pcompute.simulation.mesh_settings import CheckSettings
from p2pcompute.simulation.world import World, WorldJob

_K = TypeVar("_K", bound=Hashable)

BOOK_TASKS: Final = 2000
"""Books of so many tasks are looked through at each sampling, longer ones in proportion more seldom."""


class Lasting:
    """Since when each of some conditions has held, as sampled; tells those that have held for too long, once."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def over(self, now: float, keys: Iterable[_K], limit_s: float) -> list[_K]:
        since, self._since = self._since, {}
        late = []
        for key in keys:
            began = self._since[key] = since.get(key, now)
            if now - began > limit_s:
                self._since[key] = float("inf")
                late.append(key)
        return late


class Oracle:
    """What the checks of one world see, and what they remember from one look to the next."""

    def __init__(self, world: World, settings: CheckSettings) -> None:
        self.world = world
        self.settings = settings
        self._cursor = 0
        self._turns: Counter[str] = Counter()
        self.orphans, self.doubles, self.idle = Lasting(), Lasting(), Lasting()
        self.ends: dict[tuple[bytes, int], tuple[Node, int, Counter[int]]] = {}
        """(job, owner) → the owner's life, ends seen in it, and how often each task ended."""
        self.verified: dict[bytes, bool] = {}
        self.errors_seen: Counter[str] = Counter()
        self.progress: tuple[int, float, int, int] = (-1, 0.0, 0, 0)
        """Tasks added and ended; when that number last changed, and the loop's events and records of the trace then."""
        self._rng = world.rng("checks")

    @property
    def now(self) -> float:
        return self.world.now

    def honest(self) -> list[Member]:
        """Honest members whose node runs."""
        hostile = self.world.hostile
        members = self.world.mesh.members
        return [one for number, one in enumerate(members) if one.node is not None and number not in hostile]

    def jobs(self) -> list[WorldJob]:
        """Jobs of honest owners whose disks have kept what they promised."""
        hostile = self.world.hostile
        return [job for job in self.world.jobs if not job.is_lost and job.owner not in hostile]

    def sampled(self) -> list[Member]:
        """The honest members that are looked into now: all of a small mesh, of a large one the next few."""
        up = self.honest()
        most = self.settings.nodes_max
        if len(up) <= most:
            return up
        start = self._cursor % len(up)
        return (up + up)[start : start + most]

    def some(self, count: int) -> list[Member]:
        """Up to `count` honest members whose node runs, drawn anew each time."""
        up = self.honest()
        return self._rng.sample(up, min(count, len(up)))

    def key(self) -> bytes:
        """A place in the DHT's key space, drawn anew each time."""
        return self._rng.randbytes(20)

    def is_turn(self, what: str, period: int) -> bool:
        """Whether it is the turn of something that is checked at one of `period` samplings."""
        self._turns[what] += 1
        return self._turns[what] % period == 0

    def is_due(self, what: str, tasks: int) -> bool:
        """Whether it is the turn of books of this length."""
        return self.is_turn(what, max(1, tasks // BOOK_TASKS))


Check = Callable[[Oracle], Iterable[str]]
AsyncCheck = Callable[[Oracle], Awaitable[Sequence[str]]]
