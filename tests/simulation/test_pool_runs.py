"""The experiment `pool`: if it broke, the comparison of pool policies would mean nothing."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from p2pcompute.scheduler.policies import POLICIES
from p2pcompute.simulation.pool_runs import STEAL, Choice, run_pool
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import load_scenario, with_values
from tests.simulation.test_glossary import glossary


def run(seed: int = 1, **values: object) -> RunResult:
    result = run_pool(with_values(load_scenario("pool"), {key: str(value) for key, value in values.items()}), seed)
    assert not result.problems
    return result


def test_all_policies_can_be_chosen_and_the_glossary_explains_the_figures() -> None:
    assert set(get_args(Choice)) == {*POLICIES, STEAL}
    for policy in get_args(Choice):
        names = {re.sub("_(p50|p95|max)$", "", name) for name in run(policy=policy, hours=0.05).metrics}
        assert names <= glossary().keys()


def test_a_lone_server_agrees_with_queueing_theory() -> None:
    """M/M/1 with processor sharing: the mean time in the system is size / (1 - load), and so it is first come first
    served.  Users are so many that hardly any request waits for another of its user."""
    for policy in ("random", STEAL):
        values = {"elements": 1, "users": 1000, "fast_share": 0, "utilisation": 0.5, "requests_max": 1000}
        metrics = run(policy=policy, delay_s=0, hours=100, **values).metrics
        assert metrics["handling_s"] == pytest.approx(20.0, rel=0.1)
        assert metrics["pool_utilisation"] == pytest.approx(0.5, rel=0.05)


def test_adaptive_policies_are_better_than_blind_ones_on_different_servers() -> None:
    blind, weighted, adaptive = (
        run(policy=policy).metrics["handling_speed"] for policy in ("round-robin", "weighted-round-robin", "least-used")
    )
    assert blind < weighted < adaptive


def test_the_same_seed_gives_the_same_run() -> None:
    assert run(hours=0.1).trace_hash == run(hours=0.1).trace_hash != run(2, hours=0.1).trace_hash
