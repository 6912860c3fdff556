"""joblib's `Parallel`, and so scikit-learn's `n_jobs`, on the mesh: ``joblib.parallel_config("p2pc")``.

joblib finds backends of others by no entry point: import this module once.  Calls travel as joblib batches them, and
large arrays among their arguments once per array, not once per call.  Nodes need joblib, and what the calls import.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import joblib
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from p2pcompute.api.executor import MeshExecutor
from p2pcompute.api.futures import MeshFuture
from p2pcompute.api.jobs import Job
from p2pcompute.api.options import TaskOptions
from p2pcompute.api.pickling import dump_call
from p2pcompute.api.shared import shared_executor
from p2pcompute.errors import NodeUnavailable
from p2pcompute.execution.calls import Shared

__all__ = ["MeshBackend"]

SLOTS_S: Final = 10.0
"""Wait for a first node that runs tasks, where this program only submits."""
MEET_S: Final = 2.0
"""Wait for the other nodes that this machine's node knows: how many calls run at once decides how joblib cuts them."""
LOOK_S: Final = 0.05
SHARED_BYTES_MIN: Final = 1 << 20
"""Arrays from this size on travel once to each node: from there on joblib maps them into memory, too."""


class MeshBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the batches of one `Parallel` call on an executor.

    Args:
        executor: where; None: the one that `p2pcompute.map` uses.
        options: fields of `TaskOptions`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    default_n_jobs = -1

    def __init__(
        self,
        executor: MeshExecutor | None = None,
        *,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        TaskOptions().changed(**options)  # refuses what is wrong now, not at the first call
        self._chosen = executor
        self._options = options
        self._job: Job[Any] | None = None
        self._sent: dict[int, tuple[Any, Shared[Any]]] = {}
        """Large arrays of the present call, by their id."""
        self.parallel: Any = None

    def __reduce__(self) -> Any:
        return MeshBackend, ()

    def _executor(self) -> MeshExecutor:
        chosen = self._chosen if self._chosen is not None else shared_executor()
        return chosen.with_options(**self._options) if self._options else chosen

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at once: below 0 all slots that are known now (-1), all but one (-2), and so on.

        Raises:
            NodeUnavailable: nobody runs tasks.
            ValueError: it is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        return max(1, self._slots() + 1 + n_jobs)

    def _slots(self) -> int:
        node = self._executor()._node
        node.wait_ready()
        began = time.monotonic()
        while (count := node.known_slots()) < max(1, node.slots_told):
            waited_s = time.monotonic() - began
            if count and waited_s > MEET_S:
                break
            if waited_s > SLOTS_S:
                raise NodeUnavailable(
                    "nobody runs tasks for this program",
                    f"it only submits, and no node with slots was met within {SLOTS_S:g} s",
                    "look for nodes: p2pc peers; or use workers here: MeshExecutor(max_workers=2)",
                )
            time.sleep(LOOK_S)
        return count

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_ignored: Any) -> int:
        """Make ready for a `Parallel` object; returns `effective_n_jobs(n_jobs)`."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._made = self._executor()
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> MeshFuture[Any]:
        """Hand in a batch of calls."""
        assert self._job is not None
        open_job = self._job.open_job
        data, parts = dump_call((self._with_shared(func),), {}, open_job.shipment.zipped_names)
        future = self._made._send(open_job, data, parts)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _with_shared(self, batch: Any) -> Any:
        """Return a batch in whose calls large arrays are shared objects."""
        items = [(function, args, kwargs) for function, args, kwargs in batch.items]
        if not any(_is_large(value) for _function, args, kwargs in items for value in (*args, *kwargs.values())):
            return batch
        batch = copy.copy(batch)
        batch.items = [
            (
                Unshared(function),
                tuple(self._share(value) for value in args),
                {name: self._share(value) for name, value in kwargs.items()},
            )
            for function, args, kwargs in items
        ]
        return batch

    def _share(self, value: Any) -> Any:
        if not _is_large(value):
            return value
        known = self._sent.get(id(value))
        if known is None:
            known = self._sent[id(value)] = (value, self._made.share(value))  # the value is kept: its id stays its own
        return known[1]

    def start_call(self) -> None:
        """A `Parallel` call begins: it is a job of its own, so that nothing is concluded from the calls of another."""
        with self._made._lock:
            shipment, _ = self._made._functions.find(run_batch)
        self._job = Job(self._made._desk, shipment, "joblib")

    def stop_call(self) -> None:
        """It is over."""
        self._sent.clear()
        if self._job is not None:
            self._job.seal()

    def retrieve_result_callback(self, future: MeshFuture[Any]) -> Any:
        """Return what a batch returned, or raise what it raised."""
        return future.result()

    def terminate(self) -> None:
        """The `Parallel` object is done: what was measured of its calls says nothing about the next."""
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the batches of this call, and stop those that run."""
        if self._job is not None:
            self._job.cancel(now=True)

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Nothing is held here while results are waited for."""
        yield


def _is_large(value: Any) -> bool:
    size = getattr(value, "nbytes", 0)
    return isinstance(size, int) and size >= SHARED_BYTES_MIN


class Unshared:
    """Calls a function with what is behind shared arguments; arrays are read-only, as joblib's memory maps are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(
            *(_unshared(value) for value in args), **{name: _unshared(value) for name, value in kwargs.items()}
        )


def _unshared(value: Any) -> Any:
    if not isinstance(value, Shared):
        return value
    value = value.get()
    flags: Any = getattr(value, "flags", None)
    if getattr(flags, "writeable", False):
        with suppress(AttributeError, ValueError):
            flags.writeable = False
    return value


def run_batch(batch: Callable[[], Any]) -> Any:
    """Call a batch, on the node that runs it."""
    return batch()


joblib.register_parallel_backend("p2pc", MeshBackend)
