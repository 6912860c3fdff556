"""A lazy, ordered, parallel map.

The consumer's own thread does all of it: it takes items from the iterables, hands them in as chunks, and yields.  So
nothing happens behind its back, and an endless iterable is read only as far as results are wanted.  The one exception
is the end of the executor: `finish`, called by the thread that shuts it down.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from p2pcompute.api.failures import closed
from p2pcompute.api.futures import MeshFuture
from p2pcompute.api.job_status import PROGRESS_S, Shown, status_of
from p2pcompute.api.pickling import dump_call
from p2pcompute.execution.calls import PARTIAL_RESULTS

if TYPE_CHECKING:
    from p2pcompute.api.sending import Sender

R = TypeVar("R")

CHUNK_S: Final = 0.05
"""A chunk whose size we choose takes about this long: the cost of a task is lost in it, and stragglers are short."""
CHUNK_GROWTH_MAX: Final = 8
"""A chunk is at most so many times as large as the measured ones before it: calls may differ in length."""
CHUNK_MAX: Final = 5000
CHUNK_BYTES: Final = 512 * 1024
"""Arguments in one chunk whose size we choose."""
AHEAD_S: Final = 0.5
"""So much work is handed in ahead of the results."""
AHEAD_CHUNKS_PER_SLOT: Final = 3
AHEAD_CHUNKS_MAX: Final = 4096
SHARE_MIN: Final = 4
"""Inputs of a known number are cut into at least so many chunks per slot."""
SHARE_UNMEASURED: Final = 64
"""Into so many where they have to be handed in before it is known how long the calls take."""


class Mapping(Generic[R]):
    """One call of `MeshExecutor.map`."""

    def __init__(
        self,
        executor: Sender,
        function: Callable[..., R],
        iterables: tuple[Iterable[Any], ...],
        *,
        timeout_s: float | None,
        chunk_count: int,
        buffer_count: int | None,
        is_ordered: bool = True,
        on_ended: Callable[[], None] | None = None,
    ) -> None:
        """Args:
        timeout_s: seconds from now for all results.
        chunk_count: calls in a task; 0: chosen.
        buffer_count: most items that were taken and have no result yet; None: chosen.
        is_ordered: results come in the order of the items; else as they are there.
        on_ended: called, by any thread, when there may be more to `poll`.
        """
        self._executor = executor
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._left = _known_length(iterables)
        self._iterators = [iter(iterable) for iterable in iterables]
        self._is_noted = executor._is_noted
        self._function = function
        self._chunk_count = 1 if self._is_noted else chunk_count
        self._buffer_count = buffer_count
        self._shown = Shown(executor._core.progress if executor._core.progress != "auto" else False)
        self._given_count = 0
        with executor._lock:
            self._shipment, self._beside = executor._functions.find(function, chunked=not self._is_noted)
        self._open: dict[MeshFuture[list[R]], int] = {}
        """Chunks whose results were not given, in their order, with their sizes."""
        self._done: dict[MeshFuture[list[R]], None] = {}
        """Those of them that have ended, in that order, where results are not given in the order of the items."""
        self.is_ordered = is_ordered
        self.on_ended = on_ended
        self._unfinished = 0
        self._began = time.monotonic()
        self._taken = 0
        """Items in `_open`."""
        self._is_exhausted = False
        self._ended: queue.SimpleQueue[MeshFuture[list[R]]] = queue.SimpleQueue()
        self._call_s: float | None = None
        self._call_bytes = 0.0
        self._measured_count = 0
        """Size of the largest chunk that was measured."""
        self._lock = threading.RLock()
        """Held while items are taken and handed in."""
        self._error: BaseException | None = None
        """What is raised once the results before it were given."""
        self._fill()
        if not self._is_exhausted and self._left and buffer_count is None:
            executor._core.mappings[self] = None

    def results(self) -> Iterator[R]:
        """Yield the results; cancels what is left when the iterator is closed early."""
        try:
            while not self.is_over:
                values = self.poll()
                if values is None:
                    self._wait()
                    continue
                while values:
                    self._given_count += 1
                    yield values.pop()  # nothing here refers to it any more
            self._show(is_last=True)
        finally:
            self.close()

    @property
    def is_over(self) -> bool:
        """True when every result was given and no exception is left to be raised."""
        return not self._open and self._error is None

    def poll(self) -> list[R] | None:
        """Return the results of the next chunk, the first one last, or None while it has not ended.

        Hands in more, as there is room.

        Raises:
            Exception: what a call raised, after the results before it.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                self._measure(self._ended.get_nowait())
        self._fill()
        if not self._open:
            error, self._error = self._error, None
            if error is not None:
                raise error
            return None
        head = next(iter(self._open if self.is_ordered else self._done), None)
        if head is None or not head.done():
            return None
        with self._lock:
            self._taken -= self._open.pop(head)
            self._done.pop(head, None)
        values, error = self._values(head)
        if error is not None:
            # Nothing is handed in any more; what the call raised comes behind the results before it.
            self.close()
            self._error = error
        else:
            self._fill()
        values.reverse()
        return values

    def close(self) -> None:
        """Cancel what is left."""
        self._is_exhausted = True
        self._executor._core.mappings.pop(self, None)
        for future in self._open:
            future.cancel()
        self._open.clear()

    def finish(self) -> None:
        """Hand in all that is left: the executor takes nothing afterwards.  By any thread."""
        with self._lock:
            try:
                while not self._is_exhausted and self._left:
                    size = self._size()
                    if not self._chunk_count and self._call_s is None:
                        size = self._left // (SHARE_UNMEASURED * self._executor._node.slot_count()) + 1
                        size = min(size, CHUNK_MAX, int(CHUNK_BYTES / self._call_bytes) + 1)
                    self._hand_in(size)
            except Exception as error:  # noqa: BLE001 - of the user's iterable: it is raised behind the results
                self._error = error
            self._is_exhausted = True

    def _values(self, head: MeshFuture[list[R]]) -> tuple[list[R], BaseException | None]:
        """Return the results of a chunk, up to the first exception."""
        error = head.exception()
        if error is None:
            found = head.result()
            return ([cast("R", found)] if self._is_noted else found), None
        partial: list[R] = []
        data = error.__dict__.pop(PARTIAL_RESULTS, None) if hasattr(error, "__dict__") else None
        if isinstance(data, bytes):
            with contextlib.suppress(Exception):  # values of the user's classes: the error is what counts
                partial = pickle.loads(data)
        return partial, error

    def _wait(self) -> None:
        """Wait until a chunk has ended.

        Raises:
            TimeoutError: the time is over.
        """
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        if self._shown.is_wanted:
            self._show(is_last=False)
            left = PROGRESS_S if left is None else min(left, PROGRESS_S)
        with contextlib.suppress(queue.Empty):
            self._measure(self._ended.get(timeout=left))

    def _show(self, *, is_last: bool) -> None:
        """Show how many results were given, where that is wanted."""
        if self._shown.is_wanted:
            status = status_of(self._shipment.name, "", self._open, time.time())
            done = self._given_count + sum(size for future, size in self._open.items() if future.done())
            total = self._given_count + self._taken + (self._left or 0)
            began = time.monotonic() - self._began
            waiting = max(0, total - done - status.running)
            rate = done / began if began else 0.0
            eta = (total - done) / rate if rate else None
            status = replace(status, total=total, done=done, waiting=waiting, rate=rate, eta=eta)
            self._shown.show(status, is_last=is_last)

    def _has_ended(self, future: Any) -> None:
        """A chunk has ended; by any thread."""
        self._ended.put(future)
        if self.on_ended is not None:
            self.on_ended()

    def _measure(self, future: MeshFuture[list[R]]) -> None:
        self._unfinished -= 1
        if not self.is_ordered and future in self._open:
            self._done[future] = None
        report = future._report
        count = future._chunk_count
        if report is None or report[2] is None or not count:
            return
        call_s = report[2].runtime_s / count
        self._call_s = call_s if self._call_s is None else self._call_s + 0.3 * (call_s - self._call_s)
        self._measured_count = max(self._measured_count, count)

    # --- handing in -------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Hand in chunks up to the bounds."""
        with self._lock:
            self._fill_now()

    def _fill_now(self) -> None:
        while not self._is_exhausted and self._unfinished < self._ahead():
            if self._executor.is_closed:
                self._error, self._is_exhausted = closed(), True
                return
            size = self._size()
            if self._buffer_count is not None:
                size = min(size, self._buffer_count - self._taken)
            elif self._taken and len(self._open) >= 2 * self._ahead():
                return
            if size <= 0:
                return
            self._hand_in(size)

    def _ahead(self) -> int:
        """Chunks that should be open."""
        slots = self._executor._node.slot_count()
        chunks = AHEAD_CHUNKS_PER_SLOT * slots
        if self._call_s is not None and self._chunk_count:
            chunks = max(chunks, int(AHEAD_S * slots / max(1e-5, self._call_s * self._chunk_count)))
        return min(chunks, AHEAD_CHUNKS_MAX)

    def _size(self) -> int:
        """Calls in the next chunk."""
        if self._chunk_count:
            return self._chunk_count
        if self._call_s is None:
            return 1
        size = min(int(CHUNK_S / max(self._call_s, 1e-7)), CHUNK_MAX, CHUNK_GROWTH_MAX * self._measured_count)
        if self._call_bytes:
            size = min(size, int(CHUNK_BYTES / self._call_bytes))
        if self._left is not None:
            size = min(size, self._left // (SHARE_MIN * self._executor._node.slot_count()) + 1)
        return max(1, size)

    def _hand_in(self, size: int) -> None:
        columns = self._take(size)
        count = len(columns[0])
        if self._left is not None:
            self._left = max(0, self._left - count)
        if count < size or self._left == 0:
            self._is_exhausted = True
        if not count:
            return
        future = self._send(columns)
        self._call_bytes = future._bytes_in / count
        future._chunk_count = count
        self._open[future] = count
        self._taken += count
        self._unfinished += 1
        future.add_done_callback(self._has_ended)

    def _send(self, columns: list[list[Any]]) -> MeshFuture[list[R]]:
        shipment, executor = self._shipment, self._executor
        if self._is_noted:
            row = tuple(column[0] for column in columns)
            return executor._send_noted(shipment, shipment, self._beside, self._function, row, {})
        data, parts = dump_call(tuple(columns), {}, shipment.zipped_names)
        return executor._send(shipment, data, parts)

    def _take(self, size: int) -> list[list[Any]]:
        """Take up to `size` items from each iterable; the shortest one ends them all."""
        if len(self._iterators) == 1:
            return [list(islice(self._iterators[0], size))]
        rows = list(islice(zip(*self._iterators, strict=False), size))
        return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in self._iterators]


def _known_length(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return how many calls there will be, when all iterables can say."""
    try:
        return min(len(iterable) for iterable in iterables)  # type: ignore[arg-type]  # or a TypeError
    except TypeError:
        return None
