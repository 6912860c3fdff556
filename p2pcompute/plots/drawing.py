"""Pictures of a job: SVG, PNG, or one HTML page that needs no network.  Its numbers: CSV, and Chrome's trace events.

Pictures need matplotlib, the extra ``p2pcompute[plot]``; numbers do not.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from p2pcompute.errors import UsageError
from p2pcompute.host.plain_files import check_plain
from p2pcompute.plots.timelines import Attempt, Curve, Timeline, arrival, arrived_s, busy, ideal_s, lanes, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["report", "arrival", "gantt", "utilisation"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FORMATS: Final = ("html", "svg", "png", "csv", "json")
COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito: told apart with every kind of colour vision."""
NODES_NAMED_MAX: Final = len(COLORS)
"""Nodes with a colour of their own; the others share one."""
OTHERS: Final = "#999999"
POINTS_MAX: Final = 2_000
"""Of a curve: more than a screen has."""
BARS_VECTOR_MAX: Final = 10_000
"""More bars than this are drawn as pixels, also in SVG: a browser takes seconds for so many shapes."""
WIDTH_INCHES: Final = 9.0
LANE_INCHES: Final = 0.16
GANTT_INCHES_MAX: Final = 40.0


def write_picture(line: Timeline, kind: Kind, path: Path) -> None:
    """Write a picture of a job, or its numbers, in the format that the name's suffix says.

    Args:
        kind: ``report`` is all three.

    Raises:
        UsageError: no such format, not for this kind, matplotlib is missing, or the file cannot be written.
    """
    suffix = check_picture(path)
    data: bytes
    if suffix == "csv":
        data = _table(line, kind).encode()
    elif suffix == "json":
        data = json.dumps(_trace_events(line), ensure_ascii=False).encode()
    elif suffix == "html":
        data = _page(line, kind).encode()
    else:
        data = _picture(line, kind, suffix)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written", error.strerror or str(error), "name another file") from error


def check_picture(path: Path) -> str:
    """Return the format of a picture of that name.

    Raises:
        UsageError: there is no such format, matplotlib is missing for it, or what is there is no plain file.
    """
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        names = ", ".join(f".{name}" for name in FORMATS)
        raise UsageError(f"{path}: no such format", f"the suffix decides: {names}", f"{path.stem or 'job'}.html")
    check_plain(path)
    if not path.parent.is_dir():
        raise UsageError(
            f"{path} cannot be written", f"there is no directory {path.parent}", "make it, or name another"
        )
    if suffix not in ("csv", "json") and find_spec("matplotlib") is None:
        raise _no_matplotlib()
    return suffix


def _no_matplotlib() -> UsageError:
    return UsageError("matplotlib is not installed", "", "install it: pip install 'matplotlib>=3.9', or draw .csv")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _no_matplotlib() from error
    return Figure(figsize=(width, height), layout="constrained")


def draw(line: Timeline, kind: Kind) -> Figure:
    """Return the figure of a job.

    Raises:
        UsageError: there is no such picture, or matplotlib is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no picture {kind!r}", f"there are {', '.join(KINDS)}")
    rows = sum(len(own) for own in lanes(line.attempts).values())
    gantt_inches = min(GANTT_INCHES_MAX, 1.2 + LANE_INCHES * rows)
    if kind == "report":
        heights = [3.6, 3.0, gantt_inches]
        figure = new_figure(WIDTH_INCHES, sum(heights))
        axes = figure.subplots(3, sharex=True, gridspec_kw={"height_ratios": heights})
        for drawn, one in zip((_draw_arrival, _draw_busy, _draw_gantt), axes, strict=True):
            drawn(one, line)
            one.label_outer()
    else:
        figure = new_figure(WIDTH_INCHES, gantt_inches if kind == "gantt" else 4.0)
        _DRAWN[kind](figure.subplots(), line)
    figure.suptitle(line.title)
    return figure


def _picture(line: Timeline, kind: Kind, suffix: str) -> bytes:
    from matplotlib import rc_context

    data = io.BytesIO()
    figure = draw(line, kind)
    with rc_context({"svg.hashsalt": "p2pcompute"}):  # the same bytes for the same job
        figure.savefig(data, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return data.getvalue()


def _colors(line: Timeline) -> dict[str, str]:
    nodes = line.nodes
    return {node: COLORS[place] if place < NODES_NAMED_MAX else OTHERS for place, node in enumerate(nodes)}


def _groups(line: Timeline) -> list[tuple[str, str, list[Attempt]]]:
    """(label, colour, attempts) of the nodes that have a colour, then of all others together."""
    colors, own = _colors(line), {node: [] for node in line.nodes}  # type: dict[str, str], dict[str, list[Attempt]]
    for attempt in line.attempts:
        own[attempt.node].append(attempt)
    named = line.nodes[:NODES_NAMED_MAX]
    groups = [(node or "no node", colors[node], own[node]) for node in named]
    rest = line.nodes[NODES_NAMED_MAX:]
    if rest:
        groups.append((f"{len(rest)} others", OTHERS, [attempt for node in rest for attempt in own[node]]))
    return groups


def _sampled(curves: Sequence[Curve], end_s: float) -> tuple[list[float], list[list[int]]]:
    """Bring staircases to common times, POINTS_MAX at most: the value at each."""
    times = sorted({moment for curve in curves for moment in curve.times} | {end_s})
    if len(times) > POINTS_MAX:
        times = [end_s * place / (POINTS_MAX - 1) for place in range(POINTS_MAX)]
    rows = []
    for curve in curves:
        row, place = [], 0
        for moment in times:
            while place + 1 < len(curve.times) and curve.times[place + 1] <= moment:
                place += 1
            row.append(curve.values[place])
        rows.append(row)
    return times, rows


def _stack(axes: Axes, line: Timeline, curve_of: Callable[[list[Attempt]], Curve]) -> None:
    """Draw a staircase for each node, one on the other."""
    if not line.attempts:
        return
    labels, colors, owns = zip(*_groups(line), strict=True)
    times, rows = _sampled([curve_of(attempts) for attempts in owns], line.last_s)
    axes.stackplot(times, rows, labels=labels, colors=colors, step="post")


def _draw_arrival(axes: Axes, line: Timeline) -> None:
    _stack(axes, line, arrival)
    axes.axhline(line.total, color="0.4", linestyle=":", label="submitted")
    done = arrival(line.attempts)
    if done.values[-1]:
        axes.plot([0, ideal_s(line)], [0, done.values[-1]], color="black", linestyle="--", label="no slot ever idle")
    for name, share in (("t50", 0.5), ("t90", 0.9), ("t100", 1.0)):
        moment = arrived_s(done, share)
        if moment is not None:
            axes.annotate(name, (moment, share * done.values[-1]), (-14, 4), textcoords="offset points", fontsize=8)
            axes.plot([moment], [share * done.values[-1]], marker="o", color="black", markersize=4)
    _finish(axes, "results that arrived")


def _draw_busy(axes: Axes, line: Timeline) -> None:
    _stack(axes, line, busy)
    _finish(axes, "tasks that run")


def _draw_gantt(axes: Axes, line: Timeline) -> None:
    colors = _colors(line)
    is_raster = len(line.attempts) > BARS_VECTOR_MAX
    row, ticks, labels = 0, [], []
    for node, own in lanes(line.attempts).items():
        ticks.append(row + (len(own) - 1) / 2)
        labels.append(node or "no node")
        spans = [((a.start_s, a.took_s), row + place) for place, lane in enumerate(own) for a in lane]
        widths = [span for span, _ in spans]
        axes.barh(
            [place for _, place in spans],
            [width for _, width in widths],
            left=[start for start, _ in widths],
            height=0.85,
            color=colors[node],
            edgecolor="white",
            linewidth=0.3,
            rasterized=is_raster,
        )
        for marker, color, text, found in (
            ("x", "black", "failed", [a.state == "failed" for lane in own for a in lane]),
            (">", "white", "ran before", [a.attempts > 1 for lane in own for a in lane]),
        ):
            places = [spans[number] for number, is_so in enumerate(found) if is_so]
            if places:
                known = axes.get_legend_handles_labels()[1]
                axes.scatter(
                    [start + took if marker == "x" else start for (start, took), _ in places],
                    [place for _, place in places],
                    marker=marker,
                    c=color,
                    edgecolors=None if marker == "x" else "black",
                    s=18,
                    zorder=3,
                    label=None if text in known else text,
                )
        row += len(own)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(row - 0.4, -0.6)
    _finish(axes, "slots", is_count=False)


def _finish(axes: Axes, label: str, *, is_count: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("seconds since the job was submitted")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    if is_count:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="best")


_DRAWN: Final[dict[Kind, Callable[[Any, Timeline], None]]] = {
    "arrival": _draw_arrival,
    "gantt": _draw_gantt,
    "utilisation": _draw_busy,
}


def _page(line: Timeline, kind: Kind) -> str:
    picture = _picture(line, kind, "svg").decode()
    picture = picture[picture.index("<svg") :]
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in summary(line))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in _node_rows(line)
    )
    title = html.escape(line.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_CSS}</style>'
        f"<h1>{title}</h1>{said}<figure>{picture}</figure><table><thead><tr><th>node<th>tasks<th>done<th>failed"
        f"<th>slots<th>busy (s)<th>mean (s)</tr></thead><tbody>{rows}</tbody></table></html>\n"
    )


_CSS: Final = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em}svg{width:100%;height:auto}"
    "table{border-collapse:collapse}td,th{padding:.2em 1em .2em 0;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def _node_rows(line: Timeline) -> list[list[object]]:
    slots = {node: len(own) for node, own in lanes(line.attempts).items()}
    rows: list[list[object]] = []
    for node in line.nodes:
        own = [attempt for attempt in line.attempts if attempt.node == node]
        work_s = sum(attempt.took_s for attempt in own)
        failed = sum(attempt.state == "failed" for attempt in own)
        done = sum(attempt.is_done for attempt in own)
        rows.append([node, len(own), done, failed, slots[node], f"{work_s:.3f}", f"{work_s / len(own):.3f}"])
    return rows


def _table(line: Timeline, kind: Kind) -> str:
    rows: list[Sequence[object]]
    if kind in ("arrival", "utilisation"):
        curve_of = arrival if kind == "arrival" else busy
        curves = [(node, curve_of(a for a in line.attempts if a.node == node)) for node in line.nodes]
        moments = sorted({moment for _, curve in curves for moment in curve.times})
        columns = [dict(zip(curve.times, curve.values, strict=True)) for _, curve in curves]
        rows = [["t_s", *(node for node, _ in curves)]]
        latest = [0] * len(columns)
        for moment in moments:
            latest = [column.get(moment, before) for column, before in zip(columns, latest, strict=True)]
            rows.append([moment, *latest])
    else:
        rows = [["task", "node", "slot", "state", "status", "start_s", "end_s", "cpu_s", "attempts"]]
        for node, own in lanes(line.attempts).items():
            for place, lane in enumerate(own):
                rows += [
                    [a.task, node, place, a.state, a.status, a.start_s, a.end_s, a.cpu_s, a.attempts] for a in lane
                ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _trace_events(line: Timeline) -> list[dict[str, Any]]:
    """Return the attempts as Chrome's trace events (``chrome://tracing``, Perfetto): microseconds, a process a node."""
    events: list[dict[str, Any]] = []
    for number, (node, own) in enumerate(lanes(line.attempts).items(), 1):
        events.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": node}})
        events += [
            {
                "name": f"task {a.task}", "ph": "X", "pid": number, "tid": place, "ts": round(a.start_s * 1e6),
                "dur": round(a.took_s * 1e6), "args": {"state": a.state, "attempts": a.attempts},
            }
            for place, lane in enumerate(own)
            for a in lane
        ]  # fmt: skip
    return events
