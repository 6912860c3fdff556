"""What the rule of belief asks of the owner's core, which calls it: `OwnerCore` is one."""

from __future__ import annotations

from typing import Any, Protocol

from p2pcompute.host.runs import Outcome
from p2pcompute.scheduler.books import Lease, OwnedJob
from p2pcompute.scheduler.ledger import FactKind
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.trust.verification.book import Digest


class Decider(Protocol):
    """What `OwnerCore` does when something is decided here."""

    jobs: dict[bytes, OwnedJob]

    def accept_checked(self, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, digest: Digest) -> None:
        """A task is done, with this result of this node."""

    def reopen(self, job: OwnedJob, index: int, payload: bytes, why: str) -> bool:
        """An accepted result is believed no longer; False when the task cannot be run again."""

    def requeue_checked(self, job: OwnedJob, index: int) -> None:
        """An open task is held no longer."""

    def unlease(self, job: OwnedJob, index: int, *, kill: bool = False) -> None:
        """End the lease that the owner keeps of a task."""

    def released_checked(self, job: OwnedJob, lease: Lease) -> None:
        """A node computes a task no more."""

    def failed_checked(
        self, now: float, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, installation: bytes
    ) -> None:
        """A member says that it could not compute a task, which is open and held no longer."""

    def settled_checked(self, job: OwnedJob, index: int, digests: list[Digest]) -> None:
        """What was claimed of a task need not be kept any longer."""

    def load(self, job: OwnedJob, index: int) -> None:
        """The inputs of a task that is done are wanted again."""

    def disputed(self, job: OwnedJob, index: int, why: str) -> None:
        """Nobody can say which of several results of a task is right."""

    def note(self, job: OwnedJob, kind: FactKind, entry: list[Any]) -> None:
        """Journal a fact."""

    def may_judge(self, now: float, job: OwnedJob, thief: Thief) -> bool:
        """Whether a node may run tasks of a job."""

    def has_right_one(self, now: float, job: OwnedJob, index: int, *, are_believed: bool = False) -> bool:
        """Whether a node may run a task on which it need not fail as it has on others."""

    def stop(self, thief: bytes, job: OwnedJob, indices: list[int], *, kill: bool) -> None:
        """Have a node drop tasks."""

    def banned(self, installation: bytes, why: str) -> None:
        """Somebody gets no more work."""
