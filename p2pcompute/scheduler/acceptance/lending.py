"""Leases of tasks that members have begun: they are kept here, not in the books of `OwnerCore`."""

from __future__ import annotations

from p2pcompute.scheduler.acceptance.belief import Belief
from p2pcompute.scheduler.books import CheckedJob, Lease, OwnedJob
from p2pcompute.scheduler.ledger import TaskState


class Lending(Belief):
    """Who computes which held task."""

    def is_extra(self, job: OwnedJob, index: int) -> bool:
        """Whether a task that was picked is leased here, and not in the owner's own books."""
        checked = job.checked
        return checked is not None and (index in checked.held or job.ledger.state(index) is not TaskState.OPEN)

    def lend(self, job: OwnedJob, index: int, lease: Lease) -> tuple[int, bytes]:
        """Note who computes a task; returns (attempt as the node sees it, payload)."""
        checked = job.checked
        assert checked is not None
        place = (index, lease.thief)
        lease.attempt = checked.attempts[place] = checked.attempts.get(place, 0) + 1
        checked.leases.setdefault(index, {})[lease.thief] = lease
        return lease.attempt, checked.payloads[index]

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

    def _is_being_settled(self, checked: CheckedJob, index: int) -> bool:
        """Whether a trusted node computes a task."""
        return any(self._is_trusted(checked.job, lease) for lease in checked.leases.get(index, {}).values())

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

    def waiting_count(self, job: OwnedJob) -> int:
        """Return how many tasks are held, and computed by nobody now."""
        checked = job.checked
        return 0 if checked is None else max(0, len(checked.held) - sum(map(checked.is_computed, checked.leases)))
