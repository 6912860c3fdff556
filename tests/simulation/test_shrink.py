"""Shrinking: what is left still fails in the same way, and is small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.running import run_one
from p2pcompute.simulation.scenario import Scenario, load_scenario, with_values
from p2pcompute.simulation.shrink import ddmin, problem_kinds, shrink, smallest
from tests.simulation import tiny

TEXT = """question = "Does it?"
experiment = "tiny"
nodes = 40
mode = "fail"
bad_seeds = [7]
[[workload]]
tasks = 100
[[workload]]
tasks = 50
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT)
    return load_scenario(str(path))


def attempt(scenario: Scenario) -> RunResult:
    return run_one("tests.simulation.tiny:run_tiny", scenario, 7)


def test_a_failure_is_cut_down_to_its_causes(scenario: Scenario) -> None:
    first = attempt(scenario)
    found = shrink(scenario, first, range(tiny.FAULTS), attempt)
    assert found.values == {
        "faults.only": "3,17",
        "nodes": "3",
        "workload.0.tasks": "2",
        "workload.1.tasks": "2",
    }
    assert attempt(with_values(scenario, found.values)).problems
    assert problem_kinds(found.result.problems) == problem_kinds(first.problems)
    assert found.faults == [3, 17] and found.runs < 100


def test_another_failure_does_not_count(scenario: Scenario) -> None:
    """The tiny experiment fails differently with a single fault."""
    single = attempt(with_values(scenario, {"faults.only": "5"}))
    assert single.problems and not problem_kinds(single.problems) & problem_kinds(attempt(scenario).problems)


def test_runs_are_bounded_and_the_best_so_far_is_kept(scenario: Scenario) -> None:
    found = shrink(scenario, attempt(scenario), range(tiny.FAULTS), attempt, runs_max=6)
    assert found.runs == 6 and attempt(with_values(scenario, found.values)).problems
    assert shrink(scenario, attempt(scenario), range(tiny.FAULTS), attempt, wall_s_max=0.0).values == {}


def test_ctrl_c_ends_the_search_with_what_it_has(scenario: Scenario) -> None:
    runs = 0

    def interrupted(changed: Scenario) -> RunResult:
        nonlocal runs
        runs += 1
        if runs == 12:
            raise KeyboardInterrupt
        return attempt(changed)

    found = shrink(scenario, attempt(scenario), range(tiny.FAULTS), interrupted)
    assert found.values and attempt(with_values(scenario, found.values)).problems


def test_a_failure_without_faults_gets_fewer_nodes(scenario: Scenario) -> None:
    def always(changed: Scenario) -> RunResult:
        return attempt(with_values(changed, {"mode": "raise"}))

    found = shrink(scenario, always(scenario), range(tiny.FAULTS), always)
    assert found.values == {"faults.per_hour": "0", "nodes": "2", "workload.0.tasks": "1", "workload.1.tasks": "1"}
    assert found.faults == []


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("3.125 s: lost-task: task 7", "99.000 s: lost-task: task 8 of job 12", True),
        ("3.125 s: lost-task: task 7", "3.125 s: two-leases: task 7", False),
        ("node-3: node.request: KeyError(7)", "node-11: node.request: KeyError(8)", True),
        (
            "1 s: Traceback (most recent call last):\n  File x\nValueError: 3\n",
            "2 s: Traceback (most recent call last):\n  File y\nValueError: 4\n",
            True,
        ),
        (
            "1 s: Traceback (most recent call last):\n  File x\nValueError: 3\n",
            "1 s: Traceback (most recent call last):\n  File x\nKeyError: 3\n",
            False,
        ),
    ],
)
def test_problems_are_alike_when_only_numbers_differ(one: str, other: str, is_same: bool) -> None:
    assert bool(problem_kinds([one]) & problem_kinds([other])) == is_same


@given(st.integers(0, 60), st.data())
def test_ddmin_leaves_just_the_causes(count: int, data: st.DataObject) -> None:
    """When a failure needs all of some faults and no other, these are what is left, in their order."""
    items = list(range(count))
    causes = data.draw(st.sets(st.sampled_from(items), max_size=6)) if items else set()
    tried: list[Sequence[int]] = []

    def fails(left: Sequence[int]) -> bool:
        tried.append(left)
        return causes <= set(left)

    assert ddmin(items, fails) == sorted(causes)
    assert len(tried) <= count * count + 3 * count + 1, "the bound of the paper"


@given(st.integers(2, 10_000), st.data())
def test_smallest_finds_the_threshold(high: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(1, high - 1))
    threshold = data.draw(st.integers(low, high))
    assert smallest(high, low, lambda number: number >= threshold) == threshold
