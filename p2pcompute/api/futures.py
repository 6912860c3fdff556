"""The future of one task, and what becomes of an outcome in the user's process."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from p2pcompute.api.options import State, TaskInfo, moment
from p2pcompute.api.pickling import load_exception, load_value
from p2pcompute.api.printed import Stream, printed_lines
from p2pcompute.errors import P2pcError, TaskError, UsageError, WorkerDied
from p2pcompute.execution.calls import Collected
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.ids import task_id
from p2pcompute.limits import NO_OUTPUT

if TYPE_CHECKING:
    from p2pcompute.api.desk import Desk
    from p2pcompute.api.explanations import Explanation
    from p2pcompute.api.open_jobs import OpenJob
    from p2pcompute.api.result_folder import Note
    from p2pcompute.node.facade import TailView, TaskProgress

R = TypeVar("R")
SIGNAL_S: Final = 0.5
"""How often a wait without an end looks for signals."""
_reading: Final = threading.RLock()
"""Held while a large value is unpickled that several threads may ask for."""
_ENDED: Final = ("FINISHED", "CANCELLED", "CANCELLED_AND_NOTIFIED")
OUTPUT_SHOWN_BYTES: Final = 2048
"""End of a task's standard error in an exception."""


class Unread:
    """Stands for a value that nobody has asked for here: it is still pickled."""


class _Sleeper:
    """A thread that waits for one future, told as `concurrent.futures.wait` is."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, limit_s: float) -> bool:
        """Wait; True when it was told."""
        return self._lock.acquire(timeout=limit_s)

    def add_result(self, _future: object) -> None:
        with contextlib.suppress(RuntimeError):  # told before
            self._lock.release()

    add_exception = add_cancelled = add_result


class MeshFuture(cf.Future[R], Generic[R]):
    """The result of one call, to come.  Dropping it cancels nothing.

    A program may hold a million of them.  So what `concurrent.futures` makes for each one is here made when it is
    needed, or shared: all futures of a desk have one lock, and a thread that waits has a `_Sleeper` of its own.
    """

    _state: str = "PENDING"
    _result: R | None = None
    _exception: BaseException | None = None
    _waiting: list[Any] | None = None
    _called: list[Callable[[Any], object]] | None = None
    _job: OpenJob | None = None
    _index = -1
    _blobs: tuple[BlobRef, ...] = ()
    """Large arguments, or files that are sent along: pinned until the task has ended."""
    _words: tuple[str, ...] = ()
    """Of a command."""
    _note: Note | None = None
    """Of a call that has files, or whose result is kept."""
    _files: Mapping[str, str] = MappingProxyType({})
    _payload: bytes = b""
    """Of a task that has failed: `retry` hands it in again."""
    _maker: bytes | None = None
    """Node where its large value was made, and still is."""
    is_input = False
    """Its value is an argument of another call."""
    _content: bytes | BlobRef | None = None
    """Of an input: its pickled value, or where that is."""
    _chunk_count = 0
    """Calls in the task, when it is a chunk."""
    _report: tuple[str | None, int, Outcome | None, int] | None = None
    """(node, attempts, outcome without its value, bytes of the value)"""
    # Defaults of the class: a future is made for every call, and most of these are set later or never.

    def __init__(self, desk: Desk, payload_bytes: int) -> None:
        # Not `super().__init__()`: see above.
        self._condition = desk.condition
        self._desk = desk
        self._submitted = time.time()
        self._bytes_in = payload_bytes

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # an attribute there
        """Of `concurrent.futures`, which has the lock when it asks."""
        if self._waiting is None:
            self._waiting = []
        return self._waiting

    @property
    def _done_callbacks(self) -> list[Callable[[Any], object]]:
        """Of `concurrent.futures`, which has the lock when it asks, or has ended the future."""
        if self._called is None:
            self._called = []
        return self._called

    def _invoke_callbacks(self) -> None:
        if self._called is not None:
            super()._invoke_callbacks()  # type: ignore[misc]  # typeshed does not know it

    def done(self) -> bool:
        """True when it has ended, or was cancelled."""
        return self._state in _ENDED

    def cancelled(self) -> bool:
        """True when it was cancelled."""
        return self._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED")

    def set_result(self, result: R) -> None:
        """End it with a value; for the desk."""
        with self._condition:
            self._check_open()
            self._result, self._state = result, "FINISHED"
            for waiter in self._waiting or ():
                waiter.add_result(self)
        self._invoke_callbacks()

    def set_exception(self, exception: BaseException | None) -> None:
        """End it with an exception; for the desk."""
        with self._condition:
            self._check_open()
            self._exception, self._state = exception, "FINISHED"
            for waiter in self._waiting or ():
                waiter.add_exception(self)
        self._invoke_callbacks()

    def _check_open(self) -> None:
        if self._state in _ENDED:
            raise cf.InvalidStateError(f"{self._state}: {self!r}")

    @property
    def info(self) -> TaskInfo:
        """Where and how the task ran, as known now."""
        return self._info(self._state_now())

    @property
    def files(self) -> Mapping[str, str]:
        """Where the files are that the task has brought back (`TaskOptions.fetch`), by their names there."""
        return self._files

    def _state_now(self) -> State:
        if self.cancelled():
            return "cancelled"
        if self.done():
            return "failed" if self._exception is not None or self._ended_badly() else "done"
        return "running" if self.running() else "waiting"

    def _ended_badly(self) -> bool:
        """Whether a command's exit code was not 0: it has a value, which says so, and yet the task has failed."""
        outcome = None if self._report is None else self._report[2]
        return outcome is not None and outcome.status is OutcomeStatus.FAILED

    def standing(self) -> tuple[State, str | None, float]:
        """Return (state, node, when it ended by that node's clock in Unix time, 0 if it has not): `info` for less."""
        state, report = self._state_now(), self._report
        if report is not None:
            node, outcome = report[0], report[2]
            return state, node, 0.0 if outcome is None else outcome.started_wall + outcome.runtime_s
        if state == "running" and self._job is not None:
            return state, self._desk.holder_of(self._job, self._index)[0], 0.0
        return state, None, 0.0

    def _info(self, state: State) -> TaskInfo:
        job, report = self._job, self._report
        node, attempts, outcome, bytes_out = report if report is not None else (None, 0, None, 0)
        if report is None and job is not None:
            node, attempts = self._desk.holder_of(job, self._index)
        started = finished = None
        if outcome is not None and outcome.started_wall:
            started = moment(outcome.started_wall)
            finished = moment(outcome.started_wall + outcome.runtime_s)
        return TaskInfo(
            id=task_id(job.job_id, self._index).hex() if job is not None and self._index >= 0 else "",
            index=self._index,
            state=state,
            node=node,
            attempt=attempts,
            submitted=datetime.fromtimestamp(self._submitted, UTC),
            started=started,
            finished=finished,
            bytes_in=self._bytes_in,
            bytes_out=bytes_out,
            exit_code=None if outcome is None else outcome.exit_code,
            runtime_s=None if outcome is None else outcome.runtime_s,
            stdout="" if outcome is None else outcome.stdout.decode("utf-8", "replace"),
            stderr="" if outcome is None else outcome.stderr.decode("utf-8", "replace"),
        )

    def explain(self) -> Explanation:
        """Ask the nodes why the task does not run, and what would help; see `Job.explain`.

        Raises:
            UsageError: it was not submitted yet, or could not be.
        """
        if self._job is None:
            raise UsageError("this task has not begun", "it waits for its job", "ask again later", code="no-job")
        return self._desk.explain(self._job)

    def logs(self, *, stream: Stream = "both", follow: bool = False) -> Iterator[str]:
        """Yield the lines that the task has printed, of much the last 64 KiB.

        Args:
            stream: "stdout", "stderr", or "both": the lines of one after those of the other.
            follow: go on while it runs, with what it prints meanwhile.
        """
        return printed_lines(
            stream,
            is_done=self.done,
            outcome=lambda: None if self._report is None else self._report[2],
            tail=self._tail,
            follow=follow,
        )

    @property
    def progress(self) -> TaskProgress | None:
        """How far the task says that it is (`p2pcompute.progress`), while it runs; the node where it runs is asked."""
        found = None if self.done() else self._tail(0, NO_OUTPUT, NO_OUTPUT)
        return None if found is None else found.progress

    def _tail(self, attempt: int, stdout: int, stderr: int) -> TailView | None:
        job, index = self._job, self._index
        if job is None or index < 0 or not job.job_id:
            return None
        try:
            found: TailView | None = self._desk.ask(
                lambda node: node.tail(job.job_id, index, attempt=attempt, offsets=(stdout, stderr))
            )
        except P2pcError:  # it has just ended, or the node has
            return None
        return found

    def retry(self) -> MeshFuture[R]:
        """Hand a call in again that has failed, with the same arguments; return the future of the new one.

        Raises:
            UsageError: it has not failed, or was never made because an input of it had failed.
        """
        check_failed(self)
        return self._desk.again([self])[0]

    def cancel(self) -> bool:
        """Cancel the task unless it has started; True when it is cancelled now."""
        self._desk.check_process()
        if self.done():
            return self.cancelled()
        if self._desk.is_started(self) or not super().cancel():
            return False
        with contextlib.suppress(cf.InvalidStateError, RuntimeError):
            self.set_running_or_notify_cancel()  # tells those who wait for several futures
        self._desk.withdraw(self)
        return True

    def running(self) -> bool:
        """True while the task runs, or is with another node that will run it."""
        return not self.done() and self._desk.is_started(self)

    def result(self, timeout: float | None = None) -> R:
        """Return the task's value; see `concurrent.futures.Future.result`.

        Raises:
            Exception: what the function raised, the traceback of its node as the cause.
            WorkerDied: the process that ran it died or ran out of time.
            TaskError: it could not be run, or its result cannot be rebuilt here.
        """
        if self._state != "FINISHED":
            self._wait(timeout)
        value = super().result(0)
        return self._read_value() if type(value) is Unread else value

    def _read_value(self) -> R:
        """Read a large value that has only gone from task to task until now."""
        with _reading:
            if type(self._result) is Unread and isinstance(self._content, BlobRef):
                self._result = load_value(self._desk.blobs.read_now(self._content))
            value: Any = self._result
            return value  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        """Among the arguments of a call a future stands for its value; nowhere else can it be sent."""
        found = Collected.reduce(self)
        if found is None:
            raise TypeError("a future cannot be pickled: give it to a call as an argument, or send its result()")
        self.is_input = True
        return found

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None; see `concurrent.futures.Future.exception`."""
        if self._state != "FINISHED":
            self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        """Wait until it has ended, or `timeout` seconds; in steps.

        A signal that arrives just before a thread starts to wait is not noticed until it wakes: Ctrl-C would be lost.
        """
        self._desk.check_process()
        end = None if timeout is None else time.monotonic() + timeout
        sleeper = _Sleeper()
        with self._condition:
            if self._state in _ENDED:
                return
            self._waiters.append(sleeper)
        try:
            limit_s = SIGNAL_S
            while self._state not in _ENDED and limit_s > 0:
                limit_s = SIGNAL_S if end is None else min(SIGNAL_S, end - time.monotonic())
                if limit_s > 0:
                    sleeper.sleep(limit_s)
        finally:
            with self._condition, contextlib.suppress(ValueError):
                self._waiters.remove(sleeper)

    def __await__(self) -> Generator[Any, None, R]:
        return asyncio.wrap_future(self).__await__()


def failure(outcome: Outcome | None, reason: str, node: str | None, data: bytes) -> BaseException:
    """Return the exception for a task that has failed for good.

    Args:
        outcome: of its last attempt, where there was one.
        reason: why it was given up.
        data: the outcome's value, read from its blob where it was one.
    """
    if outcome is None:
        return TaskError("a task was given up", reason, node=node)
    if outcome.status is OutcomeStatus.FAILED and data:
        return _hinted(load_exception(data), node)
    stderr = outcome.stderr[-OUTPUT_SHOWN_BYTES:].decode("utf-8", "replace")
    text = outcome.error.strip() or reason or str(outcome.status)
    error: TaskError
    match outcome.status:
        case OutcomeStatus.TIMEOUT:
            error = WorkerDied(
                text,
                "the time limit of the task",
                "give it more: TaskOptions(timeout=…)",
                code="timeout",
                node=node,
                cause="timeout",
                signal=outcome.signal,
                peak_rss=outcome.peak_rss_bytes or None,
            )
        case OutcomeStatus.DIED:
            cause = outcome.cause or "signal"
            error = WorkerDied(
                text,
                "out of memory" if cause == "oom" else reason,
                "limit it with TaskOptions(mem=…), or split the work" if cause == "oom" else None,
                node=node,
                cause=cause,
                signal=outcome.signal,
                peak_rss=outcome.peak_rss_bytes or None,
            )
        case _:
            error = TaskError(text, reason if reason != text else "", node=node, remote_traceback=outcome.error)
    error.stderr_tail = stderr
    return error


def _hinted(error: BaseException, node: str | None) -> BaseException:
    """Say of a file that a call has not found that it is here: the commonest mistake of all."""
    name = getattr(error, "filename", None)
    with contextlib.suppress(OSError, ValueError):  # of a name that no file can have
        if isinstance(error, FileNotFoundError) and isinstance(name, str) and os.path.exists(name):
            error.add_note(
                f"This file is here, and the call ran on {node or 'another node'}: send it along, with_options(send="
                '["{}"]) where its name is the first argument, or stay here, MeshExecutor(local=True).'
            )
    return error


def lost(why: BaseException | None) -> P2pcError:
    """Return the error of futures whose node is gone."""
    if isinstance(why, P2pcError):
        return why
    return P2pcError(
        "the embedded node has ended before this task",
        "" if why is None else f"{type(why).__name__}: {why}",
        "make a new executor",
        code="node-ended",
    )


def closed() -> RuntimeError:
    """Return what `concurrent.futures` raises in this case."""
    return RuntimeError("cannot schedule new futures after shutdown")


def forked() -> UsageError:
    return UsageError(
        "this executor belongs to another process",
        "it was made before a fork, and its node lives in the parent",
        "make a new MeshExecutor in the child",
        code="forked",
    )


def check_failed(future: MeshFuture[Any]) -> None:
    """Raises UsageError for a future that has not failed."""
    if not future.done() or future.cancelled() or future._exception is None:
        state = "was cancelled" if future.cancelled() else "is done" if future.done() else "has not ended"
        raise UsageError("this call has not failed", f"it {state}", "only what has failed is tried again")


def settle(future: MeshFuture[R], value: Callable[[], R]) -> None:
    """Resolve a future with what a function returns or raises."""
    try:
        future.set_result(value())
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of a value that is unpickled: the user's code
        set_exception(future, error)


def set_exception(future: MeshFuture[Any], error: BaseException) -> None:
    """Fail a future that has not ended."""
    if future._state == "PENDING":
        with contextlib.suppress(AttributeError, TypeError):  # not every exception takes attributes
            error.p2pc = future._info("failed")  # type: ignore[attr-defined]
        with contextlib.suppress(cf.InvalidStateError):
            future.set_exception(error)


def set_cancelled(future: MeshFuture[Any]) -> None:
    """Cancel a future that has not ended, and tell those who wait."""
    if cf.Future.cancel(future):
        with contextlib.suppress(cf.InvalidStateError, RuntimeError):
            future.set_running_or_notify_cancel()
