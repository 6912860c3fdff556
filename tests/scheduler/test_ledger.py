"""The ledger's fold: if these fail, replicas disagree about what is done, or a result counts twice."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.scheduler.ledger import FactKind, JobLedger, TaskState, ranges

SIZE = 6
DIGEST = b"d" * 32

index = st.integers(0, SIZE - 1)
generation = st.integers(0, 3)
fact = st.one_of(
    st.tuples(st.just(FactKind.ACCEPT), st.lists(st.tuples(index, generation, st.just(DIGEST)), max_size=3)),
    st.tuples(st.just(FactKind.FAIL), st.lists(st.tuples(index, generation, st.just("why")), max_size=3)),
    st.tuples(st.just(FactKind.CANCEL), st.lists(st.tuples(index, generation), max_size=3)),
    st.tuples(st.just(FactKind.RETRY), st.lists(st.tuples(index, generation), max_size=3)),
    st.tuples(st.just(FactKind.CLAIMS), st.just([])),
    st.tuples(st.just(FactKind.CANCEL_ALL), st.just([])),
)


claim = st.tuples(st.just("claim"), st.lists(st.tuples(index, generation, st.booleans()), min_size=1, max_size=3))
"""What workers told keepers of the job; nobody has judged it."""


def fold(ledger: JobLedger, kind: Any, body: Any) -> None:
    if kind != "claim":
        ledger.fold(kind, body)
        return
    for task, at, is_good in body:
        ledger.claim(task, at, is_good=is_good)


def folded(facts: list[tuple[int, Any]]) -> list[tuple[int, int]]:
    ledger = JobLedger()
    ledger.fold(FactKind.TASKS, [0, [b""] * SIZE])
    for kind, body in facts:
        fold(ledger, kind, body)
        ledger.check_invariants()
    return [(int(ledger.state(i)), ledger.generation(i)) for i in range(SIZE)]


@given(st.lists(fact, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_states_do_not_depend_on_order_or_repetition(facts: list[tuple[int, Any]], rng: random.Random) -> None:
    expected = folded(facts)
    shuffled = facts + rng.sample(facts, len(facts) // 2)
    rng.shuffle(shuffled)
    assert folded(shuffled) == expected


@given(
    st.lists(st.lists(st.one_of(fact, claim), max_size=6), min_size=2, max_size=4), st.randoms(use_true_random=False)
)
@settings(max_examples=60, deadline=None)
def test_replicas_that_were_merged_agree(known: list[list[tuple[Any, Any]]], rng: random.Random) -> None:
    """Each keeper has heard of some of it; they tell one another in any order, any number of times."""
    expected = folded([item for facts in known for item in facts])
    for own in known:
        others = known + rng.choices(known, k=3)
        rng.shuffle(others)
        replica = own + [item for facts in others for item in rng.sample(facts, len(facts))]
        assert folded(replica) == expected


def test_what_was_claimed_is_not_run_again_and_waits_for_the_owners_word() -> None:
    ledger = JobLedger()
    ledger.add_tasks(0, 3)
    ledger.seal(3)
    assert ledger.claim(0, 0, is_good=True) is not None and ledger.claim(0, 0, is_good=False) is None
    assert ledger.claim(1, 0, is_good=False) is not None and ledger.claim(1, 0, is_good=True) is not None
    ledger.claim(2, 0, is_good=False)
    assert ledger.is_complete and ledger.open_indices() == [] and list(ledger.finished) == [0, 1, 1, 2]
    ledger.accept(0, 0)
    ledger.fail(1, 0, "not so")
    ledger.retry(2, 1)
    assert [ledger.state(i) for i in range(3)] == [TaskState.DONE, TaskState.FAILED, TaskState.OPEN]
    assert list(ledger.finished) == [0, 1, 1, 2, 1], "who watches is told what is new"


@given(st.lists(fact, max_size=8))
@settings(max_examples=100, deadline=None)
def test_facts_may_arrive_before_their_tasks(facts: list[tuple[int, Any]]) -> None:
    ledger = JobLedger()
    for kind, body in facts:
        ledger.fold(kind, body)
    ledger.fold(FactKind.TASKS, [0, [b""] * SIZE])
    ledger.check_invariants()
    assert [(int(ledger.state(i)), ledger.generation(i)) for i in range(SIZE)] == folded(facts)


def test_one_generation_ends_once() -> None:
    ledger = JobLedger()
    ledger.add_tasks(0, 1)
    assert ledger.accept(0, 0) is not None
    assert ledger.accept(0, 0) is None
    assert list(ledger.finished) == [0]
    ledger.retry(0, 1)
    assert ledger.is_open(0, 1) and not ledger.is_open(0, 0)
    assert ledger.accept(0, 0) is None, "a result of an earlier generation must not end the retry"


def test_total_is_fixed_once() -> None:
    ledger = JobLedger()
    ledger.add_tasks(0, 3)
    ledger.seal(3)
    ledger.seal(3)
    with pytest.raises(RemoteProtocolError):
        ledger.seal(4)
    with pytest.raises(RemoteProtocolError):
        ledger.add_tasks(3, 1)
    assert not ledger.is_complete
    for i in range(3):
        ledger.accept(i, 0)
    assert ledger.is_complete


@given(
    st.recursive(
        st.one_of(st.integers(), st.binary(max_size=4), st.none(), st.text(max_size=3)),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=8,
    ),
    st.integers(0, 10),
)
@settings(max_examples=300, deadline=None)
def test_malformed_facts_are_refused_and_change_nothing_else(body: Any, kind: int) -> None:
    ledger = JobLedger()
    with contextlib.suppress(RemoteProtocolError):
        ledger.fold(kind, body)
    ledger.check_invariants()
    assert ledger.counts[TaskState.OPEN] == ledger.size


def test_ranges() -> None:
    assert ranges([3, 4, 5, 9]) == "3-5,9"
    assert ranges([0]) == "0"
    assert ranges([]) == ""
