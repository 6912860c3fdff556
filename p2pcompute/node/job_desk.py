"""The jobs of a node as people and programs ask for them: handed in, looked at, followed, pruned.

What becomes of them is the scheduler's business; here it is made into views (`facade`), and what is asked for is
checked against what the group and the journal can do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from p2pcompute.errors import TrustError, UsageError
from p2pcompute.execution.progress import parse as parse_progress
from p2pcompute.execution.spec import JobSpec, encode_spec
from p2pcompute.host.interfaces import Host
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import TICKET_TTL_S
from p2pcompute.node import views
from p2pcompute.node.belief import belief
from p2pcompute.node.evidence import EvidenceExchange
from p2pcompute.node.facade import (
    BeliefView,
    EvidenceView,
    JobView,
    LostAttemptView,
    PruneReport,
    TailView,
    TaskDone,
    TaskProgress,
    TaskView,
    TicketView,
)
from p2pcompute.node.inputs import spec_of
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.node.network import Network
from p2pcompute.node.proofs import bundle_of, evidence_of
from p2pcompute.node.slowness import Course, NodeCourse
from p2pcompute.scheduler.books import Refusals, TaskEnd
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.messages import decode_outcome
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.scheduler.tickets import parse_ticket
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.trust.levels import Level


class JobDesk:
    """Answers for the jobs of one node; `NodeFacade` says what each method promises."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        credentials: GroupCredentials,
        channels: Channels,
        network: Network,
        scheduler: Scheduler,
        journal: Journal | None,
        evidence: EvidenceExchange,
        name_of: Callable[[bytes], str],
        *,
        custodians: int,
    ) -> None:
        """Args:
        journal: None where nothing is kept.
        name_of: names a node by its key.
        custodians: how many nodes keep a new job too, where there are so many.
        """
        self._host = host
        self._identity = identity
        self._credentials = credentials
        self._channels = channels
        self._network = network
        self._scheduler = scheduler
        self._journal = journal
        self._evidence = evidence
        self._name_of = name_of
        self._custodian_count = custodians

    async def submit_job(self, terms: JobTerms, spec: JobSpec, *, client_note: str = "") -> bytes:
        if not terms.custodians and not terms.local_only and self._journal is not None:
            terms = replace(terms, custodians=self._custodians())
        terms = replace(terms, group=self._credentials.group.group_id)
        self._check_believable(terms)
        return await self._scheduler.owner.submit(terms, encode_spec(spec), client_note)

    def _check_believable(self, terms: JobTerms) -> None:
        """Refuse a job of whose results none could ever be believed.

        Raises:
            TrustError: it may run on one node only, which is not trusted.
        """
        if len(terms.on) != 1 or terms.verify == "none" or terms.replicas == 1:
            return
        (key,) = terms.on
        installation = self._credentials.installation_of(key) or key
        if key == self._identity.public_key or self._credentials.levels.level_of(installation) is Level.TRUSTED:
            return
        name = self._name_of(key)
        raise TrustError(
            f"{name} is not trusted, and no other node may check its results",
            "a result of a member is accepted when another one, or a trusted node, finds the same",
            f"p2pc trust set {name} trusted, or believe it this time: --verify none, or name more nodes",
            code="unchecked",
        )

    def _custodians(self) -> tuple[bytes, ...]:
        """Choose who keeps a new job too: installations of the group that are connected, may submit and keep things."""
        able = [channel.peer.key for channel in self._channels.all() if self._may_keep(channel)]
        able = list(dict.fromkeys(able))
        rng = self._host.rng.stream("custodians")
        return tuple(rng.sample(able, min(self._custodian_count, len(able))))

    def _may_keep(self, channel: Channel) -> bool:
        peer = channel.peer
        member = self._credentials.membership_of(peer.installation)
        may_submit = member is not None and "submit" in member.roles
        is_trusted = self._credentials.levels.level_of(peer.installation) is Level.TRUSTED  # it reads all of the job
        return may_submit and is_trusted and peer.key == peer.installation and peer.hello.get("keeps") is True

    async def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        first = await self._scheduler.owner.add_tasks(job_id, payloads)
        self._scheduler.offers.offer()
        return first

    async def seal_job(self, job_id: bytes) -> None:
        await self._scheduler.owner.seal(job_id)

    async def cancel(self, job_id: bytes, *, indices: Sequence[int] | None = None, now: bool = False) -> None:
        if self._scheduler.custody is not None:  # what custodians took while this node was away stays done
            await self._scheduler.custody.all_heard(job_id)
        # Who only looks on cannot hear what runs elsewhere: to wait for it would leave the job open.
        await self._scheduler.owner.cancel(job_id, indices, kill=now or self._scheduler.is_onlooker)

    async def retry(self, job_id: bytes, *, indices: Sequence[int] | None = None, failed_only: bool = True) -> int:
        count = await self._scheduler.owner.retry(job_id, indices, failed_only=failed_only)
        self._scheduler.offers.offer()
        return count

    async def evidence(self, key: bytes) -> EvidenceView:
        found = await evidence_of(self._host, self._journal, self._scheduler.owner, key)
        return replace(found, proof=found.proof or self._evidence.get(key))

    async def bundle(self, job_id: bytes) -> bytes:
        await self._scheduler.owner.committed()
        return await bundle_of(self._journal, self._scheduler.owner.book(job_id))

    def ticket(self, job_id: bytes) -> TicketView:
        custody = self._scheduler.custody
        if custody is None:
            raise UsageError("this node keeps no jobs", "it is embedded without a store", None, code="no-store")
        expires = self._host.clock.wall() + TICKET_TTL_S
        addresses = self._network.own_addresses()
        return TicketView(
            text=custody.ticket(job_id, expires_wall=expires, own_addresses=addresses), expires=float(int(expires))
        )

    async def attach(self, ticket: str) -> JobView:
        parsed, custody = parse_ticket(ticket), self._scheduler.custody
        if custody is None:
            raise UsageError("this node keeps no jobs", "it is embedded without a store", None, code="no-store")
        await custody.attach(parsed)
        return self.job(parsed.job_id.hex())

    async def prune(self, *, older_than_s: float, drop_results: bool, dry_run: bool) -> PruneReport:
        """Forget jobs that ended longer ago than this, with the files that only they name.

        `drop_results` removes the result files of the jobs; without it only the records go.
        """
        owner = self._scheduler.owner
        limit = self._host.clock.wall() - older_than_s
        old = [
            job_id
            for job_id, book in owner.books.items()
            if book.record.finished is not None and book.record.finished <= limit
        ]
        freed = 0
        for job_id in old:
            if dry_run:
                freed += await self._named_bytes(job_id) if drop_results else 0
                continue
            refs = await owner.forget(job_id)
            if drop_results:
                freed += await self._host.store.blobs.delete(refs)
        return PruneReport(jobs=len(old), freed_bytes=freed)

    async def _named_bytes(self, job_id: bytes) -> int:
        return 0 if self._journal is None else sum([ref.size async for ref in self._journal.pins(job_id)])

    def jobs(self) -> Sequence[JobView]:
        own = [book for book in self._scheduler.owner.books.values() if book.job.is_own]
        books = sorted(own, key=lambda book: book.record.order, reverse=True)
        return views.with_shares([self._job_view(book) for book in books])

    def job(self, ref: str) -> JobView:
        book = views.find_job(self._scheduler.owner, ref)
        return self._job_view(book)

    def _job_view(self, book: JobBook) -> JobView:
        view = views.job(book, self._host.clock.now(), self._name_of, self._scheduler.victim.slots_of, self._identity)
        if view.checking:
            doubt, fix = views.doubt(book.job, self._scheduler.owner.core, self._host.clock.now(), self._name_of)
            view = replace(view, doubt=doubt, doubt_fix=fix)
        if book.job.is_own:
            return view
        custody = self._scheduler.custody
        outlook = None if custody is None else custody.outlook(book.job.envelope.job_id)
        view = replace(view, coordinator=views.coordinator(outlook, self._host.clock, self._name_of))
        # What its submitter's programs noted stays there; how to show the tasks is known.
        return replace(view, note=f'{{"kind": "{spec_of(book.job.envelope.spec).kind}"}}')

    async def tasks(
        self, job_id: bytes, *, states: Collection[str] | None = None, after: int = -1, limit: int = 1000
    ) -> Sequence[TaskView]:
        owner = self._scheduler.owner
        book = owner.book(job_id)
        ledger = book.job.ledger
        chosen: list[TaskView] = []
        for index in range(after + 1, ledger.size):
            if len(chosen) >= limit:
                break
            state = views.task_state(book.job, index)
            if states is None or state in states:
                chosen.append(await self._task_view(book.job.envelope.job_id, index, state, ledger.seq(index)))
        return chosen

    def _key_of(self, thief: bytes) -> bytes:
        return self._identity.public_key if thief == LOCAL else thief

    async def _task_view(self, job_id: bytes, index: int, state: str, seq: int) -> TaskView:
        owner = self._scheduler.owner
        job = owner.book(job_id).job
        payload = job.payloads.get(index)
        before = await self._tries_before(job_id, index, job.ledger.generation(index))
        if payload is not None:
            lease = next(iter(owner.core.holders(job_id, index)), None)
            return TaskView(
                index,
                job.ledger.generation(index),
                state,
                node_key=b"" if lease is None else self._key_of(lease.thief),
                node_name="" if lease is None else self._name_of(lease.thief),
                attempts=before + job.attempts.get(index, 0),
                payload=payload,
            )
        record = await owner.result_of(job_id, index)
        reason = job.ledger.reasons.get(index, "")
        if record is None:
            return TaskView(index, job.ledger.generation(index), state, attempts=before, reason=reason, seq=seq)
        payload = record.payload
        if not payload:
            payload = (await owner.payloads(job_id, [index])).get(index, b"")
        return TaskView(
            index,
            job.ledger.generation(index),
            state,
            outcome=decode_outcome(record.outcome) if record.outcome else None,
            node_key=record.node_key or (self._identity.public_key if record.node_name else b""),
            node_name=record.node_name,
            attempts=before + record.attempts,
            payload=payload,
            reason=reason,
            seq=seq,
        )

    async def _tries_before(self, job_id: bytes, index: int, generation: int) -> int:
        """Return how many attempts a task had before it was started again, as far as is kept here."""
        if self._journal is None:
            return 0
        ends = [await self._journal.result(job_id, index, earlier) for earlier in range(generation)]
        return sum(end.attempts for end in ends if end is not None)

    def belief(self, job_id: bytes, task: TaskView) -> BeliefView | None:
        owner, credentials = self._scheduler.owner, self._credentials
        return belief(
            owner.book(job_id).job,
            task.index,
            task.node_key,
            self._identity.public_key,
            self._name_of,
            lambda key: credentials.level_of(credentials.installation_of(key) or key),
            has_arbiter=owner.core.has_other(self._host.clock.now(), owner.book(job_id).job, (), are_believed=True),
        )

    async def tail(self, job_id: bytes, index: int, *, attempt: int, offsets: tuple[int, int]) -> TailView | None:
        found = await self._scheduler.tail(job_id, index, attempt, offsets)
        if found is None:
            return None
        (stdout_start, stdout), (stderr_start, stderr) = found.stdout, found.stderr
        said = parse_progress(found.progress)
        return TailView(
            node=self._name_of(found.node),
            attempt=found.attempt,
            stdout_start=stdout_start,
            stdout=stdout,
            stderr_start=stderr_start,
            stderr=stderr,
            progress=None if said is None else TaskProgress(*said),
            quiet_s=None if found.silence is None else found.silence.quiet_s,
            idle_s=None if found.silence is None else found.silence.idle_s,
        )

    async def lost_attempts(self, job_id: bytes) -> Sequence[LostAttemptView]:
        return [
            LostAttemptView(
                index=index,
                attempt=attempt,
                node=name,
                why=why,
                stdout_start=stdout.start,
                stdout=stdout.data,
                stderr_start=stderr.start,
                stderr=stderr.data,
            )
            for index, attempt, name, why, (stdout, stderr) in await self._scheduler.owner.lost(job_id)
        ]

    async def finished(self, job_id: bytes, *, after: int, limit: int) -> Sequence[TaskDone]:
        ledger = self._scheduler.owner.book(job_id).job.ledger
        found: list[TaskDone] = []
        for seq in range(after + 1, len(ledger.finished) + 1):
            if len(found) >= limit:
                break
            index = ledger.finished[seq - 1]
            if ledger.state(index) is TaskState.OPEN or ledger.seq(index) != seq:
                continue  # it was retried and ends again under another number
            state = views.STATE_NAMES[ledger.state(index)]
            end = await self._task_view(job_id, index, state, seq)
            if not end.payload:
                break  # its record, which holds or leads to its payload, is on the way to the store
            found.append(end)
        return found

    def watch(self, job_id: bytes, listener: Callable[[Sequence[TaskDone]], None]) -> Callable[[], None]:
        book = self._scheduler.owner.book(job_id)
        job = book.job

        def tell(ends: Sequence[TaskEnd]) -> None:
            listener(
                [
                    TaskView(
                        end.index,
                        end.generation,
                        views.STATE_NAMES[end.state],
                        end.outcome,
                        self._key_of(end.thief) if end.attempts else b"",
                        self._name_of(end.thief),
                        end.attempts,
                        end.payload,
                        job.ledger.reasons.get(end.index, ""),
                        end.seq,
                    )
                    for end in ends
                ]
            )

        book.listeners.append(tell)

        def stop() -> None:
            if tell in book.listeners:
                book.listeners.remove(tell)

        return stop

    def course(self, job_id: bytes) -> Course:
        """Return how a job of this node goes."""
        book, view = self._scheduler.owner.book(job_id), self.job(job_id.hex())
        core, now, nodes = self._scheduler.owner.core, self._host.clock.now(), []
        former = [lease.thief for leases in book.job.former.values() for lease in leases]
        for share in view.by_node:
            thief = LOCAL if share.public_key == self._identity.public_key else share.public_key
            ended, took_s = book.took.get(thief, (0, 0.0))
            known = core.thieves.get(thief)
            refusals = book.job.refusals.get(thief, Refusals())
            nodes.append(
                NodeCourse(
                    key=share.public_key,
                    running=share.running,
                    ended=ended,
                    took_s=took_s,
                    copied=former.count(thief),
                    rests_s=0.0 if known is None else core.rests_s(now, known[0]),
                    refused=refusals.count,
                    refused_why=refusals.why,
                    refused_rests_s=max(0.0, book.job.unfit.get(thief, now) - now),
                )
            )
        checked = book.job.checked
        claimed = [] if checked is None else [index for index in checked.held if index in checked.outputs]
        unchecked = [] if checked is None else [index for index in claimed if index not in checked.asked]
        return Course(
            unconfirmed=core.acceptance.unconfirmed(now, book.job),
            alone_in_s=core.acceptance.alone_in_s(now, book.job),
            disputed=0 if checked is None else len(checked.asked),
            unchecked=len(unchecked),
            checks=0 if checked is None else sum(map(checked.is_computed, unchecked)),
            agreed=0 if checked is None else sum(len(checked.claims_of(index)) > 1 for index in unchecked),
            nodes=nodes,
            ended=view.done + view.failed,
            running=view.running,
            waiting=view.waiting,
            retried=view.retried,
            is_sealed=view.total is not None,
            alias=view.alias,
            slots_max=book.job.envelope.terms.slots_max,
        )
