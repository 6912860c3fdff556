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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from p2pcompute.api.futures import MeshFuture, closed
from p2pcompute.api.pickling import dump_call
from p2pcompute.execution.calls import PARTIAL_RESULTS

if TYPE_CHECKING:
    from p2pcompute.api.executor import MeshExecutor

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
        executor: MeshExecutor,
        function: Callable[..., R],
        iterables: tuple[Iterable[Any], ...],
        *,
        timeout_s: float | None,
        chunk_count: int,
        buffer_count: int | None,
    ) -> None:
        self._executor = executor
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._left = _known_length(iterables)
        self._iterators = [iter(iterable) for iterable in iterables]
        self._chunk_count = chunk_count
        self._buffer_count = buffer_count
        with executor._lock:
            self._shipment, _ = executor._functions.find(function, chunked=True)
        self._open: deque[tuple[MeshFuture[list[R]], int]] = deque()
        """Chunks whose results were not yielded, with their sizes."""
        self._unfinished = 0
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
        """Why not all that is left could be handed in at the end of the executor."""
        self._fill()
        if not self._is_exhausted and self._left and buffer_count is None:
            executor._core.mappings[self] = None

    def results(self) -> Iterator[R]:
        """Yield the results; cancels what is left when the iterator is closed early."""
        try:
            while self._open:
                head, count = self._open[0]
                self._wait(head)
                with self._lock:
                    self._open.popleft()
                    self._taken -= count
                values, error = self._values(head)
                del head
                if error is None:
                    self._fill()
                values.reverse()
                while values:
                    yield values.pop()  # nothing here refers to it any more
                if error is not None:
                    raise error
                self._fill()
            if self._error is not None:
                raise self._error
        finally:
            self._executor._core.mappings.pop(self, None)
            for future, _count in self._open:
                future.cancel()

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
                self._error, self._is_exhausted = error, True

    def _values(self, head: MeshFuture[list[R]]) -> tuple[list[R], BaseException | None]:
        """Return the results of a chunk, up to the first exception."""
        error = head.exception()
        if error is None:
            return head.result(), None
        partial: list[R] = []
        data = error.__dict__.pop(PARTIAL_RESULTS, None) if hasattr(error, "__dict__") else None
        if isinstance(data, bytes):
            with contextlib.suppress(Exception):
                partial = pickle.loads(data)
        return partial, error

    def _wait(self, head: MeshFuture[list[R]]) -> None:
        """Wait for a chunk; hand in more as others end meanwhile.

        Raises:
            TimeoutError: the time is over.
        """
        while True:
            try:
                while True:
                    self._measure(self._ended.get_nowait())
            except queue.Empty:
                pass
            self._fill()
            if head.done():
                return
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            with contextlib.suppress(queue.Empty):
                self._measure(self._ended.get(timeout=left))

    def _measure(self, future: MeshFuture[list[R]]) -> None:
        self._unfinished -= 1
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
        data = dump_call(tuple(columns), {}, self._shipment.zipped_names)
        self._call_bytes = len(data) / count
        future = self._executor._send(self._shipment, data)
        future._chunk_count = count
        self._open.append((future, count))
        self._taken += count
        self._unfinished += 1
        future.add_done_callback(self._ended.put)  # type: ignore[arg-type]

    def _take(self, size: int) -> list[list[Any]]:
        """Take up to `size` items from each iterable; the shortest one ends them all."""
        if len(self._iterators) == 1:
            return [list(islice(self._iterators[0], size))]
        rows = list(islice(zip(*self._iterators, strict=False), size))
        return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in self._iterators]


def _known_length(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return how many calls there will be, when all iterables can say."""
    try:
        return min(len(iterable) for iterable in iterables)  # type: ignore[arg-type]
    except TypeError:
        return None
