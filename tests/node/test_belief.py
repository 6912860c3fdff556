"""Why a result is believed, or not yet.  If these fail, nobody can tell a checked result from one that was not."""

from __future__ import annotations

import pytest

from p2pcompute.node.belief import belief, rate_text
from p2pcompute.node.facade import BeliefView
from p2pcompute.scheduler.stealing import LOCAL
from tests.scheduler.test_acceptance import Play, honest, key_of, liar


def name_of(key: bytes) -> str:
    return key.rstrip(b".").decode()


def said(play: Play, index: int, *, has_arbiter: bool = False) -> BeliefView | None:
    """What is said of a task in the books of `play`."""
    ran = next((end.thief for end in reversed(play.ends) if end.index == index), b"")
    key = b"me" if ran == LOCAL else ran
    return belief(play.job, index, key, b"me", name_of, play.acceptance.level_of, has_arbiter=has_arbiter)


def why(play: Play, *, believed: bool = True) -> set[str]:
    """Everything that is said of the tasks of `play`."""
    views = [said(play, index) for index in range(play.job.ledger.size)]
    assert all(view is not None and view.is_believed is believed for view in views), views
    return {view.why for view in views if view is not None}


def test_whose_word_is_the_truth_is_named() -> None:
    play = Play(4, {"local": honest})
    play.play()
    assert why(play) == {"this node ran it"}
    trusted = Play(4, {"nova": honest}, trusted=("nova",))
    trusted.play()
    assert why(trusted) == {"trusted node nova ran it"}
    del trusted.levels[key_of("nova")]
    assert why(trusted) == {"nova ran it, which was trusted here then"}
    unchecked = Play(4, {"ada": honest}, verify="none")
    unchecked.play()
    assert why(unchecked) == {"unchecked (--verify none): ada ran it"}


@pytest.mark.parametrize("is_after_restart", [False, True])
def test_those_who_agree_are_named_and_how_sure_that_is(is_after_restart: bool) -> None:
    pair = Play(60, {"ada": honest, "bob": honest, "cyd": honest}, replicas=2)
    pair.play()
    if is_after_restart:
        pair.restart()
    texts = why(pair)
    assert all(text.endswith(" agree (--replicas 2)") for text in texts), texts
    assert any(text.startswith(("ada and bob", "bob and ada")) for text in texts), texts


def test_an_error_rate_is_bounded_by_what_was_asked_for() -> None:
    play = Play(600, dict.fromkeys(("ada", "bob", "cyd", "dan", "eve"), honest), error_ppb=10_000_000)
    play.play()
    texts = why(play)
    assert all(" agree, error ≤ " in text for text in texts), sorted(texts)[:5]
    assert all(float(text.rpartition(" ")[2]) <= 0.01 for text in texts)


def test_a_trusted_verdict_names_who_found_the_same_and_who_did_not() -> None:
    play = Play(30, {"ada": honest, "bob": liar, "nova": honest}, trusted=("nova",))
    play.play()
    texts = why(play)
    assert any("a trusted node found the same" in text for text in texts), texts
    assert any(", bob something else" in text for text in texts), texts


@pytest.mark.parametrize("trusted", [(), ("nova",)])
def test_no_more_of_a_nodes_results_were_found_by_others_than_were_checked(trusted: tuple[str, ...]) -> None:
    """ "26 checked, 41 found by others too", as `trust show` said: each claim counts once, whoever confirms it."""
    nodes = {"ada": honest, "bob": honest, "cyd": honest, **dict.fromkeys(trusted, honest)}
    play = Play(60, nodes, trusted=trusted, replicas=2)
    play.play()
    records = [play.acceptance.record(key_of(name)) for name in ("ada", "bob", "cyd")]
    assert all(0 < record.agreed <= record.claims for record in records), records
    if not trusted:
        assert all(record.agreed == record.claims for record in records), "each task has two claims that agree"


def test_what_a_claim_waits_for_is_said() -> None:
    play = Play(2, {"ada": honest})
    for _ in range(10):
        play.turn()
    (text,) = why(play, believed=False)
    assert "another member has to find the same" in text and "ada" in text
    play.nodes[key_of("bob")] = liar
    for _ in range(10):
        play.turn()
    (text,) = why(play, believed=False)
    assert text == "ada and bob found different results; no trusted node may run it here, so more members decide"
    view = said(play, 0, has_arbiter=True)
    assert view is not None and view.why == "ada and bob found different results; a trusted node decides"


def test_nothing_is_said_where_there_is_no_result_and_of_jobs_of_others() -> None:
    play = Play(2, {"ada": honest})
    assert said(play, 0) is None
    done = Play(1, {"local": honest})
    done.play()
    done.job.is_own = False
    assert said(done, 0) is None


@pytest.mark.parametrize(
    ("rate", "text"),
    [(3e-5, "3e-5"), (3.01e-5, "4e-5"), (9.7e-5, "1e-4"), (1.0, "1"), (0.2, "2e-1"), (0.0, "0"), (1e-4, "1e-4")],
)
def test_a_rate_is_rounded_up(rate: float, text: str) -> None:
    assert rate_text(rate) == text
