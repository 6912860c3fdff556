"""Joins what nodes have (`resources`) with the index of the group (`dht`): this node's part in it, and searches.

In a group larger than one table of contacts this node is measured, once an hour and when an application has come or
gone for which somebody asked lately, and described to the index; then questions and jobs that ask for something are
taken to nodes that the index names before those that are known.  What it names are hints: each node is asked itself.
When the index is out of reach, known nodes are asked as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from p2pcompute.dht.capacity import Feature
from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import INDEX_WANT_MAX, SEEK_CHANNELS_MAX
from p2pcompute.node.network import Network
from p2pcompute.node.placement import JobFit
from p2pcompute.resources.attributes import values
from p2pcompute.resources.classes import bits_of, features_asked, features_of, mask_of, tuple_of
from p2pcompute.resources.expressions import Expression
from p2pcompute.resources.matching import Requirement
from p2pcompute.resources.service import Candidate, Resources
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.stealing import Fit
from p2pcompute.scheduler.terms import JobEnvelope

DESCRIBE_AGAIN_S: Final = 3600.0
"""What changes the features of a machine is rare: a GPU is added, an engine is installed."""
SEEK_S: Final = 10.0
SEEK_WANT: Final = 64
"""Nodes that are looked for on behalf of a job, and how long."""
SEEK_LOOKUPS: Final = 8
"""Places of the group that are looked at for nodes of any kind: about 30 requests each."""
SEEK_IN_VAIN: Final = 2
"""So many of them in a row where everybody is known end the search."""
GOLDEN: Final = 0.6180339887498949
"""Step from one place to the next, as a part of all keys: however many there are, they lie evenly spread."""


Work = tuple[int, Iterable[bytes], Iterable[bytes]]
"""Bits of the features that a job asks for, who has done tasks of it, and who has refused some."""


class Capacity:
    """One node's view of what its group has."""

    def __init__(self, host: Host, scope: TaskScope, network: Network, resources: Resources) -> None:
        self._host = host
        self._scope = scope
        self._network = network
        self._resources = resources
        self._place = host.rng.stream("seek").random()
        """Where nodes were looked for last, as a part of all keys."""
        self._described: Dht | None = None
        self._has_changed = asyncio.Event()
        self.worked: Callable[[], Iterable[Work]] = tuple
        """Returns what others have shown by the tasks that they were given."""

    def peers_changed(self) -> None:
        """Look whether the group has become so large that the index is of use."""
        dht = self._network.dht
        if dht is not None and dht is not self._described and dht.index.is_used:
            self._described = dht
            self._scope.spawn(self._describe(dht), "describe-to-index")

    def node_changed(self) -> None:
        """What this node has is not what it was: say so now."""
        self._has_changed.set()

    async def search(self, expressions: Sequence[Expression], want: int, time_s: float) -> list[Candidate]:
        """Return nodes that the index names for conditions that must all be true; empty when it can name none."""
        features = _features(features_asked(expressions))
        if self._network.dht is None or not features:
            return []
        standing = self._standing(mask_of([feature.name for feature in features]))
        found = await self._network.dht.index.search(features, min(want, INDEX_WANT_MAX), time_s, standing=standing)
        return [(contact.key, (contact.address,)) for contact in found]

    def _standing(self, mask: int) -> Callable[[bytes], bool | None]:
        """What nodes have shown of having these features, by key: done with work that asked for them, or refused it."""
        has_done: dict[bytes, None] = {}
        has_refused: dict[bytes, None] = {}
        for asked, done, refused in self.worked():
            if asked & mask == mask:
                has_done.update(dict.fromkeys(done))
                has_refused.update(dict.fromkeys(refused))
        return lambda key: True if key in has_done else False if key in has_refused else None

    def class_of(self, key: bytes) -> int | None:
        """Return the class of a contact, which is not verified; None where none is known."""
        dht = self._network.dht
        contact = None if dht is None or not dht.index.is_used else dht.knows(key)
        return None if contact is None else contact.class_bits

    def seek(self, requirement: Requirement) -> None:
        """Make the nodes known, in the background, that the index names for a job of this node.

        Where it knows nothing of what is asked for, any nodes.
        """
        expressions = [clause.expression for clause in requirement.clauses]
        dht = self._network.dht
        if dht is None or not dht.index.is_used:
            return
        if features_asked(expressions):
            self._scope.spawn(self._seek(expressions), "seek-nodes")
        else:
            self.seek_any(SEEK_WANT)

    async def _seek(self, expressions: Sequence[Expression]) -> None:
        for key, addresses in await self.search(expressions, SEEK_WANT, SEEK_S):
            self._meet(key, addresses[0])

    def seek_any(self, want: int) -> None:
        """Make about `want` nodes known, in the background, whatever they have.

        A table of contacts holds but a part of a large group, and of those who do not know the owner either, some wait
        for work at nodes that have none to pass on.
        """
        dht = self._network.dht
        if dht is not None and len(self._network.channels.all()) < SEEK_CHANNELS_MAX:
            self._scope.spawn(self._seek_any(dht, min(want, SEEK_WANT)), "seek-nodes")

    async def _seek_any(self, dht: Dht, want: int) -> None:
        found = in_vain = 0
        try:
            async with self._host.clock.timeout(SEEK_S):
                for _ in range(SEEK_LOOKUPS):
                    self._place = (self._place + GOLDEN) % 1.0
                    near = await dht.find(int(self._place * 2.0**64).to_bytes(8).ljust(DHT_ID_BYTES, b"\0"))
                    new = sum(self._meet(contact.key, contact.address) for contact in near)
                    found, in_vain = found + new, 0 if new else in_vain + 1
                    if found >= want or in_vain >= SEEK_IN_VAIN:
                        return
        except TimeoutError:
            return

    def _meet(self, key: bytes, address: Address) -> bool:
        """Make a node known; False when it is."""
        network = self._network
        if key in network.peers or key in network.peers.refused:
            return False
        network.peers.meet(key, address)
        network.on_peer(key)
        return True

    async def _describe(self, dht: Dht) -> None:
        """Measure this node, and again each hour, as long as it is in this group."""
        said: tuple[int, list[str]] | None = None
        while self._network.dht is dht:
            self._has_changed.clear()
            known = values(await self._resources.own(), self._host.clock.wall())
            now = tuple_of(known), features_of(known)
            if now != said and self._network.dht is dht:
                said = now
                dht.describe_capacity(now[0], _features(now[1]))
            with contextlib.suppress(TimeoutError):
                async with self._host.clock.timeout(DESCRIBE_AGAIN_S):
                    await self._has_changed.wait()


def work_shown(books: Iterable[JobBook], fit_of: Callable[[JobEnvelope], Fit | None]) -> Iterator[Work]:
    """Return what other nodes have shown by the tasks of jobs: see `Capacity.worked`."""
    for book in books:
        fit = fit_of(book.job.envelope) if book.took or book.refused else None
        if isinstance(fit, JobFit):
            yield fit.mask, book.took, book.refused


def _features(names: Sequence[str]) -> list[Feature]:
    return [Feature(name, bits_of(name)) for name in names]
