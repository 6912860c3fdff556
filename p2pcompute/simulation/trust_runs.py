"""The experiment `trust`: how many wrong results a method accepts, what it costs, and whom it bans.

The verification core alone, without nodes and network, so that 20,000 tasks take a fraction of a second: workers of one
speed, each of which asks for a task, computes it in one turn and claims it.  A share `f` of them are saboteurs, who
return a wrong value with probability `s`.  All wrong values of a task are the same, the worst case, but for `match`.
"""

from __future__ import annotations

import hashlib
import random
import time
from typing import Annotated, Final

from msgspec import Meta, Struct

from p2pcompute.errors import InvariantViolation
from p2pcompute.simulation.metrics import Metrics
from p2pcompute.simulation.result import RunResult, Watch
from p2pcompute.simulation.scenario import Scenario
from p2pcompute.trust.verification import Method, make_verifier
from p2pcompute.trust.verification.arbitrate import Arbitrate, ArbitratePolicy, Standing
from p2pcompute.trust.verification.book import AskTrusted, Banned, Digest, Effect, Recheck, Revoked, Worker

RIGHT: Final = b"right"
WRONG: Final = b"wrong"
TURNS_MAX: Final = 1_000_000
_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Minor = Annotated[float, Meta(ge=0.0, lt=0.5)]


class TrustSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `trust`."""

    method: Annotated[Method, Meta(description="how it is decided what is right")] = "arbitrate"
    tasks: Annotated[int, Meta(ge=1, le=10_000_000, description="tasks")] = 20_000
    workers: Annotated[int, Meta(ge=2, le=100_000, description="workers that are not trusted")] = 200
    f: Annotated[_Minor, Meta(description="share of them that are saboteurs")] = 0.2
    s: Annotated[_Share, Meta(description="probability that a saboteur's result is wrong")] = 0.1
    collude: Annotated[
        bool, Meta(description="saboteurs share their targets: one coin for each task, not for each result")
    ] = False
    match: Annotated[_Share, Meta(description="share of the wrong results that are the same wrong value")] = 1.0
    copycat: Annotated[
        bool, Meta(description="saboteurs repeat what others of them claimed; they see only the tasks that they hold")
    ] = False
    seeing: Annotated[
        bool, Meta(description="copycats know as well whether anybody else claimed a task: copies are recognised")
    ] = False
    choosy: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="tasks that a copycat looks at, and hands back, to find one that others lied about",
        ),
    ] = 1
    sleep: Annotated[int, Meta(ge=0, description="results of a saboteur that are right before it begins")] = 0
    whitewash: Annotated[bool, Meta(description="saboteurs that get no more work come back under new names")] = False
    admit: Annotated[float, Meta(ge=0, le=1e6, description="newcomers that are let in, per hour (arbitrate)")] = 60.0
    task_s: Annotated[float, Meta(gt=0, le=1e6, description="duration of a task, seconds")] = 60.0
    fault_hosts: Annotated[_Share, Meta(description="share of the honest workers that err now and then")] = 0.0
    fault_rate: Annotated[_Share, Meta(description="mean probability that a result of such a one is wrong")] = 0.002
    error_rate: Annotated[
        float, Meta(gt=0, lt=1, description="accepted probability of a wrong result (arbitrate, credibility)")
    ] = 1e-4
    assumed: Annotated[
        _Minor | None, Meta(description="share of saboteurs that the method assumes; none: f, or 0.2 where f is 0")
    ] = None
    q: Annotated[
        float, Meta(ge=0, lt=1, description="share of the work that is known-answer checks (credibility, spotcheck)")
    ] = 0.1
    blacklist: Annotated[bool, Meta(description="who fails a check is out (credibility, spotcheck)")] = True
    m: Annotated[int, Meta(ge=1, le=100, description="votes that decide (majority)")] = 2
    window: Annotated[
        int, Meta(ge=1, le=10_000_000, description="tasks in which checks are counted together (arbitrate)")
    ] = 20_000
    arbiter: Annotated[bool, Meta(description="a trusted node can decide conflicts (arbitrate)")] = True

    @property
    def nodes(self) -> int:
        """What a summary calls nodes."""
        return self.workers


class _Worker:
    """A worker: honest, or a saboteur."""

    def __init__(self, number: int, *, is_saboteur: bool, fault_rate: float = 0.0) -> None:
        self.number = number
        self.name = b"worker %d" % number
        self.is_saboteur = is_saboteur
        self.fault_rate = fault_rate
        self.done = 0


class _Run:
    """One run under way."""

    def __init__(self, settings: TrustSettings, seed: int, watch: Watch | None) -> None:
        self.settings = settings
        self._began = time.perf_counter()
        self._watch = watch
        self._rng = random.Random(f"{seed}:trust")
        self._adversary = random.Random(f"{seed}:adversary")
        assumed = settings.f or 0.2 if settings.assumed is None else settings.assumed
        self.verifier = make_verifier(
            settings.method,
            error_rate=settings.error_rate,
            saboteurs=assumed,
            checks=settings.q,
            has_blacklist=settings.blacklist,
            votes=settings.m,
            policy=ArbitratePolicy(
                error_rate=settings.error_rate,
                saboteurs=assumed,
                window_tasks=settings.window,
                newcomers_per_hour=settings.admit,
                has_arbiter=settings.arbiter,
            ),
        )
        self.workers = self._make_workers()
        self._by_name = {worker.name: worker for worker in self.workers}
        self._identities = len(self.workers)
        self._outside: list[_Worker] = []
        """Banned saboteurs that want to come back."""
        self._targets = [self._adversary.random() < settings.s for _ in range(settings.tasks)]
        self._shared: dict[int, Digest] = {}
        """What the first saboteur that got a task claimed."""
        self.executions = 0
        self.trusted = 0
        self.counts = dict.fromkeys(("banned_honest", "banned_saboteurs", "revoked", "rechecked"), 0)
        self.trace = hashlib.sha256()
        self.turn = 0

    def _make_workers(self) -> list[_Worker]:
        settings = self.settings
        numbers = list(range(settings.workers))
        self._adversary.shuffle(numbers)
        saboteurs = round(settings.f * settings.workers)
        honest = settings.workers - saboteurs
        faulty = round(settings.fault_hosts * honest)
        rates = [self._adversary.expovariate(1.0) * settings.fault_rate for _ in range(faulty)] + [0.0] * honest
        workers = [_Worker(number, is_saboteur=True) for number in numbers[:saboteurs]]
        workers += [
            _Worker(number, is_saboteur=False, fault_rate=min(1.0, rate))
            for number, rate in zip(numbers[saboteurs:], rates, strict=False)
        ]
        return workers

    # --- what workers do --------------------------------------------------------------------------

    def _answer(self, worker: _Worker, index: int) -> Digest:
        worker.done += 1
        if not worker.is_saboteur:
            if worker.fault_rate and self._adversary.random() < worker.fault_rate:
                return b"fault of %d" % worker.number
            return RIGHT
        settings = self.settings
        if worker.done <= settings.sleep:
            return RIGHT
        if index < 0:
            return WRONG if self._adversary.random() < settings.s else RIGHT
        if settings.copycat:
            known = self._shared.get(index)
            if known is None:
                is_safe = not (settings.seeing and self.verifier.tasks[index].claims)
                known = self._shared[index] = WRONG if is_safe and self._targets[index] else RIGHT
            return known
        is_wrong = self._targets[index] if settings.collude else self._adversary.random() < settings.s
        if not is_wrong:
            return RIGHT
        return WRONG if settings.match >= 1.0 or self._adversary.random() < settings.match else b"w %d" % worker.number

    def _come_back(self) -> None:
        """Somebody who was banned makes himself a new identity."""
        worker = _Worker(self._identities, is_saboteur=True)
        self._identities += 1
        self._by_name[worker.name] = worker
        self._outside.append(worker)

    def _is_under_suspicion(self, name: Worker) -> bool:
        verifier = self.verifier
        return isinstance(verifier, Arbitrate) and verifier.workers[name].standing is Standing.SUSPECT

    # --- turns ------------------------------------------------------------------------------------

    def play(self) -> None:
        """Run until every task is accepted."""
        verifier, workers = self.verifier, self.workers
        verifier.add(self.settings.tasks)
        for worker in workers:
            if isinstance(verifier, Arbitrate):
                verifier.join(0.0, worker.name, is_known=True)
            else:
                verifier.join(0.0, worker.name)
        while not verifier.is_done and self.turn < TURNS_MAX:
            self.turn += 1
            now = self.turn * self.settings.task_s
            self._admit(now)
            self._rng.shuffle(workers)
            held: list[tuple[_Worker, int]] = []
            leaving: list[_Worker] = []
            for worker in workers:
                index = self._take(now, worker)
                if index is not None:
                    held.append((worker, index))
                elif self.settings.whitewash and worker.is_saboteur and self._is_under_suspicion(worker.name):
                    leaving.append(worker)
            for worker in leaving:
                workers.remove(worker)
                self._come_back()
            for worker, index in held:
                self.executions += 1
                self._follow(now, verifier.claim(now, worker.name, index, self._answer(worker, index)))
            if not held and not verifier.is_done:
                self._compute_one(now)
            if self._watch is not None:
                self._watch.progress(now, time.perf_counter() - self._began)
        self.trace.update(b"%d %d" % (self.executions, self.trusted))

    def _take(self, now: float, worker: _Worker) -> int | None:
        """Return the task that a worker computes next; the choosy hand back all but what another of them lied about."""
        index = self.verifier.take(now, worker.name, self._rng)
        if not (worker.is_saboteur and self.settings.copycat and worker.done >= self.settings.sleep):
            return index
        for _ in range(self.settings.choosy - 1):
            if index is None or index < 0 or self._shared.get(index) == WRONG:
                break
            self.verifier.returned(now, worker.name, index)
            index = self.verifier.take(now, worker.name, self._rng)
        return index

    def _admit(self, now: float) -> None:
        while self._outside and self.verifier.join(now, self._outside[-1].name):
            self.workers.append(self._outside.pop())

    def _compute_one(self, now: float) -> None:
        """No worker may compute what is left: a trusted node does."""
        index = next(index for index, task in enumerate(self.verifier.tasks) if task.accepted is None)
        self.trusted += 1
        self._follow(now, self.verifier.verdict(now, index, RIGHT))

    def _follow(self, now: float, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case AskTrusted():
                    self.trusted += 1
                    self._follow(now, self.verifier.verdict(now, effect.index, RIGHT))
                case Banned():
                    self._banned(effect.worker)
                case Revoked():
                    self.counts["revoked"] += 1
                case Recheck():
                    self.counts["rechecked"] += 1

    def _banned(self, name: Worker) -> None:
        worker = self._by_name[name]
        self.trace.update(name)
        self.counts["banned_saboteurs" if worker.is_saboteur else "banned_honest"] += 1
        if self.verifier.is_banned(name) and worker in self.workers:
            self.workers.remove(worker)
            if self.settings.whitewash and worker.is_saboteur:
                self._come_back()

    def metrics(self) -> dict[str, float]:
        """What came of it."""
        metrics = Metrics()
        honest = self.settings.workers - round(self.settings.f * self.settings.workers)
        accepted = [task.accepted for task in self.verifier.tasks if task.accepted is not None]
        metrics.set("error_rate", sum(digest != RIGHT for digest in accepted) / max(1, len(accepted)))
        metrics.set("redundancy", (self.executions + self.trusted) / max(1, len(accepted)))
        metrics.set("trusted_runs", self.trusted)
        metrics.set("banned_honest", self.counts["banned_honest"] / max(1, honest))
        metrics.set("banned_saboteurs", self.counts["banned_saboteurs"])
        metrics.set("revoked", self.counts["revoked"])
        metrics.set("rechecked", self.counts["rechecked"])
        metrics.set("turns", self.turn)
        return metrics.result()


def run_trust(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    """Run one seed of a scenario about verification.

    Args:
        until_s: without effect: a run ends when all tasks are accepted.
    """
    settings = scenario.settings
    assert isinstance(settings, TrustSettings)
    began = time.perf_counter()
    run = _Run(settings, seed, watch)
    problems: tuple[str, ...] = ()
    run.play()
    try:
        run.verifier.check_invariants()
    except InvariantViolation as error:
        problems = (str(error),)
    if not run.verifier.is_done:
        problems = (*problems, f"{settings.tasks - run.verifier.accepted_count} tasks are not accepted")
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=settings.workers,
        trace_hash=run.trace.hexdigest(),
        events=run.executions,
        messages=0,
        wall_s=time.perf_counter() - began,
        simulated_s=run.turn * settings.task_s,
        metrics=run.metrics(),
        fired={},
        problems=problems,
    )
