"""A study: one scenario for many seeds and swept values, and what that gave so far.  `running` runs it.

A run is a pure function of (code, settings, seed), so runs need nothing of one another, may go anywhere, and need not
be repeated: see `archive`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import UsageError
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import Scenario, value_at, with_values

POINTS_MAX: Final = 10_000


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

    @property
    def done_count(self) -> int:
        """Runs that have a result."""
        return sum(len(point.results) for point in self.points)

    def failed(self) -> list[tuple[Point, RunResult]]:
        """Runs with problems, by point and seed."""
        return [
            (point, point.results[seed])
            for point in self.points
            for seed in self.seeds
            if seed in point.results and point.results[seed].problems
        ]


def plan_study(
    scenario: Scenario,
    seeds: Sequence[int],
    sweep: Mapping[str, Sequence[str]],
    changes: Mapping[str, str] | None = None,
    *,
    words: Mapping[str, str] | None = None,
) -> Study:
    """Return the study of every seed at every combination of the swept values; nothing has run yet.

    Args:
        changes: key → value as typed, of all points; one may need what is swept, as `up` needs `down`.
        words: key → how a change was typed, where that was not with --set.

    Raises:
        UsageError: a key, a value or a file that is named is wrong, or they are too many.
    """
    count = math.prod(len(values) for values in sweep.values())
    if count > POINTS_MAX:
        raise UsageError(f"a sweep of {count} combinations is too much", f"at most {POINTS_MAX}", "sweep fewer values")
    combinations = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    points = []
    for values in combinations:
        typed = {**(words or {}), **{key: f"--sweep {key}={value}" for key, value in values.items()}}
        points.append(Point(values, with_values(scenario, {**(changes or {}), **values}, words=typed)))
    checked: dict[tuple[str, ...], None] = {}
    for point in points:
        if (files := tuple(point.scenario.files())) not in checked:
            checked[files] = None
            point.scenario.check_files()
    return Study(scenario, seeds, points)
