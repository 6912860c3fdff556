"""Which results an owner believes: the rule, and who computes a task again for its sake.

    who computed it                     what its result is
    ----------------------------------  --------------------------------------------------------------------------
    this node, or one trusted here      the truth: accepted at once, and the verdict on what others claimed
    a member                            a claim: it is weighed against those of others (`trust.verification`), and
                                        accepted when enough of them agree, or a trusted node finds the same
    somebody blocked or banned here     nothing: it gets no tasks

Why: members were let in by somebody, which says that they may take part, not that their machines compute rightly.  The
machine's owner can say so of a node (`p2pc trust set NODE trusted`, `p2pc invite --mine`); then it costs nothing, since
a job of which no member has asked for tasks has no books here.

What a member is given looks the same whether it is the first that computes a task, a copy to compare with, or one to
prove itself with: attempt 1 and a payload.  A copy is given out only after the first claim has arrived.  A trusted
node decides conflicts before anything else of the job, begins what nobody has begun, and then computes what is claimed
and not credible yet: one run of it settles a task.

A task that a member has begun is *held* until it is accepted: it is neither ready nor leased in `OwnerCore`.  It may
be computed by several nodes at once, whose leases are here.  Failures that members tell are not believed alone: after
as many as the job allows, only a trusted node decides whether a task fails.

Pure, as `OwnerCore`, which calls it and performs what follows.

Bounds: VERIFY_WORKERS_MAX workers of each rule; VERIFY_HELD_BYTES_MAX bytes of outputs and payloads that wait: then
members begin no further tasks; EVIDENCE_MAX remarkable events of each node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from p2pcompute.errors import InvariantViolation
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import (
    GRANT_BYTES_MAX,
    VERIFY_HELD_BYTES_MAX,
    VERIFY_KEPT_BYTES_MAX,
    VERIFY_RULES_MAX,
    VERIFY_WORKERS_MAX,
)
from p2pcompute.scheduler.checked import CheckedJob, Decider, Event, Output, Record, Rule
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.stragglers import STRAGGLER_FACTOR
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification import make_verifier
from p2pcompute.trust.verification.arbitrate import NOTHING_KNOWN, Arbitrate, ArbitratePolicy
from p2pcompute.trust.verification.book import (
    Accepted,
    AskTrusted,
    Banned,
    Basis,
    Digest,
    Effect,
    Nondeterministic,
    Recheck,
    Revoked,
    Verifier,
    Why,
    Withdrawn,
    Worker,
    votes,
)

if TYPE_CHECKING:
    import random

    from p2pcompute.scheduler.owner import Lease, OwnedJob
    from p2pcompute.scheduler.stealing import Thief

ARBITER_PATIENCE_S: Final = 60.0
"""Without a trusted node for so long, conflicts are decided by more members."""
DISPUTED_S: Final = 120.0
"""Results differ, nobody else may compute the task, and this has been so for so long: nobody can say what is right."""
DISPUTED: Final = "disputed"
"""How the reason of such a task's failure begins."""
VERDICTS_AT_ONCE: Final = 3
"""Conflicts of one member that a trusted node decides at a time: so many lone wrong values ban it."""
CUSTODY_CLAIMS: Final = 2
"""Claims of each task that a custodian gathers while its owner is away: most tasks need no more."""
ACCUSED_MIN: Final = 3
"""Who is in so many conflicts, and in more of them than of agreements, waits until some are decided."""
SETTLE_GROWTH: Final = 1.1
"""Claims that wait are weighed again when there are so many times as many checks as when they were last."""


class LevelOf(Protocol):
    """How far an installation is trusted here."""

    def __call__(self, installation: bytes, /) -> Level: ...


def everybody_is_trusted(_installation: bytes, /) -> Level:
    """The levels of an owner that checks nothing."""
    return Level.TRUSTED


class Acceptance:
    """Decides about the results of all jobs of one owner."""

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
        self.wall_s = 0.0
        """Unix seconds, as of the last event."""
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

    # --- who may, and who is believed -------------------------------------------------------------

    def may_run(self, job: OwnedJob, installation: bytes) -> bool:
        """Whether tasks of a job may be given to an installation."""
        level = self.level_of(installation)
        if level is Level.TRUSTED:
            return True
        if level is Level.BLOCKED or job.envelope.terms.trust == "trusted":
            return False
        if level is Level.STRANGER and job.envelope.terms.trust != "any":
            return False
        record = self.records.get(installation)
        return record is None or not record.banned

    def believes(self, job: OwnedJob, installation: bytes) -> bool:
        """Whether results of an installation are accepted as they come."""
        if self.level_of(installation) is Level.TRUSTED or job.envelope.terms.verify == "none":
            return True
        return not (job.is_own or job.is_checked)

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
        event = Event(int(self.wall_s), checked.job.envelope.job_id, index, what)
        self.record(installation).events.append(event)
        self.changed[installation] = None

    # --- what is given to whom --------------------------------------------------------------------

    def extra_count(self, job: OwnedJob) -> int:
        """Return how many tasks, at most, could be given out beside those that are ready."""
        checked = job.checked
        return 0 if checked is None else len(checked.held) + len(checked.arbitrations) + len(checked.rechecks)

    def waiting_count(self, job: OwnedJob) -> int:
        """Return how many tasks are held, and computed by nobody now."""
        checked = job.checked
        return 0 if checked is None else max(0, len(checked.held) - sum(map(checked.is_computed, checked.leases)))

    def has_extra(self, job: OwnedJob) -> bool:
        """Whether anything might be given out beside what is ready."""
        checked = job.checked
        return checked is not None and bool(
            checked.arbitrations or checked.held or checked.verifier.wants_copies(checked.lane)
        )

    def pick(self, now: float, job: OwnedJob, thief: Thief, count: int, ready: Callable[[int], list[int]]) -> list[int]:
        """Return the tasks of a job that a member computes now: originals and copies, which it cannot tell apart.

        Args:
            ready: takes out so many tasks that nobody has begun.
        """
        self._now = now
        rule = self._rule_of(job)
        if rule is None or not self._join(now, rule, thief.installation):
            return []
        if thief.installation in self._accused.get(rule, ()):
            return []
        checked = job.checked or self._check(rule, job)
        if checked is None or self._rng is None:
            return []
        verifier, chosen, size = checked.verifier, list[int](), 0

        def begin() -> int | None:
            """Begin a task that nobody has begun."""
            if self.held_bytes >= VERIFY_HELD_BYTES_MAX:
                return None
            found = ready(1)
            if not found:
                return None
            return self._number(rule, checked, found[0])

        while len(chosen) < count and size <= GRANT_BYTES_MAX // 2:
            number = verifier.take(now, thief.installation, self._rng, checked.lane, begin)
            self._follow(rule, verifier.take_effects())
            if number is None:
                break
            place = self._places[rule][number] if number >= 0 else self._known_answer(rule, checked, -number, ready)
            if place is None or place[0] is not checked or place[1] not in checked.payloads:
                verifier.returned(now, thief.installation, number)
                break
            index = place[1]
            if checked.is_lent_to(index, thief.key) or index in job.leases:
                verifier.returned(now, thief.installation, number)
                break
            if job.ledger.state(index) is TaskState.OPEN:
                checked.held[index] = None
            chosen.append(index)
            size += len(checked.payloads[index])
        return chosen

    def _known_answer(
        self, rule: Rule, checked: CheckedJob, number: int, ready: Callable[[int], list[int]]
    ) -> tuple[CheckedJob, int] | None:
        """Return the task that is this known-answer check for everybody: one of the job's own, of which a trusted node
        finds the answer when somebody has claimed it."""
        checks = self._checks.setdefault(rule, {})
        place = checks.get(number)
        if place is None and (found := ready(1)):
            self._number(rule, checked, found[0])
            checked.check_of[found[0]] = number
            place = checks[number] = (checked, found[0])
        return place

    def pick_disputed(self, job: OwnedJob, count: int) -> list[int]:
        """Return tasks on which claims differ, for a trusted node."""
        checked = job.checked
        if checked is None or not checked.arbitrations:
            return []
        for index in [index for index in checked.arbitrations if self._is_being_settled(checked, index)]:
            del checked.arbitrations[index]
        # Those first that tell most: where liars are found out, what else they said is decided too.
        accused = checked.accused()
        of = {
            index: max(checked.claims_of(index), key=accused.__getitem__, default=b"") for index in checked.arbitrations
        }
        chosen, times = list[int](), Counter[Worker]()
        for index in sorted(of, key=lambda index: -accused[of[index]]):
            if len(chosen) < count and times[of[index]] < VERDICTS_AT_ONCE:
                times[of[index]] += 1
                chosen.append(index)
        for index in chosen:
            del checked.arbitrations[index]
        return chosen

    def pick_claimed(self, job: OwnedJob, thief: Thief, count: int) -> list[int]:
        """Return tasks that are claimed and not accepted, for a trusted node that has nothing else to do."""
        checked = job.checked
        if checked is None:
            return []
        chosen: list[int] = []
        for index in chain(checked.held, checked.rechecks):
            if len(chosen) >= count:
                break
            task = checked.verifier.tasks[checked.numbers[index]]
            is_settled_now = index in checked.arbitrations or self._is_being_settled(checked, index)
            if task.claims and not is_settled_now and not checked.is_lent_to(index, thief.key):
                chosen.append(index)
        return chosen

    def _is_being_settled(self, checked: CheckedJob, index: int) -> bool:
        """Whether a trusted node computes a task."""
        return any(self._is_trusted(checked.job, lease) for lease in checked.leases.get(index, {}).values())

    def _is_trusted(self, job: OwnedJob, lease: Lease) -> bool:
        """Whether what comes of a lease is the truth."""
        return lease.thief == LOCAL or self.believes(job, lease.installation)

    def is_extra(self, job: OwnedJob, index: int) -> bool:
        """Whether a task that was picked is leased here, and not in the owner's own books."""
        checked = job.checked
        return checked is not None and (index in checked.held or job.ledger.state(index) is not TaskState.OPEN)

    def is_for_trusted(self, job: OwnedJob, index: int) -> bool:
        """Whether members have said so often that a task fails that only a trusted node may say so finally."""
        checked = job.checked
        return checked is not None and checked.failures.get(index, 0) > job.envelope.terms.retries

    def lend(self, job: OwnedJob, index: int, lease: Lease) -> tuple[int, bytes]:
        """Note who computes a task; returns (attempt as the node sees it, payload)."""
        checked = job.checked
        assert checked is not None
        place = (index, lease.thief)
        lease.attempt = checked.attempts[place] = checked.attempts.get(place, 0) + 1
        checked.leases.setdefault(index, {})[lease.thief] = lease
        return lease.attempt, checked.payloads[index]

    def _join(self, now: float, rule: Rule, worker: Worker, *, is_back: bool = False) -> bool:
        """Let a member take part under a rule; False: not now.

        Args:
            is_back: it took part in an earlier life of this owner: it does not wait, though nothing is known of it.
        """
        joined = self._joined.setdefault(rule, {})
        verifier = self.verifiers.get(rule)
        if worker in joined:
            if isinstance(verifier, Arbitrate):  # who vouches for it was perhaps not known when it was remembered
                verifier.workers[worker].cluster = self._cluster_of(worker)
            return True
        if verifier is None:
            if len(self.verifiers) >= VERIFY_RULES_MAX:
                return False
            verifier = self._make(rule, now)
        known, cluster = self.records.get(worker), self._cluster_of(worker)
        if len(joined) >= VERIFY_WORKERS_MAX:
            return False
        if not isinstance(verifier, Arbitrate):
            verifier.join(now, worker)
        elif known is not None and rule in known.memory:
            verifier.remember(worker, known.memory[rule], cluster=cluster)
        else:
            # Whom the founder or somebody trusted let in begins with the assumed odds.  Whom other members let in has
            # to prove itself, and few are let in at a time: they could be one who was found out, under other names.
            is_known = rule.replicas is not None or cluster in (None, worker)
            if not verifier.join(now, worker, cluster=cluster, is_known=is_known):
                if not is_back:
                    return False
                verifier.remember(worker, NOTHING_KNOWN, cluster=cluster)
        joined[worker] = None
        return True

    def _make(self, rule: Rule, now: float) -> Verifier:
        verifier: Verifier
        if rule.method == "arbitrate":
            policy = ArbitratePolicy(error_rate=rule.error_ppb / 1e9, replicas=rule.replicas)
            verifier = Arbitrate(policy, now=now)
        else:
            verifier = make_verifier(rule.method, error_rate=rule.error_ppb / 1e9, votes=rule.replicas or 2)
        verifier.keeps_originals = False
        places = self._places[rule] = []

        def allows(worker: Worker, number: int) -> bool:
            place = places[number]
            if place is None:
                return False
            checked, index = place
            return index in checked.payloads and self._may_copy(checked, worker, index)

        verifier.allows = allows
        self.verifiers[rule] = verifier
        return verifier

    def _may_copy(self, checked: CheckedJob, worker: Worker, index: int) -> bool:
        """Not where it failed, while others may do it; and not what a trusted node settles just now."""
        if index in checked.job.leases:
            return False
        avoided = checked.job.avoid.get(index)
        if avoided is not None and worker in avoided[0] and self._now < avoided[1]:
            return False
        leases = checked.leases.get(index, {}).values()
        return not self._is_being_settled(checked, index) and all(lease.installation != worker for lease in leases)

    def _check(self, rule: Rule, job: OwnedJob) -> CheckedJob:
        """Begin the books about a job."""
        job.checked = CheckedJob(job, rule, self.verifiers[rule], self._next_lane)
        self._next_lane += 1
        return job.checked

    def _number(self, rule: Rule, checked: CheckedJob, index: int) -> int:
        """Return the number of a task that a member begins."""
        number = checked.numbers.get(index)
        if number is None:
            number = checked.numbers[index] = checked.verifier.append(checked.lane)
            self._places[rule].append((checked, index))
            payload = checked.payloads[index] = checked.job.payloads[index]
            self.held_bytes += len(payload)
        checked.held[index] = None
        return number

    # --- leases -----------------------------------------------------------------------------------

    def release(self, job: OwnedJob, index: int, thief: bytes) -> Lease | None:
        """A node computes a task no more; None: it did not."""
        checked = job.checked
        leases = None if checked is None else checked.leases.get(index)
        if checked is None or leases is None or thief not in leases:
            return None
        lease = leases.pop(thief)
        if not leases:
            del checked.leases[index]
        self._owner.released_checked(job, lease)
        return lease

    def returned(self, now: float, job: OwnedJob, index: int, thief: bytes, *, attempt: int | None = None) -> bool:
        """A node hands back what it has not computed; False: it did not hold it here."""
        checked = job.checked
        if checked is None or not checked.is_lent_to(index, thief):
            return False
        if attempt is not None and checked.leases[index][thief].attempt != attempt:
            return False
        lease = self.release(job, index, thief)
        assert lease is not None
        self._now = now
        self._unlent(checked, index, lease)
        return True

    def _unlent(self, checked: CheckedJob, index: int, lease: Lease) -> None:
        """A node that computed a task will not answer."""
        number = checked.numbers[index]
        checked.verifier.returned(self._now, lease.installation, number)
        if index in checked.asked:
            checked.arbitrations[index] = None
        self._free(checked, index)

    def keeps(self, job: OwnedJob, index: int) -> bool:
        """Hold an open task that nobody has a lease on in the owner's books, if members have claimed it."""
        checked = job.checked
        number = None if checked is None else checked.numbers.get(index)
        if checked is None or number is None or not checked.verifier.tasks[number].claims:
            return False
        checked.held[index] = None
        return True

    def _free(self, checked: CheckedJob, index: int) -> None:
        """Give an open task back to the owner when nobody computes it and nobody has claimed it."""
        task = checked.verifier.tasks[checked.numbers[index]]
        if index in checked.held and not (task.claims or index in checked.asked or checked.is_computed(index)):
            del checked.held[index]
            checked.arbitrations.pop(index, None)
            checked.asked.pop(index, None)
            self._owner.requeue_checked(checked.job, index)

    @property
    def _owner(self) -> Decider:
        assert self._core is not None
        return self._core

    def heartbeat(self, now: float, job: OwnedJob, thief: bytes, boot: bytes, lease_s: float, index: int) -> bool:
        """Renew a lease; False: there is none here, or it takes too long and need not begin any more."""
        checked = job.checked
        if checked is None or not checked.is_lent_to(index, thief):
            return False
        lease = checked.leases[index][thief]
        lease.expires, lease.boot = now + lease_s, boot
        return not lease.is_late

    def peer_lost(self, now: float, job: OwnedJob, thief: bytes, boot: bytes | None) -> int:
        """End the leases of a node that is gone, or of its earlier life; returns how many."""
        checked = job.checked
        if checked is None:
            return 0
        lost = [
            index
            for index, leases in checked.leases.items()
            if thief in leases and (boot is None or leases[thief].boot != boot)
        ]
        return sum(self.returned(now, job, index, thief) for index in lost)

    def tick(
        self,
        now: float,
        is_late: Callable[[OwnedJob, Lease, float], bool],
        thieves: Iterable[tuple[Thief, float]] = (),
    ) -> None:
        """End leases that have run out.  What members take too long for may be begun by others, when there is nothing
        else to begin; whoever tells its result first has claimed it.

        Args:
            is_late: whether a lease takes too long; the number: for how many times as long as usual it may take.
            thieves: nodes that ask for work here, and when they did last.
        """
        self._now = now
        if self.verifiers:
            self._look_for_arbiters(now, thieves)
        for checked in list(self._checked_jobs()):
            job = checked.job
            expired = [
                (index, thief)
                for index, leases in checked.leases.items()
                for thief, lease in leases.items()
                if lease.expires <= now
            ]
            for index, thief in expired:
                job.tell(now, index, f"the lease of {thief.hex()[:8]} ran out")
                self.returned(now, job, index, thief)
            if job.ready_count <= 0:
                self._look_for_late(now, checked, is_late)
        self.ended = {
            checked.job.envelope.job_id: None
            for checked in self._checked_jobs()
            if checked.job.ledger.is_complete and (checked.arbitrations or checked.rechecks)
        }
        for rule, verifier in self.verifiers.items():
            if isinstance(verifier, Arbitrate):
                self._accused[rule] = self._look_for_accused(rule, verifier)
                checks = verifier.checks_count
                if checks > SETTLE_GROWTH * self._settled_at.get(rule, 0):
                    self._settled_at[rule] = checks
                    self._follow(rule, verifier.settle())

    def _look_for_late(
        self, now: float, checked: CheckedJob, is_late: Callable[[OwnedJob, Lease, float], bool]
    ) -> None:
        """Have tasks of which members take too long begun by others too: the sooner when these have nothing to do."""
        job = checked.job
        patience = 1.0 if self.waiting_count(job) else 1.0 / STRAGGLER_FACTOR
        for index, leases in list(checked.leases.items()):
            times = patience * (1 + sum(lease.is_late for lease in leases.values()))
            for thief, lease in list(leases.items()):
                if lease.is_late or self._is_trusted(job, lease) or not is_late(job, lease, times):
                    continue
                lease.is_late = True
                job.tell(now, index, f"{thief.hex()[:8]} takes too long")
                checked.verifier.late(now, lease.installation, checked.numbers[index])
                self._free(checked, index)

    def _look_for_accused(self, rule: Rule, verifier: Arbitrate) -> frozenset[Worker]:
        """Return who is contradicted more often than confirmed, while a trusted node can say who is right."""
        if not verifier.has_arbiter:
            return frozenset()
        conflicts = Counter[Worker]()
        for checked in self._checked_jobs():
            if checked.rule == rule:
                conflicts.update(checked.accused())
        workers = verifier.workers
        return frozenset(who for who, count in conflicts.items() if count >= max(ACCUSED_MIN, workers[who].k + 1))

    def _look_for_arbiters(self, now: float, thieves: Iterable[tuple[Thief, float]]) -> None:
        """Where no trusted node decides, more members do; and where these disagree for good, the task has failed."""
        if any(thief.is_local or self.level_of(thief.installation) is Level.TRUSTED for thief, _seen in thieves):
            self._arbiter_at = now
        has_arbiter = now - self._arbiter_at < ARBITER_PATIENCE_S
        for rule, verifier in self.verifiers.items():
            if isinstance(verifier, Arbitrate):
                self._follow(rule, verifier.set_arbiter(has_arbiter))
        for checked in list(self._checked_jobs()) if not has_arbiter else ():
            for index in list(checked.held):
                claims = checked.verifier.tasks[checked.numbers[index]].claims
                is_stuck = not checked.is_computed(index) and now - checked.claimed_at.get(index, now) > DISPUTED_S
                if is_stuck and len(groups := votes(claims)) > 1:
                    said = ", ".join(f"{worker.hex()[:8]}: {digest.hex()[:8]}" for worker, digest in claims.items())
                    self._owner.disputed(checked.job, index, f"{DISPUTED}: {len(groups)} results differ ({said})")

    def _checked_jobs(self) -> Iterator[CheckedJob]:
        for job in self._owner.jobs.values():
            if job.checked is not None:
                yield job.checked

    # --- results ----------------------------------------------------------------------------------

    def wants(self, job: OwnedJob, index: int, generation: int, installation: bytes) -> bool:
        """Whether a result about a task that has ended would tell something: it was lent for a check."""
        checked = job.checked
        if checked is None or generation != job.ledger.generation(index):
            return False
        return any(lease.installation == installation for lease in checked.leases.get(index, {}).values())

    def claimed(
        self,
        now: float,
        job: OwnedJob,
        thief: bytes,
        installation: bytes,
        index: int,
        under: tuple[int, bytes],
        outcome: Outcome,
        digest: Digest,
        *,
        relayed_by: bytes | None = None,
    ) -> bool:
        """Take what a member says about a task of the present generation; False: it changes nothing.

        Good results are claims, whoever holds the lease; one that was not lent to its worker has no weight.

        Args:
            under: attempt, and life of the node: what it was leased.  Two results under one are proof of a lie.
            relayed_by: who lent the task as another coordinator of the job, while this one was away.
        """
        self._now, attempt = now, under[0]
        rule, checked = self._rule_of(job), job.checked
        if rule is None or not self._join(now, rule, installation):
            return False
        checked = checked or self._check(rule, job)
        lease = checked.leases.get(index, {}).get(thief)
        is_holder = lease is not None and lease.attempt == attempt
        if outcome.status is not OutcomeStatus.OK:
            if lease is None or not is_holder:
                return False
            self.release(job, index, thief)
            self._could_not(checked, index, lease, outcome)
            return True
        if index not in checked.numbers:
            if job.ledger.state(index) is not TaskState.OPEN or index in job.leases:
                return False  # it is computed by somebody who is believed, or was
            self._number(rule, checked, index)
        number = checked.numbers[index]
        task = checked.verifier.tasks[number]
        if is_holder:
            self.release(job, index, thief)
        before = task.claims.get(installation)
        if before is not None and before == digest:
            checked.verifier.returned(now, installation, number)
            return is_holder
        if before is not None and checked.signed.get((index, installation)) != under:
            # Two leases, two results: it errs, or the task has more than one result.  Nobody is banned for that.
            self._tell(installation, checked, index, "its second result differs from its first")
            checked.verifier.returned(now, installation, number)
            if not task.is_final:
                self._disputed(checked, index)
            return True
        if relayed_by is not None and (not task.claims or self.level_of(relayed_by) is Level.TRUSTED):
            task.lent[installation] = bool(task.claims)
        is_blind = checked.verifier.is_blind(installation, number)
        record = self.record(installation)
        if before is None:
            checked.signed[index, installation] = under
            checked.claimed_at[index] = now
            self.changed[installation] = None
            record.claims += 1
            self._owner.note(
                job,
                FactKind.HELD,
                [index, job.ledger.generation(index), attempt, thief, installation, digest, is_blind],
            )
            self._keep_output(checked, index, digest, outcome, thief)
            record.agreed += digest in task.claims.values()
        if index in checked.check_of:
            number = -checked.check_of[index]
        self._follow(rule, checked.verifier.claim(now, installation, number, digest))
        if job.ledger.state(index) is TaskState.OPEN:
            self._free(checked, index)
        return True

    def _could_not(self, checked: CheckedJob, index: int, lease: Lease, outcome: Outcome) -> None:
        """A member tells that it could not compute a task."""
        number = checked.numbers[index]
        job = checked.job
        checked.verifier.returned(self._now, lease.installation, number)
        task = checked.verifier.tasks[number]
        if job.ledger.state(index) is not TaskState.OPEN or task.claims or index in checked.leases:
            nodes = job.avoid.get(index, ([], 0.0))[0]
            job.avoid[index] = ([*nodes, lease.installation], inf)
            return
        checked.held.pop(index, None)
        if outcome.status in (OutcomeStatus.FAILED, OutcomeStatus.TIMEOUT, OutcomeStatus.DIED):
            checked.failures[index] = checked.failures.get(index, 0) + 1
        self._owner.failed_checked(self._now, job, index, outcome, lease.thief, lease.installation)

    def _keep_output(self, checked: CheckedJob, index: int, digest: Digest, outcome: Outcome, thief: bytes) -> None:
        outputs = checked.outputs.setdefault(index, {})
        if digest not in outputs and checked.job.ledger.state(index) is TaskState.OPEN:
            size = len(outcome.value) + len(outcome.stdout) + len(outcome.stderr) + 256
            outputs[digest] = Output(outcome, thief, size)
            self.held_bytes += size

    def settled(
        self, now: float, job: OwnedJob, thief: bytes, installation: bytes, index: int, outcome: Outcome, digest: Digest
    ) -> bool:
        """Take the good result of a trusted node about a task that members claimed; False: no member did.

        It is accepted here, as a verdict, or asked for once more when it contradicts everybody.
        """
        checked = job.checked
        number = None if checked is None else checked.numbers.get(index)
        if checked is None or number is None:
            return False
        self._now = now
        self.release(job, index, thief)
        if index in job.leases:
            self._owner.unlease(job, index)
            checked.held[index] = None
        rule = checked.rule
        task = checked.verifier.tasks[number]
        if task.is_final:
            if job.ledger.state(index) is TaskState.OPEN:  # it was reopened, and what it was decided for is not here
                self._keep_output(checked, index, digest, outcome, thief)
                self._accepted(checked, index, Accepted(number, digest, Basis.TRUSTED))
            return True
        claims = dict(task.claims)
        self._keep_output(checked, index, digest, outcome, thief)
        if index in checked.check_of:
            self._follow(rule, checked.verifier.verdict(now, -checked.check_of[index], digest))
        self._follow(rule, checked.verifier.verdict(now, number, digest))
        if checked.verifier.tasks[number].is_final:
            checked.asked.pop(index, None)
            checked.arbitrations.pop(index, None)
            is_known = task.accepted in (None, digest) and len(dict.fromkeys([*claims.values(), digest])) > 1
            for worker, claim in claims.items():
                record = self.record(worker)
                self.changed[worker] = None
                if claim == digest:
                    record.agreed += 1
                elif is_known:
                    record.wrong += 1
                    self._tell(worker, checked, index, "its result was wrong")
        return True

    # --- what follows -----------------------------------------------------------------------------

    def _follow(self, rule: Rule, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Banned):
                self._ban(effect.worker, effect.why)
                continue
            place = self._places[rule][effect.index] if effect.index >= 0 else self._checks[rule].get(-effect.index)
            if place is None:
                continue
            checked, index = place
            match effect:
                case Accepted():
                    self._accepted(checked, index, effect)
                case Revoked():
                    self._revoked(checked, index, "who vouched for it was found to lie")
                case Recheck():
                    checked.rechecks[index] = None
                case AskTrusted():
                    self._disputed(checked, index)
                case Withdrawn():
                    checked.asked.pop(index, None)
                    checked.arbitrations.pop(index, None)
                    if index in checked.rechecks and not checked.verifier.tasks[effect.index].claims:
                        self._revoked(checked, index, "nobody vouches for it any more")
                    self._free(checked, index)
                case Nondeterministic():
                    checked.job.tell(self._now, index, "two trusted nodes found different results")
                    checked.job.nondeterministic += 1

    def _accepted(self, checked: CheckedJob, index: int, effect: Accepted) -> None:
        job = checked.job
        checked.rechecks.pop(index, None)
        if job.ledger.state(index) is TaskState.DONE:
            if job.accepted_digests.get(index, effect.digest) == effect.digest:
                return
            self._revoked(checked, index, "it was checked again")
        if job.ledger.state(index) is not TaskState.OPEN:
            return
        output = checked.outputs.get(index, {}).get(effect.digest)
        if output is None:  # it was dropped when the task was done for the first time
            checked.asked[index] = checked.arbitrations[index] = None
            return
        checked.held.pop(index, None)
        checked.arbitrations.pop(index, None)
        checked.asked.pop(index, None)
        checked.failures.pop(index, None)
        outputs = checked.outputs.pop(index)
        self.held_bytes -= sum(other.size for other in outputs.values())
        self._owner.settled_checked(job, index, list(outputs))
        self._keep_payload(checked, index)
        job.accepted_digests[index] = effect.digest
        self._owner.note(job, FactKind.CHECKED, [index, job.ledger.generation(index), effect.digest, str(effect.basis)])
        for thief, lease in checked.leases.get(index, {}).items():
            self._owner.stop(thief, job, [index], kill=lease.is_late)
        if index in job.leases:
            self._owner.unlease(job, index)
        self._owner.accept_checked(job, index, output.outcome, output.thief, effect.digest)

    def _revoked(self, checked: CheckedJob, index: int, why: str) -> None:
        job = checked.job
        if job.ledger.state(index) is not TaskState.DONE:
            return
        place = (job.envelope.job_id, index)
        if index not in checked.payloads:
            self._reopening[place] = why
            self._owner.load(job, index)
            return
        job.accepted_digests.pop(index, None)
        checked.rechecks.pop(index, None)
        if self._kept.pop(place, None) is not None:
            size = len(checked.payloads[index])
            self.kept_bytes, self.held_bytes = self.kept_bytes - size, self.held_bytes + size
        if self._owner.reopen(job, index, checked.payloads[index], why):
            self.revoked_count += 1
            checked.held[index] = None
            self._free(checked, index)

    def _keep_payload(self, checked: CheckedJob, index: int) -> None:
        """Keep the inputs of a task that is done, as long as there is room: its result may be revoked."""
        size = len(checked.payloads[index])
        self.held_bytes -= size
        self.kept_bytes += size
        self._kept[checked.job.envelope.job_id, index] = checked
        while self.can_load and self.kept_bytes > VERIFY_KEPT_BYTES_MAX:
            place = next(iter(self._kept))
            self.kept_bytes -= len(self._kept.pop(place).payloads.pop(place[1], b""))

    def loaded(self, now: float, job: OwnedJob, payloads: Mapping[int, bytes]) -> None:
        """The inputs of tasks whose results are believed no longer are here again."""
        self._now = now
        for index, payload in payloads.items():
            why = self._reopening.pop((job.envelope.job_id, index), None)
            checked = job.checked
            if why is None or checked is None or index not in checked.numbers:
                continue
            checked.payloads[index] = payload
            self.held_bytes += len(payload)
            task = checked.verifier.tasks[checked.numbers[index]]
            if task.accepted is None or task.accepted != job.accepted_digests.get(index):
                self._revoked(checked, index, why)
            else:
                self._keep_payload(checked, index)  # it is believed again

    def _disputed(self, checked: CheckedJob, index: int) -> None:
        """Claims about a task differ: a trusted node computes it."""
        if index not in checked.asked:
            self.disputes_count += 1
            task = checked.verifier.tasks[checked.numbers[index]]
            for worker in task.claims:
                self._tell(worker, checked, index, "its result differs from another one")
            checked.job.tell(self._now, index, f"{len(task.claims)} results differ")
        checked.asked[index] = checked.arbitrations[index] = None

    def convict(self, installation: bytes) -> None:
        """Believe a proof that somebody lied to another owner; whom this one trusts it goes on trusting."""
        if self.level_of(installation) is not Level.TRUSTED:
            self._ban(installation, Why.EQUIVOCATION)

    def _ban(self, installation: bytes, why: Why) -> None:
        """Give somebody no more work, and take back what it holds."""
        record = self.record(installation)
        if record.banned:
            return
        record.banned, record.banned_at = str(why), int(self.wall_s)
        self.changed[installation] = None
        self._owner.banned(installation, str(why))
        for checked in list(self._checked_jobs()):
            taken: dict[bytes, list[int]] = {}
            for index, leases in checked.leases.items():
                for thief, lease in leases.items():
                    if lease.installation == installation:
                        taken.setdefault(thief, []).append(index)
            for thief, indices in taken.items():
                for index in indices:
                    self.returned(self._now, checked.job, index, thief)
                self._owner.stop(thief, checked.job, indices, kill=True)
        for rule, verifier in self.verifiers.items():
            if isinstance(verifier, Arbitrate) and installation in self._joined.get(rule, ()):
                self._follow(rule, verifier.equivocated(installation))
        for checked in list(self._checked_jobs()):
            for index in list(checked.held):
                self._free(checked, index)

    # --- ends of tasks and jobs -------------------------------------------------------------------

    def ended_otherwise(self, job: OwnedJob, index: int) -> None:
        """A task was cancelled, or has failed: whoever computes it may stop."""
        checked = job.checked
        if checked is None or index not in checked.numbers:
            return
        checked.held.pop(index, None)
        checked.arbitrations.pop(index, None)
        checked.asked.pop(index, None)
        checked.rechecks.pop(index, None)
        checked.failures.pop(index, None)
        checked.claimed_at.pop(index, None)
        for output in checked.outputs.pop(index, {}).values():
            self.held_bytes -= output.size
        number = checked.numbers.pop(index)
        if index in checked.check_of:
            self._checks[checked.rule].pop(checked.check_of.pop(index), None)
        for thief, lease in list(checked.leases.get(index, {}).items()):
            self.release(job, index, thief)
            checked.verifier.returned(self._now, lease.installation, number)
            self._owner.stop(thief, job, [index], kill=True)
        size = len(checked.payloads.pop(index, b""))
        if self._kept.pop((job.envelope.job_id, index), None) is not None:
            self.kept_bytes -= size
        else:
            self.held_bytes -= size
        self._reopening.pop((job.envelope.job_id, index), None)
        self._forget_number(checked, number)

    def forget(self, job: OwnedJob) -> None:
        """A job is forgotten."""
        checked = job.checked
        self.ended.pop(job.envelope.job_id, None)
        if checked is None:
            return
        for number in checked.numbers.values():
            self._forget_number(checked, number)
        for number in checked.check_of.values():
            self._checks[checked.rule].pop(number, None)
        for outputs in checked.outputs.values():
            self.held_bytes -= sum(output.size for output in outputs.values())
        for index, payload in checked.payloads.items():
            if self._kept.pop((job.envelope.job_id, index), None) is not None:
                self.kept_bytes -= len(payload)
            else:
                self.held_bytes -= len(payload)
        job.checked = None

    def _forget_number(self, checked: CheckedJob, number: int) -> None:
        self._places[checked.rule][number] = None
        checked.verifier.drop(number)

    # --- earlier lives ----------------------------------------------------------------------------

    def take_changed(self) -> dict[bytes, Record]:
        """Return the records that are to be stored, as they are now."""
        changed, self.changed = self.changed, {}
        for rule, verifier in self.verifiers.items():
            for worker in changed if isinstance(verifier, Arbitrate) else ():
                if worker in self._joined[rule]:
                    assert isinstance(verifier, Arbitrate)
                    self.record(worker).memory[rule] = verifier.memory_of(worker)
        return {worker: self.record(worker) for worker in changed}

    def recover(
        self,
        job: OwnedJob,
        claims: Mapping[int, Mapping[Worker, tuple[Digest, bool]]],
        outputs: Mapping[tuple[int, Digest], tuple[bytes, Outcome]],
    ) -> None:
        """Take up what was claimed of the tasks of a job in an earlier life; payloads of all of them are in the job.

        Args:
            claims: task → who claimed what of it, and whether that has no weight.
            outputs: (task, digest) → (node, what it claims).
        """
        rule = self._rule_of(job)
        if rule is None or not claims:
            return
        for index, by_worker in claims.items():
            state = job.ledger.state(index)
            believed = {
                worker: claim
                for worker, claim in by_worker.items()
                if not self.record(worker).banned and self._join(self._now, rule, worker, is_back=True)
            }
            is_done = state is TaskState.DONE and index in job.accepted_digests
            if not believed or not (is_done or state is TaskState.OPEN):
                continue
            checked = job.checked or self._check(rule, job)
            number = self._number(rule, checked, index)
            if is_done:
                del checked.held[index]
                self._keep_payload(checked, index)
            digests = {worker: digest for worker, (digest, _is_blind) in believed.items()}
            for digest in digests.values() if not is_done else ():
                if (index, digest) in outputs:
                    thief, outcome = outputs[index, digest]
                    self._keep_output(checked, index, digest, outcome, thief)
            blind = tuple(worker for worker, (_digest, is_blind) in believed.items() if is_blind)
            checked.verifier.restore(number, digests, blind, job.accepted_digests.get(index) if is_done else None)
        if job.checked is not None:
            self._follow(rule, job.checked.verifier.take_effects())

    # --- checks -----------------------------------------------------------------------------------

    def check_invariants(self, job: OwnedJob) -> None:
        """Raise InvariantViolation when the books about a job do not agree."""
        checked = job.checked
        if checked is None:
            return
        for index in checked.held:
            task = checked.verifier.tasks[checked.numbers[index]]
            if job.ledger.state(index) is not TaskState.OPEN or index in job.leases:
                raise InvariantViolation(f"task {index} is held and not open")
            if not (task.claims or index in checked.asked or checked.is_computed(index)):
                raise InvariantViolation(f"task {index} is held by nobody")
        for index, leases in checked.leases.items():
            if index not in checked.numbers or not leases:
                raise InvariantViolation(f"task {index} is lent and has no number")
