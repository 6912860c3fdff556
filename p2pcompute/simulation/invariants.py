"""What must hold in every run, seen by an oracle that looks into all nodes at once.

Three tables of small functions by name.  ALWAYS holds at any moment, faults or not.  CALM holds once nothing has been
wrong for `settle_s`.  EVENTUALLY must come true within a bound after everything has healed.  Each function tells what
is broken, in words; `Checks` reports it to the world as "name: what".

What costs much is sampled: `nodes_max` nodes at a time, in turn, and long books the more seldom the longer they are.
Hostile nodes may do what they like: only what honest ones do is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.simulation import invariants_always, invariants_eventually
from p2pcompute.simulation.invariants_always import Books
from p2pcompute.simulation.mesh import Member
from p2pcompute.simulation.mesh_settings import CheckSettings
from p2pcompute.simulation.oracle import AsyncCheck, Check, Oracle
from p2pcompute.simulation.world import World

ALWAYS: Final[dict[str, Check]] = invariants_always.ALWAYS
CALM: Final[dict[str, Check]] = invariants_always.CALM
EVENTUALLY: Final[dict[str, AsyncCheck]] = invariants_eventually.EVENTUALLY
AT_START: Final = ("recovered", "leases")
"""What is checked when a node starts, and of all that it does from then on."""
REPORTS_MAX: Final = 3
"""Reports of one invariant; the first is what matters."""


class Checks(Oracle):
    """All checks of one world.  `always` and `eventually` are called by the run, `starting` and `started` around
    each start of a node."""

    def __init__(self, world: World, settings: CheckSettings) -> None:
        super().__init__(world, settings)
        self.calm_since = float("inf")
        """From here on nothing is wrong any more; CALM is checked after `settle_s`."""
        self._reports: Counter[str] = Counter()
        self._durable: dict[int, dict[bytes, Books]] = {}

    # --- called by the run ------------------------------------------------------------------------

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

    # --- one check ---------------------------------------------------------------------------------

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
