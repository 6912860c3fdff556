"""Pool policies against the definitions of RFC 5356.  If these fail, a policy does what another one is for."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.scheduler.policies import (
    FORGOTTEN_MAX,
    POLICIES,
    Element,
    LeastUsed,
    LeastUsedDelayPenalised,
    LeastUsedWithDegradation,
    Policy,
    Priority,
    PriorityLeastUsed,
    Random,
    RandomizedLeastUsed,
    RoundRobin,
    WeightedRandom,
    WeightedRoundRobin,
)

A, B, C = (Element(name) for name in (b"a", b"b", b"c"))


def select(policy: Policy, elements: list[Element], count: int, seed: int = 1) -> str:
    """Select so often; returns the keys one after the other."""
    rng = random.Random(seed)
    chosen = []
    for _ in range(count):
        first = policy.order(elements, rng)[0]
        policy.selected(first)
        chosen.append(first.key.decode())
    return "".join(chosen)


def shares(policy: Policy, elements: list[Element], count: int = 20_000) -> dict[str, float]:
    counts = Counter(select(policy, elements, count))
    return {key: number / count for key, number in counts.items()}


def test_round_robin() -> None:
    assert select(RoundRobin(), [A, B, C], 7) == "abcabca"


def test_round_robin_with_comings_and_goings() -> None:
    policy = RoundRobin()
    assert select(policy, [A, B], 3) == "aba"
    assert select(policy, [A, B, C], 3) == "cba", "who was not selected yet, then those whose turn is longest ago"
    assert select(policy, [A, C], 3) == "cac"


def test_weighted_round_robin_visits_each_as_often_as_its_weight() -> None:
    elements = [replace(A, weight=1), replace(B, weight=2), replace(C, weight=3)]
    chosen = select(WeightedRoundRobin(), elements, 60)
    for start in range(0, 60, 6):
        assert Counter(chosen[start : start + 6]) == {"a": 1, "b": 2, "c": 3}
    assert "ccc" not in chosen, "visits are spread over the round"


def test_weighted_round_robin_does_not_make_up_for_what_was_before_an_element_came() -> None:
    policy = WeightedRoundRobin()
    select(policy, [A, B], 1000)
    assert Counter(select(policy, [A, B, C], 300)) == {"a": 100, "b": 100, "c": 100}


def test_random_is_even() -> None:
    assert shares(Random(), [A, B, C]) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, abs=0.02)


def test_weighted_random_is_in_proportion_to_weights() -> None:
    elements = [replace(A, weight=1), replace(B, weight=2), replace(C, weight=5)]
    assert shares(WeightedRandom(), elements) == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}, abs=0.02)


def test_priority_selects_the_highest_and_takes_turns_among_equals() -> None:
    elements = [replace(A, priority=1), replace(B, priority=7), replace(C, priority=7)]
    assert select(Priority(), elements, 4) == "bcbc"
    assert select(Priority(), [replace(A, priority=1)], 2) == "aa"


def test_least_used_selects_the_lowest_load_and_takes_turns_among_equals() -> None:
    elements = [replace(A, load=0.5), replace(B, load=0.2), replace(C, load=0.2)]
    assert select(LeastUsed(), elements, 4) == "bcbc"


def test_degradation_counts_what_was_selected_since_the_report() -> None:
    policy = LeastUsedWithDegradation()
    elements = [replace(A, load=0.0, degradation=0.3), replace(B, load=0.5, degradation=0.1)]
    assert select(policy, elements, 5) == "aabab", "0 .3 | .6>.5 | .6 = .6, whose turn is longest ago | .6<.9"
    elements = [replace(A, load=0.55, degradation=0.3, report=1), elements[1]]
    assert select(policy, elements, 1) == "a", "a new report replaces what was added"


def test_priority_least_used_looks_at_the_load_after_one_more() -> None:
    elements = [replace(A, load=0.2, degradation=0.5), replace(B, load=0.5, degradation=0.1)]
    assert select(PriorityLeastUsed(), elements, 2) == "bb"
    assert select(LeastUsed(), elements, 2) == "aa"


def test_randomized_least_used_is_in_proportion_to_what_is_left() -> None:
    elements = [replace(A, load=0.9), replace(B, load=0.7), replace(C, load=1.0)]
    found = shares(RandomizedLeastUsed(), elements)
    assert found == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.02), "a full one gets nothing while others have room"
    assert select(RandomizedLeastUsed(), [replace(A, load=1.0)], 2) == "aa"


def test_delay_counts_as_load() -> None:
    elements = [replace(A, load=0.1, delay_s=3.0), replace(B, load=0.2, delay_s=0.0)]
    assert select(LeastUsedDelayPenalised(), elements, 1) == "b"
    assert select(LeastUsedDelayPenalised(), [replace(A, load=0.1, delay_s=0.5), elements[1]], 1) == "a"


ELEMENT = st.builds(
    Element,
    key=st.binary(min_size=1, max_size=3),
    weight=st.floats(0.001, 1000),
    priority=st.integers(-5, 5),
    load=st.floats(0, 1),
    degradation=st.floats(0, 1),
    delay_s=st.floats(0, 10),
    report=st.integers(0, 3),
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=20)
@given(rounds=st.lists(st.lists(ELEMENT, max_size=8, unique_by=lambda element: element.key), max_size=8))
def test_every_policy_orders_all_elements_and_is_replayed_by_its_seed(name: str, rounds: list[list[Element]]) -> None:
    logs = []
    for _ in range(2):
        policy, rng, log = POLICIES[name](), random.Random(3), []
        for elements in rounds:
            ordered = policy.order(elements, rng)
            assert sorted(one.key for one in ordered) == sorted(one.key for one in elements)
            log.append(ordered)
            if ordered:
                policy.selected(ordered[0])
        logs.append(log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_remembers_is_bounded(name: str) -> None:
    policy, rng = POLICIES[name](), random.Random(1)
    for number in range(FORGOTTEN_MAX + 100):
        element = Element(number.to_bytes(4))
        policy.order([element], rng)
        policy.selected(element)
    held = [getattr(one, "last", one) for one in vars(policy).values()]
    assert all(len(one) <= FORGOTTEN_MAX + 1 for one in held if isinstance(one, dict))
