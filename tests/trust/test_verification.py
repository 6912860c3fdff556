"""Verification: if it broke, wrong results of strangers would be believed, or honest nodes lose their work."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pcompute.limits import VERIFY_WINDOWS_KEPT
from p2pcompute.trust.verification import METHODS, Method, make_verifier
from p2pcompute.trust.verification.arbitrate import (
    DRAWS_FREE,
    PROBATION_AGREEMENTS,
    Arbitrate,
    ArbitratePolicy,
    Standing,
)
from p2pcompute.trust.verification.book import (
    Accepted,
    AskTrusted,
    Banned,
    Basis,
    Effect,
    Nondeterministic,
    Recheck,
    Revoked,
    Verifier,
    Why,
    Withdrawn,
)
from p2pcompute.trust.verification.formulas import coalition_risk

RIGHT, WRONG = b"right", b"wrong"
NEVER = 10**9


def arbitrate(tasks: int = 10, workers: str = "abcdefgh", **policy: Any) -> Arbitrate:
    verifier = Arbitrate(ArbitratePolicy(**{"error_rate": 0.01, **policy}))
    verifier.add(tasks)
    for name in workers:
        verifier.join(0.0, name.encode(), is_known=True)
    return verifier


class OriginalsFirst(random.Random):
    """Draws by which originals go before copies."""

    def random(self) -> float:
        return 0.99


RNG = OriginalsFirst(1)


def give(verifier: Verifier, worker: bytes, index: int, digest: bytes = RIGHT) -> list[Effect]:
    """Let a worker claim a task that it was handed, whichever it was."""
    task = verifier.tasks[index]
    task.lent[worker] = bool(task.claims)
    if isinstance(verifier, Arbitrate):
        verifier.tasks[index].is_copied = True
    return verifier.claim(1.0, worker, index, digest)


def take_some(verifier: Verifier, worker: bytes, rng: random.Random) -> int:
    """Let a worker ask until it is handed a task."""
    for _ in range(1000):
        if (index := verifier.take(1.0, worker, rng)) is not None:
            return index
    raise AssertionError("there is nothing to do")


# --- what the method promises ---------------------------------------------------------------------


def test_copies_are_handed_out_only_of_what_is_claimed() -> None:
    verifier = arbitrate(tasks=2)
    assert [verifier.take(0.0, worker, RNG) for worker in (b"a", b"b", b"c")] == [0, 1, None]
    verifier.claim(0.0, b"a", 0, RIGHT)
    assert verifier.take(0.0, b"a", RNG) is None, "its own"
    assert verifier.take(0.0, b"c", RNG) == 0
    assert verifier.take(0.0, b"d", RNG) is None, "one copy at a time"


def test_originals_and_copies_go_out_mixed_so_that_nobody_knows_which_it_has() -> None:
    verifier = arbitrate(tasks=1000)
    rng = random.Random(3)
    copies = []
    for turn in range(400):
        worker = b"abcdefgh"[turn % 8 : turn % 8 + 1]
        index = verifier.take(0.0, worker, rng)
        assert index is not None
        copies.append(bool(verifier.tasks[index].claims))
        verifier.claim(0.0, worker, index, RIGHT)
    parts = [sum(copies[at : at + 100]) for at in range(0, 400, 100)]
    assert all(30 <= part <= 60 for part in parts)
    assert sum(record.k for record in verifier.workers.values()) == 2 * sum(copies)


def test_a_conflict_asks_a_trusted_node_and_its_word_is_final() -> None:
    verifier = arbitrate(tasks=1)
    give(verifier, b"a", 0, WRONG)
    assert give(verifier, b"b", 0) == [AskTrusted(0)]
    assert verifier.take(0.0, b"c", RNG) is None, "no outvoting"
    assert verifier.verdict(2.0, 0, RIGHT) == [Accepted(0, RIGHT, Basis.TRUSTED)]
    assert verifier.workers[b"a"].standing is Standing.SUSPECT
    assert verifier.workers[b"b"].k == 1
    assert verifier.is_done and verifier.take(3.0, b"a", RNG) is None


def test_two_who_share_a_wrong_value_are_banned_and_all_they_claimed_is_open_again() -> None:
    verifier = arbitrate(tasks=3)
    give(verifier, b"a", 1)
    give(verifier, b"b", 2)
    for worker, digest in ((b"a", WRONG), (b"b", WRONG), (b"c", RIGHT)):
        effects = give(verifier, worker, 0, digest)
    assert effects == [AskTrusted(0)]
    effects = verifier.verdict(2.0, 0, RIGHT)
    assert [effect for effect in effects if isinstance(effect, Banned)] == [
        Banned(b"a", Why.SHARED_WRONG),
        Banned(b"b", Why.SHARED_WRONG),
    ]
    assert not verifier.tasks[1].claims and not verifier.tasks[2].claims
    assert sorted(filter(None, (verifier.take(3.0, worker, RNG) for worker in (b"c", b"d", b"e")))) == [1, 2]
    verifier.check_invariants()


def test_what_only_a_banned_worker_claimed_is_handed_out_again() -> None:
    verifier = arbitrate(tasks=1)
    assert verifier.take(0.0, b"a", RNG) == 0
    verifier.claim(0.0, b"a", 0, RIGHT)
    verifier.equivocated(b"a")
    assert verifier.take(0.0, b"b", RNG) == 0


def test_no_further_copy_is_made_of_what_has_become_credible() -> None:
    verifier = arbitrate(tasks=1)
    for worker in (b"a", b"b"):
        assert verifier.take(0.0, worker, RNG) == 0
        verifier.claim(0.0, worker, 0, RIGHT)
    for worker in (b"a", b"b"):
        passed(verifier, worker, k=100)
    assert verifier.take(0.0, b"c", RNG) is None
    assert verifier.take_effects() == [Accepted(0, RIGHT, Basis.AGREED)]


def test_a_ban_takes_back_accepted_results_that_rest_on_it() -> None:
    verifier = arbitrate(tasks=2, error_rate=0.07)  # two who are unknown are believed: .25² = .0625
    give(verifier, b"a", 0)
    assert give(verifier, b"b", 0) == [Accepted(0, RIGHT, Basis.AGREED)]
    effects = verifier.equivocated(b"a")
    assert effects == [Banned(b"a", Why.EQUIVOCATION), Revoked(0)]
    assert verifier.workers[b"b"].k == 0, "nobody else confirmed it"
    assert not verifier.is_done and verifier.equivocated(b"a") == []
    verifier.check_invariants()


def test_what_rests_on_a_suspect_is_checked_again() -> None:
    verifier = arbitrate(tasks=2, error_rate=0.07)
    give(verifier, b"a", 0)
    give(verifier, b"b", 0)
    give(verifier, b"a", 1, WRONG)
    give(verifier, b"c", 1)
    assert Recheck(0) in verifier.verdict(2.0, 1, RIGHT)
    index = verifier.take(3.0, b"c", RNG)
    assert index == 0
    assert verifier.claim(3.0, b"c", 0, RIGHT) == [Accepted(0, RIGHT, Basis.AGREED)], "b and c"


def test_two_answers_of_one_worker_to_one_task_ban_it() -> None:
    verifier = arbitrate()
    give(verifier, b"a", 0)
    assert verifier.claim(2.0, b"a", 0, RIGHT) == []
    assert verifier.claim(2.0, b"a", 0, WRONG) == [Banned(b"a", Why.EQUIVOCATION)]


def test_what_took_too_long_counts_where_its_worker_could_not_know_of_the_others() -> None:
    """Or tasks that take long would never be accepted; and two who know that both have a task could lie at no risk."""
    verifier = arbitrate(tasks=1)
    assert verifier.take(1.0, b"a", RNG) == 0 and verifier.take(1.0, b"b", RNG) is None
    verifier.late(2.0, b"a", 0)
    assert verifier.take(2.0, b"b", RNG) == 0, "others begin it"
    verifier.late(3.0, b"b", 0)
    give(verifier, b"c", 0)
    verifier.claim(4.0, b"a", 0, RIGHT)
    verifier.claim(4.0, b"b", 0, RIGHT)
    assert verifier.tasks[0].blind == (b"a", b"b"), "all three began before there was any claim: one of them counts"
    assert verifier.take(5.0, b"d", RNG) == 0
    verifier.late(6.0, b"d", 0)
    assert verifier.take(6.0, b"e", RNG) == 0
    verifier.claim(7.0, b"e", 0, RIGHT)
    verifier.claim(8.0, b"d", 0, RIGHT)
    assert verifier.tasks[0].blind == (b"a", b"b") and verifier.tasks[0].late == ()
    assert verifier.level(0) in (3, None), "copies of what was claimed before count, though they were made at once"
    verifier.check_invariants()


def test_a_conflict_with_somebody_banned_waits_for_no_trusted_node() -> None:
    """Or all that a liar ever said would wait for trusted nodes, which are few."""
    verifier = arbitrate(tasks=1)
    give(verifier, b"a", 0, WRONG)
    assert give(verifier, b"b", 0) == [AskTrusted(0)]
    assert verifier.equivocated(b"a") == [Banned(b"a", Why.EQUIVOCATION), Withdrawn(0)]
    assert verifier.take(3.0, b"c", RNG) == 0, "members go on"
    verifier.check_invariants()


def test_when_two_trusted_runs_differ_nobody_is_to_blame() -> None:
    verifier = arbitrate(tasks=1)
    give(verifier, b"a", 0, b"1")
    give(verifier, b"b", 0, b"2")
    assert verifier.verdict(2.0, 0, b"3") == [AskTrusted(0)]
    assert verifier.verdict(3.0, 0, b"4") == [Accepted(0, b"4", Basis.TRUSTED), Nondeterministic(0)]
    assert give(verifier, b"c", 0, b"5") == [], "nor who comes late"
    assert {record.standing for record in verifier.workers.values()} == {Standing.ACTIVE}


def test_what_contradicts_everybody_counts_when_it_is_found_twice() -> None:
    verifier = arbitrate(tasks=1)
    give(verifier, b"a", 0, b"1")
    give(verifier, b"b", 0, b"2")
    assert verifier.verdict(2.0, 0, b"3") == [AskTrusted(0)]
    assert verifier.verdict(3.0, 0, b"3") == [Accepted(0, b"3", Basis.TRUSTED)]
    assert verifier.workers[b"a"].standing is verifier.workers[b"b"].standing is Standing.SUSPECT


def test_a_claim_is_one_check_however_many_confirm_it() -> None:
    verifier = arbitrate(tasks=1, error_rate=1e-9)
    for worker in (b"a", b"b", b"c"):
        give(verifier, worker, 0)
    assert [verifier.workers[worker].k for worker in (b"a", b"b", b"c")] == [1, 1, 1]


def test_a_straggler_copy_contradicts_and_adds_no_weight() -> None:
    verifier = arbitrate(tasks=2, error_rate=0.07)
    assert verifier.take(0.0, b"a", RNG) == 0
    give(verifier, b"b", 0)
    assert verifier.claim(1.0, b"a", 0, RIGHT) == [], "it got the task before the first claim came"
    assert verifier.level(0) == 1 and verifier.workers[b"a"].k == 0
    assert verifier.take(0.0, b"a", RNG) == 1
    give(verifier, b"b", 1)
    assert verifier.claim(1.0, b"a", 1, b"3") == [AskTrusted(1)]
    verifier.verdict(1.0, 1, b"3")
    assert verifier.workers[b"a"].k == 0, "nor when it was right"


def test_who_claims_what_it_was_not_given_adds_no_weight_and_keeps_nobody_from_it() -> None:
    verifier = arbitrate(tasks=1, error_rate=0.07)
    verifier.claim(0.0, b"a", 0, RIGHT)
    assert verifier.level(0) == 0
    assert verifier.take(0.0, b"b", RNG) == 0
    assert verifier.claim(0.0, b"b", 0, RIGHT) == []
    assert verifier.take(0.0, b"c", RNG) == 0
    assert verifier.claim(0.0, b"c", 0, RIGHT) == [Accepted(0, RIGHT, Basis.AGREED)]
    assert [verifier.workers[worker].k for worker in (b"a", b"b", b"c")] == [0, 1, 1]


def test_who_hands_back_most_of_what_it_is_given_is_believed_less() -> None:
    """It looks for what an accomplice lied about, and keeps from that who would have found him out."""
    verifier = arbitrate(tasks=200, error_rate=0.07)
    assert verifier.take(0.0, b"a", RNG) == 0
    verifier.claim(0.0, b"a", 0, WRONG)
    for _ in range(2 * DRAWS_FREE):
        drawn = verifier.take(0.0, b"b", RNG)
        assert drawn is not None
        verifier.returned(0.0, b"b", drawn)
    assert give(verifier, b"b", 0, WRONG) == [], "two who never met would be believed"
    assert verifier.risk(0, (b"a", b"b")) > 7 * coalition_risk(0.25**2, 2, 0.2)
    verifier.check_invariants()
    for _ in range(20 * DRAWS_FREE):  # who goes on to answer is one who comes and goes
        drawn = verifier.take(0.0, b"b", RNG)
        if drawn is not None:
            verifier.claim(0.0, b"b", drawn, RIGHT)
    assert verifier.workers[b"b"].choice < 1.5


def test_what_is_taken_back_from_a_worker_is_not_its_choice() -> None:
    verifier = arbitrate(tasks=9)
    for _ in range(5):
        drawn = verifier.take(0.0, b"a", RNG)
        assert drawn is not None
        verifier.taken_back(0.0, b"a", drawn)
        verifier.taken_back(0.0, b"a", drawn)
    assert verifier.workers[b"a"].choice == 1.0
    assert verifier.take(0.0, b"a", RNG) is not None and verifier.workers[b"a"].choice > 1.0, "what it holds counts"


def test_windows_that_are_long_over_change_no_more() -> None:
    verifier = arbitrate(tasks=VERIFY_WINDOWS_KEPT + 3, window_tasks=1, error_rate=0.07)
    for index in range(VERIFY_WINDOWS_KEPT + 2):
        for worker in (b"a", b"b"):
            give(verifier, worker, index)
    verifier.check_invariants()
    effects = verifier.equivocated(b"a")
    revoked = [effect.index for effect in effects if isinstance(effect, Revoked)]
    assert revoked == list(range(2, VERIFY_WINDOWS_KEPT + 2))
    assert all(len(record.k_past) <= VERIFY_WINDOWS_KEPT for record in verifier.workers.values())
    assert verifier.claim(9.0, b"c", 0, WRONG) == [] and verifier.late_count == 1
    assert verifier.claim(9.0, b"c", VERIFY_WINDOWS_KEPT + 2, WRONG) == [], "it is handed out now"


def test_claims_about_tasks_of_a_later_window_are_not_taken() -> None:
    verifier = arbitrate(tasks=2, window_tasks=1)
    assert verifier.claim(0.0, b"a", 1, RIGHT) == [] and not verifier.tasks[1].claims
    assert verifier.late_count == 1


def test_who_shares_an_inviter_checks_nothing_of_the_other() -> None:
    verifier = arbitrate(tasks=1, workers="")
    for name, cluster in ((b"a", b"1"), (b"b", b"1"), (b"c", b"2")):
        verifier.join(0.0, name, cluster=cluster, is_known=True)
    assert verifier.take(0.0, b"a", RNG) == 0
    verifier.claim(0.0, b"a", 0, RIGHT)
    assert verifier.take(0.0, b"b", RNG) is None
    assert verifier.take(0.0, b"c", RNG) == 0


def test_a_newcomer_gets_copies_that_count_for_nobody_until_it_has_proven_itself() -> None:
    verifier = arbitrate(tasks=PROBATION_AGREEMENTS + 5)
    assert verifier.join(0.0, b"new")
    assert verifier.take(0.0, b"new", RNG) is None, "nothing is claimed"
    for index in range(PROBATION_AGREEMENTS):
        give(verifier, b"a", index)
    rng = random.Random(1)
    for _ in range(PROBATION_AGREEMENTS):
        assert verifier.workers[b"new"].standing is Standing.NEWCOMER
        index = take_some(verifier, b"new", rng)
        assert verifier.level(index) == 1, "it keeps nobody from copying"
        assert verifier.claim(1.0, b"new", index, RIGHT) == []
    assert verifier.workers[b"new"].standing is Standing.ACTIVE
    assert verifier.workers[b"a"].k == 0
    verifier.check_invariants()
    assert (verifier.take(2.0, b"new", RNG) or 0) >= PROBATION_AGREEMENTS, "an original"


def test_where_nobody_is_known_newcomers_are_compared_with_what_a_trusted_node_found() -> None:
    verifier = arbitrate(tasks=PROBATION_AGREEMENTS + 1, workers="")
    for worker in (b"new", b"liar"):
        verifier.join(0.0, worker)
    assert verifier.take(0.0, b"new", RNG) is None, "nothing to compare with"
    for index in range(PROBATION_AGREEMENTS + 1):
        verifier.verdict(0.0, index, RIGHT)
    rng = random.Random(1)
    for _ in range(PROBATION_AGREEMENTS):
        assert verifier.claim(1.0, b"new", take_some(verifier, b"new", rng), RIGHT) == []
    assert verifier.workers[b"new"].standing is Standing.ACTIVE
    verifier.claim(1.0, b"liar", take_some(verifier, b"liar", rng), WRONG)
    assert verifier.workers[b"liar"].standing is Standing.SUSPECT


def test_newcomers_are_let_in_at_a_limited_rate() -> None:
    verifier = arbitrate(workers="", newcomers_per_hour=2.0, newcomers_burst=3)
    assert [verifier.join(0.0, b"%d" % number) for number in range(5)] == [True, True, True, False, False]
    assert verifier.join(1800.0, b"3") and not verifier.join(1800.0, b"4")
    assert verifier.join(1801.0, b"3"), "it is in"


def test_a_suspect_rests_until_the_next_window_and_begins_anew() -> None:
    verifier = arbitrate(tasks=2, window_tasks=1)
    give(verifier, b"a", 0, WRONG)
    give(verifier, b"b", 0)
    verifier.verdict(1.0, 0, RIGHT)
    assert verifier.window == 1 and verifier.workers[b"a"].standing is Standing.NEWCOMER


def passed(verifier: Arbitrate, worker: bytes, *, k: int = 0, before: int = 0, now: int = 1) -> None:
    record = verifier.workers[worker]
    record.k, record.checks_before, record.claims_now = k, before, now


def test_history_lowers_the_risk_of_a_group_by_the_share_of_the_present() -> None:
    verifier = arbitrate(tasks=1)
    give(verifier, b"a", 0)
    give(verifier, b"b", 0)
    alone = verifier.risk(0)
    passed(verifier, b"a", k=1, before=90, now=10)
    assert verifier.risk(0) == pytest.approx(alone), "the other has none"
    passed(verifier, b"b", k=1, before=30, now=10)
    assert verifier.risk(0) == pytest.approx(alone * math.e / 4)
    for worker in (b"a", b"b"):
        passed(verifier, worker, k=1, before=1000, now=1)
    assert verifier.risk(0) == pytest.approx(alone * 0.08)
    passed(verifier, b"a", k=1, before=0, now=0)
    assert verifier.risk(0) == pytest.approx(alone), "nothing in this window yet"


def test_checks_of_a_window_are_history_in_the_next_until_the_first_wrong_value() -> None:
    verifier = arbitrate(tasks=2, window_tasks=1, error_rate=0.07)
    for worker in (b"a", b"b"):
        give(verifier, worker, 0)
    assert verifier.window == 1 and verifier.workers[b"a"].checks_before == 1
    give(verifier, b"a", 1, WRONG)
    give(verifier, b"b", 1)
    verifier.verdict(1.0, 1, RIGHT)
    assert verifier.workers[b"a"].checks_before == 0


def test_no_checks_and_no_history_speak_for_a_claim_that_nobody_compared() -> None:
    verifier = arbitrate(tasks=2)
    give(verifier, b"a", 0)
    passed(verifier, b"a", k=10_000, before=10_000)
    assert verifier.risk(0) == 0.25


def test_windows_end_when_they_are_old_and_begin_with_no_checks() -> None:
    verifier = arbitrate(tasks=1, error_rate=0.07, window_s=100.0)
    for worker in (b"a", b"b"):
        give(verifier, worker, 0)
    assert verifier.is_done and verifier.window == 0
    verifier.add(1)
    assert verifier.window == 0 and verifier.tasks[1].window == 0
    for worker in (b"c", b"d"):
        verifier.tasks[1].lent[worker] = bool(verifier.tasks[1].claims)
        verifier.claim(500.0, worker, 1, RIGHT)
    assert verifier.window == 1
    assert {record.k for record in verifier.workers.values()} == {0}
    verifier.check_invariants()


def test_without_a_trusted_node_further_copies_decide_and_nobody_is_banned() -> None:
    verifier = arbitrate(tasks=1, has_arbiter=False, error_rate=0.05)
    give(verifier, b"a", 0, WRONG)
    effects = give(verifier, b"b", 0)
    for worker in (b"c", b"d", b"e", b"f", b"g", b"h"):
        if effects:
            break
        assert verifier.level(0) is not None
        effects = give(verifier, worker, 0)
    assert effects == [Accepted(0, RIGHT, Basis.OUTVOTED)]
    assert len(verifier.tasks[0].claims) >= 4
    assert verifier.workers[b"a"].standing is Standing.SUSPECT


def test_what_a_banned_worker_still_sends_changes_nothing() -> None:
    verifier = arbitrate(tasks=3)
    assert verifier.take(0.0, b"a", RNG) == 0
    verifier.equivocated(b"a")
    assert verifier.claim(1.0, b"a", 0, WRONG) == [] and not verifier.tasks[0].claims
    assert verifier.take(1.0, b"a", RNG) is None
    assert 0 in [verifier.take(1.0, worker, RNG) for worker in (b"b", b"c", b"d")]


def test_settling_accepts_what_has_become_credible() -> None:
    verifier = arbitrate(tasks=1)
    for worker in (b"a", b"b"):
        give(verifier, worker, 0)
    assert verifier.settle() == []
    for worker in (b"a", b"b"):
        passed(verifier, worker, k=100)
    assert verifier.settle() == [Accepted(0, RIGHT, Basis.AGREED)]


# --- any method, any order ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("has_blacklist", [True, False])
@given(seed=st.integers(0, 2**32), saboteurs=st.integers(0, 3), lost=st.floats(0, 0.3))
@settings(max_examples=15, deadline=None)
def test_all_tasks_end_whoever_lies_and_whatever_is_lost(
    method: Method, has_blacklist: bool, seed: int, saboteurs: int, lost: float
) -> None:
    rng = random.Random(seed)
    verifier = make_verifier(method, error_rate=0.01, checks=0.2, has_blacklist=has_blacklist)
    verifier.add(30)
    workers = [b"%d" % number for number in range(12)]
    for worker in workers:
        if isinstance(verifier, Arbitrate):
            verifier.join(0.0, worker, is_known=True)
        else:
            verifier.join(0.0, worker)
    held: list[tuple[bytes, int]] = []
    told: dict[int, bytes] = {}
    for turn in range(5000):
        if verifier.is_done:
            break
        now = turn * 10.0
        worker = rng.choice(workers)
        if len(held) < 6 and rng.random() < 0.6:
            index = verifier.take(now, worker, rng)
            effects: list[Effect] = verifier.take_effects()
            if index is not None:
                assert index < 0 or worker not in verifier.tasks[index].claims
                assert not verifier.is_banned(worker)
                held.append((worker, index))
        elif held:
            worker, index = held.pop(rng.randrange(len(held)))
            if rng.random() < lost:
                verifier.returned(now, worker, index)
                continue
            is_wrong = worker in workers[:saboteurs] and rng.random() < 0.5
            effects = verifier.claim(now, worker, index, WRONG if is_wrong else RIGHT)
        elif turn > 4000:
            index = next(at for at, task in enumerate(verifier.tasks) if task.accepted is None)
            effects = verifier.verdict(now, index, RIGHT) if isinstance(verifier, Arbitrate) else []
        else:
            continue
        while effects:
            match effects.pop(0):
                case AskTrusted(index):
                    effects += verifier.verdict(now, index, RIGHT)
                case Accepted(index, digest):
                    told[index] = digest
                case Revoked(index) | Recheck(index):
                    assert index in told
                case Banned(worker):
                    assert worker in workers[:saboteurs], "nobody honest"
        verifier.check_invariants()
    assert verifier.is_done
    assert {index: task.accepted for index, task in enumerate(verifier.tasks)} == told
    if not saboteurs:
        assert set(told.values()) == {RIGHT}


# --- against a naive model ------------------------------------------------------------------------

WINDOW, EPSILON, F = 5, 0.004, 0.2


class AgainstModel(RuleBasedStateMachine):
    """Sets and sums, with nothing kept up to date step by step."""

    def __init__(self) -> None:
        super().__init__()
        policy = ArbitratePolicy(error_rate=EPSILON, saboteurs=F, window_tasks=WINDOW, window_s=NEVER)
        self.verifier = Arbitrate(policy)
        self.rng = random.Random(0)
        self.now = 0.0
        self.workers = [b"%d" % number for number in range(9)]
        self.resting: set[bytes] = set()
        self.banned: set[bytes] = set()
        self.held: list[tuple[bytes, int]] = []
        self.claims: dict[int, dict[bytes, bytes]] = {}
        self.blind: set[tuple[int, bytes]] = set()
        self.credits: set[tuple[int, bytes]] = set()
        self.final: set[int] = set()
        self.accepted: dict[int, bytes] = {}
        self.asked: list[int] = []

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.rng.seed(seed)
        self.verifier.add(2 * WINDOW)
        for worker in self.workers:
            self.verifier.join(0.0, worker, is_known=True)

    def risk(self, index: int) -> float:
        """The formula, from the claims and credits as they stand."""
        window = index // WINDOW
        weighty = [
            worker
            for worker in self.claims[index]
            if worker not in self.resting | self.banned and (index, worker) not in self.blind
        ]
        if len(weighty) < 2:
            return F / (1 - F) if weighty else 1.0
        passed = sum(
            (task, worker) in self.credits for task in self.claims for worker in weighty if task // WINDOW == window
        )
        bound = 1.0 if not passed else passed**passed / (passed + 1) ** (passed + 1)
        return (F / (1 - F)) ** len(weighty) * min(1.0, bound / (1 - F))

    @rule(worker=st.integers(0, 8), wait=st.sampled_from([0.0, 1.0, 25.0]))
    def take(self, worker: int, wait: float) -> None:
        self.now += wait
        name = self.workers[worker]
        index = self.verifier.take(self.now, name, self.rng)
        self.follow(self.verifier.take_effects())
        if index is None:
            return
        assert name not in self.banned | self.resting
        assert name not in self.claims.get(index, {}) and (name, index) not in self.held
        assert index not in self.final and index not in self.accepted
        assert index // WINDOW <= self.verifier.window
        if self.claims.get(index):
            assert not any(other == index for _, other in self.held), "one copy at a time"
        self.held.append((name, index))

    @rule(place=st.integers(0, 100), answer=st.sampled_from([RIGHT, RIGHT, RIGHT, WRONG, b"alone"]))
    def claim(self, place: int, answer: bytes) -> None:
        if not self.held:
            return
        name, index = self.held.pop(place % len(self.held))
        answer = answer + name if answer == b"alone" else answer
        mine = self.claims.setdefault(index, {})
        is_late = index in self.final
        if name not in self.banned:
            if mine and not self.verifier.tasks[index].lent[name]:
                self.blind.add((index, name))
            mine[name] = answer
            if len(set(mine.values())) == 1 and not is_late and not self.verifier.tasks[index].is_disputed:
                self.agree(index, name)
        before = self.verifier.window
        self.follow(self.verifier.claim(self.now, name, index, answer), judged=(index, [name]) if is_late else None)
        is_alike = len(set(mine.values())) == 1 and not self.verifier.tasks[index].is_disputed
        if name not in self.banned and is_alike and not is_late and before == self.verifier.window:
            assert (index in self.accepted) == (self.risk(index) <= EPSILON)

    def agree(self, index: int, name: str | bytes) -> None:
        weighty = [
            worker for worker in self.claims[index] if worker not in self.resting and (index, worker) not in self.blind
        ]
        if name in weighty and len(weighty) > 1 and index // WINDOW == self.verifier.window:
            self.credits |= {(index, worker) for worker in weighty}

    @rule(place=st.integers(0, 100))
    def give_up(self, place: int) -> None:
        if self.held:
            name, index = self.held.pop(place % len(self.held))
            self.verifier.returned(self.now, name, index)

    @rule(place=st.integers(0, 100))
    def decide(self, place: int) -> None:
        if not self.asked:
            return
        index = self.asked.pop(place % len(self.asked))
        if index in self.final:
            return
        effects = self.verifier.verdict(self.now, index, RIGHT)
        if effects == [AskTrusted(index)]:
            self.asked.append(index)
            return
        self.final.add(index)
        self.follow(effects, judged=(index, list(self.claims[index])))

    def follow(self, effects: list[Effect], judged: tuple[int, list[bytes]] | None = None) -> None:
        banned = [effect.worker for effect in effects if isinstance(effect, Banned)]
        if judged is not None:
            index, names = judged
            groups = list(self.claims[index].values())
            for name in names:
                answer = self.claims[index][name]
                if answer == RIGHT and name not in self.banned:
                    is_now = index // WINDOW == self.verifier.window
                    if is_now and (index, name) not in self.blind:
                        self.credits.add((index, name))
                elif name in banned:
                    assert groups.count(answer) > 1 or self.verifier.workers[name].wrong > 2
                elif name not in self.banned:
                    assert groups.count(answer) == 1
                    self.resting.add(name)
                    self.credits = {credit for credit in self.credits if credit[1] != name}
        for name in banned:
            self.ban(name)
        for effect in effects:
            match effect:
                case AskTrusted(index):
                    assert len(set(self.claims[index].values())) > 1
                    self.asked.append(index)
                case Accepted(index, digest, Basis.AGREED):
                    assert set(self.claims[index].values()) == {digest} and self.risk(index) <= EPSILON
                    self.accepted[index] = digest
                case Accepted(index, digest):
                    assert digest == RIGHT
                    self.accepted[index] = digest
                case Revoked(index) | Recheck(index):
                    assert index in self.accepted
                    if index not in self.final:
                        del self.accepted[index]

    def ban(self, name: bytes) -> None:
        self.banned.add(name)
        self.credits = {credit for credit in self.credits if credit[1] != name}
        for index, claims in self.claims.items():
            if name in claims and index not in self.final:
                del claims[name]
                self.blind.discard((index, name))
                if len(claims) == 1:
                    self.credits = {credit for credit in self.credits if credit[0] != index}

    @invariant()
    def agrees(self) -> None:
        self.verifier.check_invariants()
        window = self.verifier.window
        self.resting = {name for name in self.resting if self.verifier.workers[name].standing is Standing.SUSPECT}
        for name in self.workers:
            assert self.verifier.is_banned(name) == (name in self.banned)
            if name not in self.banned:
                assert self.verifier.workers[name].k == sum(
                    owner == name for index, owner in self.credits if index // WINDOW == window
                )
        for index, task in enumerate(self.verifier.tasks):
            assert task.accepted == self.accepted.get(index)
            assert task.claims == self.claims.get(index, {})


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
