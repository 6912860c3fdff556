"""Methods that give known-answer checks: spot checking alone, and Sarmenta's credibility.

A share of what a worker is given are checks whose answers a trusted node computed once.  They are taken not to be
recognised, and each worker gets each of them at most once.  Who fails one loses all results that it gave; with a
blacklist it gets no more work, without one it comes back under a new name, and is known by none of its former deeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pcompute.trust.verification.book import (
    AskTrusted,
    Banned,
    Basis,
    Begin,
    Digest,
    Effect,
    Revoked,
    Verifier,
    Why,
    Worker,
)
from p2pcompute.trust.verification.formulas import credibility_after, group_credibility

if TYPE_CHECKING:
    import random


class _Record:
    """What is known about a worker."""

    __slots__ = ("claimed", "given", "is_banned", "passed")

    def __init__(self) -> None:
        self.passed = 0
        self.given = 0
        """Checks that it was given so far; the number of its next one."""
        self.claimed: list[int] = []
        self.is_banned = False


class SpotCheck(Verifier):
    """Every task once; what comes from somebody who failed a check is computed again."""

    def __init__(self, *, checks: float, has_blacklist: bool) -> None:
        super().__init__()
        self.checks = checks
        self.has_blacklist = has_blacklist
        self._records: dict[Worker, _Record] = {}
        self._answers: dict[int, Digest] = {}
        """Known answers by number, below 0."""
        self._waiting: dict[int, list[tuple[Worker, Digest]]] = {}
        """What was claimed for checks whose answer is not known yet."""

    def join(self, now: float, worker: Worker) -> bool:
        self._records[worker] = _Record()
        return True

    def is_banned(self, worker: Worker) -> bool:
        return self._records[worker].is_banned

    def pardon(self, worker: Worker) -> None:
        if worker in self._records and self.is_banned(worker):
            given = self._records[worker].given
            self._records[worker] = _Record()
            self._records[worker].given = given
            for waiting in self._waiting.values():
                waiting[:] = [claim for claim in waiting if claim[0] != worker]

    def level(self, index: int) -> int | None:
        task = self.tasks[index]
        return None if task.accepted is not None or task.lent else len(task.claims)

    def take(
        self, now: float, worker: Worker, rng: random.Random, lane: int = 0, begin: Begin | None = None
    ) -> int | None:
        record = self._records[worker]
        if record.is_banned:
            return None
        if rng.random() < self.checks and not self.is_done:
            record.given += 1
            return -record.given
        index = None if begin is None else begin()
        if index is None:
            index = self._pool(lane).draw(self, worker, rng)
        if index is not None:
            self.tasks[index].lent[worker] = bool(self.tasks[index].claims)
        return index

    def claim(self, now: float, worker: Worker, index: int, digest: Digest) -> list[Effect]:
        record = self._records[worker]
        if index < 0:
            if index not in self._answers:
                waiting = self._waiting.setdefault(index, [])
                waiting.append((worker, digest))
                if len(waiting) == 1:
                    self._effects.append(AskTrusted(index))
            else:
                self._judge(worker, index, digest)
            return self.take_effects()
        task = self.tasks[index]
        task.lent.pop(worker, None)
        if record.is_banned or worker in task.claims:
            self._offer(index)
            return []
        task.claims[worker] = digest
        record.claimed.append(index)
        if task.accepted is None:
            self._weigh(index)
            self._offer(index)
        return self.take_effects()

    def verdict(self, now: float, index: int, digest: Digest) -> list[Effect]:
        if index >= 0:
            return super().verdict(now, index, digest)
        self._answers[index] = digest
        for worker, claimed in self._waiting.pop(index, ()):
            self._judge(worker, index, claimed)
        return self.take_effects()

    def _judge(self, worker: Worker, index: int, digest: Digest) -> None:
        record = self._records[worker]
        if digest == self._answers[index]:
            record.passed += 1
            return
        if record.is_banned:
            return
        if self.has_blacklist:
            self._effects.append(Banned(worker, Why.FAILED_CHECK))
            record.is_banned = True
        else:
            fresh = self._records[worker] = _Record()
            fresh.given = record.given
        for claimed in record.claimed:
            task = self.tasks[claimed]
            if task.is_final:
                continue
            del task.claims[worker]
            if task.accepted is not None:
                self._unaccept(claimed)
                if not self._weigh(claimed):
                    self._effects.append(Revoked(claimed))
            self._offer(claimed)
        record.claimed.clear()

    def _weigh(self, index: int) -> bool:
        """Accept a task if its claims are enough; returns whether they are."""
        for digest in self.tasks[index].claims.values():
            self._accept(index, digest, Basis.UNCHECKED)
        return bool(self.tasks[index].claims)


class Credibility(SpotCheck):
    """Copies until one value is credible enough, by what those who claim it have passed.

    Checks raise credibility, and results raise one another's by Bayes' rule.  It takes workers to err independently
    of one another, and checks to be recognised by nobody.
    """

    def __init__(self, *, error_rate: float, saboteurs: float, checks: float, has_blacklist: bool) -> None:
        super().__init__(checks=checks, has_blacklist=has_blacklist)
        self.error_rate = error_rate
        self.saboteurs = saboteurs
        self._odds: dict[int, float] = {}
        """Odds that a result is right after so many checks."""

    def take(
        self, now: float, worker: Worker, rng: random.Random, lane: int = 0, begin: Begin | None = None
    ) -> int | None:
        while True:
            index = super().take(now, worker, rng, lane, begin)
            if index is None or index < 0 or not self.tasks[index].claims:
                return index
            if not self._weigh(index):  # its workers may have passed more checks since
                return index
            del self.tasks[index].lent[worker]

    def _odds_after(self, passed: int) -> float:
        odds = self._odds.get(passed)
        if odds is None:
            credibility = credibility_after(passed, self.saboteurs, has_blacklist=self.has_blacklist)
            odds = self._odds[passed] = credibility / (1.0 - credibility)
        return odds

    def _weigh(self, index: int) -> bool:
        groups: dict[Digest, float] = {}
        for worker, digest in self.tasks[index].claims.items():
            groups[digest] = groups.get(digest, 1.0) * self._odds_after(self._records[worker].passed)
        if not groups:
            return False
        best = max(groups, key=lambda digest: groups[digest])
        others = [odds for digest, odds in groups.items() if digest != best]
        if group_credibility([groups[best], *others]) < 1.0 - self.error_rate:
            return False
        self._accept(index, best, Basis.AGREED if len(self.tasks[index].claims) > 1 else Basis.UNCHECKED)
        return True
