"""Methods that count votes: m-first, and BOINC's adaptive replication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2pcompute.trust.verification.book import Basis, Begin, Digest, Effect, Verifier, Worker, votes

if TYPE_CHECKING:
    import random

RELIABLE_AFTER: Final = 10
"""Valid replicated results in a row from which BOINC may believe a host alone (`ADAPTIVE_REPL`, `nconsecutive`)."""


class Majority(Verifier):
    """The first value with m votes wins, each of another worker.  Nobody is ever banned."""

    def __init__(self, votes_needed: int) -> None:
        super().__init__()
        self.votes_needed = votes_needed

    def join(self, now: float, worker: Worker) -> bool:
        return True

    def is_banned(self, worker: Worker) -> bool:
        return False

    def needed(self, index: int) -> int:
        """Votes that decide this task."""
        return self.votes_needed

    def level(self, index: int) -> int | None:
        task = self.tasks[index]
        if task.accepted is not None:
            return None
        count, needed = len(task.claims) + len(task.lent), self.needed(index)
        if count < needed or max(map(len, votes(task.claims).values()), default=0) + len(task.lent) < needed:
            return count
        return None

    def take(
        self, now: float, worker: Worker, rng: random.Random, lane: int = 0, begin: Begin | None = None
    ) -> int | None:
        index = None if begin is None else begin()
        if index is None:
            index = self._pool(lane).draw(self, worker, rng)
        if index is not None:
            self.tasks[index].lent[worker] = bool(self.tasks[index].claims)
            self._offer(index)
        return index

    def claim(self, now: float, worker: Worker, index: int, digest: Digest) -> list[Effect]:
        task = self.tasks[index]
        task.lent.pop(worker, None)
        if worker in task.claims:
            return []
        task.claims[worker] = digest
        if task.accepted is None:
            if sum(other == digest for other in task.claims.values()) >= self.needed(index):
                self._decided(index, digest)
            else:
                self._offer(index)
        return self.take_effects()

    def _decided(self, index: int, digest: Digest) -> None:
        self._accept(index, digest, Basis.AGREED if self.needed(index) > 1 else Basis.UNCHECKED)


class Adaptive(Majority):
    """BOINC's adaptive replication: hosts with enough valid results in a row are often believed alone.

    A fresh job that goes to a host with fewer than `RELIABLE_AFTER` of them, or by chance 1/count to another one,
    wants two results that agree; otherwise its one result is accepted.  Only replicated jobs count: valid + 1,
    invalid back to 0.

    Source: BOINC `sched/sched_send.cpp`, `sched/validator.cpp` at HEAD.
    """

    def __init__(self) -> None:
        super().__init__(2)
        self._valid: dict[Worker, int] = {}
        """Valid replicated results in a row."""
        self._alone: dict[int, None] = {}
        """Tasks of which one result is enough."""

    def needed(self, index: int) -> int:
        return 1 if index in self._alone else 2

    def take(
        self, now: float, worker: Worker, rng: random.Random, lane: int = 0, begin: Begin | None = None
    ) -> int | None:
        valid = self._valid.get(worker, 0)
        is_reliable = valid >= RELIABLE_AFTER and rng.random() > 1.0 / valid
        # A second result is made with the first, and soon sent.
        index = self._pool(lane).draw(self, worker, rng, from_=1)
        if index is None:
            index = self._pool(lane).draw(self, worker, rng, up_to=0) if begin is None else begin()
        if index is None:
            return None
        task = self.tasks[index]
        if is_reliable and not task.claims and not task.lent:
            self._alone[index] = None
        task.lent[worker] = bool(task.claims)
        self._offer(index)
        return index

    def returned(self, now: float, worker: Worker, index: int) -> None:
        self._alone.pop(index, None)
        super().returned(now, worker, index)

    def _decided(self, index: int, digest: Digest) -> None:
        if self.needed(index) > 1:
            for worker, claimed in self.tasks[index].claims.items():
                self._valid[worker] = self._valid.get(worker, 0) + 1 if claimed == digest else 0
        super()._decided(index, digest)
