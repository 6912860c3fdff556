"""Commit, compare, arbitrate, ban, reopen: the method that nodes use.

    original   every task of a window once, by somebody known; some early copies, only to find out blatant saboteurs
    copy       when all are claimed: further copies of random tasks that are not accepted, fewest copies first
    agreement  of two independent claims in that phase: one passed check (k) for each who had none for this task
    conflict   a trusted node computes the task; a value that two signed bans both, a lone one makes a suspect
    ban        erases all that the worker claimed; what rested on it is computed again
    accept     claims that agree, as soon as the risk that all of them belong to one coalition is small enough

A claim exists before its task is copied, and no copy is marked as one.  Checks count for the claims of their own
window only, and all of these were made before: who behaves well first earns nothing for what it does later.  The
guarantee is about the share of wrong results among all accepted ones, for any rate of sabotage, whether saboteurs act
alone or as one, as long as at most the assumed share of those who are not new belongs to them.

Newcomers prove themselves on copies that count for nobody.  Suspects rest until the next window and begin as newcomers
do.  Windows that a worker came through lower the risk of a group by its share in time: who strikes in one window of w
spoils one part in w, so the mean over them stays below the bound.

Deviations from Sarmenta: no known-answer checks; h(K) of the whole group in place of a product over its members.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from p2pcompute.errors import InvariantViolation
from p2pcompute.trust.verification.book import (
    AskTrusted,
    Banned,
    Basis,
    Digest,
    Effect,
    Nondeterministic,
    Pools,
    Ready,
    Recheck,
    Revoked,
    Task,
    Verifier,
    Why,
    Worker,
    votes,
)
from p2pcompute.trust.verification.formulas import coalition_risk, fault_rate_exceeds

if TYPE_CHECKING:
    import random

EARLY_COPIES_MAX: Final = 0.15
"""Share of what is handed out in the first phase that is copies: ends the work of blatant saboteurs soon."""
PROBATION_CHECKS: Final = 20
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
CHECKS_MIN: Final = 20
"""Checks without which a window does not count as one that a worker came through."""
DRAWS_MAX: Final = 32


class Standing(IntEnum):
    """How far a worker is believed."""

    NEWCOMER = 1
    ACTIVE = 2
    SUSPECT = 3
    BANNED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbitratePolicy:
    """Settings of the method."""

    error_rate: float = 1e-4
    """Accepted probability that a result is wrong."""
    saboteurs: float = 0.2
    """Assumed share of saboteurs among those who are not new; below 1/2."""
    window_tasks: int = 20_000
    """Tasks in which checks are counted together.  More: fewer copies."""
    wave_tasks: int = 1000
    """Of these, as many are claimed before they are copied.  More: results are accepted later."""
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

    __slots__ = ("agreed", "claimed", "claims_before", "claims_now", "cluster", "k", "k_before_wave", "k_past", "odds",
                 "penalty", "right", "standing", "wrong")  # fmt: skip

    def __init__(self, cluster: bytes | None, standing: Standing, odds: float) -> None:
        self.cluster = cluster
        """Who shares it with others vouches for nothing that they claim: same inviter, same address range."""
        self.standing = standing
        self.odds = odds
        """That it is a saboteur."""
        self.penalty = 1.0
        self.k = 0
        """Checks passed in this window."""
        self.k_before_wave = 0
        """Of these, before the present wave began."""
        self.k_past: dict[int, int] = {}
        """Of earlier windows, by their number."""
        self.agreed = 0
        """Agreements since it was new, or under suspicion."""
        self.right = 0
        self.wrong = 0
        """Comparisons over its life."""
        self.claimed: list[int] = []
        """Tasks that rest on it; final ones are dropped now and then."""
        self.claims_now = 0
        self.claims_before = 0
        """Claims of this window, and of those that it came through."""


class _Task(Task):
    __slots__ = ("blind", "credited", "is_copied", "is_disputed", "trusted", "window")

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.credited: list[Worker] = []
        """Those whose claim was checked by another one and counted."""
        self.blind: tuple[Worker, ...] = ()
        """Those who got it before the first claim came: they can contradict, and add no weight."""
        self.is_copied = False
        """Somebody whose claim will have weight computes it now."""
        self.is_disputed = False
        """A trusted node computes it."""
        self.trusted: Digest | None = None
        """What a trusted node found that agrees with no claim; a second one is asked."""


class Arbitrate(Verifier):
    """The books of one submitter."""

    tasks: list[_Task]  # type: ignore[assignment]

    def __init__(self, policy: ArbitratePolicy) -> None:
        super().__init__()
        self.policy = policy
        self.workers: dict[Worker, WorkerRecord] = {}
        self.window = 0
        self._window_begin = 0
        self._window_end = 0
        self._wave_begin = 0
        self._is_copying = False
        self._ready = Ready()
        self._newcomer_tokens = float(policy.newcomers_burst)
        self._tokens_at = 0.0
        self._has_clusters = False

    # --- tasks and workers ------------------------------------------------------------------------

    def add(self, count: int) -> None:
        self.tasks.extend(_Task(0) for _ in range(count))
        if not self._window_end:
            self._open_wave()
        else:
            self._look_further()

    def _open_wave(self) -> bool:
        """Make tasks of the next wave of this window ready; returns whether there are any."""
        limit = self._window_begin + self.policy.window_tasks
        end = min(len(self.tasks), limit, self._window_end + self.policy.wave_tasks)
        if end == self._window_end:
            return False
        for record in self.workers.values():
            record.k_before_wave = record.k
        for index in range(self._window_end, end):
            self.tasks[index].window = self.window
            self._ready.put(index)
        self._wave_begin, self._window_end = self._window_end, end
        self._is_copying = False
        return True

    def _next_window(self) -> None:
        """Begin a window: checks start anew, and history is written."""
        odds = self.policy.odds
        for record in self.workers.values():
            if record.k >= CHECKS_MIN and record.standing is Standing.ACTIVE:
                record.claims_before += record.claims_now
                record.penalty = max(1.0, record.penalty / 2.0)
                record.odds = min(1.0, odds * record.penalty)
            if record.k:
                record.k_past[self.window] = record.k
            record.k = record.k_before_wave = record.claims_now = 0
            if record.standing is Standing.SUSPECT:
                record.standing, record.agreed, record.penalty = Standing.NEWCOMER, 0, 2.0
            record.claimed = [index for index in record.claimed if not self.tasks[index].is_final]
        self.window += 1
        self._window_begin = self._window_end
        self._pools = Pools()
        self._open_wave()

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
            rate = self.policy.newcomers_per_hour / 3600.0
            self._newcomer_tokens += (now - self._tokens_at) * rate
            self._newcomer_tokens = min(self._newcomer_tokens, self.policy.newcomers_burst)
            self._tokens_at = now
            if self._newcomer_tokens < 1.0:
                return False
            self._newcomer_tokens -= 1.0
            record = WorkerRecord(cluster, Standing.NEWCOMER, 1.0)
        self.workers[worker] = record
        self._has_clusters |= cluster is not None
        return True

    def is_banned(self, worker: Worker) -> bool:
        return self.workers[worker].standing is Standing.BANNED

    # --- who computes what ------------------------------------------------------------------------

    def level(self, index: int) -> int | None:
        task = self.tasks[index]
        if task.accepted is not None or task.is_copied or (task.is_disputed and self.policy.has_arbiter):
            return None
        claims = task.claims
        if not claims:
            return None  # it is ready, not to be copied
        workers = self.workers
        return sum(workers[worker].standing is Standing.ACTIVE and worker not in task.blind for worker in claims)

    def may_take(self, worker: Worker, index: int) -> bool:
        task = self.tasks[index]
        if worker in task.claims or worker in task.lent:
            return False
        if self._has_clusters:
            cluster = self.workers[worker].cluster
            return cluster is None or all(self.workers[other].cluster != cluster for other in task.claims)
        return True

    def take(self, now: float, worker: Worker, rng: random.Random) -> int | None:
        standing = self.workers[worker].standing
        if standing is Standing.ACTIVE:
            index = self._take_for_active(worker, rng)
        elif standing is Standing.NEWCOMER:
            index = self._probation(worker, rng)
        else:
            return None
        if index is not None:
            task = self.tasks[index]
            task.lent[worker] = bool(task.claims)
        return index

    def _take_for_active(self, worker: Worker, rng: random.Random) -> int | None:
        if self._ready and not self._is_copying and rng.random() < EARLY_COPIES_MAX:
            index = self._pools.draw(self, worker, rng, from_=1, up_to=1)
            if index is not None:
                self.tasks[index].is_copied = True
                return index
        while True:
            while self._ready:
                index = self._ready.take()
                task = self.tasks[index]
                if not (task.claims or task.is_copied or task.is_final):
                    task.is_copied = True
                    return index
            self._is_copying = True
            is_last = not self._has_more_waves
            while True:
                index = self._pools.draw(self, worker, rng, up_to=None if is_last else 1)
                if index is None:
                    break
                if not self._weigh(index):
                    self.tasks[index].is_copied = True
                    return index
            if is_last or not self._open_wave():
                return None

    @property
    def _has_more_waves(self) -> bool:
        return self._window_end < min(len(self.tasks), self._window_begin + self.policy.window_tasks)

    def _probation(self, worker: Worker, rng: random.Random) -> int | None:
        """Return a task of this window that somebody has claimed and that can still be compared."""
        size = self._window_end - self._window_begin
        for _ in range(min(DRAWS_MAX, size)):
            index = self._window_begin + int(rng.random() * size)
            task = self.tasks[index]
            if task.claims and not task.is_disputed and not task.is_final and self.may_take(worker, index):
                return index
        return None

    def returned(self, now: float, worker: Worker, index: int) -> None:
        task = self.tasks[index]
        if task.lent.pop(worker, None) is not None:
            self._free(worker, task)
            self._put_back(index)

    def _free(self, worker: Worker, task: _Task) -> None:
        """Whoever had the copy that counts has it no more."""
        if self.workers[worker].standing is not Standing.NEWCOMER:
            task.is_copied = False

    def _put_back(self, index: int) -> None:
        task = self.tasks[index]
        if not task.claims and not task.is_copied and task.accepted is None:
            self._ready.put(index)
        else:
            self._offer(index)

    # --- claims -----------------------------------------------------------------------------------

    def claim(self, now: float, worker: Worker, index: int, digest: Digest) -> list[Effect]:
        task, record = self.tasks[index], self.workers[worker]
        is_copy = task.lent.pop(worker, None)
        if is_copy is not None:
            self._free(worker, task)
        if record.standing is Standing.BANNED:
            self._put_back(index)
            return self._take_effects()
        if worker in task.claims:
            if task.claims[worker] != digest:
                self._ban(worker, Why.EQUIVOCATION)
            return self._take_effects()
        task.claims[worker] = digest
        record.claims_now += 1
        if task.is_final:
            self._judge(index, [worker])
            return self._take_effects()
        record.claimed.append(index)
        if not is_copy and len(task.claims) > 1:
            task.blind += (worker,)
        if any(other != digest for other in task.claims.values()):
            if not task.is_disputed:
                task.is_disputed = True
                if self.policy.has_arbiter:
                    self._effects.append(AskTrusted(index))
        elif len(task.claims) > 1:
            self._agree(task, worker)
        if not self._weigh(index):
            self._offer(index)
        return self._take_effects()

    def _agree(self, task: _Task, worker: Worker) -> None:
        """All who claim this task claim the same: `worker` was the last."""
        workers, record = self.workers, self.workers[worker]
        partners = [
            other
            for other in task.claims
            if other is not worker and workers[other].standing is Standing.ACTIVE and other not in task.blind
        ]
        if not partners or worker in task.blind:
            return
        record.right += 1
        record.agreed += 1
        if record.standing is Standing.NEWCOMER:
            if record.agreed >= PROBATION_CHECKS:
                record.standing, record.odds = Standing.ACTIVE, min(1.0, self.policy.odds * record.penalty)
            return
        for other in partners:
            workers[other].right += 1
        if self._is_copying and task.window == self.window:
            for other in (worker, *partners):
                if other not in task.credited:
                    task.credited.append(other)
                    workers[other].k += 1

    # --- acceptance -------------------------------------------------------------------------------

    def risk(self, index: int, group: list[Worker] | None = None) -> float:
        """Bound the probability that a task's claims are wrong, all of them being the same.

        Args:
            group: those who claim one value, when there are several.
        """
        task = self.tasks[index]
        is_now = task.window == self.window
        odds, checks, history = 1.0, 0, 0.0
        for worker in task.claims if group is None else group:
            record = self.workers[worker]
            if record.standing is not Standing.ACTIVE or (task.blind and worker in task.blind):
                continue
            odds *= record.odds
            checks += record.k if is_now else record.k_past.get(task.window, 0)
            if len(task.claims) == 1 and is_now:
                # Nobody compared it: what was passed before its own wave says nothing about it.
                checks = record.k - record.k_before_wave if index >= self._wave_begin else 0
            now = record.claims_now
            history = max(history, now / (now + record.claims_before) if record.claims_before else 1.0)
        risk = coalition_risk(odds, checks, self.policy.saboteurs)
        return risk * max(HISTORY_FACTOR_MIN, history) if history else 1.0

    def _weigh(self, index: int) -> bool:
        """Accept a task if its claims are enough; returns whether it is accepted now."""
        task = self.tasks[index]
        if task.accepted is not None:
            return True
        if not task.is_disputed:
            if not task.claims or self.risk(index) > self.policy.error_rate:
                return False
            self._accept(index, next(iter(task.claims.values())), Basis.AGREED)
            self._look_further()
            return True
        return not self.policy.has_arbiter and self._outvote(index)

    def _outvote(self, index: int) -> bool:
        """Accept one of several values by its credibility: there is no trusted node to decide."""
        groups = votes(self.tasks[index].claims)
        risks = {digest: self.risk(index, group) for digest, group in groups.items()}
        best = min(risks, key=lambda digest: risks[digest])
        odds = {digest: (1.0 - risk) / risk for digest, risk in risks.items()}
        if odds[best] / (1.0 + sum(odds.values())) < 1.0 - self.policy.error_rate:
            return False
        self._accept(index, best, Basis.OUTVOTED)
        for digest, group in groups.items():
            if digest != best:
                for worker in group:
                    self._fault(worker)
        self._look_further()
        return True

    def _look_further(self) -> None:
        if self.accepted_count == self._window_end < len(self.tasks) and not self._open_wave():
            self._next_window()

    def settle(self) -> list[Effect]:
        """Accept what has become credible since it was last looked at; returns what follows."""
        for index in range(self._window_begin, self._window_end):
            self._weigh(index)
        return self._take_effects()

    # --- verdicts ---------------------------------------------------------------------------------

    def verdict(self, now: float, index: int, digest: Digest) -> list[Effect]:
        task = self.tasks[index]
        if task.is_final:
            return []
        if digest not in task.claims.values() and task.trusted is None and task.claims:
            task.trusted = digest  # it contradicts everybody: before that costs somebody anything, it is done again
            return [AskTrusted(index)]
        task.is_final, task.is_disputed = True, False
        if task.accepted not in (None, digest):
            self._effects.append(Revoked(index))
        self._accept(index, digest, Basis.TRUSTED)
        if task.trusted not in (None, digest):
            self._effects.append(Nondeterministic(index))
            task.claims.clear()
        else:
            self._judge(index, list(task.claims))
        self._look_further()
        return self._take_effects()

    def _judge(self, index: int, judged: list[Worker]) -> None:
        """Hold a final task against those who claim it."""
        task = self.tasks[index]
        groups = votes(task.claims)
        for digest, group in groups.items():
            for worker in group:
                record = self.workers[worker]
                if worker not in judged or record.standing is Standing.BANNED:
                    continue
                if digest != task.accepted:
                    if len(group) > 1:
                        self._ban(worker, Why.SHARED_WRONG)
                    else:
                        self._fault(worker)
                    continue
                record.right += 1
                record.agreed += 1
                if record.standing is Standing.NEWCOMER and record.agreed >= PROBATION_CHECKS:
                    record.standing, record.odds = Standing.ACTIVE, min(1.0, self.policy.odds * record.penalty)
                if self._is_copying and worker not in task.credited and task.window == self.window:
                    task.credited.append(worker)
                    record.k += 1

    def equivocated(self, worker: Worker) -> list[Effect]:
        """Somebody showed two different answers that this worker signed for one task; returns what follows."""
        if worker in self.workers and not self.is_banned(worker):
            self._ban(worker, Why.EQUIVOCATION)
        return self._take_effects()

    def _fault(self, worker: Worker) -> None:
        """A lone wrong value: a saboteur, or a machine that errs."""
        record = self.workers[worker]
        record.wrong += 1
        record.k = record.k_before_wave = 0
        record.penalty *= SUSPECT_FACTOR
        record.odds = min(1.0, self.policy.odds * record.penalty)
        is_faulty = fault_rate_exceeds(FAULT_RATE_MAX, record.wrong, record.right, prior_right=FAULT_PRIOR_RIGHT)
        if is_faulty > FAULT_CONFIDENCE:
            self._ban(worker, Why.FAULTY)
            return
        if record.odds >= 1.0:
            record.standing = Standing.SUSPECT
        for index in record.claimed:
            task = self.tasks[index]
            if task.is_final or task.window != self.window:
                continue
            if task.accepted is not None and self.risk(index) > self.policy.error_rate:
                self._unaccept(index)
                self._effects.append(Recheck(index))
            self._put_back(index)

    def _ban(self, worker: Worker, why: Why) -> None:
        """Erase what a worker claimed, and what rests on it."""
        record = self.workers[worker]
        record.standing = Standing.BANNED
        self._effects.append(Banned(worker, why))
        for index in record.claimed:
            task = self.tasks[index]
            if task.is_final:
                continue
            digest = task.claims.pop(worker)
            if task.blind:
                task.blind = tuple(other for other in task.blind if other != worker)
            if worker in task.credited:
                task.credited.remove(worker)
                if len(task.credited) == 1:  # nobody else confirmed that one
                    credited = self.workers[task.credited.pop()]
                    if task.window == self.window:
                        credited.k = max(credited.k_before_wave, credited.k - 1)
            if task.accepted == digest and (not task.claims or self.risk(index) > self.policy.error_rate):
                self._unaccept(index)
                self._effects.append(Revoked(index))
            if task.is_disputed and len(votes(task.claims)) < 2 and not self.policy.has_arbiter:
                task.is_disputed = False
            self._put_back(index)
        record.claimed.clear()

    # --- checks -----------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        super().check_invariants()
        for index, task in enumerate(self.tasks):
            if task.is_final:
                continue
            for worker in task.claims:
                if self.workers[worker].standing is Standing.BANNED:
                    raise InvariantViolation(f"task {index} rests on somebody who is banned")
            if task.accepted is not None and not task.is_disputed and len(votes(task.claims)) != 1:
                raise InvariantViolation(f"task {index} is accepted without agreement")
            if task.is_copied and not task.lent:
                raise InvariantViolation(f"task {index} is computed by nobody")
