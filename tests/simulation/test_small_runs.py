"""The experiment `small`: in the groups where most people are, everybody knows everybody, soon."""

from __future__ import annotations

import pytest

from p2pcompute.limits import DHT_K
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.simulation.small_runs import run_small


def run(seed: int = 1, **values: object) -> RunResult:
    result = run_small(
        with_values(load_scenario("dht-small"), {key: str(value) for key, value in values.items()}), seed
    )
    assert not result.problems
    return result


@pytest.mark.parametrize("nodes", [2, 3, 10, 30])
def test_who_comes_is_known_within_two_seconds_and_who_goes_is_forgotten_within_a_minute(nodes: int) -> None:
    metrics = run(nodes=nodes, deaths=2, asks=5).metrics
    assert metrics["known_s_max"] <= 2.0
    assert metrics["forgotten_s_max"] <= 60.0
    assert metrics["success"] == 1.0, "lookups name everybody who is up, or the k nearest"


def test_lost_datagrams_are_noticed() -> None:
    """The oracle of the experiment: what it reports is not taken for granted."""
    calm, hard = run(nodes=4, deaths=1, asks=5).metrics, run(nodes=4, deaths=1, asks=5, loss=0.4).metrics
    assert hard["known_s_max"] > calm["known_s_max"]
    assert hard["messages"] <= DHT_K


def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    one, again, other = (run(seed, nodes=3, deaths=1, asks=2).trace_hash for seed in (5, 5, 6))
    assert one == again != other
