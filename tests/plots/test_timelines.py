"""What pictures of jobs are made from: lanes without overlap, staircases that count right."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.plots.drawing import KINDS, write_picture
from p2pcompute.plots.timelines import Attempt, Timeline, arrival, arrived_s, busy, ideal_s, lanes, summary, timeline


def attempt(number: int, start_s: float, took_s: float, node: str = "nova", **fields: Any) -> Attempt:
    known = {"state": "done", "status": "ok", "attempts": 1}
    return Attempt(task=number, node=node, start_s=start_s, end_s=start_s + took_s, **(known | fields))


def line_of(attempts: list[Attempt]) -> Timeline:
    ordered = tuple(sorted(attempts, key=lambda found: found.end_s))
    return Timeline(title="ksun  a <b> & c", total=len(attempts) + 1, attempts=ordered, end_s=None)


pytestmark = pytest.mark.usefixtures("fonts")
spans = st.tuples(st.integers(0, 40), st.integers(0, 10), st.sampled_from(["nova", "atlas"]))


@given(st.lists(spans, max_size=60))
def test_lanes_hold_everything_once_and_never_two_at_once(drawn: list[tuple[int, int, str]]) -> None:
    """As many lanes as tasks ran at once: no slot is invented."""
    attempts = [attempt(number, start, took, node) for number, (start, took, node) in enumerate(drawn)]
    found = lanes(attempts)
    assert sorted(a.task for own in found.values() for lane in own for a in lane) == list(range(len(drawn)))
    for node, own in found.items():
        for lane in own:
            assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(lane))
        here = [a for a in attempts if a.node == node]
        most = max(sum(a.start_s <= b.start_s < a.end_s for a in here) for b in here)
        instants = sum(a.took_s == 0 for a in here)  # they take a lane and no time
        assert most <= len(own) <= most + instants


@given(st.lists(spans, max_size=60))
def test_staircases_count_what_a_look_at_any_moment_counts(drawn: list[tuple[int, int, str]]) -> None:
    attempts = [attempt(number, start, took, node) for number, (start, took, node) in enumerate(drawn)]

    def at(curve: Any, moment: float) -> int:
        values = [value for t, value in zip(curve.times, curve.values, strict=True) if t <= moment]
        return int(values[-1])

    done, running = arrival(attempts), busy(attempts)
    for moment in (0.5, 3.5, 10.5, 60.5):
        assert at(done, moment) == sum(a.end_s <= moment for a in attempts)
        assert at(running, moment) == sum(a.start_s <= moment < a.end_s for a in attempts)
    assert list(running.times) == sorted(set(running.times)), "each moment once"


def test_marks_and_the_ideal() -> None:
    line = line_of([attempt(number, number, 1.0) for number in range(10)] + [attempt(10, 0.0, 10.0, "atlas")])
    done = arrival(line.attempts)
    assert (arrived_s(done, 0.5), arrived_s(done, 1.0)) == (6.0, 10.0)
    assert ideal_s(line) == 10.0
    assert arrived_s(arrival([]), 0.5) is None and ideal_s(line_of([])) == 0.0


def test_what_a_picture_shows_is_said_in_words_too() -> None:
    bad = attempt(3, 3.0, 1.0, state="failed", attempts=2)
    text = " ".join(summary(line_of([attempt(number, number, 1.0) for number in range(3)] + [bad])))
    assert "3 of 5 tasks done" in text and "1 failed, 1 ran more than once" in text and "100 % of 4 s" in text
    said = summary(line_of([bad]))
    assert said[0].startswith("0 of 2 tasks done") and "." not in said, "no sentence about what nothing has"
    assert summary(line_of([])) == ["No task of ksun  a <b> & c has ended yet."]


def test_records_of_a_job_that_runs_are_read() -> None:
    shared = {"node": "nova", "job": "x", "attempts": 1}
    records: list[dict[str, Any]] = [
        {"t": 0.0, "kind": "job.submitted", "node": "", "job": "x", "tasks": 3},
        {"t": 0.1, "kind": "task.started", "task": 0, **shared},
        {"t": 0.2, "kind": "sample", "node": ""},
        {"t": 0.4, "kind": "task.ended", "task": 0, "state": "failed", "status": "failed", "cpu_s": None, **shared},
        {"t": 0.5, "kind": "task.ended", "task": 1, "state": "done", **shared},  # its start is not known
    ]
    line = timeline(records, "x")
    assert (line.total, line.end_s, [a.state for a in line.attempts]) == (3, None, ["failed"])


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["html", "svg", "png"])
def test_pictures_of_every_kind_and_of_nothing(tmp_path: Path, kind: Any, suffix: str) -> None:
    many = [attempt(number, number % 7, 1.0, f"node-{number % 9}") for number in range(60)]
    for name, line in (
        ("some", line_of([*many, attempt(60, 1, 1, state="failed", attempts=3)])),
        ("none", line_of([])),
    ):
        path = tmp_path / f"{name}.{suffix}"
        write_picture(line, kind, path)
        data = path.read_bytes()
        if suffix == "png":
            assert data.startswith(b"\x89PNG")
        else:
            assert b"<svg" in data and b"a <b> &" not in data, "a job's name is text, not markup"


def test_a_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    write_picture(line_of([attempt(0, 0, 1)]), "report", path)
    text = path.read_text()
    assert "<script" not in text and "src=" not in text and "@import" not in text


def test_numbers_need_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = line_of([attempt(0, 0.0, 2.0), attempt(1, 0.0, 1.0, "atlas"), attempt(2, 1.0, 0.5, "atlas")])
    for kind in KINDS:
        write_picture(line, kind, tmp_path / f"{kind}.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "arrival.csv").read_text())))
    assert rows == [
        ["t_s", "atlas", "nova"],
        ["0.0", "0", "0"],
        ["1.0", "1", "0"],
        ["1.5", "2", "0"],
        ["2.0", "2", "1"],
    ]
    assert len((tmp_path / "gantt.csv").read_text().splitlines()) == 4
    write_picture(line, "gantt", tmp_path / "a.json")
    events = json.loads((tmp_path / "a.json").read_text())
    assert [(e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["name"] == "task 2"] == [(1_000_000, 500_000)]
    with pytest.raises(UsageError, match="matplotlib"):
        write_picture(line, "report", tmp_path / "a.svg")


@pytest.mark.parametrize("name", ["a.pdf", "a", "no/such/folder/a.csv"])
def test_names_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such format|cannot be written"):
        write_picture(line_of([attempt(0, 0, 1)]), "gantt", tmp_path / name)


def test_a_picture_is_a_plain_file(tmp_path: Path) -> None:
    """Whoever opens a FIFO waits for who reads it."""
    fifo = tmp_path / "fifo.csv"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path / f"{'x' * 100_000}.csv", tmp_path / ("y" * 300) / "a.csv", Path("/dev/a.csv")):
        with pytest.raises(UsageError, match="cannot be written"):
            write_picture(line_of([attempt(0, 0, 1)]), "gantt", path)
