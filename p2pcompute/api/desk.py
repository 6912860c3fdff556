"""Between the user's threads and the node: calls go in, results come out.

The user's threads put items into a deque and wake the event loop once, however many items there are.  In the loop the
items become tasks, of one job per distinct function; results come as task ends of those jobs.

Thread rules: what is below "any thread" is called by any thread, everything else by the loop's.
Invariant: every future that was put is resolved, at the latest by `fail`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import itertools
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from p2pcompute.api.dataflow import CALL_MARK_WITHIN_BYTES, Dataflow, is_call
from p2pcompute.api.explanations import OVER, Explanation, explanation_of
from p2pcompute.api.failures import failure, forked, lost
from p2pcompute.api.functions import Shipment
from p2pcompute.api.futures import Bound, MeshFuture, OpenJob, Unread, Waiting, set_cancelled, set_exception
from p2pcompute.api.pickling import load_value
from p2pcompute.api.result_content import Content, place_file
from p2pcompute.api.result_folder import Note, ResultFolder
from p2pcompute.api.submitting import Submitter, explain_job
from p2pcompute.errors import P2pcError, ResultDisputed, ResultRevoked, UsageError
from p2pcompute.execution.calls import PackedCall
from p2pcompute.execution.spec import decode_payload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.host.tasks import TaskScope
from p2pcompute.node.node import Node
from p2pcompute.scheduler.acceptance import DISPUTED
from p2pcompute.scheduler.books import TaskEnd
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.stealing import LOCAL

DRAIN_MAX: Final = 512
"""Items taken from the deque before results get their turn."""
JOBS_OPEN_MAX: Final = 1024
"""Jobs kept open for further calls of their functions; beyond it those without open tasks are closed."""
VALUE_KEPT_BYTES_MAX: Final = 1024
"""A pickled value up to this stays with the outcome that a future keeps; copying the outcome costs more."""

_serials: Final = itertools.count()
_ENDED_BADLY: Final = (OutcomeStatus.TIMEOUT, OutcomeStatus.DIED)
_SEAL: Final = b"seal"
_CANCEL: Final = b"cancel"
_KILL: Final = b"kill"

Item = tuple[MeshFuture[Any] | None, "Shipment | OpenJob", bytes | Bound]
"""(future, where it goes, payload); without a future the payload is one of the orders above."""

Ask = Callable[[Callable[[Node], Coroutine[Any, Any, Any]]], Any]
"""Asks the node a question, from any thread but the loop's."""


class Desk:
    """One per embedded node."""

    def __init__(self, ask: Ask) -> None:
        """Args:
        ask: asks the node something from another thread, and waits for the answer.
        """
        self.ask = ask
        self.condition = threading.Condition()
        """The lock of all its futures."""
        self._pid = os.getpid()
        self._inbox: deque[Item] = deque()
        self._withdrawn: deque[MeshFuture[Any]] = deque()
        self._is_woken = True
        """True while a look at the deques is due; before `open` it is."""
        self._error: BaseException | None = None
        self._is_ended = False
        self._jobs: dict[bytes, OpenJob] = {}
        self._open_count = 0
        """Futures that came out of the deque and are not resolved."""
        self._names: dict[bytes, str] = {}
        self.results: ResultFolder | None = None
        """Where calls are written as they end."""
        self._loop: asyncio.AbstractEventLoop
        self._node: Node
        self.blobs: FileBlobs
        self._submitter: Submitter
        self._scope: TaskScope
        self._idle = asyncio.Event()
        self.flow = Dataflow(self)

    # --- any thread -------------------------------------------------------------------------------

    def check_process(self) -> None:
        """Raises UsageError in a forked child."""
        if self._pid != os.getpid():
            raise forked()

    def put(self, future: MeshFuture[Any] | None, target: Shipment | OpenJob, payload: bytes | Bound) -> None:
        """Hand a task in: its payload, or arguments that wait for their parts."""
        self._inbox.append((future, target, payload))
        self.wake()

    def seal(self, job: OpenJob) -> None:
        """No more tasks come for a single job."""
        self.put(None, job, _SEAL)

    def cancel_job(self, job: OpenJob, *, kill: bool) -> None:
        """Cancel what is left of a single job; running tasks finish unless `kill`."""
        self.put(None, job, _KILL if kill else _CANCEL)

    def withdraw(self, future: MeshFuture[Any]) -> None:
        """A future was cancelled: its task need not run."""
        self._withdrawn.append(future)
        self.wake()

    def wake(self) -> None:
        """There is something to look at."""
        if self._is_woken:
            return
        self._is_woken = True
        if self._is_ended:
            self.fail(self._error)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: `fail` has run or will
                self._loop.call_soon_threadsafe(self._drain)

    def again(self, futures: Sequence[MeshFuture[Any]]) -> list[MeshFuture[Any]]:
        """Hand in calls of one job that have failed; return their new futures.

        Raises:
            UsageError: one was never made.
        """
        made: list[MeshFuture[Any]] = []
        targets: dict[OpenJob, OpenJob] = {}
        for future in futures:
            if future._job is None or not future._payload:
                raise UsageError(
                    "a call that was never made cannot be tried again",
                    "an input of it has failed, or it came by a call that a task has returned",
                    "submit it again",
                )
        for future in futures:
            job = future._job
            assert job is not None
            new: MeshFuture[Any] = type(future)(self, future._bytes_in)
            new._words, new._chunk_count, new._blobs = future._words, future._chunk_count, blobs_in(future._payload)
            if future._note is not None:
                new._note = replace(future._note, generation=future._note.generation + 1)
            self.blobs.pin(new._blobs)
            target: Shipment | OpenJob = job.shipment
            if job.is_single:
                key = b"again %d" % next(_serials)
                shipment = replace(job.shipment, key=key)
                fresh = OpenJob(shipment, kind=job.kind, read=job.read, fuel=job.fuel, is_single=True)
                target = targets.setdefault(job, fresh)
            self.put(new, target, future._payload)
            made.append(new)
        for fresh in targets.values():
            self.seal(fresh)
        return made

    def is_started(self, future: MeshFuture[Any]) -> bool:
        """True when the task runs here, or is leased to another node."""
        job = future._job
        book = None if job is None else job.book
        if job is None or book is None or future._index < 0:
            return False
        lease = book.job.leases.get(future._index)
        if lease is None:
            return False
        return lease.thief != LOCAL or self._node.scheduler.worker.core.is_running(job.job_id, future._index)

    def holder_of(self, job: OpenJob, index: int) -> tuple[str | None, int]:
        """Return (node, attempt) of a task that was leased, else (None, 0)."""
        book = job.book
        lease = book.job.leases.get(index) if book is not None else None
        return (None, 0) if lease is None else (self._node.name_of(lease.thief), lease.attempt)

    # --- life -------------------------------------------------------------------------------------

    def open(self, node: Node, blobs: FileBlobs, scope: TaskScope) -> None:
        """Start to work for `node`."""
        self._loop = asyncio.get_running_loop()
        self._node, self.blobs, self._scope = node, blobs, scope
        self._submitter = Submitter(node, blobs)
        self._loop.call_soon(self._drain)

    @property
    def is_idle(self) -> bool:
        return not self._inbox and self._open_count == 0 and self.flow.is_idle

    async def wait_idle(self) -> None:
        """Wait until every future is resolved."""
        while not self.is_idle:
            self._idle.clear()
            await self._idle.wait()

    def _check_idle(self) -> None:
        if self.is_idle:
            self._idle.set()

    def cancel_all(self, *, kill: bool) -> None:
        """Cancel every open task; running ones finish unless `kill`."""
        self._drain_all()
        for job in list(self._jobs.values()):
            self._cancel_job(job, kill=kill)

    async def close(self) -> None:
        """Seal every job: their submitter goes."""
        await asyncio.to_thread(self.flow.read_all)
        if self.results is not None:
            await asyncio.to_thread(self.results.close)
        for job in list(self._jobs.values()):
            if job.book is not None:
                await self._node.seal_job(job.job_id)

    def fail(self, error: BaseException | None) -> None:
        """Resolve all that is open: the node is gone.  May be called by any thread once the loop has ended."""
        self._error, self._is_ended = error, True
        self._is_woken = False
        futures = [future for job in self._jobs.values() for future in job.futures.values()]
        futures += [future for job in self._jobs.values() for future, _payload in job.waiting]
        futures += [waiting.future for job in self._jobs.values() for waiting in job.held]
        for job in self._jobs.values():
            job.held.clear()
        self._jobs.clear()
        while True:
            try:
                future = self._inbox.popleft()[0]
            except IndexError:
                break
            if future is not None:
                futures.append(future)
        for future in futures:
            set_exception(future, lost(error))

    # --- tasks in ---------------------------------------------------------------------------------

    def _drain_all(self) -> None:
        while self._inbox:
            self._drain()

    def _drain(self) -> None:
        """Make tasks of what the user's threads have put in."""
        self._is_woken = False
        inbox = self._inbox
        batches: dict[OpenJob, list[tuple[MeshFuture[Any], bytes]]] = {}
        held: list[tuple[OpenJob, MeshFuture[Any], Bound]] = []
        orders: list[tuple[OpenJob, bytes]] = []
        last: Shipment | OpenJob | None = None
        batch: list[tuple[MeshFuture[Any], bytes]] = []
        for _ in range(DRAIN_MAX):
            try:
                future, target, payload = inbox.popleft()
            except IndexError:
                break
            if target is not last:
                last = target
                job = target if type(target) is OpenJob else self._job_of(target)  # type: ignore[arg-type]  # a Shipment
                if job.is_single and job.shipment.key not in self._jobs:
                    self._jobs[job.shipment.key] = job
                batch = batches.setdefault(job, [])
            if type(payload) is Bound:
                assert future is not None
                held.append((job, future, payload))
            elif future is None:
                orders.append((job, payload))  # type: ignore[arg-type]  # bytes: see Item
            else:
                batch.append((future, payload))  # type: ignore[arg-type]  # bytes: see Item
        else:
            if inbox and not self._is_woken:
                self._is_woken = True
                self._loop.call_soon(self._drain)
        for job, future, bound in held:
            self._open_count += 1
            self.flow.hold(job, future, bound)
        self.flow.look()
        for job, items in batches.items():
            self._open_count += len(items)
            self._add(job, items)
        if batches or held:
            self._node.scheduler.pump_now()
        for job, order in orders:
            self._obey(job, order)
        if self._withdrawn:
            self._withdraw_now()
        self._check_idle()

    def _job_of(self, shipment: Shipment) -> OpenJob:
        job = self._jobs.get(shipment.key)
        if job is None:
            if len(self._jobs) >= JOBS_OPEN_MAX:
                self._close_unused()
            job = self._jobs[shipment.key] = OpenJob(shipment)
        return job

    def _close_unused(self) -> None:
        """Close jobs that nobody has used for longest, a quarter of them at a time."""
        unused = [
            key
            for key, job in self._jobs.items()
            if job.book is not None and not (job.futures or job.held or job.is_single)
        ]
        for key in unused[: JOBS_OPEN_MAX // 4]:
            self._finish_job(self._jobs[key])

    def _finish_job(self, job: OpenJob) -> None:
        """Seal a job that takes nothing more; it is forgotten when it is over."""
        job.is_seal_due = bool(job.held)
        if not (job.is_sealing or job.is_seal_due):
            job.is_sealing = True
            if not job.is_single:
                self._jobs.pop(job.shipment.key, None)
            if job.book is not None:
                self.spawn(self._node.seal_job(job.job_id), "seal")

    def _add(self, job: OpenJob, items: list[tuple[MeshFuture[Any], bytes]]) -> None:
        book = job.book
        if job.error is not None:
            self._refuse(items, job.error)
            return
        if book is None:
            job.waiting += items
            if not job.is_opening:
                job.is_opening = True
                self.spawn(self._open_job(job), "open")
            return
        live = [item for item in items if item[0]._state == "PENDING"]
        if len(live) < len(items):
            self._open_count -= len(items) - len(live)
            for future, _payload in items:
                if future._state != "PENDING":
                    self._release_blobs(future)
        if not live:
            return
        try:
            index = self._node.scheduler.owner.add_tasks_now(book, [payload for _future, payload in live])
        except P2pcError as error:
            self._refuse(live, error)
            return
        futures = job.futures
        for future, _payload in live:
            future._job = job
            future._index = index
            futures[index] = future
            index += 1
        if self._node.scheduler.peers:
            self._node.scheduler.offers.offer()

    def put_held(self, waiting: Waiting, payload: bytes) -> None:
        """Make a task of a call that was held."""
        del waiting.job.held[waiting]
        near = waiting.near()
        waiting.let_go()
        self._add(waiting.job, [(waiting.future, payload)])
        if near is not None and waiting.future._index >= 0 and waiting.job.book is not None:
            waiting.job.book.job.near[waiting.future._index] = near
        self._node.scheduler.pump_now()
        self._look_at_seal(waiting.job)

    def drop_held(self, waiting: Waiting, error: BaseException | None) -> None:
        """Fail a call that was held; without an error cancel it."""
        del waiting.job.held[waiting]
        waiting.let_go()
        self._open_count -= 1
        if error is None:
            set_cancelled(waiting.future)
        else:
            set_exception(waiting.future, error)
        self._look_at_seal(waiting.job)
        self._check_idle()

    def _look_at_seal(self, job: OpenJob) -> None:
        if job.is_seal_due and not job.held:
            self._finish_job(job)

    def _refuse(self, items: Sequence[tuple[MeshFuture[Any], bytes]], error: BaseException) -> None:
        self._open_count -= len(items)
        for future, _payload in items:
            self._release_blobs(future)
            set_exception(future, error)
        self._check_idle()

    async def _open_job(self, job: OpenJob) -> None:
        """Submit a job and the tasks that wait for it."""
        try:
            await self._submitter.submit(job)
        except Exception as error:  # nobody else would resolve the futures; a bug of ours is raised again
            self._jobs.pop(job.shipment.key, None)
            what = f"a bug in p2pcompute: {type(error).__name__}: {error}"
            job.error = error if isinstance(error, P2pcError) else P2pcError(what, "", "please report it", code="bug")
            waiting, job.waiting = job.waiting, []
            self._refuse(waiting, job.error)
            if job.error is not error:  # a bug of ours: it is reported, and nobody waits for ever
                raise
            return
        job.book = self._node.scheduler.owner.book(job.job_id)
        job.book.listeners.append(lambda ends: self._ended(job, ends))
        waiting, job.waiting = job.waiting, []
        self._add(job, waiting)
        if job.is_cancelled:
            self._cancel_job(job, kill=True)
        if job.is_sealing:
            await self._node.seal_job(job.job_id)

    def explain(self, job: OpenJob) -> Explanation:
        """Ask the nodes why a job does not run.

        Raises:
            UsageError: nothing of it was submitted.
        """
        view = self.ask(lambda node: explain_job(node, job))
        return OVER if view is None else explanation_of(view)

    # --- orders -----------------------------------------------------------------------------------

    def _obey(self, job: OpenJob, order: bytes) -> None:
        if order == _SEAL:
            self._finish_job(job)
        else:
            self._cancel_job(job, kill=order == _KILL)

    def _cancel_job(self, job: OpenJob, *, kill: bool) -> None:
        waiting, job.waiting = job.waiting, []
        self._open_count -= len(waiting)
        for future, _payload in waiting:
            self._release_blobs(future)
            set_cancelled(future)
        for call in list(job.held):
            self.drop_held(call, None)
        if job.book is None:
            job.is_cancelled = True
        elif job.futures:
            self.spawn(self._node.cancel(job.job_id, indices=list(job.futures), now=kill), "cancel")

    def _withdraw_now(self) -> None:
        by_job: dict[OpenJob, list[int]] = {}
        while self._withdrawn:
            future = self._withdrawn.popleft()
            if future._job is not None and future._index in future._job.futures:
                by_job.setdefault(future._job, []).append(future._index)
        for job, indices in by_job.items():
            self.spawn(self._node.cancel(job.job_id, indices=indices), "cancel")

    # --- results out ------------------------------------------------------------------------------

    def _ended(self, job: OpenJob, ends: Sequence[TaskEnd]) -> None:
        """Resolve the futures of tasks that have ended."""
        futures, read = job.futures, job.read
        if job.book is not None and job.book.job.revoked_count > job.revoked_count:
            job.revoked_count = job.book.job.revoked_count
            warnings.warn(
                f"{job.shipment.name}: {job.revoked_count} results were revoked and are computed again",
                ResultRevoked,
                stacklevel=2,
            )
        slow: list[tuple[MeshFuture[Any], TaskEnd]] = []
        for end in ends:
            future = futures.pop(end.index, None)
            if future is None:
                continue
            outcome = end.outcome
            if outcome is None or outcome.value_blob is not None or read is not None or future._note is not None:
                slow.append((future, end))
                continue
            self._open_count -= 1
            self._note(future, end, outcome)
            if future._blobs:
                self._release_blobs(future, end)
            if future._state != "PENDING":
                continue
            if end.state is TaskState.DONE:
                try:
                    value = load_value(outcome.value)
                except Exception as error:  # noqa: BLE001 - unpickling runs the user's code
                    set_exception(future, error)
                    continue
                if type(value) is PackedCall:
                    self.flow.follow(job, future, value)
                else:
                    if future.is_input:
                        future._content = outcome.value
                    with contextlib.suppress(cf.InvalidStateError):
                        future.set_result(value)
            else:
                future._payload = end.payload
                self._fail(job, future, end, outcome.value)
        if slow:
            self._resolve_slowly(job, slow)
        book = job.book
        if job.is_sealing and book is not None and book.job.ledger.is_complete and not futures:
            self._forget(job)
        self._check_idle()

    def _note(self, future: MeshFuture[Any], end: TaskEnd, outcome: Outcome) -> None:
        size = len(outcome.value)
        if size > VALUE_KEPT_BYTES_MAX:
            outcome = replace(outcome, value=b"")
        name = self._names.get(end.thief)
        if name is None:
            name = self._names[end.thief] = self._node.name_of(end.thief)
        future._report = (name, end.attempts, outcome, size)

    def _fail(self, job: OpenJob, future: MeshFuture[Any], end: TaskEnd, data: bytes) -> None:
        if end.state is TaskState.CANCELLED:
            set_cancelled(future)
            return
        book = job.book
        reason = "" if book is None else book.job.ledger.reasons.get(end.index, "")
        node = future._report[0] if future._report is not None else None
        if reason.startswith(DISPUTED):
            error = ResultDisputed("nobody can say what is right", reason, "trust a node, or let more members compute")
            error.votes = dict(re.findall(r"(\w+): (\w+)", reason.partition("(")[2]))
            set_exception(future, error)
            return
        set_exception(future, failure(end.outcome, reason, node, data))

    def _resolve_slowly(self, job: OpenJob, slow: list[tuple[MeshFuture[Any], TaskEnd]]) -> None:
        """Resolve futures whose value has to be read from blobs, in a thread."""
        reading = []
        for future, end in slow:
            outcome = end.outcome
            if outcome is not None:
                self._note(future, end, outcome)
            if future._blobs:
                self._release_blobs(future, end)
            if end.state is TaskState.FAILED:
                future._payload = end.payload
            if future._state != "PENDING" or outcome is None or end.state is TaskState.CANCELLED:
                self._open_count -= 1
                if future._state == "PENDING":
                    self._fail(job, future, end, b"")
            else:
                self.blobs.pin([BlobRef(*blob) for blob in _blobs_of(outcome)])
                reading.append((future, end, outcome))
        if reading:
            self.spawn(self._read(job, reading), "read")

    async def _read(self, job: OpenJob, items: list[tuple[MeshFuture[Any], TaskEnd, Outcome]]) -> None:
        refs = [BlobRef(*blob) for _future, _end, outcome in items for blob in _blobs_of(outcome)]
        is_read = False
        try:
            await asyncio.to_thread(self._read_now, job, items)
            is_read = True
        finally:
            self._open_count -= len(items)
            for future, _end, _outcome in items if not is_read else ():
                set_exception(future, lost(None))
            self._check_idle()
            if refs:
                self.blobs.unpin(refs)
                with contextlib.suppress(P2pcError):
                    await self.blobs.delete(refs)

    def _read_now(self, job: OpenJob, items: list[tuple[MeshFuture[Any], TaskEnd, Outcome]]) -> None:
        """In a thread."""
        for future, end, outcome in items:
            future._maker = end.thief
            if future._note is None and future.is_input and job.read is None and self._is_left_unread(future, outcome):
                continue
            try:
                if future._note is not None:
                    self._keep(future, future._note, end, outcome)
                contents = {blob[0]: self._read_blob(BlobRef(*blob)) for blob in _blobs_of(outcome)}
                data = contents[outcome.value_blob[0]] if outcome.value_blob is not None else outcome.value
                value: Any = NotImplemented
                if job.read is not None:
                    value = job.read(future, outcome, contents)
                elif end.state is TaskState.DONE:
                    value = load_value(data)
                if value is NotImplemented:
                    self._fail(job, future, end, data)
                    continue
                if type(value) is PackedCall:
                    self._loop.call_soon_threadsafe(self.flow.follow, job, future, value)
                    continue
            except Exception as error:  # noqa: BLE001 - unpickling runs the user's code
                set_exception(future, error)
            else:
                if future._report is not None:
                    future._report = (*future._report[:3], len(data))
                with contextlib.suppress(cf.InvalidStateError):
                    future.set_result(value)

    def _keep(self, future: MeshFuture[Any], note: Note, end: TaskEnd, outcome: Outcome) -> None:
        """Write what the results of an executor say of a call, and put files that came back in their place."""

        def content(data: bytes, blob: tuple[bytes, int] | None) -> Content:
            path = None if blob is None else self.blobs.path(BlobRef(*blob))
            return data if blob is None else self._read_blob(BlobRef(*blob)) if path is None else Path(path)

        files: dict[str, str] | None = None
        if self.results is not None and outcome.status in (OutcomeStatus.OK, OutcomeStatus.FAILED, *_ENDED_BADLY):
            files = self.results.write(
                note,
                outcome,
                is_done=end.state is TaskState.DONE,
                node=None if future._report is None else future._report[0],
                attempts=end.attempts,
                contents={
                    "stdout": content(outcome.stdout, outcome.stdout_blob),
                    "stderr": content(outcome.stderr, outcome.stderr_blob),
                    "value": content(outcome.value, outcome.value_blob),
                },
                files=tuple((file.name, content(b"", (file.digest, file.size)), file.mode) for file in outcome.files),
            )
        if files is None:
            files = {
                file.name: str(place_file(note.to, file.name, content(b"", (file.digest, file.size)), file.mode))
                for file in outcome.files
            }
        future._files = files

    def _is_left_unread(self, future: MeshFuture[Any], outcome: Outcome) -> bool:
        """Resolve the future of an input whose value is large without reading it, unless it is a call that follows."""
        if outcome.value_blob is None or outcome.status is not OutcomeStatus.OK:
            return False
        ref = BlobRef(*outcome.value_blob)
        path = self.blobs.path(ref)
        if path is None:
            return False
        with open(path, "rb") as file:
            if is_call(file.read(CALL_MARK_WITHIN_BYTES)):
                return False
        self.flow.keep(future, ref)
        with contextlib.suppress(cf.InvalidStateError):
            future.set_result(Unread())
        return True

    def _read_blob(self, ref: BlobRef) -> bytes:
        return self.blobs.read_now(ref)

    def _forget(self, job: OpenJob) -> None:
        """Drop what the node keeps of a job that is over."""
        if job.book is not None:
            job.book = None
            if job.is_single:
                self._jobs.pop(job.shipment.key, None)
            self.blobs.unpin(job.code_refs)
            self.spawn(self._node.scheduler.owner.forget(job.job_id), "forget")

    # --- blobs of tasks ---------------------------------------------------------------------------

    def _release_blobs(self, future: MeshFuture[Any], end: TaskEnd | None = None) -> None:
        """What was sent for a task that has ended is not needed here any more, unless it is tried again."""
        refs, future._blobs = future._blobs, ()
        if end is not None and end.state is TaskState.FAILED:
            for ref in refs:
                self.flow.drop_with(future, ref)
        elif refs:
            self.blobs.unpin(refs)
            self.spawn(self.blobs.delete(refs), "delete")

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        self._scope.spawn(coroutine, name)


def blobs_in(payload: bytes) -> tuple[BlobRef, ...]:
    """Return the blobs that a task's payload names."""
    task = decode_payload(payload)
    refs = [ref for ref in (task.args_blob, task.stdin_blob) if ref is not None]
    return (*refs, *(file.blob for file in task.send))


def _blobs_of(outcome: Outcome) -> list[tuple[bytes, int]]:
    blobs = [outcome.value_blob, outcome.stdout_blob, outcome.stderr_blob]
    return [blob for blob in blobs if blob is not None] + [(file.digest, file.size) for file in outcome.files]
