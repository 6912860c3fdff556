"""Studies: seeds that fail, processes that die and people who interrupt lose nothing else; sums are right."""

from __future__ import annotations

import concurrent.futures as cf
import errno
import functools
import io
import json
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcompute.errors import UsageError
from p2pcompute.execution.codec import decode, encode
from p2pcompute.plots import records
from p2pcompute.simulation.archive import Archive, OutputError, alone_in, code_version
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.running import InProcess, make_meter, open_pool, run_study
from p2pcompute.simulation.scenario import Scenario, load_scenario, with_values
from p2pcompute.simulation.study import POINTS_MAX, Point, Study, plan_study
from p2pcompute.simulation.summary import bounded, interval, replay_command, summary
from tests.simulation import tiny

assert tiny.GUILTY  # registers the experiment


pytestmark = pytest.mark.usefixtures("pool_tracker")


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "tiny.toml"
    path.write_text('question = "Does it?"\nexperiment = "tiny"\nbad_seeds = [2, 5]\n')
    return load_scenario(str(path))


def study_of(
    scenario: Scenario, seeds: Sequence[int] = range(4), sweep: Mapping[str, Sequence[str]] | None = None, **values: str
) -> Study:
    return plan_study(with_values(scenario, values), seeds, sweep or {})


def seeds_of(study: Study) -> list[int]:
    return sorted(study.points[0].results)


# --- running --------------------------------------------------------------------------------------


def test_a_seed_that_raises_fails_alone(scenario: Scenario) -> None:
    study = study_of(scenario, mode="raise")
    run_study(study, InProcess)
    assert seeds_of(study) == [0, 1, 2, 3]
    [(_, failed)] = study.failed()
    assert failed.seed == 2 and "seed 2 cannot be run" in failed.problems[0]


def test_a_process_that_dies_takes_only_its_own_seed_along(scenario: Scenario) -> None:
    study = study_of(scenario, seeds=range(5), mode="die")
    meter = make_meter()
    run_study(study, functools.partial(open_pool, 2, meter), in_flight=3)
    assert seeds_of(study) == list(range(5))
    [(_, failed)] = study.failed()
    assert failed.seed == 2 and "the process that ran it died" in failed.problems[0]
    assert meter.value >= 4 * 360.0


def test_results_do_not_depend_on_where_they_were_computed(scenario: Scenario) -> None:
    here, threads, processes = (study_of(scenario, mode="fail", sweep={"loss": ["0", "0.5"]}) for _ in range(3))
    run_study(here, InProcess)
    run_study(threads, functools.partial(cf.ThreadPoolExecutor, 3))
    run_study(processes, functools.partial(open_pool, 1, make_meter()))
    assert summary(here) == summary(threads) == summary(processes)
    assert [len(point.results) for point in here.points] == [4, 4]


def test_an_executor_that_refuses_a_call_fails_that_seed(scenario: Scenario) -> None:
    class Picky(InProcess):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
            if args[2] != 1:
                return super().submit(fn, *args, **kwargs)
            future: cf.Future[Any] = cf.Future()
            future.set_exception(OSError("no room"))
            return future

    study = study_of(scenario)
    run_study(study, Picky)
    [(_, failed)] = study.failed()
    assert failed.seed == 1 and failed.problems == ("lost: OSError: no room",)


def test_ctrl_c_keeps_what_is_done(scenario: Scenario) -> None:
    class Interrupted(InProcess):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
            if args[2] == 2:
                raise KeyboardInterrupt
            return super().submit(fn, *args, **kwargs)

    study = study_of(scenario)
    run_study(study, Interrupted)
    assert study.is_interrupted and seeds_of(study) == [0, 1]
    assert summary(study)["seeds"] == [0, 1]


def test_a_sweep_that_is_stopped_compares_its_points(scenario: Scenario) -> None:
    """Seeds in turn over the points; else the last ones have nothing."""

    class Interrupted(InProcess):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
            if args[2] == 2:
                raise KeyboardInterrupt
            return super().submit(fn, *args, **kwargs)

    study = study_of(scenario, sweep={"loss": ["0", "0.5"]})
    run_study(study, Interrupted)
    assert [sorted(point.results) for point in study.points] == [[0, 1], [0, 1]]
    assert summary(study)["seeds"] == [0, 1], "those that were done, not those asked for"


def test_of_no_run_there_is_no_hash(scenario: Scenario) -> None:
    document = summary(study_of(scenario))
    assert document["trace_hash"] is None and document["metrics"] == {} and document["seeds"] == []


@pytest.mark.parametrize("is_waiting", [True, False])
def test_ctrl_c_lets_runs_in_other_places_end(
    is_waiting: bool, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of work of many nodes would be thrown away, in silence."""
    began, may_end, really, pools = threading.Event(), threading.Event(), tiny.run_tiny, list[cf.Executor]()

    def run_slowly(*args: Any, **kwargs: Any) -> RunResult:
        began.set()
        may_end.wait()
        return really(*args, **kwargs)

    def open_elsewhere() -> cf.Executor:
        pools.append(cf.ThreadPoolExecutor(1))
        return pools[0]

    def interrupt() -> None:
        if began.is_set():
            raise KeyboardInterrupt

    def on_stop() -> bool:
        may_end.set()
        return is_waiting

    monkeypatch.setattr(tiny, "run_tiny", run_slowly)
    study = study_of(scenario, seeds=range(50))
    run_study(study, open_elsewhere, on_tick=interrupt, on_stop=on_stop)
    assert study.is_interrupted and seeds_of(study) == ([0] if is_waiting else [])
    with pytest.raises(RuntimeError):
        pools[0].submit(began.set)


def test_runs_elsewhere_give_the_same_data_on_every_node(scenario: Scenario) -> None:
    """Else nodes that are not believed seem to lie: no two measure one time, and sandboxes let out only data."""

    class Elsewhere(cf.Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
            one, other = (encode(fn(*args, **kwargs)) for _ in range(2))
            assert one == other
            future: Any = cf.Future()
            future.info = SimpleNamespace(runtime_s=2.5)
            future.set_result(decode(one))
            return cast("cf.Future[Any]", future)

    here, there = study_of(scenario, bad_seeds="[1]", mode="fail"), study_of(scenario, bad_seeds="[1]", mode="fail")
    run_study(here, InProcess)
    run_study(there, Elsewhere, is_elsewhere=True)
    [mine], [theirs] = here.points, there.points
    assert {seed: replace(result, wall_s=2.5) for seed, result in mine.results.items()} == theirs.results


def test_ctrl_c_ends_the_processes_of_a_pool(scenario: Scenario, tmp_path: Path) -> None:
    """Nothing stays behind: the fixture of all tests looks for children."""

    def interrupt(point: Point, result: RunResult) -> None:
        raise KeyboardInterrupt

    study = study_of(scenario, seeds=range(50))
    study.traces = tmp_path
    left = tmp_path / "traces/of-a-process-that-was-killed.part"
    left.parent.mkdir()
    left.touch()
    run_study(study, functools.partial(open_pool, 1, make_meter()), on_result=interrupt)
    assert study.is_interrupted and len(seeds_of(study)) == 1
    assert {path.suffix for path in left.parent.iterdir()} == {".jsonl"}, "a trace is there only when it is whole"


def test_sweeps_are_combined(scenario: Scenario) -> None:
    study = study_of(scenario, sweep={"loss": ["0", "0.1"], "nodes": ["5", "6", "7"]})
    assert [point.scenario.settings.nodes for point in study.points] == [5, 6, 7, 5, 6, 7]
    assert study.points[4].values == {"loss": "0.1", "nodes": "6"}
    with pytest.raises(UsageError, match="0 below 1"):
        study_of(scenario, sweep={"loss": ["0", "1"]})
    many = [str(number) for number in range(POINTS_MAX)]
    with pytest.raises(UsageError, match="too much"):
        study_of(scenario, sweep={"hours": many, "nodes": ["1", "2"]})


# --- keeping --------------------------------------------------------------------------------------


def kept(folder: Path, study: Study) -> int:
    """Run a study with an archive; returns how many runs were already there."""
    archive = Archive(folder)
    count = archive.fill(study)
    run_study(study, InProcess, on_result=functools.partial(archive.keep, study))
    return count


def test_what_is_kept_is_not_run_again(scenario: Scenario, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    first = study_of(scenario, mode="fail")
    assert kept(folder, first) == 0
    more = study_of(scenario, mode="fail", seeds=range(6))
    assert kept(folder, more) == 4, "four seeds more are known"
    whole = study_of(scenario, mode="fail", seeds=range(6))
    run_study(whole, InProcess)
    assert summary(more) == summary(whole)
    assert kept(folder, study_of(scenario, mode="fail", loss="0.1")) == 0, "other settings"
    bounded = study_of(scenario, mode="fail")
    bounded.until_s = 3.0
    assert kept(folder, bounded) == 0, "not the whole run"


def test_other_code_runs_everything_again(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(tmp_path / "out", study_of(scenario)) == 0
    code = {**code_version(), "digest": "0123456789abcdef"}
    monkeypatch.setattr("p2pcompute.simulation.archive.code_version", lambda: code)
    assert kept(tmp_path / "out", study_of(scenario)) == 0


def test_a_line_that_was_cut_off_is_run_again(scenario: Scenario, tmp_path: Path) -> None:
    kept(tmp_path, study_of(scenario))
    path = tmp_path / "runs.jsonl"
    path.write_text(path.read_text()[:-20])
    assert kept(tmp_path, study_of(scenario)) == 3
    assert len(path.read_text().splitlines()) == 4


def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"schema": "other"}\n')
    with pytest.raises(UsageError, match="line 1"):
        Archive(tmp_path)
    (tmp_path / "file").write_text("")
    for place in ("file", "file/out"):
        with pytest.raises(UsageError, match="it is a file, or there is a file on the way"), alone_in(tmp_path / place):
            pass
        with pytest.raises(UsageError, match="no results can be kept"):
            Archive(tmp_path / place)
    with pytest.raises(UsageError, match="no results can be kept in /proc/self"):
        Archive(Path("/proc/self"))  # is there, and takes no files


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"p2pc.sim-run/1"', b'"p2pc.sim-run/9"', "schema is not p2pc.sim-run/1"),
        (b'"seed": 1', b'"seed": "x"', "seed"),
        (b'"problems": []', b'"problems": null', "problems"),
        (b'{"schema"', b'\xff{"schema"', "line 2"),
        (b'{"schema"', b"[" * 5000, "recursion"),
    ],
)
def test_a_line_that_somebody_changed_is_named(
    scenario: Scenario, tmp_path: Path, old: bytes, new: bytes, why: str
) -> None:
    kept(tmp_path, study_of(scenario))
    path = tmp_path / "runs.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[1]
    lines[1] = lines[1].replace(old, new)
    path.write_bytes(b"".join(lines))
    with pytest.raises(UsageError, match="line 2: not a result") as caught:
        Archive(tmp_path)
    assert why in str(caught.value)


def test_a_trace_that_cannot_be_written_is_not_the_seeds_failure(scenario: Scenario, tmp_path: Path) -> None:
    """Kept as one, it would stay a failed seed when there is room again."""
    study = study_of(scenario)
    study.traces = tmp_path / "out"
    study.traces.mkdir()
    (study.traces / "traces").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be used"):
        run_study(study, InProcess)
    with pytest.raises(OutputError, match="cannot be used"):
        run_study(study, functools.partial(open_pool, 1, make_meter()))
    assert not study.points[0].results


def test_a_full_disk_in_the_middle_of_a_run_is_not_seen_by_it(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: records.Writer) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    study = study_of(scenario)
    study.traces = tmp_path
    monkeypatch.setattr(records, "BUFFER_BYTES_MAX", 1000)
    monkeypatch.setattr(records.Writer, "flush", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        run_study(study, InProcess)
    assert (
        caught.value.fix is not None and f"goes on from the runs that are in {tmp_path}/runs.jsonl" in caught.value.fix
    )
    assert not study.points[0].results and not list((tmp_path / "traces").iterdir())


def test_what_the_machine_lost_is_tried_again(scenario: Scenario, tmp_path: Path) -> None:
    """A seed is a pure function; that its process died is not."""
    study = study_of(scenario, mode="die", seeds=[2])
    archive = Archive(tmp_path)
    run_study(study, functools.partial(open_pool, 1, make_meter()), on_result=functools.partial(archive.keep, study))
    assert study.failed() and Archive(tmp_path).fill(study_of(scenario, mode="die", seeds=[2])) == 0


# --- summing up -----------------------------------------------------------------------------------


def test_the_summary_has_what_is_documented(scenario: Scenario) -> None:
    study = study_of(scenario, mode="fail")
    run_study(study, InProcess)
    document = summary(study)
    assert document["schema"] == "p2pc.sim/1" and document["scenario"] == "tiny"
    assert document["seeds"] == [0, 1, 2, 3] and document["nodes"] == 4
    assert (document["events"], document["messages"], document["wall_s"]) == (400, 40, 2.0)
    assert document["simulated_s"] == 4 * 360.0 and document["fired"] == {"crash": 96}
    assert document["problems"] == [{"seed": 2, "problems": ["4.5 s: lost-task: task 7 has gone"]}]
    assert document["metrics"]["value"]["mean"] == 1.5
    assert document["metrics"]["rare"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "count": 1}
    assert len(document["trace_hash"]) == 64 and document["code"]["version"]
    json.dumps(document, allow_nan=False)


def test_one_seed_has_its_own_hash_and_no_interval(scenario: Scenario) -> None:
    study = study_of(scenario, seeds=[7])
    run_study(study, InProcess)
    document = summary(study)
    assert document["trace_hash"] == study.points[0].results[7].trace_hash
    assert document["metrics"]["value"] == {"mean": 7.0, "low": 7.0, "high": 7.0}


def test_a_sweep_has_points(scenario: Scenario) -> None:
    study = study_of(scenario, seeds=[1], sweep={"loss": ["0", "0.1"]})
    run_study(study, InProcess)
    document = summary(study)
    assert [point["set"] for point in document["points"]] == [{"loss": 0.0}, {"loss": 0.1}]
    assert [point["metrics"]["value"]["mean"] for point in document["points"]] == [1.0, 2.0]
    assert document["seeds"] == [1] and "metrics" not in document


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (3, 4.303), (10, 2.262), (11, 2.228), (21, 2.086), (31, 2.042), (121, 1.980)]
)
def test_intervals_are_students(count: int, quantile: float) -> None:
    """Against the tables of Student's t."""
    values = [float(number * number % 7) for number in range(count)]
    found = interval(values)
    half = quantile * statistics.stdev(values) / count**0.5
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-3)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=1e-3)


def test_intervals_are_cut_to_what_is_possible() -> None:
    values = [0.2, 1.0, 1.0]
    wide = interval(values)
    assert wide["low"] < 0 and wide["high"] > 1
    assert bounded("read_success", wide, values) == {"mean": wide["mean"], "low": 0.0, "high": 1.0}
    assert bounded("up_share_p95", wide, values)["high"] == 1.0
    assert bounded("wasted_work", wide, values)["high"] == wide["high"], "a ratio may be above 1"
    assert bounded("makespan_ratio", {"mean": 1.1, "low": 0.9, "high": 1.3}, [1.0, 1.2])["low"] == 1.0
    assert bounded("x", interval([-1.0, 1.0]), [-1.0, 1.0]) == interval([-1.0, 1.0])


def test_the_replay_command_is_what_a_shell_needs(scenario: Scenario) -> None:
    values = {"nodes": "5", "hours": "0.5", "faults.only": "3,7", "note": "a b"}
    command = replay_command(scenario, 7, values, 812.5)
    head = f"p2pc sim run {scenario.source} --seed 7"
    assert command == f"{head} --nodes 5 --hours 0.5 --set faults.only=3,7 --set 'note=a b' --until 812.5"


# --- records --------------------------------------------------------------------------------------

HEAD = records.header(version="0.1.0", scenario="tiny", seed=7)


def test_records_are_read_as_they_were_written() -> None:
    file = io.StringIO()
    writer = records.Writer(file, HEAD)
    written = [{"t": t / 10, "kind": "crash", "node": "node-3", "silent": True} for t in range(2000)]
    for record in written:
        writer.write(record)
    assert 0 < len(file.getvalue()) < 2000 * 60, "what is not flushed is bounded"
    writer.flush()
    file.seek(0)
    assert list(records.read(file, "trace")) == [HEAD, *written]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"t": "1", "kind": "a", "node": ""}', "not a number of seconds"),
        ('{"t": NaN, "kind": "a", "node": ""}', "not a number of seconds"),
        ('{"t": 0.5, "kind": "a", "node": ""}', "goes back"),
        ('{"t": 2, "kind": 3, "node": ""}', '"kind"'),
        ('{"t": 2, "kind": "a"}', '"node"'),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(line: str, why: str) -> None:
    text = json.dumps(HEAD) + '\n{"t": 1, "kind": "a", "node": ""}\n' + line + "\n"
    with pytest.raises(UsageError, match="trace, line 3") as caught:
        list(records.read(io.StringIO(text), "trace"))
    assert why in caught.value.why


@pytest.mark.parametrize("text", ["", "{}\n", '{"t": 1, "kind": "a", "node": ""}\n'])
def test_a_file_without_the_header_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="line 1"):
        list(records.read(io.StringIO(text), "trace"))


def test_a_real_job_gives_the_same_records() -> None:
    job = {
        "id": "ab" * 16,
        "name": "thumbs",
        "added": 3,
        "submitted": "2026-01-01T00:00:00.000000Z",
        "finished": "2026-01-01T00:00:10.000000Z",
        "state": "done",
        "done": 2,
        "failed": 0,
        "cancelled": 1,
        "retried": 0,
    }
    shared = {"attempts": 1, "status": "done", "cpu_s": 0.5, "state": "done"}
    tasks = [
        {"index": 0, "node": "nova", "started": "2026-01-01T00:00:04.000000Z", "runtime_s": 2.0, **shared},
        {"index": 1, "node": "skewed", "started": "2025-12-31T23:59:00.000000Z", "runtime_s": 2.0, **shared},
        {"index": 2, "node": None, "started": None, "runtime_s": None, **shared, "state": "cancelled"},
    ]
    found = records.job_records(job, tasks)
    assert [(record["t"], record["kind"], record["node"]) for record in found] == [
        (0.0, "job.submitted", ""),
        (0.0, "task.started", "skewed"),
        (2.0, "task.ended", "skewed"),
        (4.0, "task.started", "nova"),
        (6.0, "task.ended", "nova"),
        (10.0, "job.ended", ""),
    ]
    file = io.StringIO()
    writer = records.Writer(file, records.header(version="0.1.0", job=str(job["id"])))
    for record in found:
        writer.write(record)
    writer.flush()
    file.seek(0)
    assert len(list(records.read(file, "trace"))) == 7
