"""What becomes of an attempt's result.

A good one counts whoever brings it and however late, once per generation.  A bad one counts only from the holder of the
lease: failures of the task itself run again elsewhere, `retries` times; what kills nodes is given up (`_poison`); the
loss of a node counts for nothing.  What members say goes to `Acceptance`, which has its decisions made here.
"""

from __future__ import annotations

from dataclasses import replace

from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import FAILS_ALWAYS, FAILS_HERE, FAILS_ON_LIKE, Outcome, OutcomeStatus
from p2pcompute.limits import (
    ATTEMPTS_MAX,
    JOB_NODES_MAX,
    JOB_SKEW_S_MAX,
    POISON_NODES,
    REFUSALS_FREE,
    REFUSALS_MAX,
    REFUSED_S_MAX,
    REFUSED_S_MIN,
    RUNTIME_DRIFT_MAX,
)
from p2pcompute.scheduler.books import Lease, OwnedJob, Refusals
from p2pcompute.scheduler.checkpoints import Saved
from p2pcompute.scheduler.fairness import Standing
from p2pcompute.scheduler.ledger import GENERATION_MAX, FactKind, TaskState
from p2pcompute.scheduler.owner.rule import AVOID_S, Rule
from p2pcompute.scheduler.stealing import LOCAL

ELSEWHERE_S = 1.0
"""How long a failed task waits for another node at first: one that is free has asked for work by then."""
NODE_DEATHS_MAX = 30
"""Nodes that died while a task ran, after which it has failed where no other node may run it."""
WITH_NODE = "with-node"
"""Cause of a death that its node found when it came back: the node's own process died while the task ran."""
MOVED = "moved"
"""Cause of an attempt that has saved its state because it wants to go on elsewhere."""


class Results(Rule):
    """Takes results into the books."""

    @staticmethod
    def as_seen(now: float, wall: float, job: OwnedJob, thief: bytes, index: int, outcome: Outcome) -> Outcome:
        """Return another node's outcome with no more run time than went by here since it was given the task; when that
        is not known, since the job was submitted.  Its CPU time is cut by as much.  When it began is taken from its end
        here, if the node told nothing that can be.

        Args:
            wall: Unix seconds.
        """
        lease = job.leases.get(index)
        if (lease is None or lease.thief != thief) and job.checked is not None:
            lease = job.checked.leases.get(index, {}).get(thief)
        if lease is not None and lease.thief == thief and not lease.is_found:
            seen_s = now - lease.since
        else:
            seen_s = wall - job.envelope.terms.created_ms / 1000 + (0.0 if job.is_own else JOB_SKEW_S_MAX)
        most_s = RUNTIME_DRIFT_MAX * max(0.0, seen_s)
        if outcome.runtime_s > most_s:
            outcome = replace(outcome, runtime_s=most_s, cpu_s=outcome.cpu_s * most_s / outcome.runtime_s)
        if outcome.runtime_s and not outcome.started_wall:
            outcome = replace(outcome, started_wall=wall - outcome.runtime_s)
        return outcome

    def result(
        self,
        now: float,
        thief: bytes,
        installation: bytes,
        job_id: bytes,
        index: int,
        generation: int,
        attempt: int,
        outcome: Outcome,
        digest: bytes,
        *,
        relayed_by: bytes | None = None,
        boot: bytes = b"",
    ) -> bool:
        """Take one attempt's end into the books.

        A good result counts whoever brings it and however late (epochs and leases never fence results), once per
        generation.  A bad one counts only from the holder of the lease.

        Returns:
            True when it changed anything; the claim is then worth journaling.
        """
        job = self.jobs.get(job_id)
        if job is None:
            return False
        if thief != LOCAL and not self.acceptance.believes(job, installation):
            return self._claimed(
                now, job, thief, installation, index, generation, (attempt, boot), outcome, digest, relayed_by
            )
        if job.checked is not None and index < job.ledger.size and generation == job.ledger.generation(index):
            if outcome.status is OutcomeStatus.OK:
                if self.acceptance.settled(now, job, thief, installation, index, outcome, digest):
                    return True
            elif self.acceptance.returned(now, job, index, thief, attempt=attempt):
                return self._could_not_settle(job, index, thief, outcome)
        if not job.ledger.is_open(index, generation):
            return False
        lease = job.leases.get(index)
        is_holder = lease is not None and lease.thief == thief and lease.attempt == attempt
        if is_holder or outcome.status is OutcomeStatus.OK:
            self.order.charge(job_id, max(0.0, outcome.runtime_s) * (1 if lease is None else lease.width))
        if outcome.status is OutcomeStatus.OK:
            if lease is not None and not is_holder:
                self._effects.stops.append((lease.thief, job_id, [index], True))
            job.attempts[index] = max(job.attempts.get(index, 0), attempt)
            self._note_begun(now, job, thief, outcome)
            self._note_good(now, job, index, installation)
            self._accept(job, index, outcome, thief, digest)
            return True
        if outcome.status is OutcomeStatus.DIED and outcome.cause == WITH_NODE:
            return self._died_with_node(now, job, index, installation, attempt, outcome, thief)
        if lease is None or not is_holder:
            return False
        if outcome.status in (OutcomeStatus.KILLED, OutcomeStatus.DIED) and (outcome.value or outcome.value_blob):
            blob = None if outcome.value_blob is None else BlobRef(*outcome.value_blob)
            saved = Saved(cookie=outcome.value, blob=blob, generation=generation, attempt=attempt)
            self.save(thief, installation, job_id, index, saved)
        is_excused = self._judge_saved(job, index, lease, outcome)
        self._release(job, index)
        said = f"{outcome.status} {outcome.error.strip()[-200:]}".rstrip()
        job.tell(now, index, f"attempt {attempt}: {said}")
        if outcome.status not in (OutcomeStatus.NOT_RUN, OutcomeStatus.REFUSED):
            self._note_lost(job, index, lease, said, outcome)
        row = self._note_begun(now, job, thief, outcome)
        match outcome.status:
            case OutcomeStatus.FAILED | OutcomeStatus.TIMEOUT if is_excused:
                self._again(now, job, index, installation)
            case OutcomeStatus.FAILED | OutcomeStatus.TIMEOUT:
                job.failures[index] = job.failures.get(index, 0) + 1
                is_final = outcome.cause == FAILS_ALWAYS
                if outcome.cause in (FAILS_HERE, FAILS_ON_LIKE):
                    machine = self.machine_of(thief) if outcome.cause == FAILS_ON_LIKE else ""
                    job.wrong_for.setdefault(index, set()).add(machine or installation)
                    is_final = not self.has_right_one(now, job, index)
                if job.failures[index] > job.envelope.terms.retries or is_final:
                    self._fail(job, index, outcome, thief, "")
                else:
                    self._again(now, job, index, installation)
            case OutcomeStatus.DIED:
                job.deaths.setdefault(index, {})[installation, attempt] = False
                if evidence := self._poison(now, job, index):
                    self._fail(job, index, outcome, thief, evidence)
                else:
                    self._again(now, job, index, installation)
            case OutcomeStatus.REFUSED | OutcomeStatus.NOT_RUN | OutcomeStatus.KILLED:
                will_not = outcome.status is OutcomeStatus.REFUSED
                if self._is_spent(job, index):
                    self._fail(job, index, outcome, thief, f"given up after {ATTEMPTS_MAX} attempts; the last: {said}")
                elif will_not and row >= REFUSALS_MAX and not self.has_other(now, job, [installation]):
                    job.unfit.pop(thief, None)  # the next one has failed as well
                    self._fail(job, index, outcome, thief, f"no other node may run it, and this one refuses: {said}")
                else:
                    has_not_begun = outcome.status is not OutcomeStatus.KILLED
                    if has_not_begun or outcome.cause == MOVED:
                        self._avoid(now, job, index, installation)
                    job.retried += will_not
                    self._requeue(job, index, is_last=has_not_begun)
        return True

    @staticmethod
    def _note_begun(now: float, job: OwnedJob, thief: bytes, outcome: Outcome) -> int:
        """Count tasks of a job that a node has not begun, in a row; the more they are, the longer it gets none of it.

        What merely waited behind another task, and was not begun because that died, says nothing about the node.

        Returns:
            How many there are.
        """
        if outcome.status not in (OutcomeStatus.REFUSED, OutcomeStatus.NOT_RUN):
            job.refusals.pop(thief, None)
            return 0
        if not outcome.error:
            return 0
        known = job.refusals.setdefault(thief, Refusals())
        if len(job.refusals) > JOB_NODES_MAX:
            del job.refusals[next(iter(job.refusals))]
        known.why = outcome.error.strip()[-200:]
        if job.unfit.get(thief, now) <= now:  # else it was given this one before
            known.count = min(REFUSALS_MAX, known.count + 1)
            if known.count >= REFUSALS_FREE:
                job.unfit = {key: until for key, until in job.unfit.items() if until > now}
                job.unfit[thief] = now + min(REFUSED_S_MAX, REFUSED_S_MIN * 2.0 ** (known.count - REFUSALS_FREE))
        return known.count

    def _claimed(
        self,
        now: float,
        job: OwnedJob,
        thief: bytes,
        installation: bytes,
        index: int,
        generation: int,
        lease_of: tuple[int, bytes],
        outcome: Outcome,
        digest: bytes,
        relayed_by: bytes | None,
    ) -> bool:
        """Take what a member says that it found."""
        if index >= job.ledger.size or generation != job.ledger.generation(index):
            return False
        lease = job.leases.get(index)
        if lease is not None and lease.thief == thief:  # it was trusted when it began
            self._release(job, index)
            self._requeue(job, index)
        self.order.charge(job.envelope.job_id, max(0.0, outcome.runtime_s))
        self._note_begun(now, job, thief, outcome)
        if outcome.status is OutcomeStatus.OK:
            self._note_duration(job, outcome, thief)
            job.failed_in_row.pop(installation, None)
        return self.acceptance.claimed(
            now, job, thief, installation, index, lease_of, outcome, digest, relayed_by=relayed_by
        )

    # --- failures -------------------------------------------------------------------------------------

    def _again(self, now: float, job: OwnedJob, index: int, installation: bytes) -> None:
        self._avoid(now, job, index, installation, for_s=self._patience_s(job, installation))
        job.retried += 1
        self._requeue(job, index)

    def _patience_s(self, job: OwnedJob, installation: bytes) -> float:
        """Return how long a task that has failed on a node leaves it free when all others are busy.

        Not long: they may be so for hours.  But where task after task fails while others are at work for the job, it
        may be the node that is at fault, and it would fail all of them before the others have ended one.
        """
        row = job.failed_in_row[installation] = job.failed_in_row.get(installation, 0) + 1
        if len(job.failed_in_row) > JOB_NODES_MAX:
            del job.failed_in_row[next(iter(job.failed_in_row))]
        is_shared = any(
            leased > 0 and key in self.thieves and self.thieves[key][0].installation != installation
            for key, (leased, _done, _failed) in job.by_thief.items()
        )
        return min(AVOID_S, ELSEWHERE_S * 2.0 ** min(row - 1, 16)) if is_shared else ELSEWHERE_S

    @staticmethod
    def _avoid(now: float, job: OwnedJob, index: int, installation: bytes, *, for_s: float = AVOID_S) -> None:
        """Prefer other nodes for this task for a while."""
        nodes = job.avoid.get(index, ([], 0.0))[0]
        if installation not in nodes:
            nodes.append(installation)
        job.avoid[index] = (nodes, now + for_s)

    def _died_with_node(
        self, now: float, job: OwnedJob, index: int, installation: bytes, attempt: int, outcome: Outcome, thief: bytes
    ) -> bool:
        """Count a task's part in the death of a whole node, once for each attempt.  Another may be under way."""
        deaths = job.deaths.setdefault(index, {})
        if (installation, attempt) in deaths:
            return False
        deaths[installation, attempt] = True
        job.tell(now, index, f"{thief.hex()[:8]} died while it ran")
        self._avoid(now, job, index, installation)
        if evidence := self._poison(now, job, index):
            self._fail(job, index, outcome, thief, evidence)
        return True

    def _poison(self, now: float, job: OwnedJob, index: int) -> str:
        """Return the evidence that a task kills what runs it; "" while there is too little, and it is tried again.

        Deaths on POISON_NODES nodes are enough.  Where fewer nodes may run it, so many deaths of its process are; those
        of whole nodes have other causes more often, and NODE_DEATHS_MAX of them are.  So many end it also where other
        nodes may run it: they may be busy for hours, and it would kill process after process all the while.
        """
        deaths = job.deaths[index]
        nodes = dict.fromkeys(installation for installation, _attempt in deaths)
        if len(nodes) < POISON_NODES and len(deaths) < NODE_DEATHS_MAX:
            is_enough = list(deaths.values()).count(False) >= POISON_NODES
            if not is_enough or self.has_other(now, job, nodes):
                return ""
        with_node = ", which died with it" if all(deaths.values()) else ""
        return f"its process died {len(deaths)} times on {len(nodes)} node(s){with_node}"

    # --- what `Acceptance` decides --------------------------------------------------------------------

    def accept_checked(self, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, digest: bytes) -> None:
        """End a task that was held, with this result of this node."""
        self._accept(job, index, outcome, thief, digest)

    def requeue_checked(self, job: OwnedJob, index: int) -> None:
        """An open task is held no longer, and nobody has claimed it."""
        self._requeue(job, index)

    def unlease(self, job: OwnedJob, index: int, *, kill: bool = False) -> None:
        """End the lease of a task that members have claimed: whoever had it has told its result, or is not needed.

        Args:
            kill: not even if it has begun.
        """
        lease = self._release(job, index)
        if lease is not None:
            self._effects.stops.append((lease.thief, job.envelope.job_id, [index], kill))

    def released_checked(self, job: OwnedJob, lease: Lease) -> None:
        """A node computes a task no more whose lease `Acceptance` keeps."""
        job.share(lease.thief)[0] -= 1
        self.order.charge(job.envelope.job_id, -lease.charged_s)

    def _could_not_settle(self, job: OwnedJob, index: int, thief: bytes, outcome: Outcome) -> bool:
        """A node that is believed could not compute what others claim to have computed."""
        if outcome.status in (OutcomeStatus.FAILED, OutcomeStatus.TIMEOUT, OutcomeStatus.DIED):
            job.failures[index] = job.failures.get(index, 0) + 1
            if job.ledger.state(index) is TaskState.OPEN and job.failures[index] > job.envelope.terms.retries:
                self._fail(job, index, outcome, thief, "")
        return True

    def failed_checked(
        self, now: float, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, installation: bytes
    ) -> None:
        """A member says that a task which was held has failed: that is believed as far as others may try it too."""
        job.tell(now, index, f"{thief.hex()[:8]} says: {outcome.status} {outcome.error.strip()[-200:]}".rstrip())
        if outcome.status in (OutcomeStatus.NOT_RUN, OutcomeStatus.KILLED):
            self._avoid(now, job, index, installation)
            self._requeue(job, index)
            return
        if outcome.status is not OutcomeStatus.REFUSED:
            job.failures[index] = job.failures.get(index, 0) + 1
            if self._have_members_failed(now, job, index, installation):
                self._fail(job, index, outcome, thief, "")
                return
        self._again(now, job, index, installation)

    def _have_members_failed(self, now: float, job: OwnedJob, index: int, installation: bytes) -> bool:
        """Whether a task has failed though no trusted node says so: there is none, and members enough have tried it."""
        if job.failures[index] <= job.envelope.terms.retries or not self.acceptance.are_members_alone(now, job, index):
            return False
        nodes = {*job.avoid.get(index, ([], 0.0))[0], installation}
        return len(nodes) > job.envelope.terms.retries or not self.has_other(now, job, nodes)

    def reopen(self, job: OwnedJob, index: int, payload: bytes, why: str) -> bool:
        """Believe an accepted result no longer; False when the task cannot be run again."""
        generation = job.ledger.generation(index) + 1
        if generation > GENERATION_MAX or job.ledger.retry(index, generation) is None:
            return False
        job.payloads[index] = payload
        job.revoked_count += 1
        job.revoked_late += job.has_ended
        self.note(job, FactKind.REVOKE, [index, generation, why])
        self._effects.revoked.append((job.envelope.job_id, index, generation - 1))
        self.order.add(job.envelope.job_id, Standing.of(job.envelope))
        return True

    def disputed(self, job: OwnedJob, index: int, why: str) -> None:
        """Nobody can say which of several results of a task is right: it has failed."""
        self._fail(job, index, None, LOCAL, why)
