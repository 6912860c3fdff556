"""What changes with time: leases run out, members take too long, trusted nodes come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from p2pcompute.errors import InvariantViolation
from p2pcompute.scheduler.acceptance.claims import Claims
from p2pcompute.scheduler.books import CheckedJob, Lease, OwnedJob
from p2pcompute.scheduler.checked import Rule
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.stragglers import STRAGGLER_FACTOR
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification.arbitrate import Arbitrate
from p2pcompute.trust.verification.book import Worker, votes

DISPUTED_S: Final = 120.0
"""Results differ, nobody else may compute the task, and this has been so for so long: nobody can say what is right."""
DISPUTED: Final = "disputed"
"""How the reason of such a task's failure begins."""
ACCUSED_MIN: Final = 3
"""Who is in so many conflicts, and in more of them than of agreements, waits until some are decided."""
SETTLE_GROWTH: Final = 1.1
"""Claims that wait are weighed again when there are so many times as many checks as when they were last."""
WEIGHED_MAX: Final = 256
"""Tasks of a job with nothing left to begin whose claims one `tick` weighs again.  At its end hundreds need a few more
checks than there are, and SETTLE_GROWTH would come after the job's last task."""


class Acceptance(Claims):
    """Decides about the results of all jobs of one owner."""

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
            self._look_for_judges(now, thieves)
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
                self._weigh_last(checked)
                self._look_for_late(now, checked, is_late)
        self.ended = {
            checked.job.envelope.job_id: None
            for checked in self._checked_jobs()
            if checked.job.ledger.is_complete and (checked.arbitrations or checked.rechecks)
        }
        for rule, verifier in self.verifiers.items():
            if isinstance(verifier, Arbitrate):
                self._accused[rule] = self._look_for_accused(now, rule, verifier)
                checks = verifier.checks_count
                if checks > SETTLE_GROWTH * self._settled_at.get(rule, 0):
                    self._settled_at[rule] = checks
                    self._follow(rule, verifier.settle())

    def _weigh_last(self, checked: CheckedJob) -> None:
        """Accept what has become credible of a job that waits for nothing else; in turns, when that is much."""
        if isinstance(checked.verifier, Arbitrate) and checked.held:
            held = list(checked.held)
            begin = checked.weighed % len(held)
            checked.weighed = begin + WEIGHED_MAX
            numbers = [checked.numbers[index] for index in held[begin : checked.weighed]]
            self._follow(checked.rule, checked.verifier.settle(numbers))

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

    def _look_for_accused(self, now: float, rule: Rule, verifier: Arbitrate) -> frozenset[Worker]:
        """Return who is contradicted more often than confirmed, while a trusted node can say who is right."""
        if not verifier.has_arbiter:
            return frozenset()
        conflicts = Counter[Worker]()
        for checked in self._checked_jobs():
            if checked.rule == rule and self.has_judge(now, checked):
                conflicts.update(checked.accused())
        workers = verifier.workers
        return frozenset(who for who, count in conflicts.items() if count >= max(ACCUSED_MIN, workers[who].k + 1))

    def _look_for_judges(self, now: float, thieves: Iterable[tuple[Thief, float]]) -> None:
        """Where no trusted node decides, more members do; and where these disagree for good, the task has failed.

        A trusted node that may not run a job (`--require`, `--not-on`, its Python) decides nothing of it.
        """
        trusted = [
            thief for thief, _seen in thieves if thief.is_local or self.level_of(thief.installation) is Level.TRUSTED
        ]
        if trusted:
            self._arbiter_at = now
        for checked in self._checked_jobs():
            checked.since = min(checked.since, now)
            if any(self._owner.may_judge(now, checked.job, thief) for thief in trusted):
                checked.judge_at = now
        without = [checked for checked in self._checked_jobs() if not self.has_judge(now, checked)]
        has_arbiter = self.has_arbiter(now)
        for rule, verifier in self.verifiers.items():
            if isinstance(verifier, Arbitrate):
                lanes = (checked.lane for checked in without if has_arbiter and checked.rule == rule)
                self._follow(rule, verifier.set_arbiter(has_arbiter, frozenset(lanes)))
        for checked in without:
            for index in list(checked.held):
                claims = checked.verifier.tasks[checked.numbers[index]].claims
                is_stuck = not checked.is_computed(index) and now - checked.claimed_at.get(index, now) > DISPUTED_S
                if is_stuck and len(groups := votes(claims)) > 1:
                    said = ", ".join(f"{worker.hex()[:8]}: {digest.hex()[:8]}" for worker, digest in claims.items())
                    self._owner.disputed(checked.job, index, f"{DISPUTED}: {len(groups)} results differ ({said})")

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
