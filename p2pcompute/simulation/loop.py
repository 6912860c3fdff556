"""A virtual-time asyncio event loop that runs the same way every time.

Events are ordered by (time, sequence number); time jumps to the next event, so a run costs only its events.
Raw events (`post`) carry packets: a plain call without handle or context.  Whatever would reach the real world
raises `RealWorldCall`.  A callback or task whose exception nobody takes fails the run.

Invariants: time never goes back; callbacks are never compared by address; nothing here reads the real clock.
Source: the loop contract is CPython's `asyncio.BaseEventLoop`; order within one instant follows it, except
that timers due at the same instant run one per turn instead of all in one turn.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import math
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, NoReturn, Protocol, TypeVar

from p2pcompute.simulation.fences import SimulationError, fences, refuse
from p2pcompute.simulation.trace import Trace

T = TypeVar("T")

GC_STEP_EVENTS: Final = 100_000
"""Young garbage is collected after so many events: a fixed step, so that finalisers run at the same place."""
GC_FULL_STEPS_MIN: Final = 20
GC_FULL_HOSTS_PER_STEP: Final = 50
"""All garbage is collected every GC_FULL_STEPS_MIN steps, and with many hosts after one step for every
GC_FULL_HOSTS_PER_STEP of them: looking through everything takes as long as there are hosts."""
INSTANT_STEPS_MAX: Final = 20
"""Steps of GC_STEP_EVENTS without any progress of virtual time that count as a livelock: 2 million events."""
TASKS_SWEPT_MIN: Final = 64
"""References to tasks that are gone are dropped when there are so many in all, and twice as many as the last time."""
CANCELLED_TIMERS_MIN: Final = 1000
"""Cancelled timers stay in the heap until there are so many of them and they are more than half."""
WAITING_TASKS_SHOWN_MAX: Final = 50


class Deadlock(SimulationError):
    """The main coroutine waits, and no event is left that could wake it.  The waiting tasks are named."""

    default_code = "deadlock"


class RunLimit(SimulationError):
    """The run was bounded, and it reached a bound (virtual time, events) or virtual time stood still."""

    default_code = "run-limit"


class RunFailed(SimulationError):
    """A callback or a task failed and nobody took its exception, which is the cause of this one."""

    default_code = "run-failed"


class Tasks:
    """Tasks, in the order in which they began, as long as somebody else refers to them.  A `WeakSet` does the same at
    ten times the cost."""

    __slots__ = ("_refs", "_sweep_at")

    def __init__(self) -> None:
        self._refs: list[weakref.ref[asyncio.Task[Any]]] = []
        self._sweep_at = TASKS_SWEPT_MIN

    def add(self, task: asyncio.Task[Any]) -> None:
        self._refs.append(weakref.ref(task))
        if len(self._refs) >= self._sweep_at:
            self._refs = [ref for ref in self._refs if ref() is not None]
            self._sweep_at = max(TASKS_SWEPT_MIN, 2 * len(self._refs))

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return (task for ref in self._refs if (task := ref()) is not None)


class Owner(Protocol):
    """Whoever tasks belong to: a host that can crash."""

    @property
    def tasks(self) -> Tasks: ...


OWNER: Final[ContextVar[Owner | None]] = ContextVar("OWNER", default=None)
"""Inherited by every task and timer through its context."""


class _Call(asyncio.TimerHandle):
    """A callback with its context, in the ready queue or the heap."""

    __slots__ = ()

    _args: tuple[Any, ...]
    _callback: Callable[..., object] | None
    _context: Context
    _loop: SimulationLoop
    _scheduled: bool

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulationLoop,
        context: Context | None,
    ) -> None:
        # The parent's initialiser is left out on purpose: it is half of the cost of an event.
        self._when = when
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._scheduled = False
        self._source_traceback = None
        self._repr = None

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._callback = None
            self._args = ()
            if self._scheduled:
                self._loop._timer_cancelled()


class _Suspension:
    """What a suspended owner would have run."""

    __slots__ = ("ready", "since", "timers")

    def __init__(self, since: float, timers: list[tuple[float, int, _Call]], ready: list[_Call]) -> None:
        self.since = since
        self.timers = timers
        self.ready = ready


class SimulationLoop(asyncio.BaseEventLoop):
    """Event loop in virtual time.

    Args:
        shuffle: when given, callbacks that are ready at the same time run in an order drawn from it, to hunt
            for code that relies on their order.
    """

    def __init__(self, *, shuffle: random.Random | None = None) -> None:
        super().__init__()
        self.trace = Trace()
        self.events = 0
        """Events run so far."""
        self._now = 0.0
        self._sequence = itertools.count(1)
        self._task_numbers = itertools.count(1)
        self._heap: list[tuple[float, int, Callable[[Any], object] | None, Any]] = []
        self._queue: deque[_Call] = deque()
        self._cancelled_timers = 0
        self._shuffle = shuffle
        self._halting = False
        self._is_shut = False
        self._failure: BaseException | None = None
        self._failure_text = ""
        self._suspended: dict[Owner, _Suspension] = {}
        self.host_count = 0
        """How many hosts the simulation has: how long it takes to look through everything."""
        self._gc_steps = 0
        self._step_time = -1.0
        self._steps_at_time = 0

    # --- scheduling -------------------------------------------------------------------------------

    get_debug = staticmethod(bool)
    """Never: every future and task asks, and this answer is a call in C."""

    def time(self) -> float:
        """Virtual seconds since the start of the simulation."""
        return self._now

    def post(self, when: float, function: Callable[[Any], object], argument: Any) -> None:
        """Call `function(argument)` at virtual time `when`, outside any host's context.  Cannot be cancelled."""
        heapq.heappush(self._heap, (when, next(self._sequence), function, argument))

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if self._is_shut:
            self._check_open()
        call = _Call(0.0, callback, args, self, context)
        self._queue.append(call)
        return call

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self._is_shut:
            self._check_open()
        call = _Call(when, callback, args, self, context)
        call._scheduled = True
        heapq.heappush(self._heap, (when, next(self._sequence), None, call))
        return call

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_running() and threading.get_ident() != self._thread_id:
            raise refuse("loop.call_soon_threadsafe from another thread")
        return self.call_soon(callback, *args, context=context)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Start a task; it belongs to the owner in its context.  Unnamed ones are numbered per loop."""
        self._check_open()
        task = asyncio.Task(coro, loop=self, name=name or f"task-{next(self._task_numbers)}", context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks.add(task)
        return task

    def discard(self, owners: Sequence[Owner]) -> None:
        """Forget every timer and ready callback of these owners, as when their machines lost power.  Looks at all that
        wait, once."""
        gone: frozenset[Owner | None] = frozenset(owners)
        for _, _, function, call in self._heap:
            if function is None and not call._cancelled and call._context.get(OWNER) in gone:
                # Not `call.cancel()`: it may rebuild the heap under this iteration.
                call._cancelled, call._callback, call._args = True, None, ()
                self._cancelled_timers += 1
        self._queue = deque(call for call in self._queue if call._context.get(OWNER) not in gone)
        for owner in owners:
            if self._suspended.pop(owner, None) is not None and not self._suspended:
                del self.call_soon

    def suspend(self, owner: Owner) -> None:
        """Hold every timer and ready callback of `owner`, and whatever becomes ready for it, until `resume`."""
        timers: list[tuple[float, int, _Call]] = []
        rest: list[tuple[float, int, Callable[[Any], object] | None, Any]] = []
        for entry in self._heap:
            when, number, function, call = entry
            if function is None and call._context.get(OWNER) is owner:
                if call._cancelled:
                    self._cancelled_timers -= 1
                else:
                    call._scheduled = False  # not in the heap: if it is cancelled now, nothing is to be counted
                    timers.append((when, number, call))
            else:
                rest.append(entry)
        self._heap[:] = rest  # a slice: the running loop holds a reference to this very list
        heapq.heapify(self._heap)
        ready = [call for call in self._queue if call._context.get(OWNER) is owner]
        self._queue = deque(call for call in self._queue if call._context.get(OWNER) is not owner)
        self._suspended[owner] = _Suspension(self._now, timers, ready)
        # On the instance, so that it costs nothing while nobody is suspended.
        self.call_soon = self._call_soon_or_hold  # type: ignore[method-assign]

    def resume(self, owner: Owner) -> None:
        """Let `owner` go on.  Its timers fire later by as long as it was suspended: its clock stood still."""
        held = self._suspended.pop(owner)
        if not self._suspended:
            del self.call_soon
        late_s = self._now - held.since
        for when, _, call in sorted(held.timers, key=lambda timer: timer[:2]):
            if not call._cancelled:
                call._when, call._scheduled = when + late_s, True
                heapq.heappush(self._heap, (call._when, next(self._sequence), None, call))
        self._queue.extend(call for call in held.ready if not call._cancelled)

    def _call_soon_or_hold(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        call = _Call(0.0, callback, args, self, context)
        owner = call._context.get(OWNER)
        held = None if owner is None else self._suspended.get(owner)
        if held is None:
            self._queue.append(call)
        else:
            held.ready.append(call)
        return call

    def _timer_cancelled(self) -> None:
        self._cancelled_timers += 1
        if self._cancelled_timers > CANCELLED_TIMERS_MIN and self._cancelled_timers * 2 > len(self._heap):
            # Slice assignment: the running loop holds a reference to this very list.
            self._heap[:] = [entry for entry in self._heap if entry[2] is not None or not entry[3]._cancelled]
            heapq.heapify(self._heap)
            self._cancelled_timers = 0

    def _check_open(self) -> None:
        if self._is_shut:
            raise RuntimeError("the simulation is closed")

    # --- running ----------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, T], *, time_s_max: float | None = None, events_max: int | None = None) -> T:
        """Run until `main` is done; virtual time goes on from where the last run ended.

        Args:
            main: what to run, outside any host.
            time_s_max: virtual seconds that it may take from now.
            events_max: events that it may take from now.

        Raises:
            Deadlock, RunLimit, RunFailed: see there.  What `main` raises is passed on.
        """
        if self.is_running() or asyncio._get_running_loop() is not None:
            main.close()
            raise RuntimeError("another event loop is running in this thread")
        task = self.create_task(main, name="main")
        return self._run_future(task, time_s_max, events_max)

    def run_until_complete(self, future: Any) -> Any:
        return self._run_future(asyncio.ensure_future(future, loop=self), None, None)

    def run_forever(self) -> None:
        """Run until `stop` is called or no event is left."""
        self._enter(math.inf, None)

    def stop(self) -> None:
        self._halting = True

    def _run_future(self, future: asyncio.Future[T], time_s_max: float | None, events_max: int | None) -> T:
        def done(_: asyncio.Future[T]) -> None:
            self._halting = True

        future.add_done_callback(done)
        try:
            self._enter(math.inf if time_s_max is None else self._now + time_s_max, events_max)
        finally:
            future.remove_done_callback(done)
        if self._failure is not None:
            error, text = self._failure, self._failure_text
            self._failure = None
            if future.done() and not future.cancelled() and future.exception() is error:
                raise error
            raise RunFailed(text, f"{type(error).__name__}: {error}") from error
        if not future.done():
            raise Deadlock(
                f"nothing is left to happen at {self._now:.6f} s, but the main coroutine waits",
                "waiting: " + "; ".join(self.waiting_tasks()),
            )
        return future.result()

    def _enter(self, until_s: float, events_max: int | None) -> None:
        if self.is_running() or asyncio._get_running_loop() is not None:
            raise RuntimeError("another event loop is running in this thread")
        self._check_open()
        had_gc = gc.isenabled()
        hooks = sys.get_asyncgen_hooks()
        self._halting = False
        self._thread_id: int | None = threading.get_ident()
        try:
            gc.disable()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
                finalizer=self._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
            )
            asyncio._set_running_loop(self)
            with fences():
                self._spin(until_s, math.inf if events_max is None else self.events + events_max)
        finally:
            self._thread_id = None
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            if had_gc:
                gc.enable()

    def _spin(self, until_s: float, events_max: float) -> None:
        """The loop itself: a batch of ready callbacks, then one event of the heap, and so on."""
        heap, pop = self._heap, heapq.heappop
        events = self.events
        step_at = events + GC_STEP_EVENTS
        check_at = min(step_at, events_max)
        try:
            while True:
                queue = self._queue
                if queue:
                    count = len(queue)
                    if self._shuffle is not None and count > 1:
                        batch = list(queue)
                        queue.clear()
                        self._shuffle.shuffle(batch)
                        queue.extend(batch)
                    events += count
                    for _ in range(count):
                        if not queue:  # a host crashed in this batch: its callbacks are gone
                            break
                        call = queue.popleft()
                        if call._cancelled:
                            continue
                        try:
                            call._context.run(call._callback, *call._args)  # type: ignore[arg-type]
                        except (SystemExit, KeyboardInterrupt):
                            raise
                        except BaseException as error:  # noqa: BLE001 - whatever it is, it fails the run
                            self._fail("a callback failed", error)
                        queue = self._queue
                    # Nothing may outlive its turn here: an error that nobody took is seen when its task is freed.
                    del call
                elif not heap:
                    return
                if self._halting:
                    return
                if heap and (not self._queue or heap[0][0] <= self._now):
                    if heap[0][0] > until_s:
                        self._now = max(self._now, until_s)
                        raise RunLimit(f"the run reached {until_s:.3f} s of virtual time", self._where())
                    when, _, function, argument = pop(heap)
                    if function is None:
                        argument._scheduled = False
                        if argument._cancelled:
                            self._cancelled_timers -= 1
                            continue
                        self._now = max(self._now, when)
                        events += 1
                        try:
                            argument._context.run(argument._callback, *argument._args)
                        except (SystemExit, KeyboardInterrupt):
                            raise
                        except BaseException as error:  # noqa: BLE001 - whatever it is, it fails the run
                            self._fail("a timer failed", error)
                            return
                    else:
                        self._now = max(self._now, when)
                        events += 1
                        try:
                            function(argument)
                        except (SystemExit, KeyboardInterrupt):
                            raise
                        except BaseException as error:  # noqa: BLE001 - whatever it is, it fails the run
                            self._fail("an event failed", error)
                            return
                    del function, argument
                if events >= check_at:
                    self.events = events
                    if events >= events_max:
                        raise RunLimit(f"the run reached {events} events", self._where())
                    if events >= step_at:
                        self._step()
                        step_at = events + GC_STEP_EVENTS
                    check_at = min(step_at, events_max)
        finally:
            self.events = events

    def _step(self) -> None:
        """Every GC_STEP_EVENTS events: collect garbage and see that time goes on."""
        self._gc_steps += 1
        is_full = self._gc_steps >= max(GC_FULL_STEPS_MIN, self.host_count // GC_FULL_HOSTS_PER_STEP)
        if is_full:
            self._gc_steps = 0
        gc.collect(2 if is_full else 1)
        if self._now > self._step_time:
            self._step_time, self._steps_at_time = self._now, 0
            return
        self._steps_at_time += 1
        if self._steps_at_time >= INSTANT_STEPS_MAX:
            self._steps_at_time = 0
            raise RunLimit(
                f"virtual time stands still at {self._now:.6f} s",
                f"{INSTANT_STEPS_MAX * GC_STEP_EVENTS} events without progress: something polls; {self._where()}",
            )

    def _fail(self, text: str, error: BaseException) -> None:
        """Remember the first failure and stop after the current batch."""
        if self._failure is None:
            self._failure, self._failure_text = error, f"{text} at {self._now:.6f} s"
        self._halting = True

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody took fails the run."""
        message = str(context.get("message", "unhandled error"))
        error = context.get("exception")
        self._fail(message, error if isinstance(error, BaseException) else SimulationError(message, repr(context)))

    def take_failure(self) -> BaseException | None:
        """Return the failure that no run has raised yet, and forget it."""
        error, self._failure = self._failure, None
        return error

    def waiting_tasks(self) -> list[str]:
        """Name and place of the tasks that wait, in order of their names; at most WAITING_TASKS_SHOWN_MAX."""
        lines = sorted(f"{task.get_name()} at {_place(task.get_coro())}" for task in asyncio.all_tasks(self))
        if len(lines) > WAITING_TASKS_SHOWN_MAX:
            lines[WAITING_TASKS_SHOWN_MAX:] = [f"and {len(lines) - WAITING_TASKS_SHOWN_MAX} more"]
        return lines

    def _where(self) -> str:
        return "tasks: " + "; ".join(self.waiting_tasks())

    def close(self) -> None:
        super().close()
        self._is_shut = True
        self._heap.clear()
        self._queue.clear()


def _place(coroutine: object) -> str:
    """Where a coroutine waits: its chain of awaits, and the line in the innermost frame outside asyncio."""
    names: list[str] = []
    line = 0
    inner: object = coroutine
    while isinstance(inner, types.CoroutineType | types.GeneratorType):
        frame = inner.cr_frame if isinstance(inner, types.CoroutineType) else inner.gi_frame
        if frame is not None:
            names.append(frame.f_code.co_qualname)
            if frame.f_globals.get("__package__") != "asyncio":
                line = frame.f_lineno
        inner = inner.cr_await if isinstance(inner, types.CoroutineType) else inner.gi_yieldfrom
    return f"{' > '.join(names)} line {line}"


def _fence(name: str) -> None:
    def fenced(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise refuse(f"loop.{name}")

    fenced.__name__ = name
    setattr(SimulationLoop, name, fenced)


_FENCED: Final = """
run_in_executor getaddrinfo getnameinfo create_connection create_server create_datagram_endpoint
create_unix_connection create_unix_server connect_accepted_socket start_tls sendfile connect_read_pipe
connect_write_pipe subprocess_exec subprocess_shell add_reader remove_reader add_writer remove_writer sock_recv
sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto sock_connect sock_accept sock_sendfile
add_signal_handler remove_signal_handler
"""
for _name in _FENCED.split():
    _fence(_name)
