"""A worker never signs two good results under what a proof of a lie compares, whatever its owners lease.

If this fails, any member has an honest node banned by its whole group.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.limits import ANSWERED_MAX, RESULTS_BATCH_MAX
from p2pcompute.scheduler.answers import Answers
from p2pcompute.scheduler.bundles import find_equivocation
from p2pcompute.scheduler.messages import Message, claims_boot, encode_outcome, output_digest, parse_claims
from p2pcompute.scheduler.owner_link import Finished, OwnerLink
from p2pcompute.scheduler.result_sender import ResultCounters, ResultSender
from p2pcompute.scheduler.worker import WorkerCore
from p2pcompute.wire.envelope import unverified_payload

CRYPTO = RealCrypto()
WORKER = create_identity(CRYPTO)
JOB, FLOOD, OWNER = b"j" * 32, b"f" * 32, b"o" * 32


def claim_of(index: int, value: bytes, *, attempt: int = 1) -> list[Any]:
    outcome = Outcome(OutcomeStatus.OK, value=value)
    return [index, 0, attempt, str(outcome.status), output_digest(outcome)]


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(0, 2)), min_size=1, max_size=4)))
def test_no_order_of_leases_makes_a_liar(messages: list[list[tuple[int, int, int]]]) -> None:
    """Every message is signed with what is remembered cut to a few answers, and compared with all others."""
    answers, raws, said = Answers(b"first", CRYPTO.random_bytes, most=4), [], 0
    for message in messages:
        claims = [claim_of(index, bytes([value]), attempt=attempt) for index, attempt, value in message]
        raw, second = answers.sign(WORKER, JOB, claims)
        signed = parse_claims(unverified_payload(raw))[1] if raw else []
        assert len(signed) + len(second) == len(claims), "nothing is lost unsaid"
        assert len(answers) <= 4
        raws += [raw] * bool(raw)
        said += len(signed)
    assert find_equivocation(CRYPTO, raws, WORKER.public_key) is None
    assert said >= bool(messages)


def test_the_second_result_of_a_lease_is_not_signed_and_a_failure_is() -> None:
    answers = Answers(b"first", CRYPTO.random_bytes)
    first, second = claim_of(0, b"one"), claim_of(0, b"two")
    failed = [0, 0, 1, str(OutcomeStatus.FAILED), output_digest(Outcome(OutcomeStatus.FAILED))]
    assert answers.sign(WORKER, JOB, [first, second, first])[1] == [second], "said again after a loss, not otherwise"
    assert answers.sign(WORKER, JOB, [second]) == (b"", [second])
    assert answers.sign(WORKER, JOB, [failed])[1] == []
    assert answers.sign(WORKER, JOB, [claim_of(0, b"two", attempt=2)])[1] == []
    assert answers.lives_count == 1


class Owner:
    """What reaches an owner; every message is acknowledged."""

    def __init__(self) -> None:
        self.raws: list[bytes] = []
        self.reached = asyncio.Event()
        self.reached.set()

    def get(self, _key: bytes) -> Owner:
        return self

    async def request(self, kind: Message, body: Any, *, timeout_s: float) -> None:
        assert kind is Message.RESULTS and timeout_s
        self.raws.append(body[0])
        await self.reached.wait()

    def equivocation(self, job_id: bytes) -> bytes | None:
        raws = [raw for raw in self.raws if parse_claims(unverified_payload(raw))[0] == job_id]
        return find_equivocation(CRYPTO, raws, WORKER.public_key)

    def claims(self, job_id: bytes) -> list[Any]:
        told = [parse_claims(unverified_payload(raw)) for raw in self.raws]
        return [claim for job, claims in told if job == job_id for claim in claims]


@asynccontextmanager
async def made_sender(blobs: FileBlobs, owner: Owner, identity: Identity) -> AsyncIterator[ResultSender]:
    host: Any = SimpleNamespace(
        store=SimpleNamespace(blobs=blobs),
        clock=SimpleNamespace(now=lambda: 0.0),
        crypto=CRYPTO,
        rng=SimpleNamespace(stream=lambda _name: None),
    )
    scope = TaskScope("test", None)
    yield ResultSender(
        host, identity, cast(Any, owner), None, scope, WorkerCore(1), {}, ResultCounters(),
        boot=b"first", addresses_of=lambda _key: (), link_of=cast(Any, None), sort_out=lambda _link: None,
        seek_coordinators=lambda _link: None,
    )  # fmt: skip
    await scope.close()
    blobs.shut()


def finished(job_id: bytes, index: int, value: bytes) -> Finished:
    return Finished(job_id, claim_of(index, value), encode_outcome(Outcome(OutcomeStatus.OK, value=value)), 0.0)


async def send(sender: ResultSender, link: OwnerLink, results: list[Finished]) -> None:
    for done in results:
        sender.add(link, done)
    sender.send(link)
    while link.is_sending:
        await asyncio.sleep(0)


@pytest.mark.parametrize("flooded", [0, ANSWERED_MAX - 1, ANSWERED_MAX, ANSWERED_MAX + 50])
async def test_an_owner_that_floods_a_worker_between_two_leases_of_a_task_frames_nobody(
    tmp_path: Path, flooded: int
) -> None:
    """It leases a task whose runs differ, then more others than the worker remembers, then the first one again."""
    owner, link = Owner(), OwnerLink(OWNER)
    async with made_sender(FileBlobs(tmp_path, cache_bytes_max=1_000_000), owner, WORKER) as sender:
        await send(sender, link, [finished(JOB, 0, b"heads")])
        await send(sender, link, [finished(FLOOD, index, b"") for index in range(flooded)])
        await send(sender, link, [finished(JOB, 0, b"tails")])
        assert owner.equivocation(JOB) is None
        told = owner.claims(FLOOD)
        assert [claim[0] for claim in told] == list(range(flooded)), "a long job loses nothing"
        assert len(owner.claims(JOB)) + sender.counters.second_results_count == 2
        assert sender.unsent_bytes == 0 and len(sender._answers) <= ANSWERED_MAX


async def test_what_is_signed_before_a_flood_and_arrives_after_it_frames_nobody(tmp_path: Path) -> None:
    """A message is made under one life and waits for its owner while another owner fills that life."""
    slow, link, other = Owner(), OwnerLink(OWNER), OwnerLink(b"e" * 32)
    async with made_sender(FileBlobs(tmp_path, cache_bytes_max=1_000_000), slow, WORKER) as sender:
        sender.add(link, finished(JOB, 0, b"heads"))
        slow.reached.clear()
        sender.send(link)
        while not slow.raws:
            await asyncio.sleep(0)
        slow.reached.set()
        await send(sender, other, [finished(FLOOD, index, b"") for index in range(ANSWERED_MAX)])
        await send(sender, link, [finished(JOB, 0, b"tails")])
        lives = [claims_boot(raw) for raw in slow.raws]
        assert len(dict.fromkeys(lives)) == 2 and lives[0] == b"first"
        assert slow.equivocation(JOB) is None
        assert len(slow.raws) >= ANSWERED_MAX // RESULTS_BATCH_MAX
