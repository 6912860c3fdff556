"""Tables and plots of a study.  Plots need matplotlib, the extra ``p2pcompute[plot]``; tables do not.

A sweep gives one figure for each group of metrics that it has: means and 95 % bands over seeds against the swept value.
Without a sweep, what was sampled in the runs is drawn over time.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.plots import records
from p2pcompute.plots.drawing import COLORS, new_figure
from p2pcompute.simulation.archive import Archive, code_version
from p2pcompute.simulation.running import trace_path
from p2pcompute.simulation.scenario import Scenario, value_at, value_text
from p2pcompute.simulation.study import Study
from p2pcompute.simulation.summary import is_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS: Final = ("svg", "png")
SIZE_INCHES: Final = (7.0, 4.5)
RUNS_DRAWN_MAX: Final = 10
TICKS_MAX: Final = 10
BINS: Final = 100
"""Of the time axis, where events are counted."""
_MARKERS: Final = "osD^vPX"


@dataclass(frozen=True, slots=True)
class _Plot:
    """A figure of a sweep."""

    name: str
    title: str
    unit: str
    metrics: Mapping[str, str]
    """Name → what it is, in the legend."""


_PLOTS: Final = (
    _Plot(
        "lookups",
        "Lookups that find what they should",
        "share",
        {
            "lookup_success": "nearest node found",
            "lookup_recall": "of the nearest nodes found",
            "read_success": "records found",
        },
    ),
    _Plot("asks", "What is asked of the DHT is found", "share", {"success": "found", "recall": "of the nearest nodes"}),
    _Plot(
        "ask-time",
        "Time of what is asked of the DHT",
        "median round trips",
        {"latency_rtt_p50": "median", "latency_rtt_p95": "95 % quantile"},
    ),
    _Plot("ask-messages", "Requests for what is asked of the DHT", "requests", {"messages": "mean"}),
    _Plot("hops", "Hops of a lookup", "hops", {"lookup_hops": "mean", "lookup_hops_p95": "95 % quantile"}),
    _Plot("lookup-time", "Time of a lookup", "seconds", {"lookup_s": "mean", "lookup_s_p95": "95 % quantile"}),
    _Plot("bytes", "Traffic of a node", "bytes per second", {"bytes_per_node_s": "sent"}),
    _Plot("messages", "Messages of a node", "per second", {"messages_per_node_s": "sent"}),
    _Plot("makespan", "Makespan over its lower bound", "ratio", {"makespan_ratio": "mean of jobs"}),
    _Plot("idle", "Slots idle while tasks wait", "share of slots", {"idle_while_work_share": "mean over time"}),
    _Plot("wasted", "Work done in vain", "share of what was accepted", {"wasted_work": "wasted"}),
    _Plot(
        "join",
        "Joining",
        "seconds",
        {"join_s": "to the first peer", "join_table_s": "to as many contacts as there are"},
    ),
    _Plot("recovery", "Recovery after a mass exit", "seconds", {"recovery_s": "until work goes on"}),
)


def main_metrics() -> list[str]:
    """Names of the figures that are drawn, in the order of the plots."""
    return [name for plot in _PLOTS for name in plot.metrics]


def clear(archive: Archive) -> None:
    """Remove what another study of the same scenario may have left in its directory and this one need not write."""
    names = [f"{name}.{suffix}" for name in ("time", *(plot.name for plot in _PLOTS)) for suffix in FORMATS]
    for name in (*names, "points.csv"):
        archive.remove(name)


# --- tables ---------------------------------------------------------------------------------------


_COLUMNS: Final = ("seed", "nodes", "events", "messages", "simulated_s", "wall_s", "problems")
"""Of `runs.csv`, between swept values and figures: what a `RunResult` says of itself."""


def write_tables(archive: Archive, study: Study, document: Mapping[str, Any]) -> list[str]:
    """Write `runs.csv`, a line for each run, and for a sweep `points.csv`, a line for each metric of each point.

    Returns:
        The names of the files.
    """
    swept = list(study.points[0].values)
    names = sorted({name for point in study.points for result in point.results.values() for name in result.metrics})
    # A key that is swept is there once, and so is a figure that is called as a column is (`messages` of `dht`).
    columns = [name for name in _COLUMNS if name not in swept]
    figures = [f"metrics.{name}" if name in (*swept, *columns) else name for name in names]
    rows: list[Sequence[object]] = [[*swept, *columns, *figures]]
    for point in study.points:
        values = [value_text(value_at(point.scenario, key)) for key in swept]
        for seed in study.seeds:
            if (result := point.results.get(seed)) is None:
                continue
            own = [len(result.problems) if name == "problems" else getattr(result, name) for name in columns]
            rows.append([*values, *own, *(result.metrics.get(name, "") for name in names)])
    archive.write("runs.csv", _csv(rows))
    if "points" not in document:
        return ["runs.csv"]
    rows = [[*swept, "metric", "mean", "low", "high"]]
    for part in document["points"]:
        for name, found in part["metrics"].items():
            ends = [found["low"], found["high"]] if is_interval(found, part["seeds"]) else ["", ""]
            rows.append([*map(value_text, part["set"].values()), name, found["mean"], *ends])
    archive.write("points.csv", _csv(rows))
    return ["runs.csv", "points.csv"]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# --- plots ----------------------------------------------------------------------------------------


def draw(folder: Path, study: Study, document: Mapping[str, Any]) -> list[str]:
    """Draw what a study has into `folder`; returns the names of the files.

    Raises:
        UsageError: matplotlib is not installed.
    """
    names: list[str] = []
    caption = _caption(study, document["seeds"])

    def save(figure: Figure, name: str) -> None:
        figure.text(0.01, 0.01, caption, fontsize=7, color="0.35")
        for suffix in FORMATS:
            figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        names.append(f"{name}.{FORMATS[0]}")

    if "points" not in document:
        figure = new_figure(SIZE_INCHES[0], 1.6 * SIZE_INCHES[1])
        if _draw_time(figure, study, folder):
            save(figure, "time")
        return names
    for plot in _PLOTS:
        if any(name in part["metrics"] for part in document["points"] for name in plot.metrics):
            figure = new_figure(*SIZE_INCHES)
            _draw_sweep(figure.subplots(), plot, study, document)
            save(figure, plot.name)
    return names


def _caption(study: Study, seeds: Sequence[int]) -> str:
    code = code_version()
    of = f"seeds {seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"\n{study.scenario.name} · {of} · p2pcompute {code['version']} {code.get('commit', code['digest'])}"


def _draw_sweep(axes: Axes, plot: _Plot, study: Study, document: Mapping[str, Any]) -> None:
    """Draw metrics against the first swept key; every combination of the others is a line of its own."""
    key, *others = study.points[0].values
    lines: dict[tuple[str, str], list[tuple[Any, Mapping[str, float]]]] = {}
    for point, part in zip(study.points, document["points"], strict=True):
        label = ", ".join(f"{other}={part['set'][other]}" for other in others)
        for name, meaning in plot.metrics.items():
            if name in part["metrics"]:
                x = _position(study, point.scenario, key)
                lines.setdefault((meaning, label), []).append((x, part["metrics"][name]))
    positions = [x for points in lines.values() for x, _ in points]
    is_number = all(isinstance(x, int | float) for x in positions)
    finite = sorted({x for x in positions if is_number and math.isfinite(x)})
    far = _beyond(finite)
    for (meaning, label), color, marker in zip(lines, cycle(COLORS), cycle(_MARKERS), strict=False):
        points = lines[meaning, label]
        if is_number:
            points = sorted(points, key=lambda point: float(point[0]))
        axes.plot([], [], color=color, marker=marker, label=", ".join(part for part in (meaning, label) if part))
        near = [point for point in points if not is_number or math.isfinite(point[0])]
        xs = [x if is_number else str(x) for x, _ in near]
        axes.plot(xs, [found["mean"] for _, found in near], color=color, marker=marker)
        low, high = ([found[side] for _, found in near] for side in ("low", "high"))
        axes.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
        for _, found in points[len(near) :]:  # no length of sessions: beside the line
            span = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
            axes.errorbar([far], [found["mean"]], span, color=color, marker=marker)
    if finite and finite[0] > 0 and (finite[-1] >= 8 * finite[0] or (_is_session(study, key) and finite[1:])):
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if is_number:
        _mark(axes, study, key, finite, far)
    axes.set_title(f"{plot.title}, with 95 % intervals" if len(study.seeds) > 1 else plot.title)
    axes.set_xlabel(_axis_name(study, key))
    axes.set_ylabel(plot.unit)
    axes.grid(alpha=0.3)
    axes.legend()


def _beyond(finite: Sequence[float]) -> float:
    """Return a place to the right of all others."""
    return finite[-1] * max(1.5, (finite[-1] / finite[0]) ** 0.2) if finite and finite[0] > 0 else 1.0


def _mark(axes: Axes, study: Study, key: str, finite: Sequence[float], far: float) -> None:
    """Name the points of an axis of numbers, those of session models by the model, if they are not too many."""
    places: dict[float, list[Any]] = {}
    for point in study.points:
        values = places.setdefault(_position(study, point.scenario, key), [])
        if (value := value_at(point.scenario, key)) not in values:
            values.append(value)
    names = {x: ", ".join(values) for x, values in places.items() if isinstance(values[0], str)}
    ticks = {x: f"{names[x]} ({x:g})" if x in names else f"{x:g}" for x in finite}
    if not all(map(math.isfinite, places)):
        ticks[far] = "always up"
    if names:
        axes.set_xticks(list(ticks), list(ticks.values()), rotation=30, ha="right")
    elif len(ticks) <= TICKS_MAX:
        axes.set_xticks(list(ticks), list(ticks.values()))


def _is_session(study: Study, key: str) -> bool:
    """Whether a swept key says how long sessions are; a scale does where there is a model that it scales."""
    long = study.scenario.keys.get(key, key)
    if long != "population.time_scale":
        return long == "population.sessions"
    return any(point.scenario.settings.population.sessions != "none" for point in study.points)


def _axis_name(study: Study, key: str) -> str:
    long = study.scenario.keys.get(key, key)
    if _is_session(study, key):
        return "median session, hours"
    return {"nodes": "nodes"}.get(long, key if key == long else f"{key} ({long})")


def _position(study: Study, scenario: Scenario, key: str) -> Any:
    """Return where a point lies on the axis of a swept key: its value, or the length of sessions that it means,
    which is infinite for nodes that are always up.
    """
    if not _is_session(study, key):
        return value_at(scenario, key)
    from p2pcompute.simulation.population import Weibull, laws

    settings = scenario.settings.population
    found = laws(
        settings.sessions, family=settings.family, time_scale=settings.time_scale, up=settings.up, down=settings.down
    )
    if found is None:
        return math.inf
    up = found[0]
    median_s = up.scale_s * math.log(2) ** (1 / up.shape) if isinstance(up, Weibull) else math.exp(up.mu)
    return round(median_s / 3600, 4)


def _draw_time(figure: Figure, study: Study, folder: Path) -> bool:
    """Draw what happened over time in some runs; False when nothing was recorded."""
    traces = list(_traces(study, folder))
    if not any(record["kind"] == "sample" for trace in traces for record in trace):
        return False
    up, slots, done = figure.subplots(3, sharex=True)
    for number, trace in enumerate(traces):
        faint = {"alpha": 0.7, "linewidth": 1}
        samples = [record for record in trace if record["kind"] == "sample"]
        if len(samples) < 2:
            continue
        times = [record["t"] for record in samples]
        for axes in (up, slots, done):
            for record in trace:
                if record["kind"] == "heal":
                    text = "healing starts" if axes is up and number == 0 else None
                    axes.axvline(record["t"], color="0.4", linestyle="--", linewidth=1, label=text)
        up.plot(times, [record["up"] for record in samples], color=COLORS[0], **faint)
        for name, color, text in (("busy", COLORS[0], "busy"), ("slots", COLORS[6], "all that are up")):
            label = text if number == 0 else None
            slots.plot(times, [record[name] for record in samples], color=color, label=label, **faint)
        ends = [record["t"] for record in trace if record["kind"] == "task.ended"]
        width_s = max(*times, *ends) / BINS
        counts = [0] * (BINS + 1)
        for t in ends:
            counts[int(t / width_s)] += 1
        xs = [width_s * (place + 0.5) for place in range(BINS + 1)]
        done.plot(xs, [count / width_s for count in counts], color=COLORS[2], **faint)
    up.set_ylabel("nodes up")
    if up.get_legend_handles_labels()[0]:
        up.legend()
    slots.set_ylabel("slots")
    slots.legend()
    done.set_ylabel("tasks done per second")
    done.set_xlabel("seconds")
    for axes in (up, slots, done):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    up.set_title(f"{study.scenario.name}: nodes, slots and results over time")
    return True


def _traces(study: Study, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of the first runs that left any."""
    for seed in study.seeds[:RUNS_DRAWN_MAX]:
        path = trace_path(folder, study.points[0], seed)
        if path.exists():
            with path.open(encoding="utf-8") as file:
                yield list(records.read(file, str(path)))[1:]
