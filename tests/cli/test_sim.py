"""p2pc sim: what is printed where, exit codes, and that a failure says how to see it again."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pcompute.api.options import TaskOptions
from p2pcompute.cli.main import run_command
from p2pcompute.cli.sim_watching import Progress
from p2pcompute.plots import records
from p2pcompute.simulation.archive import Archive, alone_in
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.study import Point, Study
from p2pcompute.version import VERSION
from tests.simulation import tiny

pytestmark = pytest.mark.usefixtures("pool_tracker")

TEXT = """question = "Does it?"
experiment = "tiny"
bad_seeds = [2]
[[workload]]
tasks = 8
[keys]
tasks = "workload.0.tasks"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A scenario file in an empty current directory."""
    assert tiny.GUILTY  # registers its experiment
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P2PC_HOME", str(tmp_path / "home"))
    Path("mine.toml").write_text(TEXT)
    return "./mine.toml"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["sim", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_list_has_names_and_questions(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0 and "smoke" in out and "?" in out
    code, out, err = run(capsys, "list", "--json")
    document = json.loads(out)
    assert document["schema"] == "p2pc.sim-scenarios/1" and err == ""
    assert {"name", "question"} == set(document["items"][0])


def test_a_run_prints_its_figures_on_stdout(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", mine, "--seed", "1")
    assert code == 0 and err == ""
    assert "mine  4 nodes · 1 seed" in out and "value" in out and "crash 24" in out
    assert "every check has passed" in out, "figures below 1 look like failures"


def test_with_json_stdout_is_one_document(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", mine, "--seeds", "3", "--jobs", "1", "--json", "--nodes", "7")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["schema"] == "p2pc.sim/1" and document["nodes"] == 7 and document["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], ['there is no scenario "nope"', "p2pc sim list"]),
        (["./mine.toml", "--set", "nodes"], ["--set KEY=VALUE"]),
        (["./mine.toml", "--set", "nodez=3"], ['did you mean "nodes"?']),
        (["./mine.toml", "--sweep", "nodes"], ["--sweep KEY=A,B,C"]),
        (["./mine.toml", "--nodes", "100000"], ["--nodes 100000: nodes cannot be", "a whole number from 1 to 1000"]),
        (["./mine.toml", "--hours", "nan"], ["--hours nan: hours cannot be nan", "a finite number"]),
        (["./mine.toml", "--set", "loss=nan"], ["--set loss=nan: loss cannot be nan", "finite number from 0 below 1"]),
        (["./mine.toml", "--on", "mesh", "--jobs", "2"], ["--jobs says nothing to --on mesh", "leave it out"]),
        (["./mine.toml", "--sweep", "loss="], ["has no values"]),
        (["./mine.toml", "--sweep", "loss=0,2"], ["--sweep loss=2", "0 below 1"]),
        (["./mine.toml", "--sweep", "foo=1"], ["--sweep foo=1: there is no key", "p2pc sim keys"]),
        (["./mine.toml", "--set", "workload.3.tasks=1"], ["the scenario has 1 [[workload]]: workload.0"]),
        (["./mine.toml", "--sweep", "loss=0", "--sweep", "loss=0.5"], ["loss is given twice", "KEY=A,B,C"]),
        (["./mine.toml", "--set", "loss=0", "--set", "loss=0.5"], ["by --set loss=0 and by --set loss=0.5"]),
        (
            ["./mine.toml", "--set", "loss=0", "--sweep", "loss=0.5,0.6"],
            ["by --set loss=0 and by --sweep loss=0.5,0.6"],
        ),
        (
            ["./mine.toml", "--set", "tasks=3", "--set", "workload.0.tasks=4"],
            ["by --set tasks=3 and by --set workload.0"],
        ),
        (["./mine.toml", "--nodes", "3", "--set", "nodes=4"], ["by --set nodes=4 and by --nodes 3"]),
        (["./mine.toml", "--hours", "3", "--sweep", "hours=4,5"], ["by --hours 3 and by --sweep hours=4,5"]),
        (
            ["smoke", "--trace", "a", "--set", "population.trace=b"],
            ["by --trace a and by --set population.trace=b"],
        ),
        (
            ["smoke", "--set", "faults.only=-1"],
            ["faults.only.0 cannot be -1", "from 0", "faults.kinds: crash, power-loss"],
        ),
        (
            ["smoke", "--set", "faults.only=crash"],
            ['faults.only.0 cannot be "crash"', "faults.kinds: crash, power-loss"],
        ),
        (["smoke", "--set", "faults.kinds=nope"], ['faults.kinds.0 cannot be "nope"', "one of bandwidth, cancel"]),
        (["smoke", "--set", "faults.only=9999"], ["there is no fault 9999", "faults.kinds"]),
        (["./mine.toml", "--sweep", "loss=0,0.5,0"], ["names 0 twice", "each is one point"]),
        (["pool", "--until", "5"], ["--until says nothing to pool", "goes on to its end"]),
        (["trust", "--events"], ["--events shows nothing of trust", "--json"]),
        (["./mine.toml", "--until", "nan"], ["--until cannot be nan", "a finite number"]),
        (["./mine.toml", "--node", "3"], ["add --events"]),
        (["./mine.toml", "--plot"], ["--plot goes with -o DIR"]),
        (["./mine.toml", "--events", "--node", "node-4"], ['there is no node "node-4"', "node-0 to node-3"]),
        (["./mine.toml", "--events", "--node", "nobody"], ['there is no node "nobody"']),
        (["./mine.toml", "--events", "--seeds", "2"], ["--events shows one run"]),
        (["./mine.toml", "--trace", "a.avt"], ["--trace says nothing to ./mine.toml", "tiny has no population"]),
        (["./mine.toml", "-o", "mine.toml/x"], ["no results can be kept in mine.toml/x", "a file", "-o DIR"]),
        (["./mine.toml", "-o", "mine.toml"], ["no results can be kept in mine.toml", "a file", "-o DIR"]),
        (["./mine.toml", "-o", "/proc/self"], ["no results can be kept in /proc/self", "-o DIR"]),
        (["./mine.toml", "-o", "/proc/missing/x"], ["no results can be kept in /proc/missing/x", "-o DIR"]),
        (["./mine.toml", "-o", ""], ["-o names no directory"]),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], words: list[str], mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "run", *arguments)
    assert code == 2 and out == ""
    for word in words:
        assert word in err
    code, out, err = run(capsys, "run", "--json", *arguments)
    assert json.loads(out)["schema"] == "p2pc.error/1" and err == ""


def test_a_seed_that_fails_says_how_to_see_it_again_and_smaller(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", mine, "--seeds", "4", "--jobs", "1", "--set", "mode=fail", "--nodes", "9")
    assert code == 1 and "value" in out
    assert "seed 2 failed: 1 problem" in err and "lost-task" in err
    lines = [line.strip() for line in err.splitlines()]
    [replay] = [line.removeprefix("replay:").strip() for line in lines if line.startswith("replay:")]
    [smaller] = [line.removeprefix("smaller:").strip() for line in lines if line.startswith("smaller:")]
    assert replay == "p2pc sim run ./mine.toml --seed 2 --set mode=fail --nodes 9"
    assert "--set faults.only=3,17" in smaller and "--nodes 3" in smaller and "workload.0.tasks=2" in smaller
    code, _, err = run(capsys, "run", mine, "--seed", "2", "--set", "mode=fail", "--set", "tasks=9")
    assert "workload.0.tasks=2" in err and "--set tasks=9 --set workload" not in err, "each key once"
    for command in (replay, smaller):
        code, _, err = run(capsys, *shlex.split(command)[2:], "--no-shrink")
        assert code == 1 and "lost-task" in err and "smaller:" not in err


def test_failures_are_in_the_document_too(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", mine, "--seed", "2", "--set", "mode=fail", "--json")
    [entry] = json.loads(out)["problems"]
    assert code == 1 and entry["seed"] == 2 and "lost-task" in entry["problems"][0]
    assert entry["replay"].startswith("p2pc sim run ./mine.toml --seed 2") and "faults.only" in entry["shrunk"]


def test_a_simulation_that_is_not_repeatable_is_not_shrunk(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guilty = iter([tiny.GUILTY, (99,)])
    run_tiny = tiny.run_tiny

    def moody(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(tiny, "GUILTY", next(guilty))
        return run_tiny(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny, "run_tiny", moody)
    code, _, err = run(capsys, "run", mine, "--seed", "2", "--set", "mode=fail")
    assert code == 1 and "not deterministic" in err


def test_events_are_records(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", mine, "--events", "--json", "--seed", "7")
    head, *lines = records.read(io.StringIO(out), "stdout")
    assert code == 0 and head["schema"] == "p2pc.trace/1" and head["seed"] == 7 and len(lines) == tiny.FAULTS
    code, out, err = run(capsys, "run", mine, "--events", "--json", "--node", "1")
    assert {record["node"] for record in list(records.read(io.StringIO(out), "stdout"))[1:]} == {"node-1"}
    code, out, err = run(capsys, "run", mine, "--events", "--node", "node-0", "--until", "9")
    assert len(out.splitlines()) == tiny.FAULTS / 2 and "fault=4" in out and "9.0 s simulated" in err


def test_a_sweep_has_a_column_for_each_value(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", mine, "--sweep", "loss=0,0.5", "--seeds", "3", "--jobs", "1")
    assert code == 0 and "loss=0.0" in out and "loss=0.5" in out and "value" in out
    assert "1 [0, 3.484]" in out and "6 ±2.484" in out, "no value is below 0"


def test_swept_values_are_shown_as_they_are_set(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", mine, "--sweep", "faults.only=[3],[3,7]", "--sweep", "span=none,[0,1]")
    assert code == 0 and "faults.only=3,7 span=none" in out and "span=0.0,1.0" in out and "(" not in out


def test_a_wide_sweep_has_a_line_for_each_point(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = ",".join(f"0.{number}" for number in range(10, 40))
    code, out, _ = run(capsys, "run", mine, "--sweep", f"loss={values}", "--seeds", "2", "--jobs", "1")
    assert code == 0 and max(map(len, out.splitlines())) <= 120
    assert sum(line.lstrip().startswith("0.") for line in out.splitlines()) == 30


def test_traces_of_a_sweep_say_what_they_are_of(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, "run", mine, "--sweep", "loss=0,0.5", "--sweep", "note=a b/c", "-o", "out", "--no-plot")
    names = sorted(path.name for path in Path("out/traces").iterdir())
    assert code == 0 and [name[:-15] for name in names] == ["loss=0.0_note=a-b-c_seed=0", "loss=0.5_note=a-b-c_seed=0"]
    with (Path("out/traces") / names[1]).open() as file:
        assert next(records.read(file, "trace"))["set"] == {"loss": 0.5, "note": "a b/c"}


def test_a_directory_holds_one_scenario_and_nothing_stale(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "run", mine, "--sweep", "loss=0,0.5", "-o", "out", "--no-plot")[0] == 0
    Path("out/makespan.svg").write_text("of the sweep")
    Path("out/mine.txt").write_text("somebody's")
    assert run(capsys, "run", mine, "-o", "out", "--no-plot")[0] == 0
    assert not Path("out/points.csv").exists() and not Path("out/makespan.svg").exists()
    assert Path("out/mine.txt").exists() and len(Path("out/runs.csv").read_text().splitlines()) == 2
    Path("other.toml").write_text(TEXT)
    kept = Path("out/summary.json").read_bytes()
    code, _, err = run(capsys, "run", "./other.toml", "-o", "out")
    assert code == 2 and "holds runs of another scenario than other" in err and "of mine" in err and "-o DIR" in err
    assert Path("out/summary.json").read_bytes() == kept


def test_what_is_not_written_is_said(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(cf.ThreadPoolExecutor):
        def __init__(self, name: str, options: TaskOptions) -> None:
            assert options.require == [f"node.version == '{VERSION}'"]
            super().__init__(1)

    monkeypatch.setattr("p2pcompute.api.executor.MeshExecutor", Elsewhere)
    code, _, err = run(capsys, "run", mine, "--on", "mesh", "-o", "out", "--no-plot")
    assert code == 0 and "no traces in out" in err and "runs elsewhere" in err and not Path("out/traces").exists()
    monkeypatch.setattr("p2pcompute.cli.sim_commands.TRACES_MAX", 1)
    code, _, err = run(capsys, "run", mine, "--seeds", "3", "--jobs", "1", "-o", "out", "--no-plot")
    assert code == 0 and "at most 1 runs leave one" in err


def test_notes_are_printed_and_counted(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", mine, "--seeds", "2", "--jobs", "1", "--set", "note=idle"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "note: nothing was submitted (2 of 2 seeds)" in out
    code, out, _ = run(capsys, *arguments, "--json")
    assert json.loads(out)["notes"] == {"nothing was submitted": 2}


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "p2pc sim run smoke" in out and "p2pc sim keys" in out
    code, out, _ = run(capsys, "list", "--help")
    assert code == 0 and "names and questions" in out


def test_one_seed_has_no_interval(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", mine, "--sweep", "loss=0,0.5", "--jobs", "1", "-o", "out", "--no-plot"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "±" not in out and "[" not in out
    rows = Path("out/points.csv").read_text().splitlines()
    assert rows[0] == "loss,metric,mean,low,high" and rows[1] == "0.0,value,0.0,,"
    code, out, _ = run(capsys, "run", mine, "--seeds", "3", "--jobs", "1")
    [rare] = [line.split() for line in out.splitlines() if line.strip().startswith("rare")]
    assert code == 0 and rare == ["rare", "1"], "one seed of three has it"


def test_results_are_kept_and_not_computed_again(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", mine, "--sweep", "loss=0,0.5", "--seeds", "2", "--jobs", "1", "-o", "out", "--no-plot"]
    code, first, err = run(capsys, *arguments)
    assert code == 0 and "already" not in err
    code, again, err = run(capsys, *arguments)
    assert code == 0 and "4 runs of 4 already in out" in err and again == first
    assert json.loads(Path("out/summary.json").read_text())["schema"] == "p2pc.sim/1"
    rows = Path("out/runs.csv").read_text().splitlines()
    assert rows[0].startswith("loss,seed,nodes") and len(rows) == 5
    for line in Path("out/runs.jsonl").read_text().splitlines():
        assert json.loads(line)["schema"] == "p2pc.sim-run/1"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_came_where_nothing_can_be_raised_still_ends_it(
    number: signal.Signals, code: int, mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a finaliser Python drops what the signal raises."""

    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def run_tiny(*args: Any, **kwargs: Any) -> object:
        Finalised()
        return really(*args, **kwargs)

    really = tiny.run_tiny
    monkeypatch.setattr(tiny, "run_tiny", run_tiny)
    ended, _, err = run(capsys, "run", mine, "--seeds", "50", "--jobs", "1", "--no-shrink")
    assert ended == code and "stopped: " in err and "Exception ignored" not in err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_is_done_when_ctrl_c_comes_is_in_all_files(
    jobs: str, mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever run it meets between its end and its line."""
    really, sent = Archive.keep, list[int]()

    def keep(self: Archive, study: Study, point: Point, result: RunResult) -> None:
        sent.append(result.seed)
        if len(sent) == 3:
            signal.raise_signal(signal.SIGINT)
        really(self, study, point, result)

    monkeypatch.setattr(Archive, "keep", keep)
    arguments = ["run", mine, "--seeds", "40", "--sweep", "nodes=3,5", "--jobs", jobs, "-o", "out", "--no-plot"]
    code, _, err = run(capsys, *arguments)
    kept = [json.loads(line) for line in Path("out/runs.jsonl").read_text().splitlines()]
    runs = list(csv.DictReader(Path("out/runs.csv").read_text().splitlines()))
    points = json.loads(Path("out/summary.json").read_text())["points"]
    assert code == 130 and len(kept) == len(runs) == sum(len(point["seeds"]) for point in points) == 3
    assert "77 runs not done" in err


def test_ctrl_c_while_progress_is_shown_loses_no_line(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: Progress, result: RunResult) -> None:
        if result.seed == 2:
            self._stop.by = signal.SIGINT
        really(self, result)

    really = Progress.take
    monkeypatch.setattr(Progress, "take", take)
    code, _, _ = run(capsys, "run", mine, "--seeds", "9", "--jobs", "1", "-o", "out", "--no-plot")
    done = json.loads(Path("out/summary.json").read_text())["seeds"]
    kept = [json.loads(line)["run"]["seed"] for line in Path("out/runs.jsonl").read_text().splitlines()]
    assert code == 130 and done == kept == [0, 1, 2]


def test_results_are_kept_before_they_are_shown(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads them may have gone, and that ends us."""

    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("p2pcompute.cli.sim_commands.print_summary", gone)
    monkeypatch.setattr("p2pcompute.cli.sim_commands.print_json", gone)
    for more in ([], ["--json"]):
        run(capsys, "run", mine, "-o", f"out{len(more)}", "--no-plot", *more)
        assert {"summary.json", "runs.csv"} <= {path.name for path in Path(f"out{len(more)}").iterdir()}


def test_checks_that_are_off_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair.toml").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    values = ["--set", "checks.off=known,chatter", "--until", "1"]
    code, out, _ = run(capsys, "run", "./pair.toml", *values)
    assert code == 0 and "every check has passed; off: chatter, known; what the figures mean" in out


def test_a_sweep_may_need_what_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair.toml").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    values = ["--set", "population.sessions=custom", "--set", "population.down=0.5,0.1", "--until", "1"]
    code, out, err = run(capsys, "run", "./pair.toml", *values, "--sweep", "population.up=[0.5,0.2],[0.6,0.2]")
    assert code == 0 and "population.up=0.6,0.2" in out, err
    code, _, err = run(capsys, "run", "./pair.toml", *values[2:], "--sweep", "population.up=[0.5,0.2],[0.6,0.2]")
    assert code == 2 and "`up` and `down` go with sessions = 'custom'" in err and "--sweep population.up=[0.5" in err


def test_two_runs_do_not_keep_results_in_one_directory(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They would write the same traces, and one would cut off the line that the other is writing."""
    arguments = ["run", mine, "--jobs", "1", "-o", "out", "--no-plot"]
    with alone_in(Path("out")):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and "out is in use" in err
    assert run(capsys, *arguments)[0] == 0


def test_progress_is_plain_where_there_is_no_terminal(
    mine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcompute.cli.sim_watching.LINE_S", 0.0)
    code, _, err = run(capsys, "run", mine, "--seeds", "2", "--jobs", "1")
    assert code == 0 and "mine  1/2 runs · 6 min 0 s simulated" in err and "\x1b" not in err
    monkeypatch.setenv("P2PC_PROGRESS", "json")
    code, _, err = run(capsys, "run", mine, "--seeds", "2", "--jobs", "1")
    assert json.loads(err.splitlines()[-1])["done"] == 2
    code, _, err = run(capsys, "run", "-q", mine, "--seeds", "2", "--jobs", "1")
    assert err == ""


PAIR = 'question = "?"\nexperiment = "mesh"\nnodes = 2\nhours = 0.001\n'


class Started:
    """A study of 99,999 seeds in a session of its own."""

    def __init__(self, folder: Path, jobs: int) -> None:
        (folder / "pair.toml").write_text(PAIR)
        command = ["-m", "p2pcompute", "sim", "run", "pair.toml", "--seeds", "99999", "--jobs", str(jobs)]
        self.kept = folder / "out" / "runs.jsonl"
        self.process = subprocess.Popen(
            [sys.executable, *command, "-o", "out", "--no-plot"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def wait(self, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not is_there() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def pool(self) -> list[int]:
        """Processes that run seeds."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children()
            return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
        return []

    def lines(self) -> int:
        return self.kept.read_text().count("\n") if self.kept.exists() else 0

    def end(self, number: signal.Signals, *, group: bool) -> tuple[int, str, str]:
        """Send it the signal, alone or by Ctrl-C of a terminal; return its exit code, stdout and stderr."""
        killer = threading.Timer(60, self.process.kill)
        killer.start()
        (os.killpg if group else os.kill)(self.process.pid, number)
        out, err = self.process.communicate()
        killer.cancel()
        killer.join()
        return self.process.returncode, out, err


SIGNALS = [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGTERM, 143, False)]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("number", "code", "group"), SIGNALS)
def test_a_signal_ends_it_and_keeps_what_is_done(
    number: signal.Signals, code: int, group: bool, jobs: int, tmp_path: Path
) -> None:
    study = Started(tmp_path, jobs)
    study.wait(lambda: study.lines() >= 1)
    pool = study.pool()
    ended, out, err = study.end(number, group=group)
    assert ended == code, err
    assert "stopped: " in err and "goes on from there (out)" in err and "Traceback" not in err
    assert len(pool) == (jobs if jobs > 1 else 0) and not any(psutil.pid_exists(pid) for pid in pool)
    assert study.lines() >= 1 and "pair  2 nodes" in out
    assert re.search(r"· \d+ seeds? of 99.999 ·", out), "what was done, not what was to be done"


@pytest.mark.parametrize(("number", "code", "group"), SIGNALS)
def test_a_signal_ends_a_pool_that_is_starting(number: signal.Signals, code: int, group: bool, tmp_path: Path) -> None:
    """Its processes would print where Ctrl-C met them, or stay."""
    study = Started(tmp_path, 2)
    study.wait(lambda: bool(study.pool()))
    pool = study.pool()
    ended, _, err = study.end(number, group=group)
    assert ended == code and "goes on from there (out)" in err and "Traceback" not in err, err
    assert pool and not any(psutil.pid_exists(pid) for pid in pool)


def test_settings_can_be_looked_up_without_the_source(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "keys", "network")
    assert code == 0 and "network.loss = 0.0\n" in out and "network.nat.symmetric" in out and "[population]" not in out
    code, out, err = run(capsys, "keys", "workload.tasks")
    assert code == 0 and "of each job (a whole number from 1 to 5000000)" in out and "workload.0.tasks" in err
    code, out, err = run(capsys, "keys", "population.up")
    assert code == 0 and "two numbers, as 0.5,0.01" in out
    code, out, err = run(capsys, "keys", "--json")
    items = json.loads(out)["items"]
    assert err == "" and all(item["text"] and item["allowed"] for item in items), "every setting says what it means"
    assert {"nodes", "population.classes.once", "checks.over_s"} <= {item["key"] for item in items}
    code, out, err = run(capsys, "keys", "netwok")
    assert code == 2 and out == "" and 'did you mean "network"?' in err


def test_a_scenario_can_be_looked_at(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", "smoke")
    assert code == 0 and out.startswith("question = ") and "smoke.toml" in err and "tasks (workload" in err
    code, out, err = run(capsys, "show", mine, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "") and document["text"] == TEXT and document["keys"] == {"tasks": "workload.0.tasks"}
    code, out, err = run(capsys, "show", "smokee")
    assert code == 2 and 'did you mean "smoke"?' in err


@pytest.mark.parametrize(
    ("words", "code"), [("sim list", 0), ("sim run ./pair.toml", 0), ("--version", 0), ("status", 5)]
)
def test_output_that_goes_nowhere_is_no_bug(words: str, code: int, tmp_path: Path) -> None:
    """Closed by who called us, or on a full disk: one sentence."""

    def call(where: str) -> subprocess.CompletedProcess[str]:
        typed = f"{sys.executable} -m p2pcompute {words} {where}"
        env = {**os.environ, "P2PC_HOME": str(tmp_path / "home")}
        return subprocess.run(
            typed, cwd=tmp_path, env=env, shell=True, capture_output=True, text=True, check=False, timeout=60
        )

    (tmp_path / "pair.toml").write_text(PAIR)
    for where in (">&-", "<&- >&- 2>&-"):
        closed = call(where)
        assert closed.returncode == (code or 2) and "Traceback" not in closed.stderr and "bug" not in closed.stderr
    if code == 0:
        full = call(">/dev/full")
        assert full.returncode == 2 and "no space left" in full.stderr and "bug" not in full.stderr
