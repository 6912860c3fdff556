"""The journal: jobs, their facts and results, and results that wait for their owner.

Owns the keys of these tables of the store, all numbers big-endian so that keys sort as they count:

==========  ================================================  ===================================
table       key                                               value
==========  ================================================  ===================================
jobs        job id (32)                                       `JobRecord`
facts       job id ‖ sequence (8)                             signed envelope, opaque here
relays      job id ‖ sequence (8)                             signed claims that wait for the job's owner
results     job id ‖ index (8) ‖ generation (4)               `ResultRecord`
outbox      owner key (32) ‖ job id ‖ index (8) ‖ attempt (4) `OutboxEntry`
saved       job id ‖ index (8)                                what a task has saved, opaque here
lost        job id ‖ index (8) ‖ attempt modulo n (4)         what an attempt printed that was lost, opaque here
outputs     job id ‖ index (8) ‖ digest (32)                  what a member claims of a task that is not accepted
evidence    installation (32)                                 what is known of its results
receipts    side (1) ‖ installation (32)                      a receipt of it (given), or the sum it was told (taken)
meta        name                                              any CBOR value
deleting    job id                                            nothing: its rows are being removed
==========  ================================================  ===================================

Writes are made here and committed by the caller, several in one commit.  Invariant: a job that is listed in `jobs` has
all its rows; one that is deleted disappears at once and its rows follow, after a crash too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from p2pcompute.errors import RemoteProtocolError, StoreError
from p2pcompute.host.interfaces import Address, BlobRef, Store, Write
from p2pcompute.ids import JOB_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import LOST_ATTEMPTS_MAX, MIB
from p2pcompute.wire import cbor

_T = TypeVar("_T")

JOBS: Final = "jobs"
FACTS: Final = "facts"
RELAYS: Final = "relays"
RESULTS: Final = "results"
OUTBOX: Final = "outbox"
OUTPUTS: Final = "outputs"
EVIDENCE: Final = "evidence"
RECEIPTS: Final = "receipts"
META: Final = "meta"
DELETING: Final = "deleting"
PINS: Final = "pins"
SAVED: Final = "saved"
LOST: Final = "lost"

_GIVEN: Final = b"g"
_TAKEN: Final = b"t"
_SEQUENCE_BYTES: Final = 8
_INDEX_BYTES: Final = 8
_COUNT_BYTES: Final = 4
"""Generations and attempts."""
_PAGE_ROWS_MIN: Final = 8
_PAGE_ROWS_MAX: Final = 1000
_PAGE_BYTES: Final = 4 * MIB
"""What one page of a scan is meant to hold; rows of one table are of similar size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What the owner keeps of a job beside its facts."""

    job_id: bytes
    envelope: bytes
    """The submitter's signed job envelope."""
    alias: str
    note: str = ""
    """The submitting program's own text, unread here."""
    submitted: float
    """Wall time in seconds."""
    finished: float | None = None
    """Wall time in seconds at which the last task ended."""
    serial: int = 0
    """Jobs of this node in the order in which they were submitted, from 1, whatever the clock said; 0: not known."""

    @property
    def order(self) -> tuple[int, float]:
        """Sorts the jobs of a node, the newest one last."""
        return self.serial, self.submitted

    def with_finished(self, finished: float | None) -> JobRecord:
        """Return the record with another end."""
        return replace(self, finished=finished)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """How one generation of a task ended."""

    state: int
    """`scheduler.ledger.TaskState`."""
    node_key: bytes
    """Where it ran; b"" for this node."""
    node_name: str
    attempts: int
    outcome: bytes
    """`scheduler.messages.encode_outcome`; b"" when it never ran."""
    payload: bytes = b""
    """The task's payload where it is small, so that lists need not search the facts; else b""."""


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A result that its owner has not acknowledged."""

    owner: bytes
    job_id: bytes
    index: int
    attempt: int
    claim: Sequence[Any]
    """As in the CLAIMS fact: index, generation, attempt, status, digest."""
    outcome: bytes
    addresses: Sequence[Address]
    """Where the owner was last reached."""


class Journal:
    """Makes and reads the rows of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- jobs -----------------------------------------------------------------------------------

    def job_write(self, record: JobRecord) -> Write:
        """Set a job's record."""
        value = [record.envelope, record.alias, record.note, record.submitted, record.finished, record.serial]
        return Write(JOBS, record.job_id, cbor.encode(value))

    async def load_jobs(self) -> list[JobRecord]:
        """Return all jobs in the order of their ids, after finishing deletions that a crash has cut short.

        Raises:
            StoreError: a record cannot be read.
        """
        for job_id, _ in await self._store.scan(DELETING):
            await self._delete_rows(job_id)
        return [_read(JOBS, _job, key, value) async for key, value in self._rows(JOBS, b"")]

    async def delete_job(self, job_id: bytes) -> None:
        """Forget a job and its rows.  It is gone from `load_jobs` at once; the rows follow, after a crash too."""
        await self._store.commit([Write(JOBS, job_id, None), Write(DELETING, job_id, b"")])
        await self._delete_rows(job_id)

    async def _delete_rows(self, job_id: bytes) -> None:
        for table in (FACTS, RELAYS, RESULTS, OUTPUTS, PINS, SAVED, LOST):
            await self._store.delete_prefix(table, job_id)
        await self._store.commit([Write(DELETING, job_id, None)])

    # --- facts ----------------------------------------------------------------------------------

    def fact_write(self, job_id: bytes, sequence: int, fact: bytes) -> Write:
        """Set fact `sequence` (from 0) of a job."""
        return Write(FACTS, _job_key(job_id) + sequence.to_bytes(_SEQUENCE_BYTES, "big"), fact)

    async def facts(self, job_id: bytes, first: int = 0) -> AsyncIterator[bytes]:
        """Yield a job's facts in sequence, from `first` on."""
        async for _, fact in self._rows(FACTS, job_id, _before(job_id, first)):
            yield fact

    def relay_write(self, job_id: bytes, sequence: int, claims: bytes) -> Write:
        """Set claims `sequence` (from 0) that were taken for another node's job."""
        return Write(RELAYS, _job_key(job_id) + sequence.to_bytes(_SEQUENCE_BYTES, "big"), claims)

    async def relays(self, job_id: bytes, first: int = 0) -> AsyncIterator[bytes]:
        """Yield the claims that were taken for another node's job in sequence, from `first` on."""
        async for _, claims in self._rows(RELAYS, job_id, _before(job_id, first)):
            yield claims

    # --- pins -----------------------------------------------------------------------------------

    def pin_write(self, job_id: bytes, ref: BlobRef) -> Write:
        """Remember that a job names a blob, which must be kept as long as the job is."""
        return Write(PINS, _job_key(job_id) + ref.digest + ref.size.to_bytes(_SEQUENCE_BYTES, "big"), b"")

    async def pins(self, job_id: bytes = b"") -> AsyncIterator[BlobRef]:
        """Yield the blobs that a job names; of all jobs when none is given."""
        async for key, _ in self._rows(PINS, job_id):
            at = JOB_ID_BYTES
            yield BlobRef(key[at : at + 32], int.from_bytes(key[at + 32 :], "big"))

    # --- checkpoints ----------------------------------------------------------------------------

    def saved_write(self, job_id: bytes, index: int, value: Any) -> Write:
        """Set what a task has saved, any CBOR value; None: nothing any more."""
        key = _job_key(job_id) + index.to_bytes(_INDEX_BYTES, "big")
        return Write(SAVED, key, None if value is None else cbor.encode(value))

    async def saved(self) -> AsyncIterator[tuple[bytes, int, Any]]:
        """Yield (job, index, value) of all tasks that have saved something."""
        async for key, value in self._rows(SAVED, b""):
            yield key[:JOB_ID_BYTES], int.from_bytes(key[JOB_ID_BYTES:], "big"), cbor.decode(value)

    # --- output of attempts that were lost -----------------------------------------------------------

    def lost_write(self, job_id: bytes, index: int, attempt: int, value: Any) -> Write:
        """Set what an attempt has printed, any CBOR value; of a task the last LOST_ATTEMPTS_MAX are kept."""
        place = (attempt % LOST_ATTEMPTS_MAX).to_bytes(_COUNT_BYTES, "big")
        return Write(LOST, _job_key(job_id) + index.to_bytes(_INDEX_BYTES, "big") + place, cbor.encode(value))

    def lost_delete(self, job_id: bytes, index: int, attempt: int) -> Write:
        """Forget what an attempt has printed: it was not lost."""
        return Write(LOST, self.lost_write(job_id, index, attempt, None).key, None)

    async def lost(self, job_id: bytes) -> AsyncIterator[tuple[int, Any]]:
        """Yield (index, value) of a job, by index."""
        async for key, value in self._rows(LOST, job_id):
            yield int.from_bytes(key[JOB_ID_BYTES : JOB_ID_BYTES + _INDEX_BYTES], "big"), cbor.decode(value)

    # --- results --------------------------------------------------------------------------------

    def result_write(self, job_id: bytes, index: int, generation: int, record: ResultRecord) -> Write:
        """Set how a generation of a task ended."""
        value = [
            record.state,
            record.node_key,
            record.node_name,
            record.attempts,
            record.outcome,
            record.payload,
        ]
        return Write(RESULTS, _result_key(job_id, index, generation), cbor.encode(value))

    async def result(self, job_id: bytes, index: int, generation: int) -> ResultRecord | None:
        """Return how a generation of a task ended; None when it has not."""
        key = _result_key(job_id, index, generation)
        value = await self._store.get(RESULTS, key)
        return None if value is None else _read(RESULTS, _result, key, value)

    async def results(self, job_id: bytes, first: int = 0) -> AsyncIterator[tuple[int, int, ResultRecord]]:
        """Yield (index, generation, record) by index from `first` on, then by generation."""
        after = _result_key(job_id, first - 1, (1 << 8 * _COUNT_BYTES) - 1) if first else None
        async for key, value in self._rows(RESULTS, job_id, after):
            index = int.from_bytes(key[JOB_ID_BYTES : JOB_ID_BYTES + _INDEX_BYTES], "big")
            generation = int.from_bytes(key[JOB_ID_BYTES + _INDEX_BYTES :], "big")
            yield index, generation, _read(RESULTS, _result, key, value)

    # --- what members claim -----------------------------------------------------------------------

    def output_write(self, job_id: bytes, index: int, digest: bytes, node: bytes, outcome: bytes) -> Write:
        """Keep what a node claims of a task until the task is accepted."""
        return Write(OUTPUTS, _output_key(job_id, index, digest), cbor.encode([node, outcome]))

    def output_delete(self, job_id: bytes, index: int, digest: bytes) -> Write:
        """Drop it."""
        return Write(OUTPUTS, _output_key(job_id, index, digest), None)

    async def outputs(self, job_id: bytes, index: int | None = None) -> AsyncIterator[tuple[int, bytes, bytes, bytes]]:
        """Yield (index, digest, node, outcome) of a job, or of one of its tasks."""
        prefix = job_id if index is None else job_id + index.to_bytes(_INDEX_BYTES, "big")
        async for key, value in self._rows(OUTPUTS, prefix):
            at = JOB_ID_BYTES + _INDEX_BYTES
            node, outcome = _read(OUTPUTS, _meta, key, value)
            yield int.from_bytes(key[JOB_ID_BYTES:at], "big"), key[at:], node, outcome

    def evidence_write(self, installation: bytes, value: Any) -> Write:
        """Set what is known of an installation's results."""
        return Write(EVIDENCE, installation, cbor.encode(value))

    async def evidence(self) -> AsyncIterator[tuple[bytes, Any]]:
        """Yield (installation, what is known of its results)."""
        async for key, value in self._rows(EVIDENCE, b""):
            yield key, _read(EVIDENCE, _meta, key, value)

    # --- receipts -------------------------------------------------------------------------------

    def given_write(self, issuer: bytes, raw: bytes) -> Write:
        """Set the newest receipt of an installation."""
        return Write(RECEIPTS, _GIVEN + issuer, cbor.encode(raw))

    def taken_write(self, worker: bytes, cpu_ms: int, tasks: int) -> Write:
        """Set the sum of which an installation gets a receipt."""
        return Write(RECEIPTS, _TAKEN + worker, cbor.encode([cpu_ms, tasks]))

    async def receipts(self) -> AsyncIterator[tuple[bytes, Any]]:
        """Yield (issuer, receipt) and (worker, [CPU milliseconds, tasks])."""
        async for key, value in self._rows(RECEIPTS, b""):
            yield key[1:], _read(RECEIPTS, _meta, key, value)

    # --- outbox ---------------------------------------------------------------------------------

    def outbox_write(self, entry: OutboxEntry) -> Write:
        """Keep a result until its owner has it."""
        key = _outbox_key(entry.owner, entry.job_id, entry.index, entry.attempt)
        return Write(OUTBOX, key, cbor.encode([list(entry.claim), entry.outcome, [list(a) for a in entry.addresses]]))

    def outbox_delete(self, owner: bytes, job_id: bytes, index: int, attempt: int) -> Write:
        """Drop a result that its owner has."""
        return Write(OUTBOX, _outbox_key(owner, job_id, index, attempt), None)

    async def outbox(self) -> AsyncIterator[OutboxEntry]:
        """Yield what is kept, by owner, job, index and attempt."""
        async for key, value in self._rows(OUTBOX, b""):
            yield _read(OUTBOX, _outbox_entry, key, value)

    # --- meta -----------------------------------------------------------------------------------

    def meta_write(self, name: str, value: Any) -> Write:
        """Set a named value; None removes it."""
        return Write(META, name.encode(), None if value is None else cbor.encode(value))

    async def meta(self, name: str) -> Any:
        """Return a named value, or None."""
        value = await self._store.get(META, name.encode())
        return None if value is None else _read(META, _meta, name.encode(), value)

    # --- scanning -------------------------------------------------------------------------------

    async def _rows(self, table: str, prefix: bytes, after: bytes | None = None) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the rows of a prefix in key order, in pages of about _PAGE_BYTES."""
        limit = _PAGE_ROWS_MIN
        while page := await self._store.scan(table, prefix, after=after, limit=limit):
            for pair in page:
                yield pair
            if len(page) < limit:
                return
            after = page[-1][0]
            row_bytes = sum(len(key) + len(value) for key, value in page) // len(page) + 1
            limit = max(_PAGE_ROWS_MIN, min(_PAGE_BYTES // row_bytes, _PAGE_ROWS_MAX))


def _job_key(job_id: bytes) -> bytes:
    if len(job_id) != JOB_ID_BYTES:
        raise ValueError(f"a job id has {JOB_ID_BYTES} bytes, not {len(job_id)}")
    return job_id


def _before(job_id: bytes, sequence: int) -> bytes | None:
    """Return the key after which a sequence goes on at this number."""
    return _job_key(job_id) + (sequence - 1).to_bytes(_SEQUENCE_BYTES, "big") if sequence else None


def _result_key(job_id: bytes, index: int, generation: int) -> bytes:
    return _job_key(job_id) + index.to_bytes(_INDEX_BYTES, "big") + generation.to_bytes(_COUNT_BYTES, "big")


def _output_key(job_id: bytes, index: int, digest: bytes) -> bytes:
    return _job_key(job_id) + index.to_bytes(_INDEX_BYTES, "big") + digest


def _outbox_key(owner: bytes, job_id: bytes, index: int, attempt: int) -> bytes:
    if len(owner) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a key has {PUBLIC_KEY_BYTES} bytes, not {len(owner)}")
    return owner + _result_key(job_id, index, attempt)


def _read(table: str, parse: Callable[[bytes, Any], _T], key: bytes, value: bytes) -> _T:
    """Parse a row of our own.

    Raises:
        StoreError: it is not what this program writes.
    """
    try:
        return parse(key, cbor.decode(value, allow_float=True))
    except (RemoteProtocolError, ValueError, TypeError) as error:
        raise StoreError(
            f"a row of the table {table} cannot be read",
            f"{key.hex()[:16]}: {error}",
            "the store is damaged, or another program wrote to it; set its directory aside to start anew",
            code="store-damaged",
        ) from error


def _job(key: bytes, value: Any) -> JobRecord:
    envelope, alias, note, submitted, finished, *more = value
    return JobRecord(
        job_id=key,
        envelope=envelope,
        alias=alias,
        note=note,
        submitted=float(submitted),
        finished=finished,
        serial=int(more[0]) if more else 0,  # of older versions
    )


def _result(_key: bytes, value: Any) -> ResultRecord:
    state, node_key, node_name, attempts, outcome, payload = value
    return ResultRecord(
        state=state, node_key=node_key, node_name=node_name, attempts=attempts, outcome=outcome, payload=payload
    )


def _outbox_entry(key: bytes, value: Any) -> OutboxEntry:
    claim, outcome, addresses = value
    job_at, index_at = PUBLIC_KEY_BYTES, PUBLIC_KEY_BYTES + JOB_ID_BYTES
    attempt_at = index_at + _INDEX_BYTES
    return OutboxEntry(
        owner=key[:job_at],
        job_id=key[job_at:index_at],
        index=int.from_bytes(key[index_at:attempt_at], "big"),
        attempt=int.from_bytes(key[attempt_at:], "big"),
        claim=claim,
        outcome=outcome,
        addresses=[Address(host, port) for host, port in addresses],
    )


def _meta(_key: bytes, value: Any) -> Any:
    return value
