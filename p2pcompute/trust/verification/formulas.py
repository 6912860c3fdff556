"""The arithmetic of sabotage tolerance: plain functions of probabilities.

`f` is the share of saboteurs, `s` the probability with which each of them gives a wrong result, `k` checks that a
worker has passed, `m` claims that agree.

Source: Sarmenta 2002, sections 3 and 4; `survival_bound` and `coalition_risk` are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_TABLE_MAX: Final = 4096


def _survival_bound(checks: int) -> float:
    if checks == 0:
        return 1.0
    return math.exp(checks * math.log(checks) - (checks + 1) * math.log(checks + 1))


_SURVIVAL: Final = tuple(_survival_bound(checks) for checks in range(_TABLE_MAX))


def survival_bound(checks: int) -> float:
    """Return h(K) = K^K / (K+1)^(K+1): the most that s·(1-s)^K can be, whatever s is.

    A saboteur that is wrong with probability s passes K checks, each of which finds out a wrong result, and leaves a
    wrong one with at most this probability.  It is about 1 / (e·K).
    """
    return _SURVIVAL[checks] if checks < _TABLE_MAX else _survival_bound(checks)


def coalition_risk(odds: float, checks: int, saboteurs: float) -> float:
    """Bound the probability that a group of claims which all agree is wrong, when saboteurs act as one.

    A coalition draws one coin for each task, not one for each member: the group is wrong if all its members belong to
    it, the task is a target (s), and none was found out in the K checks that they passed together.  A check compares
    with another worker, who is honest with probability 1 - f, so that s·(1-f) takes the place of s:

        f^m · s · (1 - s·(1-f))^K  ≤  f^m · h(K) / (1-f)

    Args:
        odds: product over the members of the odds that each is a saboteur, f/(1-f) for somebody unknown.
        checks: K, the checks that they passed, added up.
        saboteurs: f.
    """
    return odds * min(1.0, survival_bound(checks) / (1.0 - saboteurs))


def fault_rate_exceeds(rate: float, wrong: int, right: int, *, prior_right: int) -> float:
    """Return the probability that a worker's rate of faults is above `rate`.

    Beta(1 + wrong, prior_right + right): before anything is known about it, one in `prior_right` of its results is
    taken to be wrong.
    """
    trials = prior_right + right + wrong
    return sum(math.comb(trials, bad) * rate**bad * (1.0 - rate) ** (trials - bad) for bad in range(wrong + 1))


# --- the alternatives -----------------------------------------------------------------------------


def voting_error(votes: int, wrong: float) -> float:
    """Return the probability that m-first voting accepts a wrong result when all wrong results are alike.

    Args:
        votes: m.
        wrong: phi = f·s, the probability that one result is wrong.
    """
    most = 2 * votes - 1
    return sum(math.comb(most, bad) * wrong**bad * (1.0 - wrong) ** (most - bad) for bad in range(votes, most + 1))


def voting_cost(votes: int, wrong: float) -> float:
    """Return the expected number of results of a task until one value has `votes`, when all wrong ones are alike."""
    right = 1.0 - wrong
    return sum(
        (votes + other)
        * math.comb(votes - 1 + other, other)
        * (right**votes * wrong**other + wrong**votes * right**other)
        for other in range(votes)
    )


def credibility_after(checks: int, saboteurs: float, *, has_blacklist: bool) -> float:
    """Return a lower bound of the probability that a result of a worker is right after it passed `checks`."""
    if checks == 0:
        return 1.0 - saboteurs
    if has_blacklist:
        return max(1.0 - saboteurs, 1.0 - saboteurs / ((1.0 - saboteurs) * checks * math.e))
    return max(1.0 - saboteurs, 1.0 - saboteurs / checks)


def group_credibility(odds: Sequence[float]) -> float:
    """Return the credibility of the first of some groups that disagree, by Bayes, members erring independently.

    Args:
        odds: for each group the product of C/(1-C) over its members.
    """
    return odds[0] / (1.0 + sum(odds))


def checked_error_bound(saboteurs: float, checks: float) -> float:
    """Bound the error of known-answer checks with blacklist: f / ((1-f)·n·q·e) for n·q checks of each worker."""
    return saboteurs / ((1.0 - saboteurs) * checks * math.e)
