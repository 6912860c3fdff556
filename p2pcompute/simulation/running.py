"""Runs a study, seed by seed, on any `concurrent.futures` executor.

A seed that fails, or kills its process, costs no other.
"""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import gc
import importlib
import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from p2pcompute.errors import UsageError
from p2pcompute.plots import records
from p2pcompute.simulation.archive import OutputError, code_version, unwritable
from p2pcompute.simulation.result import RunResult, Watch
from p2pcompute.simulation.scenario import EXPERIMENTS, Scenario, load_named, value_text
from p2pcompute.simulation.study import Point, Study

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

IN_FLIGHT_MAX: Final = 1000
"""Runs handed to an executor ahead of their results."""
TICK_S: Final = 0.25
"""How often whoever waits for results is told that time passes."""
PROBLEM_CHARS_MAX: Final = 8000
TRACE_NAME_CHARS_MAX: Final = 120
"""Of the swept values in the name of a trace."""

OpenExecutor = Callable[[], cf.Executor]


# --- one run --------------------------------------------------------------------------------------


def run_one(
    run: str,
    scenario: Scenario,
    seed: int,
    until_s: float | None = None,
    trace: Path | None = None,
    swept: Mapping[str, Any] | None = None,
    *,
    watch: Watch | None = None,
) -> RunResult:
    """Run one seed; whatever is raised is a problem of the result.

    Args:
        run: the experiment's function as ``module:name``, so that a process that knows no other experiments finds it.
        trace: file for the records of the run.
        swept: key → value of the point of a sweep, for the header of that file.

    Raises:
        UsageError: no seed of this scenario can be run: a file that it names is missing or broken.
        OutputError: the trace cannot be written, which says nothing about the seed.
    """
    # Somebody always looks on: that takes events, which are counted.
    onlooker: Any = watch or (Watch() if _meter is None else _MeterWatch(_meter))
    if trace is None:
        return _attempt(run, scenario, seed, until_s, onlooker)
    with _recording(trace, trace_header(scenario, seed, swept or {}), onlooker) as recorder:
        return _attempt(run, scenario, seed, until_s, recorder)


def _attempt(run: str, scenario: Scenario, seed: int, until_s: float | None, onlooker: Any) -> RunResult:
    try:
        result = load_named(run)(scenario, seed, until_s=until_s, watch=onlooker)
        assert isinstance(result, RunResult)
        return result
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a seed that fails must not lose the others
        text = "".join(traceback.format_exception(error))[-PROBLEM_CHARS_MAX:]
        return _failed(scenario, seed, text)


def run_elsewhere(*call: Any) -> dict[str, Any]:
    """As `run_one`, on the computer of somebody who is not believed: what it gives is data, and equal from every node.

    The time that it took is no part of it: the task says that.
    """
    data: dict[str, Any] = msgspec.to_builtins(replace(run_one(*call), wall_s=0.0))
    return data


def _given(future: cf.Future[Any]) -> RunResult:
    """Return the result of a run, wherever it was."""
    value = future.result()
    if isinstance(value, RunResult):
        return value
    info = getattr(future, "info", None)
    return replace(msgspec.convert(value, RunResult), wall_s=(info and info.runtime_s) or 0.0)


def trace_path(folder: Path, point: Point, seed: int) -> Path:
    """Return where the trace of a run is kept under the directory of a study: ``KEY=VALUE_…_seed=N_DIGEST.jsonl``, the
    digest being that of the settings.
    """
    swept = "_".join(f"{key}={value_text(value)}" for key, value in point.swept().items())[:TRACE_NAME_CHARS_MAX]
    words = [re.sub(r"[^\w.=+-]", "-", swept), f"seed={seed}", point.scenario.digest()[:8]]
    return folder / "traces" / f"{'_'.join(word for word in words if word)}.jsonl"


def trace_header(scenario: Scenario, seed: int, swept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first line of the trace of a run of this point of a sweep."""
    code = code_version()
    commit = code.get("commit", "")
    return records.header(version=code["version"], scenario=scenario.name, seed=seed, commit=commit, swept=swept)


@contextlib.contextmanager
def _recording(path: Path, head: records.Record, onlooker: Any) -> Iterator[_Recorder]:
    """While in it, records go to a file, which is there only when it is whole."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            recorder = _Recorder(onlooker, records.Writer(file, head))
            yield recorder
            recorder.close()
        part.replace(path)
    except OSError as error:  # of the file: what the run raises has become a result
        raise unwritable(path.parent.parent, error) from error
    finally:  # also of a run that is interrupted
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class _Recorder:
    """Looks on in front of somebody else, and writes the records down; a `Watch`."""

    def __init__(self, other: Any, writer: records.Writer) -> None:
        self.progress: Callable[[float, float], None] = other.progress
        self._other = other
        self._writer = writer
        self._error: OSError | None = None

    def record(self, record: dict[str, Any]) -> None:
        try:
            if self._error is None:
                self._writer.write(record)
        except OSError as error:  # the simulated nodes must not meet it
            self._error = error
        self._other.record(record)

    def close(self) -> None:
        """Write the rest.

        Raises:
            OSError: the file lacks something.
        """
        if self._error is not None:
            raise self._error
        self._writer.flush()


def _failed(scenario: Scenario, seed: int, problem: str) -> RunResult:
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=int(getattr(scenario.settings, "nodes", 0)),
        trace_hash="",
        events=0,
        messages=0,
        wall_s=0.0,
        simulated_s=0.0,
        metrics={},
        fired={},
        problems=(problem,),
    )


# --- executors ------------------------------------------------------------------------------------

Meter = Any
"""A number of simulated seconds that several processes add to: a multiprocessing Value."""
_meter: Meter | None = None
"""In a process of a pool: the study's."""


class _MeterWatch:
    """Adds the progress of one run to the meter; a `Watch`, whose module only runs need."""

    def __init__(self, meter: Synchronized[float]) -> None:
        self._meter = meter
        self._told_s = 0.0

    def progress(self, simulated_s: float, wall_s: float) -> None:
        with self._meter.get_lock():
            self._meter.value += simulated_s - self._told_s
        self._told_s = simulated_s

    def record(self, record: dict[str, Any]) -> None:
        pass


class InProcess(cf.Executor):
    """Runs calls at once, in this thread.

    Args:
        watch: looks on.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch
        freeze_imports()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        future: cf.Future[Any] = cf.Future()
        future.set_result(fn(*args, watch=self._watch, **kwargs))
        return future


def _prepare(meter: Meter) -> None:
    """Set up a process of the pool: SIGTERM ends it, and it ends with its parent."""
    global _meter
    _meter = meter
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="parent").start()
    freeze_imports()


def freeze_imports() -> None:
    """Let collections pass over what every run needs: to look through it each time takes a seventh of a short seed."""
    importlib.import_module("p2pcompute.simulation.mesh_run")
    gc.collect()
    gc.freeze()


def make_meter() -> Meter:
    """Return a meter for `open_pool`; its `value` is in simulated seconds."""
    return multiprocessing.get_context("spawn").Value("d", 0.0)


def open_pool(jobs: int, meter: Meter) -> cf.ProcessPoolExecutor:
    """Return a pool of `jobs` fresh processes."""
    context = multiprocessing.get_context("spawn")
    return _Pool(jobs, mp_context=context, initializer=_prepare, initargs=(meter,))


class _Pool(cf.ProcessPoolExecutor):
    """Its processes get no Ctrl-C, the parent's matter, and no SIGTERM before they are set up: they would print
    where it met them, or die while others are started, which the pool does not bear.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        both = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, both)  # inherited by what is started here
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(executor: cf.Executor) -> None:
    """Give up what an executor has not done."""
    processes = list((getattr(executor, "_processes", None) or {}).values())
    for process in processes:  # its own shutdown waits for the runs under way
        process.terminate()
    executor.shutdown(wait=bool(processes), cancel_futures=True)


# --- a study --------------------------------------------------------------------------------------


def run_study(
    study: Study,
    open_executor: OpenExecutor,
    *,
    in_flight: int = IN_FLIGHT_MAX,
    on_result: Callable[[Point, RunResult], object] | None = None,
    on_tick: Callable[[], object] | None = None,
    on_stop: Callable[[], bool] | None = None,
    is_elsewhere: bool = False,
) -> None:
    """Run what `study` lacks.  Ctrl-C stops it and keeps what is done: see `is_interrupted`.

    Args:
        open_executor: `MeshExecutor`, a partial of `open_pool`, …; called again when an executor breaks.
        in_flight: runs that it is given at once.
        on_result: called with each result as it comes, in this thread.
        on_tick: called at least every TICK_S, or as often as there are results; what it raises stops the study.
        on_stop: for runs in other places: called when Ctrl-C came while some are under way; returns whether they may
            end, which a second Ctrl-C ends.  What has not begun is given up at once.
        is_elsewhere: the executor's calls run on other computers, whose results may be compared with one another.

    Raises:
        UsageError: the scenario cannot be run.
        OutputError: a trace cannot be written.
    """
    rounds = _Rounds(study, open_executor, in_flight, on_result, on_tick, on_stop, is_elsewhere)
    # Seeds in turn over the points: what is done when it is stopped compares all of them.
    left = [(point, seed) for seed in study.seeds for point in study.points if seed not in point.results]
    try:
        while left and not study.is_interrupted:
            lost, left = rounds.run(left)
            for one in lost:  # whichever of them killed its process does so again, alone
                if not study.is_interrupted and rounds.run([one])[0]:
                    point, seed = one
                    problem = "lost: the process that ran it died, twice (out of memory?)"
                    rounds.take(point, _failed(point.scenario, seed, problem))
    except KeyboardInterrupt:  # between two rounds
        study.is_interrupted = True
    finally:
        _remove_drafts(study)


def _remove_drafts(study: Study) -> None:
    """Remove traces that are not whole: a process that is stopped, or dies, leaves that of its run."""
    if study.traces is not None:
        for draft in (study.traces / "traces").glob("*.part"):
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


_Work = list[tuple[Point, int]]


@dataclass(slots=True)
class _Rounds:
    """Runs work on one executor after the other."""

    study: Study
    open_executor: OpenExecutor
    in_flight: int
    on_result: Callable[[Point, RunResult], object] | None
    on_tick: Callable[[], object] | None
    on_stop: Callable[[], bool] | None
    is_elsewhere: bool
    pending: dict[cf.Future[Any], tuple[Point, int]] = field(default_factory=dict)
    """Runs that an executor has."""

    def take(self, point: Point, result: RunResult) -> None:
        point.results[result.seed] = result
        if self.on_result is not None:
            self.on_result(point, result)

    def run(self, work: _Work) -> tuple[_Work, _Work]:
        """Run until all is done or the executor breaks; return what was lost with it, and what was not begun."""
        executor = self.open_executor()
        try:
            lost, left = self._run(executor, work)
            executor.shutdown(wait=True)
        except KeyboardInterrupt:
            self.study.is_interrupted = True
            if self.pending and self.on_stop is not None:
                self._finish(executor, self.on_stop)
            else:
                _stop(executor)
            return [], []
        except BaseException:
            _stop(executor)
            raise
        return lost, left

    def _finish(self, executor: cf.Executor, on_stop: Callable[[], bool]) -> None:
        """Let runs in other places end and take what they gave, unless they are not to be waited for."""
        try:
            executor.shutdown(wait=False, cancel_futures=True)
            if not on_stop():
                raise KeyboardInterrupt
            while self.pending:
                done, _ = cf.wait(self.pending, TICK_S, cf.FIRST_COMPLETED)
                for future in done:
                    point, _seed = self.pending.pop(future)
                    if not future.cancelled() and future.exception() is None:
                        self.take(point, _given(future))
            executor.shutdown(wait=True)
        except KeyboardInterrupt as error:
            executor.__exit__(KeyboardInterrupt, error, None)

    def _run(self, executor: cf.Executor, work: _Work) -> tuple[_Work, _Work]:
        run = EXPERIMENTS[self.study.scenario.experiment].run
        call: Callable[..., Any] = run_elsewhere if self.is_elsewhere else run_one
        left, lost = deque(work), list[tuple[Point, int]]()
        pending = self.pending = {}
        while left or pending:
            if self.on_tick is not None:
                self.on_tick()
            while left and len(pending) < self.in_flight and not lost:
                if self.on_tick is not None:
                    self.on_tick()
                point, seed = left[0]
                trace = self.study.traces and trace_path(self.study.traces, point, seed)
                try:
                    future = executor.submit(call, run, point.scenario, seed, self.study.until_s, trace, point.swept())
                except (cf.BrokenExecutor, BrokenPipeError):  # the latter: a process died while it was started
                    if not pending:
                        return [left.popleft()], list(left)
                    break
                pending[future] = left.popleft()
                if future.done():
                    break
            if not pending:
                break
            done, _ = cf.wait(pending, TICK_S, cf.FIRST_COMPLETED)
            for future in [one for one in pending if one in done]:
                point, seed = pending.pop(future)
                try:
                    result = _given(future)
                except cf.BrokenExecutor:
                    lost.append((point, seed))
                except (UsageError, OutputError):
                    raise
                except Exception as error:  # noqa: BLE001 - the executor could not run this one; the others count
                    self.take(point, _failed(point.scenario, seed, f"lost: {type(error).__name__}: {error}"))
                else:
                    self.take(point, result)
        return lost, list(left)
