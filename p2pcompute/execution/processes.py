"""The node's runner: one warm worker process per slot, started when first needed, replaced when it dies.

Works in any thread that runs an event loop; uses no signal and never forks the process it is in.

Deviations: batches are answered result by result (a task that kills its process takes no other result with it,
and it is known which task it was); instead of the worker the node coalesces, by leaving results in the socket for
up to RUNNER_READ_PAUSE_S when more are about to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.execution import box_places, messages, sandbox
from p2pcompute.execution.cgroups import Cgroups
from p2pcompute.execution.child_os import oom_kills
from p2pcompute.execution.cpu_used import used_by_trees
from p2pcompute.execution.environment_failures import EnvironmentFailed
from p2pcompute.execution.environments import OWN, Environment, Environments
from p2pcompute.execution.fenced_process import FencedProcess
from p2pcompute.execution.levels import Level
from p2pcompute.execution.outcomes import died, not_started, outcome_of, printed_in
from p2pcompute.execution.progress import read as read_progress
from p2pcompute.execution.result_files import keep_data, stored
from p2pcompute.execution.results import (
    RawResult,
    Tail,
    parse_outputs,
    parse_result,
    parse_saved,
    parse_started,
    parse_tail,
)
from p2pcompute.execution.rules import Rules
from p2pcompute.execution.sandbox_process import SandboxProcess, close_all
from p2pcompute.execution.slots import OnOutcomes, Pending, Slot, settings_of
from p2pcompute.execution.spec import TaskKind
from p2pcompute.execution.standstill import go_on, stand_still
from p2pcompute.execution.task_messages import (
    KnownJob,
    Translator,
    Unfit,
    in_environment,
    input_bytes,
    placed_job,
    placed_task,
    process_mem_bytes,
)
from p2pcompute.execution.trees import empty_directory, remove_tree
from p2pcompute.execution.worker_process import WorkerProcess, group_exists, inherited_environment, is_command_of
from p2pcompute.host.interfaces import BlobStore, Clock
from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus, TaskRun
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    ENVIRONMENT_WORKERS_MAX,
    KILL_GRACE_S,
    RUNNER_JOBS_MAX,
    RUNNER_READ_PAUSE_S,
    RUNNER_SAVED_BYTES_PER_S,
    RUNNER_SAVED_PAUSE_S,
    RUNNER_SEND_BYTES,
    RUNNER_WATCH_SLACK_S,
    SANDBOX_IDLE_S,
    TAIL_S,
)

_GROUP_GONE_S: Final = 2.0
"""How long `close` waits for killed processes that are not our children (a zombie that nobody reaps stays)."""
_OOM_LOOK_S: Final = 1.0
"""How often the kernel's count of processes killed for want of memory is read: it costs more than a small task."""
_PAUSE_S_MIN: Final = 0.001
"""Timers of an event loop have this resolution; shorter pauses are not worth one."""


class ProcessRunner:
    """Runs functions and commands in worker processes of this machine: those of this installation's user at the level
    `process` (limits, no sandbox), those of others at the level that was chosen, or not at all."""

    def __init__(
        self,
        blobs: BlobStore,
        directory: Path,
        slot_count: int,
        clock: Clock,
        *,
        node_name: str,
        others: Level = Level.SANDBOX,
        only_wasm: bool = False,
        hidden: Sequence[Path] = (),
        environments: Environments | None = None,
    ) -> None:
        """Args:
        others: level of tasks of other installations.
        only_wasm: of these, only WASI modules are run, as it is at the level `wasm`.
        hidden: directories of the node, which no sandbox may see.
        environments: installs the packages of jobs; None: jobs with packages of their own are refused.
        """
        self._environments = environments
        if environments is not None:
            environments.in_use = self._environments_in_use
        self.rules = Rules(others, only_wasm=only_wasm)
        self._hidden = (directory, *hidden)
        self._node_name = node_name
        self._bubblewrap = ""
        self._blobs = blobs
        self._directory = directory
        self._shared = directory / "shared"
        self._clock = clock
        self._scope = TaskScope("runner")
        self._slots = [Slot(index) for index in range(slot_count)]
        self.cgroups: Cgroups | None = None
        """Where the kernel limits sandboxes; None: they are watched."""
        self.on_saved: Callable[[int, bytes], None] = lambda _run_id, _cookie: None
        self._translator = Translator(blobs, inherited_environment(), node_name)
        self._box_translator = Translator(blobs, sandbox.environment(), node_name)
        self._serial = 0
        self._takes: dict[WorkerProcess, list[asyncio.Task[None]]] = {}
        """Files being taken over, by the process that wrote them."""
        self._alive: dict[WorkerProcess, asyncio.Future[None]] = {}
        """Worker processes, until they are gone and their directories removed; the future is done then."""

    @property
    def slot_count(self) -> int:
        return len(self._slots)

    async def start(self) -> None:
        """Remove what a crash left behind, then start the first worker process."""
        self._scope = TaskScope("runner")
        await asyncio.to_thread(self._prepare_directory)
        if self._slots:
            with contextlib.suppress(OSError):  # the first run reports it
                self._own_worker(self._slots[0])

    def _prepare_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty_directory(str(self._directory))
        self._shared.mkdir(mode=0o700)

    # --- handing out ----------------------------------------------------------------------------------

    def run(self, slot: int, runs: Sequence[TaskRun], on_outcomes: OnOutcomes) -> None:
        """Start a batch; see `host.runs.Runner`."""
        state = self._slots[slot]
        if state.open_count:
            raise LocalProtocolError(f"slot {slot} is busy")
        state.on_outcomes = on_outcomes
        state.open_count = len(runs)
        state.killing.clear()
        state.timed_out = None
        jobs: dict[int, tuple[Any, ...]] = {}
        tasks: list[tuple[Any, ...]] = []
        unfit: list[tuple[int, Outcome]] = []
        first: KnownJob | None = None
        is_boxed = bool(runs) and self.rules.is_boxed(runs[0])
        translator = self._box_translator if is_boxed else self._translator
        for run in runs:
            try:
                self.rules.check_level(run)
                job = translator.job(run)
                self.rules.check(run, job)
                tasks.append(translator.task(run, job))
            except Unfit as reason:
                unfit.append((run.run_id, reason.outcome))
                continue
            jobs[job.number] = job.definition
            first = first or job
            is_function = job.spec.kind == TaskKind.FUNCTION
            state.pending[run.run_id] = Pending(
                run.run_id,
                is_function,
                is_function and not is_boxed,
                job.spec.timeout_s,
                is_function and job.spec.sandbox == "sandbox",
                job.spec.kind is TaskKind.CONTAINER,
            )
        if first is not None:
            if first.spec.packages is None:
                self._begin(state, runs[0], first, jobs, tasks)
            else:
                state.worker, state.preparing = None, tuple(state.pending)
                self._scope.spawn(self._prepare(state, runs[0], first, jobs, tasks), "prepare")
        if unfit:
            asyncio.get_running_loop().call_soon(self._report, state, unfit)
        self._remove_forgotten()

    async def _prepare(
        self, state: Slot, run: TaskRun, job: KnownJob, jobs: dict[int, tuple[Any, ...]], tasks: list[tuple[Any, ...]]
    ) -> None:
        """Hand a batch over once the environment of its job is there."""
        mine = state.preparing
        outcome, environment = Outcome(OutcomeStatus.NOT_RUN, error="the node stopped before this task started"), None
        try:
            environment = await self._environment_of(run, job)
        except EnvironmentFailed as failure:
            if self._environments is not None and not self._environments.is_closed:
                cause = FAILS_ALWAYS if failure.is_final else ""
                outcome = Outcome(OutcomeStatus.FAILED, error=str(failure), cause=cause)
        except Unfit as reason:
            outcome = reason.outcome
        finally:
            if state.preparing is mine:  # else all of them were stopped, and the slot has another batch
                state.preparing = ()
                if environment is None:
                    waiting = [(run_id, outcome) for run_id in state.pending]
                    state.pending.clear()
                    self._report(state, waiting)
        tasks = [task for task in tasks if task[0] in state.pending]  # some may have been stopped meanwhile
        if environment is not None and tasks:
            self._begin(state, run, job, jobs, tasks, environment)

    async def _environment_of(self, run: TaskRun, job: KnownJob) -> Environment:
        """Return the environment of a job; build it first when it is not there.

        Raises:
            EnvironmentFailed, Unfit: it cannot be had here.
        """
        packages = job.spec.packages
        assert packages is not None
        if self._environments is None:
            raise Unfit(Outcome(OutcomeStatus.REFUSED, error="this node installs no packages"))
        lock_path = self._blobs.path(packages)
        if lock_path is None:
            raise Unfit(Outcome(OutcomeStatus.NOT_RUN, error="the list of its packages is not on this node"))
        owner = run.submitter.hex() or OWN
        may_build = not run.submitter or self.rules.trusts(run.submitter)
        return await self._environments.get(packages.digest, lock_path, owner, may_build=may_build)

    def _environments_in_use(self) -> list[Path]:
        return [worker.environment.path for worker in self._alive if worker.environment is not None]

    def _begin(
        self,
        state: Slot,
        run: TaskRun,
        first: KnownJob,
        jobs: dict[int, tuple[Any, ...]],
        tasks: list[tuple[Any, ...]],
        environment: Environment | None = None,
    ) -> None:
        """Hand a batch to a worker process.

        Args:
            run: one of it.
            environment: of its job.
        """
        is_boxed = self.rules.is_boxed(run)
        if environment is not None:
            place = box_places.ENVIRONMENT if is_boxed else str(environment.path)
            jobs = {number: in_environment(definition, place) for number, definition in jobs.items()}
        try:
            if is_boxed:
                worker: WorkerProcess = self._box_for(state, run.submitter, first, tasks, environment)
                worker.begin_batch()
                jobs = {number: placed_job(definition, worker.place) for number, definition in jobs.items()}
                tasks = [placed_task(task, worker.place) for task in tasks]
                worker.end_batch()
            else:
                worker = self._own_worker(state, environment)
            self._hand_over(state, worker, jobs, tasks)
        except OSError as error:
            outcome = Outcome(OutcomeStatus.NOT_RUN, error=f"no worker process could be started here: {error}")
            waiting = [(run_id, outcome) for run_id in state.pending]
            state.pending.clear()
            asyncio.get_running_loop().call_soon(self._report, state, waiting)

    def _own_worker(self, slot: Slot, environment: Environment | None = None) -> WorkerProcess:
        if environment is not None:
            return self._warm_worker(slot, environment)
        if slot.own is None or not slot.own.is_usable:
            slot.own = self._start_worker(slot)
        return slot.own

    def _warm_worker(self, slot: Slot, environment: Environment) -> WorkerProcess:
        """Return the worker process of a slot in an environment; of those for other ones only the last few stay."""
        worker = slot.warm.pop(environment.path, None)
        if worker is None or not worker.is_usable:
            worker = self._start_worker(slot, environment)
        slot.warm[environment.path] = worker
        while len(slot.warm) > ENVIRONMENT_WORKERS_MAX:
            slot.warm.pop(next(iter(slot.warm))).kill()
        return worker

    def _box_for(
        self,
        slot: Slot,
        submitter: bytes,
        job: KnownJob,
        tasks: Sequence[tuple[Any, ...]],
        environment: Environment | None,
    ) -> SandboxProcess | FencedProcess:
        """Return the sandbox of a job, or what stands for it, with room for the inputs of these tasks; never one that
        another job has had.

        Raises:
            OSError: it cannot be started.
        """
        if slot.box_timer is not None:
            slot.box_timer.cancel()
            slot.box_timer = None
        owner = (submitter, job.job_id)
        limits = sandbox.limits_of_slot(
            slot.index, len(self._slots), job.spec.cpus, process_mem_bytes(job.spec), job.spec.disk_bytes
        )
        limits = replace(limits, disk_bytes=limits.disk_bytes + input_bytes(job.definition, tasks))
        box = slot.box
        if box is not None and box.is_usable and box.owner == owner and box.limits.disk_bytes >= limits.disk_bytes:
            return box
        if box is not None:
            box.kill()
        if self.rules.is_fenced(job.spec.kind):
            slot.box = self._start_fenced(slot, owner, limits)
            return slot.box
        if not self._bubblewrap:
            try:
                self._bubblewrap = sandbox.find_bubblewrap()
            except sandbox.NoSandbox as error:
                raise OSError(str(error)) from error
        pasta = sandbox.find_pasta() if job.spec.network else ""
        slot.box = self._start_box(slot, owner, limits, environment, pasta)
        return slot.box

    def _hand_over(
        self, slot: Slot, worker: WorkerProcess, jobs: dict[int, tuple[Any, ...]], tasks: list[tuple[Any, ...]]
    ) -> None:
        slot.worker = worker
        known = worker.known_jobs
        new_jobs = [definition for number, definition in jobs.items() if number not in known]
        for number in jobs:
            known.pop(number, None)
        excess = len(known) + len(jobs) - RUNNER_JOBS_MAX
        forgotten = list(known)[: max(0, excess)]
        for number in forgotten:
            del known[number]
        known.update(dict.fromkeys(jobs))
        slot.head_since = slot.batch_since = self._clock.now()
        slot.done_count = 0
        if slot.batch_since >= worker.ooms_counted_at + _OOM_LOOK_S:
            worker.ooms_counted_at = slot.batch_since
            worker.ooms_before = oom_kills()
        start = size = 0
        for index, task in enumerate(tasks):
            size += len(task[4]) + len(task[8])
            if size > RUNNER_SEND_BYTES:
                worker.send(messages.pack_down((messages.BATCH, new_jobs, forgotten, tasks[start : index + 1])))
                new_jobs, forgotten = [], []
                start, size = index + 1, 0
        if start < len(tasks):
            worker.send(messages.pack_down((messages.BATCH, new_jobs, forgotten, tasks[start:])))
        self._watch(slot)

    def _start_worker(self, slot: Slot, environment: Environment | None = None) -> WorkerProcess:
        directory = self._next_directory()
        worker = WorkerProcess(
            directory,
            {"directory": str(directory), "shared_directory": str(self._shared), **settings_of(slot)},
            lambda bodies: self._heard(slot, worker, bodies),
            lambda returncode: self._gone(slot, worker, returncode),
            environment,
        )
        self._launch(worker)
        return worker

    def _start_box(
        self,
        slot: Slot,
        owner: tuple[bytes, bytes],
        limits: sandbox.BoxLimits,
        environment: Environment | None,
        pasta: str,
    ) -> SandboxProcess:
        user = sandbox.user_of_slot(self._directory, slot.index)
        place = {"directory": box_places.PLACE, "shared_directory": f"{box_places.PLACE}/shared"}
        box = SandboxProcess(
            self._next_directory(),
            {**place, **settings_of(slot), "box": sandbox.box_settings(limits, user)},
            lambda bodies: self._heard(slot, box, bodies),
            lambda returncode: self._gone(slot, box, returncode),
            bubblewrap=self._bubblewrap,
            hidden=self._hidden,
            user=user,
            node_name=self._node_name,
            owner=owner,
            limits=limits,
            environment=environment,
            pasta=pasta,
            cgroups=self.cgroups,
        )
        self._launch(box)
        return box

    def _start_fenced(self, slot: Slot, owner: tuple[bytes, bytes], limits: sandbox.BoxLimits) -> FencedProcess:
        directory = self._next_directory()
        user = sandbox.user_of_slot(self._directory, slot.index)
        place = {"directory": str(directory), "shared_directory": str(directory / "shared")}
        fenced = FencedProcess(
            directory,
            {**place, **settings_of(slot), "box": {**sandbox.box_settings(limits, user), "is_fence": True}},
            lambda bodies: self._heard(slot, fenced, bodies),
            lambda returncode: self._gone(slot, fenced, returncode),
            owner=owner,
            limits=limits,
        )
        self._launch(fenced)
        return fenced

    def _next_directory(self) -> Path:
        self._serial += 1
        return self._directory / f"worker-{self._serial}"

    def _launch(self, worker: WorkerProcess) -> None:
        try:
            worker.start()
        except OSError:
            with contextlib.suppress(OSError):
                remove_tree(str(worker.directory))
            raise
        self._alive[worker] = asyncio.get_running_loop().create_future()

    def _remove_forgotten(self) -> None:
        for name in self._translator.forgotten_names:
            with contextlib.suppress(OSError):
                (self._shared / name).unlink(missing_ok=True)
        self._translator.forgotten_names.clear()

    # --- hearing back ---------------------------------------------------------------------------------

    def _heard(self, slot: Slot, worker: WorkerProcess, bodies: list[bytes]) -> None:
        """Take what a worker process said.

        Raises:
            RemoteProtocolError: it said something that cannot be; what came before it is reported.
        """
        outcomes: list[tuple[int, Outcome]] = []
        try:
            for body in bodies:
                if body[0] == messages.HELLO and not worker.is_ready:
                    self._hello(slot, worker, body)
                    continue
                if body[0] == messages.RESULT:
                    result = parse_result(body)
                    if result.run_id in worker.recalled:
                        del worker.recalled[result.run_id]
                        continue
                if slot.worker is not worker:
                    raise RemoteProtocolError("words of a process that was replaced")
                match body[0]:
                    case messages.RESULT:
                        self._result(slot, worker, result, outcomes)
                    case messages.STARTED:
                        run_id, group = parse_started(body)
                        if run_id != next(iter(slot.pending), None):
                            raise RemoteProtocolError("a run that is not its turn has started")
                        if worker.is_dead or is_command_of(group, worker.pid):  # its children are nobody's then
                            worker.groups[group] = None
                    case messages.TAIL:
                        worker.peeked(*parse_tail(body))
                    case messages.SAVED:
                        self._saved(slot, worker, body)
                    case messages.OUTPUTS if isinstance(worker, SandboxProcess):
                        self._collect(worker, parse_outputs(body))
                    case _:
                        raise RemoteProtocolError("an unknown message")
        except RemoteProtocolError:
            worker.is_usable = False  # before the slot is given its next batch
            raise
        finally:
            if outcomes:
                slot.head_since = self._clock.now()
                slot.done_count += len(outcomes)
                self._coalesce(slot, worker)
                self._watch(slot)
                self._report(slot, outcomes)

    def _hello(self, slot: Slot, worker: WorkerProcess, body: bytes) -> None:
        worker.is_ready = True
        if isinstance(worker, SandboxProcess):
            worker.landlock = body[1] if len(body) == 2 else 0
        if slot.worker is worker:
            slot.head_since = self._clock.now()

    def _collect(self, box: SandboxProcess, numbers: list[int]) -> None:
        """Copy files that a sandbox offers; it waits until that is done.

        Raises:
            RemoteProtocolError: it does not wait, or offers no files.
        """
        descriptors = box.taken_descriptors(len(numbers))
        before = [take for take in self._takes.get(box, []) if not take.done()]

        async def copy() -> None:
            try:
                if before:
                    await asyncio.wait(before)  # what the task before has left makes room when it is taken over
            except asyncio.CancelledError:
                close_all(descriptors)
                raise
            error, is_ours = await asyncio.to_thread(box.copy_out, numbers, descriptors)
            box.send(messages.pack_down((messages.TAKEN, error, is_ours)))

        self._takes[box] = [*before, self._scope.spawn(copy(), "copy")]

    def _result(self, slot: Slot, worker: WorkerProcess, raw: RawResult, outcomes: list[tuple[int, Outcome]]) -> None:
        if raw.run_id != next(iter(slot.pending), None):
            raise RemoteProtocolError("a result that is not its turn")
        if slot.pending.pop(raw.run_id).is_data_only:
            keep_data(worker, raw)
        worker.groups.clear()
        if raw.status != OutcomeStatus.OK and raw.run_id in slot.killing:
            raw.status = OutcomeStatus.KILLED
        elif raw.status != OutcomeStatus.OK and raw.run_id == slot.timed_out:
            raw.status, raw.cause = OutcomeStatus.TIMEOUT, "wall"
        if slot.reaper is not None:
            self._end_grace(slot)
        if raw.has_files:
            take = self._scope.spawn(self._take(slot, worker, raw), "take")
            self._takes.setdefault(worker, []).append(take)
            slot.head_since = self._clock.now()
            self._watch(slot)
        else:
            outcomes.append((raw.run_id, outcome_of(raw)))

    def _saved(self, slot: Slot, worker: WorkerProcess, body: bytes) -> None:
        """Take what the running task has saved; one that saves all the time, or much, is read the more slowly.

        Raises:
            RemoteProtocolError: it is too large, or no task's that runs.
        """
        run_id, cookie = parse_saved(body)
        if run_id != next(iter(slot.pending), None):
            raise RemoteProtocolError("a checkpoint that is not its turn")
        pause_s = max(RUNNER_SAVED_PAUSE_S, len(cookie) / RUNNER_SAVED_BYTES_PER_S)
        worker.pause()
        self._clock.call_later(pause_s, worker.resume)
        self.on_saved(run_id, cookie)

    async def tail(self, run_id: int, offsets: tuple[int, int]) -> Tail | None:
        """Return what a running task has printed; see `host.runs.Runner`."""
        for slot in self._slots:
            head, worker = slot.head(), slot.worker
            if head is None or head.run_id != run_id or worker is None or not worker.is_ready:
                continue
            if head.is_ours_to_end:  # the worker process itself is busy with it
                return await asyncio.to_thread(_printed, worker.directory, offsets)
            return await worker.peek(run_id, offsets, TAIL_S)
        return None

    async def cpu_used_s(self) -> Mapping[int, float]:
        """Return what running tasks have used of the CPU; see `host.runs.Runner`."""
        running = {}
        for slot in self._slots:
            head, worker = slot.head(), slot.worker
            if head is not None and worker is not None and worker.is_ready and not head.is_elsewhere:
                running[worker.pid] = head.run_id
        used = await asyncio.to_thread(used_by_trees, list(running)) if running else {}
        return {running[pid]: cpu_s for pid, cpu_s in used.items()}

    def _coalesce(self, slot: Slot, worker: WorkerProcess) -> None:
        """Leave the results of tiny tasks in the socket for a moment, but not the last ones of a batch."""
        expected_s = len(slot.pending) * (slot.head_since - slot.batch_since) / slot.done_count
        pause_s = min(RUNNER_READ_PAUSE_S, expected_s * 0.7)
        if slot.pending and pause_s >= _PAUSE_S_MIN:
            worker.pause()
            self._clock.call_later(pause_s, worker.resume)

    def _report(self, slot: Slot, outcomes: list[tuple[int, Outcome]]) -> None:
        slot.open_count -= len(outcomes)
        if not slot.open_count and slot.box is not None and slot.box_timer is None:
            box = slot.box
            slot.box_timer = self._clock.call_later(SANDBOX_IDLE_S, lambda: self._end_box(slot, box))
        if slot.on_outcomes is not None:
            slot.on_outcomes(outcomes)

    def _end_box(self, slot: Slot, box: SandboxProcess | FencedProcess) -> None:
        """End a sandbox whose job has had nothing to do here for a while."""
        slot.box_timer = None
        if slot.box is box and not (slot.worker is box and slot.open_count):
            box.kill()

    async def _take(self, slot: Slot, worker: WorkerProcess, raw: RawResult) -> None:
        """Take a result's files into the blob store, then report it.  Cancelled: reported as not run."""
        outcome = Outcome(OutcomeStatus.NOT_RUN, error="the node stopped before the result was stored")
        try:
            outcome = await stored(self._blobs, worker, raw)
        finally:
            self._report(slot, [(raw.run_id, outcome)])

    # --- time limits and kills ------------------------------------------------------------------------

    def _watch(self, slot: Slot) -> None:
        """Keep one timer for the time limit of the running task."""
        head = slot.head()
        if head is None:
            if slot.watch is not None:
                slot.watch.cancel()
                slot.watch = None
        elif head.timeout_s is not None and slot.watch is None:
            self._check_time(slot)

    def _check_time(self, slot: Slot) -> None:
        slot.watch = None
        head = slot.head()
        if head is None or head.timeout_s is None or slot.worker is None or slot.timed_out is not None:
            return
        if slot.held_since is not None:
            return  # looked at again when it goes on
        now = self._clock.now()
        if not slot.worker.is_ready:
            slot.head_since = now
        limit_s = head.timeout_s if head.is_ours_to_end else head.timeout_s + KILL_GRACE_S + RUNNER_WATCH_SLACK_S
        left_s = slot.head_since + limit_s - now
        if left_s > 0:
            slot.watch = self._clock.call_later(left_s, lambda: self._check_time(slot))
            return
        slot.timed_out = head.run_id
        self._terminate(slot, slot.worker)

    def hold(self, slots: Collection[int]) -> None:
        """Let slots stand still, and all others go on; see `host.runs.Runner`."""
        for slot in self._slots:
            if slot.index in slots and slot.worker is not None and slot.open_count and not slot.killing:
                if slot.held_since is None:
                    slot.held_since = self._clock.now()
                if not stand_still(slot.worker.pid):  # again and again: it may have been woken from inside
                    self.kill(list(slot.pending))
                    slot.worker.kill()
            else:
                self._go_on(slot)

    def _go_on(self, slot: Slot) -> None:
        if slot.held_since is None:
            return
        held_s, slot.held_since = self._clock.now() - slot.held_since, None
        slot.head_since += held_s
        if slot.worker is not None:
            go_on(slot.worker.pid)
            self._watch(slot)

    def kill(self, run_ids: Sequence[int]) -> None:
        """Stop these runs; see `host.runs.Runner`."""
        for slot in self._slots:
            wanted = [run_id for run_id in run_ids if run_id in slot.pending and run_id not in slot.killing]
            if wanted and slot.preparing:
                for run_id in wanted:
                    del slot.pending[run_id]
                if not slot.pending:
                    slot.preparing = ()
                killed = Outcome(OutcomeStatus.KILLED, error="stopped before it started")
                self._report(slot, [(run_id, killed) for run_id in wanted])
                continue
            if not wanted or slot.worker is None:
                continue
            self._go_on(slot)
            slot.killing.update(dict.fromkeys(wanted))
            slot.worker.send(messages.pack_down((messages.KILL, wanted)))
            head = slot.head()
            if head is not None and head.run_id in slot.killing and slot.timed_out is None:
                if head.is_ours_to_end:
                    self._terminate(slot, slot.worker)
                elif slot.reaper is None:  # the worker process ends its command itself; this is for when it cannot
                    self._reap_after(slot, slot.worker, KILL_GRACE_S + RUNNER_WATCH_SLACK_S)

    def recall(self, run_ids: Sequence[int]) -> list[int]:
        """Take back runs that have not started; see `host.runs.Runner`.

        A worker process writes the result of a run to the socket before it looks for messages and begins the next one.
        So when the request is in its socket, and after that no result of the run before is in ours, it will see the
        request in time.
        """
        taken: list[int] = []
        for slot in self._slots:
            head, worker = slot.head(), slot.worker
            wanted = [run_id for run_id in run_ids if run_id in slot.pending and run_id not in slot.killing]
            if not wanted or worker is None or head is None or head.run_id in wanted:
                continue
            worker.send(messages.pack_down((messages.KILL, wanted)))
            if not worker.has_unsent:
                worker.read_now()
                if slot.head() is head:
                    for run_id in wanted:
                        del slot.pending[run_id]
                    worker.recalled.update(dict.fromkeys(wanted))
                    slot.open_count -= len(wanted)
                    taken += wanted
        return taken

    def _terminate(self, slot: Slot, worker: WorkerProcess) -> None:
        """SIGTERM to the worker process and what its function started; SIGKILL after the grace.  It is of no use
        afterwards: the rest of its batch is reported as not run."""
        worker.is_usable = False
        worker.is_condemned = True
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGCONT)
        self._reap_after(slot, worker, KILL_GRACE_S)

    def _reap_after(self, slot: Slot, worker: WorkerProcess, delay_s: float) -> None:
        if slot.reaper is not None:
            slot.reaper.cancel()
        slot.reaper = self._clock.call_later(delay_s, lambda: self._reap(worker))

    @staticmethod
    def _reap(worker: WorkerProcess) -> None:
        """Kill a worker process of which we want no more: a task that it begins in this moment has not died."""
        worker.is_condemned = True
        worker.kill()

    def _end_grace(self, slot: Slot) -> None:
        """The run that we were stopping has ended by itself."""
        if slot.reaper is not None:
            slot.reaper.cancel()
            slot.reaper = None
        if slot.worker is not None and not slot.worker.is_usable:
            slot.worker.kill()

    # --- death ----------------------------------------------------------------------------------------

    def _gone(self, slot: Slot, worker: WorkerProcess, returncode: int) -> None:
        """A worker process has died: report its batch and clean up."""
        self._scope.spawn(self._remove(worker, self._alive[worker]), "remove")
        if slot.own is worker:
            slot.own = None
        if worker.environment is not None and slot.warm.get(worker.environment.path) is worker:
            del slot.warm[worker.environment.path]
        if slot.box is worker:
            slot.box = None
        if slot.worker is not worker:
            return
        if slot.reaper is not None:
            slot.reaper.cancel()
            slot.reaper = None
        slot.held_since = None
        pending = list(slot.pending.values())
        outcomes: list[tuple[int, Outcome]] = []
        for position, run in enumerate(pending):
            if run.run_id in slot.killing:
                outcome = Outcome(OutcomeStatus.KILLED, error="stopped on request")
            elif run.run_id == slot.timed_out:
                limit = f"{run.timeout_s:g} s" if run.timeout_s is not None else "its time limit"
                outcome = Outcome(
                    OutcomeStatus.TIMEOUT, cause="wall", error=f"the task did not end within {limit} and was stopped"
                )
            elif not worker.is_ready:
                outcome = not_started(worker, returncode)
            elif position == 0 and not worker.is_condemned:
                outcome = died(
                    worker,
                    returncode,
                    is_function=run.is_function,
                    wall=self._clock.wall(),
                    runtime_s=self._clock.now() - slot.head_since,
                )
            else:
                outcome = Outcome(OutcomeStatus.NOT_RUN, error="the worker process ended before this task started")
            if position == 0 and run.is_ours_to_end and outcome.status in (OutcomeStatus.KILLED, OutcomeStatus.TIMEOUT):
                stdout, stderr = printed_in(worker)
                outcome = replace(outcome, stdout=stdout, stderr=stderr)
            outcomes.append((run.run_id, outcome))
        slot.worker = None
        slot.timed_out = None
        slot.pending.clear()
        slot.killing.clear()
        self._watch(slot)
        if outcomes:
            self._report(slot, outcomes)

    async def _remove(self, worker: WorkerProcess, gone: asyncio.Future[None]) -> None:
        """Remove the directory of a dead process, after its results were taken over."""
        for take in self._takes.pop(worker, []):
            with contextlib.suppress(asyncio.CancelledError):
                await take
        with contextlib.suppress(OSError):  # what cannot be removed now is tried again at the next start
            await asyncio.to_thread(remove_tree, str(worker.directory))
        del self._alive[worker]
        gone.set_result(None)

    async def close(self) -> None:
        """Kill everything and wait for the processes to be gone."""
        if self._environments is not None:
            await self._environments.close()
        waiting = list(self._alive.items())
        groups = [group for worker, _ in waiting for group in worker.groups]
        for slot in self._slots:
            slot.killing.update(dict.fromkeys(list(slot.pending)[:1]))
        for worker, _ in waiting:
            self._reap(worker)
        for _, gone in waiting:
            await asyncio.shield(gone)  # a stop that is cut short is followed by another one, which waits for the same
        deadline = self._clock.now() + _GROUP_GONE_S
        while any(group_exists(group) for group in groups) and self._clock.now() < deadline:
            await self._clock.sleep(_PAUSE_S_MIN)
        for slot in self._slots:
            if slot.box_timer is not None:
                slot.box_timer.cancel()
                slot.box_timer = None
        await self._scope.close()


def _printed(directory: Path, offsets: tuple[int, int]) -> Tail | None:
    """Return what the function has printed that runs in the worker process of a directory."""
    found = []
    for name, offset in zip(("stdout", "stderr"), offsets, strict=True):
        try:
            fd = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found.append(messages.tail_of(fd, offset))
        finally:
            os.close(fd)
    return found[0], found[1], read_progress(str(directory))
