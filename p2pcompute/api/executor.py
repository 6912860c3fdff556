"""The executor: `concurrent.futures` over the mesh."""

from __future__ import annotations

import concurrent.futures as cf
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from p2pcompute.api.detached import DetachedJob, KeptCalls
from p2pcompute.api.embedded import check_group
from p2pcompute.api.feed import Feed
from p2pcompute.api.functions import Functions, name_of
from p2pcompute.api.futures import MeshFuture, OpenJob
from p2pcompute.api.job_status import Progress
from p2pcompute.api.jobs import Job
from p2pcompute.api.maps import Mapping
from p2pcompute.api.nodes import NodeInfo, find_nodes, known_nodes, seconds, wait_for_node
from p2pcompute.api.options import EmbeddedOptions, TaskOptions
from p2pcompute.api.pickling import dump_call, dump_value
from p2pcompute.api.presence import AWAY_S
from p2pcompute.api.result_folder import ResultFolder, results_target
from p2pcompute.api.sending import Core, Sender
from p2pcompute.errors import BadValue, UsageError
from p2pcompute.execution.calls import Shared, Spread
from p2pcompute.places import find_paths

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class MeshExecutor(Sender, cf.Executor):
    """A drop-in `concurrent.futures.Executor`.

    When this machine's node runs (`p2pc node start`) calls run on it and on all members of its group; without one they
    run on this machine, in worker processes of their own.  A call that has raised is not repeated unless
    `TaskOptions.retries` says so; one whose node or process is lost is.

    Args:
        group: which group, when this machine is in several; None: the one in use.
        max_workers: worker processes of this executor; None: one a core, or none where this machine's node has them;
            0: only submit, to other nodes.
        local: stay on this machine, even when its node runs.
        name: shown to people, on other nodes too.
        options: of all tasks; `with_options` changes them.
        progress: what shows where a `Job` or `map` of this executor is: as for `Job.wait`, but "auto" shows no `map`.
        results: a folder, or a .jsonl, .csv or .tsv file, that gets each call's value, output and files as it ends, in
            the format of `p2pc run --results`.
        resume: calls that are done in that folder are not made again: they are known by function, arguments and sent
            files, in whatever order.  Failed ones are made again.
        detach: this machine's node keeps the calls: they go on when the program ends, and `get_job` finds them.
            `shutdown`, or the end of `with`, waits until the node has them, not until they are done.  Ctrl-C in `with`
            leaves them to the node, and says how to end them.
        patience: with `detach`: how long futures wait for a node that does not answer (it may be restarting), in
            seconds or like "2h"; None: an hour.

    Raises:
        BadValue: an argument cannot mean anything.
        UsageError: there are other results in that place, or there is no such group here.
    """

    def __init__(
        self,
        group: str | None = None,
        *,
        max_workers: int | None = None,
        local: bool = False,
        name: str | None = None,
        options: TaskOptions | None = None,
        progress: Progress = "auto",
        results: str | os.PathLike[str] | None = None,
        resume: bool = False,
        detach: bool = False,
        patience: float | str | None = None,
    ) -> None:
        _check_group_name(group)
        if max_workers is not None and (type(max_workers) is not int or max_workers < 0):
            raise BadValue(f"max_workers={max_workers!r} cannot be used", "it is a count from 0", "change it")
        if local and max_workers == 0:
            raise BadValue("an executor that stays local needs workers", "max_workers is 0", "leave one of both out")
        if patience is not None and not detach:
            raise BadValue("patience goes with detach", "other calls end with this program", "leave it out")
        if resume and results is None:
            raise UsageError("resume needs to know what was done", "results= is not given", 'add results="out"')
        chosen = EmbeddedOptions(worker_count=max_workers, is_local=local, name=name or "", group=group)
        check_group(chosen)
        target = None if results is None else results_target(results, resume=resume)
        if detach:
            _check_detached(chosen)
            away_s = AWAY_S if patience is None else seconds("patience", patience)
            kept = KeptCalls(find_paths(os.environ, group=group).socket, target, away_s)
            core = Core(replace(chosen, worker_count=0), None, progress, kept)
        else:
            core = Core(chosen, None if target is None else ResultFolder(target, name or ""), progress)
        self._begin(core, options or TaskOptions())

    # --- calls ------------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> MeshFuture[R]:
        """Hand a call in and return its future.

        Arguments may be, or hold, futures of this executor: the call is made with their values once they are there, and
        fails with `InputFailed` when one of them fails.  Values go from task to task; nothing is unpickled here.

        Raises:
            RuntimeError: after `shutdown`.
            UsageError: the function or an argument cannot be sent; the message names what is to blame.
        """
        self._check_open()
        with self._lock:
            shipment, beside = self._functions.find(fn)
        if self._is_noted:
            return self._send_noted(shipment, shipment, beside, fn, args, kwargs)
        data, parts = dump_call((beside, *args) if beside else args, kwargs, shipment.zipped_names)
        return self._send(shipment, data, parts)

    def share(self, obj: T) -> Shared[T]:
        """Return a stand-in for an object that many calls use.

        As an argument of calls it travels once to each node, and a worker process unpickles it once.  Calls get the
        object by its `get()`.

        Raises:
            UsageError: it cannot be pickled.
        """
        self._check_open()
        if self._core.kept is not None:
            raise UsageError("a detached executor shares nothing", "its node keeps each call by itself", "give values")
        ref = self._node.blobs().put_now(dump_value(obj), pin=True)
        shared = Shared(obj, self._desk, ref)
        self._desk.flow.drop_with(shared, ref)
        return shared

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 0,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call `fn` for the items of the iterables, in parallel; yield the results in their order.

        Lazy: items are taken from the iterables as results are taken from the iterator, so the iterables may be
        endless and need not fit the memory.  Where it is known how many there are (lists, ranges) `shutdown`, or the
        end of the `with` block, hands in those that are left, and the results can still be taken afterwards.

        Args:
            timeout: seconds from now after which waiting for a result raises TimeoutError.
            chunksize: calls in one task; 0: chosen from how long the calls take.
            buffersize: at most so many items are taken ahead of the results; None: chosen as above.

        Raises:
            BadValue: a number is out of its range.
            Exception: (while iterating) what a call raised; the results before it are yielded first.
            RuntimeError: (while iterating) after `shutdown`, when items had to be taken for more results.
        """
        mapping: Mapping[R] = self._mapping(
            fn, iterables, timeout_s=timeout, chunk_count=chunksize, buffer_count=buffersize
        )
        return mapping.results()

    def _mapping(
        self,
        fn: Callable[..., R],
        iterables: tuple[Iterable[Any], ...],
        *,
        timeout_s: float | None = None,
        chunk_count: int,
        buffer_count: int | None,
        is_ordered: bool = True,
        on_ended: Callable[[], None] | None = None,
    ) -> Mapping[R]:
        """Begin a map; see `map` and `Mapping`."""
        self._check_open()
        if not iterables:
            raise UsageError("map needs something to map over", "there is no iterable", "give one")
        if type(chunk_count) is not int or chunk_count < 0:
            raise BadValue(f"chunksize={chunk_count!r} cannot be used", "it is a count from 0", "change it")
        if buffer_count is not None and (type(buffer_count) is not int or buffer_count < 1):
            raise BadValue(f"buffersize={buffer_count!r} cannot be used", "it is a count from 1", "change it")
        return Mapping(
            self,
            fn,
            iterables,
            timeout_s=timeout_s,
            chunk_count=chunk_count,
            buffer_count=buffer_count,
            is_ordered=is_ordered,
            on_ended=on_ended,
        )

    def starmap(self, fn: Callable[..., R], iterable: Iterable[Sequence[Any]], **options: Any) -> Iterator[R]:
        """Call `fn` with the items of each row; otherwise as `map` (`timeout`, `chunksize`, `buffersize`)."""
        return self.map(Spread(fn), iterable, **options)

    def start_map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        options: TaskOptions | None = None,
        name: str | None = None,
    ) -> Job[R]:
        """Start a job of one call per item and return its handle at once.

        The iterables are read to their end; see `map` for endless ones.
        """
        self._check_open()
        functions = self._functions if options is None else Functions(options)
        with self._lock:
            shipment, beside = functions.find(fn)
        name, kept = name or name_of(fn), self._core.kept
        job: Job[R]
        if kept is None:
            job = Job(self._desk, shipment, name, progress=self._core.progress)
            target: OpenJob | Feed = job.open_job
        else:
            target = kept.feed(replace(shipment, name=name))
            job = DetachedJob(self._desk, shipment, name, target, self._core.progress)
        is_noted = self._core.is_noted or shipment.options.has_files
        with job.being_filled():
            for args in zip(*iterables, strict=False):
                if is_noted:
                    job.add(self._send_noted(target, shipment, beside, fn, args, {}))
                    continue
                data, parts = dump_call((beside, *args) if beside else args, {}, shipment.zipped_names)
                job.add(self._send(job.open_job, data, parts))
        return job

    def with_options(self, **changes: Any) -> MeshExecutor:
        """Return an executor on the same node whose tasks run with other options; shutting down either ends both.

        Raises:
            UsageError: there is no such option, or its value cannot be used.
        """
        return self.with_task_options(self._options.changed(**changes))

    def with_task_options(self, options: TaskOptions) -> MeshExecutor:
        """Return an executor on the same node whose tasks run with these options."""
        other = MeshExecutor.__new__(MeshExecutor)
        other._begin(self._core, options)
        return other

    # --- state ------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        options = self._core.node.options
        where = "alone" if options.is_local else f"group {options.group}" if options.group else "this machine's group"
        return f"<MeshExecutor: {'closed' if self.is_closed else 'open'}, {where}>"

    @property
    def _max_workers(self) -> int:
        """Tasks that run at once, as far as known: how others (Dask) ask an executor for it."""
        return self._node.slot_count()

    # --- nodes ------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Sequence[NodeInfo]:
        """The nodes that may run tasks, this one first, with what is known of them; nobody is asked."""
        return self._node.ask_of_members(known_nodes)

    def find(
        self,
        expr: str,
        *,
        max_answers: int = 20,
        max_time: float | str = 2.0,
        max_age: float | str = 60.0,
        rank: str | None = None,
    ) -> Sequence[NodeInfo]:
        """Return nodes of which an expression is true, like ``mem.free>=8GiB && has=ffmpeg``.

        Args:
            expr: condition over ``node.*``, as CEL or in shorthand.  What a node does not know of itself is unknown,
                not false: such a node is not returned.  A name that no node has is warned about.
            max_answers: at most so many.
            max_time: how long nodes are asked, in seconds or like "2s".
            max_age: how old what is known of a node may be; with 0 everybody is asked.
            rank: expression; everybody is asked while there is time, and the nodes with the highest values come,
                highest first.

        Raises:
            UsageError: not an expression; the message points at the column.
        """
        if type(max_answers) is not int or max_answers < 1:
            raise BadValue(f"max_answers={max_answers!r} cannot be used", "it is a count from 1", "change it")
        time_s, age_s = seconds("max_time", max_time), seconds("max_age", max_age)
        found, notes = self._node.ask_of_members(
            lambda node: find_nodes(node, expr, rank=rank, answers_max=max_answers, time_s=time_s, age_s=age_s)
        )
        for note in notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        return found

    def when(self, expr: str, *, timeout: float | str | None = None) -> NodeInfo:
        """Wait until an expression is true of some node, and return it.

        Args:
            expr: as for `find`.
            timeout: seconds, or text like "1h"; None: for ever.

        Raises:
            TimeoutError: it was true of none.
            UsageError: not an expression; the message points at the column.
        """
        timeout_s = None if timeout is None else seconds("timeout", timeout)
        return self._node.ask(lambda node: wait_for_node(node, expr, timeout_s))

    # --- end --------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.  May be called again.

        Args:
            wait: return when all calls have ended and everything of the node is gone; else at once, and that
                happens behind.
            cancel_futures: calls that have not started are cancelled.
        """
        self._desk.check_process()
        self._core.close(cancel=cancel_futures, kill=False)
        if self._core.kept is not None:
            self._core.kept.flush(cancel=cancel_futures)
        if wait:
            try:
                self._node.join()
            except KeyboardInterrupt:
                self._interrupt()
                raise

    def _interrupt(self) -> None:
        """Stop everything now; what this machine's node keeps goes on."""
        self._core.close(cancel=True, kill=True)
        if self._core.kept is not None:
            self._core.kept.leave()
        self._node.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all calls; interrupted from the keyboard: stop them, or leave them to the node that keeps them."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._interrupt()
        else:
            self.shutdown(wait=True)


def _check_detached(options: EmbeddedOptions) -> None:
    """Raises BadValue for what cannot be had from calls that another process keeps."""
    for name, is_given in (("max_workers", options.worker_count is not None), ("local", options.is_local)):
        if is_given:
            raise BadValue(f"{name} does not go with detach", "this machine's node runs the calls", "leave it out")


def _check_group_name(group: object) -> None:
    """Raises BadValue for what is no name: executors of `concurrent.futures` have their number of workers there."""
    if group is not None and not isinstance(group, str):
        fix = f"MeshExecutor(max_workers={group!r})" if isinstance(group, int) else "change it"
        raise BadValue(f"group={group!r} cannot be used", "it is the name of a group", fix)
