"""What a thief says of itself, and the steal requests that wait at a victim.

Source: Blumofe & Leiserson 1999 for stealing by idle processors; parking a request at the victim instead of
polling follows from "new work leaves in one message" (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct

from p2pcompute.limits import HEARTBEAT_FRACTION, HEARTBEAT_PACES, LEASE_S_MIN, PARK_S, PARKED_MAX

LOCAL: Final = b"local"
"""Key of the node's own worker as a thief of its own jobs."""
COPIES_PAUSE_S: Final = 0.25
"""Between two looks at those that wait while there are only copies to be given: hundreds wait at the end of a job, and
each result that comes would have all of them looked at."""


class Thief(Struct, frozen=True, gc=False):
    """A node that asks for work."""

    key: bytes
    """Its signing key, or LOCAL."""
    installation: bytes
    boot: bytes
    """Differs after each restart of the node."""
    python: tuple[int, int]
    slots: int
    want: int
    """How many tasks it would take now, by its own estimate of a batch; at least 1."""
    request_id: int = 0
    is_idle: bool = True
    """It has a free slot and nothing waiting; only such a thief is given what other workers hold."""
    only_own: bool = False
    """It takes tasks of its own installation's jobs only."""

    @property
    def is_local(self) -> bool:
        return self.key == LOCAL


class Fit(Protocol):
    """Which nodes one job may run on, and which of them it prefers."""

    @property
    def has_preference(self) -> bool: ...

    def may_have(self, key: bytes, installation: bytes) -> bool:
        """Return whether a node may be granted tasks: False when it is known that they will not run there now."""

    def is_candidate(self, key: bytes) -> bool | None:
        """Return whether a node fits by all that is heard of it; None: nothing tells, and it may."""

    def look_further(self) -> None:
        """The nodes that are known do not suffice: look for others, in the background."""

    def rank(self, key: bytes) -> float | None:
        """Return how much a node is preferred; None while it has not said what it has."""

    def slots(self, key: bytes, slot_count: int) -> int:
        """Return how many of a node's slots one task takes, from 1 to all."""

    def known_here(self) -> bool | None:
        """Return whether this node fits; None: it must be measured first."""

    async def fits_here(self) -> bool:
        """Measure, and return whether this node fits."""


def lease_s_min(pace_s: float) -> float:
    """Return the shortest lease, seconds; of it HEARTBEAT_FRACTION passes from one heartbeat of a worker to the next.

    Args:
        pace_s: how far apart results are to come; 0: as they come.
    """
    return max(LEASE_S_MIN, HEARTBEAT_PACES * pace_s / HEARTBEAT_FRACTION)


def holders_first(
    waiting: Sequence[Thief], jobs: Collection[bytes], held: Mapping[bytes, Collection[bytes]]
) -> list[Thief]:
    """Return the thieves, those before the others that should have the inputs of these jobs already: when there is less
    work than thieves, it goes where its data are.

    Args:
        jobs: those that have files and something to give.
        held: thief → jobs that it was given tasks of.
    """
    return sorted(waiting, key=lambda thief: not any(job in held.get(thief.key, ()) for job in jobs))


class Parking:
    """Parked steal requests, one per thief, served in turn (Round Robin of RFC 5356).

    Bound: PARKED_MAX; a full parking refuses.  A request that was served leaves; the thief asks again.
    """

    def __init__(self) -> None:
        self._parked: dict[bytes, tuple[Thief, float]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def __contains__(self, key: bytes) -> bool:
        return key in self._parked

    def park(self, now: float, thief: Thief) -> bool:
        """Keep the request until it is served or PARK_S has passed; False when there is no room.

        A newer request of the same thief replaces the older one and keeps its place in the turn.
        """
        if thief.key not in self._parked and len(self._parked) >= PARKED_MAX:
            return False
        self._parked[thief.key] = (thief, now + PARK_S)
        return True

    def remove(self, key: bytes) -> None:
        self._parked.pop(key, None)

    def waiting(self, now: float) -> list[Thief]:
        """The live requests in the order in which they are to be served; forgets expired ones."""
        expired = [key for key, (_thief, until) in self._parked.items() if until <= now]
        for key in expired:
            del self._parked[key]
        return [thief for thief, _until in self._parked.values()]


class Pacing:
    """When those that wait for work are looked at."""

    def __init__(self) -> None:
        self._copies_at = -COPIES_PAUSE_S
        """When they were last while there were only copies to be given."""

    def pause_s(self, now: float, crowd_s: float, has_work: Callable[[], bool]) -> float:
        """Return for how long they need not be looked at, however many there are and whatever happens: it is nobody's
        turn, or there are only copies to be given, of what takes too long.  0: they are looked at now.

        Args:
            crowd_s: until it is the turn of the next one, because there is a crowd.
            has_work: whether there is more than copies.
        """
        if crowd_s > 0:
            return crowd_s
        if has_work():
            return 0.0
        if (pause_s := self._copies_at + COPIES_PAUSE_S - now) > 0:
            return pause_s
        self._copies_at = now
        return 0.0
