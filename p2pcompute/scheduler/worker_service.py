"""The worker's side, performed: inputs, runs, heartbeats.  Results go to their owners by `result_sender`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pcompute.errors import (
    P2pcError,
    RemoteProtocolError,
)
from p2pcompute.host.interfaces import Address, BlobRef, Host, Timer
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    CLAIM_BYTES_MAX,
    HEARTBEAT_FRACTION,
    INLINE_BYTES_MAX,
    INPUTS_CACHE_SHARE,
    JOBS_KNOWN_MAX,
    LEASE_S_MIN,
    MIB,
    NO_OUTPUT,
    OUTBOX_DELAY_S,
    RECALL_S,
)
from p2pcompute.scheduler.books import Grant
from p2pcompute.scheduler.checkpoints import Saved, cookie_body
from p2pcompute.scheduler.crash_mark import CrashMark
from p2pcompute.scheduler.custody import EPOCH_JUMP_MAX, coordinator_of
from p2pcompute.scheduler.fairness import Standing
from p2pcompute.scheduler.health import Health
from p2pcompute.scheduler.input_room import InputRoom
from p2pcompute.scheduler.messages import (
    HELD_MAX,
    PRINTED_MAX,
    Message,
    Tail,
    encode_outcome,
    is_sendable,
    outcome_blobs,
    output_digest,
    parse_job_indices,
)
from p2pcompute.scheduler.owner import WITH_NODE
from p2pcompute.scheduler.owner_link import Finished, Move, OwnerLink
from p2pcompute.scheduler.printed import Tail as PrintedTail
from p2pcompute.scheduler.printed import Tails, tails_body
from p2pcompute.scheduler.quiet import Quiet, Silence
from p2pcompute.scheduler.result_sender import RECONNECT_S_MIN, RESULTS_TIMEOUT_S, ResultCounters, ResultSender
from p2pcompute.scheduler.saving import Cookie, Saver
from p2pcompute.scheduler.stealing import LOCAL, lease_s_min
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.scheduler.worker import Held, HeldState, WorkerCore
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import Channels

Inputs = Callable[[bytes, bytes], list[BlobRef]]
"""(spec, payload) → blobs that must be here before the task starts; raises RemoteProtocolError."""
Fetch = Callable[[Sequence[BlobRef], bytes, Sequence[Address]], Awaitable[None]]
"""Bring blobs here from the node with this key."""


RETURN_S = 5.0
"""Wait for an owner that is to take tasks back."""
REGISTER_TRIES = 4
"""How often a steal is told to its owner; then the lease of the victim runs out."""

HeldTasks = Mapping[bytes, Sequence[tuple[int, int, int]]]
"""Job → (index, generation, attempt)."""


@dataclass(slots=True)
class WorkerCounters(ResultCounters):
    """`late_runs_count`: outcomes of tasks that their owner had dropped."""

    runs_count: int = 0
    late_runs_count: int = 0
    fetch_failures_count: int = 0
    waited_for_room_count: int = 0
    """Tasks whose inputs had to wait until those of others were not needed any more."""


class WorkerService:
    """Runs what was granted and returns what came out."""

    __slots__ = (
        "_addresses_of", "_admitted", "_boot", "_channels", "_crash_mark", "_fetch", "_host", "_identity", "_inputs",
        "_intake_local", "_is_checked_local", "_is_looking", "_job_of_local", "_journal", "_pump_now", "_quiet",
        "_recall", "_scope", "_storing_count", "_told", "_wake", "core", "counters", "epochs", "health", "inputs",
        "is_off", "jobs", "links", "on_adopted", "on_ended", "on_printed", "save_local", "saver", "sender",
        "take_own",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        identity: Identity,
        channels: Channels,
        journal: Journal | None,
        scope: TaskScope,
        wake: Callable[[], None],
        *,
        pump_now: Callable[[], None],
        boot: bytes,
        inputs: Inputs,
        fetch: Fetch,
        intake_local: Callable[[bytes, int, int, int, Outcome], None],
        job_of_local: Callable[[bytes], JobEnvelope],
        is_checked_local: Callable[[bytes], bool],
        addresses_of: Callable[[bytes], Sequence[Address]],
        slots_of: Callable[[bytes], int] | None = None,
    ) -> None:
        self._host = host
        self._identity = identity
        self._channels = channels
        self._journal = journal
        self._scope = scope
        self._wake = wake
        self._pump_now = pump_now
        self._boot = boot
        self._inputs = inputs
        self._fetch = fetch
        self._intake_local = intake_local
        self._job_of_local = job_of_local
        self._is_checked_local = is_checked_local
        self._addresses_of = addresses_of
        self.saver = Saver(host, scope, self._tell_saved)
        self.save_local: Callable[[bytes, int, Saved], None] = lambda _job, _index, _saved: None
        """Takes what tasks of our own jobs have saved."""
        host.runner.on_saved = self._on_saved
        self._storing_count = 0
        """Attempts that have ended and whose last cookie is being stored."""
        self.core = WorkerCore(
            host.runner.slot_count,
            slots_of,
            self._is_foreign,
            lambda job_id: Standing.of(self.jobs.get(job_id) or job_of_local(job_id)),
            identity.installation,
        )
        self.is_off = False
        """The machine's owner wants that nothing runs here."""
        self.jobs: dict[bytes, JobEnvelope] = {}
        """Jobs of others that tasks are held of."""
        self.epochs: dict[bytes, int] = {}
        """Job → the highest epoch that was heard of, where it is not 0."""
        self.on_adopted: Callable[[bytes, Sequence[Held]], None] = lambda _job, _held: None
        """Called with what is held here of a job that this node coordinates now."""
        self.on_ended: Callable[[bytes], None] = lambda _owner: None
        """Called with the owner of each task that has ended here, unless it is this node."""
        self.take_own: Callable[[bytes, Sequence[tuple[Sequence[Any], bytes]]], None] = lambda _job, _results: None
        """Takes (claim, outcome) of a job that this node coordinates now for its owner."""
        self.links: dict[bytes, OwnerLink] = {}
        self.counters = WorkerCounters()
        self.sender = ResultSender(
            host,
            identity,
            channels,
            journal,
            scope,
            self.core,
            self.links,
            self.counters,
            boot=boot,
            addresses_of=addresses_of,
            link_of=self.link,
            sort_out=self._sort_out,
            seek_coordinators=self._seek_coordinators,
        )
        self.health = Health(identity.installation)
        self._recall: Timer | None = None
        self._quiet = Quiet()
        self.on_printed: Callable[[bytes, int, int, Tails], None] = lambda *_printed: None
        """Called with job, task, attempt and what a task of this node's own jobs has printed since the last call."""
        self._is_looking = False
        self._told: dict[int, tuple[int, int]] = {}
        """Run id → how much of stdout and stderr its owner was told."""
        self._crash_mark = CrashMark(host, journal, scope)
        self.inputs = InputRoom(lambda: int(host.store.blobs.bytes_max * INPUTS_CACHE_SHARE))
        """Inputs that must stay until their tasks have ended: each is pinned for each of them."""
        self._admitted: dict[int, asyncio.Event] = {}
        """Run ids that wait for room for their inputs; set when they have it, or are not held any more."""

    # --- taking -----------------------------------------------------------------------------------

    def take_local(self, grant: Grant) -> None:
        """Hold tasks of this node's own job; their inputs are here."""
        self._drop_outdated(grant, LOCAL)
        self.core.take(grant, LOCAL, is_staged=True)

    def _drop_outdated(self, grant: Grant, owner: bytes) -> None:
        """End former runs of tasks that were started again."""
        outdated = self.core.outdated(grant)
        if outdated:
            self.stop(owner, grant.job_id, outdated, kill=True)

    def take(self, grant: Grant, job: JobEnvelope, addresses: Sequence[Address], *, moved_from: bytes = b"") -> None:
        """Hold tasks of another owner's job and bring their inputs here.

        Args:
            moved_from: the worker that gave them, to be told to the owner; b"" when it was the owner itself.
        """
        self._drop_outdated(grant, grant.owner)
        self.jobs[grant.job_id] = job
        link = self.link(grant.owner, addresses)
        link.pace_s = grant.pace_s
        link.heartbeat_due = min(
            link.heartbeat_due or float("inf"), self._host.clock.now() + grant.lease_s * HEARTBEAT_FRACTION
        )
        taken = self.core.take(grant, grant.owner, is_staged=False, is_moving=bool(moved_from))
        if moved_from and taken:
            self._register(link, Move(moved_from, grant.job_id, [held.task for held in taken]))
        ready: list[int] = []
        waiting: list[tuple[Held, list[BlobRef], bool]] = []
        for held in taken:
            try:
                refs = self._needed(job, held)
            except RemoteProtocolError as error:
                self.core.staged([held.run_id])
                self._refuse(held, f"the task description is malformed: {error}")
                continue
            size, room = sum(ref.size for ref in refs), self._host.store.blobs.bytes_max
            if size > room:
                self.core.staged([held.run_id])
                self._refuse(
                    held, f"its inputs have {size / MIB:.4g} MiB, and store.cache there is {room / MIB:.4g} MiB"
                )
            elif refs:
                has_room = self.inputs.ask(held.run_id, refs)
                if has_room:
                    self._host.store.blobs.pin(refs)
                else:
                    self._admitted[held.run_id] = asyncio.Event()
                    self.counters.waited_for_room_count += 1
                waiting.append((held, refs, has_room))
            else:
                ready.append(held.run_id)
        self.core.staged(ready)
        if waiting:
            self._scope.spawn(self._stage(waiting, link), "stage")

    def _needed(self, job: JobEnvelope, held: Held) -> list[BlobRef]:
        """Return the blobs that must be here before a task starts.

        Raises:
            RemoteProtocolError: its description is malformed.
        """
        saved = held.task.cookie_blob
        return [*self._inputs(job.spec, held.task.payload), *([saved] if saved is not None else ())]

    def _refuse(self, held: Held, why: str) -> None:
        """Return a task without running it."""
        self.core.drop(held.job_id, [held.task.index], owner=held.owner, kill=False)
        self._finish(held, Outcome(OutcomeStatus.REFUSED, error=why))

    # --- who coordinates --------------------------------------------------------------------------

    def redirect(self, job: JobEnvelope, epoch: int) -> None:
        """Report a job to the node that this epoch names, unless a higher one is known."""
        job_id = job.job_id
        known = self.epochs.get(job_id, 0)
        if not known <= epoch <= known + EPOCH_JUMP_MAX:
            return
        self.epochs[job_id] = epoch
        if len(self.epochs) > JOBS_KNOWN_MAX:
            del self.epochs[next(iter(self.epochs))]
        key = coordinator_of(job, epoch)
        to = LOCAL if key == self._identity.public_key else key
        moved = self.core.redirect(job_id, to)
        if moved:
            self.jobs[job_id] = job
            self.saver.tell_all()
        for link in list(self.links.values()):
            link.moves = [move for move in link.moves if move.job_id != job_id]
            if link.key != to and any(done.job_id == job_id for done in link.results):
                self.jobs[job_id] = job
                link.nudge.set()
                if not link.is_sending:
                    self._sort_out(link)
        if to == LOCAL:
            self.on_adopted(job_id, moved)
        elif moved:
            link = self.link(to)
            link.heartbeat_due = self._host.clock.now()
            self.tick(self._host.clock.now())

    def _sort_out(self, link: OwnerLink) -> None:
        """Move results whose job has another coordinator now than the one that they wait for."""
        for job_id in dict.fromkeys(done.job_id for done in link.results):
            job, epoch = self.jobs.get(job_id), self.epochs.get(job_id, 0)
            if job is None or not epoch or (to := coordinator_of(job, epoch)) == link.key:
                continue
            results = [done for done in link.results if done.job_id == job_id]
            link.results = deque(done for done in link.results if done.job_id != job_id)
            self.sender.delete(link, results)
            for done in results:
                done.is_on_disk = False
            if to == self._identity.public_key:
                self.take_own(job_id, [(done.claim, done.outcome) for done in results])
                self.sender.let_go(results)
            else:
                self.link(to).results.extend(results)
        self.sender.resume()

    def _seek_coordinators(self, link: OwnerLink) -> None:
        """Open channels to the other coordinators of what waits for a node that is away: who acts says so."""
        jobs = dict.fromkeys([done.job_id for done in link.results] + [*self.core.held_of(link.key)])
        for job_id in jobs:
            job = self.jobs.get(job_id)
            for key in job.coordinators if job is not None else ():
                if key not in (link.key, self._identity.public_key) and self._channels.get(key) is None:
                    addresses = self._addresses_of(key)
                    if addresses:
                        self._channels.dial(key, addresses)

    def put_back(self, held: Held) -> None:
        """Hold a task again that was given to a thief, which did not take it."""
        if held.job_id not in self.jobs:
            return  # forgotten meanwhile: its lease runs out
        if epoch := self.epochs.get(held.job_id, 0):
            key = coordinator_of(self.jobs[held.job_id], epoch)
            held.owner = LOCAL if key == self._identity.public_key else key
        self.core.put_back(held)
        if held.run_id in self.core.held and held.run_id not in self.inputs.run_ids():
            refs = self._needed(self.jobs[held.job_id], held)
            if refs:
                self._host.store.blobs.pin(refs)
                self.inputs.take(held.run_id, refs)

    def _unpin_gone(self) -> None:
        """Let go of the inputs of tasks that are no longer held."""
        for run_id in self.inputs.run_ids():
            if run_id not in self.core.held:
                self._unpin(run_id)

    def _unpin(self, run_id: int) -> None:
        """A task needs its inputs no longer: others may have theirs."""
        self._host.store.blobs.unpin(self.inputs.leave(run_id))
        if (event := self._admitted.pop(run_id, None)) is not None:
            event.set()
        for admitted in self.inputs.admit():
            if (event := self._admitted.pop(admitted, None)) is not None:
                self._host.store.blobs.pin(self.inputs.refs(admitted))
                event.set()

    async def _stage(self, waiting: list[tuple[Held, list[BlobRef], bool]], link: OwnerLink) -> None:
        """Fetch inputs, task after task, as there is room; a task starts as soon as its own are here."""
        here: dict[BlobRef, None] = {}
        """Found once: every task that had room at once has pinned its own."""
        for held, refs, had_room in waiting:
            if not had_room:
                here.clear()
            if (event := self._admitted.get(held.run_id)) is not None:
                await event.wait()
            if held.run_id not in self.core.held:
                self._unpin(held.run_id)
                continue
            try:
                missing = [ref for ref in refs if ref not in here and not await self._host.store.blobs.has(ref)]
                if missing:
                    await self._fetch(missing, link.key, link.addresses)
                here.update(dict.fromkeys(refs))
            except (P2pcError, TimeoutError) as error:
                self.counters.fetch_failures_count += 1
                if held.run_id in self.core.held:
                    self.core.drop(held.job_id, [held.task.index], owner=held.owner, kill=False)
                    why = f"its inputs could not be fetched: {error}"
                    self._finish(held, Outcome(OutcomeStatus.NOT_RUN, error=why))
                continue
            self.core.staged([held.run_id])
            self._wake()

    def link(self, owner: bytes, addresses: Sequence[Address] = ()) -> OwnerLink:
        link = self.links.get(owner)
        if link is None:
            link = self.links[owner] = OwnerLink(owner)
        if addresses:
            link.addresses = list(addresses)
        return link

    # --- running ----------------------------------------------------------------------------------

    def start_batches(self) -> None:
        """Hand queued tasks to free slots."""
        for batch in self.core.next_batches(self._host.clock.now()):
            owner = batch.held[0].owner
            job = self._job_of_local(batch.job_id) if owner == LOCAL else self.jobs[batch.job_id]
            submitter = b"" if job.submitter == self._identity.installation else job.submitter
            is_compared = owner != LOCAL or self._is_checked_local(batch.job_id)
            runs = [
                TaskRun(
                    held.run_id,
                    held.job_id,
                    job.spec,
                    held.task.index,
                    held.task.payload,
                    held.task.attempt,
                    submitter,
                    held.task.cookie,
                    held.task.cookie_blob,
                    is_compared,
                )
                for held in batch.held
            ]
            self.counters.runs_count += len(runs)
            self._host.runner.run(batch.slot, runs, self._on_outcomes)
        if self._recall is None and self.core.has_batches:
            self._recall = self._host.clock.call_later(RECALL_S, self._recall_waiting)

    def _recall_waiting(self) -> None:
        """Take tasks back that wait behind one that takes long: they may go to other slots and nodes."""
        self._recall = None
        waiting = self.core.waiting_long(self._host.clock.now())
        self.core.recalled(self._host.runner.recall(waiting) if waiting else [])
        self._pump_now()

    def close(self) -> None:
        if self._recall is not None:
            self._recall.cancel()
            self._recall = None

    def _on_outcomes(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        submitter = self._identity.installation
        for run_id, outcome in outcomes:
            ran = outcome.status in (OutcomeStatus.OK, OutcomeStatus.FAILED)
            held = self.core.ended(run_id, outcome.runtime_s if ran else None, outcome.runtime_s)
            if held is None:
                self._host.store.blobs.unpin(outcome_blobs(outcome))
                continue
            submitter = self._submitter_of(held.job_id)
            if held.owner != LOCAL:
                self.on_ended(held.owner)
            if held.is_dropped:
                self.counters.late_runs_count += 1
                if outcome.status is not OutcomeStatus.OK:
                    self._host.store.blobs.unpin(outcome_blobs(outcome))
                    continue
            self._finish_with_saved(held, outcome)
        self._note_health([outcome for _run_id, outcome in outcomes], submitter)
        self._pump_now()

    async def tail(
        self, owner: bytes, job_id: bytes, index: int, attempt: int, offsets: tuple[int, int]
    ) -> tuple[Tail, Silence | None] | None:
        """Return what a running task of this owner has printed, and how silent it is; None: it does not run here."""
        held = self.core.running(job_id, index, owner)
        if held is None or held.task.attempt != attempt:
            return None
        return await self._look(held, offsets)

    async def _look(self, held: Held, offsets: tuple[int, int]) -> tuple[Tail, Silence] | None:
        found = await self._host.runner.tail(held.run_id, offsets)
        if found is None or held.run_id not in self.core.held:
            return None
        (start, stdout), (stderr_start, stderr), said = found
        ends = start + len(stdout), stderr_start + len(stderr), said
        now = self._host.clock.now()
        quiet_s = self._quiet.look(now, held.run_id, ends, self.core.began(held))
        return found, Silence(quiet_s, self._quiet.idle_s(now, held.run_id))

    async def _look_at_all(self) -> None:
        """See which running tasks say nothing: one after the other, however long those take that do not answer."""
        self._is_looking = True
        try:
            self._quiet.keep(self.core.held)
            self._told = {run_id: told for run_id, told in self._told.items() if run_id in self.core.held}
            for run_id, cpu_s in (await self._host.runner.cpu_used_s()).items():
                self._quiet.note_used(self._host.clock.now(), run_id, cpu_s)
            for held in [held for held in self.core.held.values() if held.state is HeldState.RUNNING]:
                if held.owner == LOCAL:
                    await self._keep_printed(held)
                else:  # its owner is told with the heartbeats
                    await self._look(held, (NO_OUTPUT, NO_OUTPUT))
        finally:
            self._is_looking = False

    async def _keep_printed(self, held: Held) -> None:
        """Let this node keep what a task of its own has printed since the last look: it may be all that is left."""
        offsets = self._told.get(held.run_id, (0, 0))
        found = await self._look(held, offsets)
        if found is None or held.is_dropped:
            return
        stdout, stderr = (PrintedTail(*tail).cut() for tail in found[0][:2])
        if (stdout.end, stderr.end) != offsets:
            self._told[held.run_id] = (stdout.end, stderr.end)
            self.on_printed(held.job_id, held.task.index, held.task.attempt, (stdout, stderr))

    # --- checkpoints ------------------------------------------------------------------------------

    def _on_saved(self, run_id: int, cookie: bytes) -> None:
        held = self.core.held.get(run_id)
        if held is not None and not held.is_dropped:
            self.saver.saved(held, cookie)

    async def _tell_saved(self, owner: bytes, cookies: list[Cookie]) -> None:
        """Bring what tasks have saved to their coordinator."""
        tasks = [(one.held.job_id, one.held.task, one) for one in cookies]
        if owner == LOCAL:
            for job_id, task, one in tasks:
                saved = Saved(cookie=one.data, blob=one.blob, generation=task.generation, attempt=task.attempt)
                self.save_local(job_id, task.index, saved)
            return
        channel = await self.sender.reach(self.link(owner))
        body = [
            [job_id, task.index, task.generation, task.attempt, cookie_body(one.data, one.blob)]
            for job_id, task, one in tasks
        ]
        await channel.request(Message.CHECKPOINT, body, timeout_s=RESULTS_TIMEOUT_S)

    async def _finish_stored(self, held: Held, outcome: Outcome, data: bytes) -> None:
        """Finish an attempt whose last cookie is large."""
        self._storing_count += 1
        try:
            ref = await self.saver.stored(data)
        finally:
            self._storing_count -= 1
        self._finish(held, outcome if ref is None else replace(outcome, value_blob=(ref.digest, ref.size)))

    def _finish_with_saved(self, held: Held, outcome: Outcome) -> None:
        """Finish an attempt; what it saved at last goes with its end when the task is to go on elsewhere."""
        last = self.saver.ended(held.run_id)
        if last is None:
            self._finish(held, outcome)
        elif outcome.status not in (OutcomeStatus.KILLED, OutcomeStatus.DIED):
            self._host.store.blobs.unpin([last.blob] if last.blob is not None else [])
            self._finish(held, outcome)
        elif last.blob is not None:
            self._finish(held, replace(outcome, value_blob=(last.blob.digest, last.blob.size)))
        elif len(last.data) > INLINE_BYTES_MAX:
            self._scope.spawn(self._finish_stored(held, outcome, last.data), "checkpoint")
        else:
            self._finish(held, replace(outcome, value=last.data))

    def _note_health(self, outcomes: Sequence[Outcome], submitter: bytes) -> None:
        """Rest when nothing can be started here."""
        if rest_s := self.health.note(self._host.clock.now(), outcomes, submitter):
            self._host.clock.call_later(rest_s, self._wake)

    def rest(self, now: float, *, is_store_full: bool) -> dict[tuple[bytes, bytes], list[int]]:
        """Begin or end a rest; returns what has not started, by (owner, job), at its beginning."""
        was_resting = self.core.is_resting
        self.core.is_resting = is_store_full or self.is_off or self.health.is_resting(now)
        if self.core.is_resting:
            return {} if was_resting else self.core.surrender()
        return self.core.surrender(only_foreign=True) if self.core.foreign_slots == 0 or self.is_full else {}

    def _submitter_of(self, job_id: bytes) -> bytes:
        """Return the installation that has submitted a job, wherever it is coordinated; of one forgotten, this one."""
        job = self.jobs.get(job_id)
        if job is None:
            try:
                job = self._job_of_local(job_id)
            except KeyError:
                return self._identity.installation
        return job.submitter

    def _is_foreign(self, job_id: bytes) -> bool:
        return self._submitter_of(job_id) != self._identity.installation

    def _finish(self, held: Held, outcome: Outcome) -> None:
        task = held.task
        self._unpin(held.run_id)
        if held.owner == LOCAL:
            self._intake_local(held.job_id, task.index, task.generation, task.attempt, outcome)
            self._wake()
            if outcome.value_blob or outcome.stdout_blob or outcome.stderr_blob or outcome.files:
                # After the pump, which applies the effects: who keeps the blobs for longer has pinned them then.
                asyncio.get_running_loop().call_soon(self._host.store.blobs.unpin, outcome_blobs(outcome))
            return
        if held.job_id not in self.jobs:  # it was disowned while this ran
            self._host.store.blobs.unpin(outcome_blobs(outcome))
            return
        if not is_sendable(outcome):
            self._host.store.blobs.unpin(outcome_blobs(outcome))
            outcome = Outcome(OutcomeStatus.FAILED, error="a result that cannot be sent: a bug of its node")
        outcome = self.sender.with_room(outcome)
        body = encode_outcome(outcome)
        if len(body) > CLAIM_BYTES_MAX:
            self._host.store.blobs.unpin(outcome_blobs(outcome))
            outcome = Outcome(
                OutcomeStatus.FAILED,
                error=f"the result's description has {len(body)} bytes (limit {CLAIM_BYTES_MAX}): too many output "
                "files; bring them back as one archive",
            )
            body = encode_outcome(outcome)
        claim = [task.index, task.generation, task.attempt, str(outcome.status), output_digest(outcome)]
        link = self.link(held.owner)
        blobs = outcome_blobs(outcome)  # pinned since they were put
        self.sender.add(link, Finished(held.job_id, claim, body, self._host.clock.now(), blobs))
        if link.pace_s and not self.core.holds_of(held.owner):
            link.nudge.set()
        self.sender.send(link)

    @property
    def has_work(self) -> bool:
        """Whether a task is held here, or something of one has not reached its owner."""
        return bool(self.core.held) or self._storing_count > 0 or any(link.results for link in self.links.values())

    def is_awaited(self, key: bytes) -> bool:
        """Whether this node does something for an owner, or has results for it."""
        link = self.links.get(key)
        return link is not None and bool(link.heartbeat_due or link.results)

    @property
    def is_full(self) -> bool:
        """True while so many results wait for absent owners that no new work should be taken."""
        return self.sender.is_full

    async def keep_all(self) -> None:
        """Write all results to disk that their owners have not taken, and that this node ends on purpose."""
        if self._crash_mark.is_set:
            await self._crash_mark.clear()
        await self.sender.keep_all()

    async def recover(self) -> int:
        """Take up results of an earlier life that their owners do not have; returns how many."""
        if self._journal is None:
            return 0
        count = await self.sender.recover()
        await self._tell_crash()
        self.sender.resume()
        return count

    def forget_old(self) -> None:
        """Forget jobs and owners that nothing is held for, when there are many."""
        if len(self.jobs) > JOBS_KNOWN_MAX:
            held = {one.job_id for one in self.core.held.values()}
            held |= {done.job_id for link in self.links.values() for done in link.results}
            for job_id in [job_id for job_id in self.jobs if job_id not in held]:
                del self.jobs[job_id]
                self.core.forget_job(job_id)
        if len(self.links) > JOBS_KNOWN_MAX:
            owners = {one.owner for one in self.core.held.values()}
            for key, link in list(self.links.items()):
                if key not in owners and not link.results and not link.is_sending and not link.is_beating:
                    del self.links[key]

    # --- deaths of the whole node -----------------------------------------------------------------

    def _mark(self) -> None:
        """Note on disk which tasks run."""
        running = [held for held in self.core.held.values() if held.state is HeldState.RUNNING]
        self._crash_mark.note(
            {
                held.run_id: [b"" if held.owner == LOCAL else held.owner, held.job_id, *_task_of(held)]
                for held in running
            }
        )

    async def _tell_crash(self) -> None:
        """Tell owners which tasks ran when this process died."""
        entries = await self._crash_mark.left()
        if entries is None:
            return
        outcome = Outcome(OutcomeStatus.DIED, cause=WITH_NODE, error="its node's own process ended while it ran")
        digest, raw = output_digest(outcome), encode_outcome(outcome)
        for owner, job_id, index, generation, attempt in entries:
            if not owner:
                self._intake_local(job_id, index, generation, attempt, outcome)
                continue
            claim = [index, generation, attempt, str(outcome.status), digest]
            self.sender.add(self.link(owner), Finished(job_id, claim, raw, self._host.clock.now()))
        await self._crash_mark.clear()

    # --- heartbeats -------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether there is anything that `tick` could be needed for."""
        return bool(
            self.core.held
            or self._crash_mark.is_set
            or self.sender.deletes
            or self.inputs.is_used
            or any(link.heartbeat_due or link.has_unkept for link in self.links.values())
        )

    def tick(self, now: float) -> None:
        """Send the heartbeats that are due."""
        self._unpin_gone()
        self._mark()
        if self.core.busy_slots and not self._is_looking and self._quiet.is_due(now):
            self._scope.spawn(self._look_at_all(), "quiet")
        if self.sender.deletes:
            self._scope.spawn(self.sender.forget(), "forget")
        for link in self.links.values():
            if link.has_unkept and self._journal is not None:
                self._scope.spawn(self.sender.keep(link, OUTBOX_DELAY_S), "keep")
            if link.heartbeat_due and link.heartbeat_due <= now and not link.is_beating:
                if self.core.holds_of(link.key):
                    link.is_beating = True
                    self._scope.spawn(self._beat(link), "heartbeat")
                else:
                    link.heartbeat_due = 0.0

    def heard_of(self, owner: bytes) -> None:
        """A channel to this owner has opened: tell what is held, send what waits."""
        link = self.links.get(owner)
        if link is None:
            return
        link.nudge.set()
        self.saver.coordinator_heard_of(owner)
        if link.heartbeat_due:
            link.heartbeat_due = self._host.clock.now()
            self.tick(self._host.clock.now())

    async def _beat(self, link: OwnerLink) -> None:
        interval_s = lease_s_min(link.pace_s) * HEARTBEAT_FRACTION
        try:
            await self._tell_held(link, self.core.held_of(link.key), b"")
            if not link.is_telling_printed:
                link.is_telling_printed = True
                self._scope.spawn(self._tell_printed(link), "printed")
        except (P2pcError, TimeoutError):
            interval_s = interval_s / 4  # the owner may be restarting: knock again soon
            self._seek_coordinators(link)
        finally:
            link.is_beating = False
            link.heartbeat_due = self._host.clock.now() + interval_s

    async def _tell_printed(self, link: OwnerLink) -> None:
        """Tell the owner what running tasks have printed since it was told last: it may be all that is left of them."""
        self._told = {run_id: told for run_id, told in self._told.items() if run_id in self.core.held}
        entries: list[list[Any]] = []
        try:
            for held in [held for held in self.core.held.values() if held.owner == link.key]:
                offsets = self._told.get(held.run_id, (0, 0))
                found = None
                if held.state is HeldState.RUNNING and not held.is_dropped:
                    found = await self._host.runner.tail(held.run_id, offsets)
                if found is None:
                    continue
                stdout, stderr = (PrintedTail(*tail).cut() for tail in found[:2])
                if (stdout.end, stderr.end) != offsets:
                    self._told[held.run_id] = (stdout.end, stderr.end)
                    task = held.task
                    entries.append([held.job_id, task.index, task.attempt, *tails_body((stdout, stderr))])
            channel = self._channels.get(link.key)
            while entries and channel is not None:
                channel.send(Message.PRINTED, entries[:PRINTED_MAX])
                del entries[:PRINTED_MAX]
        finally:
            link.is_telling_printed = False

    async def _tell_held(self, link: OwnerLink, held: HeldTasks, moved_from: bytes) -> None:
        """Tell the owner what this node holds, and drop what the owner gave to somebody else."""
        for portion in _portions(held, HELD_MAX):
            channel = await self.sender.reach(link)
            answer = await channel.request(
                Message.HEARTBEAT, [self._boot, moved_from, portion], timeout_s=LEASE_S_MIN * HEARTBEAT_FRACTION
            )
            for job_id, indices in parse_job_indices(answer):
                self.core.drop(job_id, indices, owner=link.key, kill=False)

    def _register(self, link: OwnerLink, move: Move) -> None:
        """Tell the owner that these tasks came here from another worker."""
        link.moves.append(move)
        if not link.is_registering:
            link.is_registering = True
            self._scope.spawn(self._register_all(link), "register")

    async def _register_all(self, link: OwnerLink) -> None:
        """Tell the owner about moves, one by one; one that does not get through is left to the lease."""
        tries = 0
        try:
            while link.moves:
                move = link.moves[0]
                entries = [(task.index, task.generation, task.attempt) for task in move.tasks]
                try:
                    await self._tell_held(link, {move.job_id: entries}, move.moved_from)
                except (P2pcError, TimeoutError):
                    tries += 1
                    if tries < REGISTER_TRIES:
                        await self._host.clock.sleep(RECONNECT_S_MIN * 2**tries)
                        continue
                tries = 0
                if not any(one is move for one in link.moves):
                    continue  # another node coordinates that job by now
                link.moves.remove(move)
                self.core.moved(move.job_id, [task.index for task in move.tasks])
                link.nudge.set()  # results may wait for it
                self._wake()
        finally:
            link.is_registering = False

    def stop(self, owner: bytes, job_id: bytes, indices: Sequence[int], *, kill: bool) -> list[int]:
        """The owner does not want these tasks; returns those that had not started."""
        returned, kills = self.core.drop(job_id, indices, owner=owner, kill=kill)
        self._unpin_gone()
        if kills:
            self._host.runner.kill(kills)
        return returned

    def disown(self, job_id: bytes) -> None:
        """End all that is held of a job of another node, without a word to it, and forget what came out of it."""
        self.jobs.pop(job_id, None)
        for link in list(self.links.values()):
            indices = [index for index, _generation, _attempt in self.core.held_of(link.key).get(job_id, ())]
            self.stop(link.key, job_id, indices, kill=True)
            link.moves = [move for move in link.moves if move.job_id != job_id]
            self.sender.forget_results(link, job_id)

    async def hand_back(self, returned: dict[tuple[bytes, bytes], list[int]]) -> None:
        """Return unstarted tasks to their owners (not LOCAL); an owner that is away will let their leases expire."""
        for (owner, job_id), indices in returned.items():
            try:
                link = self.link(owner)
                async with self._host.clock.timeout(RETURN_S):
                    while link.is_registering:  # it takes nothing back from who does not have the lease
                        await self._host.clock.sleep(RECONNECT_S_MIN / 10)
                channel = await self.sender.reach(link)
                for start in range(0, len(indices), HELD_MAX):
                    part = indices[start : start + HELD_MAX]
                    await channel.request(Message.RETURNED, [[job_id, part]], timeout_s=RETURN_S)
            except (P2pcError, TimeoutError):
                continue


def _task_of(held: Held) -> tuple[int, int, int]:
    return held.task.index, held.task.generation, held.task.attempt


def _portions(held: HeldTasks, most: int) -> Iterator[list[Any]]:
    """Cut what is held into lists ``[[job, [[index, generation, attempt], …]], …]`` of up to `most` tasks in all."""
    portion: list[Any] = []
    count = 0
    for job_id, entries in held.items():
        for start in range(0, len(entries), most):
            part = [list(entry) for entry in entries[start : start + most]]
            if count + len(part) > most:
                yield portion
                portion, count = [], 0
            portion.append([job_id, part])
            count += len(part)
    if portion:
        yield portion
