"""Makes a failing run small: fewer faults, then fewer nodes, then less work, as long as it fails in the same way.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), for the list of faults;
numbers are halved.  Nothing is promised to be minimal: the number of runs and the time are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Final, TypeVar

from p2pcompute.errors import UsageError
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import Scenario, value_at, with_values

T = TypeVar("T")

RUNS_MAX: Final = 200
WALL_S_MAX: Final = 300.0
NODES_MIN: Final = 2
NO_FAULTS: Final = {"faults.per_hour": "0"}
SIZES: Final = ("jobs", "tasks", "lookups", "puts", "queries")
"""Keys of a workload that say how much it is."""


class _Enough(Exception):
    """No more runs are allowed."""


@dataclass(slots=True)
class Shrunk:
    """The smallest failing run found."""

    values: dict[str, str]
    """What to set beyond the scenario that was given."""
    result: RunResult
    runs: int = 0
    faults: Sequence[int] = field(default_factory=list)
    """Numbers of the faults that are left."""


def problem_kinds(problems: Sequence[str]) -> set[str]:
    """Return what kinds of problems these are: without times, numbers and particulars."""
    return {_kind(text) for text in problems}


def _kind(problem: str) -> str:
    text = re.sub(r"^[\d.]+ s: ", "", problem.strip())
    if "Traceback (most recent call last)" in text:
        text = text.rstrip().rpartition("\n")[2]
    return re.sub(r"\d+", "N", text.partition(":")[0])[:80]


def shrink(
    scenario: Scenario,
    first: RunResult,
    faults: Sequence[int],
    attempt: Callable[[Scenario], RunResult],
    *,
    runs_max: int = RUNS_MAX,
    wall_s_max: float = WALL_S_MAX,
    on_step: Callable[[Shrunk], object] | None = None,
) -> Shrunk:
    """Return the smallest scenario found that fails as `first` did.  Ctrl-C ends the search, not the command.

    Args:
        first: what the scenario gave.
        faults: numbers of the faults that took part.
        attempt: runs a scenario with the same seed.
        on_step: told of every smaller one.
    """
    wanted = problem_kinds(first.problems)
    best = Shrunk({}, first, 0, list(faults))
    end = monotonic() + wall_s_max

    def fails(values: Mapping[str, str]) -> bool:
        if best.runs >= runs_max or monotonic() > end:
            raise _Enough
        best.runs += 1
        changed = {**best.values, **values}
        try:
            result = attempt(with_values(scenario, changed))
        except UsageError:
            return False  # settings that do not go together
        if not wanted & problem_kinds(result.problems):
            return False
        best.values, best.result = changed, result
        return True

    def fails_with(left: Sequence[int]) -> bool:
        if not fails({"faults.only": ",".join(map(str, left))} if left else NO_FAULTS):
            return False
        best.faults = list(left)
        if on_step is not None:
            on_step(best)
        return True

    def fails_at(key: str, number: int) -> bool:
        return fails({key: str(number)})

    try:
        if faults:
            ddmin(list(faults), fails_with)
        for key, low in _numbers(scenario):
            now = value_at(scenario, key)
            if isinstance(now, int) and not isinstance(now, bool) and now > low:
                smallest(now, low, partial(fails_at, key))
                if on_step is not None:
                    on_step(best)
    except (_Enough, KeyboardInterrupt):
        pass
    return best


def _numbers(scenario: Scenario) -> Iterator[tuple[str, int]]:
    """Yield the keys of numbers that may shrink, and the least value of each."""
    if hasattr(scenario.settings, "nodes"):
        yield "nodes", NODES_MIN
    for index, workload in enumerate(getattr(scenario.settings, "workload", ())):
        for name in SIZES:
            if hasattr(workload, name):
                yield f"workload.{index}.{name}", 1


def ddmin(items: list[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return a part of `items` with which it still fails, and fails no more when any one of them is left out.

    Args:
        fails: whether it fails with these; true for `items` itself, which is not tried.
    """
    if fails([]):
        return []
    parts = 2
    while len(items) >= 2:
        size = -(-len(items) // parts)
        chunks = [items[at : at + size] for at in range(0, len(items), size)]
        for number, chunk in enumerate(chunks):
            rest = [item for other in chunks[:number] + chunks[number + 1 :] for item in other]
            if parts == 2 or not fails(chunk):
                if not fails(rest):
                    continue
                items, parts = rest, max(parts - 1, 2)
            else:
                items, parts = chunk, 2
            break
        else:
            if parts >= len(items):
                break
            parts = min(2 * parts, len(items))
    return items


def smallest(high: int, low: int, fails: Callable[[int], bool]) -> int:
    """Return a small number, `low` at least, with which it still fails; found by halving the gap.

    Args:
        fails: whether it fails with this number; true for `high`, which is not tried.
    """
    if fails(low):
        return low
    while high - low > 1:
        middle = (high + low) // 2
        if fails(middle):
            high = middle
        else:
            low = middle
    return high
