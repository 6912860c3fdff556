"""What follows from claims and verdicts: results are accepted and revoked, nodes banned, tasks and jobs end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2pcompute.limits import VERIFY_KEPT_BYTES_MAX
from p2pcompute.scheduler.acceptance.lending import Lending
from p2pcompute.scheduler.books import CheckedJob, OwnedJob
from p2pcompute.scheduler.checked import Rule
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification.arbitrate import Arbitrate
from p2pcompute.trust.verification.book import (
    Accepted,
    AskTrusted,
    Banned,
    Effect,
    Nondeterministic,
    Recheck,
    Revoked,
    Why,
    Withdrawn,
)


class Consequences(Lending):
    """Carries out what a verifier has decided."""

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
        outputs = checked.outputs.pop(index)
        self.held_bytes -= sum(other.size for other in outputs.values())
        self._owner.settled_checked(job, index, list(outputs))
        self._keep_payload(checked, index)
        job.accepted_digests[index], job.accepted_why[index] = effect.digest, str(effect.basis)
        self._owner.note(job, FactKind.CHECKED, [index, job.ledger.generation(index), effect.digest, str(effect.basis)])
        for thief, lease in checked.leases.get(index, {}).items():  # a member's claim speaks for it or against it
            self._owner.stop(thief, job, [index], kill=lease.is_late or self._is_trusted(job, lease))
        if index in job.leases:
            self._owner.unlease(job, index, kill=True)
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

    def pardon(self, installation: bytes) -> None:
        """End a ban: whoever is answerable for this owner says that the node is to be believed, or to begin anew."""
        record = self.records.get(installation)
        if record is None or not record.banned:
            return
        record.banned, record.banned_at = "", 0
        record.pardons += 1
        record.memory.clear()
        for rule, verifier in self.verifiers.items():
            if installation in self._joined.get(rule, ()):
                verifier.pardon(installation)
        self.changed[installation] = None

    def _ban(self, installation: bytes, why: Why) -> None:
        """Give somebody no more work, and take back what it holds."""
        record = self.record(installation)
        if record.banned:
            return
        record.banned, record.banned_at = str(why), int(self.wall())
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

    def ended_otherwise(self, job: OwnedJob, index: int) -> None:
        """A task was cancelled, or has failed: whoever computes it may stop."""
        checked = job.checked
        if checked is None or index not in checked.numbers:
            return
        checked.held.pop(index, None)
        checked.arbitrations.pop(index, None)
        checked.asked.pop(index, None)
        checked.rechecks.pop(index, None)
        checked.claimed_at.pop(index, None)
        for output in checked.outputs.pop(index, {}).values():
            self.held_bytes -= output.size
        number = checked.numbers.pop(index)
        if index in checked.check_of:
            self._checks[checked.rule].pop(checked.check_of.pop(index), None)
        for thief, lease in list(checked.leases.get(index, {}).items()):
            self.release(job, index, thief)
            checked.verifier.taken_back(self._now, lease.installation, number)
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
