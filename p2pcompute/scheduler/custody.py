"""Who coordinates a job while its owner is away: pure rules.

The envelope of a job names its coordinators by rank: the owner (0), then its custodians.  An *epoch* is a number that
names one of them, its rank modulo their number; the higher epoch counts.  A custodian that has heard of no coordinator
for its patience takes over with a higher epoch; an owner that hears of an epoch that is not its own takes the next one
that is.  Epochs decide who leases tasks and whom workers report to.  They never decide whether a result counts: a good
one is taken by every coordinator, and judged by the owner alone.

Where the owner checks what members of the group find, a custodian has each task computed until two of them agree
(`Acceptance`), and tells him who claimed what.  He weighs that as if he had given out the tasks himself, provided that
he trusts the custodian, which chose who got them; else the first claim of each counts.

Source: RPC-V (Djilali et al. 2004) for coordinators that replace one another and log on both sides; numbers that name
their proposer as in Paxos (Lamport 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from p2pcompute.host.interfaces import Address
from p2pcompute.limits import CUSTODY_BEAT_S, CUSTODY_LEAVING_S, LEASE_S_MIN
from p2pcompute.scheduler.checkpoints import Saved
from p2pcompute.scheduler.terms import JobEnvelope

NEVER = float("-inf")
SILENT_S = CUSTODY_BEAT_S + 2.0
"""A coordinator of which nothing has come for so long is away although there is a channel: it says something sooner."""
EPOCH_JUMP_MAX = 10_000
"""An epoch so far above what is known is made up: takeovers take half a minute each."""


def next_epoch(known: int, rank: int, count: int) -> int:
    """Return the lowest epoch above `known` that names the coordinator of this rank, of `count` coordinators."""
    return known + 1 + (rank - known - 1) % count


def coordinator_of(job: JobEnvelope, epoch: int) -> bytes:
    """Return the key of the node that an epoch names."""
    coordinators = job.coordinators
    return coordinators[epoch % len(coordinators)]


def patience_s(rank: int) -> float:
    """Return how long the custodian of this rank waits for news of a coordinator, in seconds.

    One lease for the first, then in steps so that the first has taken over before the next would; the third, and all
    after it, wait for almost two.
    """
    return LEASE_S_MIN * min(1.0 + 0.4 * (rank - 1), 1.8)


def first_task(size: int, rank: int, custodians: int) -> int:
    """Return with which task of a job the custodian of this rank begins; it goes on downwards, and from 0 to the last.

    Coordinators that are cut off from one another do not begin with the same ones: the owner goes upwards from 0, the
    first custodian begins with the last task, the second of two in the middle.
    """
    return max(0, size - 1 - size * (rank - 1) // max(1, custodians))


@dataclass(frozen=True, slots=True)
class Outlook:
    """Who coordinates a job that is kept here for another node, and who will."""

    coordinator: bytes
    is_owner: bool
    away_since: float | None = None
    """When it was heard last; None: it is there."""
    next: bytes | None = None
    """Who takes over, of those that can be heard here; None: it is not away, or nobody is there."""
    next_at: float = 0.0
    """When."""


@dataclass(slots=True, kw_only=True)
class Charge:
    """A job with several coordinators, as one of its keepers sees it."""

    job: JobEnvelope
    rank: int | None
    """Of this node; None: it only looks on, by a ticket."""
    heard: float
    """When the coordinator was last heard of."""
    goodbye: float = NEVER
    """When it last said that it leaves."""
    epoch: int = 0
    """The highest that was heard of."""
    is_acting: bool = False
    """This node leases the job's tasks."""
    ticket: bytes = b""
    addresses: dict[bytes, tuple[Address, ...]] = field(default_factory=dict)
    """Where keepers are, as the ticket says."""
    is_following: bool = False
    """A task keeps the replica up to date."""
    is_fetching: bool = False
    """A task brings files of it here."""
    is_settling: bool = False
    """It begins or ends to act."""
    rows: int = 0
    """Results that came of the fact that is next."""
    relays: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Keeper → how many of the claims that it took were heard of, and of how many ends of the next."""
    saved: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """Keeper → (process of it, number of the last change of what tasks have saved that was heard of)."""
    saved_blobs: dict[int, Saved] = field(default_factory=dict)
    """Task → what it has saved, whose blob is still to be brought here."""
    is_fetching_saved: bool = False
    """A task brings these blobs here."""
    synced: dict[bytes, float] = field(default_factory=dict)
    """Keeper → when it last asked."""
    asked: dict[bytes, float] = field(default_factory=dict)
    """Custodian → when it was last asked to keep the job."""
    unheard: dict[bytes, None] = field(default_factory=dict)
    """Custodians that have not said what they took since this owner started."""
    collecting: dict[bytes, None] = field(default_factory=dict)
    """Keepers whose claims are being fetched."""
    beat: float = NEVER
    """When the acting custodian last said so."""

    @property
    def coordinator(self) -> bytes:
        return coordinator_of(self.job, self.epoch)

    def others(self, own_key: bytes) -> list[bytes]:
        """Return the other coordinators by rank."""
        return [key for key in self.job.coordinators if key != own_key]

    def hear(self, now: float, key: bytes, epoch: int) -> bool:
        """Note that a keeper knows this epoch; True when it is news."""
        is_news = epoch > self.epoch
        if is_news:
            self.epoch, self.goodbye = epoch, NEVER
        # What was on its way when it said goodbye says nothing; if it is there all the same, it answers a knock.
        if key == self.coordinator and now - self.goodbye >= CUSTODY_LEAVING_S * (self.rank or 0):
            self.heard = now
        return is_news

    def goes_before(self, epoch: int) -> bool:
        """Whether this node, which coordinates the job, has no less right to than whom a higher epoch names.

        It takes a higher one yet when it cannot hear of that node and workers do.  Not the other way round: each would
        do so in turn while a worker is in reach of both.
        """
        return self.is_acting and self.rank is not None and self.rank <= epoch % len(self.job.coordinators)

    def leaving(self, now: float) -> None:
        """The coordinator has said goodbye: it may come back at once, and is not waited for long."""
        self.goodbye = now
        if self.rank:
            self.heard = min(self.heard, now - patience_s(self.rank) + CUSTODY_LEAVING_S * self.rank)

    def outlook(self, now: float, own_key: bytes, is_up: Callable[[bytes], bool]) -> Outlook:
        """Say who coordinates the job, and whom everybody waits for when that node is away."""
        coordinator, is_owner = self.coordinator, self.coordinator == self.job.signer
        if coordinator == own_key or (is_up(coordinator) and now - self.heard < SILENT_S):
            return Outlook(coordinator, is_owner)
        for rank, key in enumerate(self.job.coordinators):
            if rank and key != coordinator and (key == own_key or is_up(key)):
                return Outlook(coordinator, is_owner, self.heard, key, self.heard + patience_s(rank))
        return Outlook(coordinator, is_owner, self.heard)

    def is_overdue(self, now: float) -> bool:
        """Whether this custodian should take over."""
        return bool(self.rank) and not self.is_acting and now - self.heard >= patience_s(self.rank or 0)

    def take_over(self) -> int:
        """Coordinate from now on; returns the new epoch."""
        assert self.rank is not None
        self.epoch = next_epoch(self.epoch, self.rank, len(self.job.coordinators))
        self.is_acting = True
        return self.epoch
