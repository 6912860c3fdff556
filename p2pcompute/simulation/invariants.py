"""What must hold in every run, seen by an oracle that looks into all nodes at once.

Three tables of small functions by name.  ALWAYS holds at any moment, faults or not.  CALM holds once nothing has been
wrong for `settle_s`.  EVENTUALLY must come true within a bound after everything has healed.  Each function tells what
is broken, in words; `Checks` reports it to the world as "name: what".

What costs much is sampled: `nodes_max` nodes at a time, in turn, and long books the more seldom the longer they are.
Hostile nodes may do what they like: only what honest ones do is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.simulation import invariants_always, invariants_eventually
from p2pcompute.simulation.invariants_always import Books
from p2pcompute.simulation.mesh import Member

if TYPE_CHECKING:
    from p2pcompute.node.node import Node
    from p2pcompute.simulation.world import World, WorldJob

_K = TypeVar("_K", bound=Hashable)

Check = Callable[["Checks"], Iterable[str]]
AsyncCheck = Callable[["Checks"], Awaitable[Sequence[str]]]

ALWAYS: Final[dict[str, Check]] = invariants_always.ALWAYS
CALM: Final[dict[str, Check]] = invariants_always.CALM
EVENTUALLY: Final[dict[str, AsyncCheck]] = invariants_eventually.EVENTUALLY
AT_START: Final = ("recovered", "leases")
"""What is checked when a node starts, and of all that it does from then on."""
NAMES: Final = (*ALWAYS, *CALM, *AT_START, *EVENTUALLY)

BOOK_TASKS: Final = 2000
"""Books of so many tasks are looked through at each sampling, longer ones in proportion more seldom."""
REPORTS_MAX: Final = 3
"""Reports of one invariant; the first is what matters."""


class CheckSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is checked, how often, and where the bounds lie."""

    every_s: Annotated[float, Meta(ge=0.01, description="time between two looks at the nodes, seconds")] = 0.5
    nodes_max: Annotated[int, Meta(ge=1, description="nodes looked into at once, in turn")] = 20
    off: Annotated[tuple[str, ...], Meta(description=f"what is not checked, of {', '.join(NAMES)}")] = ()
    wrong_values: Annotated[bool, Meta(description="a wrong value of a hostile node breaks the run too")] = False
    settle_s: Annotated[float, Meta(ge=0, description="from the end of all faults to calm, seconds")] = 75.0
    stall_s: Annotated[
        float, Meta(ge=0, description="in calm: longest life of a lease without holder, or of a repeated one, seconds")
    ] = 8.0
    idle_s: Annotated[float, Meta(ge=0, description="in calm: longest idleness beside visible work, seconds")] = 8.0
    over_s: Annotated[float, Meta(ge=0, description="within which all jobs end after the last fault, seconds")] = 900.0
    rest_s: Annotated[float, Meta(ge=0, description="within which all comes to rest after the last job, seconds")] = (
        240.0
    )
    watch_s: Annotated[float, Meta(gt=0, description="how long the rest is watched for messages, seconds")] = 60.0
    meet_s: Annotated[float, Meta(ge=0, description="within which peers know one another again, seconds")] = 200.0
    small_group: Annotated[int, Meta(ge=0, description="up to so many nodes, all must know one another")] = 20
    chatter: Annotated[
        float, Meta(gt=0, description="at rest: messages per second for each contact and channel of a node")
    ] = 0.3
    events_per_s: Annotated[float, Meta(gt=0, description="events per second and node without any progress")] = 200.0
    lookups: Annotated[int, Meta(ge=0, description="lookups made at the end")] = 40
    lookup_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="part of the true nearest nodes that those lookups must find; who misses some may try again",
        ),
    ] = 0.999
    probes: Annotated[int, Meta(ge=0, description="records put and got at the end, and nodes stopped")] = 4

    def __post_init__(self) -> None:
        if unknown := [name for name in self.off if name not in NAMES]:
            raise ValueError(f"there is no check {unknown[0]!r} to be `off`, only {', '.join(NAMES)}")


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


class Checks:
    """The oracle of one world.  `always` and `eventually` are called by the world, `starting` and `started` around
    each start of a node."""

    def __init__(self, world: World, settings: CheckSettings) -> None:
        self.world = world
        self.settings = settings
        self.calm_since = float("inf")
        """From here on nothing is wrong any more; CALM is checked after `settle_s`."""
        self._reports: Counter[str] = Counter()
        self._cursor = 0
        self._turns: Counter[str] = Counter()
        self.orphans, self.doubles, self.idle = Lasting(), Lasting(), Lasting()
        self.ends: dict[tuple[bytes, int], tuple[Node, int, Counter[int]]] = {}
        """(job, owner) → the owner's life, ends seen in it, and how often each task ended."""
        self.verified: dict[bytes, bool] = {}
        self.errors_seen: Counter[str] = Counter()
        self.progress: tuple[int, float, int, int] = (-1, 0.0, 0, 0)
        """Tasks added and ended; when that number last changed, and the loop's events and records of the trace then."""
        self._durable: dict[int, dict[bytes, Books]] = {}
        self._rng = world.rng("checks")

    # --- called by the world ----------------------------------------------------------------------

    def always(self) -> None:
        """Look at what must hold at any moment, and in calm times at what must hold then."""
        for name, check in ALWAYS.items():
            self._report(name, check)
        if self.world.now >= self.calm_since + self.settings.settle_s:
            for name, check in CALM.items():
                self._report(name, check)
        self._cursor += self.settings.nodes_max

    def calm(self) -> None:
        """Nothing is wrong from now on."""
        self.calm_since = min(self.calm_since, self.world.now)

    async def eventually(self) -> None:
        """Wait for what must come true after everything has healed.  Stops some nodes at the end."""
        self.calm()
        for name, check in EVENTUALLY.items():
            if name not in self.settings.off:
                self._note(name, await check(self))

    def starting(self, member: Member) -> None:
        """A node is about to start on what its disk has kept."""
        try:
            self._durable[member.host.number] = invariants_always.durable_books(member.host.disk)
        except RemoteProtocolError:
            self._durable.pop(member.host.number, None)  # the disk is damaged: what the node makes of it is its own

    def started(self, member: Member) -> None:
        """A node has started: it knows what was durable, and nothing else; from now on its grants, and the records that
        it takes, are watched."""
        books = self._durable.pop(member.host.number, None)
        if member.node is None:
            return
        if books is not None and "recovered" not in self.settings.off:
            self._note("recovered", invariants_always.recovered(member, books))
        if "leases" not in self.settings.off:
            invariants_always.watch_leases(member, lambda text: self._note("leases", [text]))
        if "records" not in self.settings.off:
            invariants_always.watch_records(member, lambda text: self._note("records", [text]))

    # --- for the checks ---------------------------------------------------------------------------

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

    def _report(self, name: str, check: Check) -> None:
        if name in self.settings.off:
            return
        try:
            self._note(name, check(self))
        except Exception as error:  # noqa: BLE001 - what cannot even be looked at is broken
            self._note(name, [f"{type(error).__name__} on looking: {error}"])

    def _note(self, name: str, found: Iterable[str]) -> None:
        for text in found:
            self._reports[name] += 1
            if self._reports[name] <= REPORTS_MAX:
                self.world.problem(f"{name}: {text}")
