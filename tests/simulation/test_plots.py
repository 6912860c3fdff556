"""Plots and tables: drawn from what a study has, absent without matplotlib."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.errors import UsageError
from p2pcompute.plots.drawing import new_figure
from p2pcompute.plots.records import Writer, header
from p2pcompute.simulation.archive import Archive
from p2pcompute.simulation.plots import _PLOTS, SIZE_INCHES, _draw_sweep, _position, draw, write_tables
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.running import InProcess, run_study, trace_path
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.simulation.study import Study, plan_study
from p2pcompute.simulation.summary import summary
from tests.simulation import tiny

pytestmark = pytest.mark.usefixtures("fonts")


def study_of(folder: Path, sweep: dict[str, list[str]]) -> Study:
    assert tiny.GUILTY  # registers the experiment
    path = folder / "tiny.toml"
    path.write_text('question = "?"\nexperiment = "tiny"\n')
    study = plan_study(load_scenario(str(path)), range(3), sweep)
    run_study(study, InProcess)
    for number, point in enumerate(study.points):
        for seed, result in point.results.items():
            figures = {"makespan_ratio": 1.0 + number + seed / 10, "lookup_hops": 2.0 + number, "of_no_plot": 1.0}
            point.results[seed] = RunResult(**{**vars(result), "metrics": figures})
    return study


def test_a_sweep_is_drawn_with_its_caption(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"nodes": ["4", "16", "64"], "mode": ["fine", "fail"]})
    names = draw(tmp_path, study, summary(study))
    assert names == ["hops.svg", "makespan.svg"]
    text = (tmp_path / "makespan.svg").read_text()
    assert "<svg" in text and (tmp_path / "makespan.png").read_bytes().startswith(b"\x89PNG")


def test_values_that_are_no_numbers_are_drawn_too(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"mode": ["fine", "fail"]})
    assert "makespan.svg" in draw(tmp_path, study, summary(study))


def test_a_scale_of_no_model_is_a_plain_number(tmp_path: Path) -> None:
    """As of a trace, whose sessions have no median that is known."""
    path = tmp_path / "mesh.toml"
    path.write_text('question = "?"\nexperiment = "mesh"\n')
    sweep = {"population.time_scale": ["0.5", "2"]}
    for model, first in (("none", 0.5), ("kad", 0.7783)):
        study = plan_study(with_values(load_scenario(str(path)), {"population.sessions": model}), [0], sweep)
        assert _position(study, study.points[0].scenario, "population.time_scale") == first


def test_one_scenario_is_drawn_over_time(tmp_path: Path) -> None:
    study = study_of(tmp_path, {})
    assert draw(tmp_path, study, summary(study)) == [], "nothing was sampled"
    path = trace_path(tmp_path, study.points[0], 1)
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        writer = Writer(file, header(version="0", scenario="tiny", seed=1))
        for t in range(5):
            writer.write({"t": t, "kind": "sample", "node": "", "up": 3, "slots": 6, "busy": t, "ready": 0})
            writer.write({"t": t, "kind": "task.ended", "node": "node-1", "task": t, "state": "done"})
        writer.write({"t": 4, "kind": "heal", "node": ""})
        writer.flush()
    assert draw(tmp_path, study, summary(study)) == ["time.svg"]
    assert "healing starts" in (tmp_path / "time.svg").read_text(), "text, or the comment beside its outline"


def test_session_models_stand_at_their_median(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text('question = "?"\nexperiment = "mesh"\n')
    study = plan_study(load_scenario(str(path)), range(2), {"population.sessions": ["none", "skype", "overnet"]})
    for number, point in enumerate(study.points):
        for seed in study.seeds:
            fields: dict[str, Any] = dict.fromkeys(("events", "messages", "nodes"), 1)
            fields |= {"scenario": "mesh", "seed": seed, "trace_hash": ""}
            point.results[seed] = RunResult(
                **fields, wall_s=1.0, simulated_s=1.0, metrics={"makespan_ratio": 2.0 + number + seed}, fired={},
                problems=(),
            )  # fmt: skip
    axes = new_figure(*SIZE_INCHES).subplots()
    [plot] = [one for one in _PLOTS if one.name == "makespan"]
    _draw_sweep(axes, plot, study, summary(study))
    ticks = [label.get_text().partition(" (")[0] for label in axes.get_xticklabels()]
    assert ticks == ["overnet", "skype", "always up"] and axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == sorted(axes.get_xticks())
    [joined] = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert list(joined.get_ydata()) == [4.5, 3.5], "always up is not part of the line"


def test_tables_hold_every_run_and_every_point(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"nodes": ["4", "16"]})
    document = summary(study)
    assert write_tables(Archive(tmp_path / "out"), study, document) == ["runs.csv", "points.csv"]
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert len(runs) == 6 and runs[-1]["nodes"] == "16" and runs[-1]["makespan_ratio"] == "2.2"
    head = (tmp_path / "out" / "runs.csv").read_text().splitlines()[0].split(",")
    assert len(set(head)) == len(head), "no two columns have one name"
    points = list(csv.DictReader((tmp_path / "out" / "points.csv").read_text().splitlines()))
    assert [row["metric"] for row in points] == sorted(row["metric"] for row in points[:3]) * 2
    json.dumps(document, allow_nan=False)


def test_a_figure_that_is_called_as_a_column_is_keeps_apart(tmp_path: Path) -> None:
    """`dht` counts `messages` of an ask."""
    study = study_of(tmp_path, {"nodes": ["4"]})
    for point in study.points:
        for seed, result in point.results.items():
            point.results[seed] = replace(result, messages=70, metrics={"messages": 3.5})
    write_tables(Archive(tmp_path / "out"), study, summary(study))
    row = next(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert row["messages"] == "70" and row["metrics.messages"] == "3.5"


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    study = study_of(tmp_path, {"nodes": ["4", "16"]})
    with pytest.raises(UsageError, match="pip install 'matplotlib>="):
        draw(tmp_path, study, summary(study))
