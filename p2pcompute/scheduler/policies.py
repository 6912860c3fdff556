"""Pool policies: in which order the nodes that could have work get it.

Where there is work, tasks are pulled: a node asks when it has room, so no policy can overload it, and that it asks says
more than any load that it reported a while ago.  A policy decides what is left to decide: who is served first when
several wait for the same task.  It is chosen by ``node.policy``.  As rules for *pushing* requests to servers, which is
what RSerPool defines them for, they are compared by `p2pc sim run pool`.

A policy orders elements; its first one is selected.  What it counts (turns, degradation) it counts when it is told who
was selected.  Others are found by the entry point group ``p2pc.policies``: each names a class like the ones here.

Pure: randomness is passed in.  Bound: what a policy remembers of elements that are not there any more is dropped when
there are more of these than FORGOTTEN_MAX.

Source: RFC 5356 (Dreibholz & Tüxen 2008), sections 4 and 5; delay-penalised Least Used: Dreibholz & Zhou,
"On improving the performance of RSerPool by distance-sensitive policies", with the distance in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import random

FORGOTTEN_MAX: Final = 4096
DELAY_PENALTY: Final = 0.1
"""Load that a second of delay counts as, for delay-penalised Least Used."""


@dataclass(frozen=True, slots=True)
class Element:
    """What a policy knows of a pool element."""

    key: bytes
    weight: float = 1.0
    """Capacity: above 0."""
    priority: int = 0
    """Higher is selected first."""
    load: float = 0.0
    """0 idle, 1 fully loaded, as it last said."""
    degradation: float = 0.0
    """By how much one more request raises its load."""
    delay_s: float = 0.0
    """Round trip to it."""
    report: int = 0
    """Changes with each new report of the load."""


class Policy(Protocol):
    """Orders pool elements."""

    def order(self, elements: Sequence[Element], rng: random.Random) -> list[Element]:
        """Return all of them, the one to be selected first."""

    def selected(self, element: Element) -> None:
        """Take note that this one got a request."""


@dataclass(slots=True)
class _Turns:
    """Who was selected when: elements that are equal for a policy are selected in turn."""

    last: dict[bytes, int] = field(default_factory=dict)
    count: int = 0

    def note(self, key: bytes) -> None:
        self.count += 1
        self.last.pop(key, None)
        self.last[key] = self.count
        if len(self.last) > FORGOTTEN_MAX:
            del self.last[next(iter(self.last))]

    def of(self, element: Element) -> int:
        return self.last.get(element.key, 0)


class RoundRobin:
    """Round Robin (RR, 4.1): one after the other."""

    def __init__(self) -> None:
        self._turns = _Turns()

    def _rank(self, element: Element) -> float:
        """Return what is compared before turns; lower is selected first."""
        return 0.0

    def order(self, elements: Sequence[Element], rng: random.Random) -> list[Element]:
        return sorted(elements, key=lambda element: (self._rank(element), self._turns.of(element)))

    def selected(self, element: Element) -> None:
        self._turns.note(element.key)


class WeightedRoundRobin:
    """Weighted Round Robin (WRR, 4.2): in a round each is visited as often as its weight says, in between others."""

    def __init__(self) -> None:
        self._visits: dict[bytes, float] = {}
        """Visits over weight, counted from that of others when an element came."""
        self._round = 0.0

    def order(self, elements: Sequence[Element], rng: random.Random) -> list[Element]:
        for element in elements:
            self._visits.setdefault(element.key, self._round)
        return sorted(elements, key=lambda element: self._visits[element.key] + 1 / element.weight)

    def selected(self, element: Element) -> None:
        before = self._visits.pop(element.key, self._round)
        self._round = max(self._round, before)
        self._visits[element.key] = before + 1 / element.weight
        while len(self._visits) > FORGOTTEN_MAX:
            del self._visits[next(iter(self._visits))]


class Random:
    """Random (RAND, 4.3): each with the same probability."""

    def _weight(self, element: Element) -> float:
        return 1.0

    def order(self, elements: Sequence[Element], rng: random.Random) -> list[Element]:
        # Efraimidis & Spirakis 2006: the first is drawn with a probability in proportion to its weight, and so on.
        keyed = [(_draw(rng, self._weight(element)), element) for element in elements]
        return [element for _key, element in sorted(keyed, key=lambda pair: -pair[0])]

    def selected(self, element: Element) -> None:
        """Nothing is remembered."""


def _draw(rng: random.Random, weight: float) -> float:
    draw = rng.random()
    return float(draw ** (1 / weight)) if weight > 0 else draw - 1.0


class WeightedRandom(Random):
    """Weighted Random (WRAND, 4.4): with a probability in proportion to the weight."""

    def _weight(self, element: Element) -> float:
        return element.weight


class Priority(RoundRobin):
    """Priority (PRI, 4.5): the highest priority; of equal ones in turn."""

    def _rank(self, element: Element) -> float:
        return -element.priority


class LeastUsed(RoundRobin):
    """Least Used (LU, 5.1): the lowest load; of equal ones in turn."""

    def _rank(self, element: Element) -> float:
        return element.load


class LeastUsedWithDegradation(RoundRobin):
    """Least Used with Degradation (LUD, 5.2): as LU, and each selection adds the element's degradation to its load
    until it reports a new one: what was selected since the report is counted."""

    def __init__(self) -> None:
        super().__init__()
        self._added: dict[bytes, tuple[int, float]] = {}
        """Key → (report, degradation since)."""

    def _rank(self, element: Element) -> float:
        report, added = self._added.get(element.key, (element.report, 0.0))
        return element.load + (added if report == element.report else 0.0)

    def selected(self, element: Element) -> None:
        super().selected(element)
        report, added = self._added.pop(element.key, (element.report, 0.0))
        kept = added if report == element.report else 0.0
        self._added[element.key] = element.report, kept + element.degradation
        if len(self._added) > FORGOTTEN_MAX:
            del self._added[next(iter(self._added))]


class PriorityLeastUsed(RoundRobin):
    """Priority Least Used (PLU, 5.3): the lowest load after one more request, so that the same load weighs less on an
    element that one request loads little."""

    def _rank(self, element: Element) -> float:
        return element.load + element.degradation


class RandomizedLeastUsed(Random):
    """Randomized Least Used (RLU, 5.4): with a probability in proportion to what is left of the capacity."""

    def _weight(self, element: Element) -> float:
        return max(0.0, 1.0 - element.load)


class LeastUsedDelayPenalised(RoundRobin):
    """Least Used with Delay Penalty Factor (LU-DPF): as LU, with the delay as further load."""

    def _rank(self, element: Element) -> float:
        return element.load + DELAY_PENALTY * element.delay_s


POLICIES: Final[dict[str, type[Policy]]] = {
    "round-robin": RoundRobin,
    "weighted-round-robin": WeightedRoundRobin,
    "random": Random,
    "weighted-random": WeightedRandom,
    "priority": Priority,
    "least-used": LeastUsed,
    "least-used-with-degradation": LeastUsedWithDegradation,
    "priority-least-used": PriorityLeastUsed,
    "randomized-least-used": RandomizedLeastUsed,
    "least-used-delay-penalised": LeastUsedDelayPenalised,
}
DEFAULT: Final = "round-robin"
