"""Who chooses what he answers.  If it broke, a restart of the owner would forget it, and lies that wait for a third
claim because those who agree chose them would be believed at once."""

from __future__ import annotations

from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.trust.verification.arbitrate import DRAWS_FREE, Arbitrate, ArbitratePolicy, Standing
from tests.scheduler.test_acceptance import JOB, Play, honest, key_of

ERROR_PPB = 1_000_000


def choice_of(play: Play, name: str) -> float:
    """By how many times more tasks a member was given than it answered."""
    (verifier,) = play.acceptance.verifiers.values()
    assert isinstance(verifier, Arbitrate)
    return verifier.workers[key_of(name)].choice


def hand_back(play: Play, name: str, times: int) -> None:
    """Ask for tasks and return them, as who looks for those that an accomplice has claimed."""
    key = key_of(name)
    for _ in range(times):
        grant = play.ask(key)
        if grant is not None:
            play.core.returned(play.now, key, JOB, [task.index for task in grant.tasks])
    play.collect()


def choosy(times: int) -> Play:
    """Two members that agree about everything, have passed checks, and then hand back what they are given."""
    play = Play(400, {"a": honest, "b": honest}, error_ppb=ERROR_PPB)
    for _ in range(30):
        play.turn()
    assert play.job.ledger.counts[TaskState.DONE] > 20, "pairs are believed by now"
    for name in ("a", "b"):
        hand_back(play, name, times)
    return play


def test_a_restart_does_not_forget_what_was_handed_back() -> None:
    play = choosy(times=100)
    before = choice_of(play, "a")
    assert before > 3
    play.restart()
    play.turn()
    assert choice_of(play, "a") > 0.8 * before


def test_pairs_that_wait_because_of_it_are_not_believed_after_a_restart() -> None:
    play = choosy(times=100)
    done = play.job.ledger.counts[TaskState.DONE]
    for _ in range(10):
        play.turn()
    waiting = [
        index
        for index, number in play.job.checked.numbers.items()
        if play.job.ledger.state(index) is TaskState.OPEN and len(play.job.checked.verifier.tasks[number].claims) == 2
    ]
    assert waiting and play.job.ledger.counts[TaskState.DONE] == done, "two claims are too few of who chooses"
    play.restart()
    (verifier,) = play.acceptance.verifiers.values()
    assert isinstance(verifier, Arbitrate)
    play.acceptance._follow(play.job.checked.rule, verifier.settle())
    play.collect()
    assert all(play.job.ledger.state(index) is TaskState.OPEN for index in waiting)


def test_it_is_stored_also_of_who_answers_nothing() -> None:
    """A crash would forget it otherwise: who only hands back claims nothing."""
    play = choosy(times=0)
    play.acceptance.take_changed()
    hand_back(play, "a", 2)
    assert not play.acceptance.changed, "a few tell nothing, and are not worth a write"
    hand_back(play, "a", DRAWS_FREE)
    assert list(play.acceptance.changed) == [key_of("a")]
    play.acceptance.take_changed()
    hand_back(play, "a", 2)
    assert not play.acceptance.changed


def test_what_an_earlier_build_has_stored_is_read() -> None:
    verifier = Arbitrate(ArbitratePolicy())
    verifier.remember(b"a", [int(Standing.ACTIVE), 30, 40, 0, 1000, 12])
    assert verifier.memory_of(b"a") == [int(Standing.ACTIVE), 30, 40, 0, 1000, 12, 0, 0]
    verifier.remember(b"b", [int(Standing.ACTIVE), 30, 40, 0, 1000, 12, 90, 35])
    assert verifier.workers[b"b"].choice == (90 + DRAWS_FREE) / (35 + DRAWS_FREE)
