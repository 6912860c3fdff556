"""What tasks have saved, in the owner's books."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import ATTEMPTS_MAX, CHECKPOINT_BLOBS_BYTES_MAX, CHECKPOINTS_BYTES_MAX
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.books import Grant
from p2pcompute.scheduler.checkpoints import Checkpoints, Saved
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.trust.levels import Level
from p2pcompute.wire import cbor

JOB = b"j" * 32
OWN = b"o" * 32


def envelope(**terms: object) -> JobEnvelope:
    made = JobTerms(**terms)  # type: ignore[arg-type]
    return JobEnvelope(JOB, made, b"spec", OWN, OWN, b"")


class Owner:
    """An owner with one job of one task, and nodes that ask for it."""

    def __init__(self, level: Level = Level.TRUSTED, **terms: object) -> None:
        self.core = OwnerCore(
            acceptance=Acceptance(lambda installation: Level.TRUSTED if installation == OWN else level)
        )
        self.core.add_job(envelope(**terms))
        self.core.add_tasks(JOB, [b"payload"])
        self.core.seal(JOB)
        self.now = 0.0

    def grant(self, name: str) -> Grant | None:
        key = LOCAL if name == "own" else name.encode() * 32
        thief = Thief(key, OWN if name == "own" else key, b"boot", (3, 11), 1, 1)
        found = self.core.choose(self.now, thief)
        if found is not None:
            self.core.acknowledged(self.now, key, found.grant_id, True)
        return found

    def save(self, grant: Grant, cookie: bytes, **other: object) -> bool:
        (task,) = grant.tasks
        saved = Saved(cookie=cookie, generation=task.generation, attempt=task.attempt)
        saved = replace(saved, **other)  # type: ignore[arg-type]
        return self.core.save(grant.thief, OWN if grant.thief == LOCAL else grant.thief, JOB, 0, saved)

    def end(self, grant: Grant, status: OutcomeStatus, **fields: object) -> bool:
        self.now += 1.0
        (task,) = grant.tasks
        outcome = Outcome(status, **fields)  # type: ignore[arg-type]
        thief = grant.thief
        installation = OWN if thief == LOCAL else thief
        return self.core.result(
            self.now, thief, installation, JOB, 0, task.generation, task.attempt, outcome, b"d" * 32
        )

    def state(self) -> TaskState:
        return self.core.jobs[JOB].ledger.state(0)


def must(grant: Grant | None) -> Grant:
    assert grant is not None
    return grant


def test_the_next_attempt_gets_the_newest_cookie_and_the_end_frees_it() -> None:
    owner = Owner()
    first = must(owner.grant("a"))
    assert first.tasks[0].cookie == b""
    assert owner.save(first, b"one") and owner.save(first, b"two")
    assert not owner.save(first, b"junk", attempt=2), "not this attempt"
    owner.core.peer_lost(owner.now, first.thief)
    assert not owner.save(first, b"late"), "the lease has ended"
    second = must(owner.grant("b"))
    assert second.tasks[0].cookie == b"two"
    assert owner.end(second, OutcomeStatus.KILLED, value=b"three"), "the last cookie comes with the end"
    third = must(owner.grant("c"))
    assert third.tasks[0].cookie == b"three"
    assert owner.end(third, OutcomeStatus.OK) and owner.state() is TaskState.DONE
    kept = [(change.saved.cookie if change.saved else None) for change in owner.core.checkpoints.take_changes()]
    assert kept == [b"one", b"two", b"three", None]
    assert owner.core.checkpoints.get(JOB, 0, 0) is None


def test_a_poisoned_checkpoint_is_defined_away() -> None:
    """Whoever goes on from it fails: that is not the task's failure, and the task begins from scratch."""
    owner = Owner(retries=0)
    first = must(owner.grant("a"))
    owner.save(first, b"poison")
    owner.core.peer_lost(owner.now, first.thief)
    second = must(owner.grant("b"))
    assert second.tasks[0].cookie == b"poison"
    assert owner.end(second, OutcomeStatus.FAILED, error="bad state") and owner.state() is TaskState.OPEN
    third = must(owner.grant("c"))
    assert third.tasks[0].cookie == b"" and not owner.save(third, b"again"), "nothing it saves is used any more"
    assert owner.end(third, OutcomeStatus.FAILED) and owner.state() is TaskState.FAILED, "failing from scratch counts"


def test_a_state_that_has_led_to_a_failure_is_not_gone_on_from() -> None:
    owner = Owner(retries=1)
    first = must(owner.grant("a"))
    owner.save(first, b"state")
    assert owner.end(first, OutcomeStatus.FAILED)
    assert must(owner.grant("b")).tasks[0].cookie == b""


def test_what_kills_its_process_again_at_once_begins_from_scratch() -> None:
    owner = Owner()
    first = must(owner.grant("a"))
    owner.save(first, b"state")
    assert owner.end(first, OutcomeStatus.DIED), "it may have been the node: its state is kept"
    second = must(owner.grant("b"))
    assert second.tasks[0].cookie == b"state"
    assert owner.end(second, OutcomeStatus.DIED)
    assert must(owner.grant("c")).tasks[0].cookie == b""


@pytest.mark.parametrize("terms", [{}, {"verify": "none"}])
def test_members_begin_from_scratch_and_what_they_saved_is_not_believed(terms: dict[str, str]) -> None:
    """A cookie is unpickled by who goes on from it, and a checking copy must not begin with another's work."""
    import random

    owner = Owner(Level.MEMBER, **terms)
    owner.core.acceptance._rng = random.Random(1)
    first = must(owner.grant("a"))
    assert not owner.save(first, b"evil")
    owner.core.peer_lost(owner.now, first.thief)
    own = must(owner.grant("own"))
    assert own.tasks[0].cookie == b"" and owner.save(own, b"good")
    assert owner.end(own, OutcomeStatus.KILLED, value=b"better")
    assert must(owner.grant("b")).tasks[0].cookie == (b"better" if terms else b"")


def test_who_was_trusted_and_is_not_any_more() -> None:
    levels = {b"a" * 32: Level.TRUSTED}
    owner = Owner()
    owner.core.acceptance.level_of = lambda installation: levels.get(installation, Level.TRUSTED)
    first = must(owner.grant("a"))
    owner.save(first, b"state")
    owner.core.peer_lost(owner.now, first.thief)
    levels[b"a" * 32] = Level.BLOCKED
    assert must(owner.grant("b")).tasks[0].cookie == b""


def test_a_task_that_gets_on_may_move_as_often_as_it_likes() -> None:
    owner = Owner()
    for number in range(ATTEMPTS_MAX + 20):
        grant = must(owner.grant("ab"[number % 2]))
        assert grant.tasks[0].cookie == (str(number - 1).encode() if number else b"")
        assert owner.end(grant, OutcomeStatus.KILLED, cause="moved", value=str(number).encode())
    for _ in range(ATTEMPTS_MAX):
        grant = must(owner.grant("a"))
        owner.end(grant, OutcomeStatus.KILLED)
    assert owner.state() is TaskState.FAILED, "one that does not get on is given up"


def test_there_is_room_for_so_many() -> None:
    books = Checkpoints()
    half = CHECKPOINT_BLOBS_BYTES_MAX // 2
    for index, size in ((0, half), (1, half)):
        assert books.keep(JOB, index, Saved(blob=BlobRef(bytes(32), size)))
    assert not books.keep(JOB, 2, Saved(blob=BlobRef(bytes(32), 1))) and books.refused_count == 1
    assert books.keep(JOB, 0, Saved(blob=BlobRef(b"x" * 32, half))), "a new one instead of the old"
    assert books.keep(JOB, 3, Saved(cookie=bytes(CHECKPOINTS_BYTES_MAX)))
    assert not books.keep(JOB, 4, Saved(cookie=b"x"))
    freed = [change.freed for change in books.take_changes() if change.freed is not None]
    assert freed == [BlobRef(bytes(32), half)]
    books.forget_job(JOB)
    assert books.keep(JOB, 4, Saved(cookie=b"x")) and len(books.take_changes()) == 4


@given(
    body=st.recursive(st.integers() | st.binary(max_size=40), lambda inner: st.lists(inner, max_size=6), max_leaves=20)
)
def test_junk_in_a_checkpoint_message(body: object) -> None:
    try:
        messages.parse_checkpoint(body)
    except RemoteProtocolError:
        return


def test_a_checkpoint_travels() -> None:
    entry = [JOB, 3, 0, 2, b"cookie"]
    large = [JOB, 4, 1, 1, [b"d" * 32, 1 << 20]]
    (one, two) = messages.parse_checkpoint(cbor.decode(cbor.encode([entry, large])))
    assert one == (JOB, 3, Saved(cookie=b"cookie", generation=0, attempt=2))
    assert two == (JOB, 4, Saved(blob=BlobRef(b"d" * 32, 1 << 20), generation=1, attempt=1))
    for bad in ([*entry[:4], b"x" * (1 << 17)], [*entry[:4], [b"d" * 32, 1 << 40]], entry[:4]):
        with pytest.raises(RemoteProtocolError):
            messages.parse_checkpoint([bad])
