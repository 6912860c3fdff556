"""Commit, compare, arbitrate, ban, reopen.

    commit     a claim exists before its task is handed out again, and no copy is marked as one
    compare    originals and copies go out mixed, half and half; when all are claimed twice those that need more
    agreement  of two independent claims: one passed check (k) for each who had none for this task
    conflict   a trusted node computes the task; a value that two signed bans both, a lone one makes a suspect
    ban        erases all that the worker claimed; what rested on it is computed again
    accept     claims that agree, as soon as the risk that all of them belong to one coalition is small enough

What is guaranteed is the share of wrong results among all of a window, for any rate of sabotage, of saboteurs that act
alone or as one, as long as at most the assumed share of those who are not new belongs to them.  It does not help to
behave well first: every claim is compared with another one, so who strikes in a part x of the window spoils x of it and
meets x of the checks, which comes to the same.  For the same reason windows that all of a group came through lower its
risk to e times the share that the present one has of their claims: e, because who is found out now keeps what it was
not found out for in windows before.

Newcomers prove themselves on copies that count for nobody.  Suspects rest until the next window and begin as newcomers
do.  What rests on somebody who turns out to be a suspect is checked again, what rests on somebody banned is erased.

Who answers only some of what he is given chooses his partners: a saboteur would hand back all but what another one lied
about.  By how many times he drew more than he answered his odds are raised, and once more those of the group, since his
choice also keeps away the honest who would have found the other one out.

Deviations from Sarmenta: no known-answer checks; h(K) of the whole group in place of a product over its members; no
phase in which all that is handed out is copies, because who knows that it copies can be honest just then.
Limit: saboteurs that do know for each task whether anybody else claimed it halve K; then pairs are wrong with at most
f²·h(K/2)/(1-f).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from p2pcompute.errors import InvariantViolation
from p2pcompute.limits import VERIFY_WINDOWS_KEPT, VERIFY_WORKERS_MAX
from p2pcompute.trust.verification.book import (
    AskTrusted,
    Banned,
    Basis,
    Begin,
    Digest,
    Effect,
    Nondeterministic,
    Recheck,
    Revoked,
    Task,
    Verifier,
    Why,
    Withdrawn,
    Worker,
    votes,
)
from p2pcompute.trust.verification.formulas import coalition_risk, fault_rate_exceeds, group_credibility

if TYPE_CHECKING:
    import random

COPIES_SHARE: Final = 0.5
"""Of what is handed out while there are originals, those that are copies: who gets a task cannot tell which it is."""
PROBATION_AGREEMENTS: Final = 20
"""Agreements after which a newcomer is one no more."""
SUSPECT_FACTOR: Final = 4.0
"""By which a lone wrong value raises the odds that its worker is a saboteur."""
FAULT_RATE_MAX: Final = 0.01
FAULT_CONFIDENCE: Final = 0.95
FAULT_PRIOR_RIGHT: Final = 100
"""Who is wrong more often than one in a hundred times, with this confidence, is banned; before anything is known, one
result in a hundred is taken to be wrong.  Rare faults of memory are common: about 35 % of hosts, 0.2 % of results
(Kondo et al., 2007)."""
HISTORY_FACTOR_MIN: Final = 0.08
"""The least by which past windows multiply a risk: f/(1-f) = .25 becomes .02 with it."""
DRAWS_FREE: Final = 20
"""Tasks that a worker may hold, or leave unanswered, in a window before that tells much: nodes come and go."""
PROBATION_DRAWS_MAX: Final = 32
"""Tasks that are looked at to find one that a newcomer may copy."""
RETURNED_PENALTY: Final = 2.0
"""Of who was under suspicion in an earlier window: what its odds are multiplied by when it has proven itself again."""


class Standing(IntEnum):
    """How far a worker is believed."""

    NEWCOMER = 1
    ACTIVE = 2
    SUSPECT = 3
    BANNED = 4


NOTHING_KNOWN: Final = (int(Standing.NEWCOMER), 0, 0, 0, 1000, 0, 0, 0)
"""What is remembered of a newcomer (`Arbitrate.remember`)."""
DRAWS_AT: Final = 6
"""Where in what is remembered it stands how many tasks a worker was given; older builds stored nothing there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbitratePolicy:
    """Settings of the method."""

    error_rate: float = 1e-4
    """Accepted probability that a result is wrong."""
    replicas: int | None = None
    """Instead of `error_rate`: claims that have to agree, however probable it is that they are wrong."""
    saboteurs: float = 0.2
    """Assumed share of saboteurs among those who are not new; below 1/2."""
    window_tasks: int = 20_000
    """Tasks in which checks are counted together.  More: fewer copies."""
    window_s: float = 86_400.0
    """A window that is older ends when all that was computed is accepted."""
    newcomers_per_hour: float = 60.0
    """Identities that may begin.  Each costs some copies, and one that lies from the start a trusted execution."""
    newcomers_burst: int = 20
    has_arbiter: bool = True
    """Whether a trusted node can decide conflicts; otherwise further copies do, and nobody is banned for them."""

    @property
    def odds(self) -> float:
        """That somebody unknown is a saboteur: f/(1-f)."""
        return self.saboteurs / (1.0 - self.saboteurs)


class WorkerRecord:
    """What is known about a worker."""

    __slots__ = ("agreed", "answered", "checks_before", "claimed", "claims_now", "cluster", "drawn", "k", "k_past",
                 "odds", "penalty", "right", "standing", "wrong")  # fmt: skip

    def __init__(self, cluster: bytes | None, standing: Standing, odds: float) -> None:
        self.cluster = cluster
        """Who shares it with others does not check what they claim: same inviter, same address range."""
        self.standing = standing
        self.odds = odds
        """That it is a saboteur."""
        self.penalty = 1.0
        """What its odds are multiplied by for wrong values."""
        self.k = 0
        """Checks passed in this window."""
        self.k_past: dict[int, int] = {}
        """Of earlier windows, by their number."""
        self.agreed = 0
        """Agreements since it was new, or under suspicion."""
        self.right = 0
        self.wrong = 0
        """Comparisons over its life."""
        self.claimed: list[int] = []
        """Tasks that it claimed; those that are final are dropped at the end of a window."""
        self.claims_now = 0
        self.checks_before = 0
        """Claims of this window; checks passed in those before, since it was wrong last."""
        self.drawn = 0
        self.answered = 0
        """Tasks that it was given in this window, and those of them that it claimed."""

    @property
    def choice(self) -> float:
        """How many times as many tasks it was given as it answered, at least 1."""
        return max(1.0, (self.drawn + DRAWS_FREE) / (self.answered + DRAWS_FREE))


class _Task(Task):
    __slots__ = ("blind", "credited", "is_copied", "is_disputed", "late", "trusted", "window")

    def __init__(self, lane: int = 0) -> None:
        super().__init__(lane)
        self.window = -1
        self.credited: list[Worker] = []
        """Those whose claim another one confirmed, which counts as a check that they passed."""
        self.blind: tuple[Worker, ...] = ()
        """Those who were not given it, or before the first claim came: they can contradict, and add no weight."""
        self.late: tuple[Worker, ...] = ()
        """Those who take too long: others compute it as if they did not."""
        self.is_copied = False
        """Somebody whose claim will have weight computes it now."""
        self.is_disputed = False
        """Claims differ, and what is right is not known yet."""
        self.trusted: Digest | None = None
        """What a trusted node found that agrees with no claim; a second one is asked."""

    @property
    def is_known(self) -> bool:
        """What is right is known, for good."""
        return self.is_final and self.trusted in (None, self.accepted)


class Arbitrate(Verifier):
    """The books of one submitter.

    Invariants: nothing that is not final rests on anybody banned; k of a worker is the number of tasks of this window
    that credit it; what is accepted and not final is claimed by all alike.
    """

    tasks: list[_Task]  # type: ignore[assignment]  # of `Verifier`: its tasks are all made here

    def __init__(self, policy: ArbitratePolicy, *, now: float = 0.0) -> None:
        super().__init__()
        self.policy = policy
        self.has_arbiter = policy.has_arbiter
        """May change while the books are kept: trusted nodes come and go."""
        self._unjudged = frozenset[int]()
        """Lanes whose tasks no trusted node may compute."""
        self.workers: dict[Worker, WorkerRecord] = {}
        self.window = 0
        self._ready: deque[int] = deque()
        """Tasks of this window that nobody has claimed; may hold stale entries."""
        self._window_begins = deque([0])
        """First tasks of the windows that can still change, this one last."""
        self._window_end = 0
        """Tasks of this window so far."""
        self._window_at = now
        self._newcomer_tokens = float(policy.newcomers_burst)
        self._tokens_at = now
        self._has_clusters = False
        self._now = 0.0
        self.refused_count = 0
        """Newcomers that were not let in."""
        self.checks_count = 0
        """Checks passed in this window by all together."""
        self.late_count = 0
        """Claims about tasks that cannot change any more, or that nobody was given yet."""

    # --- tasks and workers ------------------------------------------------------------------------

    def add(self, count: int) -> None:
        self.tasks.extend(_Task() for _ in range(count))
        self._fill_window()
        self._look_further()

    def append(self, lane: int) -> int:
        """Number a task whose original the caller hands out; returns the number.

        A window that is full ends here though not all of it is accepted: or one long task would keep everybody from
        all others.
        """
        if self._window_end - self._window_begins[-1] >= self.policy.window_tasks:
            self._next_window()
        index = len(self.tasks)
        task = _Task(lane)
        task.window = self.window
        self.tasks.append(task)
        self._window_end = index + 1
        return index

    def restore(
        self, index: int, claims: dict[Worker, Digest], blind: tuple[Worker, ...], accepted: Digest | None
    ) -> None:
        task = self.tasks[index]
        task.blind = blind
        super().restore(index, claims, blind, accepted)
        for worker in claims:
            self.workers[worker].claimed.append(index)
            self.workers[worker].claims_now += 1
        self._credit_again(index)
        if accepted is not None:
            task.is_final = len(votes(claims)) > 1  # a trusted node has decided
        elif len(votes(claims)) > 1:
            task.is_disputed = True
            if self.can_judge(index):
                self._effects.append(AskTrusted(index))

    def _credit_again(self, index: int) -> None:
        """Give those who claim a restored task the check that they passed with it, which is not history any more."""
        task, groups = self.tasks[index], votes(self.tasks[index].claims)
        is_decided = len(groups) > 1 and task.accepted is not None
        digest = task.accepted if is_decided else next(iter(groups), None)
        if digest is None or (len(groups) > 1 and not is_decided):
            return
        passed = [
            worker
            for worker in groups.get(digest, ())
            if self.workers[worker].standing is Standing.ACTIVE and worker not in task.blind
        ]
        for worker in passed if is_decided or len(passed) > 1 else ():
            self._credit(index, worker)
            self.workers[worker].checks_before = max(0, self.workers[worker].checks_before - 1)

    def can_judge(self, index: int) -> bool:
        """Whether a trusted node can decide about a task."""
        return self.has_arbiter and self.tasks[index].lane not in self._unjudged

    def set_arbiter(self, has_arbiter: bool, unjudged: frozenset[int] = frozenset()) -> list[Effect]:
        """Note whether a trusted node is there to decide conflicts; returns what follows.

        Args:
            unjudged: lanes whose tasks it may not compute.
        """
        before = self.has_arbiter, self._unjudged
        if (has_arbiter, unjudged) == before:
            return []
        self.has_arbiter, self._unjudged = has_arbiter, unjudged
        for index in range(self._window_begins[0], len(self.tasks)):
            task = self.tasks[index]
            if task.is_final or not task.is_disputed:
                continue
            can_judge = self.can_judge(index)
            if can_judge == (before[0] and task.lane not in before[1]):
                continue
            task.trusted = None
            if can_judge:
                self._effects.append(AskTrusted(index))
            elif not self._weigh(index):
                self._offer(index)
        return self.take_effects()

    def memory_of(self, worker: Worker) -> list[int]:
        """Return what is worth knowing of a worker in later lives, for `remember`: small whole numbers."""
        record = self.workers[worker]
        checks, penalty = record.checks_before + record.k, round(record.penalty * 1000)
        known = [int(record.standing), record.agreed, record.right, record.wrong, penalty, checks]
        return [*known, record.drawn, record.answered]

    def remember(self, worker: Worker, memory: Sequence[int], *, cluster: bytes | None = None) -> None:
        """Know a worker again as it was in an earlier life; its checks are history until `restore` says otherwise.

        What it was given and did not answer counts on: claims that wait because those who agree chose them would be
        believed at once after a restart.
        """
        standing, agreed, right, wrong, penalty, checks, *draws = memory
        record = WorkerRecord(cluster, Standing(standing), 1.0)
        record.agreed, record.right, record.wrong = agreed, right, wrong
        record.penalty, record.checks_before = penalty / 1000, checks
        record.drawn, record.answered = draws or (0, 0)  # of before there were any: an older build stored none
        if record.standing is not Standing.NEWCOMER:
            record.odds = min(1.0, self.policy.odds * record.penalty)
        self.workers[worker] = record
        self._has_clusters |= cluster is not None

    def _fill_window(self) -> None:
        end = min(len(self.tasks), self._window_begins[-1] + self.policy.window_tasks)
        for index in range(self._window_end, end):
            self.tasks[index].window = self.window
            self._ready.append(index)
        self._window_end = max(self._window_end, end)

    def _look_further(self) -> None:
        """Begin the next window when all of this one is accepted and it is full, or old."""
        if self.accepted_count < self._window_end or self._window_begins[-1] == self._window_end:
            return
        is_full = self._window_end - self._window_begins[-1] >= self.policy.window_tasks
        if is_full or self._now - self._window_at > self.policy.window_s:
            self._next_window()

    def _next_window(self) -> None:
        """Begin a window: checks start anew, and history is written."""
        odds = self.policy.odds
        if len(self._window_begins) > VERIFY_WINDOWS_KEPT:
            for index in range(self._window_begins.popleft(), self._window_begins[0]):
                task = self.tasks[index]
                if task.accepted is not None:
                    task.is_final = True
                    task.claims, task.credited, task.blind = {}, [], ()
        for record in self.workers.values():
            if record.standing is Standing.ACTIVE:
                record.checks_before += record.k
                record.penalty = max(1.0, record.penalty / 2.0)
                record.odds = min(1.0, odds * record.penalty)
            elif record.standing is Standing.SUSPECT:
                record.standing, record.agreed, record.penalty = Standing.NEWCOMER, 0, RETURNED_PENALTY
            if record.k:
                record.k_past[self.window] = record.k
            record.k = record.claims_now = record.drawn = record.answered = 0
            record.k_past.pop(self.window - VERIFY_WINDOWS_KEPT, None)
            record.claimed = [index for index in record.claimed if not self.tasks[index].is_final]
        self.window += 1
        self.checks_count = 0
        self._window_begins.append(self._window_end)
        self._window_at = self._now
        self._pools = {}
        for index in range(self._window_begins[0], self._window_end):
            if self.tasks[index].accepted is None and not self.keeps_originals:
                self._put_back(index)
        self._fill_window()

    def join(self, now: float, worker: Worker, *, cluster: bytes | None = None, is_known: bool = False) -> bool:
        """Let a worker take part.

        Args:
            cluster: what makes it dependent on others.
            is_known: it belongs to the first cohort, whose share of saboteurs is assumed; others are newcomers.

        Returns:
            False when too many are new: it may ask again.
        """
        if worker in self.workers:
            return True
        if is_known:
            record = WorkerRecord(cluster, Standing.ACTIVE, self.policy.odds)
        else:
            grown = self._newcomer_tokens + (now - self._tokens_at) * self.policy.newcomers_per_hour / 3600.0
            self._newcomer_tokens, self._tokens_at = min(grown, self.policy.newcomers_burst), now
            if self._newcomer_tokens < 1.0 or len(self.workers) >= VERIFY_WORKERS_MAX:
                self.refused_count += 1
                return False
            self._newcomer_tokens -= 1.0
            record = WorkerRecord(cluster, Standing.NEWCOMER, 1.0)
        self.workers[worker] = record
        self._has_clusters |= cluster is not None
        return True

    def is_banned(self, worker: Worker) -> bool:
        return self.workers[worker].standing is Standing.BANNED

    def pardon(self, worker: Worker) -> None:
        if worker in self.workers and self.is_banned(worker):
            known = self.workers[worker]
            fresh = self.workers[worker] = WorkerRecord(known.cluster, Standing.NEWCOMER, 1.0)
            fresh.penalty, fresh.k, fresh.k_past = RETURNED_PENALTY, known.k, known.k_past

    # --- who computes what ------------------------------------------------------------------------

    def level(self, index: int) -> int | None:
        """How many claims of weight a task has, when it wants a further copy; None: it does not."""
        task = self.tasks[index]
        if task.accepted is not None or task.is_copied or not task.claims:
            return None
        if task.is_disputed and self.can_judge(index):
            return None
        return self._weight(index)

    def may_take(self, worker: Worker, index: int) -> bool:
        task = self.tasks[index]
        if worker in task.claims or worker in task.lent or not self.allows(worker, index):
            return False
        if self._has_clusters:
            cluster = self.workers[worker].cluster
            return cluster is None or all(self.workers[other].cluster != cluster for other in task.claims)
        return True

    def take(
        self, now: float, worker: Worker, rng: random.Random, lane: int = 0, begin: Begin | None = None
    ) -> int | None:
        self._now = now
        standing = self.workers[worker].standing
        if standing is Standing.ACTIVE:
            index = self._take_weighty(worker, rng, lane, begin or self._take_original)
        elif standing is Standing.NEWCOMER:
            index = self._take_probation(worker, rng, lane)
            if index is None and begin is not None:
                index = begin()  # there is nothing to compare it with: somebody else computes that one too
        else:
            return None
        if index is not None:
            task = self.tasks[index]
            task.lent[worker] = bool(task.claims)
            self.workers[worker].drawn += 1
            task.is_copied |= standing is Standing.ACTIVE
        return index

    def _take_weighty(self, worker: Worker, rng: random.Random, lane: int, begin: Begin) -> int | None:
        index = self._take_copy(worker, rng, lane, up_to=1) if rng.random() < COPIES_SHARE else None
        if index is None:
            index = begin()
        return self._take_copy(worker, rng, lane) if index is None else index

    def _take_original(self) -> int | None:
        while self._ready:
            index = self._ready.popleft()
            task = self.tasks[index]
            if not (task.claims or task.is_copied or task.accepted is not None):
                return index
        return None

    def _take_copy(self, worker: Worker, rng: random.Random, lane: int, up_to: int | None = None) -> int | None:
        while (index := self._pool(lane).draw(self, worker, rng, up_to=up_to)) is not None:
            if not self._weigh(index):  # those who claim it may have passed more checks since
                return index
        return None

    def _take_probation(self, worker: Worker, rng: random.Random, lane: int) -> int | None:
        """Return a task of this window whose answer can be compared with a claim, or with what is known."""
        size = self._window_end - self._window_begins[-1]
        for _ in range(min(PROBATION_DRAWS_MAX, size)):
            index = self._window_begins[-1] + int(rng.random() * size)
            task = self.tasks[index]
            is_open = bool(task.claims) and not task.is_final and not task.is_disputed
            if (is_open or task.is_known) and task.lane == lane and self.may_take(worker, index):
                return index
        return None

    def returned(self, now: float, worker: Worker, index: int) -> None:
        task = self.tasks[index]
        if task.lent.pop(worker, None) is not None:
            self._release(worker, task)
            self._put_back(index)

    def taken_back(self, now: float, worker: Worker, index: int) -> None:
        if worker in self.tasks[index].lent:
            record = self.workers[worker]
            record.drawn = max(0, record.drawn - 1)
        self.returned(now, worker, index)

    def late(self, now: float, worker: Worker, index: int) -> None:
        """A worker takes too long for a task that it holds: others may be given it as well.

        What it says still counts.  When several began before there was any claim, only the first claim does: those who
        know that all of them have the task have nobody to fear.
        """
        task = self.tasks[index]
        if worker in task.lent and worker not in task.late:
            task.late += (worker,)
            self._release(worker, task)
            self._put_back(index)

    def _release(self, worker: Worker, task: _Task) -> None:
        """A worker computes this task no more, or takes too long."""
        if task.late and worker not in task.lent:
            task.late = tuple(other for other in task.late if other != worker)
        if self.workers[worker].standing is not Standing.NEWCOMER or not task.lent:
            others = (other for other in task.lent if other not in task.late)
            task.is_copied = any(self.workers[other].standing is not Standing.NEWCOMER for other in others)

    def _put_back(self, index: int) -> None:
        """Put a task where it is handed out from, if it wants to be computed."""
        task = self.tasks[index]
        if task.claims:
            self._offer(index)
        elif self.keeps_originals and not task.is_copied and task.accepted is None:
            self._ready.append(index)

    # --- claims -----------------------------------------------------------------------------------

    def is_blind(self, worker: Worker, index: int) -> bool:
        """Whether a worker's claim would have no weight: it was not given the task, or before there was any claim, and
        now there is one that has weight."""
        task = self.tasks[index]
        is_copy = task.lent.get(worker)
        return is_copy is None or (not is_copy and any(other not in task.blind for other in task.claims))

    def claim(self, now: float, worker: Worker, index: int, digest: Digest) -> list[Effect]:
        self._now = now
        task, record = self.tasks[index], self.workers[worker]
        is_blind = self.is_blind(worker, index)
        if task.lent.pop(worker, None) is not None:
            self._release(worker, task)
            record.answered += 1
        if record.standing is Standing.BANNED:
            self._put_back(index)
            return self.take_effects()
        if index >= self._window_end or (index < self._window_begins[0] and task.is_final):
            self.late_count += 1
            return self.take_effects()
        claims = task.claims
        if worker in claims:
            if claims[worker] != digest:
                self._ban(worker, Why.EQUIVOCATION)
            return self.take_effects()
        claims[worker] = digest
        record.claims_now += 1
        if task.is_final:
            if task.is_known:
                self._judge(index, (worker,))
            return self.take_effects()
        record.claimed.append(index)
        if is_blind:
            task.blind += (worker,)
        if len(claims) == 1:
            self._offer(index)
            return self.take_effects()
        if task.is_disputed or any(other != digest for other in claims.values()):
            if not task.is_disputed and self.can_judge(index):
                self._effects.append(AskTrusted(index))
            task.is_disputed = True
        else:
            self._agree(index, worker)
        if not self._weigh(index):
            self._offer(index)
        return self.take_effects()

    def _agree(self, index: int, worker: Worker) -> None:
        """All who claim this task claim the same; `worker` was the last."""
        task, workers = self.tasks[index], self.workers
        partners = [
            other
            for other in task.claims
            if other is not worker and workers[other].standing is Standing.ACTIVE and other not in task.blind
        ]
        if not partners or worker in task.blind:
            return
        record = workers[worker]
        was_active = record.standing is Standing.ACTIVE
        self._was_right(record)
        if not was_active:
            return
        for other in partners:
            workers[other].right += 1
        if task.window == self.window:
            self._credit(index, worker)
            for other in partners:
                self._credit(index, other)

    def _was_right(self, record: WorkerRecord) -> None:
        record.right += 1
        record.agreed += 1
        if record.standing is Standing.NEWCOMER and record.agreed >= PROBATION_AGREEMENTS:
            record.standing, record.odds = Standing.ACTIVE, min(1.0, self.policy.odds * record.penalty)
            for index in record.claimed:  # from now on they count
                self._put_back(index)

    def _credit(self, index: int, worker: Worker) -> None:
        task = self.tasks[index]
        if worker not in task.credited:
            task.credited.append(worker)
            self.workers[worker].k += 1
            self.checks_count += 1

    def _discredit(self, index: int, worker: Worker) -> None:
        task = self.tasks[index]
        if worker in task.credited:
            task.credited.remove(worker)
            if task.window == self.window:
                self.workers[worker].k -= 1

    # --- acceptance -------------------------------------------------------------------------------

    def risk(self, index: int, group: Iterable[Worker] | None = None) -> float:
        """Bound the probability that what a group claims is wrong, though all of it claims the same.

        Args:
            group: those who claim one value, when there are several.
        """
        task = self.tasks[index]
        is_now = task.window == self.window
        odds, checks, history, count, most = 1.0, 0, 0.0, 0, 1.0
        for worker in task.claims if group is None else group:
            record = self.workers[worker]
            if record.standing is not Standing.ACTIVE or (task.blind and worker in task.blind):
                continue
            count += 1
            choice = record.choice
            odds, most = odds * record.odds * choice, max(most, choice)
            checks += record.k if is_now else record.k_past.get(task.window, 0)
            present = max(1, record.claims_now)  # none yet, when it is about a task of a former window
            history = max(history, present / (present + record.checks_before))
        if count < 2:
            # Nobody compared it: all that is known is what is known of its worker.
            return min(1.0, odds) if count else 1.0
        risk = coalition_risk(odds * most, checks, self.policy.saboteurs)
        return min(1.0, risk * min(1.0, max(HISTORY_FACTOR_MIN, math.e * history)))

    def _weigh(self, index: int) -> bool:
        """Accept a task if its claims are enough; returns whether it is accepted now."""
        task = self.tasks[index]
        if task.accepted is None and task.claims:
            if task.is_disputed:
                if not self.can_judge(index):
                    self._outvote(index)
            elif self._is_enough(index):
                self._accept(index, next(iter(task.claims.values())), Basis.AGREED)
                self._look_further()
        return task.accepted is not None

    def _is_enough(self, index: int) -> bool:
        """The rule: whether the claims of a task, which all agree, make it credible."""
        if self.policy.replicas is not None:
            return self._weight(index) >= self.policy.replicas
        return self.risk(index) <= self.policy.error_rate

    def _weight(self, index: int) -> int:
        """Return how many claims of a task count."""
        task = self.tasks[index]
        actives = (worker for worker in task.claims if self.workers[worker].standing is Standing.ACTIVE)
        return sum(worker not in task.blind for worker in actives)

    def _outvote(self, index: int) -> None:
        """Accept one of several values if it is credible enough: there is no trusted node to decide."""
        groups = votes(self.tasks[index].claims)
        risks = {digest: self.risk(index, group) for digest, group in groups.items()}
        best = min(risks, key=lambda digest: risks[digest])
        odds = [(1.0 - risk) / risk for digest, risk in risks.items() if digest != best]
        if group_credibility([(1.0 - risks[best]) / risks[best], *odds]) < 1.0 - self.policy.error_rate:
            return
        self._accept(index, best, Basis.OUTVOTED)
        self.tasks[index].is_final = True
        for digest, group in groups.items():
            for worker in group if digest != best else ():
                self._fault(worker, index)
        self._look_further()

    def settle(self, indices: Iterable[int] | None = None) -> list[Effect]:
        """Accept what has become credible since it was last looked at; returns what follows.

        `take` does the same for each task before it is copied once more, which may be much later.

        Args:
            indices: the tasks that are looked at; None: all of the window.
        """
        for index in range(self._window_begins[-1], self._window_end) if indices is None else indices:
            self._weigh(index)
        return self.take_effects()

    # --- verdicts ---------------------------------------------------------------------------------

    def verdict(self, now: float, index: int, digest: Digest, *, alike: Sequence[Digest] = ()) -> list[Effect]:
        """Take the answer of a trusted node, to an `AskTrusted` or of its own accord; returns what follows.

        Args:
            alike: other answers that are as right: nobody is to blame for them.
        """
        self._now = now
        task = self.tasks[index]
        if task.is_final:
            return []
        if task.claims and task.trusted is None and digest not in task.claims.values():
            task.trusted = digest  # it contradicts everybody: before that costs somebody anything, it is done again
            task.is_disputed = True
            return [AskTrusted(index)]
        task.is_final, task.is_disputed = True, False
        if task.accepted not in (None, digest):
            self._effects.append(Revoked(index))
        self._accept(index, digest, Basis.TRUSTED)
        if task.is_known:
            self._judge(index, tuple(task.claims), alike)
        else:
            self._effects.append(Nondeterministic(index))
        self._look_further()
        return self.take_effects()

    def _judge(self, index: int, judged: tuple[Worker, ...], alike: Sequence[Digest] = ()) -> None:
        """Hold a final task against some of those who claim it."""
        task = self.tasks[index]
        for digest, group in votes(task.claims).items():
            for worker in group:
                if worker not in judged or self.is_banned(worker):
                    continue
                if digest != task.accepted and digest not in alike:
                    self._ban(worker, Why.SHARED_WRONG) if len(group) > 1 else self._fault(worker, index)
                    continue
                self._was_right(self.workers[worker])
                if task.window == self.window and worker not in task.blind:
                    self._credit(index, worker)

    def equivocated(self, worker: Worker) -> list[Effect]:
        """Somebody showed two different answers that this worker signed for one task; returns what follows."""
        if worker in self.workers and not self.is_banned(worker):
            self._ban(worker, Why.EQUIVOCATION)
        return self.take_effects()

    def _fault(self, worker: Worker, index: int) -> None:
        """A lone wrong value of a task: of a saboteur, or of a machine that errs."""
        record = self.workers[worker]
        record.wrong += 1
        record.agreed = record.checks_before = 0
        record.penalty *= SUSPECT_FACTOR
        record.odds = min(1.0, self.policy.odds * record.penalty)
        certainty = fault_rate_exceeds(FAULT_RATE_MAX, record.wrong, record.right, prior_right=FAULT_PRIOR_RIGHT)
        if certainty > FAULT_CONFIDENCE and self.can_judge(index):
            self._ban(worker, Why.FAULTY)
            return
        if record.odds >= 1.0 or record.standing is Standing.NEWCOMER:
            record.standing = Standing.SUSPECT
        for other in record.claimed:
            self._discredit(other, worker)
            self._doubt(other)

    def _doubt(self, index: int) -> None:
        """Somebody who claims this task is believed less than before."""
        task = self.tasks[index]
        if task.is_final or task.window != self.window:
            return
        if task.accepted is not None and not self._is_enough(index):
            self._unaccept(index)
            self._effects.append(Recheck(index))
        self._put_back(index)

    def _ban(self, worker: Worker, why: Why) -> None:
        """Erase what a worker claimed, and what rests on it."""
        record = self.workers[worker]
        record.standing = Standing.BANNED
        self._effects.append(Banned(worker, why))
        for index in record.claimed:
            self._discredit(index, worker)
            task = self.tasks[index]
            if task.is_final:
                continue
            self._erase(index, worker)
        record.claimed.clear()

    def _erase(self, index: int, worker: Worker) -> None:
        """Drop a worker's claim about a task that is not final, and what rests on it."""
        task = self.tasks[index]
        digest = task.claims.pop(worker)
        if worker in task.blind:
            task.blind = tuple(other for other in task.blind if other != worker)
        standings = [self.workers[other].standing for other in task.claims]
        if len(standings) - standings.count(Standing.NEWCOMER) == 1:
            for other in tuple(task.credited):  # nobody else confirmed that one
                self._discredit(index, other)
        was_disputed = task.is_disputed
        task.is_disputed = was_disputed and (task.trusted is not None or len(votes(task.claims)) > 1)
        if task.accepted == digest and not self._is_enough(index):
            self._unaccept(index)
            self._effects.append(Revoked(index))
        elif was_disputed and not task.is_disputed:  # or all that a liar ever said would wait for a trusted node
            self._effects.append(Withdrawn(index))
        self._put_back(index)

    # --- checks -----------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        super().check_invariants()
        checks = dict.fromkeys(self.workers, 0)
        ready = frozenset(self._ready)
        for index, task in enumerate(self.tasks):
            for worker in task.credited:
                checks[worker] += task.window == self.window
            if task.is_final:
                continue
            if any(self.is_banned(worker) for worker in task.claims):
                raise InvariantViolation(f"task {index} rests on somebody who is banned")
            if task.accepted is not None and not task.is_disputed and len(votes(task.claims)) != 1:
                raise InvariantViolation(f"task {index} is accepted without agreement")
            if task.is_disputed and task.trusted is None and len(votes(task.claims)) < 2:
                raise InvariantViolation(f"task {index} is disputed by nobody")
            if task.is_copied and not task.lent:
                raise InvariantViolation(f"task {index} is computed by nobody")
            is_open = index < self._window_end and task.accepted is None and self.keeps_originals
            if is_open and not task.claims and not task.is_copied and index not in ready:
                raise InvariantViolation(f"task {index} is handed out to nobody")
        for worker, count in checks.items():
            if self.workers[worker].k != count:
                raise InvariantViolation(f"{worker!r} has k = {self.workers[worker].k} and {count} credits")
