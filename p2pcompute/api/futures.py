"""The future of one task, the job that it is in, and the calls of a job that are held: they refer to one another."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from p2pcompute.api.functions import Shipment
from p2pcompute.api.options import State, TaskInfo, moment
from p2pcompute.api.pickling import load_value
from p2pcompute.api.printed import Stream, printed_lines
from p2pcompute.errors import P2pcError, UsageError
from p2pcompute.execution.calls import Collected, Shared
from p2pcompute.execution.spec import TaskKind, TaskPayload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.ids import task_id
from p2pcompute.limits import NO_OUTPUT

if TYPE_CHECKING:
    from p2pcompute.api.explanations import Explanation
    from p2pcompute.api.result_folder import Note
    from p2pcompute.host.real_blobs import FileBlobs
    from p2pcompute.node.facade import TailView, TaskProgress
    from p2pcompute.node.node import Node
    from p2pcompute.scheduler.job_book import JobBook

R = TypeVar("R")
SIGNAL_S: Final = 0.5
"""How often a wait without an end looks for signals."""
_reading: Final = threading.RLock()
"""Held while a large value is unpickled that several threads may ask for."""
_ENDED: Final = ("FINISHED", "CANCELLED", "CANCELLED_AND_NOTIFIED")


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


class FutureDesk(Protocol):
    """What a future needs of whoever runs its call."""

    condition: threading.Condition
    """The lock of all futures that it has made."""
    ask: Callable[[Callable[[Node], Coroutine[Any, Any, Any]]], Any]
    blobs: FileBlobs

    def check_process(self) -> None: ...

    def is_started(self, future: MeshFuture[Any], /) -> bool: ...

    def holder_of(self, job: OpenJob, index: int, /) -> tuple[str | None, int]: ...

    def explain(self, job: OpenJob, /) -> Explanation: ...

    def again(self, futures: Sequence[MeshFuture[Any]], /) -> list[MeshFuture[Any]]: ...

    def withdraw(self, future: MeshFuture[Any], /) -> None: ...


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

    def __init__(self, desk: FutureDesk, payload_bytes: int) -> None:
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

    def __repr__(self) -> str:
        kind = "" if self._exception is None else f" raised {type(self._exception).__name__}"
        return f"<{type(self).__name__} at {id(self):#x} state={self._state_now()}{kind}>"

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
            return cast("R", self._result)

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


Read = Callable[[MeshFuture[Any], Outcome, Mapping[bytes, bytes]], Any]
"""(future, outcome, content of its blobs by digest) → value, or NotImplemented when it has none."""


@dataclass(slots=True, eq=False)
class OpenJob:
    """A job that takes tasks."""

    shipment: Shipment
    kind: TaskKind = TaskKind.FUNCTION
    read: Read | None = None
    """Makes the value of an outcome; None unpickles it."""
    fuel: int | None = None
    """Of WASI modules: instructions that a task may execute."""
    is_single: bool = False
    """Of one `start_map` or `sh`: sealed when its inputs are in, cancelled as a whole."""
    job_id: bytes = b""
    book: JobBook | None = None
    is_opening: bool = False
    error: P2pcError | None = None
    """Why it could not be opened: what comes later is refused as well."""
    waiting: list[tuple[MeshFuture[Any], bytes]] = field(default_factory=list)
    """Items that came before the job was there."""
    is_sealing: bool = False
    """No more items come."""
    is_cancelled: bool = False
    revoked_count: int = 0
    """Results of it that were revoked, as far as the application was told."""
    held: dict[Waiting, None] = field(default_factory=dict)
    """Calls that wait for their inputs."""
    is_seal_due: bool = False
    """Sealed as soon as nothing is held any more."""
    futures: dict[int, MeshFuture[Any]] = field(default_factory=dict)
    code_refs: list[BlobRef] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bound:
    """Pickled arguments that refer to parts."""

    data: bytes
    parts: tuple[Any, ...]
    """Futures, shared objects, calls to be made."""
    code: bytes = b""
    """Of the function, when it travels with the arguments."""
    task: TaskPayload = TaskPayload()
    """The rest of the task."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A call that is held."""

    job: OpenJob
    future: MeshFuture[Any]
    bound: Bound
    parts: list[MeshFuture[Any] | Shared[Any]]
    left: int = 0
    """Inputs that have not ended."""

    def near(self) -> bytes | None:
        """Return the node that has made the largest of the inputs that are blobs."""
        made = [
            (part._content.size, part._maker)
            for part in self.parts
            if isinstance(part, MeshFuture) and isinstance(part._content, BlobRef) and part._maker is not None
        ]
        return max(made, key=itemgetter(0))[1] if made else None

    def let_go(self) -> None:
        """Refer to no input any more: their callbacks refer to this for as long as they live."""
        self.bound = Bound(b"", ())
        self.parts = []


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
            error.p2pc = future._info("failed")  # type: ignore[attr-defined]  # ours, for who catches it
        with contextlib.suppress(cf.InvalidStateError):
            future.set_exception(error)


def set_cancelled(future: MeshFuture[Any]) -> None:
    """Cancel a future that has not ended, and tell those who wait."""
    if cf.Future.cancel(future):
        with contextlib.suppress(cf.InvalidStateError, RuntimeError):
            future.set_running_or_notify_cancel()
