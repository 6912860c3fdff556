"""Which tasks a member, or a trusted node, computes for the sake of checking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import nlargest
from itertools import chain, islice
from math import inf
from typing import Final

from p2pcompute.limits import GRANT_BYTES_MAX, VERIFY_HELD_BYTES_MAX, VERIFY_RULES_MAX, VERIFY_WORKERS_MAX
from p2pcompute.scheduler.acceptance.consequences import Consequences
from p2pcompute.scheduler.books import CheckedJob, OwnedJob
from p2pcompute.scheduler.checked import Rule
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.trust.verification import make_verifier
from p2pcompute.trust.verification.arbitrate import DRAWS_AT, DRAWS_FREE, NOTHING_KNOWN, Arbitrate, ArbitratePolicy
from p2pcompute.trust.verification.book import Verifier, Worker

ARBITER_PATIENCE_S: Final = 60.0
"""Without a trusted node for so long, members decide alone: conflicts by more of them, and whether a task fails."""
VERDICTS_AT_ONCE: Final = 3
"""Conflicts of one member that a trusted node decides at a time: so many lone wrong values ban it."""
LOOKED_AT_MAX: Final = 1024
"""Claimed tasks among which the longest are looked for, for one trusted node."""


class HandingOut(Consequences):
    """Chooses who computes what again."""

    def extra_count(self, job: OwnedJob) -> int:
        """Return how many tasks, at most, could be given out beside those that are ready."""
        checked = job.checked
        return 0 if checked is None else len(checked.held) + len(checked.arbitrations) + len(checked.rechecks)

    def has_extra(self, job: OwnedJob) -> bool:
        """Whether anything might be given out beside what is ready."""
        checked = job.checked
        return checked is not None and bool(
            checked.arbitrations or checked.held or checked.verifier.wants_copies(checked.lane)
        )

    def pick(self, now: float, job: OwnedJob, thief: Thief, count: int, ready: Callable[[int], list[int]]) -> list[int]:
        """Return the tasks of a job that a member computes now: originals and copies, which it cannot tell apart.

        Args:
            ready: takes out so many tasks that nobody has begun.
        """
        self._now = now
        rule = self._rule_of(job)
        if rule is None or not self._join(now, rule, thief.installation):
            return []
        if thief.installation in self._accused.get(rule, ()):
            return []
        checked = job.checked or self._check(rule, job)
        if checked is None or self._rng is None:
            return []
        verifier, chosen, size = checked.verifier, list[int](), 0

        def begin() -> int | None:
            """Begin a task that nobody has begun."""
            if self.held_bytes >= VERIFY_HELD_BYTES_MAX:
                return None
            found = ready(1)
            if not found:
                return None
            return self._number(rule, checked, found[0])

        count = min(count, checked.lends_max - len(checked.attempts))
        while len(chosen) < count and size <= GRANT_BYTES_MAX // 2:
            number = verifier.take(now, thief.installation, self._rng, checked.lane, begin)
            self._follow(rule, verifier.take_effects())
            if number is None:
                break
            place = self._places[rule][number] if number >= 0 else self._known_answer(rule, checked, -number, ready)
            if place is None or place[0] is not checked or place[1] not in checked.payloads:
                verifier.taken_back(now, thief.installation, number)
                break
            index = place[1]
            if checked.is_lent_to(index, thief.key) or index in job.leases:
                verifier.taken_back(now, thief.installation, number)
                break
            if job.ledger.state(index) is TaskState.OPEN:
                checked.held[index] = None
            chosen.append(index)
            size += len(checked.payloads[index])
        if chosen:
            self._mind_draws(rule, verifier, thief.installation)
        return chosen

    def _mind_draws(self, rule: Rule, verifier: Verifier, worker: Worker) -> None:
        """Have stored what a member was given, when that is so much more than was stored that it tells something."""
        if isinstance(verifier, Arbitrate):
            known = self.records.get(worker)
            stored = [] if known is None else known.memory.get(rule, [])[DRAWS_AT:]
            if verifier.workers[worker].drawn - (stored[0] if stored else 0) >= DRAWS_FREE:
                self.changed[worker] = None

    def _known_answer(
        self, rule: Rule, checked: CheckedJob, number: int, ready: Callable[[int], list[int]]
    ) -> tuple[CheckedJob, int] | None:
        """Return the task that is this known-answer check for everybody: one of the job's own, of which a trusted node
        finds the answer when somebody has claimed it."""
        checks = self._checks.setdefault(rule, {})
        place = checks.get(number)
        if place is None and (found := ready(1)):
            self._number(rule, checked, found[0])
            checked.check_of[found[0]] = number
            place = checks[number] = (checked, found[0])
        return place

    def pick_disputed(self, job: OwnedJob, count: int) -> list[int]:
        """Return tasks on which claims differ, for a trusted node."""
        checked = job.checked
        if checked is None or not checked.arbitrations:
            return []
        for index in [index for index in checked.arbitrations if self._is_being_settled(checked, index)]:
            del checked.arbitrations[index]
        # Those first that tell most: where liars are found out, what else they said is decided too.
        accused = checked.accused()
        of = {
            index: max(checked.claims_of(index), key=accused.__getitem__, default=b"") for index in checked.arbitrations
        }
        chosen, times = list[int](), Counter[Worker]()
        for index in sorted(of, key=lambda index: -accused[of[index]]):
            if len(chosen) < count and times[of[index]] < VERDICTS_AT_ONCE:
                times[of[index]] += 1
                chosen.append(index)
        for index in chosen:
            del checked.arbitrations[index]
        return chosen

    def pick_claimed(self, job: OwnedJob, thief: Thief, count: int) -> list[int]:
        """Return tasks that are claimed and not accepted, for a trusted node that has nothing else to do.

        The longest first, as those say who claim them: one run of it ends a task for which members need another two,
        one after the other, and the job lasts as long as the last of these.
        """
        checked = job.checked
        if checked is None:
            return []
        found: dict[int, float] = {}
        for index in islice(chain(checked.held, checked.rechecks), LOOKED_AT_MAX):
            is_settled_now = index in checked.arbitrations or self._is_being_settled(checked, index)
            if checked.claims_of(index) and not is_settled_now and not checked.is_lent_to(index, thief.key):
                outputs = checked.outputs.get(index, {}).values()
                runs_s = (one.outcome.runtime_s / job.slowness.of(one.thief) for one in outputs)
                found[index] = max(runs_s, default=0.0)  # none: it is done, and checked once more
        return nlargest(count, found, key=found.__getitem__)

    def is_for_trusted(self, now: float, job: OwnedJob, index: int) -> bool:
        """Whether a task has failed so often that its last attempt is next: of that only a trusted node is believed,
        while there is one.

        What members told counts towards `retries`: a task has no more attempts where there are members.
        """
        is_last = job.checked is not None and job.failures.get(index, 0) >= max(1, job.envelope.terms.retries)
        return is_last and not self.are_members_alone(now, job, index)

    def are_members_alone(self, now: float, job: OwnedJob, index: int) -> bool:
        """Whether no trusted node that can run a task has asked for work for long, although members have."""
        if index in job.wrong_for and not self._owner.has_right_one(now, job, index, are_believed=True):
            return True  # trusted nodes have said that it does not run on them, or on what is like them
        return self.alone_in_s(now, job) <= 0

    def alone_in_s(self, now: float, job: OwnedJob) -> float:
        """Return in how many seconds members say alone that tasks of a job fail, if no trusted node that may run it
        asks for work until then; 0: they do."""
        checked = job.checked
        since = inf if checked is None else max(checked.judge_at, checked.since)
        return max(0.0, min(since, max(self._arbiter_at, self._began_at)) + ARBITER_PATIENCE_S - now)

    def has_judge(self, now: float, checked: CheckedJob) -> bool:
        """Whether a trusted node that may run a job has asked for work lately: it decides what members claim."""
        return self.has_arbiter(now) and now - max(checked.judge_at, checked.since) < ARBITER_PATIENCE_S

    def has_arbiter(self, now: float) -> bool:
        """Whether any trusted node has asked for work lately."""
        return now - self._arbiter_at < ARBITER_PATIENCE_S

    def unconfirmed(self, now: float, job: OwnedJob) -> int:
        """Return how many open tasks have failed with members so often that only a trusted node may try them now."""
        return sum(
            job.ledger.state(index) is TaskState.OPEN
            and index not in job.leases
            and self.is_for_trusted(now, job, index)
            for index in job.failures
        )

    def _join(self, now: float, rule: Rule, worker: Worker, *, is_back: bool = False) -> bool:
        """Let a member take part under a rule; False: not now.

        Args:
            is_back: it took part in an earlier life of this owner: it does not wait, though nothing is known of it.
        """
        joined = self._joined.setdefault(rule, {})
        verifier = self.verifiers.get(rule)
        if worker in joined:
            if isinstance(verifier, Arbitrate):  # who vouches for it was perhaps not known when it was remembered
                verifier.workers[worker].cluster = self._cluster_of(worker)
            return True
        if verifier is None:
            if len(self.verifiers) >= VERIFY_RULES_MAX:
                return False
            verifier = self._make(rule, now)
        known, cluster = self.records.get(worker), self._cluster_of(worker)
        if len(joined) >= VERIFY_WORKERS_MAX:
            return False
        if not isinstance(verifier, Arbitrate):
            verifier.join(now, worker)
        elif known is not None and rule in known.memory:
            verifier.remember(worker, known.memory[rule], cluster=cluster)
        else:
            # Whom the founder or somebody trusted let in begins with the assumed odds.  Whom other members let in has
            # to prove itself, and few are let in at a time: they could be one who was found out, under other names.
            is_known = rule.replicas is not None or cluster in (None, worker)
            if not verifier.join(now, worker, cluster=cluster, is_known=is_known):
                if not is_back:
                    return False
                verifier.remember(worker, NOTHING_KNOWN, cluster=cluster)
        joined[worker] = None
        return True

    def _make(self, rule: Rule, now: float) -> Verifier:
        verifier: Verifier
        self._began_at = min(self._began_at, now)
        if rule.method == "arbitrate":
            policy = ArbitratePolicy(error_rate=rule.error_ppb / 1e9, replicas=rule.replicas)
            verifier = Arbitrate(policy, now=now)
        else:
            verifier = make_verifier(rule.method, error_rate=rule.error_ppb / 1e9, votes=rule.replicas or 2)
        verifier.keeps_originals = False
        places = self._places[rule] = []

        def allows(worker: Worker, number: int) -> bool:
            place = places[number]
            if place is None:
                return False
            checked, index = place
            return index in checked.payloads and self._may_copy(checked, worker, index)

        verifier.allows = allows
        self.verifiers[rule] = verifier
        return verifier

    def _may_copy(self, checked: CheckedJob, worker: Worker, index: int) -> bool:
        """Not where it failed, while others may do it; and not what a trusted node settles just now."""
        if index in checked.job.leases:
            return False
        avoided = checked.job.avoid.get(index)
        if avoided is not None and worker in avoided[0] and self._now < avoided[1]:
            return False
        leases = checked.leases.get(index, {}).values()
        return not self._is_being_settled(checked, index) and all(lease.installation != worker for lease in leases)

    def _check(self, rule: Rule, job: OwnedJob) -> CheckedJob:
        """Begin the books about a job."""
        job.checked = CheckedJob(job, rule, self.verifiers[rule], self._next_lane)
        self._next_lane += 1
        return job.checked

    def _number(self, rule: Rule, checked: CheckedJob, index: int) -> int:
        """Return the number of a task that a member begins."""
        number = checked.numbers.get(index)
        if number is None:
            number = checked.numbers[index] = checked.verifier.append(checked.lane)
            self._places[rule].append((checked, index))
            payload = checked.payloads[index] = checked.job.payloads[index]
            self.held_bytes += len(payload)
        checked.held[index] = None
        return number
