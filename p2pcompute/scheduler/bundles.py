"""Bundles: a job with all that was signed about it, for whoever wants to check it without any node.

A bundle is canonical CBOR: the job's envelope, its facts in order (those of the owner, and claims as workers signed
them) and how its tasks ended.  `check_bundle` believes nothing of it but signatures: what was accepted, on whose word,
and who has signed two different results for one lease, which no honest worker does.

An evidence file holds two such claims, and says so by itself.

Pure.  Limit: a bundle tells what the owner decided, and what workers signed; not that the owner has shown all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.host.runs import OutcomeStatus
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.scheduler.ledger import FactKind, JobLedger, TaskState
from p2pcompute.scheduler.messages import (
    CLAIMS_CONTENT_TYPE,
    FACT_CONTENT_TYPE,
    FACT_KEYS,
    Claim,
    decode_outcome,
    output_digest,
    parse_claims,
)
from p2pcompute.scheduler.terms import JobEnvelope, open_job
from p2pcompute.wire import cbor
from p2pcompute.wire.envelope import open_envelope, unverified_payload
from p2pcompute.wire.fields import named

BUNDLE: Final = "p2pc/bundle/1"
EVIDENCE: Final = "p2pc/evidence/1"
_EVIDENCE_CLAIMS: Final = 2


@dataclass(frozen=True, slots=True)
class Ended:
    """How one generation of a task ended, as its owner kept it."""

    index: int
    generation: int
    node: bytes
    """Key of the node that computed it; b"" for the owner itself."""
    outcome: bytes


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Somebody signed two results under one lease."""

    signer: bytes
    job_id: bytes
    index: int
    generation: int
    attempt: int


@dataclass(slots=True)
class Report:
    """What a bundle or an evidence file shows."""

    job: JobEnvelope | None = None
    """None for evidence alone."""
    tasks: int = 0
    accepted: int = 0
    """Tasks whose last result was accepted, and is in the bundle as it was accepted."""
    failed: int = 0
    by_owner: int = 0
    """Of those accepted: computed by the owner's own node, which signs them with the acceptance."""
    backed: dict[int, int] = field(default_factory=dict)
    """How many workers signed the accepted result → of how many tasks."""
    why: dict[str, int] = field(default_factory=dict)
    """Why results of members were believed → of how many tasks."""
    revoked: int = 0
    signers: dict[bytes, int] = field(default_factory=dict)
    """Worker → how many of its claims agree with what was accepted."""
    differing: dict[bytes, list[int]] = field(default_factory=dict)
    """Worker → tasks of which it claimed something else than what was accepted."""
    equivocations: list[Equivocation] = field(default_factory=list)


def make_bundle(envelope: bytes, facts: Sequence[bytes], ends: Sequence[Ended]) -> bytes:
    """Return the bundle of a job."""
    rows = [[end.index, end.generation, end.node, end.outcome] for end in ends]
    return cbor.encode({"type": BUNDLE, "envelope": envelope, "facts": list(facts), "results": rows})


def make_evidence(claims: Sequence[bytes]) -> bytes:
    """Return the evidence file of these signed claims."""
    return cbor.encode({"type": EVIDENCE, "claims": list(claims)})


def find_equivocation(crypto: Crypto, facts: Iterable[bytes], signer: bytes) -> bytes | None:
    """Return evidence that a worker signed two results under one lease, from the facts of a job; None: it did not.

    Of several the smallest: what a worker signs with one signature cannot be taken apart.
    """
    seen: dict[tuple[bytes, int, int, int], dict[bytes, bytes]] = {}
    found: tuple[bytes, bytes] | None = None
    for raw in facts:
        opened = _claims(crypto, raw)
        if opened is None or opened[0] != signer:
            continue
        for index, generation, attempt, status, digest in opened[3]:
            if status != OutcomeStatus.OK or not opened[1]:
                continue
            said = seen.setdefault((opened[1], index, generation, attempt), {})
            for other, before in said.items():
                if other != digest and (found is None or len(before) + len(raw) < len(found[0]) + len(found[1])):
                    found = before, raw
            if len(raw) < len(said.get(digest, raw + b"-")):
                said[digest] = raw
    return None if found is None else make_evidence(found)


def _claims(crypto: Crypto, raw: bytes) -> tuple[bytes, bytes, bytes, list[Claim]] | None:
    """Return (signer, its life, job, claims) of a claims envelope; None when it is none.

    Raises:
        RemoteProtocolError: forged or malformed.
    """
    payload = unverified_payload(raw)
    if not (isinstance(payload, dict) and "claims" in payload):
        return None
    opened = open_envelope(crypto, raw, CLAIMS_CONTENT_TYPE)
    return (opened.signer, opened.payload.get("boot", b""), *parse_claims(opened.payload))


def check_file(crypto: Crypto, data: bytes) -> Report:
    """Return what a bundle or an evidence file shows.

    Raises:
        TrustError: it is neither, or something in it is forged, missing or contradicts the rest.
    """
    try:
        value = cbor.decode(data)
        if not isinstance(value, dict):
            raise RemoteProtocolError("it is not a bundle")
        if value.get("type") == EVIDENCE:
            return _check_evidence(crypto, value["claims"])
        if value.get("type") != BUNDLE:
            raise RemoteProtocolError("it is neither a bundle nor evidence of this format")
        return _check_bundle(crypto, value)
    except (RemoteProtocolError, TypeError, ValueError, LookupError) as error:
        what = error.what if isinstance(error, RemoteProtocolError) else "something in it has a wrong shape"
        raise TrustError("this file proves nothing", what, "ask for a new one", code="bundle") from error


def check_evidence(crypto: Crypto, data: bytes) -> bytes:
    """Return the key of the one node that an evidence file proves to have lied.

    Files of others come here unasked: of more than two claims, and of bundles, nothing is looked at.

    Raises:
        TrustError: it proves nothing, or is no evidence, or about several.
    """
    try:
        value = cbor.decode(data)
    except RemoteProtocolError as error:
        raise TrustError("this file proves nothing", error.what, "ask for a new one", code="bundle") from error
    is_evidence = isinstance(value, dict) and value.get("type") == EVIDENCE
    if not (is_evidence and isinstance(value.get("claims"), list) and len(value["claims"]) == _EVIDENCE_CLAIMS):
        raise TrustError("this file is not evidence about one node", "", None, code="bundle")
    signers = {one.signer for one in check_file(crypto, data).equivocations}
    if len(signers) != 1:
        raise TrustError("this file is not evidence about one node", "", None, code="bundle")
    return signers.pop()


def _check_evidence(crypto: Crypto, raws: Any) -> Report:
    book = _Claims()
    for raw in raws:
        opened = _claims(crypto, raw)
        if opened is None:
            raise RemoteProtocolError("evidence holds claims only")
        book.add(*opened)
    if not book.equivocations:
        raise RemoteProtocolError("the claims in it do not contradict each other")
    return Report(equivocations=book.equivocations)


class _Claims:
    """What workers signed."""

    def __init__(self) -> None:
        self.by_task: dict[tuple[int, int], dict[bytes, bytes]] = {}
        """(task, generation) → worker → digest of its first good claim."""
        self.equivocations: list[Equivocation] = []
        self._seen: dict[tuple[bytes, bytes, bytes, int, int, int], bytes] = {}

    def add(self, signer: bytes, boot: bytes, job_id: bytes, claims: Sequence[Claim]) -> None:
        for index, generation, attempt, status, digest in claims:
            if status != OutcomeStatus.OK:
                continue
            before = self._seen.setdefault((signer, boot, job_id, index, generation, attempt), digest)
            if boot and before != digest:  # who names no life, as coordinators, may have lost its memory between
                self.equivocations.append(Equivocation(signer, job_id, index, generation, attempt))
            self.by_task.setdefault((index, generation), {}).setdefault(signer, digest)


def _check_bundle(crypto: Crypto, value: dict[str, Any]) -> Report:
    job = open_job(crypto, value["envelope"], wall=0.0)
    ledger, claims = JobLedger(), _Claims()
    accepted: dict[int, tuple[int, bytes]] = {}
    why: dict[int, str] = {}
    report = Report(job=job, equivocations=claims.equivocations)
    for raw in value["facts"]:
        opened = _claims(crypto, raw)
        if opened is not None:
            if opened[2] != job.job_id:
                raise RemoteProtocolError("claims of another job")
            claims.add(*opened)
            continue
        payload = named(open_envelope(crypto, raw, FACT_CONTENT_TYPE, signer=job.signer).payload, FACT_KEYS, "fact")
        if payload["job"] != job.job_id:
            raise RemoteProtocolError("not a fact of this job")
        kind, body = payload["kind"], payload["body"]
        ledger.fold(kind, body)
        if kind == FactKind.ACCEPT:
            accepted.update((index, (generation, digest)) for index, generation, digest in body)
        elif kind == FactKind.CHECKED:
            why.update((index, text) for index, _generation, _digest, text in body)
        elif kind == FactKind.REVOKE:
            report.revoked += len(body)
    report.tasks = ledger.size
    report.failed = ledger.counts[TaskState.FAILED]
    results = {(row[0], row[1]): (row[2], row[3]) for row in value["results"]}
    # What was claimed before a revocation still speaks for what is accepted after it.
    said: dict[int, dict[bytes, bytes]] = {}
    for (index, _generation), by_worker in claims.by_task.items():
        said.setdefault(index, {}).update(by_worker)
    for index, (generation, digest) in accepted.items():
        if ledger.state(index) is not TaskState.DONE or ledger.generation(index) != generation:
            continue
        _count(report, index, digest, results.get((index, generation)), said.get(index, {}))
        if index in why:
            report.why[why[index]] = report.why.get(why[index], 0) + 1
    if report.accepted != ledger.counts[TaskState.DONE]:
        raise RemoteProtocolError("results that are done were not accepted")
    return report


def _count(
    report: Report, index: int, digest: bytes, result: tuple[bytes, bytes] | None, said: dict[bytes, bytes]
) -> None:
    """Add one accepted task.

    Raises:
        RemoteProtocolError: its result is not the one that was accepted.
    """
    if result is None or output_digest(decode_outcome(result[1])) != digest:
        raise RemoteProtocolError(f"the result of task {index} is not the one that was accepted")
    node = result[0]
    if node and len(node) != PUBLIC_KEY_BYTES:
        raise RemoteProtocolError("not the key of a node")
    backers = [worker for worker, claimed in said.items() if claimed == digest]
    if node and node not in backers:
        raise RemoteProtocolError(f"nobody signed the result of task {index}")
    report.accepted += 1
    report.by_owner += not node
    report.backed[len(backers)] = report.backed.get(len(backers), 0) + 1
    for worker, claimed in said.items():
        if claimed == digest:
            report.signers[worker] = report.signers.get(worker, 0) + 1
        else:
            report.differing.setdefault(worker, []).append(index)
