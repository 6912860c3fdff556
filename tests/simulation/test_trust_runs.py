"""The experiment `trust`: if it broke, figures about the cost and errors of verification would mean nothing."""

from __future__ import annotations

import pytest

from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.simulation.trust_runs import run_trust
from p2pcompute.trust.verification.formulas import checked_error_bound, voting_cost, voting_error
from tests.simulation.test_glossary import glossary


def run(seed: int = 1, **values: object) -> RunResult:
    typed = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    result = run_trust(with_values(load_scenario("trust"), typed), seed)
    assert not result.problems
    return result


def test_the_glossary_explains_the_figures() -> None:
    assert run(tasks=100, workers=20).metrics.keys() <= glossary().keys()


@pytest.mark.parametrize(("votes", "s"), [(2, 1.0), (3, 1.0), (2, 0.5)])
def test_voting_agrees_with_the_closed_form(votes: int, s: float) -> None:
    tasks = 10_000
    metrics = run(method="majority", m=votes, s=s, tasks=tasks, workers=1000).metrics
    error = voting_error(votes, 0.2 * s)
    assert metrics["error_rate"] == pytest.approx(error, abs=4 * (error / tasks) ** 0.5)
    assert metrics["redundancy"] == pytest.approx(voting_cost(votes, 0.2 * s), rel=0.02)


def test_checks_alone_keep_their_bound_and_cost_little() -> None:
    metrics = run(method="spotcheck", s=0.05).metrics
    assert 0 < metrics["error_rate"] < checked_error_bound(0.2, 11) and metrics["redundancy"] < 1.3


def test_checks_without_a_blacklist_let_more_through() -> None:
    with_list, without = (run(method="spotcheck", s=0.5, blacklist=value).metrics for value in (True, False))
    assert with_list["error_rate"] < without["error_rate"] < 0.2 / 11


@pytest.mark.parametrize(("collude", "s"), [(False, 0.02), (True, 0.005), (True, 1.0)])
def test_at_a_hundred_tasks_a_worker_two_copies_are_enough(collude: bool, s: float) -> None:
    metrics = run(s=s, collude=collude, tasks=10_000, workers=100).metrics
    assert metrics["error_rate"] <= 3e-4 and metrics["redundancy"] <= 2.3 and metrics["banned_honest"] == 0


def test_saboteurs_that_look_for_what_others_of_them_lied_about_gain_nothing_by_it() -> None:
    """Handing tasks back must cost what it buys: without that this gives ten times the errors that were asked for."""
    values: dict[str, object] = {"copycat": True, "sleep": 60, "choosy": 30, "s": 0.005, "tasks": 5000, "workers": 50}
    errors = [run(seed, **values).metrics["error_rate"] for seed in range(2)]
    assert sum(errors) <= 4e-4, "two wrong results of 10,000"


def test_machines_that_rarely_err_are_not_banned() -> None:
    metrics = run(f=0, fault_hosts=0.35, tasks=10_000, workers=100).metrics
    assert metrics["error_rate"] == 0 and metrics["banned_honest"] <= 0.02 and metrics["redundancy"] <= 2.3


def test_saboteurs_come_back_no_faster_than_they_are_let_in() -> None:
    few, many = (
        run(s=1, collude=True, whitewash=True, admit=admit, tasks=4000, workers=50).metrics for admit in (0, 1000)
    )
    assert few["trusted_runs"] < many["trusted_runs"] / 2
    assert few["error_rate"] == many["error_rate"] == 0


def test_without_a_trusted_node_nobody_is_banned_and_more_copies_are_made() -> None:
    metrics = run(arbiter=False, s=0.2, tasks=1000, workers=50).metrics
    assert metrics["banned_saboteurs"] == metrics["banned_honest"] == metrics["error_rate"] == 0
    assert metrics["redundancy"] > 2.5


def test_too_few_workers_for_agreement_leave_the_rest_to_a_trusted_node() -> None:
    metrics = run(tasks=5, workers=3, f=0).metrics
    assert metrics["trusted_runs"] == 5 and metrics["error_rate"] == 0


def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    assert run(5, tasks=500).trace_hash == run(5, tasks=500).trace_hash != run(6, tasks=500).trace_hash
