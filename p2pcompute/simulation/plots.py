"""Tables and plots of a study.  Plots need matplotlib, the extra ``p2pcompute[plot]``; tables do not."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pcompute.errors import UsageError
from p2pcompute.simulation.scenario import value_at

if TYPE_CHECKING:
    from p2pcompute.simulation.study import Archive, Study


def write_tables(archive: Archive, study: Study) -> list[str]:
    """Write `runs.csv`: a line for each run with its swept values and figures.  Returns the names of the files."""
    swept = list(study.points[0].values)
    names = sorted({name for point in study.points for result in point.results.values() for name in result.metrics})
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*swept, "seed", "nodes", "events", "messages", "simulated_s", "wall_s", "problems", *names])
    for point in study.points:
        values = [value_at(point.scenario, key) for key in swept]
        for seed in study.seeds:
            if (result := point.results.get(seed)) is None:
                continue
            own = [result.nodes, result.events, result.messages, result.simulated_s, result.wall_s]
            figures = [result.metrics.get(name, "") for name in names]
            lines.writerow([*values, seed, *own, len(result.problems), *figures])
    archive.write("runs.csv", text.getvalue())
    return ["runs.csv"]


def draw(folder: Path, study: Study, document: Mapping[str, Any]) -> list[str]:
    """Draw plots.

    Raises:
        UsageError: matplotlib is not installed.
    """
    raise UsageError("matplotlib is not installed", "", "pip install 'p2pcompute[plot]', or --no-plot")
