"""The simulated runner: tasks take virtual time and leave a value that can be checked.

Runs `TaskKind.SIMULATED` only: `work_s` divided by the host's speed, plus a small overhead per task.  Failures
and deaths are drawn from the host's generator.
"""

from __future__ import annotations

import hashlib
import zlib
from asyncio import Future
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Final

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.execution.spec import JobSpec, TaskKind, decode_payload, decode_spec
from p2pcompute.host.interfaces import Clock, Rng, Value
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun
from p2pcompute.limits import MIB
from p2pcompute.simulation.loop import SimulationLoop
from p2pcompute.simulation.trace import Kind

SPECS_KEPT_MAX: Final = 32
"""Decoded job specs remembered per host."""
KILL_S: Final = 0.01
"""From the request to stop a task to its end."""

OVERHEAD_S: Final = 0.0005
"""Of a function in a worker process that is warm."""

_OnOutcomes = Callable[[Sequence[tuple[int, Outcome]]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerModel:
    """How a simulated machine runs tasks."""

    slot_count: int = 2
    speed: float = 1.0
    """Work per second of one slot; a task of `work_s` takes work_s / speed."""
    overhead_s: float = OVERHEAD_S
    """Added to every task."""
    failure: float = 0.0
    """Probability that an attempt ends as FAILED."""
    death: float = 0.0
    """Probability that the runner's process dies during an attempt."""
    mem_bytes: int = 8 * 1024 * MIB
    """Memory of the machine, for its probe."""
    attributes: Mapping[str, Value] = field(default_factory=dict, hash=False)
    """What else its probe says, or instead of what it would say."""
    has: frozenset[str] = frozenset()
    """Applications and runtimes of the machine."""

    def __post_init__(self) -> None:
        if self.slot_count < 0 or self.speed <= 0 or not (0 <= self.failure <= 1 and 0 <= self.death <= 1):
            raise ValueError(f"impossible runner model: {self}")


def simulated_value(index: int) -> bytes:
    """The value of the simulated task at `index`: 8 bytes, a hash of the index as 8 bytes big-endian."""
    return hashlib.blake2b(index.to_bytes(8, "big"), digest_size=8).digest()


@dataclass(slots=True)
class Tally:
    """What the runners of one host did, over all its lives."""

    runs_ok: int = 0
    """Attempts that ended well."""
    work_s: float = 0.0
    """Time of its slots at work times their speed, whatever came of it."""


class _Batch:
    """What a slot works on: `position` is the run under way."""

    __slots__ = (
        "behind", "ending", "ends_at", "on_outcomes", "position", "runs", "since", "slot", "speed", "started", "turn",
        "work_s",
    )  # fmt: skip

    def __init__(self, slot: int, runs: Sequence[TaskRun], on_outcomes: _OnOutcomes) -> None:
        self.slot = slot
        self.runs = list(runs)
        self.on_outcomes = on_outcomes
        self.position = 0
        self.turn = 0
        """Counts the events of this batch: one that comes too late has another number."""
        self.started = 0.0
        """By the host's clock."""
        self.speed = 1.0
        self.since = 0.0
        """Since when it has run at this speed."""
        self.work_s = 0.0
        """Done before that, at other speeds."""
        self.ends_at = 0.0
        """Virtual time at which the run under way ends; while the host is suspended, the seconds that are left."""
        self.ending: Outcome | None = None
        self.behind: list[tuple[TaskRun, Outcome]] = []
        """Runs that were behind the one that is being killed: reported along with it."""


class SimRunner:
    """The simulated `Runner`.

    Args:
        number: of the host, for the trace.
        rng: its stream "runner" draws failures and deaths.
        context: in which outcomes are reported, so that what they start belongs to the host.
        tally: of the host.
    """

    def __init__(
        self,
        loop: SimulationLoop,
        clock: Clock,
        number: int,
        *,
        rng: Rng,
        model: RunnerModel,
        context: Context,
        tally: Tally | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._number = number
        self._rng = rng
        self._context = context
        self._tally = tally or Tally()
        self.model = model
        """May be replaced while the simulation runs; counts from the next task on."""
        self._slots: list[_Batch | None] = [None] * model.slot_count
        self._specs: dict[bytes, JobSpec | None] = {}
        self._idle: list[Future[None]] = []
        self._is_dead = False
        self.on_saved: Callable[[int, bytes], None] = lambda _run_id, _cookie: None
        self._late: list[tuple[_OnOutcomes, list[tuple[TaskRun, Outcome]]]] | None = None
        """What is to be reported when a suspended host goes on; None while it runs."""
        self.is_closed = False
        self.runs_ended = 0
        """Outcomes reported so far."""

    @property
    def slot_count(self) -> int:
        return len(self._slots)

    @property
    def busy_count(self) -> int:
        """Slots at work."""
        return sum(batch is not None for batch in self._slots)

    async def start(self) -> None:
        """Nothing to start: there are no processes."""

    def run(self, slot: int, runs: Sequence[TaskRun], on_outcomes: _OnOutcomes) -> None:
        if self.is_closed:
            raise LocalProtocolError("the runner is closed")
        if not 0 <= slot < len(self._slots):
            raise LocalProtocolError(f"there is no slot {slot}")
        if self._slots[slot] is not None:
            raise LocalProtocolError(f"slot {slot} is busy")
        if runs:
            batch = self._slots[slot] = _Batch(slot, runs, on_outcomes)
            self._begin(batch)

    async def tail(self, run_id: int, offsets: tuple[int, int]) -> None:
        """Simulated tasks print nothing."""

    async def cpu_used_s(self) -> Mapping[int, float]:
        """Nor do they use any CPU."""
        return {}

    def kill(self, run_ids: Sequence[int]) -> None:
        wanted = frozenset(run_ids)
        for batch in self._slots:
            if batch is None:
                continue
            waiting = batch.runs[batch.position + 1 :]
            is_running_hit = batch.runs[batch.position].run_id in wanted
            if not is_running_hit and not any(run.run_id in wanted for run in waiting):
                continue
            # The worker process has the whole batch: what had not started is taken from all of it.
            del batch.runs[batch.position + 1 :]
            ended = [
                (run, Outcome(OutcomeStatus.KILLED if run.run_id in wanted else OutcomeStatus.NOT_RUN))
                for run in waiting
            ]
            if is_running_hit:
                batch.behind += ended
            elif ended:
                self._loop.post(self._loop.time() + KILL_S, self._report_killed, (batch.on_outcomes, ended))
            if is_running_hit:
                batch.ending = Outcome(OutcomeStatus.KILLED, signal=15)
                self._end_in(batch, KILL_S)

    def recall(self, run_ids: Sequence[int]) -> list[int]:
        wanted = frozenset(run_ids)
        taken: list[int] = []
        for batch in self._slots:
            if batch is not None:
                waiting = batch.runs[batch.position + 1 :]
                batch.runs[batch.position + 1 :] = [run for run in waiting if run.run_id not in wanted]
                taken += [run.run_id for run in waiting if run.run_id in wanted]
        return taken

    def hold(self, slots: Collection[int]) -> None:
        """Nobody sits at a simulated machine: nothing is ever held."""
        if slots:
            raise LocalProtocolError("a simulated runner holds no slots")

    async def close(self) -> None:
        self.is_closed = True
        self.kill([run.run_id for batch in self._slots if batch is not None for run in batch.runs])
        while self.busy_count and not self._is_dead:
            waiter: Future[None] = self._loop.create_future()
            self._idle.append(waiter)
            await waiter

    def crash(self) -> None:
        """Forget everything; nobody is told."""
        now = self._clock.now()
        for batch in self._slots:
            if batch is not None:
                self._tally.work_s += batch.work_s + (now - batch.since) * batch.speed
        self._is_dead = self.is_closed = True
        self._slots = [None] * len(self._slots)

    # --- faults -----------------------------------------------------------------------------------

    def change(self, model: RunnerModel) -> None:
        """Run tasks after another model; what runs goes on at its speed.  The count of slots stays."""
        self.model = model
        now = self._loop.time()
        for batch in self._slots:
            if batch is None or batch.speed == model.speed or self._is_dead:
                continue
            done_s = self._clock.now() - batch.since
            batch.work_s += done_s * batch.speed
            batch.since += done_s
            left_s = batch.ends_at - (now if self._late is None else 0.0)
            left_s *= batch.speed / model.speed
            batch.speed = model.speed
            if self._late is None:
                self._end_in(batch, left_s)
            else:
                batch.ends_at = left_s

    def suspend(self) -> None:
        """Let nothing go on until `resume`."""
        self._late = []
        for batch in self._slots:
            if batch is not None:
                batch.turn += 1
                batch.ends_at -= self._loop.time()

    def resume(self) -> None:
        """Go on where `suspend` left off."""
        late, self._late = self._late, None
        for batch in self._slots:
            if batch is not None:
                self._end_in(batch, batch.ends_at)
        for event in late or ():
            self._report(*event)

    def kill_busy(self) -> int:
        """Let every task that runs die for lack of memory; returns how many."""
        count = 0
        for batch in self._slots:
            if batch is not None and not self._is_dead and self._late is None:
                batch.ending = Outcome(OutcomeStatus.DIED, signal=9, cause="oom", error="out of memory")
                self._end_in(batch, 0.0)
                count += 1
        return count

    # --- one task after the other -----------------------------------------------------------------

    def _spec(self, raw: bytes) -> JobSpec | None:
        """The decoded spec, or None when it cannot be run here."""
        if raw not in self._specs:
            if len(self._specs) >= SPECS_KEPT_MAX:
                del self._specs[next(iter(self._specs))]
            try:
                spec: JobSpec | None = decode_spec(raw)
            except RemoteProtocolError:
                spec = None
            self._specs[raw] = spec
        return self._specs[raw]

    def _begin(self, batch: _Batch) -> None:
        """Start the run at `batch.position` and draw how it will end."""
        run = batch.runs[batch.position]
        batch.started = batch.since = self._clock.now()
        batch.work_s = 0.0
        spec = self._spec(run.spec)
        try:
            work_s = decode_payload(run.payload).work_s
        except RemoteProtocolError as error:
            spec, work_s = None, 0.0
            batch.ending = Outcome(OutcomeStatus.REFUSED, error=str(error))
        model = self.model
        batch.speed = model.speed
        duration = work_s / model.speed + model.overhead_s
        if spec is None or spec.kind is not TaskKind.SIMULATED:
            duration = model.overhead_s
            if batch.ending is None:
                batch.ending = Outcome(OutcomeStatus.REFUSED, error="a simulated host runs only simulated tasks")
        else:
            batch.ending = self._draw(run)
            if batch.ending.status is OutcomeStatus.DIED:
                duration *= self._rng.stream("runner").random()
            if spec.timeout_s is not None and duration > spec.timeout_s:
                duration = spec.timeout_s
                batch.ending = Outcome(OutcomeStatus.TIMEOUT, error=f"the task took longer than {spec.timeout_s:g} s")
        self._end_in(batch, duration)

    def _draw(self, run: TaskRun) -> Outcome:
        """How this attempt ends when it has the time.  Draws only where something can go wrong."""
        model = self.model
        if model.death and self._rng.stream("runner").random() < model.death:
            return Outcome(OutcomeStatus.DIED, signal=9, cause="signal", error="the process was killed by signal 9")
        if model.failure and self._rng.stream("runner").random() < model.failure:
            return Outcome(OutcomeStatus.FAILED, exit_code=1, error="simulated failure")
        return Outcome(OutcomeStatus.OK, value=simulated_value(run.index), exit_code=0)

    def _end_in(self, batch: _Batch, delay_s: float) -> None:
        batch.turn += 1
        batch.ends_at = self._loop.time() + delay_s
        self._loop.post(batch.ends_at, self._ended, (batch, batch.turn))

    def _ended(self, event: tuple[_Batch, int]) -> None:
        batch, turn = event
        if self._is_dead or turn != batch.turn:
            return
        ending, batch.ending = batch.ending, None
        assert ending is not None
        runtime_s = self._clock.now() - batch.started
        self._tally.work_s += batch.work_s + (self._clock.now() - batch.since) * batch.speed
        self._tally.runs_ok += ending.status is OutcomeStatus.OK
        wall = self._clock.wall() - runtime_s
        outcome = replace(ending, started_wall=wall, runtime_s=runtime_s, cpu_s=runtime_s)
        ended = [(batch.runs[batch.position], outcome), *batch.behind]
        batch.behind = []
        batch.position += 1
        if ending.status is OutcomeStatus.DIED:
            # The dead process had the rest of the batch.
            ended += [(run, Outcome(OutcomeStatus.NOT_RUN)) for run in batch.runs[batch.position :]]
            del batch.runs[batch.position :]
        if batch.position < len(batch.runs):
            self._begin(batch)
        else:
            self._slots[batch.slot] = None
            self._wake_closers()
        self._report(batch.on_outcomes, ended)

    def _report_killed(self, event: tuple[_OnOutcomes, list[tuple[TaskRun, Outcome]]]) -> None:
        if self._late is not None:
            self._late.append(event)
        elif not self._is_dead:
            self._report(*event)

    def _report(self, on_outcomes: _OnOutcomes, ended: list[tuple[TaskRun, Outcome]]) -> None:
        for run, outcome in ended:
            digest = zlib.crc32(outcome.status.encode(), run.index & 0xFFFFFFFF)
            self._loop.trace.record(self._loop.time(), self._number, Kind.RUN, digest)
        self.runs_ended += len(ended)
        self._context.run(on_outcomes, [(run.run_id, outcome) for run, outcome in ended])

    def _wake_closers(self) -> None:
        if not self.busy_count:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()
