"""What members and trusted nodes say about tasks that are checked; also what they said in earlier lives."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import VERIFY_UNASKED_BYTES_MAX
from p2pcompute.scheduler.acceptance.handing_out import HandingOut
from p2pcompute.scheduler.books import CheckedJob, Lease, OwnedJob
from p2pcompute.scheduler.checked import Output, Record
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification.arbitrate import Arbitrate
from p2pcompute.trust.verification.book import Accepted, Basis, Digest, Worker


class Claims(HandingOut):
    """Takes results."""

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
        if lease is None and relayed_by is None and self._is_unasked(checked, index, installation):
            return False
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
        if before is not None and (not under[1] or checked.signed.get((index, installation)) != under):
            # Two leases, two results: it errs, or the task has more than one result.  Nobody is banned for that.
            # Nor is who names no life, as coordinators of what they computed themselves: it may have lost its memory.
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
            same = [worker for worker, claim in task.claims.items() if claim == digest]
            for worker in [installation, *same] if len(same) == 1 else [installation] * bool(same):
                self.record(worker).agreed += 1  # once for each claim: of two that agree, both did
                self.changed[worker] = None
        if index in checked.check_of:
            number = -checked.check_of[index]
        self._follow(rule, checked.verifier.claim(now, installation, number, digest))
        if job.ledger.state(index) is TaskState.OPEN:
            self._free(checked, index)
        return True

    def _is_unasked(self, checked: CheckedJob, index: int, installation: bytes) -> bool:
        """Whether there is no room for what a member says of a task that it was not lent, or no longer: others wait for
        the rest.  What it says for the second time may be proof of a lie."""
        number = checked.numbers.get(index)
        is_first = number is None or installation not in checked.verifier.tasks[number].claims
        return is_first and (self.held_bytes >= VERIFY_UNASKED_BYTES_MAX or len(checked.signed) >= checked.lends_max)

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

        It is accepted here, as a verdict, or asked for once more when it contradicts everybody.  Of a job whose numbers
        are rounded, claims that are a step of rounding away from it are as right.
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
        alike = self._alike(checked, index, outcome, digest)
        if alike and digest not in claims.values():
            digest = task.accepted if task.accepted in alike else alike[0]
        self._keep_output(checked, index, digest, outcome, thief)
        if index in checked.check_of:
            self._follow(rule, checked.verifier.verdict(now, -checked.check_of[index], digest))
        if alike and isinstance(checked.verifier, Arbitrate):
            self._follow(rule, checked.verifier.verdict(now, number, digest, alike=alike))
        else:
            self._follow(rule, checked.verifier.verdict(now, number, digest))
        if checked.verifier.tasks[number].is_final:
            checked.asked.pop(index, None)
            checked.arbitrations.pop(index, None)
            is_known = task.accepted in (None, digest) and len(dict.fromkeys([*claims.values(), digest])) > 1
            for worker, claim in claims.items():
                record = self.record(worker)
                self.changed[worker] = None
                if claim == digest or claim in alike:
                    record.agreed += list(claims.values()).count(claim) == 1  # else it was found by another one before
                elif is_known:
                    record.wrong += 1
                    self._tell(worker, checked, index, "its result was wrong")
        return True

    def _alike(self, checked: CheckedJob, index: int, outcome: Outcome, digest: Digest) -> list[Digest]:
        """Return what was claimed of a task and differs from this result by a step of rounding, first claims first."""
        if outcome.value_blob is not None:
            return []
        spec = checked.job.envelope.spec
        outputs = checked.outputs.get(index, {})
        found = []
        for claim in dict.fromkeys(checked.verifier.tasks[checked.numbers[index]].claims.values()):
            other = outputs[claim].outcome if claim in outputs and claim != digest else None
            if other is not None and _beside_value(other) == _beside_value(outcome):
                found += [claim] * self.are_alike(spec, outcome.value, other.value)
        return found

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
                if not (known := self.record(worker)).banned
                and not known.pardons
                and self._join(self._now, rule, worker, is_back=True)
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


def _beside_value(outcome: Outcome) -> tuple[Any, ...]:
    """Return what else of an outcome is signed."""
    return outcome.status, outcome.stdout, outcome.stdout_blob, outcome.exit_code, outcome.files
