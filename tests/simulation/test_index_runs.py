"""The experiment `index`: if it broke, figures about searches in large groups would mean nothing."""

from __future__ import annotations

import pytest

from p2pcompute.simulation.index_runs import run_index
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import load_scenario, with_values
from tests.simulation.test_glossary import glossary


def run(seed: int = 1, **values: object) -> RunResult:
    small = {"nodes": 1000, "asks": 10, **values}
    result = run_index(
        with_values(load_scenario("index-find"), {key: str(value) for key, value in small.items()}), seed
    )
    assert not result.problems
    return result


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_searches_find_enough_and_the_glossary_explains_the_figures(share: float) -> None:
    metrics = run(share=share).metrics
    bare = {metric.removesuffix("_p50").removesuffix("_p95").removesuffix("_max") for metric in metrics}
    assert {"success", "queries", "found"} <= bare <= glossary().keys()
    assert metrics["success"] >= 0.9 and metrics["found"] >= min(30, share * 1000) - 1


def test_in_a_group_of_20_000_what_few_have_is_found() -> None:
    metrics = run(nodes=20_000, share=0.001, asks=3).metrics
    assert metrics["success"] == 1.0 and metrics["queries_max"] <= 60


def test_what_nobody_has_is_not_found_and_the_search_ends() -> None:
    metrics = run(share=0).metrics
    assert metrics["found"] == 0 and metrics["success"] == 1.0


def test_dead_nodes_do_not_count_as_found() -> None:
    metrics = run(share=0.1, dead=0.5, asks=20).metrics
    assert metrics["found"] < 30 and metrics["success"] < 1


def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    assert run(5).trace_hash == run(5).trace_hash != run(6).trace_hash


@pytest.mark.parametrize("lie", ["withhold", "junk"])
def test_searches_find_what_few_have_among_liars(lie: str) -> None:
    """Nodes that nobody has, named by two liars, used to end a search for thirty."""
    result = run(share=0.01, f=0.2, lie=lie)
    assert result.metrics["success"] >= 0.9 and result.metrics["false"] == 0


@pytest.mark.parametrize("f", [0.01, 0.05])
def test_boasters_take_no_more_than_their_share_of_what_a_search_finds(f: float) -> None:
    """They advertise like others, and name each other, as many as an answer holds."""
    metrics = run(nodes=2000, share=0.01, f=f, lie="boast", asks=20).metrics
    honest, boasters = 20, 2000 * f
    assert metrics["found"] >= min(19.5, 30 * honest / (honest + boasters))


def test_who_has_given_work_to_a_few_finds_most_among_boasters() -> None:
    """Experience with a tenth of all nodes: what it shows of some is expected of the others."""
    naive = run(nodes=2000, share=0.01, f=0.1, lie="boast", asks=20).metrics
    wise = run(nodes=2000, share=0.01, f=0.1, lie="boast", asks=20, met=0.1).metrics
    assert wise["found"] > 2 * naive["found"] and wise["queries"] <= 60


def test_whoever_says_himself_that_he_has_it_is_found_by_the_index() -> None:
    """The oracle of the experiment: lies are told; only who is asked to do something shows this one."""
    assert run(share=0.01, f=0.2, lie="boast").metrics["false"] > 10
