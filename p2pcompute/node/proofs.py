"""What this node can show of what others claimed: evidence about a member, and jobs as bundles."""

from __future__ import annotations

from typing import Final

from p2pcompute.errors import UsageError
from p2pcompute.host.interfaces import Host
from p2pcompute.node.facade import EvidenceEvent, EvidenceView
from p2pcompute.scheduler.bundles import Ended, find_equivocation, make_bundle
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.store.journal import Journal
from p2pcompute.trust.verification.arbitrate import Arbitrate
from p2pcompute.trust.verification.book import Why

BUNDLE_BYTES_MAX: Final = 512 * 1024 * 1024
"""A bundle is made in memory."""


async def bundle_of(journal: Journal | None, book: JobBook) -> bytes:
    """Return the bundle of a job.

    Raises:
        UsageError: this node keeps no jobs, or the job is not its own, or too large.
    """
    if journal is None:
        raise UsageError("this node keeps no jobs", "it is embedded without a store", None, code="no-store")
    if not book.job.is_own:
        raise UsageError("the job was submitted at another node", "only that one has all its facts", None, code="owner")
    job_id, ledger = book.job.envelope.job_id, book.job.ledger
    facts, size = [], 0
    async for raw in journal.facts(job_id):
        facts.append(raw)
        size = _more(size, len(raw))
    ends = []
    async for index, generation, row in journal.results(job_id):
        if generation == ledger.generation(index) and row.state == TaskState.DONE:
            ends.append(Ended(index, generation, row.node_key, row.outcome))
            size = _more(size, len(row.outcome))
    return make_bundle(book.record.envelope, facts, ends)


def _more(size: int, more: int) -> int:
    if size + more > BUNDLE_BYTES_MAX:
        raise UsageError(
            "the job is too large for a bundle",
            f"one holds up to {BUNDLE_BYTES_MAX >> 20} MiB",
            "split the job",
            code="bundle-size",
        )
    return size + more


async def evidence_of(host: Host, journal: Journal | None, owner: OwnerService, installation: bytes) -> EvidenceView:
    """Return what is known here of the results of an installation."""
    acceptance = owner.core.acceptance
    record = acceptance.records.get(installation)
    if record is None:
        return EvidenceView()
    standing = ""
    for rule, verifier in acceptance.verifiers.items():
        if isinstance(verifier, Arbitrate) and installation in verifier.workers:
            standing = verifier.workers[installation].standing.name.lower()
            record.memory[rule] = verifier.memory_of(installation)
    events = tuple(
        EvidenceEvent(
            at=event.at,
            job_id=event.job_id,
            job=owner.books[event.job_id].record.alias if event.job_id in owner.books else "",
            index=event.index,
            what=event.what,
        )
        for event in record.events
    )
    proof = b""
    if record.banned == Why.EQUIVOCATION and journal is not None:
        for job_id in dict.fromkeys(event.job_id for event in reversed(record.events)):
            raws = [raw async for raw in journal.facts(job_id)]
            proof = find_equivocation(host.crypto, raws, installation) or b""
            if proof:
                break
    return EvidenceView(
        claims=record.claims,
        agreed=record.agreed,
        wrong=record.wrong,
        standing=standing,
        banned=record.banned,
        banned_at=record.banned_at or None,
        events=events,
        proof=proof,
    )
