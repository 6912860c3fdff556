"""Conflicts about a job that no trusted node may run, though trusted nodes work for others.

If this fails, what members find differently waits for ever for a node that will never compute it.
"""

from __future__ import annotations

from p2pcompute.scheduler.acceptance import DISPUTED
from p2pcompute.scheduler.ledger import TaskState
from tests.scheduler.test_acceptance import Answer, Play, honest, liar, right
from tests.scheduler.test_failing_tasks import Elsewhere


def test_more_members_decide_what_no_trusted_node_may_compute() -> None:
    nodes: dict[str, Answer] = {"local": honest, "evil": liar}
    nodes |= dict.fromkeys("abcdefgh", honest)
    play = Play(200, nodes)
    play.now = 1000.0
    play.job.fit = Elsewhere()
    play.play()
    assert play.delivered == {index: right(index) for index in range(200)}
    assert not play.banned(), "nobody that may judge has said who lies"


def test_what_nobody_that_may_compute_it_can_decide_has_failed_as_disputed() -> None:
    play = Play(4, {"local": honest, "a": honest, "b": liar})
    play.job.fit = Elsewhere()
    for _ in range(400):
        play.turn()
    assert play.job.ledger.counts[TaskState.FAILED] == 4
    assert all(reason.startswith(DISPUTED) for reason in play.job.ledger.reasons.values())


def test_a_trusted_node_that_comes_to_fit_decides_what_waits() -> None:
    play = Play(4, {"local": honest, "a": honest, "b": liar})
    play.job.fit = Elsewhere()
    for _ in range(100):
        play.turn()
    assert play.job.ledger.counts[TaskState.OPEN] == 4
    play.job.fit = None
    play.play()
    assert play.delivered == {index: right(index) for index in range(4)}
