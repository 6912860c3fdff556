"""Messages of the scheduler on a control channel, and the stored form of an outcome.

Every `parse_*` takes a decoded body from a peer and raises RemoteProtocolError unless it is what is documented here;
further fields are of a later version and passed over (`wire.fields`).  Times on the wire are whole milliseconds; only
an encoded outcome holds floats.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Address, BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.ids import JOB_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    ATTEMPTS_MAX,
    CHECKPOINT_BYTES_MAX,
    CHECKPOINTS_BATCH_MAX,
    CLAIM_BYTES_MAX,
    CORES_MAX,
    CUSTODY_BEAT_S,
    GRANT_TASKS_MAX,
    INLINE_BYTES_MAX,
    LEASE_S_MIN,
    MANIFEST_BYTES_MAX,
    MOMENT_S_MAX,
    MOMENT_S_MIN,
    NODE_NAME_CHARS_MAX,
    OUTPUT_FILES_MAX,
    PRINTED_TAIL_BYTES_MAX,
    PROGRESS_BYTES_MAX,
    RESULTS_BATCH_BYTES_MAX,
    RESULTS_BATCH_MAX,
    RUNTIME_S_MAX,
    TASK_PAYLOAD_BYTES_MAX,
)
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.checkpoints import Saved, cookie_body, parse_cookie
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.printed import Tail as PrintedTail
from p2pcompute.scheduler.printed import Tails
from p2pcompute.scheduler.quiet import Silence
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.wire import cbor
from p2pcompute.wire.fields import listed, named

CLAIMS_CONTENT_TYPE: Final = "p2pc/claims"
FACT_CONTENT_TYPE: Final = "p2pc/fact"
FACT_KEYS: Final = frozenset({"job", "kind", "body"})
HELD_MAX: Final = 16 * GRANT_TASKS_MAX
"""Tasks in one heartbeat."""
PRINTED_MAX: Final = RESULTS_BATCH_BYTES_MAX // (2 * PRINTED_TAIL_BYTES_MAX)
"""Tasks in one message about what they print."""
ADDRESSES_MAX: Final = 8
INT_MAX: Final = (1 << 63) - 1


class Message(IntEnum):
    OFFER = 32
    """owner → peer: [] — I have work; steal it."""
    STEAL = 33
    """thief → victim: [request id, slots, want, [major, minor], boot, idle]; waits there until it is served."""
    UNPARK = 34
    """thief → victim: [] — I have enough."""
    GRANT = 35
    """victim → thief: [grant id, request id, job, envelope or b"", owner or b"", owner's addresses, lease ms, tasks,
    epoch, may others steal them, ms between results]; the owner is who coordinates the job.  A task is
    [index, generation, attempt, payload], and what it goes on from, a cookie as in CHECKPOINT."""
    GRANT_ACK = 36
    """thief → victim: [grant id, accepted]; declined because the node does not fit the job: [grant id, False, True]"""
    RESULTS = 37
    """request, worker → owner: [claims envelope, [outcome, …]] → [taken]; answered once they are durable."""
    HEARTBEAT = 38
    """request, worker → owner: [boot, moved from or b"", [[job, [[index, generation, attempt], …]], …]] →
    [[job, [index to drop, …]], …]"""
    STOP = 39
    """owner → holder: [job, [index, …], kill]"""
    RETURNED = 40
    """request, holder → owner: [[job, [index, …]], …] → []"""
    LEAVING = 41
    """node → peer: [] — I take no more work."""
    JOB = 42
    """request, thief → holder of a job: [job] → [envelope]"""
    CUSTODY = 43
    """owner → custodian: [job] — please keep it."""
    COORDINATOR = 44
    """keeper of a job → peer: [job, epoch]: who coordinates it now."""
    SYNC = 45
    """request, keeper → keeper: [job, ticket or b"", facts, rows, claims, claimed rows, epoch, acts, taken, saved,
    wait ms] →
    [epoch, acts, [fact, …], [row, …], rows, [claims envelope, …], [claimed row, …], claimed rows,
    [[index, saved], …], saved, is all].  A row is
    [index, generation, state, node, its name, attempts, outcome, payload or b""];
    saved is [generation, attempt, installations that had a part, cookie as in CHECKPOINT], or [] when it is dropped;
    the numbers of rows are of the fact that is next, and of the envelope that is next, which is sent with each part."""

    CHECKPOINT = 46
    """request, worker → owner: [[job, index, generation, attempt, cookie], …] → []: what running tasks have saved; a
    cookie is bytes, or [digest, size] of a blob that the worker has."""

    TAIL = 47
    """request, owner → holder: [job, index, attempt, offset of stdout, of stderr] → [] when it does not run, else
    [where the bytes of stdout begin, bytes, the same of stderr, how far it says that it is or b"", for how many whole
    seconds it has said no more, and for how many it has used no CPU, where that is known]: what it has printed, the
    last 64 KiB of each."""

    RECEIPT = 48
    """owner → worker: [receipt envelope]: how much CPU time it has given so far."""

    PRINTED = 49
    """worker → owner: [[job, index, attempt, where the bytes of stdout begin, bytes, the same of stderr], …]: what
    running tasks have printed since this was told last, the last 16 KiB of each."""


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise RemoteProtocolError(f"malformed message: {what}")


def _is_int(value: Any, most: int = INT_MAX) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_bytes(value: Any, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size


# --- stealing -------------------------------------------------------------------------------------


def steal_body(thief: Thief) -> list[Any]:
    return [thief.request_id, thief.slots, thief.want, list(thief.python), thief.boot, thief.is_idle]


def parse_steal(body: Any, key: bytes, installation: bytes) -> Thief:
    request_id, slots, want, python, boot, is_idle = listed(body, 6, "steal")
    _check(_is_int(request_id) and _is_int(slots, 1 << 16) and slots > 0 and _is_int(want, 1 << 20), "steal")
    python = listed(python, 2, "steal")
    _check(all(_is_int(n, 1 << 16) for n in python), "steal")
    _check(isinstance(boot, bytes) and len(boot) <= 16 and isinstance(is_idle, bool), "steal")
    return Thief(key, installation, boot, (python[0], python[1]), slots, max(1, want), request_id, is_idle)


def grant_body(grant: Grant, envelope: bytes, owner: bytes, addresses: Sequence[Address]) -> list[Any]:
    """Body of a GRANT; `owner` and `envelope` are b"" where the thief knows them (the sender, sent before)."""
    body = [
        grant.grant_id,
        grant.request_id,
        grant.job_id,
        envelope,
        owner,
        [[address.host, address.port] for address in addresses[:ADDRESSES_MAX]],
        int(grant.lease_s * 1000),
        [_granted_body(task) for task in grant.tasks],
        grant.epoch,
        grant.may_pass,
        int(grant.pace_s * 1000),
    ]
    return [*body, grant.manifest] if grant.manifest else body


Tail = tuple[tuple[int, bytes], tuple[int, bytes], bytes]
"""Of stdout and stderr: where bytes begin, and the bytes."""


def parse_tail_asked(body: Any) -> tuple[bytes, int, int, tuple[int, int]]:
    """Return (job, index, attempt, offsets)."""
    job_id, index, attempt, stdout, stderr = listed(body, 5, "tail")
    _check(_is_bytes(job_id, JOB_ID_BYTES), "tail")
    _check(all(_is_int(number, INT_MAX >> 1) for number in (index, attempt, stdout, stderr)), "tail")
    return job_id, index, attempt, (stdout, stderr)


def parse_printed(body: Any) -> list[tuple[bytes, int, int, Tails]]:
    """Return (job, index, attempt, tails)."""
    _check(isinstance(body, list) and len(body) <= PRINTED_MAX, "printed")
    parsed = []
    for entry in body:
        job_id, index, attempt, *tails = listed(entry, 7, "printed")
        _check(_is_bytes(job_id, JOB_ID_BYTES) and _is_int(index) and _is_int(attempt, 1 << 31), "printed")
        parsed.append((job_id, index, attempt, parse_tails(tails)))
    return parsed


def parse_tails(body: Any) -> Tails:
    stdout_start, stdout, stderr_start, stderr = listed(body, 4, "tails")
    for start, data in ((stdout_start, stdout), (stderr_start, stderr)):
        _check(_is_int(start, INT_MAX >> 1) and isinstance(data, bytes), "tails")
        _check(len(data) <= PRINTED_TAIL_BYTES_MAX, "tails")
    return PrintedTail(stdout_start, stdout), PrintedTail(stderr_start, stderr)


def parse_tail(body: Any) -> tuple[Tail, Silence | None] | None:
    """Return what a task has printed, and how silent it is, where that is told; None: it does not run there."""
    if body == []:
        return None
    stdout_start, stdout, stderr_start, stderr, *rest = listed(body, 4, "tail", optional=3)
    said = rest[0] if rest else b""
    quiet_s, idle_s = (*rest[1:], None, None)[:2]
    _check(all(time_s is None or _is_int(time_s, INT_MAX >> 1) for time_s in (quiet_s, idle_s)), "tail")
    _check(isinstance(said, bytes) and len(said) <= PROGRESS_BYTES_MAX, "tail")
    for start, data in ((stdout_start, stdout), (stderr_start, stderr)):
        _check(_is_int(start, INT_MAX >> 1) and isinstance(data, bytes) and len(data) <= INLINE_BYTES_MAX, "tail")
    return ((stdout_start, stdout), (stderr_start, stderr), said), None if quiet_s is None else Silence(quiet_s, idle_s)


def _granted_body(task: GrantedTask) -> list[Any]:
    """[index, generation, attempt, payload], and for one that goes on from a checkpoint its cookie."""
    body = [task.index, task.generation, task.attempt, task.payload]
    if task.cookie or task.cookie_blob is not None:
        body.append(cookie_body(task.cookie, task.cookie_blob))
    return body


def _parse_cookie(value: Any) -> tuple[bytes, BlobRef | None]:
    return parse_cookie(value, inline_bytes_max=INLINE_BYTES_MAX, blob_bytes_max=CHECKPOINT_BYTES_MAX)


def parse_checkpoint(body: Any) -> list[tuple[bytes, int, Saved]]:
    """Return (job, index, what was saved) of each entry."""
    _check(isinstance(body, list) and len(body) <= CHECKPOINTS_BATCH_MAX, "checkpoint")
    parsed = []
    for entry in body:
        job_id, index, generation, attempt, value = listed(entry, 5, "checkpoint")
        _check(_is_bytes(job_id, JOB_ID_BYTES) and _is_int(index), "checkpoint")
        _check(_is_int(generation, 255) and _is_int(attempt, 1 << 31), "checkpoint")
        cookie, blob = _parse_cookie(value)
        parsed.append((job_id, index, Saved(cookie=cookie, blob=blob, generation=generation, attempt=attempt)))
    return parsed


def parse_addresses(value: Any) -> list[Address]:
    _check(isinstance(value, list) and len(value) <= ADDRESSES_MAX, "addresses")
    out = []
    for item in value:
        host, port = listed(item, 2, "address")
        _check(isinstance(host, str) and _is_literal(host) and _is_int(port, 65535) and port > 0, "address")
        out.append(Address(host, port))
    return out


def _is_literal(host: str) -> bool:
    """Peers send addresses, never names: nobody makes this node ask a name server."""
    try:
        return "%" not in host and len(host) <= 64 and ipaddress.ip_address(host) is not None
    except ValueError:
        return False


def parse_grant(body: Any, sender: bytes) -> tuple[Grant, bytes, list[Address]]:
    """Return (grant, envelope or b"", owner's addresses); the grant's owner is a real key."""
    grant_id, request_id, job_id, envelope, owner, addresses, lease_ms, tasks, epoch, may_pass, pace_ms, *rest = listed(
        body, 11, "grant", optional=1
    )
    manifest = rest[0] if rest else b""
    _check(isinstance(manifest, bytes) and len(manifest) <= MANIFEST_BYTES_MAX, "grant")
    _check(isinstance(may_pass, bool) and _is_int(pace_ms, int(LEASE_S_MIN * 1000)), "grant")
    _check(_is_int(grant_id) and _is_int(request_id) and _is_bytes(job_id, JOB_ID_BYTES), "grant")
    _check(isinstance(envelope, bytes) and _is_int(lease_ms) and _is_int(epoch, INT_MAX >> 1), "grant")
    _check(owner == b"" or _is_bytes(owner, PUBLIC_KEY_BYTES), "grant")
    _check(isinstance(tasks, list) and 0 < len(tasks) <= GRANT_TASKS_MAX, "grant")
    parsed = []
    for task in tasks:
        index, generation, attempt, payload, *rest = listed(task, 4, "granted task", optional=1)
        cookie, blob = _parse_cookie(rest[0]) if rest and rest[0] is not None else (b"", None)
        _check(_is_int(index) and _is_int(generation, 255) and _is_int(attempt, 1 << 31), "granted task")
        _check(isinstance(payload, bytes) and len(payload) <= TASK_PAYLOAD_BYTES_MAX, "granted task")
        parsed.append(GrantedTask(index, generation, attempt, payload, cookie, blob))
    lease_s = lease_ms / 1000
    key, pace_s = owner or sender, pace_ms / 1000
    grant = Grant(grant_id, request_id, b"", job_id, key, lease_s, tuple(parsed), epoch, may_pass, pace_s, manifest)
    return grant, envelope, parse_addresses(addresses)


def parse_ack(body: Any) -> tuple[int, bool, bool]:
    """Return (grant id, whether it is accepted, whether it is declined because the node does not fit the job)."""
    grant_id, accepted, *rest = listed(body, 2, "grant ack", optional=1)
    is_unfit = rest[0] if rest else False
    _check(_is_int(grant_id) and isinstance(accepted, bool) and isinstance(is_unfit, bool), "grant ack")
    _check(not (is_unfit and accepted), "grant ack")
    return grant_id, accepted, is_unfit


# --- heartbeats, stops ----------------------------------------------------------------------------


def parse_heartbeat(body: Any) -> tuple[bytes, bytes, list[tuple[bytes, list[tuple[int, int, int]]]]]:
    boot, moved_from, jobs = listed(body, 3, "heartbeat")
    _check(isinstance(boot, bytes) and len(boot) <= 16 and isinstance(jobs, list), "heartbeat")
    _check(moved_from == b"" or _is_bytes(moved_from, PUBLIC_KEY_BYTES), "heartbeat")
    parsed, total = [], 0
    for item in jobs:
        job_id, held = listed(item, 2, "heartbeat job")
        _check(_is_bytes(job_id, JOB_ID_BYTES) and isinstance(held, list), "heartbeat job")
        total += len(held)
        _check(total <= HELD_MAX, "heartbeat is too long")
        tasks = [listed(entry, 3, "heartbeat task") for entry in held]
        _check(all(_is_int(number) for task in tasks for number in task), "heartbeat task")
        parsed.append((job_id, [(task[0], task[1], task[2]) for task in tasks]))
    return boot, moved_from, parsed


def parse_job_indices(body: Any) -> list[tuple[bytes, list[int]]]:
    """[[job, [index, …]], …]"""
    _check(isinstance(body, list), "list of jobs")
    parsed, total = [], 0
    for item in body:
        job_id, indices = listed(item, 2, "job and indices")
        _check(_is_bytes(job_id, JOB_ID_BYTES) and isinstance(indices, list), "job and indices")
        total += len(indices)
        _check(total <= HELD_MAX and all(_is_int(index) for index in indices), "indices")
        parsed.append((job_id, indices))
    return parsed


def parse_stop(body: Any) -> tuple[bytes, list[int], bool]:
    job_id, indices, kill = listed(body, 3, "stop")
    _check(isinstance(kill, bool), "stop")
    (parsed,) = parse_job_indices([[job_id, indices]])
    return parsed[0], parsed[1], kill


# --- custody --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """How a task ended, as keepers tell one another."""

    index: int
    generation: int
    state: int
    node_key: bytes
    node_name: str
    attempts: int
    outcome: bytes
    payload: bytes
    """b"" when it is large."""


@dataclass(frozen=True, slots=True)
class SyncAsked:
    """What a keeper has of a job."""

    job_id: bytes
    ticket: bytes
    facts: int
    rows: int
    """Of the fact that is next."""
    claims: int
    """Envelopes that the other one took for the owner."""
    claim_rows: int
    epoch: int
    is_acting: bool
    taken: int
    """Envelopes that it took for the owner itself."""
    saved: int
    """Number of the last change of what tasks have saved that it has of the other one; 0: none."""
    wait_s: float

    def body(self) -> list[Any]:
        return [
            self.job_id,
            self.ticket,
            self.facts,
            self.rows,
            self.claims,
            self.claim_rows,
            self.epoch,
            self.is_acting,
            self.taken,
            self.saved,
            int(self.wait_s * 1000),
        ]


@dataclass(frozen=True, slots=True)
class Synced:
    """What a keeper did not have."""

    epoch: int
    is_acting: bool
    facts: list[bytes]
    rows: list[Row]
    rows_next: int
    claims: list[bytes]
    claimed: list[Row]
    claim_rows_next: int
    saved: list[tuple[int, Saved | None]]
    """(index, what is saved of it now; None: nothing any more)."""
    saved_next: int
    """Number of the last of these changes."""
    is_all: bool

    @property
    def has_news(self) -> bool:
        return bool(self.facts or self.rows or self.claims or self.saved)

    def body(self) -> list[Any]:
        rows, claimed = [list(astuple(row)) for row in self.rows], [list(astuple(row)) for row in self.claimed]
        return [
            self.epoch,
            self.is_acting,
            self.facts,
            rows,
            self.rows_next,
            self.claims,
            claimed,
            self.claim_rows_next,
            [[index, saved_body(saved)] for index, saved in self.saved],
            self.saved_next,
            self.is_all,
        ]


def parse_sync(body: Any) -> SyncAsked:
    job_id, ticket, facts, rows, claims, claim_rows, epoch, is_acting, taken, saved, wait_ms = listed(body, 11, "sync")
    _check(_is_bytes(job_id, JOB_ID_BYTES) and isinstance(ticket, bytes) and len(ticket) <= 1024, "sync")
    numbers = (facts, rows, claims, claim_rows, epoch, taken, saved, wait_ms)
    _check(all(_is_int(number, INT_MAX >> 1) for number in numbers), "sync")
    _check(isinstance(is_acting, bool), "sync")
    wait_s = min(wait_ms / 1000, CUSTODY_BEAT_S)
    return SyncAsked(job_id, ticket, facts, rows, claims, claim_rows, epoch, is_acting, taken, saved, wait_s)


def parse_synced(body: Any) -> Synced:
    epoch, is_acting, facts, rows, rows_next, claims, claimed, claim_rows_next, saved, saved_next, is_all = listed(
        body, 11, "synced"
    )
    _check(_is_int(epoch, INT_MAX >> 1) and _is_int(rows_next) and _is_int(claim_rows_next), "synced")
    _check(isinstance(is_acting, bool) and isinstance(is_all, bool), "synced")
    for raws in (facts, claims):
        _check(isinstance(raws, list) and all(isinstance(raw, bytes) for raw in raws), "synced")
    _check(_is_int(saved_next, INT_MAX >> 1) and isinstance(saved, list), "synced")
    return Synced(
        epoch,
        is_acting,
        facts,
        _parse_rows(rows),
        rows_next,
        claims,
        _parse_rows(claimed),
        claim_rows_next,
        [_parse_saved(entry) for entry in saved],
        saved_next,
        is_all,
    )


def saved_body(saved: Saved | None) -> list[Any]:
    """Return how what a task has saved travels between its keepers, and is stored."""
    if saved is None:
        return []
    return [saved.generation, saved.attempt, list(saved.by), cookie_body(saved.cookie, saved.blob)]


def parse_saved(body: Any) -> Saved | None:
    """Return what a task has saved; None: nothing any more."""
    if body == []:
        return None
    generation, attempt, by, value = listed(body, 4, "saved")
    _check(_is_int(generation, 255) and _is_int(attempt, 1 << 31), "saved")
    _check(isinstance(by, list) and len(by) <= ATTEMPTS_MAX, "saved")
    _check(all(_is_bytes(installation, PUBLIC_KEY_BYTES) for installation in by), "saved")
    cookie, blob = _parse_cookie(value)
    return Saved(cookie=cookie, blob=blob, generation=generation, attempt=attempt, by=tuple(by))


def _parse_saved(entry: Any) -> tuple[int, Saved | None]:
    index, body = listed(entry, 2, "saved")
    _check(_is_int(index), "saved")
    return index, parse_saved(body)


def _parse_rows(value: Any) -> list[Row]:
    _check(isinstance(value, list), "rows")
    parsed = []
    for item in value:
        index, generation, state, node_key, node_name, attempts, outcome, payload = listed(item, 8, "row")
        _check(_is_int(index) and _is_int(generation, 255) and _is_int(attempts, 1 << 31), "row")
        _check(type(state) is int and 0 < state < len(TaskState), "row")
        _check(isinstance(outcome, bytes) and isinstance(payload, bytes), "row")
        _check(node_key == b"" or _is_bytes(node_key, PUBLIC_KEY_BYTES), "row")
        _check(isinstance(node_name, str) and len(node_name) <= NODE_NAME_CHARS_MAX, "row")
        parsed.append(Row(index, generation, state, node_key, node_name, attempts, outcome, payload))
    return parsed


def parse_coordinator(body: Any) -> tuple[bytes, int]:
    """Return (job, epoch)."""
    job_id, epoch = listed(body, 2, "coordinator")
    _check(_is_bytes(job_id, JOB_ID_BYTES) and _is_int(epoch, INT_MAX >> 1), "coordinator")
    return job_id, epoch


def parse_job(body: Any) -> bytes:
    """Return the envelope in the answer to JOB, unread."""
    return _envelope(body, "job")


def parse_receipt(body: Any) -> bytes:
    """Return the envelope of a RECEIPT, unread."""
    return _envelope(body, "receipt")


def _envelope(body: Any, what: str) -> bytes:
    (raw,) = listed(body, 1, what)
    _check(isinstance(raw, bytes), what)
    return bytes(raw)


def parse_results(body: Any) -> tuple[bytes, Any]:
    """Return (claims envelope, outcomes) of a RESULTS, both unread."""
    raw, outcomes = listed(body, 2, "results")
    _check(isinstance(raw, bytes), "results")
    return raw, outcomes


def parse_job_id(body: Any) -> bytes:
    (job_id,) = listed(body, 1, "job")
    _check(_is_bytes(job_id, JOB_ID_BYTES), "job")
    return bytes(job_id)


# --- outcomes and claims --------------------------------------------------------------------------


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the stored and sent form of an outcome."""
    return cbor.encode(
        [
            str(outcome.status),
            outcome.value,
            _pair(outcome.value_blob),
            outcome.stdout,
            _pair(outcome.stdout_blob),
            outcome.stderr,
            _pair(outcome.stderr_blob),
            outcome.exit_code,
            outcome.signal,
            [[file.name, file.digest, file.size, file.mode] for file in outcome.files],
            outcome.error,
            outcome.cause,
            outcome.started_wall,
            outcome.runtime_s,
            outcome.cpu_s,
            outcome.peak_rss_bytes,
        ]
    )


def _pair(blob: tuple[bytes, int] | None) -> list[Any] | None:
    return None if blob is None else [blob[0], blob[1]]


def _parse_blob(value: Any) -> tuple[bytes, int] | None:
    if value is None:
        return None
    digest, size = listed(value, 2, "blob")
    _check(_is_bytes(digest, 32) and _is_int(size), "blob")
    return digest, size


def _is_float(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15


def decode_outcome(raw: bytes) -> Outcome:
    """Return the outcome that a worker sent.  No digest covers its times: a moment that cannot be is unknown (0.0), and
    times are cut to RUNTIME_S_MAX and CORES_MAX.

    Raises:
        RemoteProtocolError: malformed or over a limit.
    """
    _check(isinstance(raw, bytes) and len(raw) <= CLAIM_BYTES_MAX, "outcome")
    return _decode_short_outcome(raw) if len(raw) <= _SHORT_OUTCOME_BYTES_MAX else _decode_outcome(raw)


def _decode_outcome(raw: bytes) -> Outcome:
    fields = listed(cbor.decode(raw, allow_float=True), 16, "outcome")
    (
        status,
        value,
        value_blob,
        stdout,
        stdout_blob,
        stderr,
        stderr_blob,
        exit_code,
        signal,
        files,
        error,
        cause,
        started,
        runtime_s,
        cpu_s,
        peak,
    ) = fields
    for data in (value, stdout, stderr):
        _check(isinstance(data, bytes) and len(data) <= INLINE_BYTES_MAX, "outcome bytes")
    _check(exit_code is None or (type(exit_code) is int and -256 < exit_code < 256), "exit code")
    _check(signal is None or _is_int(signal, 128), "signal")
    _check(isinstance(error, str) and isinstance(cause, str) and len(cause) <= 32, "outcome text")
    _check(all(_is_float(number) for number in (started, runtime_s, cpu_s)) and _is_int(peak), "outcome numbers")
    _check(isinstance(files, list) and len(files) <= OUTPUT_FILES_MAX, "output files")
    parsed = []
    for file in files:
        name, digest, size, mode = listed(file, 4, "output file")
        _check(isinstance(name, str) and _is_bytes(digest, 32) and _is_int(size) and _is_int(mode, 0o777), "file")
        _check(_is_file_name(name), "file name")
        parsed.append(OutputFile(name, digest, size, mode))
    started = started if MOMENT_S_MIN <= started <= MOMENT_S_MAX else 0.0
    runtime_s = min(runtime_s, RUNTIME_S_MAX)
    try:
        known = OutcomeStatus(status)
    except ValueError as problem:
        raise RemoteProtocolError("malformed message: status") from problem
    return Outcome(
        known,
        value,
        _parse_blob(value_blob),
        stdout,
        _parse_blob(stdout_blob),
        stderr,
        _parse_blob(stderr_blob),
        exit_code,
        signal,
        tuple(parsed),
        error,
        cause,
        started,
        runtime_s,
        min(cpu_s, runtime_s * CORES_MAX),
        peak,
    )


_SHORT_OUTCOME_BYTES_MAX: Final = 512
_OUTCOMES_CACHED_MAX: Final = 512
_decode_short_outcome = lru_cache(maxsize=_OUTCOMES_CACHED_MAX)(_decode_outcome)
"""Its owner reads one when it comes, when it is shown and when it is handed out: at most 1 MB is kept for that."""


def is_sendable(outcome: Outcome) -> bool:
    """True when `decode_outcome` will take the outcome in its encoded form, its length apart."""
    return (
        max(len(outcome.value), len(outcome.stdout), len(outcome.stderr)) <= INLINE_BYTES_MAX
        and (outcome.exit_code is None or -256 < outcome.exit_code < 256)
        and (outcome.signal is None or 0 <= outcome.signal <= 128)
        and len(outcome.cause) <= 32
        and _is_float(outcome.started_wall)
        and _is_float(outcome.runtime_s)
        and _is_float(outcome.cpu_s)
        and 0 <= outcome.peak_rss_bytes <= INT_MAX
        and len(outcome.files) <= OUTPUT_FILES_MAX
        and all(_is_file_name(file.name) and 0 <= file.mode <= 0o777 for file in outcome.files)
    )


def _is_file_name(name: str) -> bool:
    return bool(name) and "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def outcome_blobs(outcome: Outcome) -> list[BlobRef]:
    """Return the blobs that an outcome names."""
    refs = [BlobRef(*blob) for blob in (outcome.value_blob, outcome.stdout_blob, outcome.stderr_blob) if blob]
    refs += [BlobRef(file.digest, file.size) for file in outcome.files]
    return list(dict.fromkeys(refs))


def output_digest(outcome: Outcome) -> bytes:
    """Return the digest of what the task computed: status, value, stdout, exit code, files.

    Not of stderr, times and memory, which differ from run to run.
    """
    return hashlib.blake2b(
        cbor.encode(
            [
                str(outcome.status),
                outcome.value if outcome.value_blob is None else outcome.value_blob[0],
                outcome.stdout if outcome.stdout_blob is None else outcome.stdout_blob[0],
                outcome.exit_code,
                [[file.name, file.digest, file.mode] for file in outcome.files],
            ]
        ),
        digest_size=32,
    ).digest()


_CLAIMS_KEYS: Final = frozenset({"job", "claims"})
Claim = tuple[int, int, int, str, bytes]
"""(index, generation, attempt, status, digest)"""


def parse_claims(payload: Any) -> tuple[bytes, list[Claim]]:
    """Return (job, claims) of a claims envelope's payload ``{"job", "claims", "boot"}``.

    The boot is that of the worker (see `claims_boot`); the owner's own claims have none.
    """
    boot = named(payload, _CLAIMS_KEYS, "claims").get("boot", b"")
    _check(isinstance(boot, bytes) and len(boot) <= 16, "claims")
    job_id, claims = payload["job"], payload["claims"]
    _check(_is_bytes(job_id, JOB_ID_BYTES) and isinstance(claims, list), "claims")
    _check(0 < len(claims) <= RESULTS_BATCH_MAX, "claims")
    parsed: list[Claim] = []
    for claim in claims:
        index, generation, attempt, status, digest = listed(claim, 5, "claim")
        _check(_is_int(index) and _is_int(generation, 255) and _is_int(attempt, 1 << 31), "claim")
        _check(isinstance(status, str) and _is_bytes(digest, 32), "claim")
        parsed.append((index, generation, attempt, status, digest))
    return job_id, parsed


def claims_boot(raw: bytes) -> bytes:
    """Return in which life a worker signed a claims envelope that was parsed before.

    It belongs to what was leased: a node that has lost its memory may answer a lease once more, and differently.
    """
    boot = cbor.decode(cbor.decode(raw)[2]).get("boot", b"")
    assert isinstance(boot, bytes)
    return boot
