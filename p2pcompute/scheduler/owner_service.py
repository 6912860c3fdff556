"""The owner's side, performed: submissions, results intake, watchers.

Everything that `OwnerCore` decides goes to the store by `commits`; what is kept of each job beside the core's books is
in `job_book`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, StoreError, TrustError, UsageError
from p2pcompute.host.interfaces import BlobRef, Host
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import job_alias
from p2pcompute.limits import (
    ENVELOPE_BYTES_MAX,
    JOBS_ACTIVE_MAX,
    LOST_OUTPUT_JOB_BYTES_MAX,
    TASK_PAYLOAD_BYTES_MAX,
)
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.books import OwnedJob, TaskEnd
from p2pcompute.scheduler.checked import Record
from p2pcompute.scheduler.checkpoints import Saved
from p2pcompute.scheduler.commits import FACT_ENTRIES_MAX, Commits
from p2pcompute.scheduler.fairness import USAGE_TAU_S
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.messages import (
    Claim,
    claims_boot,
    decode_outcome,
    encode_outcome,
    outcome_blobs,
    output_digest,
    parse_claims,
    parse_saved,
    parse_tails,
    saved_body,
)
from p2pcompute.scheduler.owner import DEADLINE, OwnerCore
from p2pcompute.scheduler.printed import LostAttempt, Printed, Tails, size_of, tails_body, tails_of
from p2pcompute.scheduler.result_checks import CheckCounters, ResultChecks
from p2pcompute.scheduler.stealing import LOCAL, Fit
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms, open_job, seal_job
from p2pcompute.store.journal import JobRecord, Journal, ResultRecord
from p2pcompute.trust.levels import Level
from p2pcompute.wire import cbor
from p2pcompute.wire.envelope import signer_of

LOST_WHY_CHARS_MAX: Final = 200
DEADLINE_TIMED_S: Final = 3600.0
"""A deadline further away is seen to by the tick alone, which is a second late at most: it means nothing then."""
CLOCKS_DIFFER_S: Final = 0.01
"""Deadlines are times of day, timers are not: one that fires a moment early would find that nothing is due."""
KILLED_HERE: Final = "its node was killed"
"""Why an attempt was lost that ran on this node when it ended without a word."""
FACT_BYTES_MAX = 512 * 1024
"""Task payloads in one fact."""
PAYLOAD_KEPT_BYTES_MAX = 4096
"""A payload up to this is kept beside the result too, so that lists of tasks need not search the facts."""
EVIDENCE_S = 1.0
"""How often what is known of nodes is stored while it changes."""
OPEN_TASKS_MAX = 200_000
"""Open tasks of a job above which `add_tasks` waits: bounds memory, not the job."""


def _row(saved: Saved | None) -> list[Any] | None:
    """Return the stored form of what a task has saved."""
    return None if saved is None else saved_body(saved)


@dataclass(slots=True)
class OwnerCounters(CheckCounters):
    """`refused_claims_count`: results for tasks or jobs that are not open here (late, repeated, unknown)."""

    accepted_count: int = 0
    failed_count: int = 0
    refused_claims_count: int = 0
    lost_output_refused_count: int = 0
    """Attempts that were lost, and of whose output nothing is kept because there is so much of their job already."""
    odd_times_count: int = 0
    """Results that, as their nodes say, began or took what cannot be."""


class OwnerService:
    """Owns the jobs submitted at this node."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        journal: Journal | None,
        scope: TaskScope,
        wake: Callable[[], None],
        name_of: Callable[[bytes], str],
        inputs: Callable[[bytes, bytes], list[BlobRef]],
        fit_of: Callable[[JobEnvelope], Fit | None] | None = None,
        *,
        acceptance: Acceptance | None = None,
    ) -> None:
        """Args:
        journal: None for an embedded node that keeps nothing.
        wake: makes the scheduler look for something to do.
        name_of: a node's name by its key (LOCAL included).
        inputs: (spec, payload) → blobs that the task needs; they are kept as long as the job is.
        fit_of: says where a job may run; None of it: anywhere.
        acceptance: decides whose results are believed; None: everybody's.
        """
        self._host = host
        self._identity = identity
        self._journal = journal
        self._scope = scope
        self._wake = wake
        self._name_of = name_of
        self._inputs = inputs
        self.core = OwnerCore(fit_of, acceptance)
        self.core.acceptance.wall = host.clock.wall
        self.books: dict[bytes, JobBook] = {}
        self.aliases: dict[str, bytes] = {}
        self._serial = 0
        """Of the job that was submitted here last."""
        self.counters = OwnerCounters()
        self.checks = ResultChecks(host, self.counters)
        self.commits = Commits(host, identity, journal, scope, self.books, wake=wake)
        self._evidence_at = 0.0
        self.stops: list[tuple[bytes, bytes, list[int], bool]] = []
        """(holder, job, indices, kill) to be sent by the scheduler."""
        self.on_done: Callable[[bytes, Outcome], None] = lambda _node, _outcome: None
        """Called with each result of another node that was accepted."""
        self.on_banned: Callable[[bytes, str], None] = lambda _installation, _why: None
        """Called with who gets no more work, and why."""
        self._printed = Printed()
        self._printed_here: dict[tuple[bytes, int], int] = {}
        """(job, task) → its attempt, of those that run here and whose output is on disk as if they were lost: so they
        are if this node is killed."""

    # --- start ------------------------------------------------------------------------------------

    async def recover(self) -> int:
        """Read the jobs of earlier lives, those of others too; returns how many of our own are unfinished."""
        if self._journal is None:
            return 0
        unfinished = 0
        self.core.acceptance.can_load = True
        async for installation, row in self._journal.evidence():
            self.core.acceptance.records[installation] = Record.unpack(row)
        for record in await self._journal.load_jobs():
            envelope = open_job(self._host.crypto, record.envelope, wall=self._host.clock.wall())
            facts: list[tuple[int, Any]] = []
            count = size = 0
            async for raw in self._journal.facts(envelope.job_id):
                facts.append(self._open_fact(raw))
                count += 1
                size += len(raw)
            if envelope.signer != self._identity.public_key:
                await self._recover_replica(self._journal, record, envelope, facts, size)
                continue
            outputs: dict[tuple[int, bytes], tuple[bytes, Outcome]] = {}
            if any(kind == FactKind.HELD for kind, _body in facts):
                async for index, digest, node, outcome in self._journal.outputs(envelope.job_id):
                    outputs[index, digest] = (node, decode_outcome(outcome))
            job = self.core.recover(envelope, facts, outputs)
            if self._was_given_up(record, job):
                job.halted = DEADLINE
            book = self.books[envelope.job_id] = JobBook(record, job, next_fact=count)
            book.room.set()
            if not job.ledger.is_complete:
                async for index, row in self._journal.lost(envelope.job_id):
                    book.lost_bytes += len(row[4][1]) + len(row[4][3])
                    job.attempts[index] = max(job.attempts.get(index, 0), row[0])  # the next one is another one
            self.aliases[record.alias] = envelope.job_id
            self._serial = max(self._serial, record.serial)
            unfinished += not job.ledger.is_complete
        self._host.store.blobs.pin([ref async for ref in self._journal.pins()])
        await self._recover_saved(self._journal)
        self.apply_effects()
        return unfinished

    @staticmethod
    def _was_given_up(record: JobRecord, job: OwnedJob) -> bool:
        """Whether a job ended because of its deadline: that is in no fact of its own."""
        deadline_ms = job.envelope.terms.deadline_ms
        is_late = record.finished is not None and 0 < deadline_ms <= record.finished * 1000
        is_stopped = job.ledger.counts[TaskState.CANCELLED] > 0 and not job.is_cancelled and not job.is_revived
        return is_late and is_stopped and not job.halted

    async def _recover_replica(
        self, journal: Journal, record: JobRecord, envelope: JobEnvelope, facts: Sequence[tuple[int, Any]], size: int
    ) -> None:
        book = self.add_replica(record, envelope)
        book.next_fact, book.kept_bytes = len(facts), size
        ledger = book.job.ledger
        for kind, body in facts:
            ledger.fold(kind, body)
            book.job.is_checked |= kind == FactKind.HELD
        async for index, generation, row in journal.results(envelope.job_id):
            book.kept_bytes += len(row.outcome)
            if row.state in (TaskState.CLAIMED, TaskState.CLAIMED_FAILED):
                ledger.claim(index, generation, is_good=row.state == TaskState.CLAIMED)
            is_good = row.state in (TaskState.DONE, TaskState.CLAIMED)
            book.job.share(row.node_key or LOCAL)[1 if is_good else 2] += 1
        async for _claims in journal.relays(envelope.job_id):
            book.next_relay += 1
        refs = {ref: None async for ref in journal.pins(envelope.job_id)}
        book.kept.update(refs)
        book.unfetched.update(refs)
        book.room.set()

    def add_replica(self, record: JobRecord, envelope: JobEnvelope) -> JobBook:
        """Keep another node's job; nobody is given its tasks before `OwnerCore.adopt`."""
        job = OwnedJob(envelope)
        job.is_own = False
        book = self.books[envelope.job_id] = JobBook(record, job)
        self.aliases[record.alias] = envelope.job_id
        return book

    def _open_fact(self, raw: bytes) -> tuple[int, Any]:
        """Facts in our own journal were verified when they were written: their signature is not checked again."""
        protected, _unprotected, body, _signature = cbor.decode(raw)
        payload = cbor.decode(body)
        if "claims" in payload:
            signer = signer_of(protected)
            thief = LOCAL if signer == self._identity.public_key else signer
            return FactKind.CLAIMS, [[*claim, thief] for claim in parse_claims(payload)[1]]
        return payload["kind"], payload["body"]

    # --- submission -------------------------------------------------------------------------------

    async def submit(self, terms: JobTerms, spec: bytes, note: str) -> bytes:
        """Accept a job; durable on return."""
        active = sum(book.job.is_own and not book.job.ledger.is_complete for book in self.books.values())
        if active >= JOBS_ACTIVE_MAX:
            raise UsageError(
                f"{active} jobs are active here",
                "that is the limit of one node",
                "wait for some, or cancel: p2pc jobs",
                code="jobs-full",
            )
        wall = self._host.clock.wall()
        terms = replace(terms, created_ms=int(wall * 1000))
        raw = seal_job(self._identity, terms, spec, self._host.crypto.random_bytes(16))
        if len(raw) > ENVELOPE_BYTES_MAX:
            raise UsageError(
                f"a job's description of {len(raw)} bytes is too large",
                f"the limit is {ENVELOPE_BYTES_MAX}",
                "put what is large (environment, names of shared files) into a file: --share",
                code="job-size",
            )
        try:
            envelope = open_job(self._host.crypto, raw, wall=wall)
        except RemoteProtocolError as error:
            raise UsageError("the job cannot be submitted", error.what, None, code="job") from error
        alias = job_alias(envelope.job_id, self.aliases)
        record = JobRecord(
            job_id=envelope.job_id, envelope=raw, alias=alias, note=note, submitted=wall, serial=self._serial + 1
        )
        self._serial += 1
        if self._journal is not None:
            await self._host.store.commit([self._journal.job_write(record)])
        book = self.books[envelope.job_id] = JobBook(record, self.core.add_job(envelope))
        book.room.set()
        self.aliases[alias] = envelope.job_id
        left_s = terms.deadline_ms / 1000 - wall
        if 0 < left_s < DEADLINE_TIMED_S:
            self._host.clock.call_later(left_s + CLOCKS_DIFFER_S, self._at_deadline)
        return envelope.job_id

    def _at_deadline(self) -> None:
        """Stop the job whose deadline this is now, rather than with the next tick: a second is long for short tasks."""
        self.core.tick(self._host.clock.now(), self._host.clock.wall() * 1000)
        self._wake()

    async def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        """Add tasks; waits for room; durable on return (they may have started before)."""
        book = self.own_book(job_id)
        for payload in payloads:
            if len(payload) > TASK_PAYLOAD_BYTES_MAX:
                raise UsageError(
                    f"a task of {len(payload)} bytes is too large",
                    f"the limit is {TASK_PAYLOAD_BYTES_MAX}",
                    "send large inputs as files: --send",
                    code="task-size",
                )
        await book.room.wait()
        first = self.add_tasks_now(book, payloads)
        await self.committed()
        return first

    def add_tasks_now(self, book: JobBook, payloads: Sequence[bytes]) -> int:
        """Add tasks without waiting for room or disk."""
        job_id = book.job.envelope.job_id
        if book.job.ledger.total is not None:
            raise UsageError("the job is sealed", "its number of tasks was fixed", "submit a new job", code="sealed")
        if self._journal is not None:
            spec = book.job.envelope.spec
            for payload in payloads:
                self._keep_blobs(book, self._inputs(spec, payload))
        first = self.core.add_tasks(job_id, payloads)
        begins = [book.job.generation] if book.job.generation else []
        start, size = 0, 0
        for position, payload in enumerate(payloads):
            if position > start and (size + len(payload) > FACT_BYTES_MAX or position - start >= FACT_ENTRIES_MAX):
                self._fact(job_id, FactKind.TASKS, [first + start, list(payloads[start:position]), *begins])
                start, size = position, 0
            size += len(payload)
        if start < len(payloads):
            self._fact(job_id, FactKind.TASKS, [first + start, list(payloads[start:]), *begins])
        if book.job.ledger.counts[TaskState.OPEN] >= OPEN_TASKS_MAX:
            book.room.clear()
        self._wake()
        return first

    def _keep_blobs(self, book: JobBook, refs: Sequence[BlobRef]) -> None:
        """Keep blobs from eviction until the job is forgotten, over restarts too.

        Without a journal the submitter, in the same process, keeps and removes them itself.
        """
        new = [ref for ref in refs if ref not in book.kept]
        if not new:
            return
        book.kept.update(dict.fromkeys(new))
        if not book.job.is_own:
            book.unfetched.update(dict.fromkeys(new))
        self._host.store.blobs.pin(new)
        if self._journal is not None:
            self.commits.writes += [self._journal.pin_write(book.job.envelope.job_id, ref) for ref in new]

    async def seal(self, job_id: bytes) -> None:
        book = self.own_book(job_id)
        if book.job.ledger.total is None:
            self.core.seal(job_id)
            self._fact(job_id, FactKind.SEAL, [book.job.ledger.total])
            self._notify(book, [])
        self._wake()
        await self.committed()

    def own_book(self, job_id: bytes) -> JobBook:
        """Return the book of a job that was submitted here.

        Raises:
            UsageError: there is none.
            TrustError: it is kept here for another node, which alone decides about it.
        """
        book = self.book(job_id)
        if not book.job.is_own:
            name = self._name_of(book.job.envelope.signer)
            raise TrustError(
                f"job {book.record.alias} is kept here for {name}",
                "only the node that submitted a job decides about it",
                f"run the command on {name}",
            )
        return book

    def book(self, job_id: bytes) -> JobBook:
        try:
            return self.books[job_id]
        except KeyError:
            raise UsageError(
                "no such job", "it is not kept here", "list them: p2pc jobs --all", code="no-job"
            ) from None

    # --- cancel, retry, forget --------------------------------------------------------------------

    async def cancel(self, job_id: bytes, indices: Sequence[int] | None, *, kill: bool) -> None:
        book = self.own_book(job_id)
        if indices is None and book.job.ledger.total is None:
            self.core.seal(job_id)
            self._fact(job_id, FactKind.SEAL, [book.job.ledger.total])
        self.core.cancel(job_id, indices, kill=kill)
        self._notify(book, [])
        self._wake()
        await self.committed()

    async def retry(self, job_id: bytes, indices: Sequence[int] | None, *, failed_only: bool) -> int:
        book = self.own_book(job_id)
        ledger = book.job.ledger
        if self._journal is None:
            raise UsageError("this node keeps no tasks", "it is embedded without a store", None, code="no-store")
        wanted = range(ledger.size) if indices is None else indices
        states = (TaskState.FAILED, TaskState.CANCELLED) if failed_only else tuple(TaskState)
        chosen = [
            i for i in wanted if i < ledger.size and ledger.state(i) in states and ledger.state(i) != TaskState.OPEN
        ]
        payloads = await self.payloads(job_id, chosen)
        ends = {index: await self.result_of(job_id, index) for index in chosen}
        by = {index: record.node_key or LOCAL for index, record in ends.items() if record is not None}
        book = self.book(job_id)  # it may have been pruned meanwhile
        count = self.core.retry(job_id, [index for index in chosen if index in payloads], payloads, by)
        if count:
            book.record = book.record.with_finished(None)
            self.commits.writes.append(self._journal.job_write(book.record))
        self._wake()
        await self.committed()
        return count

    async def payloads(self, job_id: bytes, indices: Sequence[int]) -> dict[int, bytes]:
        """Return the payloads of these tasks, from memory or from the journal."""
        job = self.book(job_id).job
        held = {} if job.checked is None else job.checked.payloads  # of those that have ended, as long as there is room
        found = {index: here[index] for index in indices for here in (held, job.payloads) if index in here}
        missing = {index for index in indices if index not in found}
        if missing and self._journal is not None:
            async for raw in self._journal.facts(job_id):
                kind, body = self._open_fact(raw)
                if kind != FactKind.TASKS or body[0] > max(missing) or body[0] + len(body[1]) <= min(missing):
                    continue
                for index, payload in enumerate(body[1], body[0]):
                    if index in missing:
                        found[index] = payload
        return found

    async def forget(self, job_id: bytes) -> list[BlobRef]:
        """Remove a finished job and all that is kept of it; returns the blobs that it named.

        A job that is gone already, or was revived by a retry, is left alone.
        """
        book = self.books.get(job_id)
        if book is None or book.job.ledger.counts[TaskState.OPEN]:
            return []
        del self.books[job_id]
        self.aliases.pop(book.record.alias, None)
        self.core.forget_job(job_id)
        if self._journal is None:
            return []
        refs = [ref async for ref in self._journal.pins(job_id)]
        self._host.store.blobs.unpin(refs)
        await self._journal.delete_job(job_id)
        return refs

    async def drop_replica(self, job_id: bytes) -> None:
        """Forget another node's job that nobody coordinates here."""
        book = self.books.get(job_id)
        if book is not None and not book.job.is_own and job_id not in self.core.jobs:
            del self.books[job_id]
            self.aliases.pop(book.record.alias, None)
            self.core.checkpoints.forget_job(job_id)
            self._keep_saved()
            if self._journal is not None:
                self._host.store.blobs.unpin([ref async for ref in self._journal.pins(job_id)])
                await self._journal.delete_job(job_id)

    # --- results ----------------------------------------------------------------------------------

    def intake_local(self, job_id: bytes, index: int, generation: int, attempt: int, outcome: Outcome) -> None:
        """Take the outcome of the node's own worker."""
        digest = output_digest(outcome) if self._journal is not None else b""
        changed = self.core.result(
            self._host.clock.now(),
            LOCAL,
            self._identity.installation,
            job_id,
            index,
            generation,
            attempt,
            outcome,
            digest,
        )
        if changed and (outcome.status is not OutcomeStatus.OK or not self.core.jobs[job_id].is_own):
            self._claim_fact(job_id, [index, generation, attempt, str(outcome.status), digest])

    def _claim_fact(self, job_id: bytes, claim: list[Any]) -> None:
        if self._journal is not None:
            self.commits.facts.append((job_id, FactKind.CLAIMS, [claim]))

    async def readable(
        self, job_id: bytes, installation: bytes, pairs: Sequence[tuple[Claim, Outcome]]
    ) -> list[tuple[Claim, Outcome]]:
        """Return results with what an installation may make us read and write: files that were asked for; and unless
        it is trusted, values that are data, and no exceptions but their text.  The blobs that they name are here, as
        far as they are wanted."""
        book = self.books.get(job_id)
        if book is not None and any(outcome.files for _claim, outcome in pairs):
            payloads = await self.payloads(job_id, [claim[0] for claim, outcome in pairs if outcome.files])
            pairs = self.checks.with_files_asked_for(payloads, pairs)
        if book is None or self.core.acceptance.level_of(installation) is Level.TRUSTED:
            return [
                (claim, replace(outcome, error=""))  # why it is a pickle
                if outcome.error and outcome.status is OutcomeStatus.OK
                else (claim, outcome)
                for claim, outcome in pairs
            ]
        spec = book.job.envelope.spec
        return [(claim, await self.checks.as_data(spec, outcome)) for claim, outcome in pairs]

    def wants(self, job_id: bytes, claim: Claim, installation: bytes = b"") -> bool:
        """True while this result would still change something.

        Args:
            installation: of the node that sends it; b"": somebody else does.
        """
        book = self.books.get(job_id)
        if book is None:
            return False
        if not book.job.ledger.is_open(claim[0], claim[1]):
            return self.core.acceptance.wants(book.job, claim[0], claim[1], installation)
        return job_id in self.core.jobs or claim[3] == OutcomeStatus.OK

    def wants_output(self, job_id: bytes, claim: Claim, installation: bytes) -> bool:
        """Whether what a result names is wanted too: not when it is only compared with what is known."""
        book = self.books.get(job_id)
        if book is None or self.core.acceptance.believes(book.job, installation):
            return True
        checked = book.job.checked
        outputs = () if checked is None else checked.outputs.get(claim[0], ())
        return book.job.ledger.is_open(claim[0], claim[1]) and claim[4] not in outputs

    def intake(
        self,
        thief: bytes,
        installation: bytes,
        job_id: bytes,
        raw: bytes,
        pairs: Sequence[tuple[Claim, Outcome]],
        *,
        relayed_by: bytes | None = None,
    ) -> int:
        """Take a remote worker's results; the blobs that they name are here.  Returns how many counted.

        Args:
            relayed_by: another coordinator of the job, which took them while this one was away.
        """
        now = self._host.clock.now()
        job = self.core.jobs.get(job_id)
        is_believed = job is None or self.core.acceptance.believes(job, installation)
        boot = b"" if is_believed else claims_boot(raw)
        if job_id in self.books:
            pairs = self._as_seen(self.books[job_id].job, thief, pairs)
        taken = 0
        void: list[list[int]] = []
        if job_id in self.books and job_id not in self.core.jobs:
            return self._keep_claims(self.books[job_id], thief, raw, pairs)
        for (index, generation, attempt, _status, digest), outcome in pairs:
            if self.core.result(
                now,
                thief,
                installation,
                job_id,
                index,
                generation,
                attempt,
                outcome,
                digest,
                relayed_by=relayed_by,
                boot=boot,
            ):
                taken += 1
                if outcome.status is OutcomeStatus.REFUSED and thief != LOCAL:
                    self.books[job_id].note_refused(thief)
                self._keep_output(self.books[job_id], index, digest, thief, outcome)
            elif outcome.status is not OutcomeStatus.OK:
                void.append([index, generation, attempt])
        self.counters.refused_claims_count += len(pairs) - taken
        if taken and self._journal is not None:
            book = self.books[job_id]
            if not book.job.is_own:
                self._relay(self._journal, book, raw)
                return taken
            self.commits.writes.append(self._journal.fact_write(job_id, book.next_fact, raw))
            book.next_fact += 1
            if void:  # the worker signed them all together
                self.commits.facts.append((job_id, FactKind.VOID, void))
        return taken

    def _as_seen(
        self, job: OwnedJob, thief: bytes, pairs: Sequence[tuple[Claim, Outcome]]
    ) -> list[tuple[Claim, Outcome]]:
        """Cut the times that results tell to those that can be, and count them."""
        now, wall = self._host.clock.now(), self._host.clock.wall()
        seen = [(claim, self.core.as_seen(now, wall, job, thief, claim[0], outcome)) for claim, outcome in pairs]
        self.counters.odd_times_count += sum(cut[1] is not told[1] for cut, told in zip(seen, pairs, strict=True))
        return seen

    def _keep_output(self, book: JobBook, index: int, digest: bytes, thief: bytes, outcome: Outcome) -> None:
        """Keep what a member claims until it is accepted, over restarts too."""
        checked = book.job.checked
        if checked is None or self._journal is None or digest not in checked.outputs.get(index, ()):
            return
        self._keep_blobs(book, outcome_blobs(outcome))
        if checked.outputs[index][digest].thief == thief:
            job_id = book.job.envelope.job_id
            self.commits.writes.append(
                self._journal.output_write(job_id, index, digest, thief, encode_outcome(outcome))
            )

    def _keep_evidence(self, now: float, *, is_urgent: bool) -> None:
        """Store what more is known of nodes: bans at once, the rest now and then."""
        acceptance = self.core.acceptance
        if acceptance.changed and self._journal is not None and (is_urgent or now >= self._evidence_at):
            self._evidence_at = now + EVIDENCE_S
            for installation, record in acceptance.take_changed().items():
                self.commits.writes.append(self._journal.evidence_write(installation, record.pack()))

    def pardon(self, installation: bytes) -> None:
        """End a ban, and store that at once."""
        now = self._host.clock.now()
        self.core.acceptance.pardon(installation)
        self._keep_evidence(now, is_urgent=True)
        self.apply_effects()
        self._wake()

    async def _load(self, job_id: bytes, indices: Sequence[int]) -> None:
        """Bring back payloads of tasks that are to be computed again."""
        payloads = await self.payloads(job_id, indices)
        if job_id in self.books:
            self.core.acceptance.loaded(self._host.clock.now(), self.books[job_id].job, payloads)
            self._wake()

    def _relay(self, journal: Journal, book: JobBook, raw: bytes) -> None:
        self.commits.writes.append(journal.relay_write(book.job.envelope.job_id, book.next_relay, raw))
        book.next_relay += 1

    def _keep_claims(self, book: JobBook, thief: bytes, raw: bytes, pairs: Sequence[tuple[Claim, Outcome]]) -> int:
        """Take good results of another node's job that somebody else coordinates.  Returns how many are news."""
        taken = 0
        for (index, generation, attempt, _status, _digest), outcome in pairs:
            is_news = outcome.status is OutcomeStatus.OK
            if is_news and book.job.ledger.claim(index, generation, is_good=True) is not None:
                taken += 1
                book.job.share(LOCAL if thief == self._identity.public_key else thief)[1] += 1
                job_row = ResultRecord(
                    state=int(TaskState.CLAIMED),
                    node_key=b"" if thief == self._identity.public_key else thief,
                    node_name=self._name_of(thief),
                    attempts=attempt,
                    outcome=encode_outcome(outcome),
                )
                self.keep_row(book, index, generation, job_row, outcome)
        if taken and self._journal is not None:
            self._relay(self._journal, book, raw)
        self.counters.refused_claims_count += len(pairs) - taken
        return taken

    def keep_row(self, book: JobBook, index: int, generation: int, row: ResultRecord, outcome: Outcome | None) -> None:
        """Keep how a task of another node's job ended."""
        job = book.job
        job_id, state = job.envelope.job_id, TaskState(row.state)
        if self._journal is not None:
            if outcome is not None:
                self._keep_blobs(book, outcome_blobs(outcome))
            self.commits.writes.append(self._journal.result_write(job_id, index, generation, row))
        if not job.ledger.is_claimed(index, generation):
            job.share(row.node_key or LOCAL)[1 if state in (TaskState.DONE, TaskState.CLAIMED) else 2] += 1

    def keep_fact(self, book: JobBook, raw: bytes, kind: int, body: Any) -> None:
        """Keep the next fact of another node's job; it was folded."""
        if self._journal is not None:
            job_id, spec = book.job.envelope.job_id, book.job.envelope.spec
            if kind == FactKind.TASKS:
                for payload in body[1]:
                    self._keep_blobs(book, self._inputs(spec, payload))
            self.commits.writes.append(self._journal.fact_write(job_id, book.next_fact, raw))
        book.next_fact += 1

    def replica_changed(self, book: JobBook) -> None:
        """More is known of another node's job: tell who watches it, and note its end or that it goes on."""
        job_id, ledger = book.job.envelope.job_id, book.job.ledger
        for index in self.core.checkpoints.tasks(job_id):
            if ledger.state(index) is not TaskState.OPEN:
                self.core.checkpoints.ended(job_id, index)
        self._keep_saved()
        if book.job.ledger.is_complete:
            self._completed(book.job.envelope.job_id)
        elif book.record.finished is not None:
            book.record = book.record.with_finished(None)
        self._notify(book, [])

    # --- effects ----------------------------------------------------------------------------------

    def apply_effects(self) -> None:
        """Journal and tell what the core has decided; the stops that holders must be sent gather in `stops`."""
        self._keep_saved()
        if not self.core.has_effects:
            self.commits.start()
            return
        effects = self.core.take_effects()
        self.commits.facts.extend(effects.facts)
        now = self._host.clock.now()
        by_job: dict[bytes, list[TaskEnd]] = {}
        for lost in effects.lost:
            self._keep_lost(lost)
        for end in effects.ends:
            self._printed.take(end.job_id, end.index, end.attempts)
            self._not_lost(end.job_id, end.index)
            by_job.setdefault(end.job_id, []).append(end)
        for job_id, ends in by_job.items():
            book = self.books.get(job_id)
            if book is None:
                continue
            for end in ends:
                book.note_end(now, end.thief)
                if end.outcome is not None:
                    book.usage.add(now, min(end.outcome.runtime_s, USAGE_TAU_S))
                if end.state is TaskState.DONE:
                    self.counters.accepted_count += 1
                    if end.outcome is not None and end.thief != LOCAL:
                        self.on_done(end.thief, end.outcome)
                    if end.outcome is not None:
                        book.note_good(end.thief, end.outcome)
                elif end.state is TaskState.FAILED:
                    self.counters.failed_count += 1
                if self._journal is not None:
                    if end.outcome is not None:
                        self._keep_blobs(book, outcome_blobs(end.outcome))
                    self.commits.writes.append(
                        self._journal.result_write(job_id, end.index, end.generation, self._record(end))
                    )
            if not book.room.is_set() and book.job.ledger.counts[TaskState.OPEN] < OPEN_TASKS_MAX // 2:
                book.room.set()
            self._notify(book, ends)
        for job_id, _index, _generation in effects.revoked:
            self._revived(job_id)
        if self._journal is not None:
            for job_id, index, digests in effects.settled:
                self.commits.writes += [self._journal.output_delete(job_id, index, digest) for digest in digests]
            for job_id in dict.fromkeys(job_id for job_id, _index in effects.wanted):
                indices = [index for job, index in effects.wanted if job == job_id]
                self._scope.spawn(self._load(job_id, indices), "load")
        self._keep_evidence(now, is_urgent=bool(effects.banned or effects.completed))
        for installation, why in effects.banned:
            self.on_banned(installation, why)
        for job_id in effects.completed:
            self._completed(job_id)
        self.stops.extend(effects.stops)
        self._keep_saved()
        self.commits.start()

    def printed(self, thief: bytes, job_id: bytes, index: int, attempt: int, tails: Tails) -> None:
        """A worker says what an attempt has printed that it has the lease of."""
        for lease in self.core.holders(job_id, index)[:1]:
            if lease.thief == thief and lease.attempt == attempt:
                self._printed.heard(job_id, index, attempt, tails)

    def printed_here(self, job_id: bytes, index: int, attempt: int, tails: Tails) -> None:
        """A task on this node says what it has printed since it said so last: that much of it outlives this node."""
        self.printed(LOCAL, job_id, index, attempt, tails)
        lost = LostAttempt(job_id=job_id, index=index, generation=0, attempt=attempt, thief=LOCAL, why=KILLED_HERE)
        if self._keep_printed(lost, self._printed.get(job_id, index, attempt), is_counted=False):
            self._printed_here[job_id, index] = attempt
            self.commits.start()

    def _not_lost(self, job_id: bytes, index: int) -> None:
        """A task has ended: what an attempt on this node has printed came with that."""
        attempt = self._printed_here.pop((job_id, index), None)
        if attempt is not None and self._journal is not None:
            self.commits.writes.append(self._journal.lost_delete(job_id, index, attempt))

    def _keep_lost(self, lost: LostAttempt) -> None:
        """Keep what an attempt has printed; where it was the last one, that came with its end."""
        tails = self._printed.take(lost.job_id, lost.index, lost.attempt)
        book = self.books.get(lost.job_id)
        if self._printed_here.get((lost.job_id, lost.index)) == lost.attempt:
            self._not_lost(lost.job_id, lost.index)  # as it was written; now it is known how it ended
        if book is None:
            return
        if lost.outcome is not None:
            if not book.job.ledger.is_open(lost.index, lost.generation):
                return
            if lost.outcome.stdout or lost.outcome.stderr:
                tails = tails_of(lost.outcome)
        self._keep_printed(lost, tails, is_counted=True)

    def _keep_printed(self, lost: LostAttempt, tails: Tails, *, is_counted: bool) -> bool:
        """Write what an attempt has printed; False where it is nothing, or there is no room.

        Args:
            is_counted: it stays; else it is of an attempt that runs, and goes with its end.
        """
        book, size = self.books.get(lost.job_id), size_of(tails)
        if book is None or self._journal is None or not size:
            return False
        if book.lost_bytes + size > LOST_OUTPUT_JOB_BYTES_MAX:
            self.counters.lost_output_refused_count += is_counted
            return False
        book.lost_bytes += size if is_counted else 0
        key = b"" if lost.thief == LOCAL else lost.thief
        row = [lost.attempt, key, self._name_of(lost.thief), lost.why[-LOST_WHY_CHARS_MAX:], tails_body(tails)]
        self.commits.writes.append(self._journal.lost_write(lost.job_id, lost.index, lost.attempt, row))
        return True

    async def lost(self, job_id: bytes) -> list[tuple[int, int, str, str, Tails]]:
        """Return (index, attempt, name of the node, why, what it printed) of attempts of a job that were lost, in that
        order."""
        if self._journal is None:
            return []
        await self.committed()
        found = []
        async for index, (attempt, _key, name, why, tails) in self._journal.lost(job_id):
            if self._printed_here.get((job_id, index)) != attempt:  # else it runs
                found.append((index, attempt, name, why, parse_tails(tails)))
        return sorted(found)

    def save_local(self, job_id: bytes, index: int, saved: Saved) -> None:
        """Keep what a task on this node has saved."""
        self.core.save(LOCAL, self._identity.installation, job_id, index, saved)
        self.apply_effects()

    def save_copy(self, book: JobBook, index: int, saved: Saved | None) -> None:
        """Keep what another keeper of a job has of a task; None: it has dropped it."""
        checkpoints, ledger = self.core.checkpoints, book.job.ledger
        job_id = book.job.envelope.job_id
        if saved is None:
            if not book.job.is_own:
                checkpoints.drop(job_id, index)
        elif ledger.is_open(index, saved.generation) and not self._is_later(book, index, saved):
            checkpoints.keep(job_id, index, saved, is_copy=not book.job.is_own)
        self.apply_effects()

    def _is_later(self, book: JobBook, index: int, saved: Saved) -> bool:
        """Whether our own job has got further than a copy of it."""
        if not book.job.is_own:
            return False
        lease = book.job.leases.get(index)
        reached = self.core.checkpoints.attempt(book.job.envelope.job_id, index)
        return reached >= saved.attempt or (lease is not None and lease.has_saved)

    def _keep_saved(self) -> None:
        """Write what tasks have saved, and hold their blobs."""
        changes = self.core.checkpoints.take_changes()
        if not changes:
            return
        for change in changes:
            if change.saved is not None and change.saved.blob is not None:
                self._host.store.blobs.pin([change.saved.blob])
            if change.freed is not None:
                self._host.store.blobs.unpin([change.freed])
            if self._journal is not None:
                self.commits.writes.append(self._journal.saved_write(change.job_id, change.index, _row(change.saved)))
        for job_id in dict.fromkeys(change.job_id for change in changes if change.saved is not None):
            self.commits.on_kept(job_id)

    async def _recover_saved(self, journal: Journal) -> None:
        """Take up what tasks of unfinished jobs had saved, those of others too."""
        async for job_id, index, row in journal.saved():
            book, saved = self.books.get(job_id), parse_saved(row)
            if book is None or saved is None or not book.job.ledger.is_open(index, saved.generation):
                self.commits.writes.append(journal.saved_write(job_id, index, None))
                continue
            is_kept = self.core.checkpoints.keep(job_id, index, saved, is_restored=True, is_copy=not book.job.is_own)
            if is_kept and saved.blob is not None:
                self._host.store.blobs.pin([saved.blob])

    def _record(self, end: TaskEnd) -> ResultRecord:
        return ResultRecord(
            state=int(end.state),
            node_key=b"" if end.thief == LOCAL else end.thief,
            node_name=self._name_of(end.thief),
            attempts=end.attempts,
            outcome=b"" if end.outcome is None else encode_outcome(end.outcome),
            payload=end.payload if len(end.payload) <= PAYLOAD_KEPT_BYTES_MAX else b"",
        )

    def _completed(self, job_id: bytes) -> None:
        book = self.books.get(job_id)
        if book is None or book.record.finished is not None:
            return
        book.record = book.record.with_finished(self._host.clock.wall())
        if self._journal is not None:
            self.commits.writes.append(self._journal.job_write(book.record))
        self._notify(book, [])

    def _revived(self, job_id: bytes) -> None:
        """Results of a job are believed no longer: it goes on."""
        book = self.books.get(job_id)
        if book is None:
            return
        if book.record.finished is not None:
            book.record = book.record.with_finished(None)
            if self._journal is not None:
                self.commits.writes.append(self._journal.job_write(book.record))
        self._notify(book, [])

    def _notify(self, book: JobBook, ends: Sequence[TaskEnd]) -> None:
        for listener in tuple(book.listeners):
            listener(ends)

    def _fact(self, job_id: bytes, kind: FactKind, body: list[Any]) -> None:
        if self._journal is not None:
            self.commits.facts.append((job_id, kind, body))

    def with_files(self) -> list[bytes]:
        """Return the jobs that have something to give, and whose tasks need files."""
        jobs = self.core.jobs
        return [
            job_id
            for job_id in self.core.order
            if jobs[job_id].ready_count > 0 and job_id in self.books and self.books[job_id].kept
        ]

    # --- journal ----------------------------------------------------------------------------------

    async def committed(self) -> None:
        """Wait until everything decided so far is durable.

        Raises:
            StoreError: the node stops before it is.
        """
        if not self.commits.is_closed:
            self.apply_effects()
        await self.commits.done()

    @property
    def trouble(self) -> StoreError | None:
        """Why the store takes nothing just now."""
        return self.commits.trouble

    @property
    def is_busy(self) -> bool:
        """Whether a grant, a lease or a task that waits could come to an end by time alone."""
        return self.core.is_busy

    def close(self) -> None:
        """Nothing is written any more: tell who waits for it, and for room."""
        self.commits.close()
        for book in self.books.values():
            book.room.set()

    # --- reading ----------------------------------------------------------------------------------

    async def result_of(self, job_id: bytes, index: int) -> ResultRecord | None:
        """Return how a task ended at its present generation."""
        if self._journal is None:
            return None
        ledger = self.book(job_id).job.ledger
        record = await self._journal.result(job_id, index, ledger.generation(index))
        if record is None and ledger.state(index) is not TaskState.OPEN and not self.commits.is_closed:
            await self.committed()  # it has ended in this moment
            record = await self._journal.result(job_id, index, ledger.generation(index))
        return record
