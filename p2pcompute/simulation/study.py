"""A study: one scenario for many seeds and swept values, on any `concurrent.futures` executor, and its summary.

A run is a pure function of (code, settings, seed), so runs need nothing of one another, may go anywhere, and need not
be repeated: `Archive` keeps what is done in a directory.  A seed that fails, or kills its process, costs no other.

Source: Student's t-interval over seeds; its quantiles by Fisher's expansion (Abramowitz and Stegun 26.7.5).
"""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

import p2pcompute
from p2pcompute.errors import StoreError, UsageError
from p2pcompute.simulation import records
from p2pcompute.simulation.scenario import EXPERIMENTS, Scenario, load_named, value_at, with_values

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    from p2pcompute.simulation.world import RunResult, Watch

SCHEMA: Final = "p2pc.sim/1"
RUN_SCHEMA: Final = "p2pc.sim-run/1"
POINTS_MAX: Final = 10_000
IN_FLIGHT_MAX: Final = 1000
"""Runs handed to an executor ahead of their results."""
TICK_S: Final = 0.25
"""How often whoever waits for results is told that time passes."""
PROBLEM_CHARS_MAX: Final = 8000
TRACE_NAME_CHARS_MAX: Final = 120
"""Of the swept values in the name of a trace."""

OpenExecutor = Callable[[], cf.Executor]


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of swept values."""

    values: Mapping[str, str]
    """Key → value, as typed; empty without a sweep."""
    scenario: Scenario
    results: dict[int, RunResult] = field(default_factory=dict)
    """By seed."""

    def swept(self) -> dict[str, Any]:
        """Key → value as the settings have it."""
        return {key: value_at(self.scenario, key) for key in self.values}


@dataclass(slots=True)
class Study:
    """What was run, and what it gave so far."""

    scenario: Scenario
    seeds: Sequence[int]
    points: list[Point]
    until_s: float | None = None
    traces: Path | None = None
    """Directory for a trace of each run; None: none is written."""
    is_interrupted: bool = False
    """Some runs are missing."""

    def failed(self) -> list[tuple[Point, RunResult]]:
        """Runs with problems, by point and seed."""
        return [
            (point, point.results[seed])
            for point in self.points
            for seed in self.seeds
            if seed in point.results and point.results[seed].problems
        ]


def plan_study(scenario: Scenario, seeds: Sequence[int], sweep: Mapping[str, Sequence[str]]) -> Study:
    """Return the study of every seed at every combination of the swept values; nothing has run yet.

    Raises:
        UsageError: a key, a value or a file that is named is wrong, or they are too many.
    """
    count = math.prod(len(values) for values in sweep.values())
    if count > POINTS_MAX:
        raise UsageError(f"a sweep of {count} combinations is too much", f"at most {POINTS_MAX}", "sweep fewer values")
    combinations = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    points = [Point(values, with_values(scenario, values, flag="--sweep")) for values in combinations]
    checked: dict[tuple[str, ...], None] = {}
    for point in points:
        if (files := tuple(point.scenario.files())) not in checked:
            checked[files] = None
            point.scenario.check_files()
    return Study(scenario, seeds, points)


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
    from p2pcompute.simulation.world import Watch

    # Somebody always looks on: that takes events, which are counted.
    onlooker: Any = watch or (Watch() if _meter is None else _MeterWatch(_meter))
    if trace is None:
        return _attempt(run, scenario, seed, until_s, onlooker)
    with _recording(trace, trace_header(scenario, seed, swept or {}), onlooker) as recorder:
        return _attempt(run, scenario, seed, until_s, recorder)


def _attempt(run: str, scenario: Scenario, seed: int, until_s: float | None, onlooker: Any) -> RunResult:
    from p2pcompute.simulation.world import RunResult

    try:
        result = load_named(run)(scenario, seed, until_s=until_s, watch=onlooker)
        assert isinstance(result, RunResult)
        return result
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a seed that fails must not lose the others
        text = "".join(traceback.format_exception(error))[-PROBLEM_CHARS_MAX:]
        return _failed(scenario, seed, text)


def trace_path(folder: Path, point: Point, seed: int) -> Path:
    """Return where the trace of a run is kept under the directory of a study: ``KEY=VALUE_…_seed=N_DIGEST.jsonl``, the
    digest being that of the settings.
    """
    swept = "_".join(f"{key}={value}" for key, value in point.swept().items())[:TRACE_NAME_CHARS_MAX]
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
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _unwritable(path.parent.parent, error) from error


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
    from p2pcompute.simulation.world import RunResult

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
        _freeze()

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
    _freeze()


def _freeze() -> None:
    """Let collections pass over what every run needs: to look through it each time takes 6 % of a short seed."""
    importlib.import_module("p2pcompute.simulation.world")
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
) -> None:
    """Run what `study` lacks.  Ctrl-C stops it and keeps what is done: see `is_interrupted`.

    Args:
        open_executor: `MeshExecutor`, a partial of `open_pool`, …; called again when an executor breaks.
        in_flight: runs that it is given at once.
        on_result: called with each result as it comes, in this thread.
        on_tick: called at least every TICK_S, or as often as there are results; what it raises stops the study.

    Raises:
        UsageError: the scenario cannot be run.
        OutputError: a trace cannot be written.
    """
    rounds = _Rounds(study, open_executor, in_flight, on_result, on_tick)
    left = [(point, seed) for point in study.points for seed in study.seeds if seed not in point.results]
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


_Work = list[tuple[Point, int]]


@dataclass(slots=True)
class _Rounds:
    """Runs work on one executor after the other."""

    study: Study
    open_executor: OpenExecutor
    in_flight: int
    on_result: Callable[[Point, RunResult], object] | None
    on_tick: Callable[[], object] | None

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
            _stop(executor)
            return [], []
        except BaseException:
            _stop(executor)
            raise
        return lost, left

    def _run(self, executor: cf.Executor, work: _Work) -> tuple[_Work, _Work]:
        run = EXPERIMENTS[self.study.scenario.experiment].run
        left, lost = deque(work), list[tuple[Point, int]]()
        pending: dict[cf.Future[RunResult], tuple[Point, int]] = {}
        while left or pending:
            if self.on_tick is not None:
                self.on_tick()
            while left and len(pending) < self.in_flight and not lost:
                if self.on_tick is not None:
                    self.on_tick()
                point, seed = left[0]
                trace = self.study.traces and trace_path(self.study.traces, point, seed)
                try:
                    future = executor.submit(
                        run_one, run, point.scenario, seed, self.study.until_s, trace, point.swept()
                    )
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
                    result = future.result()
                except cf.BrokenExecutor:
                    lost.append((point, seed))
                except (UsageError, OutputError):
                    raise
                except Exception as error:  # noqa: BLE001 - the executor could not run this one; the others count
                    self.take(point, _failed(point.scenario, seed, f"lost: {type(error).__name__}: {error}"))
                else:
                    self.take(point, result)
        return lost, list(left)


# --- keeping --------------------------------------------------------------------------------------


@functools.cache
def code_version() -> dict[str, str]:
    """Return what the code is: `version`, `digest` (SHA-256 of all modules, first 16 digits), `python`, and in a source
    tree under git `commit`, with a + when there are changes beyond it.
    """
    root = Path(p2pcompute.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    found = {
        "version": p2pcompute.__version__,
        "digest": digest.hexdigest()[:16],
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    if (root.parent / ".git").exists():
        commit = _git(root.parent, "rev-parse", "--short=12", "HEAD")
        if commit:
            found["commit"] = commit + ("+" if _git(root.parent, "status", "--porcelain", "--", root.name) else "")
    return found


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class OutputError(StoreError):
    """The directory of results cannot be written.  What it holds already stays."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While in it, no other process writes results to this directory.  The system lets go of it when a process dies.

    Raises:
        UsageError: another process does, or the directory cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            why = "another p2pc sim run keeps its results there"
            raise UsageError(f"{folder} is in use", why, "wait for it, or name another: -o DIR") from error
        yield
    finally:
        os.close(handle)


class Archive:
    """Results in `runs.jsonl` of a directory, a line for each run.

    A line counts again for the same settings, seed, bound and code.  Lines of other code stay and are not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "runs.jsonl"
        self._found: dict[tuple[object, ...], RunResult] = {}
        self._counts: Counter[str] = Counter()
        """Lines by scenario."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = self._path.read_bytes() if self._path.exists() else b""
            if data and not data.endswith(b"\n"):  # cut off in the middle of a line
                data = data[: data.rfind(b"\n") + 1]
                self._path.write_bytes(data)
            self._path.open("ab").close()  # what cannot be written later is said now
        except OSError as error:
            raise _unusable(folder, error) from error
        for number, line in enumerate(data.splitlines(), 1):
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        from p2pcompute.simulation.world import RunResult

        try:
            data = json.loads(line)
            if data["schema"] != RUN_SCHEMA:
                raise ValueError(f"its schema is not {RUN_SCHEMA}")
            result = msgspec.convert(data["run"], RunResult)
            key = (data["digest"], data["code"]["digest"], data["code"]["python"], data["until_s"], result.seed)
            self._found[key] = result
            self._counts[result.scenario] += 1
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(
                f"{self._path}, line {number}: not a result of a simulation",
                why,
                "remove that line, or choose another directory: -o DIR",
            ) from error

    def check(self, study: Study) -> None:
        """Raises UsageError when the directory holds results of another scenario; they are named."""
        others = {name: count for name, count in sorted(self._counts.items()) if name != study.scenario.name}
        if others:
            found = ", ".join(f"{count} of {name}" for name, count in others.items())
            raise UsageError(
                f"{self.folder} holds runs of another scenario than {study.scenario.name}",
                f"runs in {self._path.name}: {found}",
                "choose another directory: -o DIR",
            )

    def fill(self, study: Study) -> int:
        """Put what is kept into a study; returns how many results that are."""
        count = 0
        code = code_version()
        for point in study.points:
            shared = (point.scenario.digest(), code["digest"], code["python"], study.until_s)
            for seed in study.seeds:
                found = self._found.get((*shared, seed))
                if found is not None:
                    point.results[seed] = found
                    count += 1
        return count

    def keep(self, study: Study, point: Point, result: RunResult) -> None:
        """Append a result.

        Raises:
            OutputError: it cannot be written.
        """
        if any(problem.startswith("lost: ") for problem in result.problems):
            return  # the machine's failure, not the seed's
        line = {
            "schema": RUN_SCHEMA,
            "digest": point.scenario.digest(),
            "code": code_version(),
            "until_s": study.until_s,
            "set": dict(point.values),
            "run": asdict(result),
        }
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def write(self, name: str, text: str) -> Path:
        """Write a file beside the results, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.folder / name
        try:
            path.with_name(f".{name}.part").write_text(text, encoding="utf-8")
            path.with_name(f".{name}.part").replace(path)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return path

    def remove(self, name: str) -> None:
        """Remove a file beside the results, if it is there.

        Raises:
            OutputError: it cannot be removed.
        """
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


def _unusable(folder: Path, error: OSError) -> UsageError:
    """The directory is of no use from the start."""
    return UsageError(f"no results can be kept in {folder}", *_why_and_fix(error))


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder} cannot be used", *_why_and_fix(error), code="output")


def _why_and_fix(error: OSError) -> tuple[str, str]:
    why = "it is a file, or there is a file on the way to it" if isinstance(error, _NO_FOLDER) else error.strerror
    return why or str(error), "choose another directory: -o DIR"


_NO_FOLDER: Final = (FileExistsError, NotADirectoryError)


# --- summing up -----------------------------------------------------------------------------------

_T975: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 % for 1 to 9 degrees of freedom; the expansion is exact to 0.001 from there on."""


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean, low and high of a 95 % t-interval; of one value all three are that value."""
    mean = statistics.fmean(values)
    freedom = len(values) - 1
    if not freedom:
        return {"mean": mean, "low": mean, "high": mean}
    z = statistics.NormalDist().inv_cdf(0.975)
    t = (
        _T975[freedom - 1]
        if freedom <= len(_T975)
        else z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


SHARES: Final = (
    "idle_while_work_share", "lookup_recall", "lookup_share", "lookup_success", "query_stale", "query_success",
    "read_success", "recall", "record_share", "success", "up_share", "utilisation",
)  # fmt: skip
"""Figures that lie between 0 and 1."""


def bounded(name: str, found: Mapping[str, float], values: Sequence[float]) -> dict[str, float]:
    """Cut an interval to what a figure can be: a share lies from 0 to 1, nothing falls below 0 that never did."""
    base = name[:-4] if name[-4:] in ("_p50", "_p95", "_max") else name
    low = max(0.0, found["low"]) if min(values) >= 0 else found["low"]
    high = min(1.0, found["high"]) if base in SHARES and max(values) <= 1 else found["high"]
    return {"mean": found["mean"], "low": low, "high": high}


def is_interval(found: Mapping[str, float], seeds: Sequence[int]) -> bool:
    """Whether a figure of a summary over these seeds has an interval: one value has none, its low and high are it."""
    return found.get("count", len(seeds)) > 1


def summary(study: Study) -> dict[str, Any]:
    """Return the p2pc.sim/1 document: of the one point, or with `points` of each of several."""
    if len(study.points) == 1 and not study.points[0].values:
        return {"schema": SCHEMA, **_point_summary(study, study.points[0])}
    shared = {"schema": SCHEMA, "scenario": study.scenario.name, "seeds": list(study.seeds), "code": code_version()}
    points = [{"set": point.swept(), **_point_summary(study, point)} for point in study.points]
    return {**shared, "points": points}


def _point_summary(study: Study, point: Point) -> dict[str, Any]:
    results = [point.results[seed] for seed in study.seeds if seed in point.results]
    hashes = [result.trace_hash for result in results]
    names = sorted({name for result in results for name in result.metrics})
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(result.fired)
    metrics = {}
    for name in names:
        values = [result.metrics[name] for result in results if math.isfinite(result.metrics.get(name, math.nan))]
        if values:
            metrics[name] = bounded(name, interval(values), values)
            if len(values) != len(results):  # some seeds have no such figure
                metrics[name]["count"] = len(values)
    return {
        "scenario": study.scenario.name,
        "seeds": [result.seed for result in results],
        "nodes": int(getattr(point.scenario.settings, "nodes", 0)),
        "trace_hash": hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "events": sum(result.events for result in results),
        "messages": sum(result.messages for result in results),
        "wall_s": round(sum(result.wall_s for result in results), 3),
        "simulated_s": round(sum(result.simulated_s for result in results), 6),
        "metrics": metrics,
        "fired": dict(sorted(fired.items())),
        "problems": [{"seed": result.seed, "problems": list(result.problems)} for result in results if result.problems],
        "notes": dict(Counter(note for result in results for note in result.notes)),
        "code": code_version(),
    }


TRACE_VALUES: Final = {
    "population.sessions": "none",
    "population.classes": "[]",
    "population.correlation": "0",
    "population.day_amplitude": "0",
}
"""What ``--trace`` sets besides the trace of availability, which takes the place of it."""


def replay_command(scenario: Scenario, seed: int, values: Mapping[str, str], until_s: float | None = None) -> str:
    """Return the command that runs one seed again, with these settings changed; the last name of a key counts."""
    flags = {"nodes": "--nodes", "hours": "--hours", "population.trace": "--trace"}
    implied = TRACE_VALUES if "population.trace" in values else {}
    words = ["p2pc", "sim", "run", scenario.source, "--seed", str(seed)]
    last = {scenario.keys.get(key, key): key for key in values}
    for key, value in values.items():
        if implied.get(key) == value or last[scenario.keys.get(key, key)] != key:
            continue
        words += [flags[key], value] if key in flags else ["--set", f"{key}={value}"]
    return shlex.join([*words, *(() if until_s is None else ("--until", f"{until_s:g}"))])
