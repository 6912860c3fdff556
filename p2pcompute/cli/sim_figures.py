"""How p2pc sim run shows what it gave: figures of one scenario, or of each point of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.cli.output import count_text, duration_text, plural, table

if TYPE_CHECKING:
    from p2pcompute.simulation.study import Point, Study

TABLE_COLUMNS_MAX: Final = 120


def print_summary(document: Mapping[str, Any], study: Study, stream: Any) -> None:
    from p2pcompute.simulation.scenario import value_text

    points = document.get("points", [document])
    seeds, nodes = len({seed for part in points for seed in part["seeds"]}), sorted({part["nodes"] for part in points})
    events, messages = (sum(part[name] for part in points) for name in ("events", "messages"))
    simulated_s, wall_s = (sum(part[name] for part in points) for name in ("simulated_s", "wall_s"))
    head = [
        f"{'–'.join(count_text(count) for count in {nodes[0]: None, nodes[-1]: None})} nodes",
        plural(seeds, "seed") + (f" of {count_text(len(study.seeds))}" if seeds < len(study.seeds) else ""),
        f"{duration_text(simulated_s)} simulated in {duration_text(wall_s)}",
        f"{count_text(events)} events",
        f"{count_text(messages)} messages",
    ]
    print(f"{study.scenario.name}  {' · '.join(head)}", file=stream)
    if "points" in document:
        text = _points_table(points)
    else:
        text = _metrics_table(points[0]["metrics"], points[0]["seeds"])
    if text:
        print(text, file=stream)
    fired: dict[str, int] = {}
    for part in points:
        for kind, count in part["fired"].items():
            fired[kind] = fired.get(kind, 0) + count
    if fired:
        print(
            "faults: " + ", ".join(f"{kind} {count_text(count)}" for kind, count in sorted(fired.items())), file=stream
        )
    for part in points:
        where = " ".join(f"{key}={value_text(value)}" for key, value in part.get("set", {}).items())
        for note, count in part["notes"].items():
            often = f" ({count} of {plural(len(part['seeds']), 'seed')})" if len(part["seeds"]) > 1 else ""
            print(f"note: {f'{where}: ' if where else ''}{note}{often}", file=stream)
    if not any(part["problems"] for part in points):
        off = sorted({name for point in study.points for name in _checks_off(point)})
        but = f"; off: {', '.join(off)}" if off else ""
        print(f"every check has passed{but}; what the figures mean: docs/simulation.md, Glossary", file=stream)
    if len(points) == 1:
        print(f"trace {points[0]['trace_hash'][:16]}", file=stream)


def _checks_off(point: Point) -> Sequence[str]:
    """Checks that the settings of a point leave out; other experiments than `mesh` have none to leave out."""
    return getattr(getattr(point.scenario.settings, "checks", None), "off", ())


_SPREAD: Final = {"_p50": "MEDIAN", "_p95": "p95", "_max": "MAX"}
"""Endings of the names of figures that say how another one is spread."""


def _plain_names(metrics: Mapping[str, Any]) -> list[str]:
    """Names without those that say how another one is spread."""
    return [name for name in sorted(metrics) if not (name[-4:] in _SPREAD and name[:-4] in metrics)]


def _metrics_table(metrics: Mapping[str, Any], seeds: Sequence[int]) -> str:
    from p2pcompute.simulation.summary import is_interval

    columns = ["MEAN", "LOW", "HIGH", *_SPREAD.values()]
    rows = []
    for name in _plain_names(metrics):
        found = metrics[name]
        cells = [found["mean"], *((found["low"], found["high"]) if is_interval(found, seeds) else (None, None))]
        cells += [metrics[name + ending]["mean"] if name + ending in metrics else None for ending in _SPREAD]
        rows.append([name, *("" if cell is None else _number_text(cell) for cell in cells)])
    return table(["METRIC", *columns], rows, right=columns)


def _points_table(points: Sequence[Mapping[str, Any]]) -> str:
    """All figures, a column for each point, or where that is too wide a line for each point and the main figures."""
    from p2pcompute.simulation.scenario import value_text

    titles = [" ".join(f"{key}={value_text(value)}" for key, value in part["set"].items()) for part in points]
    names = _plain_names({name: None for part in points for name in part["metrics"]})
    rows = [[name, *(_mean_text(part["metrics"].get(name), part["seeds"]) for part in points)] for name in names]
    text = table(["METRIC", *titles], rows, right=titles)
    if not text or max(map(len, text.splitlines())) <= TABLE_COLUMNS_MAX:
        return text
    from p2pcompute.simulation.plots import main_metrics

    swept = list(points[0]["set"])
    cells = {row[0]: row[1:] for row in rows}
    shown: list[str] = []
    for name in dict.fromkeys([*(name for name in main_metrics() if name in cells), *names]):
        columns = [*swept, *shown, name]
        lines = [
            [*map(value_text, part["set"].values()), *(cells[one][place] for one in [*shown, name])]
            for place, part in enumerate(points)
        ]
        wider = table(columns, lines, right=columns)
        if shown and max(map(len, wider.splitlines())) > TABLE_COLUMNS_MAX:
            break
        shown.append(name)
        text = wider
    left = len(names) - len(shown)
    return text + (f"\n{plural(left, 'more figure')} of each point: --json, or points.csv with -o DIR" if left else "")


def _mean_text(found: Mapping[str, float] | None, seeds: Sequence[int]) -> str:
    from p2pcompute.simulation.summary import is_interval

    if found is None:
        return "–"
    mean, low, high = found["mean"], found["low"], found["high"]
    if not is_interval(found, seeds) or low == high:
        return _number_text(mean)
    if math.isclose(high - mean, mean - low):
        return f"{_number_text(mean)} ±{_number_text(high - mean)}"
    return f"{_number_text(mean)} [{_number_text(low)}, {_number_text(high)}]"  # cut to what is possible


def _number_text(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return count_text(int(value))
    return f"{value:.4g}" if abs(value) < 10_000 else count_text(round(value))
