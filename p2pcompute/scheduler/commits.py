"""What an owner has decided, made durable in groups.

One envelope for each kind of fact and flush, one commit of the store at a time, so that the cost of a signature and a
disk sync is shared by all tasks of that moment.  Who acknowledges something waits for `done` first.  When the store
cannot take a commit nothing is forgotten: it is tried again, and `trouble` says so; until then no work is given out.

Bounds: none of its own.  What others send waits for its commit before more of it is taken (`OwnerService.committed`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from p2pcompute.errors import StoreError
from p2pcompute.host.interfaces import Host, Write
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import JOB_ID_BYTES
from p2pcompute.limits import RESULTS_BATCH_MAX
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import FactKind
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE, FACT_CONTENT_TYPE
from p2pcompute.store.journal import EVIDENCE, Journal

FACT_ENTRIES_MAX = 2000
"""Entries in one fact."""
_ENTRIES_MAX: Final = {FactKind.CLAIMS: RESULTS_BATCH_MAX, FactKind.FAIL: 500}
"""Of some kinds: what others send in one message, and reasons are long."""
RETRY_COMMIT_S = 2.0
"""Pause before a failed commit is tried again."""


def _stopping() -> StoreError:
    return StoreError("this node is stopping", "what was asked last may not be in its store", None, code="stopping")


class Commits:
    """Facts and rows on their way to the store."""

    __slots__ = (
        "_books", "_host", "_identity", "_is_at_it", "_journal", "_scope", "_waiters", "_wake", "facts",
        "is_closed", "on_kept", "trouble", "writes",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        identity: Identity,
        journal: Journal | None,
        scope: TaskScope,
        books: Mapping[bytes, JobBook],
        *,
        wake: Callable[[], None],
    ) -> None:
        """Args:
        journal: None: nothing is kept, and what comes is dropped.
        books: jobs that are kept; rows of others are not written.
        wake: called when the store takes commits again.
        """
        self._host = host
        self._identity = identity
        self._journal = journal
        self._scope = scope
        self._books = books
        self._wake = wake
        self.on_kept: Callable[[bytes], None] = lambda _job_id: None
        """Called with a job when more of it is durable, or its tasks have saved something."""
        self.facts: list[tuple[bytes, FactKind, list[Any]]] = []
        """(job, kind, entries) to be signed, in this order."""
        self.writes: list[Write] = []
        """Further rows, written before these."""
        self._waiters: list[asyncio.Future[None]] = []
        self._is_at_it = False
        self.is_closed = False
        self.trouble: StoreError | None = None
        """Why the store takes nothing just now."""

    @property
    def is_waiting(self) -> bool:
        """Whether anything is not durable yet."""
        return bool(self.facts or self.writes or self._waiters or self._is_at_it)

    async def done(self) -> None:
        """Wait until everything that was begun with is durable.

        Raises:
            StoreError: the node stops before it is.
        """
        if self.is_closed:
            raise _stopping()
        if not self._is_at_it:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def close(self) -> None:
        """Nothing is written any more: tell who waits for it."""
        self.is_closed = True
        self._fail(self._waiters)

    @staticmethod
    def _fail(waiters: Sequence[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(_stopping())
                waiter.exception()  # who waits may be gone as well

    def start(self) -> None:
        """Begin with what there is, in the background."""
        if (self.facts or self.writes) and not self._is_at_it:
            if self._journal is None:
                self.facts.clear()
                self.writes.clear()
            else:
                self._is_at_it = True
                self._scope.spawn(self._flush(self._journal), "flush")

    async def _flush(self, journal: Journal) -> None:
        """Sign and commit until nothing waits; acknowledgements go out after the commit that covers them."""
        waiters: list[asyncio.Future[None]] = []
        try:
            while self.facts or self.writes or self._waiters:
                waiters, self._waiters = self._waiters, []
                writes = self._sign_facts(journal)
                await self._commit(writes)
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
        finally:
            self._is_at_it = False
            self._fail(waiters)

    def _sign_facts(self, journal: Journal) -> list[Write]:
        writes, self.writes = self.writes, []
        facts, self.facts = deque(self.facts), []
        while facts:
            job_id, kind, body = facts.popleft()
            parts = [body]
            if kind not in (FactKind.TASKS, FactKind.SEAL):
                most = _ENTRIES_MAX.get(kind, FACT_ENTRIES_MAX)
                if facts and facts[0][:2] == (job_id, kind):
                    body = list(body)  # whoever noted it may hold it
                while facts and facts[0][:2] == (job_id, kind) and len(body) < most:
                    body += facts.popleft()[2]
                parts = [body[start : start + most] for start in range(0, len(body), most)] or [body]
            book = self._books.get(job_id)
            if book is None:
                continue
            for part in parts:
                writes += self._sign_fact(journal, book, kind, part)
        return writes

    def _sign_fact(self, journal: Journal, book: JobBook, kind: FactKind, body: list[Any]) -> list[Write]:
        job_id = book.job.envelope.job_id
        if kind is FactKind.CLAIMS:
            raw = self._identity.sign_envelope(CLAIMS_CONTENT_TYPE, {"job": job_id, "claims": body})
        elif book.job.is_own:
            raw = self._identity.sign_envelope(FACT_CONTENT_TYPE, {"job": job_id, "kind": int(kind), "body": body})
        else:
            return []
        if book.job.is_own:
            write = journal.fact_write(job_id, book.next_fact, raw)
            book.next_fact += 1
        else:
            write = journal.relay_write(job_id, book.next_relay, raw)
            book.next_relay += 1
        return [write]

    async def _commit(self, writes: list[Write]) -> None:
        while writes := [write for write in writes if self._is_wanted(write)]:
            try:
                await self._host.store.commit(writes)
            except StoreError as error:
                self.trouble = error
                await self._host.clock.sleep(RETRY_COMMIT_S)
            else:
                if self.trouble is not None:
                    self.trouble = None
                    self._wake()
                for job_id in dict.fromkeys(write.key[:JOB_ID_BYTES] for write in writes if write.table != EVIDENCE):
                    self.on_kept(job_id)
                return

    def _is_wanted(self, write: Write) -> bool:
        """Whether a row is stored: not one of a job that was forgotten meanwhile, which it would bring back."""
        return write.table == EVIDENCE or write.key[:JOB_ID_BYTES] in self._books
