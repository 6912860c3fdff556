"""What members of a group compute: if it broke, a wrong result would be believed, or an honest node lose its work."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from p2pcompute.execution.codec import encode
from p2pcompute.execution.neighbours import are_alike
from p2pcompute.execution.spec import JobSpec, TaskKind, encode_spec
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler import books
from p2pcompute.scheduler.acceptance import DISPUTED, Acceptance, claims
from p2pcompute.scheduler.books import Grant, OwnedJob, TaskEnd
from p2pcompute.scheduler.checked import Record
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.messages import output_digest
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.stragglers import Slowness
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification.arbitrate import Arbitrate, Standing
from p2pcompute.trust.verification.book import Why
from p2pcompute.wire import cbor
from tests.preferring import Preferring

JOB = b"j" * 32
LIFE = b"life"
"""In which all workers sign."""
WRONG = b"w" * 32
OK = Outcome(OutcomeStatus.OK, value=b"x", runtime_s=0.25)
Answer = Callable[[bytes, int], bytes]


def right(index: int) -> bytes:
    return index.to_bytes(32, "big")


def envelope(job_id: bytes = JOB, **terms: Any) -> JobEnvelope:
    return JobEnvelope(job_id, JobTerms(**terms), b"", b"s" * 32, b"s" * 32, b"raw")


def key_of(name: str) -> bytes:
    return LOCAL if name == "local" else name.encode().ljust(32, b".")


def honest(_key: bytes, index: int) -> bytes:
    return right(index)


def liar(_key: bytes, _index: int) -> bytes:
    return WRONG


class Play:
    """An owner's core and nodes that compute what it hands out, one task at a time and each as fast as the others."""

    def __init__(
        self,
        tasks: int,
        nodes: dict[str, Answer],
        *,
        trusted: tuple[str, ...] = (),
        invited: dict[str, str] | None = None,
        **terms: Any,
    ) -> None:
        """Args:
        invited: who let whom in, where it was neither the founder nor somebody trusted.
        """
        clusters = {key_of(name): key_of(by) for name, by in (invited or {}).items()}
        self.levels = {key_of(name): Level.TRUSTED for name in trusted}
        self.cluster_of = lambda key: clusters.get(key, key)
        self.acceptance = Acceptance(lambda key: self.levels.get(key, Level.MEMBER), random.Random(7), self.cluster_of)
        self.core = OwnerCore(None, self.acceptance)
        self.job = self.core.add_job(envelope(**terms))
        self.core.add_tasks(JOB, [b"%d" % index for index in range(tasks)])
        self.core.seal(JOB)
        self.nodes = {key_of(name): answer for name, answer in nodes.items()}
        self.now = 0.0
        self.runs = 0
        self.ends: list[TaskEnd] = []
        self.facts: list[tuple[int, Any]] = []
        self.revoked: list[tuple[int, int]] = []
        self.delivered: dict[int, bytes] = {}
        self.records: dict[bytes, list[Any]] = {}

    def thief(self, key: bytes, want: int = 4) -> Thief:
        return Thief(key, b"me" if key == LOCAL else key, b"1", (3, 11), 1, want)

    def ask(self, key: bytes, want: int = 4) -> Grant | None:
        grant = self.core.choose(self.now, self.thief(key, want))
        if grant is not None:
            self.core.acknowledged(self.now, key, grant.grant_id, True)
        return grant

    def answer(self, key: bytes, index: int, generation: int, attempt: int, digest: bytes | None = None) -> bool:
        digest = self.nodes[key](key, index) if digest is None else digest
        self.runs += 1
        outcome = Outcome(OutcomeStatus.OK, value=digest, runtime_s=0.25)
        installation = b"me" if key == LOCAL else key
        return self.core.result(
            self.now, key, installation, JOB, index, generation, attempt, outcome, digest, boot=LIFE
        )

    def collect(self) -> None:
        effects = self.core.take_effects()
        self.ends += effects.ends
        self.facts += [(int(kind), body) for _job, kind, body in effects.facts]
        self.revoked += [(index, generation) for _job, index, generation in effects.revoked]
        for end in effects.ends:
            if end.state is TaskState.DONE and end.outcome is not None:
                self.delivered[end.index] = end.outcome.value
        for thief, job_id, indices, kill in effects.stops:
            if not kill:
                self.core.returned(self.now, thief, job_id, indices)
        self.core.check_invariants()

    def turn(self) -> None:
        """All ask, and answer."""
        self.now += 1.0
        grants = [(key, grant) for key in list(self.nodes) if (grant := self.ask(key)) is not None]
        for key, grant in grants:
            for task in grant.tasks:
                self.answer(key, task.index, task.generation, task.attempt)
        self.core.tick(self.now)
        self.collect()

    def play(self, turns: int = 2000) -> OwnedJob:
        while not self.job.ledger.is_complete and turns:
            self.turn()
            turns -= 1
        assert self.job.ledger.is_complete, self.job.ledger.counts
        return self.job

    def restart(self) -> None:
        """The owner dies, and a new one reads what was stored; who held a task has forgotten it."""
        rows = {key: record.pack() for key, record in self.acceptance.take_changed().items()}
        self.records |= rows
        checked = self.job.checked
        assert checked is not None
        outputs = {
            (index, digest): (output.thief, output.outcome)
            for index, known in checked.outputs.items()
            for digest, output in known.items()
        }
        size = self.job.ledger.size
        tasks = [(FactKind.TASKS, [0, [b"%d" % index for index in range(size)]]), (FactKind.SEAL, [size])]
        self.acceptance = Acceptance(lambda key: self.levels.get(key, Level.MEMBER), random.Random(8), self.cluster_of)
        for key, row in self.records.items():
            self.acceptance.records[key] = Record.unpack(cbor.decode(cbor.encode(row)))
        self.core = OwnerCore(None, self.acceptance)
        self.job = self.core.recover(self.job.envelope, [*tasks, *self.facts], outputs)
        self.collect()

    def banned(self) -> set[str]:
        return {key.rstrip(b".").decode() for key, record in self.acceptance.records.items() if record.banned}


def test_trusted_nodes_cost_nothing_extra_and_have_no_books() -> None:
    play = Play(100, {"local": honest, "a": honest, "b": honest}, trusted=("a", "b"))
    play.play()
    assert play.runs == 100
    assert play.job.checked is None


def test_nobody_is_believed_alone() -> None:
    play = Play(20, {"local": honest, "a": liar, "b": honest})
    play.play()
    assert play.delivered == {index: right(index) for index in range(20)}


@pytest.mark.parametrize("lie", [liar, lambda key, _index: key], ids=["alike", "each its own"])
def test_liars_are_banned_and_no_wrong_result_is_accepted(lie: Answer) -> None:
    nodes: dict[str, Answer] = {"local": honest, "evil": lie, "vile": lie}
    nodes |= dict.fromkeys("abcde", honest)
    play = Play(2000, nodes)
    play.play()
    assert play.delivered == {index: right(index) for index in range(2000)}
    assert play.banned() == {"evil", "vile"}
    assert play.runs / 2000 < 2.3


def test_a_member_that_takes_long_holds_up_nobody_and_its_result_counts() -> None:
    """Tasks that take longer than most would be computed by everybody in turn, and none of it would count."""
    play = Play(6, {"local": honest, "a": honest, "b": honest}, replicas=2)
    slow, members = key_of("a"), [key_of("b"), key_of("c")]
    play.nodes[members[1]] = honest
    grant = play.ask(slow, 1)
    assert grant is not None
    first = grant.tasks[0]
    for _ in range(200):
        play.now += 1.0
        play.core.heartbeat(play.now, slow, b"1", JOB, [(first.index, 0, 1)], installation=slow)
        for key in members:
            for task in granted.tasks if (granted := play.ask(key)) is not None else ():
                play.answer(key, task.index, task.generation, task.attempt)
        play.core.tick(play.now)
        play.collect()
    checked = play.job.checked
    assert checked is not None and list(play.delivered) and first.index in play.delivered, "others have done it"
    assert play.runs == 12, "each of them twice, and nothing of it more often"
    assert play.core.heartbeat(play.now, slow, b"1", JOB, [(first.index, 0, 1)], installation=slow) == []


def test_a_member_that_takes_long_is_not_given_the_same_task_again() -> None:
    """With a slot free it would take it from the others, and nobody would compute it."""
    play = Play(3, {"a": honest, "b": honest}, replicas=2)
    slow = key_of("a")
    first = play.ask(slow, 1)
    assert first is not None
    index = first.tasks[0].index
    for _ in range(20):
        play.now += 30.0
        play.core.heartbeat(play.now, slow, b"1", JOB, [(index, 0, 1)], installation=slow)
        for key in (slow, key_of("b")):
            for task in grant.tasks if (grant := play.ask(key, 1)) is not None else ():
                assert (key, task.index) != (slow, index)
                play.answer(key, task.index, 0, task.attempt)
        play.core.tick(play.now)
        play.collect()
    checked = play.job.checked
    assert checked is not None and list(checked.claims_of(index)) == [key_of("b")]


def test_conflicts_of_those_who_have_most_are_decided_first_and_they_wait_meanwhile() -> None:
    """One slow trusted node would decide for hours what liars say in minutes."""
    nodes: dict[str, Answer] = {"evil": lambda key, _index: key, **dict.fromkeys("abcde", honest)}
    play, boss = Play(600, nodes), key_of("boss")
    play.levels[boss] = Level.TRUSTED
    play.core.remember(0.0, play.thief(boss))  # it can decide, and asks for nothing yet
    for _ in range(30):
        play.core.remember(play.now, play.thief(boss))
        play.turn()
    checked = play.job.checked
    assert checked is not None and play.acceptance.records[key_of("evil")].claims < 20
    assert checked.accused().most_common(1)[0][0] == key_of("evil")
    assert play.acceptance.records[key_of("a")].claims > 50, "who is confirmed more often than contradicted goes on"
    play.nodes[boss] = honest
    grant = play.ask(boss, 1)
    assert grant is not None and key_of("evil") in checked.claims_of(grant.tasks[0].index)
    play.answer(boss, grant.tasks[0].index, 0, grant.tasks[0].attempt)
    play.play()
    assert play.banned() == {"evil"} and play.delivered == {index: right(index) for index in range(600)}


def test_a_trusted_node_is_not_given_what_it_is_computing() -> None:
    """Its first lease would never end."""
    play = Play(2, {"local": honest, "a": honest, "evil": liar}, replicas=2)
    for key in (key_of("a"), key_of("evil")):
        grant = play.ask(key, 2)
        assert grant is not None
        if key == key_of("a"):
            for task in grant.tasks:
                play.answer(key, task.index, 0, task.attempt)
    play.ask(LOCAL, 1)
    settling = play.ask(LOCAL, 1)
    assert settling is not None
    play.answer(key_of("evil"), settling.tasks[0].index, 0, 1)
    play.ask(LOCAL, 2)
    play.collect()


def test_trusted_nodes_settle_what_takes_longest_and_the_rest_is_weighed_again() -> None:
    """The last long task would be computed by members one after the other, with all other nodes idle; and claims would
    wait for checks that they do not need any more."""
    members = [key_of(name) for name in "ab"]
    play = Play(8, dict.fromkeys("ab", honest))
    play.job.slowness = Slowness()
    runs_s = {index: float(1 + (index * 5) % 8) for index in range(8)}
    for key in members:
        while (grant := play.ask(key, 1)) is not None:
            for task in grant.tasks:
                outcome = replace(OK, runtime_s=runs_s[task.index])
                play.now += 10.0
                play.core.result(
                    play.now, key, key, JOB, task.index, 0, task.attempt, outcome, right(task.index), boot=LIFE
                )
    checked = play.job.checked
    assert checked is not None and len(checked.held) == 8, "each was claimed twice, and that is not enough"
    boss = key_of("boss")
    play.levels[boss] = Level.TRUSTED
    play.nodes[boss] = honest
    settled = []
    for _ in range(3):
        grant = play.ask(boss, 1)
        assert grant is not None
        settled += [task.index for task in grant.tasks]
    assert [runs_s[index] for index in settled] == [8.0, 7.0, 6.0]
    assert isinstance(checked.verifier, Arbitrate)
    play.core.tick(play.now)
    assert not play.job.ledger.counts[TaskState.DONE]
    for key in members:
        checked.verifier.workers[key].k += 1000
    play.core.tick(play.now)
    assert play.job.ledger.counts[TaskState.DONE] == 8, "nobody else has to compute anything"
    stopped = [index for who, _job, indices, kill in play.core.take_effects().stops if kill and who == boss
               for index in indices]  # fmt: skip
    assert sorted(stopped) == sorted(settled), "what a trusted node computes of it would be in vain, for hours perhaps"


@pytest.mark.parametrize("method", ["arbitrate", "spotcheck"])
def test_a_ban_that_was_ended_is_over_and_stays_so(method: str) -> None:
    """Trusted for a moment and a member again: it begins anew, in this life of the owner and in the next one."""
    nodes: dict[str, Answer] = {"local": honest, "evil": liar, "vile": liar}
    nodes |= dict.fromkeys("abc", honest)
    play = Play(900, nodes, verify=method)
    while "evil" not in play.banned():
        play.turn()
    evil = key_of("evil")
    for level in (Level.TRUSTED, Level.MEMBER):
        play.levels[evil] = level
        play.acceptance.pardon(evil)
    assert "evil" not in play.banned()
    assert not any(verifier.is_banned(evil) for verifier in play.acceptance.verifiers.values())
    worked: list[int] = []

    def reformed(key: bytes, index: int) -> bytes:
        worked.append(index)
        return honest(key, index)

    play.nodes[evil] = reformed
    for _ in range(5):
        play.turn()
    assert worked, "it gets work"
    play.restart()
    play.play()
    assert "evil" not in play.banned()


def test_facts_tell_who_claimed_what_and_on_whose_word_it_was_accepted() -> None:
    play = Play(200, {"local": honest, "a": honest, "b": honest, "c": honest})
    play.play()
    kinds = {kind for kind, _body in play.facts}
    assert {FactKind.HELD, FactKind.CHECKED, FactKind.ACCEPT} <= kinds


def test_a_restart_keeps_claims_verdicts_and_bans() -> None:
    nodes: dict[str, Answer] = {"local": honest, "evil": liar, "vile": liar}
    nodes |= dict.fromkeys("abcde", honest)
    play = Play(600, nodes)
    while len(play.banned()) < 2 or play.acceptance.records[key_of("a")].agreed < 40:
        play.turn()
    done = play.job.ledger.counts[TaskState.DONE]
    checked = play.job.checked
    assert checked is not None
    claimed = sum(len(checked.verifier.tasks[checked.numbers[index]].claims) for index in checked.held)
    assert claimed > 10 and isinstance(checked.verifier, Arbitrate)
    passed = {worker: (record.k, record.checks_before) for worker, record in checked.verifier.workers.items()}
    play.restart()
    assert play.banned() == {"evil", "vile"}
    assert play.job.ledger.counts[TaskState.DONE] == done
    checked = play.job.checked
    assert checked is not None
    assert sum(len(checked.verifier.tasks[checked.numbers[index]].claims) for index in checked.held) == claimed
    assert isinstance(checked.verifier, Arbitrate)
    for worker, record in checked.verifier.workers.items():
        k, checks_before = passed[worker]
        assert 0 < k - 10 <= record.k <= k, "the checks that it passed count again"
        assert record.k + record.checks_before <= k + checks_before, "and once"


def test_who_has_claims_takes_part_after_a_restart_though_nothing_else_is_known_of_it() -> None:
    """What many had computed when the owner died would be computed again."""
    nodes: dict[str, Answer] = {"local": honest}
    nodes.update((f"m{number}", honest) for number in range(30))
    play = Play(400, nodes)
    for _ in range(3):
        play.turn()
    play.acceptance.changed.clear()  # it died before any of it was stored
    play.cluster_of = lambda _key: b"stranger"  # and who vouches for them is not known yet
    claimed = {(entry[0], entry[4]) for kind, body in play.facts if kind == FactKind.HELD for entry in body}
    assert len({worker for _index, worker in claimed}) == 30
    play.restart()
    checked = play.job.checked
    assert checked is not None
    known = {(index, worker) for index, at in checked.numbers.items() for worker in checked.verifier.tasks[at].claims}
    assert known == claimed


def test_a_trusted_node_that_contradicts_what_was_agreed_ends_the_task() -> None:
    """It would compute a task that was reopened for its sake again and again, for ever."""
    play = Play(60, {"local": lambda _key, index: right(index + 1000), **dict.fromkeys("abcde", honest)}, replicas=3)
    play.play(200)
    assert play.revoked and play.runs < 300


def test_a_result_is_revoked_when_those_who_vouched_for_it_are_found_out_later() -> None:
    nodes: dict[str, Answer] = {"evil": honest, "vile": honest, "a": honest, "local": honest}
    play = Play(10, nodes, replicas=2)
    play.nodes = {key: value for key, value in play.nodes.items() if key in (key_of("evil"), key_of("vile"))}
    play.nodes = dict.fromkeys(play.nodes, liar)
    play.play()
    assert set(play.delivered.values()) == {WRONG}, "both copies were theirs"
    play.core.acceptance.wall_s = 5.0
    play.acceptance._ban(key_of("evil"), Why.FAULTY)
    play.collect()
    assert len(play.revoked) == 10 and not play.job.ledger.is_complete
    play.nodes |= {key_of("local"): honest}
    play.play()
    assert play.delivered == {index: right(index) for index in range(10)}
    assert play.banned() >= {"evil"}
    assert (FactKind.REVOKE, 10) in [(kind, len(body)) for kind, body in play.facts]


# --- nobody honest is framed ----------------------------------------------------------------------


def dice(rng: random.Random) -> Answer:
    """A task whose result differs from run to run."""
    return lambda _key, _index: rng.randbytes(32)


def test_a_task_with_many_results_bans_nobody_and_the_user_is_told() -> None:
    rng = random.Random(3)
    play = Play(30, {name: dice(rng) for name in ("local", "a", "b", "c", "d")})
    play.play()
    assert play.banned() == set()
    assert play.job.nondeterministic > 0


def test_who_answers_two_leases_differently_is_not_banned() -> None:
    """The task has more than one result, or the node lost its first one in a crash between signing and sending."""
    play = Play(2, {"a": honest, "b": honest})
    grant = play.ask(key_of("a"), want=1)
    assert grant is not None
    task = grant.tasks[0]
    play.answer(key_of("a"), task.index, 0, task.attempt, b"1" * 32)
    play.answer(key_of("a"), task.index, 0, task.attempt + 1, b"2" * 32)
    play.core.result(1.0, key_of("a"), key_of("a"), JOB, task.index, 0, task.attempt, OK, b"3" * 32, boot=b"later")
    play.collect()
    assert play.banned() == set()
    assert list(play.job.checked.arbitrations) == [task.index]  # type: ignore[union-attr]


def test_who_names_no_life_is_not_banned_for_a_second_result() -> None:
    """A coordinator's own claims name none: after a restart it may compute a task again, and find something else."""
    play = Play(2, {"a": honest, "b": honest})
    grant = play.ask(key_of("a"), want=1)
    assert grant is not None
    task = grant.tasks[0]
    for digest in (b"1" * 32, b"2" * 32):
        play.core.result(1.0, key_of("a"), key_of("a"), JOB, task.index, 0, task.attempt, OK, digest)
    play.collect()
    assert play.banned() == set()
    assert list(play.job.checked.arbitrations) == [task.index]  # type: ignore[union-attr]


def test_who_answers_one_lease_differently_is_banned() -> None:
    play = Play(2, {"a": honest, "b": honest})
    grant = play.ask(key_of("a"), want=1)
    assert grant is not None
    task = grant.tasks[0]
    for digest in (b"1" * 32, b"2" * 32):
        play.answer(key_of("a"), task.index, 0, task.attempt, digest)
    play.collect()
    assert play.banned() == {"a"}
    assert play.ask(key_of("a")) is None
    assert play.job.ready_count == 2, "somebody else does it"


def test_what_somebody_banned_had_said_waits_for_no_trusted_node() -> None:
    """A liar is known after one conflict; all others with it would take one trusted node hours."""
    nodes: dict[str, Answer] = {"evil": liar} | dict.fromkeys("abcdefgh", honest)
    play = Play(400, nodes)
    play.acceptance._arbiter_at = inf  # one is there, and never comes to it
    for _ in range(40):
        play.turn()
    checked = play.job.checked
    assert checked is not None
    assert len(checked.arbitrations) > 3
    play.acceptance._ban(key_of("evil"), Why.EQUIVOCATION)
    play.collect()
    assert not checked.arbitrations and not checked.asked
    assert play.core.demands()[0][1] > 0


def test_what_waits_for_checks_is_offered_to_nodes() -> None:
    """All is begun, and some have to be computed once more: nodes of a large group do not ask of their own accord."""
    play = Play(4, {"a": honest, "b": honest})
    while play.job.ready_count:
        grant = play.ask(key_of("a"))
        assert grant is not None
        for task in grant.tasks:
            play.answer(key_of("a"), task.index, task.generation, task.attempt)
        play.collect()
    assert play.core.demands() == [(None, 4)]


def test_who_was_not_known_when_the_owner_came_back_checks_others_when_it_is() -> None:
    """What nobody knows the origin of is taken to have one; if that stayed, nobody could check anybody."""
    play = Play(4, {"a": honest, "b": honest})
    known = play.acceptance._cluster_of
    play.acceptance._cluster_of = lambda _installation: b"founder"
    play.ask(key_of("a"))
    play.acceptance._cluster_of = known
    play.ask(key_of("a"))
    (verifier,) = play.acceptance.verifiers.values()
    assert isinstance(verifier, Arbitrate)
    assert verifier.workers[key_of("a")].cluster == key_of("a")


def test_copies_look_like_originals() -> None:
    play = Play(40, dict.fromkeys("abcd", honest))
    attempts: set[int] = set()
    for _ in range(30):
        grants = [(key, grant) for key in play.nodes if (grant := play.ask(key)) is not None]
        for key, grant in grants:
            attempts |= {task.attempt for task in grant.tasks}
            assert not grant.may_pass
            for task in grant.tasks:
                play.answer(key, task.index, task.generation, task.attempt)
        play.collect()
    checked = play.job.checked
    assert checked is not None and any(len(task.claims) > 2 for task in checked.verifier.tasks)
    assert attempts == {1}


def test_a_failure_that_only_members_tell_of_is_tried_by_a_trusted_node() -> None:
    play = Play(3, {"a": honest, "b": honest, "c": honest})
    failed = Outcome(OutcomeStatus.FAILED, error="no", runtime_s=0.1)
    for turn in range(20):
        for key in list(play.nodes):
            grant = play.ask(key)
            for task in () if grant is None else grant.tasks:
                play.core.result(float(turn), key, key, JOB, task.index, 0, task.attempt, failed, b"f" * 32)
        play.collect()
    assert play.job.ledger.counts[TaskState.OPEN] == 3, "they alone cannot make it fail"
    play.nodes = {LOCAL: honest}
    play.play()
    assert play.delivered == {index: right(index) for index in range(3)}


def test_members_that_take_tasks_and_give_them_back_for_ever_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time under another key: a session key costs nothing."""
    monkeypatch.setattr(books, "VERIFY_LENDS_FREE", 20)
    monkeypatch.setattr(books, "VERIFY_LENDS_PER_TASK", 4)
    play = Play(5, {"local": honest, "a": honest})
    for number in range(200):
        key = key_of(f"k{number}")
        for task in () if (grant := play.ask(key)) is None else grant.tasks:
            play.core.returned(play.now, key, JOB, [task.index])
        play.collect()
    checked = play.job.checked
    assert checked is not None and len(checked.attempts) == checked.lends_max == 40
    play.play()
    assert play.delivered == {index: right(index) for index in range(5)}


def test_who_was_not_asked_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "VERIFY_LENDS_FREE", 3)
    monkeypatch.setattr(books, "VERIFY_LENDS_PER_TASK", 0)
    play = Play(1, {"local": honest, "a": honest} | {f"m{number}": honest for number in range(50)})
    for number in range(50):
        play.answer(key_of(f"m{number}"), 0, 0, 1)
        play.collect()
    checked = play.job.checked
    assert checked is not None and 1 <= len(checked.signed) <= 3


# --- nobody trusted -------------------------------------------------------------------------------


def test_without_a_trusted_node_more_members_decide() -> None:
    nodes: dict[str, Answer] = {"evil": liar} | dict.fromkeys("abcdefgh", honest)
    play = Play(200, nodes)
    play.now = 1000.0
    play.play()
    assert play.delivered == {index: right(index) for index in range(200)}


def test_what_nobody_can_decide_has_failed_as_disputed() -> None:
    play = Play(4, {"a": honest, "b": liar})
    for _ in range(400):
        play.turn()
    assert play.job.ledger.counts[TaskState.FAILED] == 4
    assert all(reason.startswith(DISPUTED) for reason in play.job.ledger.reasons.values())


@pytest.mark.parametrize("method", ["majority", "boinc", "spotcheck", "credibility"])
def test_other_methods_decide_where_a_job_asks_for_them(method: str) -> None:
    play = Play(300, dict.fromkeys(("local", *"abcd"), honest) | {"evil": lambda key, _index: key}, verify=method)
    play.play()
    assert len(play.delivered) == 300
    wrong = sum(value != right(index) for index, value in play.delivered.items())
    assert wrong == 0 if method in ("majority", "credibility") else wrong < 30
    assert ("evil" in play.banned()) == (method in ("spotcheck", "credibility"))


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_so_many_replicas_are_made_and_no_more(replicas: int) -> None:
    play = Play(100, dict.fromkeys("abcd", honest), replicas=replicas)
    play.play()
    assert play.runs == 100 * replicas


def test_whom_a_member_let_in_proves_itself_first_and_checks_nobody_of_the_same_origin() -> None:
    nodes: dict[str, Answer] = dict.fromkeys(("local", "a", "b"), honest) | dict.fromkeys(
        ("evil", "puppet", "doll"), liar
    )
    play = Play(300, nodes, invited={"puppet": "evil", "doll": "evil"})
    play.play()
    assert play.delivered == {index: right(index) for index in range(300)}
    (verifier,) = play.acceptance.verifiers.values()
    assert isinstance(verifier, Arbitrate)
    assert verifier.workers[key_of("puppet")].standing is not Standing.ACTIVE


def test_a_newcomer_among_trusted_nodes_only_can_prove_itself() -> None:
    play = Play(120, {"local": honest, "new": honest}, invited={"new": "somebody"})
    play.play()
    (verifier,) = play.acceptance.verifiers.values()
    assert isinstance(verifier, Arbitrate)
    assert verifier.workers[key_of("new")].standing is Standing.ACTIVE


def test_what_a_preferred_member_has_computed_is_checked_at_once_by_others() -> None:
    """Its tasks are held for checks then, and none is ready: the job would wait for ever."""
    nodes = [key_of(name) for name in ("fast", "trusted", "local")]
    play = Play(0, dict.fromkeys(("fast", "trusted", "local"), honest), trusted=("trusted",))
    play.core = OwnerCore(lambda _job: Preferring(b"fast"), Acceptance(play.acceptance.level_of, random.Random(7)))
    play.job = play.core.add_job(envelope(prefer=("name=fast",)))
    play.core.add_tasks(JOB, [b"0", b"1"])
    play.core.seal(JOB)
    for _ in range(4):
        for grant in list(play.core.choose_preferred(play.now, [play.thief(key) for key in nodes], nodes)):
            play.core.acknowledged(play.now, grant.thief, grant.grant_id, True)
            assert play.runs or grant.thief == nodes[0], "new tasks wait for the preferred node"
            for task in grant.tasks:
                play.answer(grant.thief, task.index, task.generation, task.attempt)
        play.collect()
    assert play.job.ledger.is_complete and play.now == 0.0
    assert play.delivered == {index: right(index) for index in range(2)}


@pytest.mark.parametrize(("digits", "is_forgiven"), [(3, True), (0, False)])
@pytest.mark.parametrize("is_own", [True, False])
def test_machines_that_round_to_two_neighbours_are_no_liars(digits: int, is_forgiven: bool, is_own: bool) -> None:
    """With `equal=`: what a trusted node computes decides, a custodian too, and who is a step away has not erred."""
    sides = {b"a": 0.333, b"b": 0.334, b"l": 0.334}

    def outcome_of(key: bytes, index: int) -> Outcome:
        return Outcome(OutcomeStatus.OK, value=encode([index, sides.get(key[:1], 0.334)]), runtime_s=0.25)

    class Nearly(Play):
        def answer(self, key: bytes, index: int, generation: int, attempt: int, digest: bytes | None = None) -> bool:
            outcome = outcome_of(key, index)
            installation = b"me" if key == LOCAL else key
            said = output_digest(outcome)
            return self.core.result(
                self.now, key, installation, JOB, index, generation, attempt, outcome, said, boot=LIFE
            )

    play = Nearly(40, {"local": honest, "a": honest, "b": honest})
    spec = encode_spec(JobSpec(kind=TaskKind.FUNCTION, digits=digits))
    play.job.envelope = replace(play.job.envelope, spec=spec)
    play.acceptance.are_alike = are_alike
    play.job.is_own, play.job.is_checked = is_own, not is_own
    play.play()
    wrong = {key[:1]: record.wrong for key, record in play.acceptance.records.items()}
    assert (sum(wrong.values()) == 0) is is_forgiven, wrong
    assert bool(play.banned()) is not is_forgiven


def test_who_tells_a_custodian_and_the_owner_two_results_of_one_lease_is_banned() -> None:
    play = Play(5, {"a": honest, "b": honest}, trusted=("c",))
    a, custodian = key_of("a"), key_of("c")

    def told(digest: bytes, **more: Any) -> None:
        play.core.result(0.0, a, a, JOB, 0, 0, 1, replace(OK, value=digest), digest, boot=LIFE, **more)
        play.collect()

    told(WRONG, relayed_by=custodian)
    assert play.banned() == set()
    told(right(0))
    assert play.banned() == {"a"} and play.acceptance.records[a].banned == Why.EQUIVOCATION


def test_results_that_nobody_asked_for_fill_no_memory_and_keep_nobody_from_working(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member could tell of every task of a job, 64 KiB each, before anybody has begun it."""
    monkeypatch.setattr(claims, "VERIFY_UNASKED_BYTES_MAX", 10_000)
    play = Play(200, {"local": honest, "a": honest, "b": honest})
    flood, size = key_of("e"), 1000
    for index in range(200):
        digest = bytes([7, index]) * 16
        outcome = replace(OK, value=digest.ljust(size, b"."))
        play.core.result(0.0, flood, flood, JOB, index, 0, 1, outcome, digest, boot=LIFE)
    assert play.acceptance.held_bytes < 10_000 + 2 * size
    play.collect()
    play.play()
    assert play.delivered == {index: right(index) for index in range(200)}
