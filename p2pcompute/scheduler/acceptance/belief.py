"""Who may compute tasks of a job, and whose word is the truth; with everything that `Acceptance` keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from p2pcompute.scheduler.acceptance.decider import Decider
from p2pcompute.scheduler.books import CheckedJob, Lease, OwnedJob
from p2pcompute.scheduler.checked import Event, Record, Rule
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification.book import Verifier, Worker

if TYPE_CHECKING:
    import random


CUSTODY_CLAIMS: Final = 2
"""Claims of each task that a custodian gathers while its owner is away: most tasks need no more."""


class LevelOf(Protocol):
    """How far an installation is trusted here."""

    def __call__(self, installation: bytes, /) -> Level: ...


def everybody_is_trusted(_installation: bytes, /) -> Level:
    """The levels of an owner that checks nothing."""
    return Level.TRUSTED


class Belief:
    """The books of all jobs of one owner."""

    def __init__(
        self,
        level_of: LevelOf = everybody_is_trusted,
        rng: random.Random | None = None,
        cluster_of: Callable[[bytes], bytes | None] = lambda _installation: None,
    ) -> None:
        """Args:
        level_of: how far an installation is trusted.
        rng: draws who computes what again; None only where everybody is trusted.
        cluster_of: what makes an installation dependent on others, as a common inviter: those who share it do not
            check one another.  The installation itself when nobody but the founder or somebody trusted vouches for it.
        """
        self.level_of = level_of
        self._rng = rng
        self._cluster_of = cluster_of
        self.are_alike: Callable[[bytes, bytes, bytes], bool] = lambda _spec, _one, _other: False
        """Whether two values that differ are as good as each other, by a job's encoded spec."""
        self._core: Decider | None = None
        self.verifiers: dict[Rule, Verifier] = {}
        self._joined: dict[Rule, dict[Worker, None]] = {}
        self._places: dict[Rule, list[tuple[CheckedJob, int] | None]] = {}
        """By number in the verifier."""
        self._checks: dict[Rule, dict[int, tuple[CheckedJob, int]]] = {}
        """By number of a known-answer check."""
        self._settled_at: dict[Rule, int] = {}
        self._accused: dict[Rule, frozenset[Worker]] = {}
        """Members that wait for what trusted nodes find, as of the last `tick`."""
        self.records: dict[bytes, Record] = {}
        self.ended: dict[bytes, None] = {}
        """Jobs that are complete, and tasks of them are computed once more."""
        self.held_bytes = 0
        self._next_lane = 1
        self._now = 0.0
        self._arbiter_at = -inf
        """When a trusted node that asks for work was last known."""
        self._began_at = inf
        """When the first member took part in this life."""
        self.wall: Callable[[], float] = lambda: 0.0
        """Unix seconds now: when something remarkable is told of a node."""
        self.changed: dict[bytes, None] = {}
        """Nodes of which more is known than was stored."""
        self.can_load = False
        """Inputs of tasks that are done can be brought back: they need not all be kept here."""
        self.kept_bytes = 0
        self._kept: dict[tuple[bytes, int], CheckedJob] = {}
        """Inputs of tasks that are done, the one done first first."""
        self._reopening: dict[tuple[bytes, int], str] = {}
        """Results that are believed no longer, whose inputs are being brought back, and why."""
        self.revoked_count = 0
        self.disputes_count = 0

    def bind(self, core: Decider) -> None:
        """Work for this owner."""
        self._core = core

    @property
    def _owner(self) -> Decider:
        assert self._core is not None
        return self._core

    def may_run(self, job: OwnedJob, installation: bytes) -> bool:
        """Whether tasks of a job may be given to an installation."""
        level = self.level_of(installation)
        if level is Level.TRUSTED:
            return True
        if level is Level.BLOCKED or job.envelope.terms.trust == "trusted":
            return False
        if level is Level.STRANGER and job.envelope.terms.trust != "any":
            return False
        return not self.ban_of(installation)

    def ban_of(self, installation: bytes) -> str:
        """Return why an installation gets no tasks because of what it claimed; empty: it gets some."""
        record = self.records.get(installation)
        is_trusted = self.level_of(installation) is Level.TRUSTED
        return "" if record is None or is_trusted else record.banned

    def believes(self, job: OwnedJob, installation: bytes) -> bool:
        """Whether results of an installation are accepted as they come."""
        if self.level_of(installation) is Level.TRUSTED or job.envelope.terms.verify == "none":
            return True
        return not (job.is_own or job.is_checked)

    def _is_trusted(self, job: OwnedJob, lease: Lease) -> bool:
        """Whether what comes of a lease is the truth."""
        return lease.thief == LOCAL or self.believes(job, lease.installation)

    @staticmethod
    def _rule_of(job: OwnedJob) -> Rule | None:
        """Return the rule by which results of a job are checked; None: they are not.

        For the owner of a job that it keeps, a custodian gathers claims that agree: what they are worth, he decides.
        """
        rule = Rule.of(job.envelope.terms)
        return (
            rule if rule is None or job.is_own else Rule("arbitrate", rule.error_ppb, rule.replicas or CUSTODY_CLAIMS)
        )

    def record(self, installation: bytes) -> Record:
        """Return what is known of a node, to be added to."""
        return self.records.setdefault(installation, Record())

    def _tell(self, installation: bytes, checked: CheckedJob, index: int, what: str) -> None:
        event = Event(int(self.wall()), checked.job.envelope.job_id, index, what)
        self.record(installation).events.append(event)
        self.changed[installation] = None

    def _checked_jobs(self) -> Iterator[CheckedJob]:
        for job in self._owner.jobs.values():
            if job.checked is not None:
                yield job.checked
