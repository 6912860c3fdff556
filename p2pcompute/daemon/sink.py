"""Results of jobs on disk: writes what `--results` and `--joblog` ask for, whether or not a terminal watches.

A sink follows the job's task ends in their lasting order, page by page, and hands each page to the writer in a
thread; it reads no further before the page is written.  What is written already, the writer knows from its own files,
so after a restart nothing is lost or doubled.  A marker file per open sink says at the next start which jobs still need
one.

A disk that refuses stops the sink, not the job: it tries again after SINK_RETRY_S, then less and less often, and the
job's `results.error` says why.  SINK_TRIES_S after the end of its job it gives up, and at once when another job is to
write there; the results stay in the store, for `p2pc result`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from p2pcompute.api.result_claims import Hold, check_claims, drop_claim
from p2pcompute.api.result_content import Content
from p2pcompute.api.result_target import ResultsTarget, check_target, hold
from p2pcompute.api.results import ResultsWriter
from p2pcompute.daemon.views import decode_note, error_json, job_json, task_json
from p2pcompute.errors import P2pcError, UsageError
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    SINK_PAGE_MAX,
    SINK_RETRY_S,
    SINK_RETRY_S_MAX,
    SINK_TRIES_S,
    SINKS_REMEMBERED,
    UNCOMMITTED_S,
)
from p2pcompute.node.facade import JobView, NodeFacade, TaskDone

log = logging.getLogger("p2pcompute.daemon")

Item = tuple[dict[str, Any], Content, Content, Content, tuple[tuple[str, Content, int], ...]]
"""Task, stdout, stderr, value, files."""


@dataclass(slots=True)
class _State:
    target: ResultsTarget
    is_done: bool = False
    """Everything is written, or it has given up and `error` says why."""
    tries: asyncio.Task[None] | None = None
    error: P2pcError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever it is done or in error."""


class ResultsSink:
    """All open sinks of this node."""

    def __init__(self, node: NodeFacade, directory: Path, scope: TaskScope) -> None:
        """Use `directory` for the markers; it is made when needed."""
        self._node = node
        self._directory = directory
        self._home = str(directory.parent)
        """Names this installation in the markers beside results."""
        self._scope = scope
        self._states: dict[bytes, _State] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="p2pc-results")

    async def start(self) -> None:
        """Carry on with the jobs that had an open sink, and with those that never got one."""
        marked = {path.name for path in self._directory.glob("*")} if self._directory.is_dir() else set()
        for job in self._node.jobs():
            has_marker = job.job_id.hex() in marked
            marked.discard(job.job_id.hex())
            if decode_note(job.note).results is not None and (has_marker or not job.is_over):
                self.begin(job)
        for name in sorted(marked):
            # The job is gone; so is its claim on what it wrote.
            with contextlib.suppress(OSError, ValueError, UsageError):
                target = ResultsTarget.from_json(json.loads((self._directory / name).read_text(encoding="utf-8")))
                for claim, _ in target.claims():
                    drop_claim(claim, name)
            (self._directory / name).unlink(missing_ok=True)

    def close(self) -> None:
        """After the scope has ended the sinks: let the thread write its last page and close the files."""
        self._pool.shutdown()

    async def reserve(self, results: dict[str, Any]) -> Reserved:
        """Keep a place for the results of a job that is about to be submitted.

        Raises:
            UsageError: they could not be written there, or somebody else writes there.
            StoreError: the disk refuses.
        """
        target = ResultsTarget.from_json(results)
        places = {path for _, path in target.claims()}
        in_the_way: dict[bytes, _State] = {}
        for job_id, state in self._states.items():
            taken = [] if state.is_done else [path for _, path in state.target.claims() if path in places]
            if not taken:
                continue
            if state.error is None or not self._is_over(job_id):
                raise self._busy(taken[0], job_id)
            in_the_way[job_id] = state
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, check_target, target)
        for job_id, state in in_the_way.items():
            await self._give_up(job_id, state)
        return await loop.run_in_executor(self._pool, _reserve, target, self._home)

    def _is_over(self, job_id: bytes) -> bool:
        try:
            return self._node.job(job_id.hex()).is_over
        except UsageError:
            return True

    async def _give_up(self, job_id: bytes, state: _State) -> None:
        """End a sink that cannot write: others may write there."""
        if state.tries is not None:
            state.tries.cancel()
            await asyncio.wait([state.tries])
        self._free(job_id, state)

    def _free(self, job_id: bytes, state: _State) -> None:
        (self._directory / job_id.hex()).unlink(missing_ok=True)
        for claim, _ in state.target.claims():
            drop_claim(claim, job_id.hex())
        state.is_done = True
        state.changed.set()

    def _busy(self, path: Path, job_id: bytes) -> UsageError:
        alias = self._node.job(job_id.hex()).alias
        return UsageError(
            f"{path} is being written by the unfinished job {alias}",
            "two jobs would mix their results",
            f"p2pc attach {alias} to see it, or p2pc cancel {alias}; then again",
            code="results-busy",
        )

    def begin(self, job: JobView, *, is_new: bool = False) -> None:
        """Open the sink of a job unless it is open."""
        results = decode_note(job.note).results
        state = self._states.get(job.job_id)
        if results is None or (state is not None and not state.is_done):
            return
        try:
            target = ResultsTarget.from_json(results)
        except UsageError as error:
            log.warning("job %s: %s", job.alias, error)
            return
        if len(self._states) >= SINKS_REMEMBERED:
            self._forget_one()
        self._states.pop(job.job_id, None)
        self._states[job.job_id] = state = _State(target)
        state.tries = self._scope.spawn(self._run(job, target, state, is_new), f"sink {job.alias}")

    def _forget_one(self) -> None:
        """Forget the oldest sink that is done; open ones are as many as their jobs."""
        done = next((job_id for job_id, state in self._states.items() if state.is_done), None)
        if done is not None:
            del self._states[done]

    def describe(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON of a job with what became of its results: `state` is writing, written, failing, or
        failed when that is tried no more; without one they were written long ago, or in an earlier life of the node."""
        state = self._states.get(bytes.fromhex(job["id"]))
        if state is not None and job["results"] is not None:
            name = "written" if state.is_done else "writing"
            if state.error is not None:
                name = "failed" if state.is_done else "failing"
            job["results"] = {**job["results"], "state": name}
            if state.error is not None:
                job["results"]["error"] = error_json(state.error)
        return job

    async def settled(self, job_id: bytes, limit_s: float) -> bool:
        """Wait until everything of a job that is over is written, or cannot be for now; False after `limit_s`."""
        state = self._states.get(job_id)
        try:
            async with self._node.clock.timeout(limit_s):
                while state is not None and not state.is_done and state.error is None:
                    await state.changed.wait()
        except TimeoutError:
            return False
        return True

    # --- one sink ---------------------------------------------------------------------------------

    async def _run(self, job: JobView, target: ResultsTarget, state: _State, is_new: bool) -> None:
        marker = self._directory / job.job_id.hex()
        loop = asyncio.get_running_loop()
        position = 0
        pause_s = 0.0
        failing_since: float | None = None
        writer: ResultsWriter | None = None
        news = asyncio.Event()
        stop_watching = self._node.watch(job.job_id, lambda _ends: news.set())
        try:
            while not state.is_done:
                try:
                    if writer is None:
                        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                        marker.write_text(json.dumps(target.to_json()) + "\n", encoding="utf-8")
                        make = partial(ResultsWriter.create if is_new else ResultsWriter.reopen, home=self._home)
                        made = self._pool.submit(make, target, _job_record(job))
                        try:
                            writer = await asyncio.wrap_future(made)
                        except asyncio.CancelledError:
                            made.add_done_callback(_close_made)  # nobody waits for it any more
                            raise
                        is_new = False
                    position = await self._catch_up(job.job_id, writer, position, news, state)
                    done, writer = writer, None
                    await loop.run_in_executor(self._pool, done.close, _job_record(self._node.job(job.job_id.hex())))
                    marker.unlink(missing_ok=True)
                    if done.refused_count:
                        log.warning("job %s: %d files have names that cannot be here", job.alias, done.refused_count)
                    state.error, state.is_done = None, True
                    state.changed.set()
                except Exception as error:  # noqa: BLE001 - who waits for the results is told, whatever it is
                    if isinstance(error, UsageError) and error.code == "no-job":
                        self._free(job.job_id, state)
                        break
                    if state.error is None:
                        pause_s = SINK_RETRY_S
                    self._note(job, state, error)
                    self._abandon(writer)
                    writer, position, is_new = None, 0, False
                    if failing_since is None and self._is_over(job.job_id):
                        failing_since = self._node.clock.now()
                    if failing_since is not None and self._node.clock.now() - failing_since >= SINK_TRIES_S:
                        log.warning("results of job %s are given up: p2pc result %s -o DIR", job.alias, job.alias)
                        self._free(job.job_id, state)
                        break
                    state.changed.set()
                    await self._node.clock.sleep(pause_s)
                    pause_s = min(SINK_RETRY_S_MAX, pause_s * 2)
                    state.changed = asyncio.Event()
        finally:
            stop_watching()
            self._abandon(writer)

    def _note(self, job: JobView, state: _State, error: Exception) -> None:
        """Keep why nothing can be written; it is said once."""
        level = logging.WARNING if state.error is None else logging.DEBUG
        if not isinstance(error, P2pcError | OSError):
            log.log(level, "results of job %s", job.alias, exc_info=error)
        state.error = error if isinstance(error, P2pcError) else UsageError(f"{type(error).__name__}: {error}")
        log.log(level, "results of job %s: %s", job.alias, state.error)

    def _abandon(self, writer: ResultsWriter | None) -> None:
        """Close the files after what the thread may still be writing."""
        if writer is not None:
            self._pool.submit(_close_quietly, writer)

    async def _catch_up(
        self, job_id: bytes, writer: ResultsWriter, position: int, news: asyncio.Event, state: _State
    ) -> int:
        """Write everything until the job is over; the position reached.  What was in the way before is forgotten once
        everything that there is has been written."""
        loop = asyncio.get_running_loop()
        while True:
            news.clear()
            job = self._node.job(job_id.hex())
            ends = await self._node.finished(job_id, after=position, limit=SINK_PAGE_MAX)
            if ends:
                kind = decode_note(job.note).kind
                items = [
                    await self._item(end, kind) for end in ends if not writer.is_written(end.index, end.generation)
                ]
                await loop.run_in_executor(self._pool, _write_all, writer, items)
                position = ends[-1].seq
                continue
            if job.is_over and position >= job.last_seq:
                return position
            if position >= job.last_seq:
                state.error = None
            try:
                async with self._node.clock.timeout(UNCOMMITTED_S if position < job.last_seq else None):
                    await news.wait()
            except TimeoutError:
                continue

    async def _item(self, end: TaskDone, kind: str) -> Item:
        outcome = end.outcome
        if outcome is None:
            return task_json(end, kind), b"", b"", None, ()
        files = [(file.name, await self._content(b"", (file.digest, file.size)), file.mode) for file in outcome.files]
        value = await self._content(outcome.value, outcome.value_blob) if kind == "function" else None
        return (
            task_json(end, kind),
            await self._content(outcome.stdout, outcome.stdout_blob),
            await self._content(outcome.stderr, outcome.stderr_blob),
            value or None,
            tuple(files),
        )

    async def _content(self, inline: bytes, blob: tuple[bytes, int] | None) -> Content:
        if blob is None:
            return inline
        ref = BlobRef(*blob)
        path = self._node.blobs.path(ref)
        return await self._node.blobs.read(ref) if path is None else Path(path)


@dataclass(frozen=True, slots=True)
class Reserved:
    """A place for results that nobody else writes to."""

    results: dict[str, Any]
    """With the number of the first task."""
    _held: Hold
    _home: str

    def hand_over(self, job_id: bytes) -> None:
        """Leave it to the job."""
        with contextlib.suppress(OSError):  # its writer claims it again, and says what is wrong
            self._held.hand_over(job_id.hex(), self._home)

    def free(self) -> None:
        """There is no job, or it has the place."""
        self._held.release()


def _reserve(target: ResultsTarget, home: str) -> Reserved:
    for name in sorted(check_claims(target.claims(), home)):
        # No open sink of ours writes there: what is left is from a job that ended or was forgotten.
        for marker, _ in target.claims():
            drop_claim(marker, name)
    held = hold(target)
    try:
        return Reserved((target.numbered() if target.resume else target).to_json(), held, home)
    except BaseException:  # tidied up after, and raised again
        held.release()
        raise


def _job_record(job: JobView) -> dict[str, Any]:
    return {name: value for name, value in job_json(job).items() if name not in ("note", "last_seq")}


def _close_quietly(writer: ResultsWriter) -> None:
    """What could not be written is written again from the store."""
    with contextlib.suppress(P2pcError, OSError):
        writer.close()


def _close_made(made: Future[ResultsWriter]) -> None:
    if not made.cancelled() and made.exception() is None:
        _close_quietly(made.result())


def _write_all(writer: ResultsWriter, items: Sequence[Item]) -> None:
    for task, stdout, stderr, value, files in items:
        writer.write(task, stdout=stdout, stderr=stderr, value=value, files=files)
