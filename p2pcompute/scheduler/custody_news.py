"""What one keeper of a job tells another that asks (`Message.SYNC`), and those that wait for something to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute.host.interfaces import Clock
from p2pcompute.limits import (
    ATTEMPTS_MAX,
    FRAME_BYTES_MAX,
    INLINE_BYTES_MAX,
    NODE_NAME_CHARS_MAX,
    SYNC_BYTES_MAX,
    SYNC_ITEMS_MAX,
    SYNC_SAVED_BYTES_MAX,
    SYNC_WAITING_MAX,
)
from p2pcompute.scheduler.checkpoints import Checkpoints, Saved
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.messages import Row, SyncAsked, Synced
from p2pcompute.store.journal import Journal, ResultRecord
from p2pcompute.wire.envelope import unverified_payload


class Waiters:
    """Questions that wait for news of a job; bound: SYNC_WAITING_MAX."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}
        """By job."""
        self.count = 0

    async def wait(self, job_id: bytes, limit_s: float) -> bool:
        """Wait for news of a job; False when there was none in time, or too many wait."""
        if self.count >= SYNC_WAITING_MAX:
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, []).append(waiter)
        self.count += 1
        try:
            async with self._clock.timeout(limit_s):
                await waiter
            return True
        except TimeoutError:
            return False
        finally:
            self.count -= 1
            waiters = self._waiting.get(job_id, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiting.pop(job_id, None)

    def wake(self, job_id: bytes) -> None:
        """There is news of a job."""
        for waiter in self._waiting.pop(job_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def wake_all(self) -> None:
        for job_id in list(self._waiting):
            self.wake(job_id)


class News:
    """Answers from what is durable here."""

    def __init__(self, journal: Journal, checkpoints: Checkpoints, own_key: bytes) -> None:
        self._journal = journal
        self._checkpoints = checkpoints
        self._key = own_key

    async def of(self, book: JobBook, asked: SyncAsked, *, epoch: int, is_acting: bool, is_keeper: bool) -> Synced:
        """Return what is durable here and the other does not have, as much as fits.

        Args:
            is_keeper: what tasks have saved comes along.
        """
        page = _Page()
        facts: list[bytes] = []
        rows: list[Row] = []
        rows_next = asked.rows
        async for raw in self._journal.facts(asked.job_id, asked.facts):
            rows_next = await self._add_rows(page, book, _ends_of(raw), rows_next, rows)
            if page.is_full():
                break
            page.add(len(raw))
            facts.append(raw)
            rows_next = 0
        claims: list[bytes] = []
        claimed: list[Row] = []
        claim_rows_next = asked.claim_rows
        if not book.job.is_own and not page.is_full():
            async for raw in self._journal.relays(asked.job_id, asked.claims):
                ends = [(claim[0], claim[1]) for claim in read_fact(raw)[1]]
                claim_rows_next = await self._add_rows(page, book, ends, claim_rows_next, claimed, has_claims=True)
                claims.append(raw)
                page.add(len(raw))
                if claim_rows_next < len(ends):
                    break
                claim_rows_next = 0
                if page.is_full():
                    break
        saved, saved_next, is_all_saved = self._saved_since(asked, page) if is_keeper else ([], 0, True)
        return Synced(
            epoch=epoch,
            is_acting=is_acting,
            facts=facts,
            rows=rows,
            rows_next=rows_next,
            claims=claims,
            claimed=claimed,
            claim_rows_next=claim_rows_next,
            saved=saved,
            saved_next=saved_next,
            is_all=is_all_saved and not page.is_full(),
        )

    def _saved_since(self, asked: SyncAsked, page: _Page) -> tuple[list[tuple[int, Saved | None]], int, bool]:
        """Return (what tasks have saved since, the number of the last change of it, is that all)."""
        saved: list[tuple[int, Saved | None]] = []
        number = asked.saved
        room = max(SYNC_SAVED_BYTES_MAX, SYNC_BYTES_MAX - page.size)
        room = min(room, FRAME_BYTES_MAX - page.size - 2 * INLINE_BYTES_MAX)
        for changed, index, kept in self._checkpoints.since(asked.job_id, number):
            if room <= 0:
                return saved, number, False
            if kept is not None and len(kept.by) > ATTEMPTS_MAX:
                kept = None
            room -= 64 if kept is None else 64 + len(kept.cookie) + 40 * len(kept.by)
            saved.append((index, kept))
            number = changed
        return saved, number, True

    async def _add_rows(
        self,
        page: _Page,
        book: JobBook,
        ends: Sequence[tuple[int, int]],
        first: int,
        rows: list[Row],
        *,
        has_claims: bool = False,
    ) -> int:
        """Add how these tasks ended, from position `first` on; returns the position of the next that did not fit.

        Args:
            has_claims: also what is claimed of those that wait for a further claim.
        """
        job_id = book.job.envelope.job_id
        position = first
        for index, generation in ends[first:]:
            if page.is_full():
                break
            position += 1
            kept = await self._journal.result(job_id, index, generation)
            if kept is None and has_claims:
                kept = await self._claimed(job_id, index)
            if kept is None:
                continue
            key = kept.node_key or self._key
            name = kept.node_name[:NODE_NAME_CHARS_MAX]
            rows.append(Row(index, generation, kept.state, key, name, kept.attempts, kept.outcome, kept.payload))
            page.add(len(kept.outcome) + len(kept.payload))
        return position

    async def _claimed(self, job_id: bytes, index: int) -> ResultRecord | None:
        """Return what somebody claims of a task that has not ended here, as if it had."""
        async for _index, _digest, node, outcome in self._journal.outputs(job_id, index):
            state = int(TaskState.CLAIMED)
            return ResultRecord(state=state, node_key=node, node_name="", attempts=1, outcome=outcome, payload=b"")
        return None


@dataclass(slots=True)
class _Page:
    """How much an answer holds."""

    size: int = 0
    count: int = 0

    def add(self, size: int) -> None:
        self.size += size + 100  # what is beside it
        self.count += 1

    def is_full(self) -> bool:
        return self.size >= SYNC_BYTES_MAX or self.count >= SYNC_ITEMS_MAX


def read_fact(raw: bytes) -> tuple[int, Any]:
    """Return (kind, body) of a fact in our own journal, which was checked when it was written."""
    payload = unverified_payload(raw)
    return (FactKind.CLAIMS, payload["claims"]) if "claims" in payload else (payload["kind"], payload["body"])


def _ends_of(raw: bytes) -> list[tuple[int, int]]:
    """Return (index, generation) of the ends that a fact in our own journal tells."""
    kind, body = read_fact(raw)
    return [(entry[0], entry[1]) for entry in body] if kind in (FactKind.ACCEPT, FactKind.FAIL) else []
