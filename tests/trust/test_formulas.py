"""The arithmetic of sabotage tolerance, against brute force and published figures."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.trust.verification.formulas import (
    checked_error_bound,
    coalition_risk,
    credibility_after,
    fault_rate_exceeds,
    group_credibility,
    survival_bound,
    voting_cost,
    voting_error,
)


@given(checks=st.integers(0, 10_000), rate=st.floats(0, 1))
def test_no_rate_of_sabotage_survives_more_checks_than_the_bound_says(checks: int, rate: float) -> None:
    assert rate * (1 - rate) ** checks <= survival_bound(checks) * (1 + 1e-9)


@pytest.mark.parametrize("checks", [0, 1, 10, 4095, 4096, 100_000])
def test_the_bound_of_survival_is_reached(checks: int) -> None:
    rate = 1 / (checks + 1)
    assert rate * (1 - rate) ** checks == pytest.approx(survival_bound(checks))


def test_a_coalition_is_worse_than_the_product_of_its_members() -> None:
    """Two who passed ten checks each: 13 times what Sarmenta's product claims."""
    together = 0.25**2 * survival_bound(20)
    product = (0.25 / (2.718281828 * 10)) ** 2
    assert together == pytest.approx(1.1e-3, rel=0.05) and together / product == pytest.approx(13, rel=0.05)
    assert coalition_risk(0.25**2, 20, 0.2) == pytest.approx(together / 0.8)
    assert coalition_risk(0.25, 0, 0.2) == 0.25  # before any check there are the odds alone


def votes_of(votes: int, wrong: float) -> tuple[float, float]:
    """Error and cost of m-first voting by going through all outcomes."""
    error = cost = 0.0
    for outcome in itertools.product((True, False), repeat=2 * votes - 1):
        weight = 1.0
        for is_wrong in outcome:
            weight *= wrong if is_wrong else 1 - wrong
        count = next(n for n in range(2 * votes) if votes in (sum(outcome[:n]), n - sum(outcome[:n])))
        error += weight * (sum(outcome[:count]) == votes)
        cost += weight * count
    return error, cost


@pytest.mark.parametrize("votes", [1, 2, 3, 5])
@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.2, 0.45])
def test_voting_agrees_with_all_outcomes(votes: int, wrong: float) -> None:
    assert (voting_error(votes, wrong), voting_cost(votes, wrong)) == pytest.approx(votes_of(votes, wrong))


@pytest.mark.parametrize(("votes", "error"), [(15, 0.05), (29, 0.01), (51, 0.001)])
def test_votes_that_sarmenta_prints_for_a_third_of_saboteurs(votes: int, error: float) -> None:
    assert voting_error(votes, 0.35) < error <= voting_error(votes - 1, 0.35)


@pytest.mark.parametrize("has_blacklist", [True, False])
def test_credibility_grows_with_checks(has_blacklist: bool) -> None:
    found = [credibility_after(checks, 0.2, has_blacklist=has_blacklist) for checks in range(200)]
    assert found == sorted(found) and found[0] == 0.8 and found[-1] < 1


def test_two_of_credibility_reach_a_ten_thousandth_after_eleven_checks() -> None:
    credibility = credibility_after(11, 0.2, has_blacklist=True)
    odds = credibility / (1 - credibility)
    assert group_credibility([odds]) == pytest.approx(credibility)
    assert group_credibility([odds]) < 1 - 1e-4 < group_credibility([odds**2])
    assert group_credibility([odds**2, odds]) < group_credibility([odds**2])  # whoever contradicts counts


def test_checks_with_a_blacklist_keep_their_bound() -> None:
    worst = max(0.2 * s * (1 - s) ** 11 / (0.8 + 0.2 * (1 - s) ** 11) for s in (step / 1000 for step in range(1000)))
    assert worst <= checked_error_bound(0.2, 11)


def test_rare_faults_are_told_from_frequent_ones() -> None:
    def exceeds(wrong: int, right: int) -> float:
        return fault_rate_exceeds(0.01, wrong, right, prior_right=100)

    assert exceeds(1, 0) < 0.95 and exceeds(2, 200) < 0.95 < exceeds(4, 30)
    rng = random.Random(1)
    drawn = [rng.betavariate(1 + 3, 100 + 50) > 0.01 for _ in range(20_000)]
    assert exceeds(3, 50) == pytest.approx(sum(drawn) / len(drawn), abs=0.015)
