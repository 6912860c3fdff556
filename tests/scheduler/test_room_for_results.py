"""What a worker keeps for other owners is bounded by the room that its own person gives.

If this fails, a member whose tasks have large outputs fills the disks of those that work for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.host.tasks import TaskScope
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.messages import decode_outcome
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.scheduler.worker_service import WorkerService

JOB, OWNER = b"j" * 32, b"o" * 32
CAP = 1_000_000


@asynccontextmanager
async def made_worker(blobs: FileBlobs, *, inputs: Any = None, fetch: Any = None) -> AsyncIterator[WorkerService]:
    """A worker's service with nothing but a blob store."""
    host: Any = SimpleNamespace(
        store=SimpleNamespace(blobs=blobs),
        clock=SimpleNamespace(now=lambda: 0.0, call_later=lambda *_: SimpleNamespace(cancel=lambda: None)),
        crypto=RealCrypto(),
        rng=SimpleNamespace(stream=lambda _name: None),
        runner=SimpleNamespace(slot_count=4, on_saved=None),
    )
    scope = TaskScope("test", None)
    made = WorkerService(
        host,
        cast(Any, SimpleNamespace(installation=b"w" * 32, public_key=b"w" * 32)),
        cast(Any, None),
        None,
        scope,
        lambda: None,
        pump_now=lambda: None,
        boot=b"b",
        inputs=inputs or (lambda _spec, _payload: []),
        fetch=fetch,
        intake_local=cast(Any, None),
        job_of_local=cast(Any, None),
        is_checked_local=lambda _job: False,
        addresses_of=lambda _key: (),
    )
    made.link(OWNER).is_sending = True  # it is away: what comes out waits here
    yield made
    await scope.close()
    blobs.shut()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[WorkerService]:
    async with made_worker(FileBlobs(tmp_path, cache_bytes_max=CAP)) as made:
        yield made


async def finish(worker: WorkerService, index: int, size: int) -> Outcome:
    """Let a task of the absent owner end with a file of this size; returns what the owner will be told."""
    task = GrantedTask(index, 0, 1, b"")
    grant = Grant(1, 1, b"w" * 32, JOB, OWNER, 60.0, (task,))
    worker.take(grant, JobEnvelope(JOB, JobTerms(), b"", b"s" * 32, b"s" * 32, b"raw"), [])
    data = index.to_bytes(4, "big") * (size // 4)
    ref = worker._host.store.blobs
    assert isinstance(ref, FileBlobs)
    kept = ref.put_now(data, pin=True)
    held = next(one for one in worker.core.held.values() if one.task.index == index)
    worker.core.drop(JOB, [index], owner=OWNER, kill=False)
    file = OutputFile("big", kept.digest, kept.size, 0o644)
    worker._finish(held, Outcome(OutcomeStatus.OK, files=(file,), runtime_s=7.0))
    return decode_outcome(worker.links[OWNER].results[-1].outcome)


async def test_files_of_results_that_wait_are_bounded(worker: WorkerService) -> None:
    assert (await finish(worker, 0, 200_000)).status is OutcomeStatus.OK
    assert (await finish(worker, 1, 200_000)).status is OutcomeStatus.OK
    assert worker.is_full, "no more tasks of others"
    refused = await finish(worker, 2, 200_000)
    assert refused.status is OutcomeStatus.NOT_RUN and "store.cache" in refused.error
    assert worker.sender.unsent_blobs_bytes == 400_000
    worker.sender._settle(worker.links[OWNER], list(worker.links[OWNER].results))
    assert worker.sender.unsent_blobs_bytes == 0
    assert (await finish(worker, 3, 200_000)).status is OutcomeStatus.OK


async def test_an_output_that_never_fits_fails_with_its_cause(worker: WorkerService) -> None:
    outcome = await finish(worker, 0, 600_000)
    assert outcome.status is OutcomeStatus.FAILED and outcome.cause == "disk"
    assert "0.5722 MiB" in outcome.error and "half of its store.cache" in outcome.error
    assert outcome.runtime_s == 7.0, "what it has used is charged all the same"
    assert worker.sender.unsent_blobs_bytes == 0 and worker.counters.too_large_results_count == 1


async def test_inputs_that_never_fit_are_not_fetched(worker: WorkerService) -> None:
    worker._inputs = lambda _spec, _payload: [BlobRef(b"x" * 32, CAP + 1)]
    grant = Grant(1, 1, b"w" * 32, JOB, OWNER, 60.0, (GrantedTask(0, 0, 1, b""),))
    worker.take(grant, JobEnvelope(JOB, JobTerms(), b"", b"s" * 32, b"s" * 32, b"raw"), [])
    outcome = decode_outcome(worker.links[OWNER].results[-1].outcome)
    assert outcome.status is OutcomeStatus.REFUSED and "store.cache" in outcome.error
    assert not worker.core.held and not worker.inputs.is_used


async def test_equal_files_take_their_room_once(worker: WorkerService) -> None:
    blob = worker._host.store.blobs
    assert isinstance(blob, FileBlobs)
    ref = BlobRef(b"x" * 32, 300_000)
    worker.sender._count_blobs([ref])
    worker.sender._count_blobs([ref])
    assert worker.sender.unsent_blobs_bytes == 300_000
    worker.sender._discount_blobs([ref])
    worker.sender._discount_blobs([ref])
    assert worker.sender.unsent_blobs_bytes == 0 and not worker.sender._unsent_blobs
