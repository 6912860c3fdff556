"""The worker's core: what this node holds for owners, what it starts, when it asks for more.

Pure: time is passed in.  A held task is *staging* (its inputs are on the way), *queued*, or *running*; what is
queued may be stolen by others, what is running never.

Invariants: a slot runs one batch of one job, and a batch of large tasks takes several slots; a held task is in exactly
one of the three states; the tasks of a batch that the runner has count as running from the moment when they are handed
to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import ceil

from p2pcompute.errors import InvariantViolation
from p2pcompute.limits import BATCH_TARGET_S, GRANT_TASKS_MAX, RECALL_S, RUN_BATCH_MAX, RUN_BATCH_S
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.fairness import FairOrder, Standing
from p2pcompute.scheduler.owner import TASK_S_MIN

DURATION_WEIGHT = 0.1
"""Weight of a new duration in the moving average (EWMA) of a job."""
SPARE_FRACTION = 0.5
"""A worker asks for more when less than this part of a batch is left."""


class HeldState(StrEnum):
    STAGING = "staging"
    QUEUED = "queued"
    RUNNING = "running"


@dataclass(slots=True)
class Held:
    """One task that this node holds a lease on."""

    run_id: int
    job_id: bytes
    owner: bytes
    task: GrantedTask
    state: HeldState
    slot: int = -1
    is_dropped: bool = False
    """It runs and its owner does not want it any more: only a good outcome is reported.  The same task may be granted
    anew meanwhile."""
    is_moving: bool = False
    """It came from another worker and the owner does not know it yet: until then it is not given on."""
    manifest: bytes = b""
    """Its coordinator's word for it (`manifests`), shared by all tasks that were given together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks to start on a slot now."""

    slot: int
    job_id: bytes
    held: tuple[Held, ...]


class WorkerCore:
    """The books of one node's slots."""

    def __init__(
        self,
        slot_count: int,
        slots_of: Callable[[bytes], int] | None = None,
        is_foreign: Callable[[bytes], bool] | None = None,
        standing_of: Callable[[bytes], Standing] | None = None,
        installation: bytes = b"",
    ) -> None:
        """Args:
        slots_of: how many slots a task of a job takes, from 1; None: one each.
        is_foreign: whether a job is another installation's; None: none is.
        standing_of: what decides whose turn a job is; None: all are equal.
        installation: this node's; its jobs come first.
        """
        self.slot_count = slot_count
        self._slots_of = slots_of
        self._is_foreign = is_foreign
        self._standing_of = standing_of
        self._installation = installation
        self.order = FairOrder()
        """Jobs that tasks are or were held of."""
        self.foreign_slots: int | None = None
        """How many slots foreign jobs may take now; None: all."""
        self.is_paused = False
        """Takes no new work; what runs goes on."""
        self.is_resting = False
        """Neither takes nor starts work for the moment."""
        self.held: dict[int, Held] = {}
        self._by_task: dict[tuple[bytes, int], int] = {}
        """Run ids of what is held and not dropped."""
        self._queues: dict[bytes, deque[int]] = {}
        """Queued run ids per job."""
        self._queued_count = 0
        self._staging_count = 0
        self._free = list(range(slot_count - 1, -1, -1))
        self._slot_runs: dict[int, dict[int, None]] = {}
        """Slot → run ids of its batch that have not reported, in the order of execution."""
        self._slot_others: dict[int, list[int]] = {}
        """Slot → further slots that its batch takes."""
        self._slot_began: dict[int, tuple[float, bytes, int]] = {}
        """Slot → when its batch began, its job, and how many tasks it has."""
        self._slot_guess: dict[int, float] = {}
        """Slot → slot time that was charged for each task of its batch."""
        self._is_short = False
        """The next task takes more slots than are free: it waits for them, and nothing passes it."""
        self._task_s: dict[bytes, float] = {}
        self._next_run = 1

    # --- reading ----------------------------------------------------------------------------------

    @property
    def busy_slots(self) -> int:
        return self.slot_count - len(self._free)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def queued_count(self) -> int:
        """Tasks that wait here, those in staging included."""
        return self._queued_count + self._staging_count

    @property
    def staging_count(self) -> int:
        """Tasks whose inputs are on the way."""
        return self._staging_count

    def can_give(self, now: float) -> bool:
        """Whether `give` might hand over anything."""
        return (not self._free or self._is_short) and self._queued_count >= (1 if self._is_stuck(now) else 2)

    def _is_stuck(self, now: float) -> bool:
        """Whether every slot has been at its batch for so long that nobody knows when the next one begins."""
        return all(now - began >= BATCH_TARGET_S for began, _job_id, _size in self._slot_began.values())

    def holds(self, job_id: bytes, index: int) -> bool:
        return (job_id, index) in self._by_task

    def is_running(self, job_id: bytes, index: int) -> bool:
        """True when the task was handed to the runner.  May be called by any thread."""
        held = self.held.get(self._by_task.get((job_id, index), 0))
        return held is not None and held.state is HeldState.RUNNING

    def running(self, job_id: bytes, index: int, owner: bytes) -> Held | None:
        """Return a task of this owner that runs here."""
        held = self.held.get(self._by_task.get((job_id, index), 0))
        return held if held is not None and held.state is HeldState.RUNNING and held.owner == owner else None

    def began(self, held: Held) -> float:
        """Return when the batch of a running task began."""
        return self._slot_began[held.slot][0]

    def foreign_busy(self) -> list[int]:
        """Return the slots whose batch is of a foreign job, those that began first before the others."""
        if self._is_foreign is None:
            return []
        began = sorted((at, slot) for slot, (at, job_id, _size) in self._slot_began.items() if self._is_foreign(job_id))
        return [slot for _at, slot in began]

    def foreign_runs(self) -> list[int]:
        """Return the run ids of the tasks of foreign jobs that run."""
        slots = frozenset(self.foreign_busy())
        return [held.run_id for held in self.held.values() if held.state is HeldState.RUNNING and held.slot in slots]

    def _foreign_taken(self) -> int:
        return sum(1 + len(self._slot_others.get(slot, ())) for slot in self.foreign_busy())

    def want(self, *, of_others: bool = False) -> int:
        """Return how many more tasks this node would take now; 0 when it has enough.

        Args:
            of_others: tasks that other nodes give, which may be foreign.

        About BATCH_TARGET_S of work beyond what runs; for tasks of that length or more, one per free slot; of a job of
        which none has ended here, a task per slot: how long those of another job took says nothing about it.
        """
        slots, free = self.slot_count, self.free_slots
        if of_others and self.foreign_slots is not None:
            slots = min(slots, self.foreign_slots)
            free = min(free, slots - self._foreign_taken())
        if self.is_paused or self.is_resting or slots <= 0:
            return 0
        queues, waiting = self._queues, self.queued_count
        if not of_others and self._is_foreign is not None:  # what waits here of others comes behind our own
            queues = {job_id: queue for job_id, queue in queues.items() if not self._is_foreign(job_id)}
            waiting = sum(map(len, queues.values()))
        queued = [self._task_s.get(job_id) for job_id in queues]
        known = [task_s for task_s in queued if task_s is not None]
        if not queued:
            known = list(self._task_s.values())[-1:]
        target = slots
        if known and len(known) == max(1, len(queued)):
            target = max(target, min(GRANT_TASKS_MAX, int(BATCH_TARGET_S * slots / max(known))))
            if max(known) >= BATCH_TARGET_S:
                return max(0, free - waiting)
        if waiting == 0:
            return target
        if waiting < target * SPARE_FRACTION:
            return target - waiting
        return 0

    def outlook(self, now: float, task_s_of: Callable[[bytes], float | None]) -> tuple[float | None, float | None]:
        """Return in how many seconds the next running task ends, and in how many a slot is free for more than what
        waits here, as if tasks took as long as others of their job.  None where that is not known.

        Args:
            task_s_of: how long tasks of a job take of which none has ended here; None: not known.
        """

        def expected_s(job_id: bytes) -> float | None:
            return self._task_s.get(job_id) or task_s_of(job_id)

        left = []
        for began, job_id, size in self._slot_began.values():
            task_s = expected_s(job_id)
            if task_s is not None:
                left.append(max(0.0, began + size * task_s - now))
        next_s = min(left, default=None)
        waiting = [(len(queue), expected_s(job_id)) for job_id, queue in self._queues.items()]
        if self._free and not self.queued_count:
            return next_s, 0.0
        if next_s is None or self._staging_count or any(task_s is None for _count, task_s in waiting):
            return next_s, None if self.queued_count else next_s
        work_s = sum(left) + sum(count * (task_s or 0.0) for count, task_s in waiting)
        return next_s, max(next_s, work_s / self.slot_count) if waiting else next_s

    # --- taking and giving ------------------------------------------------------------------------

    def take(self, grant: Grant, owner: bytes, *, is_staged: bool, is_moving: bool = False) -> list[Held]:
        """Hold the tasks of a grant; those that are held already are left out (a repeated grant, or one that follows a
        lease which had ended for the owner: then the outcome is for the later attempt)."""
        taken = []
        for task in grant.tasks:
            known = self.held.get(self._by_task.get((grant.job_id, task.index), 0))
            if known is not None:
                if known.task.generation == task.generation and known.task.attempt < task.attempt:
                    known.task, known.manifest = task, grant.manifest
                continue
            state = HeldState.QUEUED if is_staged else HeldState.STAGING
            held = Held(self._next_run, grant.job_id, owner, task, state, is_moving=is_moving, manifest=grant.manifest)
            self._next_run += 1
            self.held[held.run_id] = held
            self._by_task[grant.job_id, task.index] = held.run_id
            if is_staged:
                self._enqueue(held)
            else:
                self._staging_count += 1
            taken.append(held)
        return taken

    def outdated(self, grant: Grant) -> list[int]:
        """Return the tasks of a grant that are held under a former generation: to be dropped before it is taken."""
        found = []
        for task in grant.tasks:
            known = self.held.get(self._by_task.get((grant.job_id, task.index), 0))
            if known is not None and known.task.generation < task.generation:
                found.append(task.index)
        return found

    def staged(self, run_ids: Sequence[int]) -> None:
        """The inputs of these tasks are here."""
        for run_id in run_ids:
            held = self.held.get(run_id)
            if held is not None and held.state is HeldState.STAGING:
                held.state = HeldState.QUEUED
                self._staging_count -= 1
                self._enqueue(held)

    def _enqueue(self, held: Held) -> None:
        if held.job_id not in self._queues:
            self._queues[held.job_id] = deque()
            standing = Standing() if self._standing_of is None else self._standing_of(held.job_id)
            self.order.add(held.job_id, standing)
        self._queues[held.job_id].append(held.run_id)
        self._queued_count += 1

    def moved(self, job_id: bytes, indices: Iterable[int]) -> None:
        """The owner knows now that these tasks are here."""
        for index in indices:
            held = self.held.get(self._by_task.get((job_id, index), 0))
            if held is not None:
                held.is_moving = False

    def give(self, count: int, may_give: Callable[[Held], bool], now: float = 0.0) -> list[Held]:
        """Hand over up to `count` queued tasks of one job, youngest first: at most half of what is queued, or all of
        it when what runs here takes long.

        Nothing is given while a slot is free: the tasks will start here at once.
        """
        if not self.can_give(now):
            return []
        is_stuck = self._is_stuck(now)
        for queue in self._queues.values():
            most = min(count, len(queue) if is_stuck else len(queue) // 2)
            if not most or not may_give(self.held[queue[-1]]):
                continue
            settled = (held for held in map(self.held.__getitem__, reversed(queue)) if not held.is_moving)
            given = list(islice(settled, most))
            if given:
                for held in given:
                    self._remove(held)
                return given
        return []

    def put_back(self, held: Held) -> None:
        """Take back what `give` handed over: the thief did not acknowledge."""
        if (held.job_id, held.task.index) in self._by_task:
            return
        self.held[held.run_id] = held
        self._by_task[held.job_id, held.task.index] = held.run_id
        held.state = HeldState.QUEUED
        self._enqueue(held)

    def _remove(self, held: Held) -> None:
        """Forget a task that does not run."""
        del self.held[held.run_id]
        del self._by_task[held.job_id, held.task.index]
        if held.state is HeldState.STAGING:
            self._staging_count -= 1
            return
        queue = self._queues[held.job_id]
        if queue[-1] == held.run_id:
            queue.pop()
        else:
            queue.remove(held.run_id)
        if not queue:
            del self._queues[held.job_id]
            self._leave_order(held.job_id)
        self._queued_count -= 1

    def _leave_order(self, job_id: bytes) -> None:
        """Take a job of which nothing waits or runs out of the order."""
        if job_id not in self._queues and all(job_id != job for _began, job, _size in self._slot_began.values()):
            self.order.discard(job_id)

    def drop(self, job_id: bytes, indices: Sequence[int], *, owner: bytes, kill: bool) -> tuple[list[int], list[int]]:
        """The owner does not want these any more.

        Returns:
            (indices that had not started and are gone from here, run ids that the runner should kill).
        """
        returned, kills = [], []
        for index in indices:
            run_id = self._by_task.get((job_id, index))
            if run_id is None or self.held[run_id].owner != owner:
                continue
            held = self.held[run_id]
            if held.state is not HeldState.RUNNING:
                self._remove(held)
                returned.append(index)
            elif kill:
                held.is_dropped = True
                del self._by_task[job_id, index]
                kills.append(run_id)
        return returned, kills

    def surrender(
        self, *, only_foreign: bool = False, of_jobs: Collection[bytes] | None = None
    ) -> dict[tuple[bytes, bytes], list[int]]:
        """Give everything that has not started back, or that of some jobs; returns (owner, job) → indices."""
        returned: dict[tuple[bytes, bytes], list[int]] = {}
        for held in list(self.held.values()):
            if of_jobs is not None and held.job_id not in of_jobs:
                continue
            if only_foreign and not (self._is_foreign is not None and self._is_foreign(held.job_id)):
                continue
            if held.state is not HeldState.RUNNING:
                self._remove(held)
                returned.setdefault((held.owner, held.job_id), []).append(held.task.index)
        return returned

    def redirect(self, job_id: bytes, owner: bytes) -> list[Held]:
        """Hold the tasks of a job for another coordinator; returns those that are held and wanted."""
        found = [held for held in self.held.values() if held.job_id == job_id]
        for held in found:
            held.owner = owner
            held.is_moving = False
        return [held for held in found if not held.is_dropped]

    # --- running ----------------------------------------------------------------------------------

    def next_batches(self, now: float = 0.0) -> list[Batch]:
        """Return what to start on the free slots now, jobs in the order of `fairness`; the tasks count as running from
        here on."""
        batches: list[Batch] = []
        self._is_short = False
        while self._free and self._queues and not self.is_resting:
            job_id = self._next_job()
            if job_id is None:
                break
            taken = self._slots_taken(job_id)
            if taken > len(self._free):
                self._is_short = True
                break
            queue = self._queues.pop(job_id)
            size = self._run_batch_size(job_id, len(queue))
            slot = self._free.pop()
            if taken > 1:
                self._slot_others[slot] = [self._free.pop() for _ in range(taken - 1)]
            held_list = []
            for _ in range(size):
                held = self.held[queue.popleft()]
                held.state, held.slot = HeldState.RUNNING, slot
                held_list.append(held)
            self._queued_count -= size
            if queue:
                self._queues[job_id] = queue
            self._slot_runs[slot] = {held.run_id: None for held in held_list}
            self._slot_began[slot] = now, job_id, size
            self._slot_guess[slot] = taken * self._task_s.get(job_id, BATCH_TARGET_S)
            self.order.charge(job_id, size * self._slot_guess[slot])
            batches.append(Batch(slot, job_id, tuple(held_list)))
        return batches

    def _slots_taken(self, job_id: bytes) -> int:
        return 1 if self._slots_of is None else min(self._slots_of(job_id), self.slot_count)

    def _next_job(self) -> bytes | None:
        """Return the job in turn; foreign ones are passed over while they have as many slots as they may."""
        in_order = self.order.in_order(self._queues.__contains__, first=self._installation)
        if self.foreign_slots is None or self._is_foreign is None:
            return in_order[0]
        left = self.foreign_slots - self._foreign_taken()
        for job_id in in_order:
            if not self._is_foreign(job_id) or min(self._slots_taken(job_id), self.foreign_slots or 1) <= left:
                return job_id
        return None

    def _run_batch_size(self, job_id: bytes, queued: int) -> int:
        """Tiny tasks go to the worker process several at a time, about RUN_BATCH_S of them."""
        task_s = self._task_s.get(job_id)
        if task_s is None:
            return 1
        return max(1, min(int(RUN_BATCH_S / task_s), RUN_BATCH_MAX, ceil(queued / self.slot_count), queued))

    @property
    def has_batches(self) -> bool:
        """Whether a task waits in a slot behind another one."""
        return any(len(runs) > 1 for runs in self._slot_runs.values())

    def waiting_long(self, now: float) -> list[int]:
        """Return the run ids of tasks that wait in a slot whose batch should have ended long ago."""
        return [
            run_id
            for slot, runs in self._slot_runs.items()
            if len(runs) > 1 and now - self._slot_began[slot][0] >= RECALL_S
            for run_id in islice(runs, 1, None)
            if not self.held[run_id].is_dropped
        ]

    def recalled(self, run_ids: Sequence[int]) -> None:
        """The runner has given these back unstarted: they are first in their queues."""
        for run_id in reversed(run_ids):
            held = self.held[run_id]
            runs = self._slot_runs[held.slot]
            del runs[run_id]
            if held.is_dropped:
                del self.held[run_id]
                continue
            began, job_id, _size = self._slot_began[held.slot]
            self._slot_began[held.slot] = began, job_id, len(runs)
            self.order.charge(job_id, -self._slot_guess[held.slot])
            held.state, held.slot = HeldState.QUEUED, -1
            self._queues.setdefault(job_id, deque()).appendleft(run_id)  # its batch keeps the job in the order
            self._queued_count += 1

    def ended(self, run_id: int, runtime_s: float | None, took_s: float = 0.0) -> Held | None:
        """A run has reported; returns what it was, or None when it is unknown.

        Args:
            runtime_s: of a task that ran to its end, else None.
            took_s: how long it ran, whatever ended it.
        """
        held = self.held.pop(run_id, None)
        if held is None:
            return None
        if held.state is not HeldState.RUNNING:
            raise InvariantViolation(f"run {run_id} ended and was {held.state}")
        if not held.is_dropped:
            del self._by_task[held.job_id, held.task.index]
        runs = self._slot_runs[held.slot]
        del runs[run_id]
        width = 1 + len(self._slot_others.get(held.slot, ()))
        self.order.charge(held.job_id, width * (took_s or runtime_s or 0.0) - self._slot_guess[held.slot])
        if not runs:
            del self._slot_runs[held.slot], self._slot_began[held.slot], self._slot_guess[held.slot]
            self._free += self._slot_others.pop(held.slot, ())
            self._free.append(held.slot)
            self._leave_order(held.job_id)
        if runtime_s is not None:
            runtime_s = max(runtime_s, TASK_S_MIN)
            average = self._task_s.pop(held.job_id, None)
            average = runtime_s if average is None else average + DURATION_WEIGHT * (runtime_s - average)
            self._task_s[held.job_id] = average  # last in the dict: the most recent job
        return held

    def forget_job(self, job_id: bytes) -> None:
        """Drop what was learned about a job that is over."""
        self._task_s.pop(job_id, None)

    def held_of(self, owner: bytes) -> dict[bytes, list[tuple[int, int, int]]]:
        """Return job → (index, generation, attempt) of what is held for an owner as it knows: a heartbeat's content."""
        jobs: dict[bytes, list[tuple[int, int, int]]] = {}
        for held in self.held.values():
            if held.owner == owner and not held.is_dropped and not held.is_moving:
                jobs.setdefault(held.job_id, []).append((held.task.index, held.task.generation, held.task.attempt))
        return jobs

    def holds_of(self, owner: bytes) -> bool:
        """Return whether anything is held for an owner."""
        return any(held.owner == owner and not held.is_dropped for held in self.held.values())

    def check_invariants(self) -> None:
        """Raise InvariantViolation when the books do not agree."""
        queued = sum(len(queue) for queue in self._queues.values())
        states = [held.state for held in self.held.values()]
        if queued != self._queued_count or states.count(HeldState.QUEUED) != queued:
            raise InvariantViolation(f"{self._queued_count} queued, {queued} in queues")
        if states.count(HeldState.STAGING) != self._staging_count:
            raise InvariantViolation("staging count")
        wanted = {(held.job_id, held.task.index): held.run_id for held in self.held.values() if not held.is_dropped}
        if wanted != self._by_task:
            raise InvariantViolation("index of held tasks")
        running = states.count(HeldState.RUNNING)
        used = len(self._slot_runs) + sum(map(len, self._slot_others.values()))
        if self._slot_began.keys() != self._slot_runs.keys():
            raise InvariantViolation("when batches began")
        if running != sum(map(len, self._slot_runs.values())) or used + len(self._free) != self.slot_count:
            raise InvariantViolation("slots")
